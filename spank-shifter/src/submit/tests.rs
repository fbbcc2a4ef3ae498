//! What is asked for, judged and resolved with scripts in the place of the image manager.

use std::fs;
use std::path::Path;

use super::*;
use crate::pins::tests::sample;
use crate::report;

const SITE: &str = "[module.mpi]\nconflicts = ['gpu']\n[module.gpu]\n\
                    [store]\ntrees = { sl6 = '/chos/sl6' }\n";

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("/x")).unwrap()
}

fn options(image: &str, volumes: &[&str], modules: &[&str]) -> RawOptions {
    let mut raw = RawOptions::new();
    let images = (!image.is_empty()).then_some((0, image)).into_iter();
    let volumes = volumes.iter().map(|volume| (2, *volume));
    let modules = modules.iter().map(|module| (4, *module));
    for (number, value) in images.chain(volumes).chain(modules) {
        raw.add(number, value.as_bytes()).unwrap();
    }
    raw
}

fn check(image: &str, volumes: &[&str], modules: &[&str]) -> Result<Request, String> {
    Request::check(&options(image, volumes, modules), &config(SITE))
        .map_err(|error| report::lines(&error, error.hint()).join("|"))
}

#[test]
fn what_is_refused_says_the_way_out() {
    let table = [
        (check("a b", &[], &[]), "cannot understand image 'a b'"),
        (
            check("./x.sqsh", &[], &[]),
            "'file:./x.sqsh' for a job: it is in no image store|hint: in the job: srun shifter",
        ),
        (check("local:/a", &[], &[]), "'local:/a' for a job"),
        (check("local:sl7", &[], &[]), "no tree of this name"),
        (check("x", &["/a:/etc"], &[]), "'/etc'"),
        (check("x", &["/a"], &[]), "hint: "),
        (check("x", &["/a:/c", "/b:/c"], &[]), "target '/c'"),
        (check("x", &[], &["zzz"]), "'zzz'"),
        (check("x", &[], &["mpi", "gpu"]), "'mpi'"),
        (
            check("x", &[], &["a b"]),
            "'a b' is not the name of a module",
        ),
    ];
    for (result, expected) in table {
        let error = result.unwrap_err();
        assert!(
            error.starts_with("shifter: ") && error.contains(expected),
            "{error}"
        );
    }
    assert!(check("x", &["/a:/b", "/c:/d"], &["mpi"]).is_ok());
    assert!(check("local:sl6", &[], &[]).is_ok());
}

#[test]
fn modules_are_pinned_with_the_default_ones_and_none_is_said() {
    let site = format!("default_modules = ['gpu']\n{SITE}");
    let pinned = |names: &[&str], site: &str| {
        let request = Request::check(&options("x", &[], names), &config(site)).unwrap();
        request.pinned_modules().join(",")
    };
    assert_eq!(pinned(&[], &site), "gpu");
    assert_eq!(pinned(&["mpi"], &site), "mpi");
    assert_eq!(pinned(&["none"], &site), "none");
    assert_eq!(pinned(&[], SITE), "");
    assert_eq!(pinned(&["none"], SITE), "none");
}

/// Judges a step of a job, with an image manager that finds every image; returns the first digit of
/// the id, the volumes and the modules.
fn step(
    job: Option<Pins>,
    image: &str,
    volumes: &[&str],
    modules: &[&str],
) -> Result<(char, String, String), String> {
    let site = Scripted::new(&found("site"), SITE);
    let raw = options(image, volumes, modules);
    let request = Request::check(&raw, &site.config).unwrap();
    let pins = request.for_step(job, &site.tools());
    let pins = pins.map_err(|error| report::lines(&error, error.hint()).join("|"))?;
    let id = pins.id.to_string().remove(0);
    Ok((id, pins.volumes.signature(), pins.modules.join(",")))
}

#[test]
fn a_step_takes_from_its_job_what_it_does_not_name() {
    let job = Pins {
        id: ImageId::parse(&"b".repeat(64)).unwrap(),
        ..sample()
    };
    let id = format!("id:{}", job.id);
    let both = "/data:/data2:ro;/scratch:/mnt";
    let in_job = |image, volumes: &[&str], modules: &[&str]| {
        step(Some(job.clone()), image, volumes, modules).unwrap()
    };
    let table = [
        (in_job("ubuntu:24.04", &[], &[]), ('b', both, "mpi,gpu")),
        (in_job("", &[], &[]), ('b', both, "mpi,gpu")),
        (in_job(&id, &[], &[]), ('b', both, "mpi,gpu")),
        (in_job("ubuntu:22.04", &[], &[]), ('a', both, "mpi,gpu")),
        (in_job("", &["/a:/b"], &[]), ('b', "/a:/b", "mpi,gpu")),
        (in_job("", &[], &["gpu"]), ('b', both, "gpu")),
        (in_job("", &[], &["none"]), ('b', both, "none")),
        (step(None, "ubuntu:22.04", &[], &[]).unwrap(), ('a', "", "")),
    ];
    for ((id, volumes, modules), expected) in table {
        assert_eq!((id, volumes.as_str(), modules.as_str()), expected);
    }
    let error = step(None, "", &["/a:/b"], &[]).unwrap_err();
    assert!(
        error.contains("without --image|hint: add --image=REF"),
        "{error}"
    );
}

#[test]
fn ssh_is_for_whole_jobs_and_leads_to_their_containers() {
    let judge = |job: Option<Option<bool>>, enable: &str, image: &str| {
        let site = Scripted::new(&found("site"), &format!("[ssh]\nenable = '{enable}'"));
        let job = job.map(|ssh| {
            let mut pins = Pins {
                modules: Vec::new(),
                ..sample()
            };
            pins.modes.ssh = ssh;
            pins
        });
        let mut raw = options(image, &[], &[]);
        raw.sshd = Some(true);
        let request = Request::check(&raw, &site.config).unwrap();
        let pins = request.for_step(job, &site.tools());
        pins.map(|pins| pins.modes.ssh).map_err(|e| e.to_string())
    };
    let without = "cannot use --sshd for a step: its job was started without";
    let own = "cannot use --sshd for a step with a container of its own: ssh leads to its job's";
    let table = [
        (judge(Some(Some(true)), "ask", ""), Ok(Some(true))),
        (judge(Some(None), "always", ""), Ok(None)),
        (judge(Some(None), "ask", ""), Err(without)),
        (judge(Some(Some(false)), "always", ""), Err(without)),
        (judge(None, "always", "x"), Err(without)),
        (judge(Some(Some(true)), "ask", "other"), Ok(Some(true))),
    ];
    for (found, expected) in table {
        assert_eq!(found, expected.map_err(str::to_owned));
    }
    // Every image of this site's is the same one; other volumes make another container.
    let site = Scripted::new(&found("site"), "[ssh]\nenable = 'ask'");
    let mut raw = options("", &["/a:/b"], &[]);
    raw.sshd = Some(true);
    let request = Request::check(&raw, &site.config).unwrap();
    let error = request.for_step(Some(sample()), &site.tools()).unwrap_err();
    assert_eq!(error.to_string(), own);
}

#[test]
fn autoshift_is_asked_for_or_the_sites_default_where_it_is_allowed() {
    let judge = |asked: Option<bool>, site: &str| {
        let site = Scripted::new(&found("site"), &format!("[slurm]\n{site}"));
        let mut raw = options("x", &[], &[]);
        raw.autoshift = asked;
        let pins = Request::check(&raw, &site.config)
            .unwrap()
            .for_job(&site.tools());
        pins.map(|pins| pins.modes.autoshift)
            .map_err(|error| error.to_string())
    };
    assert_eq!(judge(None, ""), Ok(false));
    assert_eq!(judge(Some(true), ""), Ok(true));
    assert_eq!(judge(None, "autoshift = true"), Ok(true));
    assert_eq!(judge(Some(false), "autoshift = true"), Ok(false));
    let off = "autoshift = true\nautoshift_images = 'off'";
    assert_eq!(judge(None, off), Ok(false));
    assert!(
        judge(Some(true), off)
            .unwrap_err()
            .contains("'docker:x:latest'")
    );
}

/// A site whose image manager is a script.
struct Scripted {
    config: Config,
    settings: Settings,
    _dir: tempfile::TempDir,
}

impl Scripted {
    fn new(script: &str, text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::Shifterimg.path(dir.path());
        let script = format!("#!/bin/sh\ncd '{}'\n{script}", dir.path().display());
        fs::write(dir.path().join("script"), script).unwrap();
        // Another process writes the program: were it this one, a child forked meanwhile by
        // another test could still have it open for writing, and then it cannot be executed.
        let mut install = Command::new("/usr/bin/install");
        install
            .args(["-D", "-m755"])
            .arg(dir.path().join("script"))
            .arg(&program);
        assert!(install.status().unwrap().success());
        let mut config = config(text);
        config.prefix = dir.path().to_owned();
        let settings = Settings::default();
        Self {
            config,
            settings,
            _dir: dir,
        }
    }

    fn tools(&self) -> Tools<'_> {
        Tools {
            config: &self.config,
            settings: &self.settings,
            ready: |c| c,
            tell: |_| {},
            is_step: false,
        }
    }
}

/// Resolves `x` with a script in the place of the image manager, and returns the id or the
/// lines of the refusal.
fn resolve(script: &str, pull_seconds: u32) -> Result<String, String> {
    let mut site = Scripted::new(script, "[slurm]\nlookup_timeout_secs = 1\n");
    site.config.slurm.submit_pull_timeout_secs = pull_seconds;
    let request = Request::check(&options("x", &["/a:/b"], &[]), &site.config).unwrap();
    match request.for_job(&site.tools()) {
        Ok(pins) => {
            assert_eq!(
                (pins.request.as_str(), pins.volumes.entries().len()),
                ("docker:x:latest", 1)
            );
            Ok(pins.id.to_string())
        }
        Err(error) => Err(report::lines(&error, error.hint()).join("|")),
    }
}

fn found(store: &str) -> String {
    let id = "a".repeat(64);
    format!("echo '{{\"id\":\"{id}\",\"store\":\"{store}\",\"size\":1}}'\n")
}

const MISSING: &str = "echo \"shifterimg: cannot find image '$3'\" >&2\n\
                       echo 'hint: shifter pull x' >&2\nexit 4\n";

#[test]
fn the_image_managers_answer_is_pinned() {
    let asked = "[ \"$*\" = 'lookup --json docker:x:latest' ] || exit 2\n";
    assert_eq!(
        resolve(&format!("{asked}{}", found("site")), 0),
        Ok("a".repeat(64))
    );
}

#[test]
fn the_image_managers_refusal_is_repeated() {
    let expected = "shifter: cannot find image 'docker:x:latest'|hint: shifter pull x";
    assert_eq!(resolve(MISSING, 0), Err(expected.into()));
    let silent = resolve("exit 1", 0).unwrap_err();
    assert!(
        silent.ends_with(": shifterimg ended with exit code 1"),
        "{silent}"
    );
    let hostile = resolve("printf '\\033[2Jx\\n' >&2; exit 3", 0).unwrap_err();
    assert_eq!(hostile, "shifter: \\u{1b}[2Jx");
}

#[test]
fn an_answer_must_be_one() {
    for script in [
        "echo hello",
        "echo '{}'",
        "echo '{\"id\":\"../x\",\"store\":\"site\"}'",
    ] {
        let error = resolve(script, 0).unwrap_err();
        assert!(
            error.contains("the answer cannot be read"),
            "{script}: {error}"
        );
    }
    let late = resolve("exec sleep 60", 0).unwrap_err();
    assert!(late.contains("did not finish within 1 s"), "{late}");
    let own = resolve(&found("user"), 0).unwrap_err();
    assert!(
        own.contains("your own store only|hint: shifter pull --store=site x"),
        "{own}"
    );
}

#[test]
fn a_missing_image_is_pulled_where_the_site_wants_it() {
    let pulls = "[ \"$1\" = pull ] && { echo \"$*\" > pulled; exit 0; }\n";
    let asked = "[ \"$(cat pulled)\" = 'pull --store site docker:x:latest' ] && {\n";
    let script = format!("{pulls}{asked}{}exit 0; }}\n{MISSING}", found("site"));
    assert_eq!(resolve(&script, 5), Ok("a".repeat(64)));
    assert!(resolve(&script, 0).is_err());
    let broken = format!("[ \"$1\" = pull ] && exit 7\n{MISSING}");
    let error = resolve(&broken, 5).unwrap_err();
    assert_eq!(
        error,
        "shifter: cannot pull image 'docker:x:latest': exit code 7"
    );
    let useless = format!("[ \"$1\" = pull ] && exit 0\n{MISSING}");
    assert!(
        resolve(&useless, 5)
            .unwrap_err()
            .contains("cannot find image")
    );
}

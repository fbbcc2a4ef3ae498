//! What administrators ask: `shifter doctor`, `shifter ps`, `shifter-config`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shifter_tests::call::{Call, Output, wait_for};
use shifter_tests::product::{CONFIG, PREFIX, STORE};
use shifter_tests::world::User::{self, Alice, Bob};

use super::join::Step;
use super::{Site, manifest};

/// Slurm's files on a node, there until it is dropped.
struct Slurm;

const SLURM_CONF: &str = "/etc/slurm/slurm.conf";
const PLUGSTACK: &str = "/etc/slurm/plugstack.conf";
const INCLUDED: &str = "/etc/slurm/plugstack.conf.d/shifter.conf";

impl Slurm {
    fn configure(site: &Site) -> Result<Self> {
        fs::create_dir_all("/etc/slurm/plugstack.conf.d")?;
        fs::write(
            SLURM_CONF,
            "ClusterName=testbed\nPrologFlags=Alloc,Contain\n",
        )?;
        fs::write(PLUGSTACK, "include plugstack.conf.d/*.conf\n")?;
        fs::write(INCLUDED, site.product.plugstack())?;
        Ok(Self)
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for file in [SLURM_CONF, PLUGSTACK, INCLUDED] {
            let _ = fs::remove_file(file);
        }
    }
}

/// Runs `shifter` with these words, as a user or as root.
fn ask(site: &Site, user: Option<User>, words: &[&str]) -> Result<Output> {
    let call = site.product.shifter(words.iter().copied());
    match user {
        Some(user) => call.by(user).output(),
        None => call.output(),
    }
}

/// Returns the lines of a report that begin with a state.
fn lines<'a>(report: &'a Output, state: &str) -> Vec<&'a str> {
    let lines = report.stdout.lines();
    lines.filter(|line| line.starts_with(state)).collect()
}

#[test]
fn privileged_doctor_finds_a_healthy_node_healthy() -> Result<()> {
    let site = Site::prepare()?;
    let _slurm = Slurm::configure(&site)?;
    for user in [None, Some(Alice)] {
        let report = ask(&site, user, &["doctor"])?;
        ensure!(
            report.code == 0 && lines(&report, "error").is_empty(),
            "{report}"
        );
        for check in [
            "ok       kernel: Linux ",
            "ok       configuration: ",
            "ok       store.path: '/var/lib/shifter/images' is there, with ",
            "ok       program.shifter: ",
            "ok       slurm: /etc/slurm/plugstack.conf.d/shifter.conf:1: shifter_slurm.so is the last",
        ] {
            ensure!(report.stdout.contains(check), "{check}: {report}");
        }
        let nhc = ask(&site, user, &["doctor", "--nhc"])?;
        ensure!(
            nhc.code == 0 && nhc.stdout.is_empty() && nhc.stderr.is_empty(),
            "{nhc}"
        );
        let json = ask(&site, user, &["doctor", "--json"])?.success()?;
        let json: Value = serde_json::from_str(&json.stdout)?;
        let found = json.as_array().context("an array")?;
        ensure!(found.len() > 10, "{json}");
        ensure!(
            found
                .iter()
                .all(|f| f["state"] == "ok" || f["hint"].is_string()),
            "{json}"
        );
    }
    // The state of a running job is root's to see.
    site.set_up(&manifest("17"))?.success()?;
    let report = ask(&site, None, &["doctor"])?;
    ensure!(
        report.stdout.contains("state: jobs with a container: 17"),
        "{report}"
    );
    let report = ask(&site, Some(Alice), &["doctor"])?;
    ensure!(
        report.stdout.contains("state: not checked: needs root"),
        "{report}"
    );
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_doctor_names_what_is_broken() -> Result<()> {
    let site = Site::prepare()?;
    let _slurm = Slurm::configure(&site)?;
    let plugin = format!("{PREFIX}/lib/shifter/shifter_slurm.so");
    let shifter = format!("{PREFIX}/bin/shifter");
    let set_up = format!("{PREFIX}/sbin/setupRoot");
    // What breaks the node, what mends it, and what is said of it.
    let table = [
        (
            format!("chmod g+w {CONFIG}"),
            format!("chmod g-w {CONFIG}"),
            "configuration: '/etc/shifter/shifter.toml' is not trusted",
        ),
        (
            format!("echo sistem=1 >>{CONFIG}"),
            format!("sed -i /sistem/d {CONFIG}"),
            "unknown field `sistem`",
        ),
        (
            format!("mv {CONFIG} {CONFIG}.away"),
            format!("mv {CONFIG}.away {CONFIG}"),
            "configuration: cannot read '/etc/shifter/shifter.toml'",
        ),
        (
            format!("sed -i 's,^prefix.*,prefix=\"/nowhere\",' {CONFIG}"),
            format!("sed -i 's,^prefix.*,prefix=\"{PREFIX}\",' {CONFIG}"),
            "program.shifter: cannot read '/nowhere/bin/shifter'",
        ),
        (
            format!("mv {STORE} {STORE}.away"),
            format!("mv {STORE}.away {STORE}"),
            "store.path: cannot read '/var/lib/shifter/images'",
        ),
        (
            format!("mv {STORE}/index {STORE}/away"),
            format!("mv {STORE}/away {STORE}/index"),
            "store.path: '/var/lib/shifter/images' has no index",
        ),
        (
            format!("chown bob {STORE}"),
            format!("chown shifter {STORE}"),
            "store.path: '/var/lib/shifter/images' is not trusted: it belongs to uid 2002",
        ),
        (
            format!("chmod g+w {STORE}/index"),
            format!("chmod g-w {STORE}/index"),
            "store.path: '/var/lib/shifter/images/index' is not trusted",
        ),
        (
            format!("chmod u-s {shifter}"),
            format!("chmod 4755 {shifter}"),
            "program.shifter: '/opt/shifter/bin/shifter' has mode 0755",
        ),
        (
            format!("chmod 0755 {set_up}"),
            format!("chmod 0700 {set_up}"),
            "program.setupRoot: '/opt/shifter/sbin/setupRoot' has mode 0755",
        ),
        (
            format!("mv {plugin} {plugin}.away"),
            format!("mv {plugin}.away {plugin}"),
            "slurm: /etc/slurm/plugstack.conf.d/shifter.conf:1: cannot read",
        ),
        (
            format!("mv {INCLUDED} /etc/away"),
            format!("mv /etc/away {INCLUDED}"),
            "slurm: shifter_slurm.so is not in the plugin stack",
        ),
        (
            format!("sed -i s,/scratch,/gone, {CONFIG}"),
            format!("sed -i s,/gone,/scratch, {CONFIG}"),
            "root.site_mounts: '/gone'",
        ),
    ];
    for (break_it, mend_it, words) in table {
        Call::shell(&break_it).ok()?;
        let report = ask(&site, None, &["doctor"])?;
        let nhc = ask(&site, None, &["doctor", "--nhc"])?;
        let users = ask(&site, Some(Alice), &["doctor"])?;
        Call::shell(&mend_it).ok()?;
        for report in [&report, &users] {
            let said = lines(report, "error")
                .iter()
                .any(|line| line.contains(words));
            ensure!(
                report.code == 1 && said && report.stdout.contains("\nhint: "),
                "{words}: {report}"
            );
        }
        ensure!(
            nhc.code == 1
                && nhc.stdout.starts_with("ERROR shifter: ")
                && nhc.stdout.contains(words)
                && nhc.stdout.lines().count() == 1,
            "{words}: {nhc}"
        );
    }
    // Not errors: jobs run. But nobody can pull, and others run as root in users' images.
    Call::new(["chown", "root", STORE]).ok()?;
    let report = ask(&site, None, &["doctor"])?;
    Call::new(["chown", "shifter", STORE]).ok()?;
    let warnings = lines(&report, "warning").join("\n");
    ensure!(
        report.code == 0 && warnings.contains("uid 2900 cannot pull into it"),
        "{report}"
    );
    fs::write(
        PLUGSTACK,
        "include plugstack.conf.d/*.conf\noptional /usr/lib/slurm/other.so x=1\n",
    )?;
    let report = ask(&site, None, &["doctor"])?;
    let warnings = lines(&report, "warning").join("\n");
    ensure!(
        report.code == 0 && warnings.contains("'/usr/lib/slurm/other.so' (/etc/slurm/plugstack"),
        "{report}"
    );
    let report = Call::new([shifter.as_str(), "doctor"])
        .env("SLURM_CONF", "/etc/nowhere/slurm.conf")
        .output()?;
    ensure!(report.stdout.contains("other.so"), "{report}");
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_tools_run_without_any_privilege() -> Result<()> {
    let site = Site::prepare()?;
    for tool in ["doctor", "ps"] {
        let path = format!("{PREFIX}/lib/shifter/shifter-{tool}");
        fs::remove_file(&path)?;
        fs::write(&path, "#!/bin/sh\ncat /proc/self/status\necho \"$@\"\n")?;
        Call::new(["chmod", "0755", &path]).ok()?;
        let status = ask(&site, Some(Alice), &[tool, "--json", "a b"])?.success()?;
        for words in [
            "\nUid:\t2001\t2001\t2001\t2001\n",
            "\nGid:\t2001\t2001\t2001\t2001\n",
            "\nCapPrm:\t0000000000000000\n",
            "\nCapEff:\t0000000000000000\n",
            "\n--json a b\n",
        ] {
            ensure!(status.stdout.contains(words), "{words:?}: {status}");
        }
    }
    // The next test installs the real ones again.
    site.clean.ensure_restored(None)
}

/// Waits until a user, or root, sees so many containers, and returns them.
fn containers(site: &Site, user: Option<User>, count: usize) -> Result<Vec<Value>> {
    wait_for(&format!("{count} containers"), 20, || {
        let output = ask(site, user, &["ps", "--json"])?.success()?;
        let found: Vec<Value> = serde_json::from_str(&output.stdout)?;
        Ok((found.len() == count).then_some(found))
    })
}

#[test]
fn privileged_ps_lists_ones_own_containers() -> Result<()> {
    let site = Site::prepare()?;
    let empty = ask(&site, Some(Alice), &["ps"])?.success()?;
    ensure!(
        empty.stdout.starts_with("CONTAINER ") && empty.stdout.lines().count() == 1,
        "{empty}"
    );
    let start = |user, script: &str| {
        let words = ["--image=tiny", "sh", "-c", script];
        let call = site.product.shifter(words).by(user).timeout(0);
        call.start("/tmp/ps.log")
    };
    let mut children = [
        start(Alice, "sleep 1000 & sleep 1000; : '\u{1b}[2Jalice'")?,
        start(Bob, "sleep 1000; : bob")?,
    ];
    let looked = (|| -> Result<()> {
        let all = containers(&site, None, 2)?;
        let own = wait_for("both commands of alice", 20, || {
            let own = containers(&site, Some(Alice), 1)?.remove(0);
            let pids = own["pids"].as_array().map_or(0, Vec::len);
            Ok((pids >= 3).then_some(own))
        })?;
        ensure!(
            own["user"] == "alice"
                && own["uid"] == 2001
                && own["image"] == "docker:tiny:latest"
                && own["job"].is_null(),
            "{own}"
        );
        let users: Vec<&Value> = all.iter().map(|container| &container["user"]).collect();
        ensure!(
            users.contains(&&Value::from("alice")) && users.contains(&&Value::from("bob")),
            "{all:?}"
        );
        let table = ask(&site, Some(Alice), &["ps"])?.success()?;
        ensure!(
            table.stdout.contains(" docker:tiny:latest ")
                && table.stdout.contains(" sh -c sleep 1000")
                && !table.stdout.contains("bob")
                && table.stdout.lines().count() == 2,
            "{table} {own} {}",
            Call::new(["ps", "-ef"]).ok()?
        );
        for user in [None, Some(Alice)] {
            for words in [&["ps"][..], &["ps", "--json"]] {
                let output = ask(&site, user, words)?;
                ensure!(!output.stdout.contains('\u{1b}'), "{output}");
            }
        }
        let namespace = own["namespace"].as_u64().context("a namespace")?;
        let pid = own["pids"][0].as_u64().context("a process")?;
        let link = fs::read_link(format!("/proc/{pid}/ns/mnt"))?;
        ensure!(link == Path::new(&format!("mnt:[{namespace}]")), "{own}");
        Ok(())
    })();
    for container in containers(&site, None, 2)? {
        for pid in container["pids"].as_array().into_iter().flatten() {
            Call::new(["kill", "-KILL", &pid.to_string()]).output()?;
        }
    }
    for child in &mut children {
        child.wait()?;
    }
    looked?;
    let empty = ask(&site, None, &["ps"])?.success()?;
    ensure!(empty.stdout.lines().count() == 1, "{empty}");
    // The kernel takes a moment to free the loop device, and with it the hint that names it.
    wait_for("a free loop device", 20, || {
        site.tear_down("0")?.success()?;
        let hints = fs::read_dir("/run/shifter/images");
        Ok(hints.map_or(true, |hints| hints.count() == 0).then_some(()))
    })?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_ps_knows_the_job() -> Result<()> {
    let site = Site::prepare()?;
    site.set_up(&manifest("17"))?.success()?;
    let step = Step::of(Alice, "17")?;
    // The environment may say what it likes.
    let script = "SLURM_JOB_ID=99 shifter sleep 1000 & \
                  for _ in $(seq 100); do \
                      found=$(shifter ps --json); \
                      case $found in *'\"sleep 1000\"'*) break ;; esac; sleep 0.05; \
                  done; kill %1; echo \"$found\"";
    let output = step.run(Alice, script)?.success()?;
    let found: Vec<Value> = serde_json::from_str(&output.stdout)?;
    ensure!(
        found.len() == 1 && found[0]["job"] == "17" && found[0]["image"] == "docker:tiny:latest",
        "{output}"
    );
    site.tear_down("17")?.success()?;
    drop(step);
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_an_imported_configuration_is_judged() -> Result<()> {
    let site = Site::prepare()?;
    let tool = site.product.path("sbin/shifter-config");
    let check = |user: Option<User>, args: &[&str]| {
        let call = Call::new([&*tool, "check"]).args(args.iter().copied());
        match user {
            Some(user) => call.by(user).output(),
            None => call.output(),
        }
    };
    for user in [None, Some(Alice)] {
        let output = check(user, &[])?.success()?;
        ensure!(lines(&output, "error").is_empty(), "{output}");
    }
    let old = "/etc/udiRoot.conf";
    let text = format!("imagePath={STORE}\nsystem=edison\nsiteFs=/scratch /home;/gone\n");
    fs::write(old, text)?;
    let new = "/etc/shifter/new.toml";
    let import = Call::new([&*tool, "import", old, "--output", new]);
    let output = import.output()?.success()?;
    ensure!(
        output.stdout.is_empty()
            && output
                .stderr
                .starts_with("/etc/udiRoot.conf:1: imagePath: "),
        "{output}"
    );
    let text = fs::read_to_string(new)?;
    ensure!(text.contains("\nprefix = \"/opt/shifter\"\n"), "{text}");
    let again = import.output()?;
    ensure!(
        again.code == 1 && again.stderr.contains("hint: "),
        "{again}"
    );
    let output = check(None, &["--json", new])?;
    let findings: Vec<Value> = serde_json::from_str(&output.stdout)?;
    let errors: Vec<&str> = findings
        .iter()
        .filter(|finding| finding["state"] == "error")
        .filter_map(|finding| finding["check"].as_str())
        .collect();
    // The store is shifter's, which the old configuration cannot say, and one directory is not
    // there.
    ensure!(
        output.code == 1 && errors == ["store.path", "root.site_mounts"],
        "{output}"
    );
    fs::write(old, "sistem=x\n")?;
    let output = Call::new([&*tool, "import", old]).output()?;
    ensure!(
        output.code == 2
            && output
                .stderr
                .contains("udiRoot.conf:1: unknown key 'sistem'"),
        "{output}"
    );
    fs::remove_file(old)?;
    fs::remove_file(new)?;
    site.clean.ensure_restored(None)
}

//! Every command, run as the program is run, against a real registry and real archives.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod site;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use site::image::{labelled, small};
use site::registry::Registry;
use site::{PROGRAM, Run, Site, events, run, with_text};

#[test]
fn images_are_listed_filtered_and_inspected() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let one = registry.push("group/one:1.0", &labelled("one"));
    let two = registry.push("two:latest", &small("two"));
    let run = site.ok(&["pull", &one, &two]);
    let lines = run.stderr.lines();
    let pulled = lines.filter(|line| line.starts_with("pulled docker:"));
    assert_eq!(pulled.count(), 2, "{run:?}");
    let table = site.ok(&["images"]).stdout;
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let titles = "REPOSITORY TAG DIGEST CREATED SIZE SERVER STORE";
    assert_eq!(lines[0].join(" "), titles);
    assert_eq!((lines[1][0], lines[1][1]), ("group/one", "1.0"));
    // The size is two words.
    assert_eq!((lines[1][6], lines[1][7]), (&*registry.address, "site"));
    assert_eq!((lines[1][2].len(), lines.len()), (12, 3));
    let whole = site.ok(&["images", "--digests", "group/*"]).stdout;
    assert!(
        whole.contains(" sha256:") && !whole.contains("two"),
        "{whole}"
    );

    let id = |reference: &str| format!("{}\n", site.id(reference));
    let select = |args: &[&str]| {
        let args: Vec<&str> = ["images", "-q"].iter().chain(args).copied().collect();
        site.ok(&args).stdout
    };
    assert_eq!(select(&["--filter", "label=team=climate"]), id(&one));
    assert_eq!(
        select(&["--filter=label=team", "--filter=dangling=false"]),
        id(&one)
    );
    assert_eq!(select(&["two:*"]), id(&two));
    assert_eq!(select(&["--filter", "store=user"]), "");
    assert_eq!(select(&["--filter", "dangling=true"]), "");
    site.fails(
        &["images", "--filter", "before=x"],
        2,
        "--filter has no 'before=x'",
    );

    let known: Value = serde_json::from_str(&site.ok(&["inspect", &one, &two]).stdout).unwrap();
    assert_eq!(known.as_array().unwrap().len(), 2);
    assert_eq!(known[0]["labels"], json!({"team": "climate"}));
    assert_eq!(
        known[0]["layers"][0]["digest"],
        labelled("one").layers[0].blob.digest()
    );
    let source = format!("{}/group/one", registry.address);
    assert_eq!(known[0]["record"]["source"], source);
    let line = site.ok(&["inspect", "--format", "{{.id}} {{json .Labels.team}}", &one]);
    assert_eq!(line.stdout, format!("{} \"climate\"\n", site.id(&one)));
    site.fails(
        &["inspect", "--format", "{{.none}}", &one],
        2,
        "there is no '.none'",
    );
    site.fails(
        &["inspect", "docker:none:1"],
        4,
        "neither in the site store",
    );
}

#[test]
fn the_worst_of_several_images_decides() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let good = registry.push("good:1", &small("good"));
    let missing = format!("{}/missing", registry.address);
    // Nobody listens on port 1.
    let run = site.run(&["pull", &missing, "127.0.0.1:1/x", &good]);
    assert_eq!(run.code, 7, "{run:?}");
    assert!(run.stderr.contains("manifest unknown"), "{run:?}");
    let reason = "cannot reach 'https://127.0.0.1:1/v2/x/manifests/latest': Connection refused\n";
    assert!(run.stderr.contains(reason), "{run:?}");
    assert_eq!(site.read(&good, "etc/motd"), "good");
    // A mistake in one is found before anything is done.
    let other = registry.push("other:1", &small("other"));
    let run = site.run(&["pull", &other, "UPPER/case"]);
    assert_eq!(run.code, 2, "{run:?}");
    site.fails(&["lookup", &other], 4, "neither in the site store");
}

#[test]
fn events_tell_a_program_all_of_a_pull() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let image = small("x");
    let reference = registry.push("x:1", &image);
    let missing = format!("{}/none:1", registry.address);
    let run = site.run(&["pull", "--json", "--quiet", &reference, &missing]);
    assert_eq!(run.code, 4, "{run:?}");
    let events = events(&run.stdout);
    let names: Vec<&str> = events
        .iter()
        .map(|e| e["event"].as_str().unwrap())
        .collect();
    let phases: Vec<&str> = names.iter().copied().filter(|n| *n != "building").collect();
    let mut phases = phases;
    // A layer is told of when it begins and when it ends.
    phases.dedup();
    assert_eq!(
        phases,
        [
            "resolving",
            "resolved",
            "downloading",
            "layer",
            "done",
            "resolving",
            "error"
        ]
    );
    let find = |name: &str| events.iter().find(|e| e["event"] == name).unwrap();
    let blob = &image.layers[0].blob;
    let size = blob.bytes.len();
    assert_eq!(
        find("resolved")["layers"],
        json!([{"digest": blob.digest(), "size": size}])
    );
    let layer = events.iter().rfind(|e| e["event"] == "layer").unwrap();
    assert_eq!(
        (&layer["done"], &layer["cached"]),
        (&json!(size), &json!(false))
    );
    assert_eq!(find("done")["id"], site.id(&reference));
    let error = find("error");
    assert_eq!(error["code"], 4);
    assert_eq!(error["reference"], format!("docker:{missing}"));
    assert!(
        run.stderr.contains(error["message"].as_str().unwrap()),
        "{run:?}"
    );
    // Also of a command that does not come so far.
    let run = site.run(&["pull", "--json", "UPPER/case"]);
    let whole: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (&whole["event"], &whole["code"]),
        (&json!("error"), &json!(2))
    );
    assert!(whole["reference"].is_null());
}

/// The words of alice's login at a registry.
fn login(registry: &Registry) -> [&str; 5] {
    let address = &registry.address;
    ["login", "-u", "alice", "--password-stdin", address]
}

#[test]
fn a_login_is_tried_before_it_is_kept() {
    let registry = Registry::with_login();
    let site = Site::new(&[&registry.address]);
    let reference = registry.push("secret:1", &small("secret"));
    let kept = site.home().join(".docker/config.json");
    let log_in = |password: &str| with_text(&site, &login(&registry), password);
    let wrong = log_in("wrong-password\n");
    assert_eq!(wrong.code, 3, "{wrong:?}");
    assert!(
        !wrong.stderr.contains("wrong-password") && !kept.exists(),
        "{wrong:?}"
    );
    let right = log_in("secret\n");
    assert!(
        right.code == 0 && right.stderr.contains("login succeeded"),
        "{right:?}"
    );
    assert!(!right.stderr.contains("secret"), "{right:?}");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&kept), mode(kept.parent().unwrap())), (0o600, 0o700));
    site.ok(&["pull", &reference]);
    site.ok(&["rmi", &reference]);
    site.ok(&["logout", &registry.address]);
    assert!(!fs::read_to_string(&kept).unwrap().contains("YWxpY2U6"));
    site.fails(&["pull", &reference], 3, "denied access (401)");

    // For one pull, and not kept; whom it names may have the image.
    let once = [
        "pull",
        "-u",
        "alice",
        "--password-stdin",
        "--user",
        "4242",
        &reference,
    ];
    let run = with_text(&site, &once, "secret");
    assert_eq!(run.code, 0, "{run:?}");
    assert!(!fs::read_to_string(&kept).unwrap().contains("YWxpY2U6"));
    let meta = site.store().join(format!("{}.meta", site.id(&reference)));
    let meta = fs::read_to_string(meta).unwrap();
    assert!(
        meta.contains("USERACL: ") && meta.contains("4242"),
        "{meta}"
    );
    let two = [
        "pull",
        "-u",
        "alice",
        "--password-stdin",
        &reference,
        "quay.io/x",
    ];
    let run = with_text(&site, &two, "secret");
    assert!(
        run.code == 2 && run.stderr.contains("of several"),
        "{run:?}"
    );
    // Without a terminal nobody can be asked.
    let mut alone = Command::new("setsid");
    alone
        .args(["--wait", PROGRAM, "--config"])
        .arg(site.config());
    alone
        .args(["login", &registry.address])
        .env("HOME", site.home());
    let run = run_alone(&mut alone);
    assert!(
        run.code == 2 && run.stderr.contains("no terminal"),
        "{run:?}"
    );
}

fn run_alone(command: &mut Command) -> Run {
    run(command.stdin(Stdio::null()))
}

#[test]
fn a_registry_that_takes_any_login_keeps_none() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let run = with_text(&site, &login(&registry), "anything");
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("it asks nobody for a login"), "{run:?}");
    assert!(!site.home().join(".docker").exists());
    let run = site.ok(&["logout", &registry.address]);
    assert!(run.stderr.contains("there is no login"), "{run:?}");
}

#[test]
fn unused_images_are_collected_and_damage_is_found() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let reference = registry.push("x:1", &small("old"));
    site.ok(&["pull", &reference]);
    let old = site.id(&reference);
    registry.push("x:1", &small("new"));
    site.ok(&["pull", &reference]);
    assert_ne!(site.id(&reference), old);
    // Queued jobs may have its id.
    let run = site.ok(&["gc"]);
    assert!(run.stderr.contains("kept for queued jobs: 1 "), "{run:?}");
    assert_eq!(site.id(&format!("id:{old}")), old);
    let run = site.ok(&["gc", "--dry-run", "--older-than=0"]);
    assert!(
        run.stderr.contains(&format!("would remove image {old}")),
        "{run:?}"
    );
    let run = site.ok(&["gc", "--older-than=0", "--json"]);
    let told: Value = serde_json::from_str(run.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&told["event"], &told["images"][0]["id"]),
        (&json!("collected"), &json!(old))
    );
    site.fails(
        &["lookup", &format!("id:{old}")],
        4,
        "neither in the site store",
    );
    assert_eq!(site.read(&reference, "etc/motd"), "new");
    site.assert_tidy();
    // Whoever only asks makes nothing.
    let cache = site.store().join(".cache");
    fs::rename(&cache, site.root().join("cache")).unwrap();
    site.ok(&["gc", "--dry-run"]);
    assert!(!cache.exists());

    assert!(site.ok(&["verify"]).stderr.contains("faults: 0"));
    let id = site.id(&reference);
    let path = site.store().join(format!("{id}.squashfs"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let run = site.run(&["verify"]);
    assert_eq!(run.code, 4, "{run:?}");
    assert!(
        run.stderr
            .contains(&format!("{id}.squashfs': its blake3 is ")),
        "{run:?}"
    );
    let run = site.run(&["verify", "--json", &reference]);
    let bad = events(&run.stdout)
        .into_iter()
        .find(|e| e["state"] == "bad")
        .unwrap();
    assert_eq!(bad["id"], id);
    // A tag whose image is not there, and an image without a record.
    fs::remove_file(&path).unwrap();
    let run = site.run(&["verify"]);
    assert!(
        run.code == 4 && run.stderr.contains("which is not there"),
        "{run:?}"
    );
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    fs::remove_file(site.store().join(format!("{id}.json"))).unwrap();
    let run = site.ok(&["verify"]);
    assert!(
        run.stderr.contains("without a recorded digest: 1"),
        "{run:?}"
    );
}

#[test]
fn progress_is_drawn_on_terminals_alone() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let reference = registry.push("x:1", &small("x"));
    // util-linux's script gives the program a terminal.
    let on_terminal = |term: &str, more: &str| {
        let config = site.config();
        let line = format!(
            "stty cols 40 rows 5; {PROGRAM} --config {} pull {more} {reference}",
            config.display()
        );
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]);
        command
            .env_clear()
            .env("TERM", term)
            .env("HOME", site.home());
        let run = run_alone(command.env("PATH", "/usr/bin:/bin"));
        assert_eq!(run.code, 0, "{run:?}");
        site.ok(&["rmi", &reference]);
        run.stdout
    };
    let drawn = on_terminal("xterm", "");
    assert!(
        drawn.contains("\x1b[K") && drawn.contains("pulled docker:"),
        "{drawn:?}"
    );
    // No line of a frame is as long as the terminal is wide.
    for line in drawn
        .split(['\n', '\r'])
        .filter(|line| line.contains("\x1b[K"))
    {
        let shown = line.replace("\x1b[K", "").replace("\x1b[1A", "");
        assert!(shown.chars().count() < 40, "{line:?}");
    }
    for (term, more) in [("dumb", ""), ("xterm", "--quiet"), ("xterm", "--verbose")] {
        let plain = on_terminal(term, more);
        assert!(!plain.contains('\x1b'), "{term} {more}: {plain:?}");
    }
}

#[test]
fn what_is_meant_is_said() {
    let site = Site::new(&[]);
    let dir = site.root().join("work");
    fs::create_dir(&dir).unwrap();
    File::create(dir.join("image.sqsh"))
        .unwrap()
        .write_all(b"x")
        .unwrap();
    File::create(dir.join("image")).unwrap();
    let table = [
        ("pull image.sqsh", 2, "did you mean the file ./image.sqsh?"),
        ("lookup image", 4, "did you mean the file ./image?"),
        ("lookup other", 4, "shifter pull other:latest"),
        ("pullnb x", 2, "shifterimg pull --quiet IMAGE &"),
        ("expire x", 2, "shifterimg rmi IMAGE"),
        ("autoexpire", 2, "shifterimg gc"),
        ("frobnicate", 2, "shifterimg --help"),
        (
            "pull --platform=a/b/c/d x",
            2,
            "linux/amd64, linux/arm64/v8",
        ),
    ];
    for (line, code, hint) in table {
        let args: Vec<&str> = line.split(' ').collect();
        let run = run(site.command(&args).current_dir(&dir));
        assert_eq!(run.code, code, "{line}: {run:?}");
        assert!(
            run.stderr.ends_with(&format!("hint: {hint}\n")),
            "{line}: {run:?}"
        );
    }
}

#[test]
fn what_is_wrong_with_one_image_or_store_costs_that_alone() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let one = registry.push("one:1", &labelled("one"));
    let two = registry.push("two:1", &labelled("two"));
    site.ok(&["pull", &one, &two]);
    let run = site.run(&["verify", "docker:none:1", &one]);
    assert_eq!(run.code, 4, "{run:?}");
    assert!(run.stderr.contains("docker:none:1"), "{run:?}");
    assert!(run.stderr.contains("files compared: 2 "), "{run:?}");

    let record = site.store().join(format!("{}.json", site.id(&one)));
    fs::write(record, "{").unwrap();
    let run = site.run(&["images", "-q", "--filter", "label=team"]);
    assert_eq!((run.code, run.stdout), (1, site.id(&two) + "\n"));
    let run = site.run(&["inspect", "--format={{.id}}", &one, &two]);
    let ids = format!("{}\n{}\n", site.id(&one), site.id(&two));
    assert_eq!((run.code, run.stdout), (1, ids.clone()));

    // A store that others can write to is not used, and the site's is.
    let own = site.home().join(".shifter");
    fs::create_dir(&own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o775)).unwrap();
    site.ok(&["lookup", &one]);
    site.fails(&["lookup", "docker:none:1"], 6, "lets others write");
    let run = site.run(&["images", "-q"]);
    assert_eq!((run.code, run.stdout), (6, ids));
}

#[test]
fn images_that_a_site_does_not_run_can_be_looked_at() {
    let registry = Registry::start();
    let plain = format!("[registry.\"{}\"]\nplain_http = true\n", registry.address);
    let site = Site::with_config("user_images = \"no\"", &plain);
    let reference = registry.push("x:1", &small("x"));
    site.ok(&["pull", "--store", "user", &reference]);
    site.fails(&["lookup", &reference], 3, "does not run images from there");
    let shown = site.ok(&["inspect", "--format={{.store}}", &reference]);
    assert_eq!(shown.stdout, "user\n");
    site.ok(&["verify", &reference]);
    // Whose store it is is said of the command that was asked for.
    let other = Site::with_config("image_owner = 4242", "");
    fs::create_dir(other.store()).unwrap();
    let text = fs::read_to_string(other.config()).unwrap();
    let owner = rustix::process::geteuid().as_raw();
    let text = text.replace(&format!("image_owner = {owner}\n"), "");
    fs::write(other.config(), text).unwrap();
    other.fails(
        &["gc", "--store", "site"],
        3,
        "cannot collect: the site store",
    );
}

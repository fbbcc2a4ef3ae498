//! Pulls as others see them: whose they are, and what they show.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::product::{Product, STORE};
use shifter_tests::registry::{Registry, SECRET};
use shifter_tests::world::User::{Alice, Bob, Shifter};

use crate::bench::turn;

/// `alice:SECRET` as HTTP sends it.
const ENCODED: &str = "YWxpY2U6S3A1LW5ldmVyLWluLXNpZ2h0LTQ3MTE=";

/// Looks at every process as often as it can while something is done.
fn watched<T>(look: impl Fn(&str) + Sync, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
                    let name = entry.file_name();
                    let name = name.to_string_lossy();
                    if name.bytes().all(|byte| byte.is_ascii_digit()) {
                        look(&format!("/proc/{name}"));
                    }
                }
            }
        });
        let done = act();
        is_done.store(true, Ordering::Relaxed);
        done
    })
}

/// What `/proc/PID/status` says under a key.
fn value<'a>(status: &'a str, key: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_default().trim()
}

/// Every thread of the image manager that was seen: user ids and capabilities, and how often.
type Seen = BTreeMap<String, usize>;

fn look_at_manager(seen: &Mutex<Seen>, process: &str) {
    for task in fs::read_dir(format!("{process}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        // Threads have names of their own; the program is what the process runs.
        let program = fs::read_link(format!("{process}/exe")).unwrap_or_default();
        if !program.ends_with("shifterimg") {
            continue;
        }
        let keys = ["Uid:", "Gid:", "CapInh:", "CapPrm:", "CapEff:", "CapAmb:"];
        let values = keys.map(|key| {
            let words: Vec<&str> = value(&status, key).split_whitespace().collect();
            format!("{key}{}", words.join(","))
        });
        if let Ok(mut seen) = seen.lock() {
            *seen.entry(values.join(" ")).or_default() += 1;
        }
    }
}

fn of(id: u32) -> String {
    let none = "0000000000000000";
    format!(
        "Uid:{id},{id},{id},{id} Gid:{id},{id},{id},{id} CapInh:{none} CapPrm:{none} CapEff:{none} \
         CapAmb:{none}"
    )
}

#[test]
fn privileged_s74_archives_are_parsed_by_the_user_without_capabilities() -> Result<()> {
    let _turn = turn()?;
    let product = Product::install()?;
    let registry = Registry::start(5000)?;
    let image = Recipe::debian("s74").build()?;
    let reference = registry.push(&image, "s74:1")?;
    let check = |who: &str, id: u32, act: &dyn Fn() -> Result<()>| {
        let seen = Mutex::new(Seen::new());
        watched(|process| look_at_manager(&seen, process), act)?;
        let seen = seen.into_inner().unwrap_or_default();
        let count: usize = seen.values().sum();
        ensure!(count > 20, "{who}: seen only {count} times");
        ensure!(
            seen.keys().all(|found| *found == of(id)),
            "{who}: {seen:#?}"
        );
        Ok(())
    };
    // Through the setuid program, into the user's own store.
    check("alice", Alice.uid(), &|| {
        let call = product
            .shifter(["pull", "--store", "user", &reference])
            .by(Alice);
        call.ok().map(drop)
    })?;
    ensure!(fs::exists(format!(
        "/home/alice/.shifter/{}.squashfs",
        image.id()
    ))?);
    // As the owner of the site's.
    check("the owner", Shifter.uid(), &|| {
        product
            .shifterimg(["pull", &reference])
            .by(Shifter)
            .ok()
            .map(drop)
    })?;
    Ok(())
}

/// Fails if a process shows the secret in its command line or environment.
fn look_for_secret(found: &Mutex<Vec<String>>, count: &Mutex<usize>, process: &str) {
    for file in ["cmdline", "environ"] {
        let Ok(bytes) = fs::read(format!("{process}/{file}")) else {
            continue;
        };
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if let Ok(mut count) = count.lock() {
            *count += usize::from(text.contains("shifterimg"));
        }
        if is_shown(&text)
            && let Ok(mut found) = found.lock()
        {
            found.push(text);
        }
    }
}

fn is_shown(text: &str) -> bool {
    text.contains(SECRET) || text.contains(ENCODED)
}

#[test]
fn privileged_s70_a_login_is_seen_by_nobody() -> Result<()> {
    let _turn = turn()?;
    let product = Product::install()?;
    let registry = Registry::start_with_login(5000)?;
    let image = Recipe::debian("s70").build()?;
    let auth = "/tmp/auth.json";
    let address = registry.address();
    fs::write(
        auth,
        format!("{{\"auths\":{{\"{address}\":{{\"auth\":\"{ENCODED}\"}}}}}}"),
    )?;
    let to = format!("docker://{address}/s70:1");
    Call::new([
        "skopeo",
        "--insecure-policy",
        "copy",
        "-q",
        "--dest-tls-verify=false",
    ])
    .args([
        format!("--dest-authfile={auth}"),
        format!("oci:{}", image.layout().display()),
        to,
    ])
    .ok()?;
    let reference = registry.reference("s70:1");
    let log_in = |encoded: &str| -> Result<()> {
        let text = format!("{{\"auths\":{{\"{address}\":{{\"auth\":\"{encoded}\"}}}}}}");
        Call::shell("mkdir -p ~/.docker && umask 077 && cat >~/.docker/config.json")
            .input(text)
            .by(Alice)
            .ok()
            .map(drop)
    };
    let pull = |args: &[&str]| {
        let args = ["pull", "--store", "user"].iter().chain(args).copied();
        product
            .shifter(args.chain([&*reference]))
            .by(Alice)
            .output()
    };
    let (found, count) = (Mutex::default(), Mutex::new(0));
    let runs = watched(
        |process| look_for_secret(&found, &count, process),
        || {
            // A password that the registry does not take, and none; then the right one.
            log_in(&format!("{}x", &ENCODED[..ENCODED.len() - 1]))?;
            let wrong = [pull(&[])?, pull(&["--json"])?];
            log_in(ENCODED)?;
            let right = [pull(&["--json"])?, pull(&[])?];
            Ok([wrong, right].concat())
        },
    )?;
    let codes: Vec<i32> = runs.iter().map(|run| run.code).collect();
    ensure!(codes == [3, 3, 0, 0], "{runs:?}");
    for run in &runs {
        ensure!(!is_shown(&run.stdout) && !is_shown(&run.stderr), "{run}");
    }
    let count = count.into_inner().unwrap_or_default();
    ensure!(count > 20, "shifterimg was seen only {count} times");
    let found: Vec<String> = found.into_inner().unwrap_or_default();
    ensure!(found.is_empty(), "{found:#?}");
    // Nor is it kept anywhere but where it was.
    let left = Call::shell(&format!(
        "grep -rlF -e '{SECRET}' -e '{ENCODED}' /home/alice /home/bob /tmp {STORE} /run || true"
    ));
    let left = left.ok()?;
    let left: Vec<&str> = left.lines().filter(|path| *path != auth).collect();
    ensure!(left == ["/home/alice/.docker/config.json"], "{left:?}");
    // What a login gave is alice's alone.
    let mode = fs::metadata(format!("/home/alice/.shifter/{}.squashfs", image.id()))?
        .permissions()
        .mode();
    ensure!(
        mode & 0o077 == 0
            || Call::new(["ls", "/home/alice/.shifter"])
                .by(Bob)
                .output()?
                .code
                != 0,
        "{mode:o}"
    );
    Ok(())
}

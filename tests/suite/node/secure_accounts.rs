//! S45, S46: name services that know too much, too little, or do not answer.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::world::User::Alice;

use super::secure::Guard;

/// A name service module that knows nobody and says so after a minute.
const HANGING: &str = r#"
#include <nss.h>
#include <pwd.h>
#include <grp.h>
#include <unistd.h>
#define HANG { sleep(60); return NSS_STATUS_NOTFOUND; }
enum nss_status _nss_hang_getpwuid_r(uid_t u, struct passwd *p, char *b, size_t n, int *e) HANG
enum nss_status _nss_hang_getpwnam_r(const char *u, struct passwd *p, char *b, size_t n, int *e) HANG
enum nss_status _nss_hang_getgrgid_r(gid_t g, struct group *r, char *b, size_t n, int *e) HANG
enum nss_status _nss_hang_getgrnam_r(const char *g, struct group *r, char *b, size_t n, int *e) HANG
"#;

/// Prepares to run `shifter` with ids and groups that need not be anybody's: not by setpriv, which
/// asks the name service itself.
fn start(uid: u32, groups: &str, words: &[&str]) -> Call {
    let script = format!(
        "import os, sys; os.setgroups([{groups}]); os.setgid({uid}); os.setuid({uid})
os.execv(sys.argv[1], sys.argv[1:])"
    );
    let start = [
        "/usr/bin/python3",
        "-I",
        "-S",
        "-c",
        &script,
        "/opt/shifter/bin/shifter",
        "--image=tiny",
    ];
    Call::new([&start, words].concat()).cwd("/tmp").timeout(20)
}

/// Restores the files of the name service, however the test went.
struct Names;

impl Names {
    fn keep() -> Result<Self> {
        Call::shell("cp -p /etc/passwd /etc/group /etc/nsswitch.conf /root/").ok()?;
        Ok(Self)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = Call::shell("cd /root && cp -p passwd group nsswitch.conf /etc/").output();
    }
}

/// S45: whatever a name service says, no line of it becomes another account's in the container.
#[test]
fn privileged_s45_hostile_account_lines_forge_nothing() -> Result<()> {
    let mut guard = Guard::prepare()?;
    let names = Names::keep()?;
    let hash = "$6$salt$AHASHTHATMUSTNOTBESEEN";
    let long = "g".repeat(4096);
    let passwd = fs::read_to_string("/etc/passwd")?;
    let without = |text: &str| -> String {
        let others = text.lines().filter(|line| !line.starts_with("alice:"));
        others.map(|line| format!("{line}\n")).collect()
    };
    let others = without(&passwd);
    for (line, works) in [
        (
            format!("alice:{hash}:2001:2001:Alice:/home/alice:/bin/sh"),
            true,
        ),
        (
            format!("alice:x:2001:2001:{long}:/home/alice:/bin/sh"),
            true,
        ),
        (
            "alice:x:2001:2001:a\tb\x1b[31m:/home/alice:/bin/sh".into(),
            true,
        ),
        // One field more, as a colon in one makes it; ids that are none, or root's, or spelt oddly.
        ("alice:x:2001:2001:a:b:/home/alice:/bin/sh".into(), false),
        ("alice:x:2001:-1:Alice:/home/alice:/bin/sh".into(), false),
        // As the C library reads it.
        ("alice:x:+2001:2001:Alice:/home/alice:/bin/sh".into(), true),
        ("+alice:x:2001:2001:Alice:/home/alice:/bin/sh".into(), false),
        (":x:2001:2001:Alice:/home/alice:/bin/sh".into(), false),
        (
            "alice:x:2001:2001:Alice:/home/\x01alice:/bin/sh".into(),
            false,
        ),
        (
            format!("{}:x:2001:2001:Alice:/home/alice:/bin/sh", "a".repeat(5000)),
            false,
        ),
        (
            format!("alice:x:2001:2001:Alice:/{}:/bin/sh", "h".repeat(5000)),
            false,
        ),
        (
            "alice:x:2001:2001:Alice:/home/alice:/bin/sh\nroot2:x:0:0::/:/bin/sh".into(),
            true,
        ),
    ] {
        fs::write("/etc/passwd", format!("{others}{line}\n"))?;
        guard.rebase()?;
        let show = "cat /etc/passwd /etc/group /etc/shadow 2>/dev/null; id -u; stat -c '%a %u' /etc/shadow";
        let output = start(2001, "2001,2100", &["sh", "-c", show]).output()?;
        let context = || format!("{line:.60}: {output}");
        if works {
            ensure!(output.code == 0, "{}", context());
            ensure!(output.stdout.ends_with("2001\n600 0\n"), "{}", context());
            let roots = output
                .stdout
                .lines()
                .filter(|line| line.split(':').nth(2) == Some("0"));
            // root itself in each of the two files.
            ensure!(roots.count() == 2, "{}", context());
            ensure!(
                !output.stdout.contains("AHASH") && !output.stdout.contains("ggg"),
                "{}",
                context()
            );
            ensure!(!output.stdout.contains('\x1b'), "{}", context());
            guard.unchanged()?;
        } else {
            guard
                .refused(&output, 1, "cannot find the account of uid 2001")
                .map_err(|error| error.context(context()))?;
        }
    }
    drop(names);
    guard.rebase()?;
    guard.finish()
}

#[test]
fn privileged_s45_groups_are_the_callers_alone_and_bounded() -> Result<()> {
    let mut guard = Guard::prepare()?;
    let names = Names::keep()?;
    let mut group = fs::read_to_string("/etc/group")?;
    // A group without a name, one named like the user, one that lists her and is not hers, and many.
    group +=
        "::100:alice\nalice:x:3100:\nwheel2:x:3200:alice\nforged:x:0:alice\nroot:x:3300:alice\n";
    group += "bad name\x07:x:3400:\n-minus:x:3500:\n";
    for number in 0..5000 {
        group += &format!("many{number}:x:{}:alice\n", 10_000 + number);
    }
    fs::write("/etc/group", group)?;
    guard.rebase()?;
    let show =
        |groups: &str| start(2001, groups, &["sh", "-c", "cat /etc/group; echo; id -G"]).output();
    let output = show("2001,2100,100,3100,3300,3400,3500")?.success()?;
    let (file, ids) = output.stdout.split_once("\n\n").unwrap_or_default();
    let mut seen: Vec<&str> = ids.split_whitespace().collect();
    seen.sort_unstable();
    ensure!(
        seen == ["100", "2001", "2100", "3100", "3300", "3400", "3500"],
        "{output}"
    );
    for line in file.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        ensure!(fields.len() == 4 && !fields[0].is_empty(), "{line:?}");
        ensure!(fields[0] != "root" || fields[2] == "0", "{line:?}");
        ensure!(fields[3].is_empty() || fields[3] == "alice", "{line:?}");
    }
    for stranger in ["wheel2", "forged", "many0:", "bad name", "-minus"] {
        ensure!(!file.contains(stranger), "{stranger}: {file}");
    }
    // Two groups of one name: each has a line, and each name is there once.
    let mut names_seen: Vec<&str> = file
        .lines()
        .filter_map(|line| line.split(':').next())
        .collect();
    names_seen.sort_unstable();
    let count = names_seen.len();
    names_seen.dedup();
    ensure!(names_seen.len() == count, "{file}");
    // Thousands of groups in one process.
    let all: Vec<String> = (0..5000)
        .map(|number| (10_000 + number).to_string())
        .collect();
    // Without busybox's id, which takes long.
    let many = start(2001, &all.join(","), &["wc", "-l", "/etc/group"]).output()?;
    guard.done_or_refused(&many)?;
    ensure!(many.took < Duration::from_secs(8), "{:?}", many.took);
    drop(names);
    guard.rebase()?;
    guard.finish()
}

#[test]
fn privileged_s46_an_account_that_nobody_knows_is_said_plainly() -> Result<()> {
    let guard = Guard::prepare()?;
    let output = start(4242, "4242", &["true"]).output()?;
    guard.refused(
        &output,
        1,
        "cannot find the account of uid 4242: no name service knows it",
    )?;
    guard.finish()
}

/// S46, S10: a name service that hangs holds a start up for some seconds, and what is asked of it is
/// asked by nobody.
#[test]
fn privileged_s46_a_name_service_that_hangs_is_given_up() -> Result<()> {
    let mut guard = Guard::prepare()?;
    let names = Names::keep()?;
    let place = "/usr/lib/x86_64-linux-gnu/libnss_hang.so.2";
    Call::new(["gcc", "-shared", "-fPIC", "-x", "c", "-o", place, "-"])
        .input(HANGING)
        .ok()?;
    fs::write(
        "/etc/nsswitch.conf",
        "passwd: files hang\ngroup: files hang\n",
    )?;
    guard.rebase()?;
    let output = start(4242, "4242", &["true"]).output()?;
    guard.refused(
        &output,
        1,
        "cannot find the account of uid 4242: the name service does not answer",
    )?;
    ensure!(output.took < Duration::from_secs(8), "{:?}", output.took);
    // Killed, not left behind.
    let left = Call::new(["pgrep", "-x", "getent"]).output()?;
    ensure!(left.code == 1, "getent still runs: {left}");
    // Meanwhile: the child is nobody, and out of the user's reach.
    let began = Instant::now();
    let mut running = start(2001, "2001,7777", &["true"])
        .timeout(0)
        .start("/tmp/hanging")?;
    let child = wait_for("getent", 4, || {
        let found = Call::new(["pgrep", "-x", "getent"]).output()?;
        Ok((found.code == 0).then(|| found.stdout.trim().to_owned()))
    });
    // Who becomes alice here would have to wait as well; getent has read its configuration.
    drop(names);
    let looked = child.and_then(|child| {
        let status = fs::read_to_string(format!("/proc/{child}/status"))?;
        ensure!(
            status.contains("Uid:\t65534\t65534\t65534\t65534"),
            "{status}"
        );
        ensure!(status.contains("Groups:\t \n"), "{status}");
        let kill = Call::new(["kill", "-KILL", &child]).by(Alice).output()?;
        let trace = Call::new(["strace", "-qq", "-o", "/dev/null", "-p", &child])
            .by(Alice)
            .output()?;
        ensure!(
            kill.code != 0 && trace.code != 0,
            "alice reaches it: {kill}{trace}"
        );
        Ok(())
    });
    let ended = running.wait()?;
    let said = fs::read_to_string("/tmp/hanging")?;
    fs::remove_file(place)?;
    guard.rebase()?;
    looked?;
    ensure!(
        ended.code() == Some(1) && said.ends_with("uid 2001: the name service does not answer\n"),
        "{said}"
    );
    ensure!(
        began.elapsed() < Duration::from_secs(9),
        "{:?}",
        began.elapsed()
    );
    guard.finish()
}

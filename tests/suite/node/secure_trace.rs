//! S77, S78: what the setuid program is made of, and what it does while it is root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use shifter_tests::call::Call;

use super::manifest;
use super::secure::Guard;

#[test]
fn privileged_s77_the_privileged_programs_are_static_and_hardened() -> Result<()> {
    let guard = Guard::prepare()?;
    let product = guard.site.product;
    for (program, mode) in [
        ("bin/shifter", "4755 0 0"),
        ("sbin/setupRoot", "700 0 0"),
        ("sbin/unsetupRoot", "700 0 0"),
        ("sbin/startSshd", "700 0 0"),
        ("lib/shifter/shifter-identity", "700 0 0"),
    ] {
        let path = product.path(program);
        let seen = Call::new(["stat", "-c", "%a %u %g", &*path]).ok()?;
        ensure!(seen.trim() == mode, "{program}: {seen}");
        let headers = Call::new(["readelf", "-Whld", &*path]).ok()?;
        for forbidden in [
            "INTERP",
            "(NEEDED)",
            "RPATH",
            "RUNPATH",
            "TEXTREL",
            "Requesting program",
        ] {
            ensure!(
                !headers.contains(forbidden),
                "{program}: {forbidden}: {headers}"
            );
        }
        ensure!(
            headers.contains("DYN (") && headers.contains("PIE"),
            "{program}: {headers}"
        );
        ensure!(headers.contains("GNU_RELRO"), "{program}: {headers}");
        let full = headers.contains("BIND_NOW")
            || headers.contains("NOW PIE")
            || headers.contains("Flags: NOW");
        ensure!(full, "{program}: {headers}");
        for line in headers
            .lines()
            .filter(|line| line.contains("GNU_STACK") || line.contains("LOAD "))
        {
            let flags: String = line.split_whitespace().rev().skip(1).take(2).collect();
            // Nothing is writable and executable at once.
            ensure!(
                !(line.contains("RWE") || flags.contains("EW")),
                "{program}: {line}"
            );
        }
        let stack = headers
            .lines()
            .find(|line| line.contains("GNU_STACK"))
            .unwrap_or_default();
        ensure!(stack.contains(" RW "), "{program}: {stack}");
        // No library is loaded and no name service asked: the calls that would are not linked.
        let symbols = Call::new(["nm", "--defined-only", &*path]).output()?.stdout;
        let code = symbols.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            words
                .next()
                .filter(|kind| ["T", "t", "W", "w"].contains(kind))?;
            words.next()
        });
        let loading = [
            "getpwnam",
            "getpwuid",
            "getgrnam",
            "getgrgid",
            "getaddrinfo",
            "iconv_open",
            "system",
            "popen",
        ];
        let linked: Vec<&str> = code.filter(|name| loading.contains(name)).collect();
        ensure!(linked.is_empty(), "{program} has {linked:?}");
    }
    let trace = [
        "strace",
        "-f",
        "-u",
        "alice",
        "-o",
        "/tmp/trace",
        "/opt/shifter/bin/shifter",
        "--image=tiny",
        "true",
    ];
    Call::new(trace).cwd("/tmp").ok()?;
    let trace = fs::read_to_string("/tmp/trace")?;
    let libraries = trace
        .lines()
        .filter(|line| line.contains(".so") && line.contains("open"));
    ensure!(libraries.count() == 0, "a library was opened");
    guard.finish()
}

/// Follows in a trace with whose eyes each process looks at files, and returns each call that names
/// one of `marks` in a path while they are root's, and how many do so while they are not.
fn calls_as_root(trace: &str, marks: &[&str]) -> (Vec<String>, usize) {
    let mut eyes: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut found, mut as_user) = (Vec::new(), 0);
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let (name, arguments) = call.split_once('(').unwrap_or_default();
        let number = |at: usize| {
            let argument = arguments.split([',', ')']).nth(at)?;
            // Another process's call may come in between: `setfsuid(2001 <unfinished ...>`.
            argument.split_whitespace().next()?.parse::<u32>().ok()
        };
        let worked = call.ends_with(" = 0");
        // Setuid root: root's eyes from the start, whoever called.
        let own = eyes.entry(pid).or_insert(0);
        match name {
            "execve" if worked && call.contains("/bin/shifter\"") => *own = 0,
            "setresuid" if worked => *own = number(1).unwrap_or(*own),
            "setfsuid" => *own = number(0).filter(|uid| *uid != u32::MAX).unwrap_or(*own),
            "fork" | "clone" | "clone3" | "vfork" => {
                let own = *own;
                eyes.insert(call.rsplit(' ').next().unwrap_or_default(), own);
            }
            _ => {}
        }
        let is_data = ["read", "write", "writev", "pread64", "execve", "getcwd"].contains(&name);
        // What a link says is an answer, not a question.
        let asked = match name {
            "readlink" | "readlinkat" => arguments.split('"').nth(1).unwrap_or_default(),
            _ => arguments,
        };
        if is_data || !marks.iter().any(|mark| asked.contains(mark)) {
            continue;
        }
        if eyes.get(pid) == Some(&0) {
            found.push(line.to_owned());
        } else {
            as_user += 1;
        }
    }
    (found, as_user)
}

/// True if a call stays within an open directory of the root that is being built: one name, a path
/// that the kernel itself keeps inside, or one that is made in the layer, which nobody else has seen.
fn is_confined(call: &str) -> bool {
    let inside = call.contains("RESOLVE_IN_ROOT") || call.contains("RESOLVE_BENEATH");
    let relative = !call.contains("AT_FDCWD");
    let one_name = |text: &str| !text.contains('/');
    let path = call.split('"').nth(1).unwrap_or("/");
    let makes = call.contains(" mkdirat(") || call.contains(" mknodat(");
    relative && (inside || one_name(path) || makes && !path.starts_with('/'))
}

/// S78: between its start and the end of its privileges the program looks at nothing that the user has
/// named with root's eyes, by any path that the user could turn elsewhere.
#[test]
fn privileged_s78_no_path_of_the_users_is_followed_as_root() -> Result<()> {
    let guard = Guard::prepare()?;
    Call::shell(
        "cd /scratch/alice; mkdir -p marked-cwd marked-from/dir; ln -s marked-from marked-link
        touch marked-from/marked-file; echo A=1 >marked-env; chown -Rh alice .
        install -d -o alice /home/alice/.shifter",
    )
    .ok()?;
    symlink("/scratch/alice/marked-link", "/tmp/marked-tmp")?;
    let traced = |start: &[&str]| -> Result<String> {
        let strace = ["strace", "-f", "-v", "-s", "4096", "-o", "/tmp/trace"];
        Call::new([&strace, start].concat())
            .cwd("/scratch/alice/marked-cwd")
            .env("HOME", "/scratch/alice/marked-home")
            .env("PATH", "/scratch/alice/marked-path:/usr/bin:/bin")
            .env("TMPDIR", "/scratch/alice/marked-tmpdir")
            .output()?
            .success()?;
        Ok(fs::read_to_string("/tmp/trace")?)
    };
    let private = traced(&[
        "-u",
        "alice",
        "/opt/shifter/bin/shifter",
        "--image=tiny",
        "--volume=/scratch/alice/marked-from:/marked-to",
        "--volume=/scratch/alice/marked-link/dir:/mnt/marked-deep/er",
        "--volume=/scratch/alice/marked-from/marked-file:/usr/share/marked-file",
        "--volume=/tmp/marked-tmp:/opt/marked-opt",
        "--env-file=/scratch/alice/marked-env",
        "--workdir=/marked-to",
        "sh",
        "-c",
        "true",
    ])?;
    fs::remove_file("/tmp/marked-tmp")?;
    let start = format!("execve(\"{}\"", guard.site.product.path("bin/shifter"));
    let at = private.find(&start).unwrap_or_default();
    let at = private[..at].rfind('\n').map_or(0, |at| at + 1);
    let sources = [
        "marked-cwd",
        "marked-from",
        "marked-link",
        "marked-file\"",
        "marked-tmp",
        "marked-env",
        "marked-home",
        "marked-path",
        "/.shifter",
    ];
    let (as_root, as_user) = calls_as_root(&private[at..], &sources);
    ensure!(
        as_user >= 5,
        "only {as_user} calls as the user were seen: nothing was tested"
    );
    let outside: Vec<&String> = as_root.iter().filter(|call| !is_confined(call)).collect();
    ensure!(outside.is_empty(), "as root:\n{outside:#?}");
    // Where a volume is to appear, in the image and in the root's tmpfs: kept inside by the kernel.
    let (as_root, _) = calls_as_root(&private[at..], &["marked-to", "marked-deep", "marked-opt"]);
    let outside: Vec<&String> = as_root.iter().filter(|call| !is_confined(call)).collect();
    ensure!(
        !as_root.is_empty() && outside.is_empty(),
        "as root:\n{outside:#?}"
    );

    // And setupRoot, which is root all the time but for that.
    let mut job = manifest("17");
    job["volumes"] = vec!["/scratch/alice/marked-link:/marked-to"].into();
    fs::write("/root/manifest", job.to_string())?;
    let setup = guard.site.product.path("sbin/setupRoot");
    let text = traced(&[
        &setup,
        "--manifest=/root/manifest",
        "--expect-uid=2001",
        "--expect-job=17",
    ])?;
    guard.site.tear_down("17")?.success()?;
    let (as_root, as_user) = calls_as_root(&text, &["marked-from", "marked-link"]);
    let outside: Vec<&String> = as_root.iter().filter(|call| !is_confined(call)).collect();
    ensure!(as_user > 0 && outside.is_empty(), "as root:\n{outside:#?}");
    guard.finish()
}

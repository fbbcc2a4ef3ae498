//! S01–S08, S13–S15: what a hostile caller can prepare for a setuid program.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::Value;
use shifter_tests::call::{Call, Output};
use shifter_tests::world::User::Alice;

use super::manifest;
use super::secure::{Guard, Step, compile, python};

const SHIFTER: &str = "/opt/shifter/bin/shifter";

/// Alice with the groups proj and one that has no name, so that `getent` is asked.
const NAMELESS_GROUP: [&str; 4] = [
    "setpriv",
    "--reuid=2001",
    "--regid=2001",
    "--groups=2100,7777",
];

/// What the kernel says of a process's rights.
const STATUS: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status";

/// Says who it is, tries to become root, and to open what it is told.
const PROBE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    uid_t r, e, s;
    getresuid(&r, &e, &s);
    printf("%d %d %d", r, e, s);
    printf(" %s", setuid(0) ? strerror(errno) : "IS ROOT");
    for (int n = 1; n < argc; n++)
        printf("\n%s %s", argv[n], open(argv[n], O_RDONLY) < 0 ? strerror(errno) : "OPEN");
    puts("");
    return 0;
}
"#;

fn private(words: &[&str]) -> Vec<String> {
    let start = [SHIFTER, "--image=tiny"];
    start
        .iter()
        .chain(words)
        .map(|word| (*word).to_owned())
        .collect()
}

/// The lines of a trace from the start of the setuid program on.
fn since_start(trace: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(trace)?;
    let lines = text.lines().map(str::to_owned);
    let start = format!("execve(\"{SHIFTER}\"");
    Ok(lines
        .skip_while(|line| !line.contains(&start))
        .skip(1)
        .collect())
}

#[test]
fn privileged_s01_a_missing_or_hostile_program_name_is_harmless() -> Result<()> {
    let guard = Guard::prepare()?;
    let no_argv = format!(
        "import ctypes; libc = ctypes.CDLL(None); none = (ctypes.c_char_p * 1)(None)
libc.execve(b'{SHIFTER}', none, none)"
    );
    guard.refused(&python(&no_argv).by(Alice).output()?, 2, "no image")?;
    for name in [
        "$'\\e[31mred\\nroot'",
        "''",
        "$'%s%n'",
        "\"$(head -c 100000 /dev/zero | tr '\\0' x)\"",
    ] {
        let script = format!("exec -a {name} {SHIFTER} --nonsense");
        guard.refused(&Call::shell(&script).by(Alice).output()?, 2, "shifter: ")?;
    }
    let script = format!("exec {SHIFTER} $'--non\\e[31msense\\nroot: ok'");
    guard.refused(
        &Call::shell(&script).by(Alice).output()?,
        2,
        "\\u{1b}[31msense\\u{a}root",
    )?;
    guard.finish()
}

#[test]
fn privileged_s02_closed_descriptors_are_never_the_programs_own_files() -> Result<()> {
    let guard = Guard::prepare()?;
    let show = "for fd in 0 1 2; do (readlink /proc/$$/fd/$fd >&9; true) || exit 1; done; true";
    for closed in [
        "<&-",
        ">&-",
        "2>&-",
        "<&- >&-",
        "<&- 2>&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
    ] {
        let script = format!(
            "exec 9>/scratch/alice/out; exec {SHIFTER} --image=tiny sh -c '{show}' {closed}"
        );
        let trace = [
            "strace",
            "-f",
            "-u",
            "alice",
            "-o",
            "/tmp/trace",
            "bash",
            "-c",
            &script,
        ];
        Call::new(trace).output()?.success()?;
        let closed_count = closed.matches("&-").count();
        let inside = fs::read_to_string("/scratch/alice/out")?;
        // What is not closed is a pipe of the test's.
        ensure!(
            inside.lines().filter(|file| *file == "/dev/null").count() == closed_count,
            "{closed}: {inside}"
        );
        let mut filled = 0;
        for line in since_start("/tmp/trace")? {
            let makes_one = [
                "open",
                "fsopen(",
                "fsmount(",
                "socket(",
                "memfd_create(",
                "pipe",
            ]
            .iter()
            .any(|call| line.contains(call));
            let low = [" = 0", " = 1", " = 2"]
                .iter()
                .any(|end| line.ends_with(end));
            // Calls that return no descriptor may well return 0.
            let returns_descriptor = line.contains("open(") || line.contains("openat");
            if makes_one && low && returns_descriptor {
                filled += 1;
                ensure!(
                    line.contains("\"/dev/null\"")
                        || line.contains("\"/dev/full\"")
                        || filled > closed_count,
                    "{closed}: {line}"
                );
            }
        }
        ensure!(filled >= closed_count, "{closed}: {filled}");
        guard.unchanged()?;
    }
    guard.finish()
}

/// S03: PMI's socket arrives, and nothing of ours with it; in a root of the job's too.
#[test]
fn privileged_s03_inherited_descriptors_arrive_and_no_others() -> Result<()> {
    let guard = Guard::prepare()?;
    let script = |argv: &str| {
        format!(
            "import os, socket, sys
ours, theirs = socket.socketpair()
os.dup2(theirs.fileno(), 9); theirs.close()
child = os.fork()
if child == 0:
    os.execvp({argv}[0], {argv} + ['busybox', 'sh', '-c', 'echo hello >&9; ls /proc/self/fd'])
os.close(9)
status = os.waitstatus_to_exitcode(os.wait()[1])
print(ours.recv(100)); sys.exit(status)"
        )
    };
    let bare = python(&script("['env']")).by(Alice).ok()?;
    ensure!(
        bare.contains("9\n") && bare.ends_with("b'hello\\n'\n"),
        "{bare}"
    );
    let private = python(&script(&format!("['{SHIFTER}', '--image=tiny']")))
        .by(Alice)
        .ok()?;
    ensure!(private == bare, "{private}");
    guard.site.set_up(&manifest("17"))?.success()?;
    let step = Step::new("17")?;
    let joined = step
        .call(["/usr/bin/python3", "-c", &script(&format!("['{SHIFTER}']"))])
        .ok()?;
    drop(step);
    guard.site.tear_down("17")?.success()?;
    ensure!(joined == bare, "{joined}");
    // A program of root's, which waits for a manifest that never comes, has none of its caller's.
    let waiting = "mkfifo /tmp/never
        /opt/shifter/sbin/setupRoot --manifest=- --expect-uid=2001 --expect-job=17 \\
            <>/tmp/never >/dev/null 2>&1 9</etc/passwd &
        for i in $(seq 200); do
            readlink /proc/$!/exe | grep -q setupRoot &&
                ! readlink /proc/$!/fd/* | grep -q ^/etc/passwd && break
            sleep 0.05
        done
        readlink /proc/$!/fd/0 /proc/$!/fd/9; kill -9 $!; rm /tmp/never";
    let open = Call::shell(waiting).ok()?;
    ensure!(open == "/tmp/never\n", "{open}");
    guard.finish()
}

#[test]
fn privileged_s05_variables_that_name_files_are_never_followed() -> Result<()> {
    let guard = Guard::prepare()?;
    let evil = "/scratch/alice/evil";
    Call::shell(&format!(
        "mkdir -p {evil}/gconv; cd {evil}
        echo '__attribute__((constructor)) void run(void) {{ fclose(fopen(\"{evil}/ran\", \"w\")); }}' |
            gcc -include stdio.h -shared -fPIC -x c -o lib.so -
        cp lib.so libnss_files.so.2; cp lib.so libc.so.6; cp lib.so gconv/gconv-modules
        echo 'system = \"evil\"' >shifter.toml; chown -R alice {evil}"
    ))
    .ok()?;
    let mut command: Vec<String> = ["strace", "-f", "-v", "-s", "300", "-o", "/tmp/trace"]
        .iter()
        .chain(&NAMELESS_GROUP)
        .map(|word| (*word).to_owned())
        .collect();
    command.push("env".into());
    for (names, value) in [
        (
            "LD_PRELOAD LD_AUDIT GCONV_PATH_ LOCPATH_",
            format!("{evil}/lib.so"),
        ),
        (
            "LD_LIBRARY_PATH GCONV_PATH LOCPATH NLSPATH TMPDIR HOSTALIASES",
            evil.to_owned(),
        ),
        (
            "GLIBC_TUNABLES",
            "glibc.malloc.check=3:glibc.rtld.optional_static_tls=1".to_owned(),
        ),
        (
            "MALLOC_TRACE MALLOC_CHECK_ RES_OPTIONS RUST_LOG",
            format!("{evil}/trace"),
        ),
        (
            "RUST_BACKTRACE LIBMOUNT_DEBUG LIBMOUNT_FORCE_MOUNT2",
            "full".to_owned(),
        ),
        (
            "LIBMOUNT_FSTAB LIBMOUNT_MTAB SSL_CERT_FILE SSL_CERT_DIR",
            format!("{evil}/tab"),
        ),
        (
            "http_proxy https_proxy ALL_PROXY",
            "http://192.0.2.66:1".to_owned(),
        ),
        (
            "SHIFTER_CONFIG UDIROOT_CONF SHIFTER_CONF CONFIG",
            format!("{evil}/shifter.toml"),
        ),
    ] {
        command.extend(names.split(' ').map(|name| format!("{name}={value}")));
    }
    command.extend(private(&["true"]));
    Call::new(command).cwd("/tmp").output()?.success()?;
    let lines = since_start("/tmp/trace")?;
    let mut asked = false;
    for line in &lines {
        let is_exec = line.contains("execve(");
        // The last execve hands the caller's variables to the command, as it must.
        // It reads the names of the processes above it, which are the user's to choose.
        let is_data = line.contains(" read(");
        ensure!(is_exec || is_data || !line.contains(evil), "{line}");
        if is_exec && line.contains("getent") {
            asked = true;
            ensure!(line.contains("[\"PATH=/usr/bin:/bin\"]"), "{line}");
        }
    }
    ensure!(
        asked,
        "getent was not asked, so nothing was tested: {}",
        lines.len()
    );
    ensure!(
        fs::metadata(format!("{evil}/ran")).is_err(),
        "the user's library was loaded"
    );
    guard.unchanged()?;
    guard.finish()
}

#[test]
fn privileged_s07_no_limit_leaves_half_a_file() -> Result<()> {
    let guard = Guard::prepare()?;
    let files = "cat /etc/passwd /etc/group /var/shifterConfig.json /etc/nsswitch.conf";
    let whole = guard.site.script(&[], files)?;
    ensure!(whole.contains("alice:") && whole.contains("proj:") && whole.contains("identifier"));
    let limits = "cat /proc/self/limits";
    let mut succeeded = 0;
    for limit in [
        "--fsize=1",
        "--fsize=4096",
        "--nofile=6",
        "--nofile=6:6",
        "--as=50331648",
        "--nproc=1",
        "--stack=65536",
        "--core=unlimited",
        "--cpu=1",
        "--data=1048576",
        "--memlock=0",
        "--sigpending=0",
        "--rtprio=0",
        "--fsize=1:1",
    ] {
        let run = |words: &[&str]| Call::new([&["prlimit", limit], words].concat()).by(Alice);
        let output = run(&["shifter", "--image=tiny", "sh", "-c", files]).output()?;
        guard
            .done_or_refused(&output)
            .map_err(|error| error.context(limit))?;
        if output.code == 0 {
            succeeded += 1;
            ensure!(output.stdout == whole, "{limit}: {output}");
            let bare = run(&["/bin/busybox", "sh", "-c", limits]).ok()?;
            let inside = run(&["shifter", "--image=tiny", "busybox", "sh", "-c", limits]).ok()?;
            ensure!(inside == bare, "{limit}: {inside}{bare}");
        }
    }
    ensure!(succeeded >= 8, "only {succeeded} succeeded");
    guard.finish()
}

/// The kernel lowers the stack's limit for a setuid program; what needs a large one (Fortran) gets
/// what its shell has all the same.
#[test]
fn privileged_s07_a_large_stack_limit_arrives_in_the_container() -> Result<()> {
    let guard = Guard::prepare()?;
    for (limit, inside) in [
        ("-S -s unlimited", "unlimited"),
        ("-S -s 1048576", "1048576"),
        ("-S -s 8192", "8192"),
        ("-S -s 4096", "4096"),
        ("-s 16384", "16384"),
    ] {
        let script = format!("ulimit {limit}; shifter --image=tiny sh -c 'ulimit -s'; exit $?");
        let seen = Call::shell(&script).by(Alice).ok()?;
        ensure!(seen.trim() == inside, "{limit}: {seen}");
    }
    guard.finish()
}

#[test]
fn privileged_s08_the_callers_mask_changes_no_mode() -> Result<()> {
    let guard = Guard::prepare()?;
    let files = "/etc/passwd /etc/group /etc/shadow /etc/nsswitch.conf /etc/hosts /etc/resolv.conf \
                 /var/hostsfile /var/shifterConfig.json / /etc /var /var/tmp /proc /a /a/b";
    let script = format!("stat -c '%n %a %u %g' {files}; umask");
    let start = format!("shifter --image=tiny --volume=/scratch/alice:/a/b sh -c \"{script}\"");
    let mut seen: Option<String> = None;
    for mask in ["0022", "0000", "0777", "0077"] {
        let text = Call::shell(&format!("umask {mask}; {start}"))
            .by(Alice)
            .ok()?;
        let (modes, inside) = text.trim_end().rsplit_once('\n').unwrap_or_default();
        ensure!(inside == mask, "{inside} instead of {mask}");
        for line in [
            "/etc/passwd 644 0 0",
            "/etc/shadow 600 0 0",
            "/etc 755 0 0",
            "/ 755 0 0",
            "/a 755 0 0",
        ] {
            ensure!(modes.lines().any(|found| found == line), "{mask}: {modes}");
        }
        let before = seen.get_or_insert_with(|| modes.to_owned());
        ensure!(before == modes, "{mask}: {modes}");
        guard.unchanged()?;
    }
    guard.finish()
}

#[test]
fn privileged_s13_root_by_any_way_is_refused() -> Result<()> {
    let guard = Guard::prepare()?;
    let run = |before: &[&str]| {
        let before = before.iter().map(|word| (*word).to_owned());
        Call::new(before.chain(private(&["true"]))).output()
    };
    guard.refused(&run(&[])?, 3, "not for root")?;
    guard.refused(&run(&["sudo", "-n"])?, 3, "not for root")?;
    guard.refused(
        &run(&["sudo", "-n", "-u", "alice", "-g", "root"])?,
        3,
        "group root",
    )?;
    guard.refused(&run(&["setpriv", "--euid=2001"])?, 3, "not for root")?;
    guard.refused(
        &run(&["setpriv", "--ruid=2001", "--rgid=0", "--clear-groups"])?,
        3,
        "group root",
    )?;
    let zero = ["setpriv", "--reuid=2001", "--regid=2001", "--groups=0,2100"].map(str::to_owned);
    let show = private(&["grep", "Groups", "/proc/self/status"]);
    let groups = Call::new(zero.into_iter().chain(show)).ok()?;
    ensure!(
        groups.split_whitespace().eq(["Groups:", "2100"]),
        "{groups}"
    );
    guard.finish()
}

/// S14: nothing that the image, or the caller, has prepared gives a right back; by both ways in.
#[test]
fn privileged_s14_setuid_files_and_inherited_capabilities_give_nothing() -> Result<()> {
    let guard = Guard::prepare()?;
    let probe = compile("probe", PROBE)?;
    let id = guard.image("probe", |tree| {
        let tree = tree.display();
        let script = format!(
            "cp {probe} {tree}/bin/probe; cp {probe} {tree}/bin/suid; cp {probe} {tree}/bin/caps
            chmod 6755 {tree}/bin/suid
            python3 -c \"import os, struct
os.setxattr('{tree}/bin/caps', 'security.capability', struct.pack('<IIIII', 0x02000001, 0xff, 0, 0, 0))\""
        );
        Call::shell(&script).ok().map(drop)
    })?;
    let script = format!("probe; suid; caps; {STATUS}");
    let expected = "2001 2001 2001 Operation not permitted\n".repeat(3);
    let check = |text: &str| {
        let status = text.strip_prefix(&expected).unwrap_or_default();
        let zero = "0000000000000000";
        let sound = status.lines().all(|line| {
            let (key, values) = line.split_once(':').unwrap_or_default();
            let values: Vec<&str> = values.split_whitespace().collect();
            match key {
                "Uid" | "Gid" => values == ["2001"; 4],
                "Groups" => values == ["2001", "2100"],
                "NoNewPrivs" => values == ["1"],
                _ => values == [zero],
            }
        });
        ensure!(sound && status.lines().count() == 9, "{text}");
        Ok(())
    };
    let words = ["--image=probe", "sh", "-c", &script];
    // With capabilities that outlive execve(2): ambient, and in the inheritable set.
    let ambient = [
        "setpriv",
        "--reuid=2001",
        "--regid=2001",
        "--init-groups",
        "--inh-caps=+net_raw,+setuid,+sys_admin",
        "--ambient-caps=+net_raw,+setuid,+sys_admin",
    ];
    for before in [&ambient[..4], &ambient[..]] {
        check(
            &Call::new([before, &[SHIFTER], &words].concat())
                .cwd("/tmp")
                .ok()?,
        )?;
    }
    let mut job = manifest("17");
    job["image"]["id"] = Value::from(id);
    guard.site.set_up(&job)?.success()?;
    let step = Step::new("17")?;
    check(&step.call(["shifter", "sh", "-c", &*script]).ok()?)?;
    drop(step);
    guard.site.tear_down("17")?.success()?;
    guard.finish()
}

#[test]
fn privileged_s15_without_effective_setuid_nothing_half_happens() -> Result<()> {
    let guard = Guard::prepare()?;
    let fake = "/scratch/alice/fake.toml";
    fs::write(fake, "system = 'fake'\n[store]\npath = '/scratch/alice'\n")?;
    let alice = "setpriv --reuid=2001 --regid=2001 --init-groups";
    let start = format!("{SHIFTER} --image=tiny true");
    let bind = format!("mount --bind {fake} /etc/shifter/shifter.toml");
    for (script, code) in [
        (format!("exec {alice} --no-new-privs {start}"), 6),
        (format!("exec {alice} strace -qq -o /dev/null {start}"), 6),
        (
            format!(
                "exec unshare --mount sh -c 'mount --bind /opt/shifter/bin /opt/shifter/bin;
                mount -o remount,bind,nosuid /opt/shifter/bin; exec {alice} {start}'"
            ),
            6,
        ),
        (
            format!("exec {alice} unshare -Urm sh -c '{bind}; exec {start}'"),
            3,
        ),
        (
            format!(
                "exec {alice} unshare -Um --map-user=2001 --map-group=2001 --keep-caps sh -c \
                 '{bind}; exec {start}'"
            ),
            6,
        ),
    ] {
        let output = Call::shell(&script).cwd("/tmp").output()?;
        guard
            .refused(&output, code, "")
            .map_err(|error| error.context(script))?;
    }
    guard.finish()
}

/// S15, L11: a step of giving up privileges that fails, or that claims to have worked and has
/// not, ends the program before the command.
#[test]
fn privileged_s15_a_drop_that_fails_or_lies_ends_the_program() -> Result<()> {
    let guard = Guard::prepare()?;
    let run = |tracer: &[&str]| -> Result<Output> {
        let strace = ["strace", "-qq", "-u", "alice"];
        let words = [
            "--image=tiny",
            "--volume=/scratch/alice:/mnt",
            "sh",
            "-c",
            STATUS,
        ];
        Call::new([&strace, tracer, &[SHIFTER], &words].concat())
            .cwd("/scratch/alice")
            .output()
    };
    let sound = run(&["-o", "/tmp/trace"])?.success()?.stdout;
    let trace = fs::read_to_string("/tmp/trace")?;
    let mut refused = 0;
    for call in [
        "setgroups",
        "setresgid",
        "setresuid",
        "setfsuid",
        "setfsgid",
        "capset",
        "prctl",
    ] {
        let count = trace
            .lines()
            .filter(|line| line.starts_with(&format!("{call}(")))
            .count();
        ensure!(count > 0, "{call} is not called");
        for number in 1..=count {
            // One of the many that empty the bounding set is like the other.
            if call == "prctl" && number % 8 != 1 && number + 4 < count {
                continue;
            }
            for outcome in ["error=EPERM", "retval=0"] {
                let inject = format!("--inject={call}:{outcome}:when={number}");
                let output = run(&["-o", "/dev/null", &inject])?;
                let context = || format!("{call} {number} of {count}, {outcome}: {output}");
                if output.code == 0 {
                    ensure!(output.stdout == sound, "{}", context());
                } else {
                    refused += 1;
                    // Aborted where going on would mean to be half somebody else.
                    let is_aborted = output.code == 134 && output.stdout.is_empty();
                    if !is_aborted {
                        guard
                            .refused_somehow(&output)
                            .map_err(|e| e.context(context()))?;
                    }
                }
            }
        }
    }
    ensure!(refused > 20, "only {refused} were refused");
    guard.unchanged()?;
    guard.finish()
}

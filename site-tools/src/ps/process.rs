//! One process, as /proc shows it. What its user may have written is data to be cleaned.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::look;

/// Bytes of an environment or a command that are looked at.
const LIMIT: u64 = 1 << 20;

/// The `source` of the file system at a container's root; that of a private one within a job goes on
/// with `:` and the job's id.
const SOURCE: &str = "shifter";

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Its number.
    pub pid: u32,
    /// Its real uid.
    pub uid: u32,
    /// Inode of its mount namespace.
    pub namespace: u64,
    /// When it began, in clock ticks since the machine did.
    pub start_ticks: u64,
}

impl Process {
    /// Looks at a process; nothing if it has ended, or if its user keeps it to themselves.
    pub fn read(pid: u32) -> Option<Self> {
        Some(Self {
            pid,
            uid: look::ids(&look::text(format!("/proc/{pid}/status")))?.0,
            namespace: namespace(&pid.to_string())?,
            start_ticks: start_ticks(&look::text(format!("/proc/{pid}/stat")))?,
        })
    }

    /// True if the file system at its root is a container's.
    pub fn is_contained(&self) -> bool {
        is_contained(&look::text(format!("/proc/{}/mountinfo", self.pid)))
    }

    /// Returns its command line, or its name in brackets.
    pub fn command(&self) -> String {
        let bytes = self.file("cmdline");
        let words = bytes.split(|byte| *byte == 0);
        let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
        let line = words.join(" ").trim_end().to_owned();
        if line.is_empty() {
            format!(
                "[{}]",
                String::from_utf8_lossy(&self.file("comm")).trim_end()
            )
        } else {
            line
        }
    }

    /// Returns the job that it belongs to.
    pub fn job(&self) -> Option<String> {
        job(self.pid)
    }

    /// Returns the image that it runs in; `own_uid` is who asks.
    pub fn image(&self, own_uid: u32) -> Option<String> {
        let environ = self.file("environ");
        // A process may have a root of its user's making, whose links lead anywhere: nobody else
        // opens a file there.
        let config = || (self.uid == own_uid).then(|| self.file("root/var/shifterConfig.json"));
        variable(&environ, "SHIFTER_IMAGEREQUEST")
            .or_else(|| variable(&environ, "SHIFTER_IMAGE").map(|id| short(&id)))
            .or_else(|| image_of_config(&config()?))
    }

    fn file(&self, name: &str) -> Vec<u8> {
        file(self.pid, name)
    }
}

fn file(pid: u32, name: &str) -> Vec<u8> {
    let path = format!("/proc/{pid}/{name}");
    look::read(path.as_ref(), LIMIT).unwrap_or_default()
}

/// Returns the job that a process belongs to: the kernel's word, else the environment's. Torque and PBS put
/// jobs into no cgroup of that form.
pub(super) fn job(pid: u32) -> Option<String> {
    let cgroups = job_of_cgroups(&String::from_utf8_lossy(&file(pid, "cgroup")));
    cgroups.or_else(|| job_of_environment(&file(pid, "environ")))
}

fn job_of_environment(environ: &[u8]) -> Option<String> {
    let mut names = ["SLURM_JOB_ID", "PBS_JOBID"].iter();
    names.find_map(|name| variable(environ, name))
}

/// Returns the inode of the mount namespace of a process, `self` for this one.
pub(super) fn namespace(pid: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
    let text = link.to_str()?.strip_prefix("mnt:[")?;
    text.strip_suffix(']')?.parse().ok()
}

/// Finds the job in the text of /proc/PID/cgroup: a part `job_NUMBER` of a path.
fn job_of_cgroups(text: &str) -> Option<String> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut numbers = paths
        .flat_map(|path| path.split('/'))
        .filter_map(|part| part.strip_prefix("job_"));
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.find(is_number).map(str::to_owned)
}

/// Finds the 22nd field in the text of /proc/PID/stat; the second may hold anything.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// True if this process is in a container.
pub(super) fn is_self_contained() -> bool {
    is_contained(&look::text("/proc/self/mountinfo"))
}

fn is_contained(mountinfo: &str) -> bool {
    let root = mountinfo
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/"));
    let source = root
        .and_then(|line| line.split_once(" - "))
        .and_then(|(_, rest)| rest.split(' ').nth(1));
    source.is_some_and(|source| source.split(':').next() == Some(SOURCE))
}

fn variable(environ: &[u8], name: &str) -> Option<String> {
    let mut pairs = environ.split(|byte| *byte == 0);
    let value = pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    (!value.is_empty()).then(|| String::from_utf8_lossy(value).into_owned())
}

fn image_of_config(json: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(json).ok()?;
    value.get("identifier")?.as_str().map(short)
}

/// Writes an image's id as far as it tells it from others.
fn short(id: &str) -> String {
    format!("id:{}", id.chars().take(12).collect::<String>())
}

/// Turns clock ticks into times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    boot: u64,
    ticks_per_second: u64,
}

impl Clock {
    pub fn read() -> Self {
        let stat = look::text("/proc/stat");
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime "));
        let auxv = look::read("/proc/self/auxv".as_ref(), LIMIT).unwrap_or_default();
        Self {
            boot: boot.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
            ticks_per_second: ticks_per_second(&auxv).unwrap_or(100),
        }
    }

    /// Returns a time in seconds since 1970.
    pub fn seconds(&self, ticks: u64) -> u64 {
        self.boot + ticks / self.ticks_per_second
    }
}

/// Finds AT_CLKTCK in the auxiliary vector of a 64-bit process (getauxval(3)).
fn ticks_per_second(auxv: &[u8]) -> Option<u64> {
    const AT_CLKTCK: u64 = 17;
    let word = |bytes: &[u8]| Some(u64::from_ne_bytes(bytes.try_into().ok()?));
    auxv.chunks_exact(16)
        .find(|pair| word(&pair[..8]) == Some(AT_CLKTCK))
        .and_then(|pair| word(&pair[8..]))
        .filter(|ticks| *ticks > 0)
}

/// Returns the time in seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots() {
        let host =
            "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /run/shifter rw - tmpfs shifter rw\n";
        assert!(!is_contained(host));
        let own = "1 0 8:1 / / rw - ext4 x rw\n7 1 0:45 /root / ro,nosuid - tmpfs shifter ro\n\
                   8 7 0:46 / /etc rw shared:1 - tmpfs other rw\n";
        assert!(is_contained(own));
        assert!(is_contained(
            "7 1 0:45 / / ro - overlay shifter:3.server ro"
        ));
        assert!(!is_contained(""));
        assert!(!is_contained("1 0 0:1 / / rw - tmpfs shifters rw"));
    }

    #[test]
    fn jobs() {
        let table = [
            (
                "5:freezer:/slurm_n1/uid_2001/job_17/step_0/task_0\n",
                Some("17"),
            ),
            (
                "0::/system.slice/slurmstepd.scope/job_9/step_0/user",
                Some("9"),
            ),
            ("0::/user.slice/job_x/job_/y\n", None),
            ("0::/a:b/job_3", Some("3")),
            ("", None),
        ];
        for (text, expect) in table {
            assert_eq!(job_of_cgroups(text).as_deref(), expect, "{text}");
        }
        let table = [
            (&b"A=1\0SLURM_JOB_ID=17\0"[..], Some("17")),
            (b"PBS_JOBID=3.mom\0", Some("3.mom")),
            (b"SLURM_JOB_ID=\0PBS_JOBID=3.mom", Some("3.mom")),
            (b"PBS_JOBIDX=3", None),
        ];
        for (environ, expect) in table {
            assert_eq!(job_of_environment(environ).as_deref(), expect);
        }
    }

    #[test]
    fn images_and_other_texts() {
        let environ = b"A=b\0SHIFTER_IMAGEREQUEST=docker:a:1\0SHIFTER_IMAGE=\0";
        assert_eq!(
            variable(environ, "SHIFTER_IMAGEREQUEST").as_deref(),
            Some("docker:a:1")
        );
        assert_eq!(variable(environ, "SHIFTER_IMAGE"), None);
        let json = br#"{"identifier":"0123456789abcdef","user":"x"}"#;
        assert_eq!(image_of_config(json).as_deref(), Some("id:0123456789ab"));
        for json in [&b""[..], b"[]", b"{\"identifier\":1}", b"root:x:0:0"] {
            assert_eq!(image_of_config(json), None);
        }
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_ticks(stat), Some(4711));
        assert_eq!(start_ticks("7 (a"), None);
    }

    #[test]
    fn this_process_and_its_age() {
        let process = Process::read(std::process::id()).unwrap();
        assert_eq!(Some(process.namespace), namespace("self"));
        assert!(process.command().contains("site_tools"), "{process:?}");
        let age = now().abs_diff(Clock::read().seconds(process.start_ticks));
        assert!(age < 3600, "{age}");
        assert_eq!(Process::read(u32::MAX), None);
    }
}

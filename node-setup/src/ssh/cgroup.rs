//! Slurm's cgroups of a job: which are a process's, who else is on the node, and joining them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use shifter_core::ids::JobId;

use crate::caller;
use crate::error::{Context, Error, Result};
use crate::process::{read_proc, read_record};

/// Levels of a job's cgroups: step, user, task.
const DEPTH: usize = 4;

/// A process of a job's, by its cgroups.
pub struct Member {
    /// The text of /proc/PID/cgroup.
    cgroups: String,
}

impl Member {
    /// Finds the process that the caller's own parent, the daemon of the job's extern step, keeps
    /// in the job's cgroups.
    ///
    /// # Errors
    /// [`Error::Ssh`] where there is none.
    pub fn of_extern_step(job: &JobId, uid: u32) -> Result<Self> {
        let daemon =
            rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
        for entry in fs::read_dir("/proc").step("list", "/proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            let stat = read_record(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = caller::parent(&String::from_utf8_lossy(&stat));
            if parent.is_none() || parent != daemon || pid == std::process::id() {
                continue;
            }
            let cgroups = read_record(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let cgroups = String::from_utf8_lossy(&cgroups).into_owned();
            if caller::job_in_cgroups(&cgroups, uid).as_ref() == Some(job) {
                return Ok(Self { cgroups });
            }
        }
        let reason = "Slurm keeps no process in the job's cgroup: PrologFlags=Contain and \
                      ProctrackType=proctrack/cgroup are needed";
        Err(Error::Ssh(reason.into()))
    }

    /// Puts the calling process into each cgroup of the member's that is not its own already.
    pub fn join(&self) -> Result<()> {
        let own = read_record("/proc/self/cgroup").step("read", "/proc/self/cgroup")?;
        let own = String::from_utf8_lossy(&own).into_owned();
        let mounts = mounts()?;
        for (controllers, path) in hierarchies(&self.cgroups) {
            if hierarchies(&own).get(controllers) == Some(&path) {
                continue;
            }
            let dir = mounts.dir(controllers, path);
            let dir = dir.ok_or_else(|| Error::Ssh(format!("cgroup '{path}' is not mounted")))?;
            let procs = dir.join("cgroup.procs");
            fs::write(&procs, "0").step("join", &procs)?;
        }
        Ok(())
    }

    /// Returns another job that has processes on this node.
    pub fn other_job(&self, job: &JobId) -> Result<Option<String>> {
        let mounts = mounts()?;
        for (controllers, path) in hierarchies(&self.cgroups) {
            let Some((above, is_by_user)) = above_job(path, job) else {
                continue;
            };
            let Some(dir) = mounts.dir(controllers, above) else {
                continue;
            };
            let mut parents = vec![dir];
            if is_by_user {
                parents = children(&parents[0], "uid_");
            }
            for parent in parents {
                for other in children(&parent, "job_") {
                    let name = other.file_name().unwrap_or_default().to_string_lossy();
                    let number = name.trim_start_matches("job_");
                    if number != job.as_str() && has_processes(&other, DEPTH) {
                        return Ok(Some(number.to_owned()));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Splits the text of /proc/PID/cgroup (cgroups(7)) into controllers and paths.
fn hierarchies(text: &str) -> BTreeMap<&str, &str> {
    let fields = text.lines().map(|line| line.splitn(3, ':'));
    fields
        .filter_map(|mut fields| Some((fields.nth(1)?, fields.next()?)))
        .collect()
}

/// Returns what of a path is above the job's directories of all users, and whether there is one
/// directory for each user.
fn above_job<'a>(path: &'a str, job: &JobId) -> Option<(&'a str, bool)> {
    let at = path.find(&format!("/job_{job}/"))?;
    let above = path.get(..at)?;
    let (parent, last) = above.rsplit_once('/')?;
    Some(if last.starts_with("uid_") {
        (parent, true)
    } else {
        (above, false)
    })
}

/// Where cgroups are mounted.
struct Mounts(Vec<Mount>);

struct Mount {
    /// The directory of the hierarchy that is mounted.
    root: String,
    at: PathBuf,
    is_v2: bool,
    options: Vec<String>,
}

fn mounts() -> Result<Mounts> {
    let path = "/proc/self/mountinfo";
    let text = read_proc(path).step("read", path)?;
    Ok(Mounts::parse(&String::from_utf8_lossy(&text)))
}

impl Mounts {
    /// Reads the text of mountinfo (proc_pid_mountinfo(5)).
    fn parse(text: &str) -> Self {
        let mount = |line: &str| {
            let (mount, source) = line.split_once(" - ")?;
            let mut source = source.split(' ');
            let kind = source.next()?;
            let mut mount = mount.split(' ').skip(3);
            kind.starts_with("cgroup").then_some(Mount {
                root: mount.next()?.to_owned(),
                at: mount.next()?.into(),
                is_v2: kind == "cgroup2",
                options: source.nth(1)?.split(',').map(str::to_owned).collect(),
            })
        };
        Self(text.lines().filter_map(mount).collect())
    }

    /// Returns the directory of a cgroup.
    fn dir(&self, controllers: &str, path: &str) -> Option<PathBuf> {
        self.0.iter().find_map(|mount| {
            let has = |name: &str| mount.options.iter().any(|option| option == name);
            let is_its = match controllers {
                "" => mount.is_v2,
                names => !mount.is_v2 && names.split(',').all(has),
            };
            let below = path.strip_prefix(mount.root.trim_end_matches('/'))?;
            let is_below = below.is_empty() || below.starts_with('/');
            (is_its && is_below).then(|| mount.at.join(below.trim_start_matches('/')))
        })
    }
}

fn children(dir: &Path, beginning: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let wanted = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(beginning);
    entries
        .filter(|entry| wanted(&entry.file_name()))
        .map(|entry| entry.path())
        .collect()
}

/// True if a process is in the cgroup or below it: what jobs leave behind may stay empty.
fn has_processes(dir: &Path, depth: usize) -> bool {
    let is_used = read_record(dir.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty());
    let below = || children(dir, "").into_iter().filter(|child| child.is_dir());
    is_used || depth > 0 && below().any(|child| has_processes(&child, depth - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
        30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - tmpfs tmpfs rw\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
        32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
        33 30 0:29 /part /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";

    #[test]
    fn cgroups_are_found_where_they_are_mounted() {
        let mounts = Mounts::parse(MOUNTINFO);
        let table = [
            ("", "/a/b", Some("/sys/fs/cgroup/unified/a/b")),
            ("cpu,cpuacct", "/a", Some("/sys/fs/cgroup/cpu,cpuacct/a")),
            ("freezer", "/part/a", Some("/sys/fs/cgroup/freezer/a")),
            ("freezer", "/partial", None),
            ("freezer", "/other", None),
            ("memory", "/a", None),
        ];
        for (controllers, path, expected) in table {
            let found = mounts.dir(controllers, path);
            assert_eq!(
                found.as_deref(),
                expected.map(Path::new),
                "{controllers}:{path}"
            );
        }
    }

    #[test]
    fn all_jobs_of_a_node_are_side_by_side() {
        let job = JobId::parse("17").unwrap();
        let table = [
            (
                "/slurm_n1/uid_5/job_17/step_extern/task_0",
                Some(("/slurm_n1", true)),
            ),
            (
                "/system.slice/slurmstepd.scope/job_17/step_extern/user/task_special",
                Some(("/system.slice/slurmstepd.scope", false)),
            ),
            ("/slurm/uid_5/job_171/step_extern", None),
            ("/", None),
        ];
        for (path, expected) in table {
            assert_eq!(above_job(path, &job), expected, "{path}");
        }
        let text = "5:freezer:/a:b\n0::/c\n\nx";
        let expected = BTreeMap::from([("freezer", "/a:b"), ("", "/c")]);
        assert_eq!(hierarchies(text), expected);
    }
}

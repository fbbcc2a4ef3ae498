//! Who called, and from within which job? Answered by the kernel, never by the environment.

use std::fs;

use rustix::process::{getgid, getuid};
use shifter_core::ids::JobId;

use crate::error::{Context, Error, Result};
use crate::process::{self, read_record};
use crate::sys;

/// The user who started the setuid program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Real uid.
    pub uid: u32,
    /// Real gid.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Caller {
    /// Identifies the caller as one for whom containers run: neither the uid nor any group is
    /// root's.
    ///
    /// # Errors
    /// [`Error::Denied`] for root and for users whose primary group is root's.
    pub fn identify() -> Result<Self> {
        let mut caller = Self::identify_any()?;
        if caller.uid == 0 || caller.gid == 0 {
            return Err(Error::Denied {
                what: "containers run for users, not for root or group root".into(),
                hint: Some("run shifter as an ordinary user"),
            });
        }
        caller.groups.retain(|gid| *gid != 0);
        Ok(caller)
    }

    /// Identifies the caller, whoever it is, for work without privileges.
    pub fn identify_any() -> Result<Self> {
        let groups = sys::groups().step("read", "groups")?;
        let groups = groups.into_iter().map(|gid| gid.as_raw()).collect();
        Ok(Self {
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
            groups,
        })
    }

    /// Returns all groups, the primary one first.
    pub fn gids(&self) -> Vec<u32> {
        let mut gids = vec![self.gid];
        gids.extend(&self.groups);
        gids
    }
}

/// Where in the batch system a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The job.
    pub job: JobId,
    /// The number of its step, if it has one: the batch script and the extern step have none.
    pub step: Option<u32>,
}

/// Returns the job whose cgroup, or whose step daemon, contains the process.
///
/// `is_plausible` only saves work: without it a process is not asked for its ancestors.
pub fn place_of_process(uid: u32, is_plausible: bool) -> Option<Place> {
    let cgroups = read_record("/proc/self/cgroup").unwrap_or_default();
    let cgroups = String::from_utf8_lossy(&cgroups);
    let job =
        job_in_cgroups(&cgroups, uid).or_else(|| is_plausible.then(job_of_ancestor).flatten())?;
    let step = step_in_cgroups(&cgroups, &job);
    Some(Place { job, step })
}

/// Returns the job that a process of Torque or PBS says it is in: these put jobs into no cgroup.
///
/// Whoever believes it compares the user of that job with the process's own: somebody can join
/// another job of the same user so, and nothing else. Slurm's ids have no dot, so none of its jobs
/// is ever named here.
pub fn claimed_place(environment: &[(Vec<u8>, Vec<u8>)]) -> Option<Place> {
    let (_, value) = environment.iter().find(|(name, _)| name == b"PBS_JOBID")?;
    let job = JobId::parse(std::str::from_utf8(value).ok()?).ok()?;
    let is_torques = job.as_str().contains('.');
    is_torques.then_some(Place { job, step: None })
}

/// Finds a job's step in the text of /proc/self/cgroup, of which [`job_in_cgroups`] has found that
/// it is the job's.
fn step_in_cgroups(text: &str, job: &JobId) -> Option<u32> {
    let place = format!("/job_{job}/step_");
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(&place)?;
        rest.split('/').next()?.parse().ok()
    })
}

/// Finds Slurm's job in the text of /proc/self/cgroup.
///
/// v1: `5:freezer:/slurm_n1/uid_2001/job_17/step_0/task_0`, also `/slurm/uid_…`;
/// v2: `0::/system.slice/slurmstepd.scope/job_17/step_0/user/task_0`, the scope's name with the
/// node's where several daemons share a machine. Both hierarchies belong to root from the top,
/// so a user cannot make a directory of such a name; only the exact place counts.
pub fn job_in_cgroups(text: &str, uid: u32) -> Option<JobId> {
    let user = format!("uid_{uid}");
    jobs_in_cgroups(text, |found| found == user).next()
}

/// True if the text of /proc/PID/cgroup is that of a process of Slurm's job, whoever's it is.
pub fn names_job(text: &str, job: &JobId) -> bool {
    jobs_in_cgroups(text, |found| found.starts_with("uid_")).any(|found| found == *job)
}

fn jobs_in_cgroups(text: &str, is_user: impl Fn(&str) -> bool) -> impl Iterator<Item = JobId> {
    text.lines().filter_map(move |line| {
        let path = line.splitn(3, ':').nth(2)?;
        let parts: Vec<&str> = path.split('/').collect();
        let job = match parts[..] {
            ["", top, user, job, ..] if top.starts_with("slurm") && is_user(user) => job,
            ["", "system.slice", scope, job, ..] if scope.ends_with("slurmstepd.scope") => job,
            _ => return None,
        };
        let number = job.strip_prefix("job_")?;
        number
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| JobId::parse(number).ok())
            .flatten()
    })
}

/// Without cgroups: the job of the root-owned slurmstepd that the process descends from.
fn job_of_ancestor() -> Option<JobId> {
    ancestors().find_map(job_of_slurmstepd)
}

/// Names the slurmd that the process descends from, as [`process::name_of`] does.
pub fn slurmd() -> Option<String> {
    let pid = ancestors().find(|pid| is_roots_program(*pid, "slurmd"))?;
    process::name_of(pid.try_into().ok()?)
}

/// Names the slurmstepd that the process is, or is a part of: newer ones call plugins in children of
/// their own.
pub fn slurmstepd() -> Option<String> {
    let own = std::iter::once(std::process::id());
    let daemons = own.chain(ancestors());
    let pid = daemons
        .take_while(|pid| is_roots_program(*pid, "slurmstepd"))
        .last()?;
    process::name_of(pid.try_into().ok()?)
}

/// Returns the processes that this one descends from, the nearest first, without the first of all.
fn ancestors() -> impl Iterator<Item = u32> {
    let above = |pid: &u32| {
        let stat = read_record(format!("/proc/{pid}/stat")).ok()?;
        parent(&String::from_utf8_lossy(&stat)).filter(|pid| *pid > 1)
    };
    // Deep enough for any shell script; a cycle is impossible but costs nothing to exclude.
    std::iter::successors(Some(std::process::id()), above)
        .skip(1)
        .take(256)
}

/// Returns the job of a process that is slurmstepd.
pub fn job_of_slurmstepd(pid: u32) -> Option<JobId> {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    job_in_title(&cmdline).filter(|_| is_roots_program(pid, "slurmstepd"))
}

/// True if root runs the program of Slurm's: a user can fake the title of a setuid program, but
/// neither its owner nor its file.
fn is_roots_program(pid: u32, name: &str) -> bool {
    let file = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let file = file.file_name().unwrap_or_default().to_string_lossy();
    if !is_program(&file, name) {
        return false;
    }
    let status = read_record(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uids: Vec<&str> = uids.unwrap_or_default().split_ascii_whitespace().collect();
    uids == ["0"; 4]
}

/// True if the file of a running program, as the kernel names it, is this one of Slurm's: Debian
/// calls slurmd slurmd-wlm, and a package that is updated replaces it under the running one.
fn is_program(file: &str, name: &str) -> bool {
    let file = file.strip_suffix(" (deleted)").unwrap_or(file);
    file.strip_suffix("-wlm").unwrap_or(file) == name
}

/// Finds the parent in the text of /proc/PID/stat, whose second field may hold anything.
pub fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Finds the job in slurmstepd's process title: `slurmstepd: [17.0]`, `slurmstepd: [17.batch]`.
fn job_in_title(cmdline: &[u8]) -> Option<JobId> {
    let text = std::str::from_utf8(cmdline).ok()?;
    let id = text.strip_prefix("slurmstepd: [")?;
    let number = id.split(['.', ']']).next()?;
    number
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| JobId::parse(number).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Option<String> {
        job_in_cgroups(text, 2001).map(String::from)
    }

    #[test]
    fn finds_the_job_where_only_root_can_have_put_it() {
        assert_eq!(
            job("4:freezer:/slurm/uid_2001/job_17/step_0/task_1\n").as_deref(),
            Some("17")
        );
        assert_eq!(
            job("4:cpu:/\n3:freezer:/slurm_n1/uid_2001/job_5/step_batch").as_deref(),
            Some("5")
        );
        let v2 = "0::/system.slice/slurmstepd.scope/job_9/step_0/user/task_0\n";
        assert_eq!(job(v2).as_deref(), Some("9"));
        let v2 = "0::/system.slice/n1_slurmstepd.scope/job_9/step_0/user/task_0\n";
        assert_eq!(job(v2).as_deref(), Some("9"));
        for forged in [
            "",
            "0::/\n",
            "4:freezer:/slurm/uid_2002/job_17/step_0",
            "0::/user.slice/user-2001.slice/slurmstepd.scope/job_9/step_0",
            "0::/user.slice/system.slice/slurmstepd.scope/job_9",
            "4:freezer:/x/slurm/uid_2001/job_17",
            "4:freezer:/slurm/uid_2001/job_../x",
            "4:freezer:/slurm/uid_2001/job_",
        ] {
            assert_eq!(job(forged), None, "{forged}");
        }
    }

    #[test]
    fn a_job_is_found_whoever_it_belongs_to() {
        let job = JobId::parse("17").unwrap();
        for (text, expected) in [
            ("4:freezer:/slurm/uid_2001/job_17/step_0/task_1\n", true),
            (
                "5:cpu:/\n4:freezer:/slurm_n1/uid_5/job_17/step_extern",
                true,
            ),
            ("0::/system.slice/slurmstepd.scope/job_17/step_0/user", true),
            ("4:freezer:/slurm/uid_2001/job_177/step_0", false),
            ("4:freezer:/slurm/uid_2001/job_1", false),
            ("0::/user.slice/job_17/x", false),
        ] {
            assert_eq!(names_job(text, &job), expected, "{text}");
        }
    }

    #[test]
    fn slurms_programs_are_known_by_their_files() {
        for (file, expected) in [
            ("slurmd", true),
            ("slurmd-wlm", true),
            ("slurmd-wlm (deleted)", true),
            ("slurmd (deleted)", true),
            ("slurmstepd", false),
            ("slurmd-wlm2", false),
            ("", false),
        ] {
            assert_eq!(is_program(file, "slurmd"), expected, "{file}");
        }
        assert!(is_program("slurmstepd-wlm", "slurmstepd"));
    }

    #[test]
    fn torques_jobs_are_named_by_the_environment() {
        let claimed = |value: &str| {
            let environment = [(b"PBS_JOBID".to_vec(), value.as_bytes().to_vec())];
            claimed_place(&environment).map(|place| String::from(place.job))
        };
        assert_eq!(claimed("1[2].server").as_deref(), Some("1[2].server"));
        for other in ["17", "", "../x.y", ".17", "a b.c"] {
            assert_eq!(claimed(other), None, "{other}");
        }
        assert_eq!(claimed_place(&[]), None);
    }

    #[test]
    fn finds_the_step() {
        let job = JobId::parse("17").unwrap();
        let step = |text: &str| step_in_cgroups(text, &job);
        assert_eq!(
            step("4:freezer:/slurm/uid_2001/job_17/step_3/task_1\n"),
            Some(3)
        );
        let v2 = "0::/system.slice/slurmstepd.scope/job_17/step_0/user/task_0\n";
        assert_eq!(step(v2), Some(0));
        for none in [
            "",
            "4:x:/slurm/uid_2001/job_17/step_batch",
            "4:x:/slurm/uid_1/job_1/step_3",
        ] {
            assert_eq!(step(none), None, "{none}");
        }
    }

    #[test]
    fn reads_titles_and_parents() {
        let title = |text: &[u8]| job_in_title(text).map(String::from);
        assert_eq!(title(b"slurmstepd: [17.batch]\0").as_deref(), Some("17"));
        assert_eq!(title(b"slurmstepd: [17.0]").as_deref(), Some("17"));
        assert_eq!(title(b"/usr/sbin/slurmstepd\0"), None);
        assert_eq!(title(b"slurmstepd: [x.0]"), None);
        assert_eq!(parent("12 (a) b) (c) S 7 1 1 0"), Some(7));
        assert_eq!(parent("12"), None);
    }
}

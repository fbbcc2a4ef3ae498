//! Hooks as Torque's mom runs them: which one where, with which arguments, environment, groups,
//! descriptors and signals, for how long, and what its end means for the job.
//!
//! The programs are real; what runs them is `tests/torque/mom-stand-in.py`, which says how it was
//! taken from a real mom.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::call::Call;
use crate::sandbox::Sandbox;
use crate::torque::{TorqueJob, equip};
use crate::world;

/// A mom's own directory on its node.
pub const HOME: &str = "/var/spool/torque";

const DRIVER: &str = "/opt/torque/sbin/mom-stand-in";

/// One of the mom's hooks of root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// On the first node, before the job.
    Prologue,
    /// On the other nodes, before that.
    PrologueParallel,
    /// On the first node, after the job.
    Epilogue,
    /// On the other nodes, before that.
    EpilogueParallel,
    /// On the first node, as the user, when the job is deleted.
    EpiloguePrecancel,
}

/// How a hook is run unless nothing is out of the ordinary.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Whether the job is interactive, so that its output is a terminal.
    pub is_interactive: bool,
    /// `$prologalarm`; the hook's session is killed 10 s earlier.
    pub alarm_secs: u32,
    /// Kills the session after so many seconds.
    pub kill_at: Option<f64>,
    /// What the job ended with.
    pub exit_code: i32,
}

/// What came of a hook.
#[derive(Clone, Debug)]
pub struct HookEnd {
    /// The exit status.
    pub exit: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the mom's patience was at its end.
    pub is_late: bool,
    /// How long it ran.
    pub secs: f64,
    /// What it said: the job's standard error, or terminal.
    pub said: String,
    /// What is in the job's standard output, which belongs to the user's program alone.
    pub output: String,
}

/// What a mom does after a prologue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It starts the job.
    Starts,
    /// The job is aborted; of what the prologue said nothing is delivered.
    Aborted,
    /// The job goes back to the queue, and is tried again at once.
    Requeued,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            is_interactive: false,
            alarm_secs: 300,
            kill_at: None,
            exit_code: 0,
        }
    }
}

impl Hook {
    /// Returns the file's name in mom_priv.
    pub fn name(self) -> &'static str {
        match self {
            Hook::Prologue => "prologue",
            Hook::PrologueParallel => "prologue.parallel",
            Hook::Epilogue => "epilogue",
            Hook::EpilogueParallel => "epilogue.parallel",
            Hook::EpiloguePrecancel => "epilogue.precancel",
        }
    }

    fn is_before(self) -> bool {
        matches!(self, Hook::Prologue | Hook::PrologueParallel)
    }
}

impl HookEnd {
    /// Returns what the mom makes of a prologue's end. A death by a signal counts as success.
    pub fn verdict(&self) -> Verdict {
        match self.exit {
            Some(0) | None => Verdict::Starts,
            Some(1) => Verdict::Aborted,
            Some(_) => Verdict::Requeued,
        }
    }

    /// Fails unless the hook ended by itself with this status, and left the job's output alone.
    pub fn expect(self, status: i32) -> Result<Self> {
        ensure!(
            self.exit == Some(status) && !self.is_late,
            "status {status} expected: {self:?}"
        );
        ensure!(self.output.is_empty(), "{self:?}");
        Ok(self)
    }
}

/// Prepares a node's mom: its directories, its hooks, and the driver.
pub fn install(node: &Sandbox, hooks: &[(&str, &str)]) -> Result<()> {
    fs::create_dir_all("/opt/torque/sbin")?;
    let from = world::checkout().join("tests/torque/mom-stand-in.py");
    fs::copy(&from, DRIVER).with_context(|| format!("{}", from.display()))?;
    equip(|script| node.shell(script), hooks)
}

/// Runs a hook on a node for a job, as its mom would.
pub fn run(node: &Sandbox, hook: Hook, job: &TorqueJob, manner: Manner) -> Result<HookEnd> {
    let first = job.nodes.first().context("a job has nodes")?;
    let number = job.nodes.iter().position(|(name, _)| name == node.name());
    prepare(node, hook, job)?;
    let path = format!("{HOME}/mom_priv/{}", hook.name());
    let mut argv = vec![path.clone()];
    argv.extend(arguments(hook, job, manner.exit_code));
    let mut env = vec![
        ("LANG", "C.UTF-8".to_owned()),
        ("PATH", "/bin:/usr/bin".to_owned()),
        ("PBS_MSHOST", first.0.clone()),
        ("PBS_NODENUM", number.unwrap_or(0).to_string()),
        (
            "PBS_NP",
            job.nodes
                .iter()
                .map(|node| node.1)
                .sum::<usize>()
                .to_string(),
        ),
        ("PBS_NUM_NODES", job.nodes.len().to_string()),
        ("PBS_NUM_PPN", first.1.to_string()),
        ("PBS_O_WORKDIR", format!("/scratch/{}", job.user.name())),
        ("PBS_RESOURCE_NODES", job.nodes_resource()),
    ];
    if !hook.name().ends_with(".parallel") {
        env.push(("PBS_NODEFILE", node_file(job)));
    }
    if let Some(gres) = &job.gres {
        env.push(("PBS_RESOURCE_GRES", gres.clone()));
    }
    let env: serde_json::Map<String, Value> = env
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let (uid, gid) = match hook {
        Hook::EpiloguePrecancel => (job.user.uid(), job.user.gid()),
        _ => (0, 0),
    };
    let order = json!({
        "path": path, "argv": argv, "env": env, "cwd": format!("{HOME}/mom_priv"),
        "groups": groups(job)?, "uid": uid, "gid": gid,
        "is_deaf": hook == Hook::EpilogueParallel,
    });
    drive(node, job, manner, order)
}

/// Runs a classic hook as the mom of OpenPBS 23.06 does: three arguments before the job, nothing about it
/// in the environment, 30 s.
pub fn run_openpbs(node: &Sandbox, hook: Hook, job: &TorqueJob) -> Result<HookEnd> {
    prepare(node, hook, job)?;
    let path = format!("{HOME}/mom_priv/{}", hook.name());
    let mut argv = vec![path.clone()];
    argv.extend(arguments(hook, job, 0));
    // The last one is Torque's alone.
    argv.truncate(if hook.is_before() { 4 } else { 11 });
    let home = format!("/home/{}", job.user.name());
    let env = json!({
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PBS_EXEC": "/opt/pbs", "PBS_HOME": HOME,
        "PBS_JOBDIR": home,
    });
    let order = json!({
        "path": path, "argv": argv, "env": env, "cwd": format!("{HOME}/mom_priv"),
        "groups": [0], "uid": 0, "gid": 0, "is_deaf": false,
    });
    let manner = Manner {
        alarm_secs: 40,
        ..Manner::default()
    };
    drive(node, job, manner, order)
}

/// Has the driver run a hook on a node.
fn drive(node: &Sandbox, job: &TorqueJob, manner: Manner, mut order: Value) -> Result<HookEnd> {
    let prefix = format!("{HOME}/spool/{}", plain(&job.id));
    order["output"] = (!manner.is_interactive).then_some(&*prefix).into();
    order["limit"] = (f64::from(manner.alarm_secs) - 10.0).into();
    order["kill_at"] = manner.kill_at.into();
    let patience = u64::from(manner.alarm_secs) + 30;
    let ran = node
        .call(["python3", DRIVER])
        .input(order.to_string())
        .timeout(patience)
        .output()?
        .success()?;
    let end: Value = serde_json::from_str(&ran.stdout).with_context(|| format!("{ran}"))?;
    let number = |name: &str| end[name].as_i64().and_then(|it| i32::try_from(it).ok());
    let terminal = end["terminal"].as_str().unwrap_or_default();
    let read = |kind: &str| {
        let bytes = fs::read(node.path(&format!("{prefix}.{kind}"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(HookEnd {
        exit: number("exit"),
        signal: number("signal"),
        is_late: end["is_late"] == true,
        secs: end["secs"].as_f64().unwrap_or_default(),
        said: terminal.to_owned() + &ran.stderr + &read("ER"),
        output: read("OU"),
    })
}

/// What a mom writes before it calls a hook.
fn prepare(node: &Sandbox, hook: Hook, job: &TorqueJob) -> Result<()> {
    let checks = format!(
        "f=$(readlink -f {HOME}/mom_priv/{}) && [ -f \"$f\" ] && stat -c '%u %a' \"$f\"",
        hook.name()
    );
    let seen = node.shell(&checks).ok()?;
    let (owner, mode) = seen.trim().split_once(' ').unwrap_or_default();
    let mode = u32::from_str_radix(mode, 8)?;
    ensure!(
        owner == "0" && mode & 0o500 == 0o500 && mode & 0o022 == 0,
        "a mom would not run this {}: {seen}",
        hook.name()
    );
    for kind in ["OU", "ER"] {
        // Each hook's words by themselves; a mom lets them pile up.
        let file = format!("{HOME}/spool/{}.{kind}", plain(&job.id));
        let _ = fs::remove_file(node.path(&file));
    }
    Ok(fs::write(node.path(&node_file(job)), job.node_file())?)
}

fn arguments(hook: Hook, job: &TorqueJob, exit_code: i32) -> Vec<String> {
    let user = job.user.name().to_owned();
    let mut argv = vec![job.id.clone(), user.clone(), user, job.name.clone()];
    let script = format!("{HOME}/mom_priv/jobs/{}.SC", job.id);
    if hook.is_before() {
        argv.extend([job.resources(), "batch".into(), "proj1".into(), script]);
        return argv;
    }
    let is_sister = hook == Hook::EpilogueParallel;
    let session = if is_sister { "0" } else { "4711" };
    let exit_code = if is_sister { 0 } else { exit_code };
    argv.extend([
        session.into(),
        job.resources(),
        "cput=00:00:00,mem=0kb,vmem=0kb,walltime=00:00:01".into(),
        "batch".into(),
        "proj1".into(),
        exit_code.to_string(),
        script,
    ]);
    argv
}

fn groups(job: &TorqueJob) -> Result<Vec<u32>> {
    let ids = Call::new(["id", "-G", job.user.name()]).ok()?;
    let ids = ids.split_whitespace().map(str::parse);
    Ok(ids.collect::<Result<_, _>>()?)
}

fn node_file(job: &TorqueJob) -> String {
    format!("{HOME}/aux/{}", plain(&job.id))
}

/// A job's id as a file name; forged ones are none.
fn plain(id: &str) -> String {
    match id {
        "" | "." | ".." => "forged".into(),
        id => id.replace('/', "_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::User;

    #[test]
    fn arguments_are_those_of_a_real_mom() {
        let job = TorqueJob::new("3.server", User::Alice, &["n2", "n3"]);
        let argv = arguments(Hook::Prologue, &job, 0);
        assert_eq!(argv.len(), 8);
        assert_eq!(argv[0], "3.server");
        assert_eq!(argv[7], "/var/spool/torque/mom_priv/jobs/3.server.SC");
        let argv = arguments(Hook::Epilogue, &job, 271);
        assert_eq!(argv.len(), 11);
        assert_eq!(argv[9], "271");
        let argv = arguments(Hook::EpilogueParallel, &job, 271);
        assert_eq!((&*argv[4], &*argv[9]), ("0", "0"));
    }

    #[test]
    fn end_of_a_prologue_means_what_it_means_to_a_mom() {
        let end = |exit, signal| HookEnd {
            exit,
            signal,
            is_late: false,
            secs: 0.0,
            said: String::new(),
            output: String::new(),
        };
        for (exit, signal, verdict) in [
            (Some(0), None, Verdict::Starts),
            (Some(1), None, Verdict::Aborted),
            (Some(2), None, Verdict::Requeued),
            (Some(255), None, Verdict::Requeued),
            (None, Some(9), Verdict::Starts),
        ] {
            assert_eq!(end(exit, signal).verdict(), verdict);
        }
    }
}

//! Runs the jobs of a soak, several at a time, and looks at each one's end.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::cluster::recent_trouble;

use super::plan::{Command, Deed, Plan, Restart};
use crate::bench::Bench;

/// Jobs that are not over.
const AT_ONCE: usize = 8;

/// Time between two looks at Slurm's list.
const TICK: Duration = Duration::from_millis(100);

/// After that long a job whose slurmd was restarted is stuck: Slurm itself has lost it.
const STUCK: Duration = Duration::from_secs(30);

/// After that long any other job is.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often slurmd's memory is looked at.
const SIZES: usize = 10;

/// What came of a soak.
#[derive(Debug, Default)]
pub struct Story {
    /// Every job.
    pub jobs: Vec<Done>,
    /// Slurmds that were restarted: of which node, from 0, and how.
    pub restarts: Vec<(usize, Restart)>,
    /// How many jobs had to be cancelled because Slurm had lost them.
    pub stuck: usize,
    /// KiB of the slurmd that was not restarted, from the first jobs to the last.
    pub sizes: Vec<u64>,
    /// What was not as it should be.
    pub complaints: Vec<String>,
}

/// A job that is over.
#[derive(Debug)]
pub struct Done {
    /// What it was to be.
    pub plan: Plan,
    /// Its number, if it came to one.
    pub id: Option<String>,
    /// True if a slurmd was restarted in its time: how it ends is Slurm's business.
    pub is_excused: bool,
}

struct Running {
    plan: Plan,
    command: Child,
    log: String,
    began: Instant,
    is_cancelled: bool,
    is_excused: bool,
    is_stuck: bool,
}

/// A line of Slurm's list of jobs.
#[derive(Clone, Debug)]
struct Listed {
    id: String,
    state: String,
}

/// Runs the jobs to their end.
pub fn run(bench: &mut Bench, plans: &[Plan]) -> Result<Story> {
    let mut story = Story::default();
    let mut running: Vec<Running> = Vec::new();
    let mut coming = plans.iter();
    loop {
        while running.len() < AT_ONCE
            && let Some(plan) = coming.next()
        {
            running.push(Running::submit(bench, plan)?);
            if let Some((node, restart)) = plan.restart {
                again(bench, node, restart)?;
                story.restarts.push((node, restart));
                running.iter_mut().for_each(|job| job.is_excused = true);
            }
        }
        if running.is_empty() {
            return Ok(story);
        }
        let listed = list()?;
        for mut job in std::mem::take(&mut running) {
            match job.look(bench, listed.get(&job.plan.name()), &mut story)? {
                None => running.push(job),
                Some(done) => {
                    story.jobs.push(done);
                    if story.jobs.len() % (plans.len() / SIZES).max(1) == 0 {
                        story
                            .sizes
                            .push(bench.cluster.node("n1")?.slurmd_rss_kib()?);
                    }
                }
            }
        }
        sleep(TICK);
    }
}

/// Restarts a node's slurmd, and waits until it listens.
fn again(bench: &mut Bench, node: usize, restart: Restart) -> Result<()> {
    let node = bench.cluster.node_mut(&format!("n{}", node + 1))?;
    match restart {
        Restart::Killed => node.restart_slurmd()?,
        Restart::Ended => node.end_and_start_slurmd()?,
    }
    let port = node.port();
    wait_for("slurmd to listen", 30, || {
        Ok(TcpStream::connect(("127.0.0.1", port)).ok())
    })?;
    Ok(())
}

/// Asks Slurm for all jobs that it remembers, by name.
fn list() -> Result<BTreeMap<String, Listed>> {
    let text = Call::new(["squeue", "-h", "-a", "-t", "all", "-o", "%j %i %T"]).ok()?;
    let parse = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let (name, id, state) = (words.next()?, words.next()?, words.next()?);
        Some((name, Listed { id, state }))
    };
    Ok(text.lines().filter_map(parse).collect())
}

impl Running {
    fn submit(bench: &Bench, plan: &Plan) -> Result<Self> {
        let log = format!("/var/log/slurm/{}.out", plan.name());
        let call = Call::new(words(bench, plan)).by(plan.user).timeout(0);
        Ok(Self {
            plan: plan.clone(),
            command: call.start(&log)?,
            log,
            began: Instant::now(),
            is_cancelled: false,
            is_excused: false,
            is_stuck: false,
        })
    }

    /// Cancels the job when its time has come; returns it when it is over.
    fn look(
        &mut self,
        bench: &Bench,
        listed: Option<&Listed>,
        story: &mut Story,
    ) -> Result<Option<Done>> {
        let has_ended = self.command.try_wait()?;
        let age = self.began.elapsed();
        let is_due = self.plan.cancelled.is_some_and(|after| age >= after);
        if let Some(listed) = listed
            && is_due
            && !self.is_cancelled
        {
            cancel(&listed.id)?;
            self.is_cancelled = true;
        }
        let patience = if self.is_excused { STUCK } else { PATIENCE };
        if age > patience && !self.is_stuck {
            self.is_stuck = true;
            story.stuck += 1;
            if !self.is_excused {
                story.complaints.push(format!(
                    "job {} has no end: {listed:?} {:?}\n{}",
                    self.plan.name(),
                    self.plan,
                    recent_trouble()
                ));
            }
            if let Some(listed) = listed {
                cancel(&listed.id)?;
            }
            // srun may wait for a slurmd that knows nothing of it.
            Call::new(["kill", "-TERM", &self.command.id().to_string()]).output()?;
        }
        // Slurm asks slurmd again for a job's end every two minutes.
        if age > patience + 2 * PATIENCE {
            bail!("job {} does not die: {listed:?}", self.plan.name());
        }
        let is_over = match listed {
            Some(listed) => !["PENDING", "CONFIGURING", "RUNNING", "COMPLETING"]
                .contains(&listed.state.as_str()),
            // Slurm's list is from before the command's end.
            None => has_ended.is_some() && (self.is_excused || age > PATIENCE / 10),
        };
        if has_ended.is_none() || !is_over {
            return Ok(None);
        }
        if !self.is_excused && !self.is_stuck {
            story.complaints.extend(self.complaint(bench, listed)?);
        }
        Ok(Some(Done {
            plan: self.plan.clone(),
            id: listed.map(|listed| listed.id.clone()),
            is_excused: self.is_excused,
        }))
    }

    /// Returns what is wrong about the job's end.
    fn complaint(&self, bench: &Bench, listed: Option<&Listed>) -> Result<Option<String>> {
        let said = fs::read_to_string(&self.log)?;
        let output = match self.plan.command {
            Command::Sbatch => fs::read_to_string(output_file(&self.plan)).unwrap_or_default(),
            _ => said.clone(),
        };
        let markers = ["a", "b"];
        let is_marker = |line: &&str| markers.contains(line) || *line == "none";
        let seen = output.lines().filter(is_marker);
        let seen: String = seen.map(|line| format!("{line}\n")).collect();
        let state = listed.map(|listed| listed.state.as_str());
        let expected = (Some(self.plan.state()), self.plan.expected(markers));
        Ok(((state, &seen) != (expected.0, &expected.1)).then(|| {
            format!(
                "expected {expected:?} of {:?}, found {listed:?}\n{said}{output}{:?}",
                self.plan,
                bench.cluster.states()
            )
        }))
    }
}

fn cancel(id: &str) -> Result<()> {
    // It may be over already.
    Call::new(["scancel", "--quiet", id]).output().map(drop)
}

fn output_file(plan: &Plan) -> String {
    format!("/scratch/{}/{}.out", plan.user.name(), plan.name())
}

/// Composes the command that submits a job.
fn words(bench: &Bench, plan: &Plan) -> Vec<String> {
    let images = [bench.a.option(), bench.b.option()];
    let look = "cat /etc/marker 2>/dev/null || echo none";
    let body = match plan.deed {
        Deed::Look | Deed::OwnImage | Deed::Mistake => look.to_owned(),
        Deed::Strays => format!(
            "{look}; setsid sh -c 'trap : TERM; sleep 1001 & sleep 1002' >/dev/null 2>&1 & sleep 0.1"
        ),
        Deed::Fail => format!("{look}; exit 3"),
        Deed::Wait => "sleep 100".to_owned(),
    };
    let nodes = plan.nodes;
    let mut words = vec![
        format!("--job-name={}", plan.name()),
        format!("-N{nodes}"),
        format!("-n{nodes}"),
    ];
    words.extend(plan.image.map(|image| images[image].clone()));
    if plan.autoshift {
        words.push("--autoshift".to_owned());
    }
    if plan.deed == Deed::Mistake {
        words.push(format!("--volume=/scratch/{}/none:/mnt", plan.user.name()));
    }
    let own = (plan.deed == Deed::OwnImage).then(|| plan.image.map_or(0, |image| 1 - image));
    let is_prefixed = own.is_some() || plan.image.is_some() && !plan.autoshift;
    let mut task = vec!["sh".to_owned(), "-c".into(), body.clone()];
    if is_prefixed {
        task.insert(0, "shifter".into());
    }
    let mut step = vec!["srun".to_owned()];
    step.extend(own.map(|own| images[own].clone()));
    step.extend(task.clone());
    match plan.command {
        Command::Srun => {
            words.insert(0, "srun".into());
            words.extend(task);
        }
        Command::Salloc => {
            words.insert(0, "salloc".into());
            words.extend(step);
        }
        Command::Sbatch => {
            words.insert(0, "sbatch".into());
            // Where slurmd is restarted Slurm would start it again, minutes later.
            words.push("--no-requeue".into());
            words.push(format!("--output={}", output_file(plan)));
            let quoted = |word: String| format!("'{}'", word.replace('\'', r"'\''"));
            let script = match plan.autoshift {
                true => body,
                false => step.into_iter().map(quoted).collect::<Vec<_>>().join(" "),
            };
            words.push(format!("--wrap={script}"));
        }
    }
    words
}

//! One command on all nodes of a job, through the site's tool, and what became of each node.
//!
//! The tool's exit code counts nothing: pdsh ends with 0 whatever happened. A node is ready if it
//! has said so itself, in a line or in a file; one that has not said anything when the tool ends
//! or the time is over has failed. The launch node's own part runs without the tool.

pub mod gather;
mod process;
pub mod template;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use shifter_core::sanitize;
use thiserror::Error;

use self::gather::{Gathering, NodeState};
use self::process::{Event, Processes};
use self::template::{Report, Template, TemplateError, Values};

/// How long a tool is waited for when every node has spoken.
const AFTERGLOW: Duration = Duration::from_secs(3);

/// How often to look whether the work is still wanted.
const LOOK: Duration = Duration::from_millis(250);

/// Says why nothing could be run.
#[derive(Debug, Error)]
pub enum FanoutError {
    /// The template cannot be filled in.
    #[error("cannot use the fan-out tool")]
    Template(#[from] TemplateError),
    /// A program could not be started or heard.
    #[error("cannot run '{}'", sanitize::text(.program))]
    Run {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// There are nodes beside this one, and no tool.
    #[error("the job has {0} nodes, and torque.fanout names no tool to reach them")]
    NoTool(usize),
}

/// What is to run where.
pub struct Plan<'a> {
    /// The site's tool, if it has one.
    pub template: Option<&'a Template>,
    /// The nodes.
    pub names: &'a [String],
    /// The words for a node that is reached through the tool.
    pub command: &'a [String],
    /// This node among them, and the words for it.
    pub own: Option<(usize, &'a [String])>,
    /// What marks this fan-out's answers.
    pub nonce: &'a str,
    /// A file for the names of those that the tool is to reach.
    pub nodefile: &'a Path,
    /// Nodes at once.
    pub width: u32,
    /// When it must be over.
    pub deadline: Instant,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Of each node, in the order of the plan.
    pub states: Vec<NodeState>,
    /// The tool's own last words.
    pub words: Option<String>,
    /// How it was cut short, if it was.
    pub cut: Option<Cut>,
}

/// Why a fan-out did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The time was over.
    Deadline,
    /// It was no longer wanted.
    Unwanted,
}

/// Runs the plan. `is_wanted` is asked every now and then; `collect` takes what nodes have left in
/// files, once, when the tool has ended.
pub fn run(
    plan: &Plan<'_>,
    is_wanted: &mut dyn FnMut() -> bool,
    collect: &mut dyn FnMut(&mut Gathering),
) -> Result<Outcome, FanoutError> {
    let mut gathering = Gathering::new(plan.nonce, plan.names);
    let mut starts = starts(plan)?;
    // The tool first: it has more to do. They are taken from the end.
    starts.reverse();
    let mut processes = Processes::new();
    let mut complete_since = None;
    let mut next_look = Instant::now();
    let cut = loop {
        while processes.len() <= plan.width as usize
            && let Some((words, of)) = starts.pop()
        {
            let is_tool = of.is_none() || of != plan.own.map(|(own, _)| own);
            if let Err(source) = processes.start(&words, of, is_tool) {
                let program = words.first().cloned().unwrap_or_default();
                let error = FanoutError::Run { program, source };
                let Some(index) = of else {
                    return Err(error);
                };
                gathering.note(index, &shifter_core::chain::line(&error));
            }
        }
        if processes.len() == 0 {
            break None;
        }
        let now = Instant::now();
        if gathering.is_complete() && now >= *complete_since.get_or_insert(now) + AFTERGLOW {
            break None;
        }
        if now >= plan.deadline {
            break Some(Cut::Deadline);
        }
        // Not for every line of every node.
        if now >= next_look {
            if !is_wanted() {
                break Some(Cut::Unwanted);
            }
            next_look = now + LOOK;
        }
        let left = plan.deadline.saturating_duration_since(now).min(LOOK);
        for event in processes.wait(left) {
            match event {
                Event::Line(line, of) => gathering.take(&line, of),
                Event::End(ending, Some(index)) => gathering.note(index, &ending),
                Event::End(..) => {}
            }
        }
    };
    processes.end_all();
    if plan.template.is_some_and(|t| t.report == Report::Files) {
        collect(&mut gathering);
    }
    let (states, words) = gathering.finish();
    Ok(Outcome { states, words, cut })
}

type Start = (Vec<String>, Option<usize>);

/// Returns what is to be started, and of which node it is.
fn starts(plan: &Plan<'_>) -> Result<Vec<Start>, FanoutError> {
    let mut starts = Vec::new();
    let own = plan.own.map(|(index, _)| index);
    let others: Vec<usize> = (0..plan.names.len())
        .filter(|index| Some(*index) != own)
        .collect();
    if !others.is_empty() {
        let Some(template) = plan.template else {
            return Err(FanoutError::NoTool(plan.names.len()));
        };
        let names: Vec<String> = others.iter().map(|i| plan.names[*i].clone()).collect();
        let nodefile = plan.nodefile.to_string_lossy();
        let values = Values {
            command: plan.command,
            names: &names,
            nodefile: &nodefile,
            width: plan.width,
            timeout: plan
                .deadline
                .saturating_duration_since(Instant::now())
                .as_secs()
                .max(1),
        };
        if template.is_per_node() {
            for index in others {
                let words = template.fill(&values, Some(&plan.names[index]))?;
                starts.push((words, Some(index)));
            }
        } else {
            write_names(plan.nodefile, &names).map_err(|source| FanoutError::Run {
                program: nodefile.clone().into_owned(),
                source,
            })?;
            starts.push((template.fill(&values, None)?, None));
        }
    }
    if let Some((index, words)) = plan.own {
        starts.insert(starts.len().min(1), (words.to_vec(), Some(index)));
    }
    Ok(starts)
}

fn write_names(path: &Path, names: &[String]) -> io::Result<()> {
    let mut text = names.join("\n");
    text.push('\n');
    std::fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use shifter_core::config::Torque;

    use super::*;

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    struct Site {
        dir: tempfile::TempDir,
        template: Option<Template>,
    }

    fn site(words: &[&str]) -> Site {
        let torque = Torque {
            fanout_command: owned(words),
            ..Torque::default()
        };
        Site {
            dir: tempfile::tempdir().unwrap(),
            template: Template::of(&torque),
        }
    }

    fn run_on(site: &Site, names: &[&str], own: Option<usize>, millis: u64) -> Outcome {
        let own_words = owned(&["/bin/echo", "@shifter 7f own ok"]);
        let plan = Plan {
            template: site.template.as_ref(),
            names: &owned(names),
            command: &owned(&["/w", "setup"]),
            own: own.map(|index| (index, &own_words[..])),
            nonce: "7f",
            nodefile: &site.dir.path().join("nodes"),
            width: 2,
            deadline: Instant::now() + Duration::from_millis(millis),
        };
        run(&plan, &mut || true, &mut |_| {}).unwrap()
    }

    fn shown(outcome: &Outcome) -> Vec<&str> {
        let state = |state: &NodeState| match state {
            NodeState::Ready => "ready",
            NodeState::Failed { .. } => "failed",
            NodeState::Silent(_) => "silent",
        };
        let shown = outcome.states.iter().map(state);
        let shown: Vec<&'static str> = shown.collect();
        shown
    }

    #[test]
    fn a_tool_for_all_nodes_and_the_own_one_without_it() {
        let script = "while read n; do echo \"$n: @shifter 7f $n ok\"; done < \"$0\"; exit 9";
        let site = site(&["/bin/sh", "-c", script, "{nodefile}", "{command}"]);
        let outcome = run_on(&site, &["a", "own", "b"], Some(1), 20_000);
        assert_eq!(shown(&outcome), ["ready", "ready", "ready"]);
        assert_eq!(outcome.cut, None);
        let nodes = std::fs::read_to_string(site.dir.path().join("nodes")).unwrap();
        assert_eq!(nodes, "a\nb\n");
    }

    #[test]
    fn a_tool_for_each_node() {
        let script = "[ $0 = b ] && { echo why >&2; exit 3; }; echo \"@shifter 7f other ok\"";
        let site = site(&["/bin/sh", "-c", script, "{node}", "{command}"]);
        let outcome = run_on(&site, &["a", "b", "c", "d", "e"], None, 20_000);
        assert_eq!(
            shown(&outcome),
            ["ready", "silent", "ready", "ready", "ready"]
        );
        assert_eq!(outcome.states[1], NodeState::Silent(Some("why".into())));
    }

    #[test]
    fn what_hangs_is_ended() {
        let script = "echo '@shifter 7f a ok'; trap '' TERM; sleep 100 & sleep 100";
        let site = site(&["/bin/sh", "-c", script, "{command}"]);
        let start = Instant::now();
        let outcome = run_on(&site, &["a", "b"], None, 600);
        assert_eq!(outcome.cut, Some(Cut::Deadline));
        assert_eq!(shown(&outcome), ["ready", "silent"]);
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn what_a_tool_started_in_a_session_of_its_own_ends_with_it() {
        let below = "echo $$ >>\"$0\"; echo '@shifter 7f a ok'; sleep 100; :";
        let script = "echo $$ >\"$0\"; setsid sh -c \"$1\" \"$0\"; :";
        let words = ["/bin/sh", "-c", script, "{nodefile}", below, "{command}"];
        let site = site(&words);
        let outcome = run_on(&site, &["a"], None, 60_000);
        assert_eq!(shown(&outcome), ["ready"]);
        let pids = std::fs::read_to_string(site.dir.path().join("nodes")).unwrap();
        let pids: Vec<&str> = pids.lines().collect();
        assert_eq!(pids.len(), 2, "{pids:?}");
        let lives = |pid: &&str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
            let status = status.unwrap_or_default();
            !status.is_empty() && !status.contains("State:\tZ")
        };
        // They were sent the signal; dying takes a moment on a busy machine.
        let deadline = Instant::now() + Duration::from_secs(30);
        while pids.iter().any(lives) {
            assert!(Instant::now() < deadline, "{pids:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_tool_that_lingers_is_not_waited_for() {
        let site = site(&[
            "/bin/sh",
            "-c",
            "echo '@shifter 7f a ok'; sleep 100",
            "{command}",
        ]);
        let start = Instant::now();
        let outcome = run_on(&site, &["a"], None, 60_000);
        assert_eq!((shown(&outcome), outcome.cut), (vec!["ready"], None));
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn without_a_tool_there_is_one_node() {
        let site = Site {
            dir: tempfile::tempdir().unwrap(),
            template: None,
        };
        assert_eq!(shown(&run_on(&site, &["own"], Some(0), 20_000)), ["ready"]);
        let plan = Plan {
            template: None,
            names: &owned(&["a", "b"]),
            command: &[],
            own: None,
            nonce: "7f",
            nodefile: Path::new("/x"),
            width: 2,
            deadline: Instant::now(),
        };
        let error = run(&plan, &mut || true, &mut |_| {}).unwrap_err();
        assert!(matches!(error, FanoutError::NoTool(2)), "{error}");
    }

    #[test]
    fn a_missing_tool_is_named() {
        let site = site(&["/no/such/tool", "{command}"]);
        let plan = Plan {
            template: site.template.as_ref(),
            names: &owned(&["a"]),
            command: &owned(&["/w"]),
            own: None,
            nonce: "7f",
            nodefile: &site.dir.path().join("nodes"),
            width: 2,
            deadline: Instant::now() + Duration::from_secs(9),
        };
        let error = run(&plan, &mut || true, &mut |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "cannot run '/no/such/tool'");
    }
}

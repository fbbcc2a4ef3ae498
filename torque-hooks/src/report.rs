//! One line about all nodes of a job: `2047 of 2048 nodes ready; nid01234: squashfs module missing`.

use std::collections::HashMap;

use crate::fanout::gather::NodeState;

/// Reasons that are told.
const REASONS: usize = 3;

/// Nodes that are named for one reason.
const NAMES: usize = 4;

/// What became of the nodes, counted.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// How many there are.
    pub total: usize,
    /// Indices of those that have not done it.
    pub failed: Vec<usize>,
    /// True if one of those says that the job's user is to blame.
    pub is_users_mistake: bool,
    /// The line.
    pub line: String,
}

impl Report {
    /// Counts the states; `done` is the word for a node that is: "ready".
    pub fn new(names: &[String], states: &[NodeState], done: &str, words: Option<&str>) -> Self {
        let mut failed = Vec::new();
        let mut reasons: Vec<(&str, Vec<usize>)> = Vec::new();
        // Where every node has a reason of its own, a search for each would be the square of them.
        let mut known: HashMap<&str, usize> = HashMap::new();
        let mut is_users_mistake = false;
        for (index, state) in states.iter().enumerate() {
            let reason = match state {
                NodeState::Ready => continue,
                NodeState::Failed { code, message } => {
                    is_users_mistake |= code.is_some_and(|code| code.is_users_mistake());
                    message
                }
                NodeState::Silent(Some(words)) => words,
                NodeState::Silent(None) => words.unwrap_or("no answer"),
            };
            failed.push(index);
            let at = *known.entry(reason).or_insert(reasons.len());
            match reasons.get_mut(at) {
                Some((_, nodes)) => nodes.push(index),
                None => reasons.push((reason, vec![index])),
            }
        }
        // What most nodes say first; otherwise in the order of the nodes.
        reasons.sort_by_key(|(_, nodes)| usize::MAX - nodes.len());
        let total = states.len();
        let ready = total - failed.len();
        let plural = if total == 1 { "node" } else { "nodes" };
        let mut line = format!("{ready} of {total} {plural} {done}");
        for (reason, nodes) in reasons.iter().take(REASONS) {
            let named: Vec<&str> = nodes.iter().take(NAMES).map(|i| &*names[*i]).collect();
            line += &format!("; {}", named.join(" "));
            if nodes.len() > NAMES {
                line += &format!(" and {} more", nodes.len() - NAMES);
            }
            line += &format!(": {reason}");
        }
        if reasons.len() > REASONS {
            line += &format!("; {} other reasons", reasons.len() - REASONS);
        }
        Self {
            total,
            failed,
            is_users_mistake,
            line,
        }
    }
}

#[cfg(test)]
mod tests {
    use shifter_core::exit::ExitCode;

    use super::*;

    fn failed(code: ExitCode, message: &str) -> NodeState {
        NodeState::Failed {
            code: Some(code),
            message: message.into(),
        }
    }

    #[test]
    fn the_line_says_who_and_why() {
        let names: Vec<String> = (0..2048).map(|n| format!("nid{n:05}")).collect();
        let mut states = vec![NodeState::Ready; 2048];
        let all = Report::new(&names, &states, "ready", None);
        assert_eq!(all.line, "2048 of 2048 nodes ready");
        states[1234] = failed(ExitCode::Mount, "squashfs module missing for 5.14.21");
        let one = Report::new(&names, &states, "ready", None);
        assert_eq!(
            one.line,
            "2047 of 2048 nodes ready; nid01234: squashfs module missing for 5.14.21"
        );
        assert_eq!((one.failed, one.is_users_mistake), (vec![1234], false));
        states[5] = NodeState::Silent(None);
        states[3..9].fill(NodeState::Silent(Some("no route".into())));
        states[0] = NodeState::Silent(None);
        let many = Report::new(&names, &states, "ready", Some("tool died"));
        assert_eq!(
            many.line,
            "2040 of 2048 nodes ready; nid00003 nid00004 nid00005 nid00006 and 2 more: no route; \
             nid00000: tool died; nid01234: squashfs module missing for 5.14.21"
        );
    }

    #[test]
    fn the_users_mistake_is_told_from_the_nodes() {
        let states = [
            failed(ExitCode::Image, "cannot find image 'x'"),
            failed(ExitCode::Image, "cannot find image 'x'"),
        ];
        let report = Report::new(&["a".into(), "b".into()], &states, "ready", None);
        assert!(report.is_users_mistake);
        assert_eq!(
            report.line,
            "0 of 2 nodes ready; a b: cannot find image 'x'"
        );
        let states = [NodeState::Silent(None)];
        let report = Report::new(&["a".into()], &states, "clean", None);
        assert_eq!(report.line, "0 of 1 node clean; a: no answer");
    }
}

//! What nodes say, put together: which are ready, which failed and why, which said nothing.
//!
//! ```text
//! @shifter NONCE NAME[,NAME...] ok [MESSAGE]           NAME: host name, its first label, node number
//! @shifter NONCE NAME[,NAME...] fail CODE MESSAGE
//! ```
//!
//! Anything may stand before the mark: tools put the node's name there. The nonce tells this
//! fan-out's lines from those of any other.

use std::collections::HashMap;

use shifter_core::exit::ExitCode;
use shifter_core::sanitize;

use crate::nodes::nid_of;

/// The mark.
const MARK: &str = "@shifter ";

/// What became of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It has done what it was to do.
    Ready,
    /// It said that it could not, and has undone what it began.
    Failed {
        /// Whose fault.
        code: Option<ExitCode>,
        /// Why.
        message: String,
    },
    /// Nothing is known of it but perhaps what the tool said.
    Silent(Option<String>),
}

/// Writes the line of a node.
pub fn line(nonce: &str, names: &[String], result: Result<&str, (ExitCode, &str)>) -> String {
    let names = names.join(",");
    let end = match result {
        Ok("") => "ok".to_owned(),
        Ok(message) => format!("ok {}", sanitize::text(message)),
        Err((code, message)) => format!("fail {} {}", code.code(), sanitize::text(message)),
    };
    format!("{MARK}{nonce} {names} {end}")
}

/// The states of all nodes.
#[derive(Debug)]
pub struct Gathering {
    nonce: String,
    states: Vec<NodeState>,
    by_name: HashMap<String, Option<usize>>,
    silent: usize,
    /// The last words of the tool that are about no node.
    words: Option<String>,
}

impl Gathering {
    /// Begins with nodes that have said nothing.
    pub fn new(nonce: &str, names: &[String]) -> Self {
        let mut by_name: HashMap<String, Option<usize>> = HashMap::with_capacity(3 * names.len());
        for (index, name) in names.iter().enumerate() {
            for alias in keys(name).split_off(1) {
                // An alias of two nodes is one of neither.
                let entry = by_name.entry(alias).or_insert(Some(index));
                *entry = entry.filter(|known| *known == index);
            }
        }
        for (index, name) in names.iter().enumerate() {
            by_name.insert(name.clone(), Some(index));
        }
        Self {
            nonce: nonce.to_owned(),
            states: vec![NodeState::Silent(None); names.len()],
            by_name,
            silent: names.len(),
            words: None,
        }
    }

    /// True if every node has said something.
    pub fn is_complete(&self) -> bool {
        self.silent == 0
    }

    /// Takes a line of output; `of` is the node it comes from, where that is known.
    pub fn take(&mut self, bytes: &[u8], of: Option<usize>) {
        let line = String::from_utf8_lossy(bytes);
        if let Some((names, state)) = line
            .split_once(MARK)
            .and_then(|(_, rest)| self.parse(rest.trim_end()))
        {
            let index = of.or_else(|| names.split(',').find_map(|name| self.index(name)));
            if let Some(index) = index {
                self.set(index, state);
            }
            return;
        }
        let text = line.trim();
        if text.is_empty() || line.contains(MARK) {
            return;
        }
        let (name, said) = text.split_once(": ").unwrap_or(("", text));
        match of.or_else(|| self.index(name)) {
            Some(index) => {
                let said = if of.is_some() { text } else { said };
                if let NodeState::Silent(words) = &mut self.states[index] {
                    *words = Some(sanitize::text(said));
                }
            }
            None => self.words = Some(sanitize::text(text)),
        }
    }

    /// Takes the name of a file that a node has left, and reads it where that is needed.
    pub fn take_file(&mut self, name: &str, read: impl FnOnce() -> Vec<u8>) {
        let mut parts = name.split(':');
        if parts.next() != Some(&*self.nonce) {
            return;
        }
        let parts: Vec<&str> = parts.collect();
        let Some((end, names)) = parts.split_last() else {
            return;
        };
        if *end == "fail" {
            return self.take(&read(), None);
        }
        let index = names.iter().find_map(|name| self.index(name));
        if let (Some(index), "ok") = (index, *end) {
            self.set(index, NodeState::Ready);
        }
    }

    /// Notes that a node's own process ended without a word of its own.
    pub fn note(&mut self, index: usize, text: &str) {
        if let Some(NodeState::Silent(words)) = self.states.get_mut(index) {
            words.get_or_insert_with(|| sanitize::text(text));
        }
    }

    /// Returns what became of each node, and the tool's own last words.
    pub fn finish(self) -> (Vec<NodeState>, Option<String>) {
        (self.states, self.words)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied().flatten()
    }

    fn set(&mut self, index: usize, state: NodeState) {
        if matches!(self.states[index], NodeState::Silent(_)) {
            self.silent -= 1;
        }
        self.states[index] = state;
    }

    fn parse<'a>(&self, rest: &'a str) -> Option<(&'a str, NodeState)> {
        let mut words = rest.splitn(5, ' ');
        if words.next()? != self.nonce {
            return None;
        }
        let names = words.next()?;
        match words.next()? {
            "ok" => Some((names, NodeState::Ready)),
            "fail" => {
                let code = words.next()?.parse().ok().and_then(ExitCode::from_code);
                let message = sanitize::text(words.next().unwrap_or_default());
                Some((names, NodeState::Failed { code, message }))
            }
            _ => None,
        }
    }
}

/// Returns the names by which a node may call itself: as it is, its first label, its number.
pub fn keys(name: &str) -> Vec<String> {
    let mut keys = vec![name.to_owned()];
    let label = name.split('.').next().unwrap_or_default();
    if label != name {
        keys.push(label.to_owned());
    }
    if name.starts_with("nid") {
        keys.extend(nid_of(name).map(|nid| nid.to_string()));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn failed(code: ExitCode, message: &str) -> NodeState {
        NodeState::Failed {
            code: Some(code),
            message: message.into(),
        }
    }

    #[test]
    fn lines_are_found_behind_whatever_a_tool_puts_before_them() {
        let mut gathering =
            Gathering::new("7f", &names(&["n1", "n2.site", "nid00020", "n4", "n5"]));
        let reason = "squashfs module missing\nfor 5.14.21";
        let said = line("7f", &names(&["n2"]), Err((ExitCode::Mount, reason)));
        for text in [
            "n1: @shifter 7f n1,n1.site ok",
            &format!("[n2] {said}"),
            "@shifter 7f c0-0c0s5n0,20 ok",
            "@shifter 66 n4 ok",
            "n4: ssh: connect to host n4 port 22: No route to host",
            "@shifter 7f n4 maybe",
            "Warning: no control path",
            "n9: @shifter 7f n9 ok",
            "",
        ] {
            gathering.take(text.as_bytes(), None);
        }
        assert!(!gathering.is_complete());
        gathering.note(4, "exit code 255");
        let (states, words) = gathering.finish();
        let silent = |text: &str| NodeState::Silent(Some(text.into()));
        assert_eq!(
            states,
            [
                NodeState::Ready,
                failed(ExitCode::Mount, "squashfs module missing\\u{a}for 5.14.21"),
                NodeState::Ready,
                silent("ssh: connect to host n4 port 22: No route to host"),
                silent("exit code 255"),
            ]
        );
        assert_eq!(words.as_deref(), Some("Warning: no control path"));
    }

    #[test]
    fn files_say_it_by_their_names() {
        let mut gathering = Gathering::new("7f", &names(&["n1", "n2", "n3"]));
        gathering.take_file("7f:n1:n1.site:ok", || panic!("an empty file"));
        gathering.take_file("7f:n2:fail", || b"@shifter 7f n2 fail 4 no image".to_vec());
        gathering.take_file("66:n3:ok", Vec::new);
        gathering.take_file("7f", Vec::new);
        gathering.take_file("7f:n3:new", Vec::new);
        let (states, _) = gathering.finish();
        assert_eq!(states[0], NodeState::Ready);
        assert_eq!(states[1], failed(ExitCode::Image, "no image"));
        assert_eq!(states[2], NodeState::Silent(None));
    }

    #[test]
    fn a_name_of_two_nodes_is_one_of_neither() {
        let mut gathering = Gathering::new("7f", &names(&["a.x", "a.y", "b", "b.z"]));
        gathering.take(b"@shifter 7f a ok", None);
        gathering.take(b"@shifter 7f b ok", None);
        gathering.take(b"@shifter 7f zzz ok", Some(1));
        let (states, _) = gathering.finish();
        let ready: Vec<bool> = states.iter().map(|s| *s == NodeState::Ready).collect();
        assert_eq!(ready, [false, true, true, false]);
    }

    #[test]
    fn the_last_word_counts() {
        let mut gathering = Gathering::new("7f", &names(&["n1"]));
        gathering.take(b"n1: starting", None);
        gathering.take(b"@shifter 7f n1 ok", None);
        gathering.take(b"n1: late words", None);
        assert!(gathering.is_complete());
        assert_eq!(gathering.finish().0, [NodeState::Ready]);
    }
}

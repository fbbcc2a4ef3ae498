//! The site's tool as a template of words.
//!
//! ```text
//! {command}      a word of its own: the words to run on a node
//! {commandline}  the same as one word; may stand within one
//! {nodefile}     a file with a name in each line       {nodes}  a,b,c
//! {nids}         20-23,40                              {node}   one name: the tool is started for each
//! {width}        nodes at once                         {timeout} seconds
//! ```
//!
//! No shell of ours ever reads the words. A tool's own remote shell does: what is to run there is of
//! letters, digits and `._-/:=+` alone (see [`is_plain`]).

use shifter_core::config::{Fanout, FanoutReport, Torque};
use shifter_core::hostlist;
use thiserror::Error;

use crate::nodes::nid_of;

const PDSH: &[&str] = &[
    "/usr/bin/pdsh",
    "-R",
    "ssh",
    "-f",
    "{width}",
    "-w",
    "^{nodefile}",
    "{command}",
];
const CLUSH: &[&str] = &[
    "/usr/bin/clush",
    "-S",
    "-f",
    "{width}",
    "--hostfile={nodefile}",
    "{command}",
];
const SSH: &[&str] = &[
    "/usr/bin/ssh",
    "-n",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "{node}",
    "{command}",
];
const PCMD: &[&str] = &[
    "/opt/cray/nodehealth/default/bin/pcmd",
    "-r",
    "-q",
    "-n",
    "{nids}",
    "{commandline}",
];
const XTXQTCMD: &[&str] = &["/usr/bin/xtxqtcmd", "{nodefile}", "{commandline}"];
/// Starts programs as the job's user, in Torque and in OpenPBS: it is of use only where the site's own
/// pbsdsh runs them as root.
const PBSDSH: &[&str] = &["/usr/bin/pbsdsh", "-u", "{command}"];

/// Says why a template cannot be filled in.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// A word that would be changed by a shell on its way.
    #[error("'{}' cannot be run through a fan-out tool", shifter_core::sanitize::text(.0))]
    Plain(String),
    /// The tool wants node numbers, and this is none.
    #[error("'{}' is not the number of a node", shifter_core::sanitize::text(.0))]
    Number(String),
}

/// A tool's words, still with placeholders.
#[derive(Clone, Debug)]
pub struct Template {
    words: Vec<String>,
    /// How nodes report through it.
    pub report: Report,
}

/// How nodes report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// They print a marked line.
    Lines,
    /// They leave a file.
    Files,
}

/// What stands in place of the placeholders.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// What is to run on a node.
    pub command: &'a [String],
    /// The nodes.
    pub names: &'a [String],
    /// A file with their names.
    pub nodefile: &'a str,
    /// How many at once.
    pub width: u32,
    /// Seconds that there are.
    pub timeout: u64,
}

impl Template {
    /// Returns the site's tool; nothing if there is none.
    pub fn of(torque: &Torque) -> Option<Self> {
        let (preset, usual) = match torque.fanout {
            Fanout::Local => (&[][..], Report::Lines),
            Fanout::Pdsh => (PDSH, Report::Lines),
            Fanout::Clush => (CLUSH, Report::Lines),
            Fanout::Ssh => (SSH, Report::Lines),
            Fanout::Pcmd => (PCMD, Report::Files),
            Fanout::Xtxqtcmd => (XTXQTCMD, Report::Files),
            Fanout::Pbsdsh => (PBSDSH, Report::Files),
        };
        let (words, usual) = match &torque.fanout_command[..] {
            [] => (
                preset.iter().map(|word| (*word).to_owned()).collect(),
                usual,
            ),
            words => (words.to_vec(), Report::Lines),
        };
        let report = match torque.fanout_report {
            FanoutReport::Auto => usual,
            FanoutReport::Lines => Report::Lines,
            FanoutReport::Files => Report::Files,
        };
        (!words.is_empty()).then_some(Self { words, report })
    }

    /// True if the tool is started once for each node.
    pub fn is_per_node(&self) -> bool {
        self.words.iter().any(|word| word.contains("{node}"))
    }

    /// Returns the words to start; `node` is the one node, where the tool is started for each.
    pub fn fill(
        &self,
        values: &Values<'_>,
        node: Option<&str>,
    ) -> Result<Vec<String>, TemplateError> {
        if let Some(word) = values.command.iter().find(|word| !is_plain(word)) {
            return Err(TemplateError::Plain(word.clone()));
        }
        let mut filled = Vec::with_capacity(self.words.len() + values.command.len());
        for word in &self.words {
            if word == "{command}" {
                filled.extend_from_slice(values.command);
            } else {
                filled.push(fill_word(word, values, node)?);
            }
        }
        Ok(filled)
    }
}

/// Fills in one word, from left to right: what was filled in is not looked at again.
fn fill_word(word: &str, values: &Values<'_>, node: Option<&str>) -> Result<String, TemplateError> {
    let mut filled = String::new();
    let mut rest = word;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find('}').map_or(rest.len(), |end| end + 1);
        let (mark, after) = rest.split_at(end);
        match mark {
            "{commandline}" => filled.push_str(&values.command.join(" ")),
            "{nodefile}" => filled.push_str(values.nodefile),
            "{nodes}" => filled.push_str(&values.names.join(",")),
            "{nids}" => filled.push_str(&nids(values.names)?),
            "{width}" => filled.push_str(&values.width.to_string()),
            "{timeout}" => filled.push_str(&values.timeout.to_string()),
            "{node}" => filled.push_str(node.unwrap_or_default()),
            // Awk and the like have braces too.
            other => filled.push_str(other),
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn nids(names: &[String]) -> Result<String, TemplateError> {
    let numbers = names
        .iter()
        .map(|name| nid_of(name).ok_or_else(|| TemplateError::Number(name.clone())));
    Ok(hostlist::compress_nids(
        &numbers.collect::<Result<Vec<_>, _>>()?,
    ))
}

/// True for a word that every shell takes as it is.
pub fn is_plain(word: &str) -> bool {
    let well_formed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:=+,".contains(&byte);
    // zsh takes `=x` for the path of x, and csh's history begins with '!' alone.
    !word.is_empty() && word.bytes().all(well_formed) && !word.starts_with('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn fill(torque: &Torque, names: &[&str], command: &[&str]) -> Result<String, TemplateError> {
        let values = Values {
            command: &owned(command),
            names: &owned(names),
            nodefile: "/s/nodes",
            width: 64,
            timeout: 100,
        };
        let template = Template::of(torque).unwrap();
        let node = template.is_per_node().then_some(names[0]);
        Ok(template.fill(&values, node)?.join("|"))
    }

    fn preset(fanout: Fanout) -> Torque {
        Torque {
            fanout,
            ..Torque::default()
        }
    }

    #[test]
    fn presets() {
        let names = ["nid00020", "nid00021", "nid00040"];
        let table = [
            (
                Fanout::Pdsh,
                "/usr/bin/pdsh|-R|ssh|-f|64|-w|^/s/nodes|/p/w|setup",
            ),
            (
                Fanout::Clush,
                "/usr/bin/clush|-S|-f|64|--hostfile=/s/nodes|/p/w|setup",
            ),
            (
                Fanout::Ssh,
                "/usr/bin/ssh|-n|-o|BatchMode=yes|-o|ConnectTimeout=10|nid00020|/p/w|setup",
            ),
            (
                Fanout::Pcmd,
                "/opt/cray/nodehealth/default/bin/pcmd|-r|-q|-n|20-21,40|/p/w setup",
            ),
            (Fanout::Xtxqtcmd, "/usr/bin/xtxqtcmd|/s/nodes|/p/w setup"),
            (Fanout::Pbsdsh, "/usr/bin/pbsdsh|-u|/p/w|setup"),
        ];
        for (fanout, expected) in table {
            let filled = fill(&preset(fanout), &names, &["/p/w", "setup"]).unwrap();
            assert_eq!(filled, expected);
        }
        assert!(Template::of(&preset(Fanout::Local)).is_none());
        let error = fill(&preset(Fanout::Pcmd), &["n1"], &["/p/w"]).unwrap_err();
        assert_eq!(error.to_string(), "'n1' is not the number of a node");
    }

    #[test]
    fn a_sites_own_words() {
        let torque = Torque {
            fanout_command: owned(&[
                "/x/t",
                "{nodes}",
                "{timeout}:{width}",
                "chroot /d {commandline}",
                "{}%h",
                "{",
            ]),
            ..Torque::default()
        };
        let filled = fill(&torque, &["a", "b{width}"], &["/w", "{node}x"]);
        assert!(filled.is_err(), "braces are not plain");
        let filled = fill(&torque, &["a", "b{width}"], &["/w", "y"]).unwrap();
        assert_eq!(filled, "/x/t|a,b{width}|100:64|chroot /d /w y|{}%h|{");
        assert_eq!(Template::of(&torque).unwrap().report, Report::Lines);
    }

    #[test]
    fn nothing_that_a_shell_changes_is_run() {
        for word in [
            "", "a b", "$(id)", "a;b", "`x`", "1[2]", "*", "a\nb", "%h", "~x", "=x", "'",
        ] {
            assert!(
                fill(&preset(Fanout::Pdsh), &["n"], &["/w", word]).is_err(),
                "{word}"
            );
        }
        for word in ["--job=1+2=.server", "/usr/lib/x-y_z", "--report=lines:0a9f"] {
            assert!(is_plain(word), "{word}");
        }
    }
}

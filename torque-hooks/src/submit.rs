//! `shifter-submit-filter`: what `SUBMITFILTER` in torque.cfg names. It runs as the user when a job
//! is submitted, with qsub's options as arguments, the script on standard input, and the script to
//! be used instead on standard output.
//!
//! A job of ours is judged here already, where somebody reads the answer, and its image is pinned
//! by its id: with a `#PBS -v` line after the first line of the script. The nodes judge it all again.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use shifter_core::chain;
use shifter_core::config::{Config, DEFAULT_PATH};

use crate::gres;
use crate::request::{Image, Request};
use crate::resolve::{self, ResolveError};
use crate::say;
use crate::variables::Variables;

/// "Administratively rejected".
const REJECTED: u8 = 255;

/// Bytes that a script may have.
const SCRIPT_LIMIT: u64 = 256 << 20;

/// Options of qsub that have a value.
const WITH_VALUE: &str = "aAbcCdDeFjkKlLmMNopPqrStTuvwWZ";

/// What is known of a submission.
#[derive(Debug, Default, PartialEq, Eq)]
struct Submission {
    /// Values of `-l`.
    resources: Vec<String>,
    /// Values of `-v`, in an order in which the last one counts.
    variables: Vec<String>,
    /// `-V`.
    takes_all: bool,
    /// What lines of the script begin with that are options: `-C`.
    prefix: Option<String>,
}

/// Runs the program.
pub fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut script = Vec::new();
    let read = io::stdin()
        .lock()
        .take(SCRIPT_LIMIT)
        .read_to_end(&mut script);
    let result = match read {
        Ok(_) => filter(&words, &script),
        Err(error) => Err(vec![format!("cannot read the script: {error}")]),
    };
    let pin = match result {
        Ok(pin) => pin,
        Err(lines) => {
            lines.iter().for_each(|line| say::tell(line));
            return REJECTED.into();
        }
    };
    let mut out = io::stdout().lock();
    let (first, rest) = script.split_at(first_line(&script));
    let parts = [first, pin.as_bytes(), rest];
    let written = parts.iter().try_for_each(|part| out.write_all(part));
    match written.and_then(|()| out.flush()) {
        Ok(()) => 0.into(),
        Err(_) => REJECTED.into(),
    }
}

/// Returns the lines to put into the script, or those that say why the job is refused.
fn filter(words: &[String], script: &[u8]) -> Result<String, Vec<String>> {
    let mut submission = Submission::default();
    let path = take_config(words);
    let words = if path.is_some() { &words[1..] } else { words };
    submission.take(words);
    let prefix = submission.prefix.clone().unwrap_or_else(|| "#PBS".into());
    // What stands on the command line counts more.
    let mut of_script = Submission::default();
    for line in directives(script, &prefix) {
        of_script.take(&shell_words(&line));
    }
    of_script.resources.append(&mut submission.resources);
    of_script.variables.append(&mut submission.variables);
    of_script.takes_all |= submission.takes_all;
    let submission = of_script;

    let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
    let config = match Config::open_trusted(&path) {
        Ok(config) => config,
        // Not the user's fault: the prologue says so if it is a job of ours.
        Err(_) => return Ok(String::new()),
    };
    let variables = submission.variables(|name| std::env::var_os(name)?.into_string().ok());
    if !submission.is_ours(&config) {
        if submission.names("UDI") {
            let name = &config.torque.gres[0];
            say::tell(&format!("UDI counts nothing without -l gres={name}"));
        }
        return Ok(String::new());
    }
    let lines = |why: String, hint: Option<String>| {
        let hint = hint.map(|hint| format!("hint: {hint}"));
        [Some(why), hint].into_iter().flatten().collect::<Vec<_>>()
    };
    let request = Request::from_variables(&variables, &config)
        .map_err(|error| lines(chain::line(&error), error.hint()))?;
    let Some(Request {
        image: Image::Named(image),
        ..
    }) = request
    else {
        return Ok(String::new());
    };
    match resolve::resolve(&image, None, &config, Some(Path::new(&path))) {
        Ok(image) => Ok(format!(
            "{prefix} -v SHIFTER_IMAGE={},SHIFTER_IMAGETYPE=id,SHIFTER_IMAGEREQUEST={}\n",
            image.id, image.reference
        )),
        Err(ResolveError::Refused(said)) => Err(said),
        Err(error) if error.is_users_mistake() => {
            let hint = format!("shifter pull --store=site {}", image.name());
            Err(lines(chain::line(&error), Some(hint)))
        }
        // A passing trouble: the prologue looks again.
        Err(error) => {
            say::tell(&chain::line(&error));
            Ok(String::new())
        }
    }
}

/// `SUBMITFILTER PATH --config=FILE` is how a site with another configuration names it.
fn take_config(words: &[String]) -> Option<PathBuf> {
    Some(words.first()?.strip_prefix("--config=")?.into())
}

impl Submission {
    /// Takes qsub's options, from the command line or from a line of the script.
    fn take(&mut self, words: &[String]) {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                return; // The script and what comes after it.
            };
            if letters.starts_with('-') {
                continue;
            }
            let mut rest = letters.chars();
            while let Some(letter) = rest.next() {
                if !WITH_VALUE.contains(letter) {
                    self.takes_all |= letter == 'V';
                    continue;
                }
                let value = match rest.as_str() {
                    "" => words.next().cloned().unwrap_or_default(),
                    inline => inline.to_owned(),
                };
                match letter {
                    'l' => self.resources.push(value),
                    'v' => self.variables.push(value),
                    'C' => self.prefix = Some(value),
                    _ => {}
                }
                break;
            }
        }
    }

    fn is_ours(&self, config: &Config) -> bool {
        let lists = self.resources.iter();
        let mut values = lists.filter_map(|list| gres::in_resource_list(list));
        values.any(|value| gres::names_one_of(value, &config.torque.gres))
    }

    fn names(&self, name: &str) -> bool {
        let begins = |list: &String| Variables::parse(list).get(name).is_some();
        self.variables.iter().any(begins)
    }

    /// Returns the variables that the job will have; `get` are the submitter's own.
    fn variables(&self, get: impl Fn(&str) -> Option<String>) -> Variables {
        const OURS: [&str; 7] = [
            "UDI",
            "SHIFTER_IMAGE",
            "SHIFTER_IMAGETYPE",
            "SHIFTER_IMAGEREQUEST",
            "SHIFTER_VOLUME",
            "SHIFTER_MODULE",
            "CRAY_ROOTFS",
        ];
        let own = OURS.into_iter().filter(|_| self.takes_all);
        let own = own.filter_map(|name| Some((name.to_owned(), get(name)?)));
        let mut all: Vec<(String, String)> = own.collect();
        for list in &self.variables {
            let parsed = Variables::parse(list);
            for name in OURS {
                if let Some(value) = parsed.get(name) {
                    // A name alone takes the submitter's value.
                    let is_bare = value.is_empty() && !list.contains(&format!("{name}="));
                    let value = if is_bare {
                        get(name)
                    } else {
                        Some(value.to_owned())
                    };
                    all.push((name.to_owned(), value.unwrap_or_default()));
                }
            }
        }
        all.into_iter().collect()
    }
}

/// Returns what follows the prefix in the script's lines of options: those before its first line
/// that is neither empty nor a comment.
fn directives(script: &[u8], prefix: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(script);
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(options) = line.strip_prefix(prefix).filter(|_| !prefix.is_empty()) {
            found.push(options.to_owned());
        } else if !line.is_empty() && !line.starts_with(['#', ':']) {
            break;
        }
    }
    found
}

/// Splits a line at blanks outside of quotes.
fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Returns how long the line is that names the interpreter.
fn first_line(script: &[u8]) -> usize {
    if !script.starts_with(b"#!") {
        return 0;
    }
    let end = script.iter().position(|byte| *byte == b'\n');
    end.map_or(script.len(), |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission(words: &[&str]) -> Submission {
        let mut submission = Submission::default();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        submission.take(&words);
        submission
    }

    #[test]
    fn qsubs_options() {
        let all = submission(&[
            "-l",
            "nodes=2",
            "-lgres=shifter",
            "-v",
            "UDI=a,B=c",
            "-IV",
            "-N",
            "-l",
            "-C",
            "#X",
            "--version",
            "job.sh",
            "-v",
            "UDI=other",
        ]);
        assert_eq!(all.resources, ["nodes=2", "gres=shifter"]);
        assert_eq!(all.variables, ["UDI=a,B=c"]);
        assert_eq!((all.takes_all, all.prefix.as_deref()), (true, Some("#X")));
        assert!(all.is_ours(&Config::default()));
        assert!(!submission(&["-l", "gres=other"]).is_ours(&Config::default()));
    }

    #[test]
    fn the_scripts_own_options() {
        let script = b"#!/bin/sh\n# a comment\n#PBS -l gres=shifter -v 'UDI=a b'\n\n  #PBS -V\n\
                       echo\n#PBS -v UDI=late\n";
        let lines = directives(script, "#PBS");
        assert_eq!(lines, [" -l gres=shifter -v 'UDI=a b'", " -V"]);
        assert_eq!(
            shell_words(&lines[0]),
            ["-l", "gres=shifter", "-v", "UDI=a b"]
        );
        assert_eq!(shell_words("a \"\" 'b\"c'd"), ["a", "", "b\"cd"]);
        assert_eq!(first_line(script), 10);
        assert_eq!((first_line(b"echo"), first_line(b"#!x")), (0, 3));
    }

    #[test]
    fn variables_of_all_sources() {
        let get = |name: &str| (name == "UDI").then(|| "mine,x".to_owned());
        let value = |words: &[&str]| {
            let variables = submission(words).variables(get);
            variables.get("UDI").map(str::to_owned)
        };
        assert_eq!(value(&["-v", "UDI=a", "-v", "UDI=b"]).as_deref(), Some("b"));
        assert_eq!(value(&["-v", "A=1,UDI"]).as_deref(), Some("mine,x"));
        assert_eq!(value(&["-v", "UDI="]).as_deref(), Some(""));
        assert_eq!(value(&["-V"]).as_deref(), Some("mine,x"));
        assert_eq!(value(&["-v", "A=1"]), None);
    }
}

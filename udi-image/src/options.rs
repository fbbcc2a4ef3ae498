//! The command line of `ssh`, as launchers of MPI, pdsh and scp write it for OpenSSH.

use std::path::PathBuf;

/// Letters that stand alone.
const FLAGS: &str = "246AaCgKknqsTtVvXxYy";

/// Letters that a value follows.
const VALUED: &str = "BbcDEeFIiJLlmOopQRSWw";

/// Of those, the ones that ask for what this client does not do; the rest change nothing here.
const REFUSED: &str = "fGMNDJLOQRWw";

/// A command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The host as typed, without the user.
    pub host: String,
    /// Settings that take precedence over files, in the order given: `keyword`, `value`.
    pub settings: Vec<(String, String)>,
    /// `-F`: the only file of settings.
    pub file: Option<PathBuf>,
    /// What is to be run there; nothing is the login shell.
    pub command: Option<String>,
    /// `-s`: the command is the name of a subsystem.
    pub is_subsystem: bool,
    /// `-n`: read nothing.
    pub is_silent: bool,
    /// `-q`: no words about failures.
    pub is_quiet: bool,
    /// `-t` and `-T`: how much a terminal is wanted.
    pub terminal: Terminal,
    /// `-V`.
    pub is_version: bool,
}

/// When a terminal is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Terminal {
    /// For a shell that is started from a terminal.
    #[default]
    ForShell,
    /// From a terminal.
    IfHere,
    /// In any case.
    Always,
    /// Never.
    Never,
}

impl Options {
    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// A sentence about what cannot be understood, or not be done.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.into_iter();
        let mut host = None;
        // Options may follow the host, until the command begins.
        while let Some(word) = words.next() {
            if word == "--" {
                if host.is_none() {
                    host = words.next();
                }
                break;
            }
            match word.strip_prefix('-') {
                Some(letters) if !letters.is_empty() => {
                    options.add(letters, &mut words)?;
                }
                _ if host.is_none() => host = Some(word),
                _ => {
                    options.command = Some(word);
                    break;
                }
            }
        }
        let rest: Vec<String> = options.command.take().into_iter().chain(words).collect();
        options.command = (!rest.is_empty()).then(|| rest.join(" "));
        if options.is_version {
            return Ok(options);
        }
        let host = host.ok_or("usage: ssh [options] [user@]host [command]")?;
        options.host = match host.rsplit_once('@') {
            Some((user, host)) => {
                options.settings.push(("user".into(), user.to_owned()));
                host.to_owned()
            }
            None => host,
        };
        if options.is_subsystem && options.command.is_none() {
            return Err("-s needs the name of a subsystem".into());
        }
        Ok(options)
    }

    /// Takes what follows a dash: letters without values, the last of which may have one.
    fn add(
        &mut self,
        letters: &str,
        words: &mut impl Iterator<Item = String>,
    ) -> Result<(), String> {
        for (at, letter) in letters.char_indices() {
            if REFUSED.contains(letter) {
                return Err(format!("option -{letter} is not for the ssh between nodes"));
            }
            if FLAGS.contains(letter) {
                self.flag(letter);
                continue;
            }
            if !VALUED.contains(letter) {
                return Err(format!("unknown option -{letter}"));
            }
            let inline = &letters[at + letter.len_utf8()..];
            let value = if inline.is_empty() {
                let next = words.next();
                next.ok_or_else(|| format!("option -{letter} needs a value"))?
            } else {
                inline.to_owned()
            };
            self.value(letter, value)?;
            return Ok(());
        }
        Ok(())
    }

    fn flag(&mut self, letter: char) {
        match letter {
            'n' => self.is_silent = true,
            'q' => self.is_quiet = true,
            's' => self.is_subsystem = true,
            'T' => self.terminal = Terminal::Never,
            't' if self.terminal == Terminal::IfHere => self.terminal = Terminal::Always,
            't' => self.terminal = Terminal::IfHere,
            'V' => self.is_version = true,
            _ => {}
        }
    }

    fn value(&mut self, letter: char, value: String) -> Result<(), String> {
        let keyword = match letter {
            'F' => {
                self.file = Some(value.into());
                return Ok(());
            }
            'l' => "user",
            'p' => "port",
            'i' => "identityfile",
            'o' => {
                let end = value.find(['=', ' ', '\t']);
                let end = end.ok_or_else(|| format!("-o '{value}' has no value"))?;
                let keyword = value[..end].to_lowercase();
                let value = value[end..].trim_matches(['=', ' ', '\t']).to_owned();
                return self.set(keyword, value);
            }
            _ => return Ok(()),
        };
        self.set(keyword.into(), value)
    }

    fn set(&mut self, keyword: String, value: String) -> Result<(), String> {
        if keyword == "port" && !value.parse().is_ok_and(|port: u16| port > 0) {
            return Err(format!("bad port '{value}'"));
        }
        self.settings.push((keyword, value));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn launchers_lines_are_understood() {
        let setting = |keyword: &str, value: &str| (keyword.to_owned(), value.to_owned());
        // pdsh
        let options = parse("-oConnectTimeout=10 -2 -a -x -lalice n2 hostname -s").unwrap();
        assert_eq!(options.host, "n2");
        assert_eq!(options.command.as_deref(), Some("hostname -s"));
        let expected = [setting("connecttimeout", "10"), setting("user", "alice")];
        assert_eq!(options.settings, expected);
        // Hydra and OpenMPI
        let options = parse("-x n2 \"/usr/bin/hydra_pmi_proxy\" --control-port n1:1").unwrap();
        assert!(options.command.unwrap().ends_with("--control-port n1:1"));
        // scp
        let options = parse("-x -oForwardAgent=no -oRequestTTY=no -s -- bob@n2 sftp").unwrap();
        assert!(options.is_subsystem);
        assert_eq!(
            (options.host.as_str(), options.command.as_deref()),
            ("n2", Some("sftp"))
        );
        assert_eq!(options.settings.last(), Some(&setting("user", "bob")));
    }

    #[test]
    fn letters_and_values() {
        let options = parse("-tt -p1204 n2 -n -F /x -o Port 7").unwrap_err();
        assert_eq!(options, "-o 'Port' has no value");
        let options = parse("-ttqp 1204 n2 -nF/x").unwrap();
        assert_eq!(options.terminal, Terminal::Always);
        assert_eq!(options.file, Some("/x".into()));
        assert!(options.is_silent && options.is_quiet && options.command.is_none());
        assert!(parse("-V").unwrap().is_version);
        for wrong in [
            "",
            "-p",
            "-p abc n2",
            "-oPort=0 n2",
            "-Z n2",
            "-L 1:n2:2 n2",
            "-N n2",
            "-s n2",
        ] {
            let words = wrong.split(' ').filter(|word| !word.is_empty());
            assert!(Options::parse(words.map(str::to_owned)).is_err(), "{wrong}");
        }
    }
}

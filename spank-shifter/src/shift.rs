//! Autoshift: the tasks of a step enter its root by themselves.
//!
//! ```text
//! slurmstepd, before it forks    ready    find the root, read image and configuration
//! task, still root               enter    join; nothing of root's is loaded from here on
//! task, as the user              settle   verify; the environment as for `shifter COMMAND`
//! ```

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use node_setup::entry;
use node_setup::error::Error;
use node_setup::launch;
use node_setup::prepared::Prepared;
use node_setup::task;
use shifter_core::config::Config;
use shifter_core::env::Pair;
use shifter_core::ids::JobId;
use shifter_core::meta::ImageMeta;
use shifter_core::sanitize;

use crate::report;
use crate::settings::Settings;

/// What the tasks of a step need to enter their root.
pub struct Shift {
    prepared: Prepared,
    meta: ImageMeta,
    config: Config,
    uid: u32,
    /// What starts the tasks' commands, if anything does.
    entry: Vec<Vec<u8>>,
}

/// What becomes of a task that is inside.
#[derive(Debug, Default)]
pub struct Settled {
    /// What changes in its environment.
    pub changes: Vec<Change>,
    /// What Slurm is to execute instead of the command, with the same arguments.
    pub program: Option<&'static str>,
}

/// A variable, and its value unless it is to be removed.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

impl Shift {
    /// Gets everything ready that is outside of the root.
    ///
    /// # Errors
    /// The lines with which the tasks are to fail.
    pub fn ready(
        job: &JobId,
        root: &str,
        uid: u32,
        starts_by_entry: bool,
        settings: &Settings,
    ) -> Result<Self, Vec<String>> {
        let config = Config::open_trusted(settings.config());
        let config = config.map_err(|error| report::lines(&error, None))?;
        let prepared = Prepared::find_root(job, root).map_err(|error| told(&error))?;
        let prepared = prepared.filter(|prepared| prepared.manifest.user.uid == uid);
        let prepared = prepared.ok_or_else(|| told(&Error::Removed(job.to_string())))?;
        let image = &prepared.manifest.image.reference;
        let shown = sanitize::text(image);
        if !prepared.manifest.modes.ccm && !config.slurm.permits_autoshift(image) {
            let message = format!("cannot use --autoshift with image '{shown}'");
            return Err(vec![format!(
                "shifter: {message}: this site does not allow it"
            )]);
        }
        let meta = ImageMeta::parse(&prepared.meta);
        let meta = meta.map_err(|error| vec![format!("shifter: image '{shown}': {error}")])?;
        let entry = meta.entry.clone().filter(|_| starts_by_entry);
        Ok(Self {
            entry: entry.unwrap_or_default(),
            prepared,
            meta,
            config,
            uid,
        })
    }

    /// Moves the task into the root.
    ///
    /// # Errors
    /// The lines with which the task is to fail.
    pub fn enter(&self) -> Result<(), Vec<String>> {
        task::enter(&self.prepared).map_err(|error| told(&error))
    }

    /// Verifies what the task is, and returns what is to change about it. `command` is what
    /// Slurm will run; a batch script it has made itself.
    ///
    /// # Errors
    /// The lines with which the task is to fail.
    pub fn settle(
        &self,
        given: &[Vec<u8>],
        command: &[OsString],
        is_batch: bool,
    ) -> Result<Settled, Vec<String>> {
        let given = pairs(given);
        let wanted = task::settle(
            &self.prepared,
            &self.meta,
            &self.config,
            self.uid,
            given.clone(),
        );
        let mut wanted = wanted.map_err(|error| told(&error))?;
        let script = command.first().map(Path::new).filter(|_| is_batch);
        if let Some(script) = script.filter(|script| !script.exists()) {
            return Err(hidden(script));
        }
        let program = self.entry_starts(command, &mut wanted)?;
        Ok(Settled {
            changes: changes(&given, wanted),
            program,
        })
    }

    /// Lets the image's entry point start the command, where it is to.
    fn entry_starts(
        &self,
        command: &[OsString],
        environment: &mut Vec<Pair>,
    ) -> Result<Option<&'static str>, Vec<String>> {
        let Some(program) = command.first().filter(|_| !self.entry.is_empty()) else {
            return Ok(None);
        };
        let refused = |reason: &str| {
            let message = "cannot start the task by the image's entry point";
            vec![format!("shifter: {message}: {reason}")]
        };
        if is_programs(command, environment) {
            return Err(refused("with --multi-prog each has a program of its own"));
        }
        if !Path::new(entry::STARTER).exists() {
            return Err(refused(&format!("'{}' is not there", entry::STARTER)));
        }
        environment.push(entry::tell(&self.entry, program.as_bytes()));
        Ok(Some(entry::STARTER))
    }
}

/// True of the two words by which Slurm tells a step of `--multi-prog`: a file's name and what is in it.
/// What the tasks execute it does not tell then, and it is not to be changed.
fn is_programs(command: &[OsString], environment: &[Pair]) -> bool {
    let [file, text] = command else {
        return false;
    };
    let lines = text.as_bytes().split(|byte| *byte == b'\n');
    let mut firsts = lines.filter_map(|line| line.trim_ascii_start().first());
    let has_ranks = firsts
        .find(|first| **first != b'#')
        .is_some_and(|first| first.is_ascii_digit() || *first == b'*');
    // A command that is not there fails either way.
    has_ranks && (!launch::is_found(file.as_bytes(), environment) || holds(Path::new(file), text))
}

/// True of a file with this text in it.
fn holds(file: &Path, text: &OsStr) -> bool {
    let is_long = |meta: fs::Metadata| meta.is_file() && meta.len() == text.len() as u64;
    fs::metadata(file).is_ok_and(is_long)
        && fs::read(file).is_ok_and(|found| found == text.as_bytes())
}

/// Says that the site has not told where Slurm keeps batch scripts.
fn hidden(script: &Path) -> Vec<String> {
    let script = sanitize::text(&script.to_string_lossy());
    vec![
        format!("shifter: cannot see the batch script '{script}' in the container"),
        "hint: tell the site that 'spool_dir' in shifter.toml is not Slurm's SlurmdSpoolDir".into(),
    ]
}

fn told(error: &Error) -> Vec<String> {
    report::lines(error, error.hint())
}

fn pairs(given: &[Vec<u8>]) -> Vec<Pair> {
    let split = |text: &Vec<u8>| {
        let at = text.iter().position(|byte| *byte == b'=')?;
        Some((text[..at].to_vec(), text[at + 1..].to_vec()))
    };
    given.iter().filter_map(split).collect()
}

/// Returns what makes the one environment of the other.
fn changes(given: &[Pair], wanted: Vec<Pair>) -> Vec<Change> {
    let is_gone = |name: &Vec<u8>| !wanted.iter().any(|(other, _)| other == name);
    let gone = given
        .iter()
        .map(|(name, _)| name)
        .filter(|name| is_gone(name));
    let gone: Vec<Change> = gone.map(|name| (name.clone(), None)).collect();
    let is_new = |pair: &Pair| given.iter().find(|(name, _)| *name == pair.0) != Some(pair);
    let new = wanted.into_iter().filter(is_new);
    let new = new.map(|(name, value)| (name, Some(value)));
    gone.into_iter().chain(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_changed() {
        let given = [&b"A=1"[..], b"B=2", b"C=3=4", b"broken", b"D=\xff"].map(<[u8]>::to_vec);
        let given = pairs(&given);
        let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        assert_eq!(given[2], pair("C", b"3=4"));
        let wanted = vec![
            pair("A", b"1"),
            pair("C", b"5"),
            pair("D", b"\xff"),
            pair("E", b"6"),
        ];
        let expected: Vec<Change> = vec![
            (b"B".to_vec(), None),
            (b"C".to_vec(), Some(b"5".to_vec())),
            (b"E".to_vec(), Some(b"6".to_vec())),
        ];
        assert_eq!(changes(&given, wanted), expected);
    }

    #[test]
    fn several_programs_are_told_from_a_command() {
        let environment = [(b"PATH".to_vec(), b"/bin".to_vec())];
        let is = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            is_programs(&words, &environment)
        };
        assert!(is(&["no-such-file", "# all\n\n* hostname\n"]));
        assert!(is(&["no-such-file", "0,2-3 echo"]));
        assert!(!is(&["sh", "0 echo"]));
        assert!(!is(&["no-such-file", "x"]));
        assert!(!is(&["no-such-file", "0 a", "b"]));
        assert!(!is(&["no-such-file"]));
    }

    #[test]
    fn a_script_that_is_not_there_is_the_sites_to_mend() {
        let lines = hidden(Path::new("/var/spool/slurmd/job00017/slurm_script"));
        assert!(lines[0].contains("job00017") && lines[1].contains("'spool_dir'"));
    }
}

//! Autoshift: the tasks of a step enter its root by themselves.
//!
//! ```text
//! slurmstepd, before it forks    ready    find the root, read image and configuration
//! task, still root               enter    join; nothing of root's is loaded from here on
//! task, as the user              settle   verify; the environment as for `shifter COMMAND`
//! ```

use std::path::{Path, PathBuf};

use node_setup::error::Error;
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
        Ok(Self {
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

    /// Verifies what the task is, and returns what changes in its environment. `script` is what Slurm
    /// will run, where it made that itself.
    ///
    /// # Errors
    /// The lines with which the task is to fail.
    pub fn settle(
        &self,
        given: &[Vec<u8>],
        script: Option<PathBuf>,
    ) -> Result<Vec<Change>, Vec<String>> {
        let given = pairs(given);
        let wanted = task::settle(
            &self.prepared,
            &self.meta,
            &self.config,
            self.uid,
            given.clone(),
        );
        let wanted = wanted.map_err(|error| told(&error))?;
        match script {
            Some(script) if !script.exists() => Err(hidden(&script)),
            _ => Ok(changes(&given, wanted)),
        }
    }
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
    fn a_script_that_is_not_there_is_the_sites_to_mend() {
        let lines = hidden(Path::new("/var/spool/slurmd/job00017/slurm_script"));
        assert!(lines[0].contains("job00017") && lines[1].contains("'spool_dir'"));
    }
}

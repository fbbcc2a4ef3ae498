//! What the line in plugstack.conf tells the plugin: `shifter_config=PATH` and nothing else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use shifter_core::config::DEFAULT_PATH;

/// The arguments of the plugin's line in plugstack.conf.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    config: Option<PathBuf>,
    /// Arguments that mean nothing to this version.
    pub unknown: Vec<String>,
}

impl Settings {
    /// Reads the arguments; of a key given twice the last counts.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Self {
        let mut settings = Self::default();
        for arg in args {
            match arg.strip_prefix("shifter_config=") {
                Some(path) if path.starts_with('/') => settings.config = Some(path.into()),
                _ => settings.unknown.push(arg),
            }
        }
        settings
    }

    /// Returns the configuration's path.
    pub fn config(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH))
    }

    /// Returns the arguments with which a program of the suite is told to read the same
    /// configuration.
    pub fn config_args(&self) -> Vec<PathBuf> {
        self.config
            .iter()
            .flat_map(|path| [PathBuf::from("--config"), path.clone()])
            .collect()
    }

    /// Returns the same for the programs that know it as one word alone.
    pub fn config_arg(&self) -> Option<OsString> {
        let mut word = OsString::from("--config=");
        word.push(self.config.as_ref()?);
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Settings {
        Settings::parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn default_is_the_sites_file() {
        assert_eq!(parse(&[]).config(), Path::new("/etc/shifter/shifter.toml"));
        assert!(parse(&[]).config_args().is_empty());
    }

    #[test]
    fn path_is_passed_on() {
        let settings = parse(&["shifter_config=/a", "shifter_config=/b.toml"]);
        assert_eq!(settings.config(), Path::new("/b.toml"));
        assert_eq!(
            settings.config_args(),
            [Path::new("--config"), Path::new("/b.toml")]
        );
        assert_eq!(settings.config_arg(), Some("--config=/b.toml".into()));
        assert_eq!(parse(&[]).config_arg(), None);
    }

    #[test]
    fn strange_arguments_are_kept_for_the_log() {
        let settings = parse(&[
            "extern_setup=/x",
            "shifter_config=relative",
            "shifter_config",
        ]);
        assert_eq!(settings.unknown.len(), 3);
        assert_eq!(settings.config(), Path::new(DEFAULT_PATH));
    }
}

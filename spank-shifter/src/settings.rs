//! What the line in plugstack.conf tells the plugin: `shifter_config=PATH` and `long_options=1`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use shifter_core::config::DEFAULT_PATH;
use shifter_core::sanitize;

/// The arguments of the plugin's line in plugstack.conf.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    config: Option<PathBuf>,
    /// True if the options are to have the C Shifter's longer names, too.
    pub has_long_options: bool,
    /// Arguments that mean nothing to this version.
    pub unknown: Vec<String>,
}

/// What has taken the place of arguments that the C Shifter's plugin knows.
const MOVED: [(&str, &str); 5] = [
    ("enable_ccm", "see slurm.ccm in shifter.toml"),
    ("enable_sshd", "see ssh.enable in shifter.toml"),
    ("extern_setup", "the extern step needs no set-up any more"),
    (
        "extern_cgroup",
        "what starts with a job is in its cgroups by itself",
    ),
    (
        "memory_cgroup",
        "what starts with a job is in its cgroups by itself",
    ),
];

impl Settings {
    /// Reads the arguments; of a key given twice the last counts.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Self {
        let mut settings = Self::default();
        for arg in args {
            match arg.split_once('=') {
                Some(("shifter_config", path)) if path.starts_with('/') => {
                    settings.config = Some(path.into());
                }
                Some(("long_options", "0")) => settings.has_long_options = false,
                Some(("long_options", "1")) => settings.has_long_options = true,
                _ => settings.unknown.push(arg),
            }
        }
        settings
    }

    /// Returns a line about each argument that means nothing to this version.
    pub fn complaints(&self) -> impl Iterator<Item = String> {
        self.unknown.iter().map(|arg| {
            let known = arg.split('=').next().unwrap_or_default();
            let moved = MOVED.iter().find(|(name, _)| *name == known);
            let instead = moved.map_or(String::new(), |(_, text)| format!(": {text}"));
            let arg = sanitize::text(arg);
            format!("shifter: ignoring '{arg}' in plugstack.conf{instead}")
        })
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
            "long_options=yes",
        ]);
        assert_eq!(settings.unknown.len(), 4);
        assert!(!settings.has_long_options && parse(&["long_options=1"]).has_long_options);
        let complaints: Vec<String> = settings.complaints().collect();
        let begin = "shifter: ignoring 'extern_setup=/x' in plugstack.conf: the extern step";
        assert!(complaints[0].starts_with(begin), "{complaints:?}");
        assert!(complaints[3].ends_with("'long_options=yes' in plugstack.conf"));
        assert_eq!(settings.config(), Path::new(DEFAULT_PATH));
    }
}

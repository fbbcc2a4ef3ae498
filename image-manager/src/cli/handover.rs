//! Handing a pull over to the command that the site configured, which puts images into the site's
//! store as its owner.

use std::os::unix::process::CommandExt;
use std::process::Command;

use shifter_core::exit::ExitCode;

use super::failure::Failure;
use super::{Session, output};
use crate::store::StoreError;

/// The search path of the site's command.
const FIXED_PATH: &str = "/usr/bin:/bin";

impl Session {
    /// Becomes the site's pull command; its exit code is then this program's.
    pub(super) fn hand_over(&self) -> Result<ExitCode, Failure> {
        if self.caller.is_sudo {
            // The command leads here again: without this it would do so for ever.
            let (uid, owner) = (self.caller.uid, self.config.store.image_owner);
            return Err(Failure::internal(format!(
                "site_pull_command runs as uid {uid}, and image_owner is {owner}"
            )));
        }
        let Some((program, arguments)) = self.config.store.site_pull_command.split_first() else {
            return Err(self.not_owner("cannot pull"));
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", FIXED_PATH);
        command.args(self.handed_options());
        for reference in self.references()? {
            command.arg(reference.canonical());
        }
        let caller = &self.caller;
        let home = caller.home.as_ref().map(|home| ("HOME", home.as_os_str()));
        let lang = caller.lang.as_ref().map(|lang| ("LANG", lang.as_os_str()));
        let term = caller.term.as_ref().map(|term| ("TERM", term.as_os_str()));
        command.envs(home).envs(lang).envs(term);
        self.explain(|| format!("handing over to the site's command '{program}'"));
        let error = command.exec();
        Err(Failure::internal(format!(
            "cannot run the site's pull command '{program}': {}",
            output::chain(&error)
        )))
    }

    /// Returns the options that the other side needs: those that the installed sudo rule permits.
    fn handed_options(&self) -> Vec<String> {
        let options = &self.options;
        let flags = [
            (options.quiet, "--quiet"),
            (options.json, "--json"),
            (options.verbose, "--verbose"),
            (options.login, "--login"),
            (options.password_stdin, "--password-stdin"),
        ];
        let given = flags.into_iter().filter(|(given, _)| *given);
        let mut words: Vec<String> = given.map(|(_, flag)| flag.to_owned()).collect();
        let users = (!options.users.is_empty()).then(|| options.users.join(","));
        let groups = (!options.groups.is_empty()).then(|| options.groups.join(","));
        let values = [
            ("platform", options.platform.clone()),
            ("username", options.username.clone()),
            ("user", users),
            ("group", groups),
        ];
        for (name, value) in values {
            words.extend(value.map(|value| format!("--{name}={value}")));
        }
        words
    }

    /// Says that only the owner of the site's store can do it.
    pub(super) fn not_owner(&self, context: &str) -> Failure {
        let owner = self.config.store.image_owner;
        Failure::of_store(context, &StoreError::NotOwner { owner })
    }
}

//! `pull`: choosing the store, or handing over to the command that the site configured.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use serde::Serialize;
use shifter_core::config::UserImages;
use shifter_core::exit::ExitCode;
use shifter_core::reference::ImageRef;
use shifter_core::sanitize;

use super::{Failure, Session, output, print};
use crate::image_options;
use crate::pull::{Pulled, pull};
use crate::registry::{Client, Logins, Proxies};
use crate::store::{Store, StoreError, StoreKind, megabytes};

/// The search path of the site's command.
const FIXED_PATH: &str = "/usr/bin:/bin";

/// Where a pull goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Site,
    User,
    /// The site's command puts it into the site store.
    Handover,
}

/// The result of a pull in JSON; the keys are an interface.
#[derive(Serialize)]
struct PullRecord<'a> {
    reference: &'a str,
    #[serde(rename = "type")]
    image_type: &'a str,
    id: &'a str,
    digest: String,
    store: &'a str,
    path: String,
    size: u64,
    new: bool,
}

impl Session {
    /// Pulls every image of the command line.
    pub(super) fn pull(&self) -> Result<ExitCode, Failure> {
        let has_command = !self.config.store.site_pull_command.is_empty();
        let is_owner = self.caller.uid == self.config.store.image_owner;
        let target =
            choose(self.options.store, is_owner, has_command).ok_or_else(|| self.not_owner())?;
        match target {
            Target::Handover => self.hand_over(),
            Target::Site => self.pull_into(StoreKind::Site),
            Target::User => self.pull_into(StoreKind::User),
        }
    }

    fn pull_into(&self, kind: StoreKind) -> Result<ExitCode, Failure> {
        let context = "cannot pull";
        let home = self.caller.home.as_deref();
        let store = match (kind, home) {
            (StoreKind::Site, _) => {
                Store::create_site(&self.config.store.path, self.config.store.image_owner)
            }
            (StoreKind::User, Some(home)) => Store::create_user(home),
            (StoreKind::User, None) => Err(StoreError::NoHome),
        };
        let store = store.map_err(|error| Failure::of_store(context, &error))?;
        let store =
            store.with_build(image_options::of_site(&self.config.store).map_err(|error| {
                Failure::new(
                    ExitCode::Usage,
                    format!("{context}: {}", output::chain(&error)),
                )
            })?);
        let logins = home.map_or_else(
            || Ok(Logins::default()),
            |home| Logins::of_home(home, self.caller.uid),
        );
        let logins = logins.map_err(|error| {
            Failure::new(
                error.exit_code(),
                format!("{context}: {}", output::chain(&error)),
            )
        })?;
        let proxies = Proxies::from_env(|name| std::env::var(name).ok());
        let client = Client::new(self.config.registry.clone(), logins, proxies);
        let code = self.each(|reference| self.pull_one(&client, &store, reference))?;
        let is_useless = kind == StoreKind::User && self.config.store.user_images == UserImages::No;
        if is_useless && code == ExitCode::Success && !self.options.quiet {
            output::note("this site does not run images from users' own stores");
        }
        Ok(code)
    }

    fn pull_one(
        &self,
        client: &Client,
        store: &Store,
        reference: &ImageRef,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        let canonical = reference.canonical();
        let progress = output::Progress::new(&canonical, !self.options.quiet);
        let watch = |step| progress.show(step);
        let pulled = pull(client, store, reference, self.caller.puller(), &watch);
        progress.clear();
        let pulled = pulled.map_err(|error| Failure {
            code: error.exit_code(),
            message: format!("cannot pull image '{canonical}': {}", output::chain(&error)),
            hint: error.hint(),
        })?;
        for name in &pulled.left_out {
            let name = sanitize::bytes(name);
            output::note(&format!(
                "the image's variable '{name}' contains a line break and is left out"
            ));
        }
        if !self.options.quiet {
            output::result(&summary(&canonical, &pulled, begin.elapsed().as_secs_f64()));
        }
        if self.options.json {
            print(&super::json_line(&PullRecord {
                reference: &canonical,
                image_type: reference.image_type().as_str(),
                id: pulled.id.as_str(),
                digest: pulled.digest.to_string(),
                store: store.kind().as_str(),
                path: pulled.path.display().to_string(),
                size: pulled.size,
                new: pulled.is_new,
            })?)?;
        }
        Ok(())
    }

    /// Becomes the site's pull command; its exit code is then this program's.
    fn hand_over(&self) -> Result<ExitCode, Failure> {
        if self.caller.is_sudo {
            // The command leads here again: without this it would do so for ever.
            let (uid, owner) = (self.caller.uid, self.config.store.image_owner);
            return Err(Failure::new(
                ExitCode::Internal,
                format!("site_pull_command runs as uid {uid}, and image_owner is {owner}"),
            ));
        }
        let mut references = Vec::new();
        for text in &self.options.images {
            references.push(self.reference(text)?.canonical());
        }
        let Some((program, arguments)) = self.config.store.site_pull_command.split_first() else {
            return Err(self.not_owner());
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", FIXED_PATH);
        command.args(self.options.quiet.then_some("--quiet"));
        command.args(self.options.json.then_some("--json"));
        command.args(&references);
        let home = self
            .caller
            .home
            .as_ref()
            .map(|home| ("HOME", home.as_os_str()));
        let lang = self
            .caller
            .lang
            .as_ref()
            .map(|lang| ("LANG", lang.as_os_str()));
        command.envs(home).envs(lang);
        let error = command.exec();
        let message = format!("cannot run the site's pull command '{program}': {error}");
        Err(Failure::new(ExitCode::Internal, message))
    }

    fn not_owner(&self) -> Failure {
        let owner = self.config.store.image_owner;
        Failure::of_store("cannot pull", &StoreError::NotOwner { owner })
    }
}

/// Chooses the target; none if only the owner of the site store could do it.
fn choose(wanted: Option<StoreKind>, is_owner: bool, has_command: bool) -> Option<Target> {
    match (wanted, is_owner, has_command) {
        (Some(StoreKind::User), ..) | (None, false, false) => Some(Target::User),
        (_, true, _) => Some(Target::Site),
        (_, false, true) => Some(Target::Handover),
        (Some(StoreKind::Site), false, false) => None,
    }
}

fn summary(reference: &str, pulled: &Pulled, seconds: f64) -> String {
    let id: String = pulled.id.as_str().chars().take(12).collect();
    format!(
        "pulled {reference} (id {id}, {}, {seconds:.1} s)",
        megabytes(pulled.size)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_the_store() {
        let (site, user) = (Some(StoreKind::Site), Some(StoreKind::User));
        let table = [
            (None, true, false, Some(Target::Site)),
            (None, true, true, Some(Target::Site)),
            (None, false, true, Some(Target::Handover)),
            (None, false, false, Some(Target::User)),
            (site, true, true, Some(Target::Site)),
            (site, false, true, Some(Target::Handover)),
            (site, false, false, None),
            (user, true, true, Some(Target::User)),
            (user, false, true, Some(Target::User)),
        ];
        for (wanted, is_owner, has_command, expect) in table {
            assert_eq!(choose(wanted, is_owner, has_command), expect);
        }
    }
}

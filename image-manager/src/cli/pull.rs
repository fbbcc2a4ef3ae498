//! `pull`: choosing the store, and pulling images one after the other.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use shifter_core::config::UserImages;
use shifter_core::exit::ExitCode;
use shifter_core::reference::ImageRef;
use shifter_core::sanitize;
use shifter_core::trusted::{self, TrustError};

use super::failure::{Failure, Outcome, file_hint, shown};
use super::progress::{Progress, Wishes};
use super::{Session, output, signals};
use crate::build::BuildOptions;
use crate::image_options;
use crate::pull::{Pulled, Request, pull};
use crate::registry::{Client, Wanted};
use crate::store::{Audience, Store, StoreKind, megabytes};

/// Where a pull goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Site,
    User,
    /// The site's command puts it into the site store.
    Handover,
}

/// An image that was pulled or imported, in JSON; the keys are an interface.
#[derive(Serialize)]
pub(super) struct DoneRecord<'a> {
    pub event: &'static str,
    pub reference: &'a str,
    #[serde(rename = "type")]
    pub image_type: &'a str,
    pub id: &'a str,
    pub digest: Option<String>,
    pub store: &'a str,
    pub path: String,
    pub size: u64,
    pub new: bool,
}

/// What went wrong with one image, in JSON; the keys are an interface.
#[derive(Serialize)]
struct ErrorRecord<'a> {
    event: &'static str,
    reference: Option<String>,
    code: u8,
    message: &'a str,
    hint: Option<&'a str>,
}

impl Session {
    /// Pulls every image of the command line.
    pub(super) fn pull(&self) -> Result<ExitCode, Failure> {
        let has_command = !self.config.store.site_pull_command.is_empty();
        let target = choose(self.options.store, self.is_image_owner(), has_command)
            .ok_or_else(|| self.not_owner("cannot pull"))?;
        match target {
            Target::Handover => self.hand_over(),
            Target::Site => self.pull_into(StoreKind::Site),
            Target::User => self.pull_into(StoreKind::User),
        }
    }

    fn pull_into(&self, kind: StoreKind) -> Result<ExitCode, Failure> {
        let context = "cannot pull";
        let references = self.references()?;
        let store = self
            .writable_store(kind)
            .map_err(|error| Failure::of_store(context, &error))?;
        let wanted = self.wanted()?;
        let audience = self.audience()?;
        signals::watch(&self.cancel);
        let client = self.pull_client(&references)?;
        let mut outcome = Outcome::default();
        for (reference, text) in references.iter().zip(&self.options.words) {
            if self.cancel.is_cancelled() {
                break;
            }
            if let Err(failure) =
                self.pull_one(&client, &store, (reference, text), &wanted, &audience)
            {
                outcome.add(self.report(Some(reference), &failure)?);
            }
        }
        let is_useless = kind == StoreKind::User && self.config.store.user_images == UserImages::No;
        if outcome.code() == ExitCode::Success && !self.options.quiet {
            if is_useless {
                output::note("this site does not run images from users' own stores");
            }
            if kind == StoreKind::Site {
                self.warn_of_place();
            }
        }
        Ok(outcome.code())
    }

    /// Says if the site store is where nodes will not have it, because others could put another in its place.
    fn warn_of_place(&self) {
        let config = &self.config.store;
        let reason = match trusted::audit(&config.path, &[0, config.image_owner]) {
            Ok(_) => return,
            // Such as /tmp, which is as it must be.
            Err(TrustError::Untrusted { path, .. }) if is_sticky(&path) => {
                let path = sanitize::text(&path.display().to_string());
                format!("everybody may write in '{path}', put it elsewhere")
            }
            Err(error) => output::chain(&error),
        };
        output::note(&format!("nodes will refuse images of this store: {reason}"));
    }

    /// How this site wants its images.
    pub(super) fn build_options(&self, kind: StoreKind) -> BuildOptions {
        image_options::of_site(&self.config.store, kind)
    }

    fn pull_one(
        &self,
        client: &Client,
        store: &Store,
        (reference, text): (&ImageRef, &str),
        wanted: &Wanted,
        audience: &Audience,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        let canonical = reference.canonical();
        let progress = Arc::new(Progress::new(&canonical, self.wishes()));
        self.current.set(&progress);
        let pulled = pull(&Request {
            client,
            store,
            reference,
            wanted,
            audience,
            options: &self.build_options(store.kind()),
            cancel: &self.cancel,
            watch: &|event| progress.show(&event),
        });
        progress.clear();
        let pulled = pulled.map_err(|error| {
            if self.cancel.is_cancelled() {
                let message = format!("cannot pull image '{}': interrupted", shown(reference));
                let hint = "what was downloaded is kept for the next pull".to_owned();
                return Failure::internal(message).with_hint(hint);
            }
            let message = format!(
                "cannot pull image '{}': {}",
                shown(reference),
                output::chain(&error)
            );
            let hint = error.hint().or_else(|| file_hint(text));
            Failure::new(error.exit_code(), message).with_hint(hint)
        })?;
        warn_of_left_out(&pulled.left_out);
        if !self.options.quiet {
            output::result(&summary(&canonical, &pulled, begin.elapsed().as_secs_f64()));
        }
        if self.options.json {
            output::record(&DoneRecord {
                event: "done",
                reference: &canonical,
                image_type: reference.image_type().as_str(),
                id: pulled.id.as_str(),
                digest: Some(pulled.digest.to_string()),
                store: store.kind().as_str(),
                path: pulled.path.display().to_string(),
                size: pulled.size,
                new: pulled.is_new,
            })?;
        }
        Ok(())
    }

    /// Tells of a failure, in JSON too where that was asked for.
    pub(super) fn report(
        &self,
        reference: Option<&ImageRef>,
        failure: &Failure,
    ) -> Result<ExitCode, Failure> {
        self.report_json(reference, failure)?;
        Ok(failure.report())
    }

    /// Tells of a failure in JSON, where that was asked for; without a reference it is one of an image
    /// without a name, or of the whole command.
    pub(super) fn report_json(
        &self,
        reference: Option<&ImageRef>,
        failure: &Failure,
    ) -> Result<(), Failure> {
        if !self.options.json || failure.message.is_empty() {
            return Ok(());
        }
        output::record(&ErrorRecord {
            event: "error",
            reference: reference.map(ImageRef::canonical),
            code: signals::status().unwrap_or(failure.code.code()),
            message: &failure.message,
            hint: failure.hint.as_deref(),
        })
    }

    pub(super) fn wishes(&self) -> Wishes {
        Wishes {
            quiet: self.options.quiet,
            json: self.options.json,
            verbose: self.options.verbose,
        }
    }
}

fn is_sticky(path: &Path) -> bool {
    let mode = path.metadata().map_or(0, |meta| meta.mode());
    mode & 0o1000 != 0
}

/// Says which of the image's variables nobody will see.
pub(super) fn warn_of_left_out(names: &[Vec<u8>]) {
    for name in names {
        let name = sanitize::bytes(name);
        output::note(&format!(
            "the image's variable '{name}' contains a line break and is left out"
        ));
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
    let what = match pulled.is_new {
        true => "pulled",
        false => "already there:",
    };
    format!(
        "{what} {reference} (id {id}, {}, {seconds:.1} s)",
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

//! The program `shifterimg`: from the command line to an exit code.
//!
//! Run by users as themselves, or through sudo as the owner of the site store; then the one who
//! called sudo chooses images and nothing else: no configuration, no store, no home, no file.

mod args;
mod caller;
mod client;
mod command;
mod config;
mod failure;
mod gc;
mod handover;
mod images;
mod import;
mod inspect;
mod login;
mod lookup;
mod output;
mod progress;
mod pull;
mod remove;
mod signals;
mod table;
mod template;
mod terminal;
mod verify;

use std::ffi::OsString;

use shifter_core::config::Config;
use shifter_core::exit::ExitCode;
use shifter_core::reference::ImageRef;
use shifter_core::sanitize;

use crate::cancel::Cancel;
use crate::registry::Wanted;
use crate::store::{Audience, Store, StoreError, StoreKind, Viewer, Waiting};
use args::Options;
use caller::Caller;
use command::Command;
use failure::{Failure, Outcome, file_hint};
use progress::Current;

/// Everything a command needs.
struct Session {
    config: Config,
    caller: Caller,
    options: Options,
    cancel: Cancel,
    current: Current,
}

/// Runs the program with the arguments after its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Whatever is made starts private and then gets its fixed mode.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    signals::expect_aborts();
    let code =
        match start(args).and_then(|session| session.map_or(Ok(ExitCode::Success), Session::run)) {
            Ok(code) => code,
            Err(failure) => failure.report(),
        };
    signals::finish();
    code
}

/// Parses, reads the configuration, and answers what needs none.
fn start(args: impl IntoIterator<Item = OsString>) -> Result<Option<Session>, Failure> {
    let options = Options::parse(args).map_err(|error| {
        let message = sanitize::text(&error.to_string());
        Failure::new(ExitCode::Usage, message).with_hint(error.hint())
    })?;
    match options.command {
        Command::Help => return output::data(args::HELP).map(|()| None),
        Command::Version => {
            let text = concat!("shifterimg ", env!("CARGO_PKG_VERSION"), "\n");
            return output::data(text).map(|()| None);
        }
        _ => {}
    }
    let caller = Caller::current();
    if caller.is_sudo && (options.config.is_some() || options.store.is_some()) {
        return Err(Failure::new(
            ExitCode::Denied,
            "--config and --store are not accepted through sudo".into(),
        ));
    }
    Ok(Some(Session {
        config: config::read(options.config.as_deref(), caller.uid)?,
        caller,
        options,
        cancel: Cancel::default(),
        current: Current::default(),
    }))
}

impl Session {
    fn run(self) -> Result<ExitCode, Failure> {
        match self.options.command {
            Command::Pull => self.with_events(Self::pull),
            Command::Images => self.images(),
            Command::Lookup => self.lookup(),
            Command::Inspect => self.inspect(),
            Command::Remove => self.remove(),
            Command::Import => self.with_events(Self::import),
            Command::Login => self.login(),
            Command::Logout => self.logout(),
            Command::Collect => self.collect(),
            Command::Verify => self.verify(),
            Command::Help | Command::Version => Ok(ExitCode::Success),
        }
    }

    /// Tells of a failure as an event too.
    fn with_events(
        &self,
        action: impl Fn(&Self) -> Result<ExitCode, Failure>,
    ) -> Result<ExitCode, Failure> {
        let done = action(self);
        if let Err(failure) = &done {
            self.report_json(None, failure)?;
        }
        done
    }

    /// Parses a reference under this site's rules.
    fn reference(&self, text: &str) -> Result<ImageRef, Failure> {
        ImageRef::parse(text, &self.config.type_rules()).map_err(|error| {
            let message = format!(
                "cannot use image '{}': {}",
                sanitize::text(text),
                output::chain(&error)
            );
            Failure::new(ExitCode::Usage, message).with_hint(file_hint(text))
        })
    }

    /// Parses all references of the command line: a mistake in one is found before anything is done.
    fn references(&self) -> Result<Vec<ImageRef>, Failure> {
        let texts = self.options.words.iter();
        texts.map(|text| self.reference(text)).collect()
    }

    /// Returns the stores that exist and are asked for, the site's first.
    fn stores(&self) -> Result<Vec<Store>, StoreError> {
        let kinds = [StoreKind::Site, StoreKind::User];
        let opened = kinds
            .into_iter()
            .filter_map(|kind| self.store(kind).transpose());
        opened.collect()
    }

    /// Opens a store for reading, if it exists and is asked for.
    fn store(&self, kind: StoreKind) -> Result<Option<Store>, StoreError> {
        if self.options.store.is_some_and(|only| only != kind) {
            return Ok(None);
        }
        let store = match (kind, &self.caller.home) {
            (StoreKind::Site, _) => Store::open_site(&self.config.store.path)?,
            (StoreKind::User, Some(home)) => Store::open_user(home)?,
            (StoreKind::User, None) => None,
        };
        Ok(store.map(|store| self.with_cache(store)))
    }

    /// Opens the store that is to be written to.
    fn writable_store(&self, kind: StoreKind) -> Result<Store, StoreError> {
        let config = &self.config.store;
        let store = match (kind, &self.caller.home) {
            (StoreKind::Site, _) => Store::create_site(&config.path, config.image_owner),
            (StoreKind::User, Some(home)) => Store::create_user(home),
            (StoreKind::User, None) => Err(StoreError::NoHome),
        };
        store.map(|store| self.with_cache(store))
    }

    /// Tells a store where its layers are kept, and how many.
    fn with_cache(&self, store: Store) -> Store {
        let config = &self.config.store;
        match store.kind() {
            StoreKind::Site => {
                store.with_cache(config.cache_dir.clone(), config.cache_size_limit_bytes())
            }
            StoreKind::User => store.with_cache(None, config.user_cache_size_limit_bytes()),
        }
    }

    /// Returns the platform whose images are wanted.
    fn wanted(&self) -> Result<Wanted, Failure> {
        let Some(text) = &self.options.platform else {
            return Ok(Wanted::default());
        };
        Wanted::parse(text).ok_or_else(|| {
            let message = format!("'{}' is not a platform", sanitize::text(text));
            Failure::new(ExitCode::Usage, message)
                .with_hint("linux/amd64, linux/arm64/v8".to_owned())
        })
    }

    /// Returns for whom an image is that not everybody may have.
    fn audience(&self) -> Result<Audience, Failure> {
        let (users, groups) = (&self.options.users, &self.options.groups);
        Audience::with(self.caller.puller(), users, groups)
            .map_err(|error| Failure::new(error.exit_code(), output::chain(&error)))
    }

    /// True if the caller may change the site's store.
    fn is_image_owner(&self) -> bool {
        self.caller.uid == self.config.store.image_owner
    }

    /// How commands without progress wait for what somebody else is at work on.
    fn waiting(&self) -> Waiting<'_> {
        Waiting {
            cancel: Some(&self.cancel),
            tell: &|owner| {
                let holder = owner.describe();
                output::note(&format!("waiting for {holder} to be done with this image"));
            },
        }
    }

    /// Runs `action` for every image of the command line and goes on after a failure; the worst
    /// failure decides the exit code.
    fn each(&self, action: impl Fn(&ImageRef) -> Result<(), Failure>) -> Result<ExitCode, Failure> {
        let mut outcome = Outcome::default();
        for reference in &self.references()? {
            if let Err(failure) = action(reference) {
                outcome.add(failure.report());
            }
        }
        Ok(outcome.code())
    }

    /// Prints what is done, where that was asked for.
    fn explain(&self, text: impl FnOnce() -> String) {
        if self.options.verbose && !self.options.quiet {
            output::note(&text());
        }
    }
}

/// Describes who runs the program.
fn viewer(context: &str) -> Result<Viewer, Failure> {
    Viewer::current().map_err(|error| {
        let reason = output::chain(&error);
        Failure::internal(format!("{context}: {reason}"))
    })
}

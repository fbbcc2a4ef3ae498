//! The program `shifterimg`: from the command line to an exit code.
//!
//! Run by users as themselves, or through sudo as the owner of the site store; then the one who
//! called sudo chooses images and nothing else: no configuration, no store, no home.

mod args;
mod caller;
mod output;
mod pull;
mod show;

use std::error::Error;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use shifter_core::config::{Config, ConfigError, DEFAULT_PATH, UserImages};
use shifter_core::exit::ExitCode;
use shifter_core::reference::{ImageRef, ImageType};
use shifter_core::sanitize;

use crate::store::{Owner, Store, StoreError, StoreKind, StoredImage, Viewer};
use args::{Command, Options};
use caller::Caller;

const CONFIG_LIMIT: u64 = 1 << 20;

/// A failure as the user sees it.
struct Failure {
    code: ExitCode,
    message: String,
    hint: Option<String>,
}

/// Everything a command needs.
struct Session {
    config: Config,
    caller: Caller,
    options: Options,
}

/// Runs the program with the arguments after its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Whatever is made starts private and then gets its fixed mode.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    match start(args).and_then(|session| session.map_or(Ok(ExitCode::Success), Session::run)) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Parses, reads the configuration, and answers what needs none.
fn start(args: impl IntoIterator<Item = OsString>) -> Result<Option<Session>, Failure> {
    let options = Options::parse(args).map_err(|error| Failure {
        code: ExitCode::Usage,
        message: sanitize::text(&error.to_string()),
        hint: Some("shifterimg --help".into()),
    })?;
    match options.command {
        Command::Help => return print(args::HELP).map(|()| None),
        Command::Version => {
            return print(concat!("shifterimg ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| None);
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
    let config = match &options.config {
        Some(path) => read_config(path, caller.uid),
        None => Config::open_trusted(Path::new(DEFAULT_PATH))
            .map_err(|error| Failure::new(ExitCode::Internal, output::chain(&error))),
    }?;
    Ok(Some(Session {
        config,
        caller,
        options,
    }))
}

impl Session {
    fn run(self) -> Result<ExitCode, Failure> {
        match self.options.command {
            Command::Pull => self.pull(),
            Command::Lookup => self.lookup(),
            Command::Images => self.images(),
            Command::Remove => self.remove(),
            Command::Help | Command::Version => Ok(ExitCode::Success),
        }
    }

    /// Parses a reference under this site's rules.
    fn reference(&self, text: &str) -> Result<ImageRef, Failure> {
        ImageRef::parse(text, &self.config.type_rules()).map_err(|error| {
            Failure::new(
                ExitCode::Usage,
                format!(
                    "cannot use image '{}': {}",
                    sanitize::text(text),
                    output::chain(&error)
                ),
            )
        })
    }

    /// Returns the stores that exist, the site's first.
    fn stores(&self) -> Result<Vec<Store>, StoreError> {
        let mut stores = Vec::new();
        stores.extend(Store::open_site(&self.config.store.path)?);
        if let Some(home) = &self.caller.home {
            stores.extend(Store::open_user(home)?);
        }
        Ok(stores)
    }

    /// Finds an image in the stores that may be used.
    fn find(&self, reference: &ImageRef) -> Result<StoredImage, Failure> {
        let context = format!("cannot find image '{reference}'");
        let fail = |error: StoreError| Failure::of_store(&context, &error);
        if !reference.image_type().is_stored() {
            return Err(Failure {
                code: ExitCode::Denied,
                message: format!("{context}: only images of a store can be looked up"),
                hint: Some(format!(
                    "shifter run {}",
                    sanitize::text(&reference.canonical())
                )),
            });
        }
        let viewer = viewer(&context)?;
        for store in self.stores().map_err(fail)? {
            let Some(found) = store.lookup(reference, &viewer).map_err(fail)? else {
                continue;
            };
            if found.kind == StoreKind::User && self.config.store.user_images == UserImages::No {
                return Err(Failure {
                    code: ExitCode::Denied,
                    message: format!(
                        "{context}: it is only in your own store, and this site does not run images from there"
                    ),
                    hint: Some(match self.config.store.site_pull_command.is_empty() {
                        true => "ask the site to pull it into the site store".into(),
                        false => format!("shifter pull {}", reference.name()),
                    }),
                });
            }
            return Ok(found);
        }
        let place = match self.config.store.user_images {
            UserImages::No => "not in the site store",
            _ => "neither in the site store nor in your own",
        };
        let can_pull = *reference.image_type() == ImageType::Docker;
        Err(Failure {
            code: ExitCode::Image,
            message: format!("{context}: {place}"),
            hint: can_pull.then(|| format!("shifter pull {}", reference.name())),
        })
    }

    /// Removes tags from the store that the user may change.
    fn remove(&self) -> Result<ExitCode, Failure> {
        self.each(|reference| {
            let context = format!("cannot remove image '{reference}'");
            let fail = |error: StoreError| Failure::of_store(&context, &error);
            let viewer = viewer(&context)?;
            let wanted = |kind| self.options.store.is_none_or(|only| only == kind);
            let mut is_foreign = false;
            for store in self.stores().map_err(fail)? {
                if !wanted(store.kind()) {
                    continue;
                }
                let owner = self.config.store.image_owner;
                if store.kind() == StoreKind::Site && self.caller.uid != owner {
                    is_foreign |= store.lookup(reference, &viewer).map_err(fail)?.is_some();
                    continue;
                }
                let waiting = |owner: &Owner| {
                    let text = format!(
                        "waiting for {} to be done with this image",
                        owner.describe()
                    );
                    output::note(&text);
                };
                if store.remove(reference, waiting).map_err(fail)?.is_some() {
                    return Ok(());
                }
            }
            if is_foreign {
                return Err(fail(StoreError::NotOwner {
                    owner: self.config.store.image_owner,
                }));
            }
            Err(Failure::new(
                ExitCode::Image,
                format!("{context}: there is no such image"),
            ))
        })
    }

    /// Runs `action` for every image of the command line and goes on after a failure; the first
    /// failure decides the exit code.
    fn each(&self, action: impl Fn(&ImageRef) -> Result<(), Failure>) -> Result<ExitCode, Failure> {
        let texts = self.options.images.iter();
        // A mistake in one of them is found before anything is done.
        let references = texts
            .map(|text| self.reference(text))
            .collect::<Result<Vec<_>, _>>()?;
        let mut code = ExitCode::Success;
        for reference in &references {
            if let Err(failure) = action(reference) {
                let failed = failure.report();
                code = if code == ExitCode::Success {
                    failed
                } else {
                    code
                };
            }
        }
        Ok(code)
    }
}

impl Failure {
    fn new(code: ExitCode, message: String) -> Self {
        Self {
            code,
            message,
            hint: None,
        }
    }

    fn of_store(context: &str, error: &StoreError) -> Self {
        let message = format!("{context}: {}", output::chain(error));
        Self {
            code: error.exit_code(),
            message,
            hint: error.hint(),
        }
    }

    fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            output::failure(&self.message, self.hint.as_deref());
        }
        self.code
    }
}

fn viewer(context: &str) -> Result<Viewer, Failure> {
    Viewer::current()
        .map_err(|error| Failure::new(ExitCode::Internal, format!("{context}: {error}")))
}

/// Writes a record as one line of JSON.
fn json_line(record: &impl serde::Serialize) -> Result<String, Failure> {
    match serde_json::to_string(record) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Failure::new(
            ExitCode::Internal,
            format!("cannot write the output: {error}"),
        )),
    }
}

/// Writes data to stdout; a reader that has gone away has what it wanted.
fn print(text: &str) -> Result<(), Failure> {
    match output::data(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(Failure::new(ExitCode::Success, String::new()))
        }
        Err(error) => Err(Failure::new(
            ExitCode::Internal,
            format!("cannot write the output: {error}"),
        )),
        Ok(()) => Ok(()),
    }
}

/// Reads a configuration that the user named. It steers only this user's own process, so it may be
/// the user's own file; what is root's is checked when the runtime reads it.
fn read_config(path: &Path, uid: u32) -> Result<Config, Failure> {
    let fail = |reason: String| {
        let path = sanitize::text(&path.display().to_string());
        Failure::new(ExitCode::Usage, format!("cannot read '{path}': {reason}"))
    };
    let read = || -> io::Result<Vec<u8>> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || ![0, uid].contains(&meta.uid()) || meta.mode() & 0o022 != 0 {
            let rule = "it must be a file of root or yours that nobody else can write";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, rule));
        }
        let mut bytes = Vec::new();
        file.take(CONFIG_LIMIT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| fail(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| fail("it is not UTF-8 text".into()))?;
    Config::parse(&text, path).map_err(|error: ConfigError| {
        Failure::new(
            ExitCode::Usage,
            output::chain(&error as &(dyn Error + 'static)),
        )
    })
}

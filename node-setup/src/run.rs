//! `shifter` from its first line to the command: the order of steps is the security argument.
//!
//! ```text
//! order the process ─▶ identify the caller ─▶ parse ─▶ become root ─▶ configuration
//!    ─▶ join the job's root, or judge and build one ─▶ drop everything, verified
//!    ─▶ working directory, environment ─▶ exec
//! ```

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::exit::ExitCode;
use shifter_core::hostlist::HostSlots;
use shifter_core::layout::Program;
use shifter_core::manifest::ResolvedImage;
use shifter_core::meta::ImageMeta;
use shifter_core::reference::ImageRef;
use shifter_core::trusted;
use shifter_core::volmap::{Origin, VolumeMap};

use crate::caller::{self, Caller};
use crate::drop::{become_caller, become_user};
use crate::error::{Error, Result};
use crate::image::{self, Image, Store};
use crate::launch::{self, Container};
use crate::options::{self, Action, RunOptions};
use crate::prepared::Prepared;
use crate::process::{self, CallersProcess};
use crate::root::{self, RootRequest};
use crate::state::RunDir;
use crate::{lookup, modules, out};

const NAME: &str = "shifter";

/// Runs the program and returns its exit code; a command that starts replaces the process.
pub fn main(words: Vec<OsString>) -> ExitCode {
    match run(words) {
        Ok(code) => code,
        // The line at fault is for those who may read the file.
        Err(Error::Config(error)) => {
            let error = Error::Config(error);
            out::complain(NAME, &error.chain());
            error.exit_code()
        }
        Err(error) => out::report(NAME, &error),
    }
}

fn run(words: Vec<OsString>) -> Result<ExitCode> {
    process::fill_standard_descriptors()?;
    match options::parse(words)? {
        Action::Help => Ok(out::answer(options::HELP)),
        Action::Version => Ok(out::answer(concat!(
            "shifter ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        ))),
        Action::Images(words) => manage_images(&words).map(|never| match never {}),
        Action::Run(options) => run_command(&options).map(|never| match never {}),
    }
}

/// Becomes the image manager, without any privilege.
fn manage_images(words: &[OsString]) -> Result<Infallible> {
    let caller = Caller::identify_any()?;
    if rustix::process::geteuid().is_root() && caller.uid != 0 {
        become_caller(&caller)?;
    }
    let config = Config::open_trusted(Path::new(DEFAULT_PATH))?;
    let program = Program::Shifterimg.path(&config.prefix);
    // It runs as whoever calls: nobody else may have put it there.
    trusted::audit(&program, &[0]).map_err(Error::Untrusted)?;
    let source = Command::new(&program).args(words).exec();
    Err(Error::Step {
        step: "run",
        object: program.to_string_lossy().into_owned(),
        source,
    })
}

/// A container that the process is in, and what is known of it.
struct Entered {
    meta: ImageMeta,
    id: String,
    reference: String,
    modules: Vec<String>,
    shell: String,
    /// The job's root, if that is what was entered.
    joined: Option<Prepared>,
}

fn run_command(options: &RunOptions) -> Result<Infallible> {
    let start = Instant::now();
    let callers = process::take_over()?;
    let caller = Caller::identify()?;
    let directory = rustix::process::getcwd(Vec::new()).ok();
    let mut environment = launch::own_environment();
    process::become_root()?;
    let config = Config::open_trusted(Path::new(DEFAULT_PATH))?;
    let request = Request::judge(options, &environment, &config)?;

    let entered = enter(&config, &caller, &request)?;
    drop_privileges(&callers, &caller)?;
    if let Some(prepared) = &entered.joined {
        prepared.still_lets_in()?;
    }

    let container = Container {
        config: &config,
        meta: &entered.meta,
        id: &entered.id,
        reference: &entered.reference,
        modules: &entered.modules,
        shell: &entered.shell,
    };
    let cwd = directory
        .as_ref()
        .map(|dir| dir.as_bytes())
        .filter(|dir| dir.starts_with(b"/"));
    if let Some(warning) = launch::enter_directory(&entered.meta, options, cwd)? {
        out::complain(NAME, &crate::error::plain(warning));
        // Shells look at the directory that it names.
        environment.retain(|(name, _)| name != b"PWD");
    }
    let environment = launch::environment(&container, options, environment)?;
    let words = launch::command(&container, options);
    if options.verbose {
        let elapsed = start.elapsed().as_secs_f64() * 1e3;
        out::complain(
            NAME,
            &format!("image {} ready in {elapsed:.1} ms", entered.reference),
        );
    }
    callers.restore_signals()?;
    Err(launch::execute(&words, &environment))
}

/// The last line on which the process has any privilege.
fn drop_privileges(callers: &CallersProcess, caller: &Caller) -> Result<()> {
    callers.restore()?;
    become_user(caller)
}

/// What is asked for, after judgement: fields that are not given are none.
struct Request {
    image: Option<ImageRef>,
    volumes: Option<VolumeMap>,
    modules: Option<Vec<String>>,
}

impl Request {
    /// Takes each part from the options, else from the environment.
    fn judge(
        options: &RunOptions,
        environment: &[shifter_core::env::Pair],
        config: &Config,
    ) -> Result<Self> {
        let variable = |name: &str| {
            let found = environment.iter().find(|(n, _)| n == name.as_bytes());
            found
                .and_then(|(_, v)| String::from_utf8(v.clone()).ok())
                .filter(|v| !v.is_empty())
        };
        let from_environment = || {
            let image = variable("SHIFTER_IMAGE")?;
            Some(match variable("SHIFTER_IMAGETYPE") {
                Some(kind) => format!("{kind}:{image}"),
                None => image,
            })
        };
        let image = match options.image.clone().or_else(from_environment) {
            None => None,
            Some(text) => {
                let parsed = ImageRef::parse(&text, &config.type_rules());
                Some(parsed.map_err(|source| Error::Reference { text, source })?)
            }
        };
        let texts = match options.volumes.as_slice() {
            [] => variable("SHIFTER_VOLUME").into_iter().collect(),
            typed => typed.to_vec(),
        };
        let volumes = match texts.as_slice() {
            [] => None,
            texts => {
                let texts = texts.iter().map(String::as_str);
                Some(VolumeMap::parse_many(texts, Origin::User).map_err(Error::Volumes)?)
            }
        };
        let modules = options
            .modules
            .clone()
            .or_else(|| variable("SHIFTER_MODULE").map(|text| options::module_list(&text)));
        Ok(Self {
            image,
            volumes,
            modules,
        })
    }

    /// True if nothing is asked for that the job's root is not.
    fn is_met_by(&self, prepared: &Prepared) -> bool {
        let manifest = &prepared.manifest;
        let image = self.image.as_ref().is_none_or(|image| {
            image.image_id() == Some(&manifest.image.id)
                || image.canonical() == manifest.image.reference
        });
        let signature = manifest.volume_map().map(|map| map.signature()).ok();
        let volumes = self
            .volumes
            .as_ref()
            .is_none_or(|map| Some(map.signature()) == signature);
        image
            && volumes
            && self
                .modules
                .as_ref()
                .is_none_or(|names| *names == manifest.modules)
    }
}

/// Joins the job's root if there is one that matches, else builds a private one.
fn enter(config: &Config, caller: &Caller, request: &Request) -> Result<Entered> {
    let job = caller::job_of_process(caller.uid);
    let prepared = match job {
        Some(job) => Prepared::find(&job)?.filter(|p| p.manifest.user.uid == caller.uid),
        None => None,
    };
    match prepared {
        Some(prepared) if request.is_met_by(&prepared) => join(prepared),
        prepared => build(config, caller, request, prepared.as_ref()),
    }
}

fn join(prepared: Prepared) -> Result<Entered> {
    prepared.join()?;
    let manifest = &prepared.manifest;
    let reference = manifest.image.reference.clone();
    let meta = ImageMeta::parse(&prepared.meta).map_err(|error| Error::BadImage {
        image: reference.clone(),
        reason: error.to_string(),
    })?;
    Ok(Entered {
        meta,
        id: manifest.image.id.to_string(),
        reference,
        modules: manifest.modules.clone(),
        shell: manifest.user.shell.clone(),
        joined: Some(prepared),
    })
}

/// Builds a private container; what is not asked for is taken from the job's, if there is one.
fn build(
    config: &Config,
    caller: &Caller,
    request: &Request,
    job: Option<&Prepared>,
) -> Result<Entered> {
    let job = job.map(|prepared| &prepared.manifest);
    let user = lookup::identity_with_groups(caller.uid, caller.gid, &caller.groups)?;
    let image = open_image(
        config,
        caller,
        request,
        job.map(|job| &job.image),
        &user.home,
    )?;
    let modules = match &request.modules {
        Some(modules) => modules.clone(),
        None => job.map(|job| job.modules.clone()).unwrap_or_default(),
    };
    modules::check(config, &modules)?;
    let volumes = match (&request.volumes, job) {
        (Some(volumes), _) => volumes.clone(),
        (None, Some(job)) => job.volume_map()?,
        (None, None) => VolumeMap::default(),
    };
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let hosts = match job {
        Some(job) => job.hosts.clone(),
        None => vec![HostSlots {
            name: host,
            slots: 1,
        }],
    };
    let run = RunDir::open_for_hints();
    let request = RootRequest {
        config,
        image: &image,
        user: &user,
        volumes: &volumes,
        modules: &modules,
        hosts: &hosts,
        is_pinned: false,
    };
    root::build(&request, run.as_ref())?;
    Ok(Entered {
        id: image.id.to_string(),
        reference: image.reference,
        meta: image.meta,
        modules,
        shell: user.shell,
        joined: None,
    })
}

fn open_image(
    config: &Config,
    caller: &Caller,
    request: &Request,
    job: Option<&ResolvedImage>,
    home: &str,
) -> Result<Image> {
    match (&request.image, job) {
        (Some(reference), _) => image::open_for_user(config, reference, caller, home),
        (None, Some(image)) => {
            Store::site(config)?.image(&image.id, &image.reference, caller.uid, &caller.gids())
        }
        (None, None) => Err(Error::Usage(
            "no image: name one with --image, or submit the job with --image".into(),
        )),
    }
}

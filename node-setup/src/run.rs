//! `shifter` from its first line to the command: the order of steps is the security argument.
//!
//! ```text
//! order the process ─▶ identify the caller ─▶ parse ─▶ become root ─▶ configuration
//!    ─▶ join the job's root, or judge and build one ─▶ drop everything, verified
//!    ─▶ working directory, environment ─▶ exec
//! ```
//!
//! Where there is no privilege, or an image must not have any, [`rootless`] takes the place of
//! root: the same steps, in a user namespace.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::env::Pair;
use shifter_core::exit::ExitCode;
use shifter_core::hostlist::HostSlots;
use shifter_core::ids::JobId;
use shifter_core::manifest::JobManifest;
use shifter_core::meta::ImageMeta;
use shifter_core::reference::ImageRef;
use shifter_core::sanitize;
use shifter_core::volmap::{self, Origin, VolumeError, VolumeMap};

use crate::caller::{self, Caller, Place};
use crate::deadline::Deadline;
use crate::drop::{become_user, stay_user};
use crate::error::{Error, Result};
use crate::image::{self, Found, Image};
use crate::launch::{self, Container};
use crate::options::{self, Action, RunOptions};
use crate::prepared::Prepared;
use crate::process::{self, CallersProcess};
use crate::root::{self, RootRequest, Writable};
use crate::rootless::{self, Footing};
use crate::state::RunDir;
use crate::twin::{self, Likeness};
use crate::watch::{Awaited, Watch};
use crate::{companions, hooks, lookup, modules, out};

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
    match options::parse(words.clone())? {
        Action::Help => Ok(out::answer(options::HELP)),
        Action::Version => Ok(out::answer(concat!(
            "shifter ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        ))),
        Action::Images(words) => companions::manage_images(&words).map(|never| match never {}),
        Action::Tool(program, words) => {
            companions::become_tool(program, &words).map(|never| match never {})
        }
        Action::Run(options) => run_command(&options, &words).map(|never| match never {}),
    }
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

/// What came of entering a container.
enum Entry {
    /// The process is in it.
    Entered(Box<Entered>),
    /// It is one to be built without privilege, with these options beside the caller's.
    OnlyRootless(Vec<OsString>),
}

fn run_command(options: &RunOptions, words: &[OsString]) -> Result<Infallible> {
    let start = Instant::now();
    let callers = process::take_over()?;
    let caller = Caller::identify()?;
    let result = start_command(options, words, start, &callers, &caller);
    if rustix::process::geteuid().is_root() {
        // What is left is to say why, and nobody may ever read it: its user can kill it then.
        // Signals stay blocked, or one of a limit's that was met would end it before.
        let _ = become_user(&caller);
    }
    result
}

fn start_command(
    options: &RunOptions,
    words: &[OsString],
    start: Instant,
    callers: &CallersProcess,
    caller: &Caller,
) -> Result<Infallible> {
    let directory = rustix::process::getcwd(Vec::new()).ok();
    let mut environment = launch::own_environment();
    let footing = rootless::footing(options.rootless)?;
    match footing {
        Footing::Root => process::become_root()?,
        // Nothing is left behind by whoever dies here, so signals need not wait.
        Footing::User => callers.restore_signals()?,
        Footing::TooHigh => {
            let more = words_of_job(options, caller, &environment)?;
            return rootless::restart(callers, caller, words, more);
        }
    }
    let configuration = twin::configuration();
    let mut config = Config::open_trusted(Path::new(DEFAULT_PATH))?;
    if footing == Footing::User {
        rootless::leave_out_roots(&mut config);
    }
    let request = Request::judge(options, &environment, &config)?;

    let is_in_a_job = environment.iter().any(|(name, _)| name == b"SLURM_JOB_ID");
    let place = match footing {
        // To join a job's root is root's.
        Footing::User => None,
        _ => caller::place_of_process(caller.uid, is_in_a_job)
            .or_else(|| caller::claimed_place(&environment)),
    };
    let deadline = Deadline::after(config.root.answer_timeout_secs, NAME, caller);
    let way = Way {
        config: &config,
        caller,
        footing,
        deadline: &deadline,
        configuration,
    };
    let entered = match way.enter(&request, place)? {
        Entry::Entered(entered) => entered,
        Entry::OnlyRootless(more) => {
            deadline.lift();
            return rootless::restart(callers, caller, words, more);
        }
    };
    drop_privileges(callers, caller, footing)?;
    if footing == Footing::Root {
        callers.restore_stack();
    }
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
        is_jobs: entered.joined.is_some(),
        starts_by_entry: (entered.joined.is_some() || options.image.is_none())
            && asks_for_entry(&environment),
    };
    let cwd = directory
        .as_ref()
        .map(|dir| dir.as_bytes())
        .filter(|dir| dir.starts_with(b"/"));
    if let Some(warning) = launch::enter_directory(&entered.meta, options, cwd, &deadline)? {
        out::complain(NAME, &crate::error::plain(warning));
        // Shells look at the directory that it names.
        environment.retain(|(name, _)| name != b"PWD");
    }
    let environment = launch::environment(&container, options, environment)?;
    modules::compat::check(&config, &entered.modules, &environment)?;
    let selected = modules::selected(&config, &entered.modules)?;
    for (name, module) in entered.modules.iter().zip(selected) {
        hooks::run_as_user(name, &module.user_hook, &environment, &config)?;
    }
    let words = launch::command(&container, options);
    if options.verbose {
        let elapsed = start.elapsed().as_secs_f64() * 1e3;
        out::complain(
            NAME,
            &format!("image {} ready in {elapsed:.1} ms", entered.reference),
        );
    }
    deadline.lift();
    callers.restore_signals()?;
    Err(launch::execute(&words, &environment))
}

/// True if the job or step that the caller is in was started with `--entrypoint`; the shell of an
/// allocation knows it by Slurm's name for it.
fn asks_for_entry(environment: &[Pair]) -> bool {
    let value = |wanted: &[u8]| {
        let mut pairs = environment.iter();
        pairs.find_map(|(name, value)| (name == wanted).then_some(value.as_slice()))
    };
    let own = value(b"SHIFTER_ENTRYPOINT").or_else(|| value(b"SLURM_SPANK_SHIFTER_ENTRYPOINT"));
    own == Some(b"1")
}

/// Returns the options that ask for what the job's root is, for a start that names no image itself:
/// without privilege nobody can look that up.
fn words_of_job(
    options: &RunOptions,
    caller: &Caller,
    environment: &[Pair],
) -> Result<Vec<OsString>> {
    let given = |name: &[u8]| environment.iter().any(|(known, _)| known == name);
    let names: [&[u8]; 2] = [b"SHIFTER_IMAGE", b"SLURM_SPANK_SHIFTER_IMAGE"];
    if options.image.is_some() || names.into_iter().any(given) {
        return Ok(Vec::new());
    }
    let Some(place) = caller::place_of_process(caller.uid, given(b"SLURM_JOB_ID")) else {
        return Ok(Vec::new());
    };
    process::become_root()?;
    let prepared = Prepared::find(&place.job, place.step)?
        .filter(|prepared| prepared.manifest.user.uid == caller.uid);
    let Some(Prepared { manifest, .. }) = prepared else {
        return Ok(Vec::new());
    };
    let image = match manifest.image.id.tree() {
        Some(name) => format!("local:{name}"),
        None => format!("id:{}", manifest.image.id),
    };
    let config = Config::open_trusted(Path::new(DEFAULT_PATH))?;
    let mut words = vec![format!("--image={image}").into()];
    words.extend(Request::judge(options, environment, &config)?.words_of(Some(&manifest)));
    Ok(words)
}

/// The last line on which the process has any privilege.
fn drop_privileges(callers: &CallersProcess, caller: &Caller, footing: Footing) -> Result<()> {
    callers.restore()?;
    match footing {
        Footing::User => stay_user(caller),
        _ => become_user(caller),
    }
}

/// What is asked for, after judgement: fields that are not given are none.
struct Request {
    image: Option<ImageRef>,
    volumes: Option<VolumeMap>,
    modules: Option<Vec<String>>,
    writable: Option<Writable>,
}

impl Request {
    /// Takes each part from the options, else from the environment.
    fn judge(options: &RunOptions, environment: &[Pair], config: &Config) -> Result<Self> {
        let exactly = |name: &str| {
            let found = environment.iter().find(|(n, _)| n == name.as_bytes());
            found
                .and_then(|(_, v)| String::from_utf8(v.clone()).ok())
                .filter(|v| !v.is_empty())
        };
        // Slurm's name for what describes a job, where only that is there: in salloc's shell.
        let is_allocation = exactly("SHIFTER_IMAGE").is_none();
        let variable = |name: &str| {
            let slurms = || exactly(&format!("SLURM_SPANK_{name}")).filter(|_| is_allocation);
            exactly(name).or_else(slurms)
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
            writable: options
                .writable
                .as_ref()
                .map(|w| judge_writable(w, config))
                .transpose()?,
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
            && self.writable.is_none()
            && self
                .modules
                .as_ref()
                .is_none_or(|names| *names == manifest.modules)
    }

    /// Returns the options that ask for what is the job's and was not asked for.
    fn words_of(&self, job: Option<&JobManifest>) -> Vec<OsString> {
        let mut words = Vec::new();
        let Some(job) = job else { return words };
        if self.volumes.is_none() {
            let volumes = job.volumes.iter();
            words.extend(volumes.map(|volume| format!("--volume={volume}").into()));
        }
        if self.modules.is_none() {
            let modules = match job.modules.as_slice() {
                [] => "none".to_owned(),
                names => names.join(","),
            };
            words.push(format!("--module={modules}").into());
        }
        words
    }
}

/// Judges whether and where the user may write over the image.
fn judge_writable(writable: &Writable, config: &Config) -> Result<Writable> {
    if config.root.writable_tmpfs_size_mib == 0 {
        return Err(Error::Denied {
            what: "this site does not let users write over an image".into(),
            hint: Some("use a volume, or /tmp"),
        });
    }
    let path = match &writable.path {
        None => None,
        Some(path) => Some(volmap::user_target(path).map_err(|error| {
            let is_malformed = error.is_malformed();
            let reason = match error {
                VolumeError::Target { fault, .. } => fault.to_string(),
                other => other.to_string(),
            };
            let path = sanitize::text(path);
            let what = format!("'{path}' cannot be made writable: {reason}");
            if is_malformed {
                return Error::Usage(what);
            }
            Error::Denied {
                what,
                hint: Some("name a directory where a volume could be placed, such as '/work'"),
            }
        })?),
    };
    Ok(Writable { path })
}

/// What is known when a container is to be entered.
struct Way<'a> {
    config: &'a Config,
    caller: &'a Caller,
    footing: Footing,
    deadline: &'a Deadline<'a>,
    /// The configuration's file before it was read.
    configuration: Option<twin::File>,
}

impl Way<'_> {
    /// Joins the job's root if there is one that matches, else builds a private one.
    fn enter(&self, request: &Request, place: Option<Place>) -> Result<Entry> {
        let uid = self.caller.uid;
        let prepared = match &place {
            Some(Place { job, step }) => {
                Prepared::find(job, *step)?.filter(|prepared| prepared.manifest.user.uid == uid)
            }
            None => None,
        };
        match prepared {
            Some(prepared) if request.is_met_by(&prepared) => {
                join(prepared).map(|entered| Entry::Entered(Box::new(entered)))
            }
            prepared => {
                let job = place.as_ref().map(|place| &place.job);
                self.build(request, job, prepared.as_ref())
            }
        }
    }

    /// Builds a private container; what is not asked for is taken from the job's, if there is one.
    fn build(
        &self,
        request: &Request,
        within: Option<&JobId>,
        job: Option<&Prepared>,
    ) -> Result<Entry> {
        let Self {
            config,
            caller,
            footing,
            deadline,
            ..
        } = *self;
        let job = job.map(|prepared| &prepared.manifest);
        let user = lookup::identity_with_groups(caller.uid, caller.gid, &caller.groups)?;
        let mut image = match &request.image {
            Some(reference) => {
                let is_rootless = footing == Footing::User;
                let home = &user.home;
                match image::open_for_user(config, reference, caller, home, is_rootless, deadline)?
                {
                    Found::Image(image) => called_as_in_job(*image, job),
                    Found::OnlyRootless => return Ok(Entry::OnlyRootless(request.words_of(job))),
                }
            }
            None => {
                let job = job.ok_or_else(|| {
                    let way = "name one with --image, as in 'shifter run IMAGE COMMAND', or submit the job \
                               with --image";
                    Error::Usage(format!("no image: {way}"))
                })?;
                deadline.on(Awaited::Store(&config.store.path))?;
                image::open_for_job(config, &job.image, caller.uid, &caller.gids())?
            }
        };
        let modules = match (&request.modules, job) {
            (Some(modules), _) => modules.clone(),
            (None, Some(job)) => job.modules.clone(),
            (None, None) => modules::requested(config, &[]),
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
        if footing == Footing::User {
            deadline.on(Awaited::Image(&image.reference))?;
            rootless::check_modules(config, &modules)?;
            rootless::prepare(&mut image, caller)?;
        }
        let request = RootRequest {
            config,
            image: &image,
            user: &user,
            volumes: &volumes,
            modules: &modules,
            job: None,
            within,
            hosts: &hosts,
            ssh: None,
            writable: request.writable.clone(),
            is_pinned: false,
            spool: None,
            watch: deadline,
        };
        let entered = Entry::Entered(Box::new(Entered {
            id: image.id.clone(),
            reference: image.reference.clone(),
            meta: image.meta.clone(),
            modules: modules.clone(),
            shell: user.shell.clone(),
            joined: None,
        }));
        let likeness = Likeness::of(&request, self.configuration)?;
        if let Some(likeness) = &likeness
            && likeness.enter()?
        {
            std::mem::forget(image.source);
            return Ok(entered);
        }
        let note = likeness.and_then(Likeness::prepare);
        // Where templates of caches are kept; before the namespace is unshared.
        let has_cache = |volume: &volmap::Volume| volume.flags.per_node_cache.is_some();
        let run = volumes
            .entries()
            .iter()
            .any(has_cache)
            .then(RunDir::open_for_hints);
        let root =
            root::build(&request, run.flatten().as_ref()).map_err(|error| match footing {
                Footing::User => rootless::explain(error),
                _ => error,
            })?;
        for warning in &root.warnings {
            out::complain(NAME, warning);
        }
        if let Some(note) = note {
            note.write(root.host_mounts.as_deref());
        }
        // The command's execve closes them.
        std::mem::forget((root.mount, root.overlay, image.source));
        Ok(entered)
    }
}

/// Gives the job's image, which its variables name by the id, the name that the user gave it.
fn called_as_in_job(mut image: Image, job: Option<&JobManifest>) -> Image {
    if let Some(job) = job.filter(|job| job.image.id.to_string() == image.id) {
        image.reference = job.image.reference.clone();
    }
    image
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
        id: image::id_in_job(&manifest.image),
        reference,
        modules: manifest.modules.clone(),
        shell: manifest.user.shell.clone(),
        joined: Some(prepared),
    })
}

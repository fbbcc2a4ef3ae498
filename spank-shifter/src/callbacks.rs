//! What each callback does in each of Slurm's contexts: plumbing between `ffi` and the rest.

use std::sync::{Mutex, MutexGuard, PoisonError};

use node_setup::abandoned;
use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout;

use crate::context::{self, Callback, Context, FAILED, Level, OK};
use crate::ffi::{self, Spank, log};
use crate::options::{RawOptions, StepOptions};
use crate::pins::{self, Pins};
use crate::prolog::{self, Facts, Outcome, Slurm};
use crate::settings::Settings;
use crate::shift::Shift;
use crate::submit::{Request, SubmitError, Tools};
use crate::tasks::{self, NodeState, Step};
use crate::{epilog, report, ssh, steps};

/// Submit side: the options so far, of one component of a heterogeneous job.
static OPTIONS: Mutex<RawOptions> = Mutex::new(RawOptions::new());

/// Submit side: what the component before this one asked for, of a heterogeneous job or step.
static BEFORE: Mutex<Option<Variables>> = Mutex::new(None);

type Variables = Vec<(&'static str, Option<String>)>;

/// Step: the options that it was started with.
static GIVEN: Mutex<StepOptions> = Mutex::new(StepOptions::new());

/// Step: what init_post_opt found for its tasks.
static STEP: Mutex<Option<Step>> = Mutex::new(None);

/// Step: how its tasks enter their root, if they do.
static SHIFT: Mutex<Option<Shift>> = Mutex::new(None);

/// Step: the root of its own.
static OWN_ROOT: Mutex<Option<(JobId, String)>> = Mutex::new(None);

/// Step: what its user is to know although its tasks run.
static NOTICE: Mutex<Option<String>> = Mutex::new(None);

/// Components that a heterogeneous job may have (MAX_HET_JOB_COMPS).
const COMPONENT_LIMIT: u32 = 128;

/// Number of the step that is the batch script (SLURM_BATCH_SCRIPT).
const BATCH_SCRIPT: u32 = 0xffff_fffb;

/// Answers a callback of the plugin.
pub fn call(callback: Callback, context: Context, spank: &Spank, args: Vec<String>) -> i32 {
    #[cfg(feature = "fault-injection")]
    if crate::fault::strikes(callback, context, Some(spank)) {
        return FAILED;
    }
    let settings = Settings::parse(args);
    match (callback, context) {
        (Callback::Init, _) => init(context, spank, &settings),
        (Callback::InitPostOpt, Context::Local | Context::Allocator) => {
            submit(context, spank, &settings)
        }
        (Callback::InitPostOpt, Context::Remote) => ready_step(spank, &settings),
        (Callback::TaskInitPrivileged, Context::Remote) => admit_task(spank),
        (Callback::TaskInit, Context::Remote) => settle_task(spank),
        (Callback::TaskPostFork, Context::Remote) => serve_ssh(spank, &settings),
        (Callback::Exit, Context::Remote) => end_step(&settings),
        (Callback::JobProlog, _) => prologue(spank, &settings),
        (Callback::JobEpilog, _) => epilogue(spank, &settings),
        _ => OK,
    }
}

/// Answers an option's callback. The step's side has only the last value of each option: what
/// counts there is that there was one.
pub fn option(number: i32, value: &[u8], is_remote: bool) -> i32 {
    #[cfg(feature = "fault-injection")]
    if crate::fault::strikes(Callback::Option, Context::Local, None) {
        return FAILED;
    }
    if is_remote {
        locked(&GIVEN).add(number, value);
        return OK;
    }
    match locked(&OPTIONS).add(number, value) {
        Ok(()) => OK,
        Err(error) => refuse(&report::lines(&error, None)),
    }
}

/// Answers for a callback that panicked.
pub fn panicked(callback: Callback, context: Context) -> i32 {
    context::code_after_panic(callback, context)
}

fn init(context: Context, spank: &Spank, settings: &Settings) -> i32 {
    match context {
        Context::Local | Context::Allocator => {
            let is_new_job = context == Context::Allocator || own_env("SLURM_JOB_ID").is_none();
            for name in context::stale_variables(is_new_job) {
                ffi::remove_own_env(&name);
            }
        }
        Context::Remote => {}
        Context::Slurmd => {
            for line in settings.complaints() {
                log(Level::Error, &line);
            }
            epilog::sweep_in_background(settings, TOOLS);
            return OK;
        }
        _ => return OK,
    }
    if !spank.register_options(settings.has_long_options) {
        log(Level::Error, "shifter: cannot register options with Slurm");
    }
    OK
}

fn submit(context: Context, spank: &Spank, settings: &Settings) -> i32 {
    let raw = std::mem::replace(&mut *locked(&OPTIONS), RawOptions::new());
    let is_step = context == Context::Local && own_env("SLURM_JOB_ID").is_some();
    // Nothing of ours may break a job that does not ask for it, a broken configuration included.
    let pins = match raw.is_empty() {
        true => Ok(None),
        false => prepare(&raw, is_step, settings).map(Some),
    };
    let asked = match pins {
        Ok(pins) => pins.map_or_else(Vec::new, |pins| pins.to_env().into()),
        Err(error) => return refuse(&report::lines(&error, error.hint())),
    };
    let before = locked(&BEFORE).replace(asked.clone());
    let is_only = before.is_none();
    if is_step && before.is_some_and(|before| before != asked) {
        let error = SubmitError::MixedStep;
        return refuse(&report::lines(&error, error.hint()));
    }
    // srun may start a step in a job that its environment does not name (--jobid), and cannot say
    // here; where it starts a job, the step asks for what its job has. Not where it starts several, a
    // heterogeneous job's: its environment goes with the steps of all of them.
    let goes_with_step = context == Context::Local && (is_step || is_only);
    if !is_only && !is_step {
        for name in pins::NAMES {
            ffi::remove_own_env(&pins::of_step(name));
        }
    }
    let set = |(name, value): (&str, Option<String>)| {
        value.is_none_or(|value| {
            if goes_with_step {
                ffi::set_own_env(&pins::of_step(name), &value);
            }
            is_step || spank.set_job_env(name, &value)
        })
    };
    if asked.into_iter().all(set) {
        return OK;
    }
    refuse(&["shifter: cannot set the job's environment".to_owned()])
}

fn prepare(raw: &RawOptions, is_step: bool, settings: &Settings) -> Result<Pins, SubmitError> {
    let config = Config::open_trusted(settings.config())?;
    let request = Request::check(raw, &config)?;
    let tell = |line: &str| log(Level::Info, line);
    let tools = Tools {
        config: &config,
        settings,
        ready: ffi::isolated,
        tell,
        is_step,
    };
    if is_step {
        request.for_step(job_pins()?, &tools)
    } else {
        request.for_job(&tools)
    }
}

/// Finds what describes the job that a step is started in: a batch script and an allocation's
/// shell have it from Slurm, the tasks of a bare srun from us.
fn job_pins() -> Result<Option<Pins>, SubmitError> {
    let from_slurm = Pins::from_env(|name| own_env(&of_job(name)))?;
    Ok(if from_slurm.is_some() {
        from_slurm
    } else {
        Pins::from_env(own_env)?
    })
}

/// Never fails: an error here would drain the node and complete the job as if all were well.
fn ready_step(spank: &Spank, settings: &Settings) -> i32 {
    // It has no task: nobody looks at its environment, and nothing of it can be refused.
    if spank.step() == Some(ssh::EXTERN_STEP) {
        return OK;
    }
    let (Some(job), Some(uid)) = (job_id(spank), spank.uid()) else {
        return OK;
    };
    let given = *locked(&GIVEN);
    let step = given_root(spank, settings, &job, uid);
    let mut step = step.unwrap_or_else(Step::refused);
    let starts_by_entry = step.given_entrypoint(given.entrypoint);
    if step.pins.is_some() {
        *locked(&NOTICE) = ssh::complaint(&job);
    }
    let forgotten = pins::NAMES.map(|name| (pins::of_step(name), None));
    let known = step.env.iter();
    let known = known.map(|(name, value)| ((*name).to_owned(), value.clone()));
    // A step that has nothing to do with us is left as it is.
    let forgotten = forgotten.into_iter().filter(|_| step != Step::default());
    for (name, value) in known.chain(forgotten) {
        let value = value.as_deref().map(str::as_bytes);
        if !spank.set_step_env(name.as_bytes(), value) && value.is_some() {
            log(
                Level::Error,
                &format!("shifter: cannot set '{name}' for job {job}"),
            );
        }
    }
    *locked(&STEP) = Some(step);
    let shifts = locked(&STEP).as_ref().and_then(|step| {
        let pins = step.pins.as_ref()?;
        given
            .autoshift
            .unwrap_or(pins.modes.autoshift || pins.modes.ccm)
            .then_some(())
    });
    if shifts.is_some() {
        let own = locked(&OWN_ROOT).clone();
        let root = own.map_or_else(|| layout::JOB_ROOT.to_owned(), |(_, name)| name);
        match Shift::ready(&job, &root, uid, starts_by_entry, settings) {
            Ok(shift) => *locked(&SHIFT) = Some(shift),
            Err(lines) => *locked(&STEP) = Some(Step::refused(lines)),
        }
    }
    OK
}

/// Judges what the step's tasks are to find, and makes the step a root of its own where it asks for
/// something else than its job has.
fn given_root(
    spank: &Spank,
    settings: &Settings,
    job: &JobId,
    uid: u32,
) -> Result<Step, Vec<String>> {
    let mut state = NodeState::read(job);
    let mut own = step_pins(spank, pins::of_step)?;
    if own.is_none() && state.is_empty() && asked(spank) {
        own = make_up(spank, settings, job, uid)?;
        state = NodeState::read(job);
    }
    let Some(own) = own else {
        return Ok(tasks::judge(&state, job, uid, asked(spank)));
    };
    let jobs = tasks::judge(&state, job, uid, false);
    if !jobs.refusal.is_empty() {
        return Ok(jobs);
    }
    if jobs.pins.as_ref().is_some_and(|pins| pins.is_same(&own)) {
        return Ok(jobs);
    }
    let config = Config::open_trusted(settings.config());
    let config = config.map_err(|error| report::lines(&error, None))?;
    if let Some(error) = steps::misfit(jobs.pins.as_ref(), &own, &config) {
        return Err(report::lines(&error, error.hint()));
    }
    if jobs
        .pins
        .as_ref()
        .is_some_and(|pins| steps::is_jobs(pins, &own, &config))
    {
        return Ok(jobs);
    }
    let facts = step_facts(spank, job, uid);
    let number = spank.step().unwrap_or(u32::MAX);
    let name = steps::set_up(facts, number, own.clone(), settings)?;
    *locked(&OWN_ROOT) = Some((job.clone(), name));
    Ok(Step::of(own))
}

/// Makes up for a prolog that Slurm has left out: slurmd forgets the run of a job before it was
/// requeued only when it next looks, every 2 s at most, and runs no prolog until then. The batch
/// script's node gets what the prolog would have made, but for ssh; on others each step has a root of
/// its own, which asks for what is returned.
fn make_up(
    spank: &Spank,
    settings: &Settings,
    job: &JobId,
    uid: u32,
) -> Result<Option<Pins>, Vec<String>> {
    let pins = step_pins(spank, of_job)?;
    // What the job's nodes have in common, as ssh between them, cannot be made up for.
    let Some(mut pins) = pins.filter(|pins| !pins.modes.ccm && pins.modes.ssh != Some(true)) else {
        return Ok(None);
    };
    if spank.step() != Some(BATCH_SCRIPT) {
        return Ok(Some(pins));
    }
    pins.modes.ssh = Some(false);
    let subject = format!("shifter: job {job} of uid {uid}, which had no prolog");
    match prolog::run(step_facts(spank, job, uid), Ok(pins), settings, TOOLS) {
        Ok(Outcome::Ready(message) | Outcome::UsersMistake(message)) => {
            log(Level::Info, &format!("{subject}: {message}"));
        }
        Err(error) => {
            log(
                Level::Error,
                &format!("{subject}: {}", report::chain(&error)),
            );
            return Err(report::lines(&error, None));
        }
    }
    if let Err(error) = abandoned::note_batch_script(job) {
        log(Level::Error, &format!("shifter: {}", error.chain()));
    }
    Ok(None)
}

/// Reads what is asked for from the step's environment, where the names are what `named` makes of
/// them.
fn step_pins(spank: &Spank, named: impl Fn(&str) -> String) -> Result<Option<Pins>, Vec<String>> {
    let pins = Pins::from_env(|name| {
        let value = spank.step_env(&named(name))?;
        Some(value.to_string_lossy().into_owned())
    });
    pins.map_err(|error| report::lines(&error, None))
}

/// What is known of the job of a step.
fn step_facts(spank: &Spank, job: &JobId, uid: u32) -> Facts {
    let variable = |name: &str| {
        let value = own_env(name).or_else(|| Some(spank.step_env(name)?.to_string_lossy().into()));
        value.filter(|value| !value.is_empty())
    };
    Facts {
        job: job.clone(),
        uid,
        gid: spank.gid().unwrap_or(uid),
        slurm: Slurm {
            // The one thing that is not only about the user's own step.
            node: own_env("SLURMD_NODENAME"),
            ..Slurm::from_env(variable)
        },
        is_shared: false,
    }
}

fn admit_task(spank: &Spank) -> i32 {
    let mut step = locked(&STEP);
    let step = step.get_or_insert_with(|| match job_id(spank) {
        Some(job) => tasks::judge_blindly(&NodeState::read(&job), &job, asked(spank)),
        None => Step::default(),
    });
    if !step.refusal.is_empty() {
        // Once a node is enough, however many tasks it has.
        if spank.task() == Some(0) {
            tell(&step.refusal);
        }
        return FAILED;
    }
    if let Some(line) = locked(&NOTICE).as_ref().filter(|_| spank.task() == Some(0)) {
        log(Level::User, line);
    }
    match locked(&SHIFT).as_ref().map(Shift::enter) {
        None | Some(Ok(())) => OK,
        Some(Err(lines)) => tell(&lines),
    }
}

fn settle_task(spank: &Spank) -> i32 {
    let shift = locked(&SHIFT);
    let Some(shift) = shift.as_ref() else {
        return OK;
    };
    let Some(given) = spank.whole_step_env() else {
        return tell(&["shifter: Slurm does not say what the environment is".to_owned()]);
    };
    let is_batch = spank.step() == Some(BATCH_SCRIPT);
    let Some(command) = spank.command() else {
        return tell(&["shifter: Slurm does not say what the task is".to_owned()]);
    };
    let settled = match shift.settle(&given, &command, is_batch) {
        Ok(settled) => settled,
        Err(lines) => return tell(&lines),
    };
    if settled
        .program
        .is_some_and(|program| !spank.set_program(program))
    {
        return tell(&["shifter: Slurm does not let the entry point start the task".to_owned()]);
    }
    for (name, value) in settled.changes {
        if !spank.set_step_env(&name, value.as_deref()) && value.is_some() {
            return tell(&["shifter: Slurm does not take the container's environment".to_owned()]);
        }
    }
    OK
}

/// Says why a task does not run.
fn tell(lines: &[String]) -> i32 {
    for line in lines {
        log(Level::User, line);
    }
    FAILED
}

/// Never fails: the job has its container, and says itself what it misses.
fn serve_ssh(spank: &Spank, settings: &Settings) -> i32 {
    if spank.step() != Some(ssh::EXTERN_STEP) {
        return OK;
    }
    let (Some(job), Some(uid)) = (job_id(spank), spank.uid()) else {
        return OK;
    };
    if !layout::job_dir(&job).exists() {
        return OK;
    }
    if let Err(error) = abandoned::note_extern(&job) {
        log(Level::Error, &format!("shifter: {}", error.chain()));
    }
    match ssh::start(&job, uid, settings) {
        Ok(None) => {}
        Ok(Some(message)) => log(Level::Info, &format!("shifter: {message}")),
        Err(error) => {
            for line in report::lines(&error, None) {
                log(Level::Error, &line);
            }
        }
    }
    OK
}

/// Never fails, for nothing could be done about it: the epilog comes after it.
fn end_step(settings: &Settings) -> i32 {
    if let Some((job, name)) = locked(&OWN_ROOT).take()
        && let Err(error) = steps::tear_down(&job, &name, settings)
    {
        for line in report::lines(&error, None) {
            log(Level::Error, &line);
        }
    }
    OK
}

/// Returns the name under which Slurm shows a variable of a job to what runs in it.
fn of_job(name: &str) -> String {
    format!("SLURM_SPANK_{name}")
}

/// True if a step's job asked for an image. Of a heterogeneous job neither options nor environment
/// say which component did: there only what is on the node counts.
fn asked(spank: &Spank) -> bool {
    let is_known = spank.step() == Some(BATCH_SCRIPT) || !is_component(spank);
    is_known && (locked(&GIVEN).image || spank.step_env(&of_job(pins::IMAGE)).is_some())
}

/// True if the environment lists the step's job among the components of a heterogeneous one; what was
/// carried over from another job names that one's.
fn is_component(spank: &Spank) -> bool {
    let Some(job) = spank.job() else { return false };
    let is_job = |name: &str| {
        let value = spank.step_env(name);
        value.is_some_and(|value| value.to_string_lossy() == job.to_string())
    };
    // srun calls them packs still, sbatch does not.
    let is_listed =
        |number| ["HET", "PACK"].map(|kind| is_job(&format!("SLURM_JOB_ID_{kind}_GROUP_{number}")));
    let has_components = spank.step_env("SLURM_HET_SIZE").is_some();
    has_components && (0..COMPONENT_LIMIT).any(|number| is_listed(number).contains(&true))
}

fn prologue(spank: &Spank, settings: &Settings) -> i32 {
    epilog::sweep(settings, TOOLS);
    let variable = |name: &str| own_env(&format!("SPANK_{name}"));
    let Some(pins) = Pins::from_env(variable).transpose() else {
        return OK;
    };
    let Some(facts) = facts(spank) else {
        return refuse(&["shifter: Slurm does not say whose job this is".to_owned()]);
    };
    let (job, uid) = (facts.job.clone(), facts.uid);
    match prolog::run(facts, pins, settings, TOOLS) {
        Ok(Outcome::Ready(message)) => {
            log(
                Level::Info,
                &format!("shifter: job {job} of uid {uid}: {message}"),
            );
            OK
        }
        Ok(Outcome::UsersMistake(message)) => {
            log(
                Level::Info,
                &format!("shifter: job {job} of uid {uid}: {message}"),
            );
            OK
        }
        Err(error) => {
            log(
                Level::Error,
                &format!("shifter: cannot prepare job {job} of uid {uid}"),
            );
            refuse(&report::lines(&error, None))
        }
    }
}

fn epilogue(spank: &Spank, settings: &Settings) -> i32 {
    let Some(job) = job_id(spank) else { return OK };
    let code = clean_up(&job, spank, settings);
    epilog::sweep(settings, TOOLS);
    code
}

fn clean_up(job: &JobId, spank: &Spank, settings: &Settings) -> i32 {
    let is_here = layout::job_dir(job).exists();
    let asked = own_env(&format!("SPANK_{}", pins::IMAGE)).is_some();
    if (asked || is_here)
        && let Some(facts) = facts(spank)
    {
        epilog::forget(&facts, settings, TOOLS);
    }
    if !is_here {
        return OK;
    }
    match epilog::run(job, settings) {
        Ok(()) => OK,
        Err(error) => {
            log(
                Level::Error,
                &format!("shifter: cannot clean up after job {job}"),
            );
            refuse(&report::lines(&error, None))
        }
    }
}

/// What prolog and epilog need of Slurm's.
const TOOLS: prolog::Tools = prolog::Tools {
    ready: ffi::isolated,
    complain: |line| log(Level::Error, line),
};

/// What Slurm itself says of the job of a prolog or epilog.
fn facts(spank: &Spank) -> Option<Facts> {
    Some(Facts {
        job: job_id(spank)?,
        uid: spank.uid()?,
        gid: spank.gid()?,
        slurm: Slurm::from_env(own_env),
        is_shared: true,
    })
}

fn refuse(lines: &[String]) -> i32 {
    for line in lines {
        log(Level::Error, line);
    }
    FAILED
}

fn job_id(spank: &Spank) -> Option<JobId> {
    JobId::parse(&spank.job()?.to_string()).ok()
}

fn own_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// A panic under the lock leaves what it guards as it was; the next callback goes on with it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What each callback does in each of Slurm's contexts: plumbing between `ffi` and the rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout;

use crate::context::{self, Callback, Context, FAILED, Level, OK};
use crate::ffi::{self, Spank, log};
use crate::options::{self, RawOptions};
use crate::pins::{self, Pins};
use crate::prolog::{self, Facts, Outcome, Slurm};
use crate::settings::Settings;
use crate::submit::{Request, SubmitError, Tools};
use crate::tasks::{self, NodeState, Step};
use crate::{epilog, report, ssh};

/// Submit side: the options so far.
static OPTIONS: Mutex<RawOptions> = Mutex::new(RawOptions::new());

/// Step: true if it was started with `--image`.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Step: what init_post_opt found for its tasks.
static STEP: Mutex<Option<Step>> = Mutex::new(None);

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
        (Callback::InitPostOpt, Context::Remote) => ready_step(spank),
        (Callback::TaskInit, Context::Remote) => admit_task(spank),
        (Callback::TaskPostFork, Context::Remote) => serve_ssh(spank, &settings),
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
        ASKED.fetch_or(options::is_image(number), Ordering::Relaxed);
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
            for arg in &settings.unknown {
                log(
                    Level::Error,
                    &format!("shifter: ignoring '{arg}' in plugstack.conf"),
                );
            }
            return OK;
        }
        _ => return OK,
    }
    if !spank.register_options() {
        log(Level::Error, "shifter: cannot register options with Slurm");
    }
    OK
}

fn submit(context: Context, spank: &Spank, settings: &Settings) -> i32 {
    let raw = locked(&OPTIONS).clone();
    // Nothing of ours may break a job that does not ask for it, a broken configuration included.
    if raw.is_empty() {
        return OK;
    }
    let is_step = context == Context::Local && own_env("SLURM_JOB_ID").is_some();
    match prepare(&raw, is_step, settings) {
        Ok(None) => OK,
        Ok(Some(pins)) => {
            let set = |(name, value): (&str, Option<String>)| {
                value.is_none_or(|value| spank.set_job_env(name, &value))
            };
            if pins.to_env().into_iter().all(set) {
                return OK;
            }
            refuse(&["shifter: cannot set the job's environment".to_owned()])
        }
        Err(error) => refuse(&report::lines(&error, error.hint())),
    }
}

fn prepare(
    raw: &RawOptions,
    is_step: bool,
    settings: &Settings,
) -> Result<Option<Pins>, SubmitError> {
    let config = Config::open_trusted(settings.config())?;
    let request = Request::check(raw, &config)?;
    if is_step {
        return request.agree(job_pins()?.as_ref()).map(|()| None);
    }
    let tell = |line: &str| log(Level::Info, line);
    let tools = Tools {
        config: &config,
        settings,
        ready: ffi::isolated,
        tell,
    };
    request.resolve(&tools).map(Some)
}

/// Finds what describes the job that a step is started in: a batch script and an allocation's
/// shell have it from Slurm, the tasks of a bare srun from us.
fn job_pins() -> Result<Option<Pins>, SubmitError> {
    let from_slurm = Pins::from_env(|name| own_env(&format!("SLURM_SPANK_{name}")))?;
    Ok(if from_slurm.is_some() {
        from_slurm
    } else {
        Pins::from_env(own_env)?
    })
}

/// Never fails: an error here would drain the node and complete the job as if all were well.
fn ready_step(spank: &Spank) -> i32 {
    let (Some(job), Some(uid)) = (job_id(spank), spank.uid()) else {
        return OK;
    };
    let step = tasks::judge(&NodeState::read(&job), &job, uid, asked(spank));
    for (name, value) in &step.env {
        if !spank.set_step_env(name, value.as_deref()) {
            log(
                Level::Error,
                &format!("shifter: cannot set '{name}' for job {job}"),
            );
        }
    }
    *locked(&STEP) = Some(step);
    OK
}

fn admit_task(spank: &Spank) -> i32 {
    let mut step = locked(&STEP);
    let step = step.get_or_insert_with(|| match job_id(spank) {
        Some(job) => tasks::judge_blindly(&NodeState::read(&job), &job, asked(spank)),
        None => Step::default(),
    });
    if step.refusal.is_empty() {
        return OK;
    }
    // Once a node is enough, however many tasks it has.
    if spank.task() == Some(0) {
        for line in &step.refusal {
            log(Level::User, line);
        }
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
    match ssh::start(&job, uid, settings, ffi::isolated) {
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

fn asked(spank: &Spank) -> bool {
    let name = format!("SLURM_SPANK_{}", pins::IMAGE);
    ASKED.load(Ordering::Relaxed) || spank.step_env(&name).is_some()
}

fn prologue(spank: &Spank, settings: &Settings) -> i32 {
    let variable = |name: &str| own_env(&format!("SPANK_{name}"));
    let Some(pins) = Pins::from_env(variable).transpose() else {
        return OK;
    };
    let (Some(job), Some(uid), Some(gid)) = (job_id(spank), spank.uid(), spank.gid()) else {
        return refuse(&["shifter: Slurm does not say whose job this is".to_owned()]);
    };
    let facts = Facts {
        job: job.clone(),
        uid,
        gid,
        slurm: Slurm::from_env(own_env),
    };
    match prolog::run(facts, pins, settings, ffi::isolated) {
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
    if !layout::job_dir(&job).exists() {
        return OK;
    }
    match epilog::run(&job, settings, ffi::isolated) {
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

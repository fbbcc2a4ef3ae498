//! The border to Slurm: symbols it looks for, and safe names for the functions it gives us.
//!
//! The only module with unsafe code. It converts and forwards and decides nothing; no panic
//! leaves it. Slurm calls a plugin from one thread of a process at a time.
#![allow(unsafe_code, reason = "Slurm is C")]

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_long, c_void};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::panic::{self, AssertUnwindSafe};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::context::{Callback, Context, Level};
use crate::options::{self, HasValue, LIMIT};
use crate::{callbacks, version};

#[allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    reason = "generated from C"
)]
#[path = "spank_sys.rs"]
mod sys;

/// The plugin's name; it also appears in the environment variables with which Slurm forwards
/// options.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's name")]
pub static plugin_name: [u8; 8] = *b"shifter\0";

/// The kind of plugin.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's name")]
pub static plugin_type: [u8; 6] = *b"spank\0";

/// The release of Slurm that this is for: whichever loads it. Has the layout of a C `uint32_t`.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's name")]
pub static plugin_version: AtomicU32 = AtomicU32::new(0);

/// The plugin's own version.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's name")]
pub static spank_plugin_version: u32 = 1;

// The dynamic linker calls this before Slurm reads `plugin_version`.
// SAFETY: `.init_array` holds pointers to functions that take no arguments we read.
#[used]
#[unsafe(link_section = ".init_array")]
static SET_VERSION: extern "C" fn() = set_version;

extern "C" fn set_version() {
    // SAFETY: the name is a C string; the default scope has libslurm in every process of Slurm's.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"slurm_api_version".as_ptr()) };
    if symbol.is_null() {
        return;
    }
    // SAFETY: <slurm/slurm.h> declares the symbol as `long slurm_api_version(void)`.
    let api = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> c_long>(symbol) };
    plugin_version.store(version::plugin_version(api()), Ordering::Relaxed);
}

/// Slurm's handle for the duration of one callback.
pub struct Spank(sys::spank_t);

impl Spank {
    /// Returns the job's uid.
    pub fn uid(&self) -> Option<u32> {
        self.item(sys::S_JOB_UID)
    }

    /// Returns the job's gid.
    pub fn gid(&self) -> Option<u32> {
        self.item(sys::S_JOB_GID)
    }

    /// Returns the job's id.
    pub fn job(&self) -> Option<u32> {
        self.item(sys::S_JOB_ID)
    }

    /// Returns the number of the step; those that Slurm starts itself have very high ones.
    pub fn step(&self) -> Option<u32> {
        self.item(sys::S_JOB_STEPID)
    }

    /// Returns the number of the task on this node.
    pub fn task(&self) -> Option<u32> {
        self.item(sys::S_TASK_ID)
    }

    /// `item` is one of those that are 32 bits wide.
    fn item(&self, item: sys::spank_item_t) -> Option<u32> {
        let mut value: u32 = 0;
        // SAFETY: the handle is Slurm's, from the running callback; each of the items above is
        // written through a pointer to a 32-bit integer, which `value` outlives.
        let code = unsafe { sys::spank_get_item(self.0, item, &raw mut value) };
        (code == 0).then_some(value)
    }

    /// Returns a variable of the step's environment if it is not longer than anything we set.
    pub fn step_env(&self, name: &str) -> Option<OsString> {
        let name = c_string(name);
        let mut buffer = vec![0_u8; LIMIT + 1];
        let length = c_int::try_from(buffer.len()).ok()?;
        // SAFETY: `buffer` has `length` bytes, and Slurm ends what it writes there with a NUL.
        let code = unsafe {
            sys::spank_getenv(
                self.0,
                name.as_ptr(),
                buffer.as_mut_ptr().cast::<c_char>(),
                length,
            )
        };
        let value = CStr::from_bytes_until_nul(&buffer).ok()?;
        (code == 0).then(|| OsString::from_vec(value.to_bytes().to_vec()))
    }

    /// Returns the words of what the step runs.
    pub fn command(&self) -> Option<Vec<OsString>> {
        let (first, count) = self.words()?;
        let word = |at| {
            // SAFETY: Slurm's array has `count` words, and this is one of them.
            let word = unsafe { first.add(at) };
            // SAFETY: as above, each initialised.
            let word = unsafe { *word };
            if word.is_null() {
                return None;
            }
            // SAFETY: each word is a C string, which nobody changes during the callback.
            let word = unsafe { CStr::from_ptr(word) };
            Some(OsString::from_vec(word.to_bytes().to_vec()))
        };
        (0..count).map(word).collect()
    }

    /// Puts another first word in the place of that of what the task runs. For a task alone: its
    /// process forks from slurmstepd, and executes the words or ends.
    pub fn set_program(&self, program: &str) -> bool {
        let Some((first, _)) = self.words() else {
            return false;
        };
        // Slurm keeps it until it executes it.
        let word = c_string(program).into_raw();
        // SAFETY: the place is that of a word in Slurm's array, in this process's own memory; nobody
        // else reads or writes it during the callback.
        unsafe { *first = word };
        true
    }

    /// Returns where Slurm keeps the addresses of the words of what the step runs, and how many there
    /// are: one or more.
    fn words(&self) -> Option<(*mut *mut c_char, usize)> {
        let mut count: c_int = 0;
        let mut list: *mut *mut c_char = std::ptr::null_mut();
        // SAFETY: the handle is Slurm's, from the running callback; the item is written through
        // pointers to an int and to the address of an array.
        let code =
            unsafe { sys::spank_get_item(self.0, sys::S_JOB_ARGV, &raw mut count, &raw mut list) };
        let count = usize::try_from(count).unwrap_or(0);
        (code == 0 && count > 0 && !list.is_null()).then_some((list, count))
    }

    /// Returns the step's whole environment, `NAME=value` each.
    pub fn whole_step_env(&self) -> Option<Vec<Vec<u8>>> {
        let mut list: *mut *mut c_char = std::ptr::null_mut();
        // SAFETY: the handle is Slurm's, from the running callback; the item is written through a
        // pointer to the address of an array.
        let code = unsafe { sys::spank_get_item(self.0, sys::S_JOB_ENV, &raw mut list) };
        if code != 0 || list.is_null() {
            return None;
        }
        let mut variables = Vec::new();
        loop {
            // SAFETY: Slurm's array ends with NULL, and this is not behind it.
            let at = unsafe { list.add(variables.len()) };
            // SAFETY: as above, each initialised.
            let variable = unsafe { *at };
            if variable.is_null() {
                return Some(variables);
            }
            // SAFETY: each but the last is a C string, which nobody changes during the callback.
            let variable = unsafe { CStr::from_ptr(variable) };
            variables.push(variable.to_bytes().to_vec());
        }
    }

    /// Sets or removes a variable of the step's environment.
    pub fn set_step_env(&self, name: &[u8], value: Option<&[u8]>) -> bool {
        let name = c_bytes(name);
        let Some(value) = value.map(c_bytes) else {
            // SAFETY: the handle is the callback's, the name a C string; Slurm keeps neither.
            return unsafe { sys::spank_unsetenv(self.0, name.as_ptr()) } == 0;
        };
        // SAFETY: both are C strings; Slurm copies them.
        unsafe { sys::spank_setenv(self.0, name.as_ptr(), value.as_ptr(), 1) == 0 }
    }

    /// Sets a variable that the job's prolog, tasks and epilog will see.
    pub fn set_job_env(&self, name: &str, value: &str) -> bool {
        let (name, value) = (c_string(name), c_string(value));
        // SAFETY: both are C strings; Slurm copies them.
        unsafe { sys::spank_job_control_setenv(self.0, name.as_ptr(), value.as_ptr(), 1) == 0 }
    }

    /// Tells Slurm of our options.
    pub fn register_options(&self, has_long_names: bool) -> bool {
        options::names(has_long_names).all(|(name, usage, number, spec)| {
            // C's structure has no const; Slurm copies the strings and changes nothing.
            let value = match spec.has_value {
                HasValue::No => std::ptr::null(),
                HasValue::Yes | HasValue::Maybe => spec.value.as_ptr(),
            };
            let mut option = sys::spank_option {
                name: name.as_ptr().cast_mut(),
                arginfo: value.cast_mut(),
                usage: usage.as_ptr().cast_mut(),
                has_arg: spec.has_value as c_int,
                val: number,
                cb: Some(option_given),
            };
            // SAFETY: handle and structure live for the call, the strings for ever.
            unsafe { sys::spank_option_register(self.0, &raw mut option) == 0 }
        })
    }
}

/// Removes a variable from our own process, which is sbatch, salloc or srun.
pub fn remove_own_env(name: &str) {
    // SAFETY: called from slurm_spank_init and slurm_spank_init_post_opt, when these programs have
    // started no thread yet.
    unsafe { std::env::remove_var(name) };
}

/// Sets a variable of our own process, which is srun: what it starts has it.
pub fn set_own_env(name: &str, value: &str) {
    // SAFETY: called from slurm_spank_init_post_opt, when srun has started no thread yet.
    unsafe { std::env::set_var(name, value) };
}

/// Writes one line to Slurm's log, or to the user.
pub fn log(level: Level, line: &str) {
    let line = c_string(line);
    let write = match level {
        Level::Error => sys::slurm_error,
        Level::Info => sys::slurm_info,
        Level::User => sys::slurm_spank_log,
    };
    // SAFETY: the format takes exactly one C string, and that is what it gets.
    unsafe { write(c"%s".as_ptr(), line.as_ptr()) };
}

/// Lets the program inherit none of Slurm's descriptors.
pub fn isolated(mut command: Command) -> Command {
    let close = || {
        // SAFETY: a system call without memory of ours. It only marks descriptors, so what std
        // still needs between fork and exec stays open. A kernel without it (before 5.11) has
        // Slurm's own marks.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                c_long::from(u32::MAX),
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(close) };
    command
}

/// C strings end at their first NUL, and so does what we pass.
fn c_string(text: &str) -> CString {
    c_bytes(text.as_bytes())
}

fn c_bytes(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0);
    CString::new(&bytes[..end.unwrap_or(bytes.len())]).unwrap_or_default()
}

extern "C" fn option_given(number: c_int, value: *const c_char, remote: c_int) -> c_int {
    let bytes = if value.is_null() {
        &[]
    } else {
        // SAFETY: Slurm passes the C string that the user typed; it outlives the call.
        unsafe { CStr::from_ptr(value) }.to_bytes()
    };
    guarded(Callback::Option, || {
        callbacks::option(number, bytes, remote != 0)
    })
}

/// Runs a callback; a panic in it becomes a line in the log and the code that hurts least.
fn guarded(callback: Callback, body: impl FnOnce() -> c_int) -> c_int {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            log(Level::Error, &format!("shifter: internal error at {place}"));
        }));
    });
    // Whatever state a panic leaves behind is replaced or ignored: see `callbacks::panicked`.
    panic::catch_unwind(AssertUnwindSafe(body))
        .or_else(|_| panic::catch_unwind(|| callbacks::panicked(callback, context())))
        .unwrap_or(-1)
}

fn context() -> Context {
    // SAFETY: takes nothing and reads a variable of Slurm's.
    match unsafe { sys::spank_context() } {
        sys::S_CTX_LOCAL => Context::Local,
        sys::S_CTX_ALLOCATOR => Context::Allocator,
        sys::S_CTX_REMOTE => Context::Remote,
        sys::S_CTX_JOB_SCRIPT => Context::JobScript,
        sys::S_CTX_SLURMD => Context::Slurmd,
        _ => Context::Other,
    }
}

macro_rules! callback {
    ($symbol:ident, $callback:ident, $what:literal) => {
        #[doc = $what]
        ///
        /// # Safety
        /// For Slurm only: `spank` is its handle, `args` has `count` C strings.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $symbol(
            spank: sys::spank_t,
            count: c_int,
            args: *const *const c_char,
        ) -> c_int {
            let args = || {
                (0..usize::try_from(count).unwrap_or(0)).map(|at| {
                    // SAFETY: Slurm passes `count` pointers.
                    let arg = unsafe { args.add(at) };
                    // SAFETY: as above, each initialised.
                    let arg = unsafe { *arg };
                    // SAFETY: each is a C string that outlives the callback.
                    let arg = unsafe { CStr::from_ptr(arg) };
                    arg.to_string_lossy().into_owned()
                })
            };
            guarded(Callback::$callback, || {
                callbacks::call(
                    Callback::$callback,
                    context(),
                    &Spank(spank),
                    args().collect(),
                )
            })
        }
    };
}

callback!(slurm_spank_init, Init, "Offers the options.");
callback!(
    slurm_spank_init_post_opt,
    InitPostOpt,
    "Pins the job's image, or readies a step."
);
callback!(slurm_spank_job_prolog, JobProlog, "Prepares a node.");
callback!(
    slurm_spank_task_init_privileged,
    TaskInitPrivileged,
    "Refuses a task whose job has no root, or moves it there."
);
callback!(
    slurm_spank_task_init,
    TaskInit,
    "Gives a task that was moved its environment."
);
callback!(
    slurm_spank_task_post_fork,
    TaskPostFork,
    "Starts a job's ssh server in its extern step."
);
callback!(slurm_spank_exit, Exit, "Removes a step's own root.");
callback!(slurm_spank_job_epilog, JobEpilog, "Cleans a node.");

//! Bindings to the SPANK interface, generated from spank_abi.h by bindgen.sh; do not edit.

#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct spank_handle {
    _unused: [u8; 0],
}
pub type spank_t = *mut spank_handle;
pub type spank_err_t = libc::c_int;
pub const S_JOB_UID: spank_item = 0;
pub const S_JOB_GID: spank_item = 1;
pub const S_JOB_ID: spank_item = 2;
pub const S_JOB_STEPID: spank_item = 3;
pub const S_JOB_ARGV: spank_item = 9;
pub const S_JOB_ENV: spank_item = 10;
pub const S_TASK_ID: spank_item = 11;
pub type spank_item = libc::c_uint;
pub use self::spank_item as spank_item_t;
pub const S_CTX_ERROR: spank_context = 0;
pub const S_CTX_LOCAL: spank_context = 1;
pub const S_CTX_REMOTE: spank_context = 2;
pub const S_CTX_ALLOCATOR: spank_context = 3;
pub const S_CTX_SLURMD: spank_context = 4;
pub const S_CTX_JOB_SCRIPT: spank_context = 5;
pub type spank_context = libc::c_uint;
pub use self::spank_context as spank_context_t;
pub type spank_opt_cb_f = ::std::option::Option<
    unsafe extern "C" fn(
        val: libc::c_int,
        optarg: *const libc::c_char,
        remote: libc::c_int,
    ) -> libc::c_int,
>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct spank_option {
    pub name: *mut libc::c_char,
    pub arginfo: *mut libc::c_char,
    pub usage: *mut libc::c_char,
    pub has_arg: libc::c_int,
    pub val: libc::c_int,
    pub cb: spank_opt_cb_f,
}
unsafe extern "C" {
    pub fn spank_context() -> spank_context_t;
}
unsafe extern "C" {
    pub fn spank_option_register(spank: spank_t, opt: *mut spank_option) -> spank_err_t;
}
unsafe extern "C" {
    pub fn spank_get_item(spank: spank_t, item: spank_item_t, ...) -> spank_err_t;
}
unsafe extern "C" {
    pub fn spank_getenv(
        spank: spank_t,
        var: *const libc::c_char,
        buf: *mut libc::c_char,
        len: libc::c_int,
    ) -> spank_err_t;
}
unsafe extern "C" {
    pub fn spank_setenv(
        spank: spank_t,
        var: *const libc::c_char,
        val: *const libc::c_char,
        overwrite: libc::c_int,
    ) -> spank_err_t;
}
unsafe extern "C" {
    pub fn spank_unsetenv(spank: spank_t, var: *const libc::c_char) -> spank_err_t;
}
unsafe extern "C" {
    pub fn spank_job_control_setenv(
        spank: spank_t,
        name: *const libc::c_char,
        value: *const libc::c_char,
        overwrite: libc::c_int,
    ) -> spank_err_t;
}
unsafe extern "C" {
    pub fn slurm_info(format: *const libc::c_char, ...);
}
unsafe extern "C" {
    pub fn slurm_error(format: *const libc::c_char, ...);
}
unsafe extern "C" {
    pub fn slurm_spank_log(format: *const libc::c_char, ...);
}

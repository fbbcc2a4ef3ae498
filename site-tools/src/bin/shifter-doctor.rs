//! The program behind `shifter doctor`; see `site_tools::doctor`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    site_tools::doctor::run(std::env::args_os().skip(1)).into()
}

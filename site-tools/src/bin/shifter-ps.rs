//! The program behind `shifter ps`; see `site_tools::ps`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    site_tools::ps::run(std::env::args_os().skip(1)).into()
}

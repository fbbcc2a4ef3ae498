//! Imports and judges configurations; see `site_tools::config_cli`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    site_tools::config_cli::run(std::env::args_os().skip(1)).into()
}

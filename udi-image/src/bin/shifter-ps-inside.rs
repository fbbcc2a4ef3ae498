//! What `shifter ps` is in a container: `site_tools::ps`, in a program that runs in every image.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    site_tools::ps::run(std::env::args_os().skip(1)).into()
}

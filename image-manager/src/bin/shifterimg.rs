//! Pulls images and finds them in the image stores; see `image_manager::cli`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    image_manager::cli::run(std::env::args_os().skip(1)).into()
}

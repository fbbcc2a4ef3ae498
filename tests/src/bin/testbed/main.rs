//! `testbed demo` and `testbed cluster`, run inside `tests/world.sh` by the Makefile.

mod demo;
mod site;

use std::process::ExitCode;

use anyhow::{Result, bail};
use shifter_tests::{report, world};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::line(&format!("\nFAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    world::require()?;
    match std::env::args().nth(1).as_deref() {
        Some("demo") => demo::run(),
        Some("cluster") => site::stay(),
        _ => bail!("usage: testbed demo|cluster"),
    }
}

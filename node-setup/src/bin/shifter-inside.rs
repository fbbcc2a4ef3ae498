//! `/opt/udiImage/bin/shifter` of every container: runs a command where it is, without privilege.

use std::process::ExitCode;

use node_setup::inside;

fn main() -> ExitCode {
    inside::main(std::env::args_os().skip(1).collect()).into()
}

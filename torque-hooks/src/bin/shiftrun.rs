//! `shiftrun`: starts a job's program with the site's launcher.

fn main() -> std::process::ExitCode {
    torque_hooks::shiftrun::main()
}

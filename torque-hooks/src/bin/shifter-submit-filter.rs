//! `shifter-submit-filter`: judges jobs when they are submitted.

fn main() -> std::process::ExitCode {
    torque_hooks::submit::main()
}

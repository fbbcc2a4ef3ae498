//! `shifter-node-service`: what a node runs while it has a job of ours.

fn main() -> std::process::ExitCode {
    torque_hooks::service_cli::main()
}

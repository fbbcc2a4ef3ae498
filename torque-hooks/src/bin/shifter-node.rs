//! `shifter-node`: what the launch node of a job has each of its nodes do.

fn main() -> std::process::ExitCode {
    torque_hooks::node::main()
}

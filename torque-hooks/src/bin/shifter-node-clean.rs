//! `shifter-node-clean`: removes what a machine that died has left.

fn main() -> std::process::ExitCode {
    torque_hooks::clean::main()
}

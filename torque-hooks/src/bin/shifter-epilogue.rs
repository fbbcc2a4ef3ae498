//! `shifter-epilogue`: cleans a job's nodes; what else it does depends on its name.

fn main() -> std::process::ExitCode {
    torque_hooks::hook::main(torque_hooks::call::Role::Epilogue)
}

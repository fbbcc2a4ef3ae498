//! `shiftrun`: starts a job's program in its container with the site's own launcher.
//!
//! ```text
//! shiftrun -n 4 -N 2 cmd   with ALPS: CRAY_ROOTFS=SHIFTER aprun -b -n 4 -N 2 cmd
//!                          with Slurm: srun -n 4 -N 2 shifter cmd
//!                          otherwise: shifter cmd
//! ```
//!
//! It has no privilege, and finds the launcher as the user's own shell would, by PATH: sites have
//! several, and modules choose among them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use shifter_core::exit::ExitCode;

use crate::say;

/// Options of srun that have a value in the next word.
const WITH_VALUE: &str = "AbBcCdDeEgGiJKLmMnNopPqrRtTUwWx";

/// Who starts programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Launcher {
    Alps,
    Slurm,
    Own,
}

/// Runs the program.
pub fn main() -> std::process::ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let launcher = if is_set("SLURM_JOB_ID") {
        Launcher::Slurm
    } else if is_set("BASIL_RESERVATION_ID") || (is_set("PBS_JOBID") && has_aprun()) {
        Launcher::Alps
    } else {
        Launcher::Own
    };
    let Some((program, words)) = command(launcher, words) else {
        say::tell("a command is needed: shiftrun [OPTIONS OF THE LAUNCHER] COMMAND");
        return ExitCode::Usage.into();
    };
    let mut command = Command::new(program);
    command.args(words);
    if launcher == Launcher::Alps {
        command.env("CRAY_ROOTFS", "SHIFTER");
    }
    let error = command.exec();
    say::tell(&format!("cannot run '{program}': {error}"));
    ExitCode::NotFound.into()
}

fn has_aprun() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join("aprun").exists())
        || Path::new("/opt/cray/alps/default/bin/aprun").exists()
}

/// Returns the launcher's program and its words; nothing without a command.
fn command(launcher: Launcher, mut words: Vec<OsString>) -> Option<(&'static str, Vec<OsString>)> {
    if words.is_empty() {
        return None;
    }
    match launcher {
        // -b: the program is in the container and not here.
        Launcher::Alps => {
            words.insert(0, "-b".into());
            Some(("aprun", words))
        }
        Launcher::Slurm => {
            let at = first_of_command(&words)?;
            words.insert(at, "shifter".into());
            Some(("srun", words))
        }
        Launcher::Own => Some(("shifter", words)),
    }
}

/// Finds the first word that is neither an option of srun's nor the value of one.
fn first_of_command(words: &[OsString]) -> Option<usize> {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let bytes = word.as_encoded_bytes();
        match bytes {
            b"--" => return (at + 1 < words.len()).then_some(at + 1),
            [b'-', b'-', ..] => {}
            [b'-', letter] if WITH_VALUE.as_bytes().contains(letter) => at += 1,
            [b'-', _, ..] => {}
            _ => return Some(at),
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_launcher_gets_its_words() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let shown = |launcher, text: &str| {
            let (program, words) = command(launcher, words(text))?;
            let words: Vec<_> = words.iter().map(|w| w.to_string_lossy()).collect();
            Some(format!("{program} {}", words.join(" ")))
        };
        let table = [
            (
                Launcher::Alps,
                "-n 4 -N 2 cmd -x",
                "aprun -b -n 4 -N 2 cmd -x",
            ),
            (
                Launcher::Slurm,
                "-n 4 --mpi=pmi2 -v cmd -n 1",
                "srun -n 4 --mpi=pmi2 -v shifter cmd -n 1",
            ),
            (Launcher::Slurm, "-n4 -- -cmd", "srun -n4 -- shifter -cmd"),
            (Launcher::Own, "cmd -x", "shifter cmd -x"),
        ];
        for (launcher, text, expected) in table {
            assert_eq!(shown(launcher, text).as_deref(), Some(expected));
        }
        assert_eq!(shown(Launcher::Slurm, "-n 4"), None);
        assert_eq!(command(Launcher::Own, Vec::new()), None);
    }
}

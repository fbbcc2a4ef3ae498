//! Is Shifter loaded into Slurm, by a plugin that can be trusted, and after all others?

use std::env;
use std::path::{Path, PathBuf};

use shifter_core::config::Config;

use super::plugstack::{Plugin, Stack, path_of, value_of};
use crate::finding::Finding;
use crate::look;

const CHECK: &str = "slurm";

const PLUGIN: &str = "shifter_slurm.so";

/// What slurmd has where slurm.conf names none.
const SPOOL_DIR: &str = "/var/spool/slurmd";

/// Where Slurm's own files are, if the environment does not say; the last is where slurmd keeps
/// them on nodes that have none of their own.
const DIRS: [&str; 3] = ["/etc/slurm", "/usr/local/etc", "/run/slurm/conf"];

pub(super) fn check(prefix: &Path, config: &Config) -> Vec<Finding> {
    let Some(slurm_conf) = slurm_conf() else {
        return vec![Finding::ok(CHECK, "no configuration of Slurm's is here")];
    };
    let path = path_of(&slurm_conf);
    let sample = prefix.join("share/shifter/plugstack.conf.d/shifter.conf");
    let way_out = format!(
        "have the line of '{}' at the end of '{}', on submit hosts and nodes",
        sample.display(),
        path.display()
    );
    if !path.exists() && !look::is_denied(&path) {
        let message = format!("there is no '{}': jobs get no container", path.display());
        return vec![Finding::error(CHECK, message, way_out)];
    }
    let mut findings = judge(&Stack::read(&path), prefix, &way_out);
    // A node that has the rest from its controller has it where slurmd keeps it, for root to read.
    if slurm_conf.exists() && !look::is_denied(&slurm_conf) {
        let value = |key| value_of(&slurm_conf, key);
        findings.extend(extern_steps(value("PrologFlags").as_deref()));
        let host = look::text("/proc/sys/kernel/hostname");
        let host = host.trim().split('.').next().unwrap_or_default();
        findings.extend(spool(
            value("SlurmdSpoolDir"),
            &config.slurm.spool_dir,
            host,
        ));
    }
    findings
}

/// Judges whether Slurm keeps a step of its own for each job.
fn extern_steps(flags: Option<&str>) -> Option<Finding> {
    // X11 needs such steps, and Slurm adds the flag itself.
    let has = |flag: &str| ["contain", "x11"].contains(&flag.trim().to_ascii_lowercase().as_str());
    let flags = flags.unwrap_or_default();
    (!flags.split(',').any(has)).then(|| {
        Finding::warning(
            CHECK,
            "PrologFlags lacks Contain: jobs have no ssh between their nodes, and what a job \
             leaves whose slurmd was killed stays until somebody removes it",
            "write 'PrologFlags=Contain' into slurm.conf, with the flags that are there",
        )
    })
}

/// Judges whether containers show the directory that slurmd has.
fn spool(slurms: Option<String>, ours: &Path, host: &str) -> Option<Finding> {
    let slurms = slurms.unwrap_or_else(|| SPOOL_DIR.to_owned());
    // A node usually has its host's name.
    let expand = |text: &str| PathBuf::from(text.replace("%n", host).replace("%h", host));
    (expand(&slurms) != expand(&ours.to_string_lossy())).then(|| {
        Finding::warning(
            "slurm.spool_dir",
            format!(
                "slurmd has '{slurms}', and containers show '{}': scripts and PMIx may not be found in them",
                ours.display()
            ),
            format!("write spool_dir = '{slurms}' under [slurm]"),
        )
    })
}

fn slurm_conf() -> Option<PathBuf> {
    let named = env::var_os("SLURM_CONF").map(PathBuf::from);
    let usual = DIRS.iter().map(|dir| Path::new(dir).join("slurm.conf"));
    // A node may have a plugin stack and get the rest from its controller.
    let has_one = |conf: &PathBuf| conf.exists() || conf.with_file_name("plugstack.conf").exists();
    named.into_iter().chain(usual).find(has_one)
}

fn judge(stack: &Stack, prefix: &Path, way_out: &str) -> Vec<Finding> {
    let mut findings: Vec<Finding> = stack
        .faults
        .iter()
        .map(|fault| Finding::warning(CHECK, fault, "correct it, or see spank(8)"))
        .collect();
    let is_ours = |plugin: &Plugin| plugin.path.file_name() == Some(PLUGIN.as_ref());
    let Some(at) = stack.plugins.iter().position(is_ours) else {
        let message = format!("{PLUGIN} is not in the plugin stack: jobs get no container");
        findings.push(Finding::error(CHECK, message, way_out));
        return findings;
    };
    let ours = &stack.plugins[at];
    let later = &stack.plugins[at + 1..];
    findings.extend(file(ours, prefix));
    if !ours.is_required {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "{}: {PLUGIN} is optional: where it cannot be loaded, jobs run outside of their image",
                ours.place
            ),
            "write 'required' for 'optional'",
        ));
    }
    if let Some(again) = later.iter().find(|plugin| is_ours(plugin)) {
        let message = format!("{}: {PLUGIN} is loaded a second time", again.place);
        findings.push(Finding::error(
            CHECK,
            message,
            "remove one of the two lines",
        ));
    }
    let later: Vec<String> = later
        .iter()
        .filter(|plugin| !is_ours(plugin))
        .map(|plugin| format!("'{}' ({})", plugin.path.display(), plugin.place))
        .collect();
    if later.is_empty() {
        let message = format!("{}: {PLUGIN} is the last plugin", ours.place);
        findings.push(Finding::ok(CHECK, message));
    } else {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "plugins after {PLUGIN} may run as root within users' images: {}",
                later.join(", ")
            ),
            format!("move the line of {} behind them", ours.place),
        ));
    }
    findings
}

/// Judges the plugin's file.
fn file(ours: &Plugin, prefix: &Path) -> Option<Finding> {
    let path = &ours.path;
    if !path.is_absolute() {
        return Some(Finding::warning(
            CHECK,
            format!(
                "{}: Slurm looks for '{}' in its own directory",
                ours.place,
                path.display()
            ),
            "write the whole path",
        ));
    }
    if let Err((message, hint)) = look::trust(path, &[]) {
        return Some(Finding::error(
            CHECK,
            format!("{}: {message}", ours.place),
            hint,
        ));
    }
    let own = prefix.join("lib/shifter").join(PLUGIN);
    let same = own.canonicalize().ok() == path.canonicalize().ok();
    (!same).then(|| {
        Finding::warning(
            CHECK,
            format!(
                "{}: '{}' is not the plugin of this installation",
                ours.place,
                path.display()
            ),
            format!("write '{}'", own.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;

    fn plugin(path: &str, is_required: bool) -> Plugin {
        Plugin {
            path: path.into(),
            is_required,
            place: "p:1".into(),
        }
    }

    #[test]
    fn steps_of_slurms_own() {
        for (flags, is_fine) in [
            (Some("Alloc,Contain"), true),
            (Some("alloc, contain"), true),
            (Some("X11"), true),
            (Some("Alloc"), false),
            (Some("NoContain"), false),
            (None, false),
        ] {
            assert_eq!(extern_steps(flags).is_none(), is_fine, "{flags:?}");
        }
    }

    #[test]
    fn spool_directories() {
        for (slurms, ours, is_same) in [
            (None, "/var/spool/slurmd", true),
            (None, "/var/spool/slurm", false),
            (Some("/var/spool/slurmd/"), "/var/spool/slurmd", true),
            (Some("/spool/%n"), "/spool/%h", true),
            (Some("/spool/%n"), "/spool/n1", true),
            (Some("/spool/%n"), "/spool", false),
        ] {
            let found = spool(slurms.map(str::to_owned), Path::new(ours), "n1");
            assert_eq!(found.is_none(), is_same, "{slurms:?} {ours}");
        }
    }

    #[test]
    fn stacks() {
        const OURS: &str = "/no/such/lib/shifter/shifter_slurm.so";
        type Said = (State, &'static str);
        let table: [(&[Plugin], &[Said]); 6] = [
            (&[], &[(State::Error, "not in the plugin stack")]),
            (
                &[plugin("/x.so", true)],
                &[(State::Error, "not in the plugin stack")],
            ),
            (
                &[plugin("/x.so", true), plugin(OURS, true)],
                &[
                    (State::Error, "No such file"),
                    (State::Ok, "the last plugin"),
                ],
            ),
            (
                &[plugin(OURS, false), plugin("/x.so", true)],
                &[
                    (State::Error, "No such file"),
                    (State::Warning, "optional"),
                    (State::Warning, "'/x.so' (p:1)"),
                ],
            ),
            (
                &[plugin(OURS, true), plugin(OURS, true)],
                &[
                    (State::Error, "No such file"),
                    (State::Error, "a second time"),
                    (State::Ok, ""),
                ],
            ),
            (
                &[plugin("shifter_slurm.so", true)],
                &[(State::Warning, "its own directory"), (State::Ok, "")],
            ),
        ];
        for (plugins, expect) in table {
            let stack = Stack {
                plugins: plugins.to_vec(),
                faults: Vec::new(),
            };
            let found = judge(&stack, Path::new("/no/such"), "do it");
            assert_eq!(found.len(), expect.len(), "{found:#?}");
            for (finding, (state, words)) in found.iter().zip(expect) {
                assert_eq!(finding.state, *state, "{found:#?}");
                assert!(finding.message.contains(words), "{words}: {found:#?}");
            }
        }
    }
}

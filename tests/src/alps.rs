//! A Cray in small: a login node where moms and aprun run, and compute nodes that only ALPS reaches
//! for users, all of it through the stand-in in tests/alps.
//!
//! A compute node's own root is another one than the system's, which it has at `/dsl`: what
//! programs there call `/var` is `/dsl/var` for aprun.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::call::Call;
use crate::sandbox::{Sandbox, Sandboxes};
use crate::torque::TorqueJob;
use crate::world;

/// Where Cray's programs are.
pub const BIN: &str = "/opt/cray/alps/default/bin";

/// Where pcmd is.
pub const PCMD: &str = "/opt/cray/nodehealth/default/bin/pcmd";

/// Where xtxqtcmd is.
pub const XTXQTCMD: &str = "/usr/bin/xtxqtcmd";

const SBIN: &str = "/opt/cray/alps/default/sbin";

const STATE: &str = "/srv/alps";

/// The machine, up until it is dropped.
#[derive(Debug)]
pub struct Cray {
    /// `login1` first, then the compute nodes.
    pub nodes: Sandboxes,
}

/// A reservation, as ALPS calls the nodes of one job.
#[derive(Clone, Debug)]
pub struct Reservation(String);

impl Cray {
    /// Starts a machine with these compute nodes, whose own root aprun calls `/` and the system's `DSL`.
    pub fn start(nids: &[u32]) -> Result<Self> {
        let computes: Vec<String> = nids.iter().map(|nid| host(*nid)).collect();
        let names = ["login1"].into_iter();
        let names: Vec<&str> = names.chain(computes.iter().map(String::as_str)).collect();
        let nodes = Sandboxes::start(&names)?;
        install(nids)?;
        for node in &nodes.nodes()[1..] {
            // The shared root stands beside the node's own; here they have the same files, but for /run.
            let script = "mkdir -p /var/udiMount /dsl && mount --rbind / /dsl && \
                          mount --make-rprivate /dsl && umount -l /dsl/run && \
                          mount -t tmpfs -o mode=0755 run /dsl/run && mkdir /dsl/run/lock";
            node.shell(script).ok()?;
        }
        Ok(Self { nodes })
    }

    /// Returns the node where moms and aprun run.
    pub fn login(&self) -> Result<&Sandbox> {
        self.nodes.node("login1")
    }

    /// Reserves compute nodes for a job as its mom does before the prologue, and confirms it.
    pub fn reserve(&self, job: &TorqueJob, nids: &str, per_node: usize) -> Result<Reservation> {
        let width = per_node * numbers(nids)?;
        let request = format!(
            "<?xml version=\"1.0\"?>\n<BasilRequest protocol=\"1.1\" method=\"RESERVE\">\
             <ReserveParamArray user_name=\"{}\" batch_id=\"{}\">\
             <ReserveParam architecture=\"XT\" width=\"{width}\" depth=\"1\" nppn=\"{per_node}\">\
             <NodeParamArray><NodeParam>{nids}</NodeParam></NodeParamArray>\
             </ReserveParam></ReserveParamArray></BasilRequest>",
            job.user.name(),
            job.id
        );
        let answer = self.basil(&request)?;
        let id = answer.split("reservation_id=\"").nth(1);
        let id = id.and_then(|rest| rest.split('"').next());
        let reservation = Reservation(id.with_context(|| answer.clone())?.to_owned());
        let confirm = format!(
            "<?xml version=\"1.0\"?>\n<BasilRequest protocol=\"1.1\" method=\"CONFIRM\" \
             reservation_id=\"{}\" admin_cookie=\"4711\"/>",
            reservation.0
        );
        self.basil(&confirm)?;
        Ok(reservation)
    }

    /// Gives a reservation back.
    pub fn release(&self, reservation: Reservation) -> Result<()> {
        let request = format!(
            "<?xml version=\"1.0\"?>\n<BasilRequest protocol=\"1.1\" method=\"RELEASE\" \
             reservation_id=\"{}\"/>",
            reservation.0
        );
        self.basil(&request).map(drop)
    }

    /// Prepares to call aprun in a job's script.
    pub fn aprun(&self, job: &TorqueJob, words: &[&str]) -> Result<Call> {
        let user = job.user;
        let program = format!("{BIN}/aprun");
        let call = self
            .login()?
            .call([program.as_str()])
            .args(words.iter().copied());
        Ok(call
            .by(user)
            .cwd(user.scratch())
            .env("USER", user.name())
            .env("PBS_JOBID", &job.id))
    }

    fn basil(&self, request: &str) -> Result<String> {
        let program = format!("{BIN}/apbasil");
        let answer = self.login()?.call([program]).input(request).ok()?;
        ensure!(answer.contains("status=\"SUCCESS\""), "{request}: {answer}");
        Ok(answer)
    }
}

impl Reservation {
    /// Returns its number.
    pub fn id(&self) -> &str {
        &self.0
    }
}

/// Returns a compute node's host name.
pub fn host(nid: u32) -> String {
    format!("nid{nid:05}")
}

/// Counts the nodes of a list such as `20-23,40`.
fn numbers(nids: &str) -> Result<usize> {
    let mut count = 0;
    for part in nids.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse()?, last.parse()?);
        count += last + 1 - first;
    }
    Ok(count)
}

fn install(nids: &[u32]) -> Result<()> {
    let _ = fs::remove_dir_all(STATE);
    for dir in [
        BIN,
        SBIN,
        STATE,
        "/opt/cray/nodehealth/default/bin",
        "/etc/opt/cray/cnrte",
    ] {
        fs::create_dir_all(dir)?;
    }
    let from = world::checkout().join("tests/alps/alps-stand-in.py");
    let mut places: Vec<String> = ["apbasil", "apstat", "aprun"]
        .map(|name| format!("{BIN}/{name}"))
        .into();
    places.extend([
        format!("{SBIN}/apinit"),
        format!("{SBIN}/apsched-stand-in"),
        PCMD.into(),
        XTXQTCMD.into(),
    ]);
    for place in places {
        // No links: a script is told the name of the file that it is.
        fs::copy(&from, &place).with_context(|| format!("{}", from.display()))?;
    }
    let nids: Vec<String> = nids.iter().map(u32::to_string).collect();
    fs::write(format!("{STATE}/nodes"), nids.join("\n"))?;
    let rule = format!("ALL ALL=(root) NOPASSWD: {SBIN}/apsched-stand-in\n");
    let file = "/etc/sudoers.d/alps-stand-in";
    fs::write(file, rule)?;
    Call::new(["chmod", "0440", file]).ok().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes_are_counted() -> Result<()> {
        assert_eq!((numbers("20")?, numbers("20-23,40")?), (1, 5));
        assert_eq!(host(20), "nid00020");
        Ok(())
    }
}

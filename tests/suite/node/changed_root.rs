//! Containers for processes with a changed root, as ALPS gives them one: only where the site names
//! it, and with nothing of the node's tree in them.

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, Output};
use shifter_tests::sandbox::Sandboxes;
use shifter_tests::snapshot::Snapshot;

use super::{Site, ensure_refused, manifest};

/// Where the other root is.
const PLACE: &str = "/dsl";

/// Where launchers change to, in either root.
const UDI_MOUNT: &str = "/var/udiMount";

/// The node's tree once more in a mount of its own, all of it shared as systemd has it.
const MOUNT: &str = "mount --rbind / /dsl";

/// The same in a mere directory, with a /run of its own.
const DIRECTORY: &str = "cd / && for entry in *; do
        case $entry in dsl | run) continue ;; esac
        if [ -L $entry ]; then cp -P $entry /dsl/; else
            mkdir -p /dsl/$entry && mount --rbind /$entry /dsl/$entry; fi
    done
    mkdir -p /dsl/run && mount -t tmpfs -o mode=0755 run /dsl/run";

/// What alice's container shows of where it is. In the second half she has every capability, leaves
/// a root that she has changed herself, and goes up.
const LOOK: &str = r#"
    cat /etc/marker; cd /; cd -P ../../..; stat -c %i . >/tmp/here; stat -c %i / | cmp - /tmp/here
    grep -c ' / ro.* - [a-z]* shifter ' /proc/self/mountinfo
    grep -e /dsl -e /run/shifter -e shared: -e master: /proc/self/mountinfo
    for fd in /proc/self/fd/*; do [ -d $fd ] && readlink $fd; done
    exec unshare -Urm sh -c '
        umount -l / 2>/dev/null && echo uncovered
        mkdir -p /tmp/low/proc; cp /bin/busybox /tmp/low; mount --rbind /proc /tmp/low/proc
        exec 3</
        exec chroot /tmp/low /busybox sh -c "cd -P /proc/self/fd/3 && cd -P ../../../.. && cat etc/marker
            [ ! -e dsl ] || echo outside"'"#;

/// A node of which some processes have another root.
struct Changed {
    site: Site,
    nodes: Sandboxes,
}

impl Changed {
    fn prepare(how: &str) -> Result<Self> {
        let mut site = Site::prepare()?;
        let nodes = Sandboxes::start(&["node"])?;
        let make = format!("mkdir -p /dsl {UDI_MOUNT}; {how}");
        nodes.node("node")?.shell(&make).ok()?;
        site.clean = Snapshot::take_at(&nodes.places())?;
        Ok(Self { site, nodes })
    }

    fn configure(&self, context: &str) -> Result<()> {
        self.site.product.configure(&format!(
            "visibility = 'host'\n[torque]\nnode_context_prefix = '{context}'"
        ))
    }

    /// Runs a program as root on the node, which changes root first.
    fn root(&self, words: &[&str]) -> Result<Call> {
        let node = self.nodes.node("node")?;
        Ok(node.call([&["chroot", PLACE][..], words].concat()))
    }

    /// Runs `shifter` as alice behind the changed root, in this job of Torque's.
    fn alice(&self, job: &str, words: &[&str]) -> Result<Output> {
        let program = self.site.product.path("bin/shifter");
        let ids = ["chroot", "--userspec=2001:2001", "--groups=2100", PLACE];
        let node = self.nodes.node("node")?;
        node.call([&ids[..], &[&*program], words].concat())
            .env("PBS_JOBID", job)
            .output()
    }

    fn set_up(&self, id: &str) -> Result<Call> {
        let program = self.site.product.path("sbin/setupRoot");
        let job = format!("--expect-job={id}");
        let set_up = self.root(&[&program, "--manifest=-", "--expect-uid=2001", &job])?;
        Ok(set_up.input(manifest(id).to_string()))
    }

    fn tear_down(&self, id: &str) -> Result<()> {
        let program = self.site.product.path("sbin/unsetupRoot");
        self.root(&[&program, id])?.ok().map(drop)
    }

    fn finish(self) -> Result<()> {
        // The hints of private containers.
        self.tear_down("0")?;
        let restored = self.site.clean.ensure_restored_at(&self.nodes.places());
        self.site.product.configure("")?;
        restored
    }
}

#[test]
fn privileged_containers_behind_a_changed_root_hold_nothing_of_the_nodes_tree() -> Result<()> {
    for how in [MOUNT, DIRECTORY] {
        let changed = Changed::prepare(how)?;
        changed.configure(PLACE)?;
        let node = changed.nodes.node("node")?;
        let private = changed.alice("", &["--image=tiny", "sh", "-c", LOOK])?;
        ensure!(private.stdout == "tiny\n1\ntiny\n", "{how}: {private}");

        let id = "17.server";
        changed.set_up(id)?.ok()?;
        // Where a launcher that changes root itself sends the job's programs.
        let at = format!("{PLACE}{UDI_MOUNT}");
        let seen = node.call(["chroot", "--userspec=2001:2001", &*at, "cat", "/etc/marker"]);
        ensure!(seen.ok()? == "tiny\n", "{how}");
        let joined = changed.alice(id, &["sh", "-c", LOOK])?;
        ensure!(joined.stdout == "tiny\n1\ntiny\n", "{how}: {joined}");
        // Whoever enters the namespace, from wherever, is in the container.
        let pin = format!("--mount={PLACE}/run/shifter/jobs/{id}/roots/job/mnt");
        let look = [
            "nsenter",
            &*pin,
            "/bin/sh",
            "-c",
            "cat /etc/marker; ls -d /dsl",
        ];
        let entered = node.call(look).output()?;
        ensure!(entered.stdout == "tiny\n", "{how}: {entered}");
        changed.tear_down(id)?;
        changed.finish()?;
    }
    Ok(())
}

#[test]
fn privileged_a_changed_root_that_the_site_does_not_name_is_refused() -> Result<()> {
    let changed = Changed::prepare(MOUNT)?;
    for context in ["", "/opt", "/missing"] {
        changed.configure(context)?;
        let refused = changed.alice("", &["--image=tiny", "true"])?;
        ensure_refused(&refused, 3, "after a change of root")?;
        ensure!(refused.stderr.contains("torque.node_context_prefix"));
        let refused = changed.set_up("17.server")?.output()?;
        ensure_refused(&refused, 3, "after a change of root")?;
    }
    changed.finish()
}

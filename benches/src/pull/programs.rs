//! What makes a squashfs file of an image in a registry: `shifterimg`, and what Debian has.

use super::disk::AT;
use super::{PORT, TLS_PORT};

/// Ours.
pub const OURS: &str = "shifterimg pull";

/// Ours with nothing in the store before.
pub const ALONE: &str = "shifterimg pull, first";

/// One of the two best peers that end with a squashfs file.
pub const CHAIN: &str = "skopeo, umoci, mksquashfs zstd-1";

/// The other one.
pub const PODMAN: &str = "podman pull, mksquashfs zstd-1";

/// What all of them leave.
pub const TIDY: &str = "cd /tmp/bench/disk
    podman --root $PWD/podman --runroot $PWD/podman-run image unmount -af >/dev/null 2>&1
    umount -l podman/overlay 2>/dev/null
    rm -rf oci bundle podman podman-run ch tmp out.squashfs store home
    install -d -o shifter store home";

/// One of them.
pub struct Program {
    /// What it is called in tables.
    pub name: String,
    /// Shell script for what must be there before.
    pub prepare: String,
    /// Shell script that is measured.
    pub script: String,
    /// Shell script that prints the path of the image.
    pub output: String,
}

impl Program {
    fn new(name: &str, script: &str, output: &str) -> Self {
        Self {
            name: name.to_owned(),
            prepare: String::new(),
            script: script.to_owned(),
            output: output.to_owned(),
        }
    }
}

fn out() -> String {
    format!("echo {AT}/out.squashfs")
}

fn mksquashfs(tree: &str) -> String {
    format!(
        "mksquashfs {tree} {AT}/out.squashfs -comp zstd -Xcompression-level 1 -noappend -no-progress -quiet"
    )
}

fn ours(image: &str) -> String {
    format!(
        "setpriv --reuid shifter --regid shifter --clear-groups \
         /opt/shifter/bin/shifterimg pull --quiet 127.0.0.1:{PORT}/{image}"
    )
}

fn skopeo(image: &str) -> String {
    format!(
        "skopeo --insecure-policy copy -q --src-tls-verify=false \
         docker://127.0.0.1:{PORT}/{image} oci:{AT}/oci:{image}"
    )
}

fn podman_pull(image: &str) -> String {
    format!(
        "podman() {{ /usr/bin/podman --root {AT}/podman --runroot {AT}/podman-run \
         --storage-driver overlay --events-backend none \"$@\"; }}
         podman pull -q --tls-verify=false 127.0.0.1:{PORT}/{image}"
    )
}

fn podman_image(image: &str) -> String {
    let make = mksquashfs("$tree");
    format!(
        "tree=$(podman image mount 127.0.0.1:{PORT}/{image})
         {make}"
    )
}

fn chain(image: &str) -> String {
    format!(
        "{}\numoci unpack --image {AT}/oci:{image} {AT}/bundle\n{}",
        skopeo(image),
        mksquashfs(&format!("{AT}/bundle/rootfs"))
    )
}

/// Prints the path of the one image that was made after `mark`.
const NEWEST: &str = "ls -t /tmp/bench/disk/store/*.squashfs | head -1";

/// Returns all that are measured, ours first.
pub fn all(image: &str) -> Vec<Program> {
    let charliecloud = format!(
        "setpriv --reuid shifter --regid shifter --clear-groups env HOME={AT}/home USER=shifter \
         TMPDIR={AT}/ch CH_IMAGE_STORAGE={AT}/ch/storage bash -ec 'ch-image --no-cache --tls-no-verify \
         pull localhost:{TLS_PORT}/{image} image
         ch-convert -i ch-image -o squash image {AT}/ch/out.squashfs'"
    );
    let mut charliecloud = Program::new(
        "ch-image, ch-convert",
        &charliecloud,
        &format!("echo {AT}/ch/out.squashfs"),
    );
    charliecloud.prepare = format!("install -d -o shifter {AT}/ch");
    let podman = podman_pull(image);
    vec![
        Program::new(OURS, &ours(image), NEWEST),
        Program::new(CHAIN, &chain(image), &out()),
        Program::new("podman pull, no squashfs", &podman, ""),
        Program::new(
            PODMAN,
            &format!("{podman}\n{}", podman_image(image)),
            &out(),
        ),
        charliecloud,
    ]
}

/// Returns those that keep layers, with another image pulled before.
pub fn second(first: &str, image: &str) -> Vec<Program> {
    let mut programs = all(image);
    programs.truncate(4);
    programs[0].prepare = ours(first);
    programs[1].prepare = format!("cd {AT}\n{}", skopeo(first));
    for program in &mut programs[2..] {
        program.prepare = podman_pull(first);
    }
    programs
}

/// Returns ours with a name of its own.
pub fn ours_alone(image: &str) -> Program {
    Program::new(ALONE, &ours(image), NEWEST)
}

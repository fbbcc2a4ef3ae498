//! One start at a time: joining a job's root, private containers, and the programs of prolog and
//! epilog.

use std::time::Duration;

use anyhow::Result;
use shifter_tests::report;

use crate::job::{JOB, Manifest, OTHER_JOB, end_job, in_job};
use crate::peers::{self, BWRAP};
use crate::program::Program;
use crate::site::{MOUNTED, SHIFTER, Site, UID};
use crate::table::{Case, Goal, Heading, Row, compare};

/// The least that changes root and becomes the user; statically linked.
const CHROOT: &str = "chroot into a mount";
/// What Debian has for it: chroot(8), which stays root here.
const DEBIANS_CHROOT: &str = "chroot(8) into a mount, as root";
/// Namespace, loop device, squashfs, chroot by bare system calls.
const BARE_MOUNT: &str = "bare mount";

/// Measures them.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let mut rows = first(site, rounds)?;
    rows.extend(later(site, rounds)?);
    Ok(rows)
}

/// Nothing is mounted, every cache of the superblock is cold.
fn first(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let image = &site.image;
    let bare = [&*site.floor, "mount", &image.file, MOUNTED];
    let bare = Program::of_root(&bare);
    let private = site.private(image);
    let private = Program::of_user(&private);
    for program in [&bare, &private] {
        program.prove(UID)?;
    }
    let manifest = Manifest::write(site, OTHER_JOB)?;
    let cold = |run: &dyn Fn() -> Result<Duration>| {
        image.wait_until_detached()?;
        run()
    };
    let cases = vec![
        Case::timed(BARE_MOUNT, || cold(&|| bare.time())),
        Case::timed("shifter --image, first on the node", || {
            cold(&|| private.time())
        })
        .goal(Goal::Times(1.2, BARE_MOUNT)),
        Case::timed("setupRoot, first on the node", || {
            let took = cold(&|| manifest.set_up())?;
            manifest.tear_down()?;
            Ok(took)
        }),
    ];
    let heading = Heading {
        title: "The first container of an image on a node",
        unit: "ms",
        base: BARE_MOUNT,
    };
    compare(heading, cases, rounds)
}

/// The image is mounted already: by the job's root, and by hand.
fn later(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let image = &site.image;
    let job = Manifest::write(site, JOB)?;
    job.set_up()?;
    let mounted = image.mount(MOUNTED)?;
    let peers = peers::all(site)?;
    let (private, chroot) = (site.private(image), [&*site.floor, "chroot", MOUNTED]);
    let rootless = [private[0], "--rootless", private[1]];
    let rootless = Program::of_user(&rootless);
    let (native, chroot) = (Program::of_user(&[]), Program::of_root(&chroot));
    let (join, private) = (Program::of_user(&[SHIFTER]), Program::of_user(&private));
    in_job(|| join.prove(UID))?;
    chroot.prove(UID)?;
    let debians_chroot = Program::of_root(&["chroot", MOUNTED]);
    debians_chroot.prove(0)?;
    private.prove(UID)?;
    let other = Manifest::write(site, OTHER_JOB)?;
    let mut cases = vec![
        Case::timed("no container", || native.time()),
        Case::timed(CHROOT, || chroot.time()),
        Case::timed(DEBIANS_CHROOT, || in_job(|| debians_chroot.time())),
        Case::timed("shifter, joining the job's root", || in_job(|| join.time()))
            .goal(Goal::Times(1.1, DEBIANS_CHROOT)),
        Case::timed("shifter --image, image mounted already", || private.time())
            .goal(Goal::Times(0.75, BWRAP)),
        Case::timed("setupRoot, image mounted already", || {
            let took = other.set_up()?;
            other.tear_down()?;
            Ok(took)
        })
        .goal(Goal::Most(5.0)),
        Case::timed("unsetupRoot", || {
            other.set_up()?;
            other.tear_down()
        })
        .goal(Goal::Most(4.0)),
    ];
    match rootless.prove(UID) {
        Ok(()) => cases.push(Case::timed("shifter --rootless, by squashfuse", || {
            rootless.time()
        })),
        Err(reason) => report::line(&format!("--rootless: does not work here: {reason:#}")),
    }
    for peer in &peers {
        cases.push(Case::timed(peer.name, || peer.program.time()));
    }
    let heading = Heading {
        title: "The image is mounted on the node already",
        unit: "ms",
        base: CHROOT,
    };
    let rows = compare(heading, cases, rounds)?;
    peers::settle()?;
    drop(mounted);
    job.tear_down()?;
    end_job()?;
    Ok(rows)
}

//! Many starts at once, as when a job's tasks all call `shifter --image`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::peers::{self, CH_RUN};
use crate::program::{Held, Program};
use crate::site::{Site, UID};
use crate::table::{Case, Goal, Heading, Row, compare, finish, row};

/// Measures them.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let crowd = site.scale.crowd;
    let private = site.private(&site.image);
    let private = Program::of_user(&private);
    private.prove(UID)?;
    let peers = peers::light()?;

    let mut cases = vec![
        Case::timed("shifter --image, first on the node", || {
            site.image.wait_until_detached()?;
            at_once(&private, crowd)
        })
        .goal(Goal::Times(1.0, CH_RUN)),
        Case::timed("shifter --image, image mounted already", || {
            let mut holder = private.hold(&["/usr/local/bin/floor", "hold"])?;
            holder.wait_until_ready()?;
            at_once(&private, crowd)
        })
        .goal(Goal::Times(1.0, CH_RUN)),
    ];
    for peer in &peers {
        cases.push(Case::timed(peer.name, || at_once(&peer.program, crowd)));
    }
    let title = format!("{crowd} starts at once, until the last has ended");
    let heading = Heading {
        title: &title,
        unit: "ms",
        base: CH_RUN,
    };
    let mut rows = compare(heading, cases, rounds)?;

    site.image.wait_until_detached()?;
    let devices = devices_of_crowd(site, &private)?;
    let title = format!("{crowd} containers that were started at once, and stay");
    let heading = Heading {
        title: &title,
        unit: "",
        base: "",
    };
    let devices = row("loop devices in use", Goal::Most(1.0), vec![devices]);
    rows.extend(finish(heading, vec![devices]));
    peers::settle()?;
    Ok(rows)
}

/// Starts so many and returns how long it took until all had ended.
fn at_once(program: &Program<'_>, count: usize) -> Result<Duration> {
    let mut commands = Vec::new();
    for _ in 0..count {
        commands.push(program.command(&["/bin/true"])?);
    }
    let began = Instant::now();
    let mut children = Vec::new();
    for command in &mut commands {
        children.push(command.spawn()?);
    }
    let mut failed = 0;
    for child in &mut children {
        failed += usize::from(!child.wait()?.success());
    }
    let took = began.elapsed();
    ensure!(failed == 0, "{failed} of {count} failed");
    Ok(took)
}

fn devices_of_crowd(site: &Site, private: &Program<'_>) -> Result<f64> {
    let mut crowd: Vec<Held> = Vec::new();
    for _ in 0..site.scale.crowd {
        crowd.push(private.hold(&["/usr/local/bin/floor", "hold"])?);
    }
    for held in &mut crowd {
        held.wait_until_ready()?;
    }
    let devices = site.image.devices()?;
    ensure!(devices > 0, "no loop device has the image");
    Ok(devices as f64)
}

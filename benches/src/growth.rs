//! Whether a start takes longer with more entries in the image's /etc.

use std::fs;

use anyhow::{Result, ensure};

use crate::program::Program;
use crate::site::{Site, Stored, UID, WORK, busybox_tree, store};
use crate::table::{Case, Goal, Heading, Row, compare};

const FEW: usize = 10;
const WITH_FEW: &str = "10 entries in /etc";

/// Measures it.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let images = (image(site, FEW)?, image(site, site.scale.entries)?);
    let (few, many) = (site.private(&images.0), site.private(&images.1));
    let (few, many) = (Program::of_user(&few), Program::of_user(&many));
    let mut held = Vec::new();
    for (program, entries) in [(&few, FEW), (&many, site.scale.entries)] {
        program.prove(UID)?;
        let count = program
            .command(&["/bin/sh", "-c", "ls /etc | wc -l"])?
            .output()?;
        let count: usize = String::from_utf8(count.stdout)?.trim().parse()?;
        ensure!(count >= entries, "{count} entries, not {entries}");
        held.push(program.hold(&["/usr/local/bin/floor", "hold"])?);
    }
    for held in &mut held {
        held.wait_until_ready()?;
    }
    let cases = vec![
        Case::timed(WITH_FEW, || few.time()),
        Case::timed(format!("{} entries in /etc", site.scale.entries), || {
            many.time()
        })
        .goal(Goal::Within(1.0, WITH_FEW)),
    ];
    let heading = Heading {
        title: "shifter --image, image mounted already, by the size of its /etc",
        unit: "ms",
        base: WITH_FEW,
    };
    compare(heading, cases, rounds)
}

/// Makes an image with so many entries in its /etc.
fn image(site: &Site, entries: usize) -> Result<Stored> {
    let tree = format!("{WORK}/etc{entries}");
    fs::create_dir_all(&tree)?;
    busybox_tree(&tree, &site.floor)?;
    for number in fs::read_dir(format!("{tree}/etc"))?.count()..entries {
        fs::write(
            format!("{tree}/etc/entry{number}.conf"),
            format!("{number}\n"),
        )?;
    }
    store(&tree, &format!("etc{entries}"))
}

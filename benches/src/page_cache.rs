//! What several containers of one image keep in memory: one copy of what they read, if they share
//! the kernel's superblock, else one each.

use std::fs;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;

use crate::program::{Held, Program};
use crate::site::{MOUNTED, Site, Stored, TREE, store};
use crate::table::{Goal, Heading, Row, finish, row};

/// What is read.
const READ: &str = "/usr/lib";

const FLOOR: &str = "/usr/local/bin/floor";

/// Measures it. Few rounds do: nothing of it is a time.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let image = store(TREE, "shared")?;
    let (mut devices, mut found, mut more, mut bare) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds.min(5) {
        let seen = containers(site, &image)?;
        devices.push(seen.devices as f64);
        found.push(seen.found_percent);
        more.push(seen.more_percent);
        bare.push(bare_mounts(site, &image)?);
    }
    let others = site.scale.sharers - 1;
    let title = format!(
        "What {} readers of the image's /usr/lib keep in memory",
        others + 1
    );
    let rows = vec![
        row(
            "file systems that the containers have",
            Goal::Most(1.0),
            devices,
        ),
        row(
            "not in memory for the next, once one has read it: %",
            Goal::Most(1.0),
            found,
        ),
        row(
            "more memory for all the others, of that of one: %",
            Goal::Most(10.0),
            more,
        ),
        row("the same with a bare mount for each: %", Goal::None, bare),
    ];
    let heading = Heading {
        title: &title,
        unit: "",
        base: "",
    };
    Ok(finish(heading, rows))
}

struct Seen {
    devices: usize,
    found_percent: f64,
    more_percent: f64,
}

/// Lets one container read everything, then asks the others, before they read, what they have.
fn containers(site: &Site, image: &Stored) -> Result<Seen> {
    image.wait_until_detached()?;
    let private = site.private(image);
    let private = Program::of_user(&private);
    let start = |command: &[&str]| -> Result<Held> {
        let mut held = private.hold(command)?;
        held.wait_until_ready()?;
        Ok(held)
    };
    let mut all = vec![start(&[FLOOR, "hold"])?];
    let (device, resident, total) = resident_of(&all[0])?;
    ensure!(
        resident * 4 < total,
        "{resident} of {total} pages were in memory before anybody read them"
    );
    let before = memory()?;
    all.push(start(&[FLOOR, "read", READ])?);
    let one = memory()? - before;

    let mut found_percent = 0.0_f64;
    let mut devices = vec![device];
    while all.len() < site.scale.sharers {
        let next = start(&[FLOOR, "hold"])?;
        let (device, resident, total) = resident_of(&next)?;
        ensure!(total > 0, "nothing to read");
        found_percent = found_percent.max(100.0 - 100.0 * resident as f64 / total as f64);
        devices.push(device);
        all.push(next);
    }
    let before = memory()?;
    let readers: Result<Vec<Held>> = (1..site.scale.sharers)
        .map(|_| start(&[FLOOR, "read", READ]))
        .collect();
    let others = memory()? - before;
    drop(readers?);
    devices.sort_unstable();
    devices.dedup();
    Ok(Seen {
        devices: devices.len(),
        found_percent,
        more_percent: 100.0 * others / one,
    })
}

/// The same by hand: every reader has a mount with a loop device of its own.
fn bare_mounts(site: &Site, image: &Stored) -> Result<f64> {
    image.wait_until_detached()?;
    let bare = [&*site.floor, "mount", &image.file, MOUNTED];
    let bare = Program::of_root(&bare);
    let mut held = Vec::new();
    let mut figures = Vec::new();
    for count in [1, site.scale.sharers - 1] {
        let before = memory()?;
        for _ in 0..count {
            let mut reader = bare.hold(&[FLOOR, "read", READ])?;
            reader.wait_until_ready()?;
            held.push(reader);
        }
        figures.push(memory()? - before);
    }
    Ok(100.0 * figures[1] / figures[0])
}

/// Returns the device of the container's /usr and how many of its pages are in memory.
fn resident_of(held: &Held) -> Result<(u64, u64, u64)> {
    // As root: to others the kernel says that everything is.
    let target = format!("--target={}", held.pid());
    let text = Call::new(["nsenter", "--mount", &target, FLOOR, "resident", READ]).ok()?;
    let numbers: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
    let [device, resident, total] = numbers[..] else {
        anyhow::bail!("'{text}'");
    };
    Ok((device, resident, total))
}

/// Returns the kibibytes that the kernel keeps of files and block devices.
fn memory() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let value = |key: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no such line")?.parse()?)
    };
    Ok(value("Cached:")? + value("Buffers:")?)
}

//! Reading a large /usr in a container, beside the same in a bare mount: what the container's
//! mounts cost a program that opens many files.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::program::Program;
use crate::site::{Site, busybox_tree, store};
use crate::table::{Case, Goal, Heading, Row, compare};

const TREE: &str = "/tmp/bench/wide";
const MOUNTED: &str = "/tmp/bench/wide.mounted";
const MOUNTED_AGAIN: &str = "/tmp/bench/wide.again";
const WALK: [&str; 3] = ["/usr/local/bin/floor", "walk", "/usr"];
const BARE: &str = "bare mount";

/// Measures it.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    fs::create_dir_all(TREE)?;
    busybox_tree(TREE, &site.floor)?;
    widen(TREE, site.scale.files)?;
    let image = store(TREE, "wide")?;
    let private = site.private(&image);
    let private = Program::of_user(&private);
    let mut holder = private.hold(&["/usr/local/bin/floor", "hold"])?;
    holder.wait_until_ready()?;
    let _own = image.mount(MOUNTED)?;
    let _again = image.mount(MOUNTED_AGAIN)?;
    let bare = [&*site.floor, "chroot", MOUNTED];
    let again = [&*site.floor, "chroot", MOUNTED_AGAIN];
    let (bare, again) = (Program::of_root(&bare), Program::of_root(&again));
    let millis = |program: &Program<'_>| walk(program, site.scale.files);
    let cases = vec![
        Case::figure(BARE, || millis(&bare)),
        Case::figure("another bare mount: how far noise goes", || millis(&again)),
        Case::figure("shifter --image", || millis(&private)).goal(Goal::Times(1.03, BARE)),
    ];
    let title = format!(
        "Warm stat, open and read of {} files of /usr",
        site.scale.files
    );
    let heading = Heading {
        title: &title,
        unit: "ms",
        base: BARE,
    };
    compare(heading, cases, rounds)
}

/// Walks the image's /usr and returns the milliseconds that took, warm.
fn walk(program: &Program<'_>, files: usize) -> Result<f64> {
    let output = program.command(&WALK)?.output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<usize> = text.split_whitespace().flat_map(str::parse).collect();
    let [found, _, micros] = numbers[..] else {
        anyhow::bail!("{}: '{text}'", output.status);
    };
    ensure!(output.status.success() && found > files, "{found} files");
    Ok(micros as f64 / 1e3)
}

/// Fills the tree's /usr with files as a Python installation has them: most of them small.
pub fn widen(tree: &str, files: usize) -> Result<()> {
    for number in 0..files {
        let dir = format!("{tree}/usr/lib/package{}", number / 100);
        if number % 100 == 0 {
            fs::create_dir_all(&dir)?;
        }
        let mut text = String::new();
        for line in 0..(number * 7919) % 400 {
            let value = (number + 1) * (line + 1) * 2_654_435_761 % 1_000_003;
            writeln!(text, "value_{line} = {value}").context("no memory")?;
        }
        fs::write(format!("{dir}/module{number}.py"), text)?;
    }
    Ok(())
}

//! Pulls from a registry on loopback to one squashfs file, beside what Debian has for that.
//!
//! The images are made by `benches/images.py`. Everything that is written lies on a file system of
//! its own, so that what each program needs of it at most can be seen.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;
use shifter_tests::call::Call;
use shifter_tests::product::{PREFIX, STORE};
use shifter_tests::registry::Registry;
use shifter_tests::report;
use shifter_tests::world;

mod disk;
mod programs;
mod run;

use crate::site::Site;
use crate::table::{Goal, Heading, Row, finish, row};
use disk::Disk;
use programs::{CHAIN, OURS, PODMAN, Program};
use run::{Figures, Run};

const PORT: u16 = 5000;
/// Charliecloud speaks TLS only.
const TLS_PORT: u16 = 5443;

/// An image, and what a pull of it should cost.
struct Image {
    name: &'static str,
    /// Times of the best peer that ends with a squashfs file.
    ratio: f64,
    /// Seconds, on a quiet machine.
    seconds: Option<f64>,
    /// Memory in MB.
    memory: f64,
}

const SMALL: Image = Image {
    name: "small",
    ratio: 0.25,
    seconds: Some(0.4),
    memory: 150.0,
};

const CONDA: Image = Image {
    name: "m6",
    ratio: 0.25,
    // An eighteenth of what the C Shifter's gateway needed.
    seconds: Some(3.6),
    memory: 150.0,
};

const LARGE: Image = Image {
    name: "m32",
    ratio: 0.25,
    seconds: None,
    memory: 200.0,
};

/// Measures the image of one layer.
pub fn measure_small(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    Place::make(site)?.image(&SMALL, rounds)
}

/// Measures the image of 6 layers.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    Place::make(site)?.image(&CONDA, rounds)
}

/// Measures the image of 32 layers.
pub fn measure_large(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    Place::make(site)?.image(&LARGE, rounds)
}

/// Measures an image of 6 layers of which 5 have been pulled with another one.
pub fn measure_second(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    Place::make(site)?.second(rounds)
}

/// Registries with the images, and a disk, until this is dropped. Fields are dropped in order.
struct Place {
    _registry: Registry,
    _with_tls: Registry,
    disk: Disk,
    /// How many of the programs are measured.
    programs: usize,
}

impl Place {
    fn make(site: &Site) -> Result<Self> {
        let images = world::target().join("bench/pull");
        let images = images.to_string_lossy().into_owned();
        // In a world there is no network, so they are made before.
        fs::metadata(format!("{images}/oci/index.json"))
            .context("benches/images.py makes the images")?;
        let files = format!("{images}/registry");
        let registry = Registry::start_on(PORT, &files, "")?;
        upload(&images)?;
        Call::shell(
            "cd /tmp/bench && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
             -keyout tls.key -out tls.crt -days 2 -subj /CN=localhost 2>&1",
        )
        .ok()?;
        let tls = ", tls: { certificate: /tmp/bench/tls.crt, key: /tmp/bench/tls.key }";
        let with_tls = Registry::start_on(TLS_PORT, &files, tls)?;
        let disk = Disk::make(&format!("{images}/disk.img"))?;
        // The store of the site is on that disk.
        let script = format!(
            "set -e; install -d -o shifter {0}/store {0}/home; rm -rf {STORE}
             ln -s {0}/store {STORE}",
            disk::AT
        );
        Call::shell(&script).ok()?;
        site.product.configure_with(&format!(
            "prefix = '{PREFIX}'\n[store]\npath = '{}/store'\nimage_owner = 2900\n\
             [registry.'127.0.0.1:{PORT}']\nplain_http = true\n",
            disk::AT
        ))?;
        Ok(Self {
            _registry: registry,
            _with_tls: with_tls,
            disk,
            programs: site.scale.pullers,
        })
    }

    fn image(&self, image: &Image, rounds: usize) -> Result<Vec<Row>> {
        let facts = Facts::of(image.name)?;
        let programs = self.proved(programs::all(image.name))?;
        let results = self.take_turns(&programs, rounds)?;
        let goals = [
            (Quantity::Wall, Goal::Times(image.ratio, CHAIN)),
            (Quantity::Wall, Goal::Times(image.ratio, PODMAN)),
            (Quantity::Wall, image.seconds.map_or(Goal::None, Goal::Most)),
            (Quantity::Memory, Goal::Most(image.memory)),
            (Quantity::Extra, Goal::Most(facts.compressed + 1.0)),
        ];
        Ok(tables(&facts.title, &programs, &results, &goals))
    }

    fn second(&self, rounds: usize) -> Result<Vec<Row>> {
        let facts = Facts::of("m6b")?;
        // Also the same image without the first one before it.
        let mut programs = vec![programs::ours_alone("m6b")];
        programs.extend(programs::second("m6", "m6b"));
        let programs = self.proved(programs)?;
        let results = self.take_turns(&programs, rounds)?;
        let goals = [
            (Quantity::Wall, Goal::Times(1.0, programs::ALONE)),
            (Quantity::Network, Goal::Most(facts.last + 1.0)),
        ];
        let title = format!("{} after m6, of which it has 5 layers", facts.title);
        Ok(tables(&title, &programs, &results, &goals))
    }

    /// Runs each once; says of those that do not work here why not.
    fn proved(&self, programs: Vec<Program>) -> Result<Vec<Program>> {
        let mut working = Vec::new();
        for program in programs.into_iter().take(self.programs) {
            match self.run(&program) {
                Ok(_) => working.push(program),
                Err(error) if program.name.starts_with(OURS) => return Err(error),
                Err(error) => report::line(&format!("{}: left out: {error:#}", program.name)),
            }
        }
        Ok(working)
    }

    /// Forth and back, so that none always comes after the same other one.
    fn take_turns(&self, programs: &[Program], rounds: usize) -> Result<Vec<Vec<Figures>>> {
        let mut results = vec![Vec::new(); programs.len()];
        for round in 0..rounds {
            let mut turns: Vec<_> = programs.iter().zip(&mut results).collect();
            if round % 2 == 1 {
                turns.reverse();
            }
            for (program, figures) in turns {
                figures.push(self.run(program)?);
            }
        }
        Ok(results)
    }

    fn run(&self, program: &Program) -> Result<Figures> {
        let run = Run {
            prepare: &program.prepare,
            script: &program.script,
            output: &program.output,
            tidy: programs::TIDY,
        };
        run.measure(&self.disk)
            .with_context(|| program.name.clone())
    }
}

/// Pushes what the registry lacks.
fn upload(images: &str) -> Result<()> {
    let index = fs::read_to_string(format!("{images}/oci/index.json"))?;
    let index: Value = serde_json::from_str(&index)?;
    for manifest in index["manifests"].as_array().into_iter().flatten() {
        let name = &manifest["annotations"]["org.opencontainers.image.ref.name"];
        let name = name.as_str().context("an image without a name")?;
        let digest = manifest["digest"].as_str().context("no digest")?;
        let at = format!("127.0.0.1:{PORT}/{name}");
        Call::shell(&format!(
            "skopeo inspect --tls-verify=false docker://{at}@{digest} >/dev/null 2>&1 || skopeo \
             --insecure-policy copy -q --dest-tls-verify=false oci:{images}/oci:{name} \
             docker://{at}:latest"
        ))
        .timeout(600)
        .ok()?;
    }
    Ok(())
}

/// What is known of an image.
struct Facts {
    title: String,
    /// MB of all layers as they are downloaded.
    compressed: f64,
    /// MB of the last one.
    last: f64,
}

impl Facts {
    fn of(name: &str) -> Result<Self> {
        let path = world::target().join(format!("bench/pull/{name}.json"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let facts: Value = serde_json::from_str(&text)?;
        let layers = facts["layers"].as_array().context("layers")?;
        let megabytes = |value: &Value| value.as_f64().unwrap_or(f64::NAN) / 1e6;
        let compressed = megabytes(&facts["size"]);
        let title = format!(
            "{name}: {} layers, {:.0} MB of tar, {compressed:.0} MB compressed, {} entries",
            layers.len(),
            megabytes(&facts["bytes"]),
            facts["entries"]
        );
        let last = layers
            .last()
            .map_or(f64::NAN, |layer| megabytes(&layer["size"]));
        Ok(Self {
            title,
            compressed,
            last,
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Quantity {
    Wall,
    Cpu,
    Memory,
    Disk,
    Extra,
    Output,
    Network,
}

const QUANTITIES: [(Quantity, &str, &str); 7] = [
    (Quantity::Wall, "wall clock", "s"),
    (
        Quantity::Cpu,
        "user and system time of all its processes",
        "s",
    ),
    (
        Quantity::Memory,
        "resident memory of its largest process",
        "MB",
    ),
    (Quantity::Disk, "disk at most", "MB"),
    (
        Quantity::Extra,
        "disk at most, without what it ends with",
        "MB",
    ),
    (Quantity::Output, "what it ends with", "MB"),
    (Quantity::Network, "read from the registry", "MB"),
];

/// Prints a table for each quantity, and returns the rows with goals.
fn tables(
    title: &str,
    programs: &[Program],
    results: &[Vec<Figures>],
    goals: &[(Quantity, Goal)],
) -> Vec<Row> {
    let mut kept = Vec::new();
    for (quantity, what, unit) in QUANTITIES {
        let pick = |figures: &Figures| match quantity {
            Quantity::Wall => figures.wall,
            Quantity::Cpu => figures.cpu,
            Quantity::Memory => figures.memory,
            Quantity::Disk => figures.disk,
            Quantity::Extra => figures.disk - figures.output,
            Quantity::Output => figures.output,
            Quantity::Network => figures.network,
        };
        let mut rows = Vec::new();
        for (program, figures) in programs.iter().zip(results) {
            let figures: Vec<f64> = figures.iter().map(pick).collect();
            let own = goals.iter().filter(|(of, goal)| {
                *of == quantity && program.name == OURS && !matches!(goal, Goal::None)
            });
            let mut own: Vec<Goal> = own.map(|(_, goal)| *goal).collect();
            // With --tiny one of the two is not there.
            own.retain(|goal| match goal {
                Goal::Times(_, name) => programs.iter().any(|program| program.name == *name),
                _ => true,
            });
            if own.is_empty() {
                own.push(Goal::None);
            }
            rows.extend(
                own.iter()
                    .map(|goal| row(&program.name, *goal, figures.clone())),
            );
        }
        let title = format!("{title}: {what}");
        let heading = Heading {
            title: &title,
            unit,
            base: OURS,
        };
        kept.extend(finish(heading, rows));
    }
    kept
}

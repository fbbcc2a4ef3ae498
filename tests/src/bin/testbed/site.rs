//! The site that both the demo and `make cluster` show: registry, sample image, Slurm, Shifter.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use shifter_tests::call::Call;
use shifter_tests::cluster::{Cluster, Options};
use shifter_tests::image::{Image, Recipe};
use shifter_tests::product::Product;
use shifter_tests::registry::Registry;
use shifter_tests::report;

const HELLO: &str = r#"import os, platform, sys
print("ENTRYPOINT and CMD say:", " ".join(sys.argv[1:]))
print("python", platform.python_version(), "in", os.getcwd(), "with GREETING =", os.environ.get("GREETING"))
"#;

/// Everything that runs.
pub struct Site {
    /// The installed product.
    pub product: Product,
    /// The cluster with the plugin.
    pub cluster: Cluster,
    /// The sample image.
    pub image: Image,
    /// Under which name to pull it.
    pub reference: String,
    _registry: Registry,
}

impl Site {
    /// Starts everything, telling the reader step by step.
    pub fn start() -> Result<Self> {
        let mut clock = Instant::now();
        let mut step = |what: &str, result: &str| {
            report::step(what, clock.elapsed(), result);
            clock = Instant::now();
        };
        let product = Product::install()?;
        step("install Shifter", "make install PREFIX=/opt/shifter");
        let registry = Registry::start(5000)?;
        step("start a registry", &registry.address());
        let image = sample()?;
        let reference = registry.push(&image, "sample:latest")?;
        step("make and push the sample image", "Debian with python3");
        let options = Options {
            plugstack: product.plugstack(),
            ..Options::default()
        };
        let cluster = Cluster::start(&options)?;
        let version = Call::new(["sinfo", "--version"]).ok()?;
        step(
            &format!("start {}", version.trim()),
            &cluster.states()?.join(", ").replace(" none", ""),
        );
        Ok(Self {
            product,
            cluster,
            image,
            reference,
            _registry: registry,
        })
    }
}

/// Keeps the site up until this process is killed.
pub fn stay() -> Result<()> {
    let site = Site::start()?;
    report::line(&format!("ready {}", site.reference));
    loop {
        std::thread::park();
    }
}

fn sample() -> Result<Image> {
    Recipe::debian("sample")
        .file("srv/sample/hello.py", 0o644, HELLO)
        .env("GREETING", "hello from the image")
        .set("WorkingDir", json!("/srv/sample"))
        .set(
            "Entrypoint",
            json!(["/usr/bin/python3", "/srv/sample/hello.py"]),
        )
        .set("Cmd", json!(["nothing", "but", "the", "default"]))
        .build()
}

//! What nearly every test starts with.

use std::sync::{Mutex, MutexGuard};

use anyhow::Result;
use shifter_tests::call::Output;
use shifter_tests::cluster::{Cluster, Options};
use shifter_tests::image::{Image, Recipe};
use shifter_tests::product::{Product, STORE};
use shifter_tests::registry::Registry;
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::{self, User};

/// One world has one `/etc` and one `/run`, so what runs in it takes turns.
static TURN: Mutex<()> = Mutex::new(());

/// An image in the site's store and under which name users ask for it.
pub struct Stored {
    /// The image.
    pub image: Image,
    /// Its reference.
    pub reference: String,
}

/// A site with a registry and two images, `a` and `b`, in its store. Fields are dropped in order.
pub struct Bench {
    pub cluster: Cluster,
    pub product: Product,
    pub a: Stored,
    pub b: Stored,
    pub clean: Snapshot,
    pub registry: Registry,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    /// Starts the usual site with two nodes.
    pub fn start() -> Result<Self> {
        Self::start_with(|_, _| Ok(()))
    }

    /// Starts a site that `change` makes unusual before Slurm starts.
    pub fn start_with(change: impl FnOnce(&Product, &mut Options) -> Result<()>) -> Result<Self> {
        let turn = turn()?;
        let product = Product::install()?;
        let registry = Registry::start(5000)?;
        let a = stored(&product, &registry, "a")?;
        let b = stored(&product, &registry, "b")?;
        let mut options = Options {
            plugstack: product.plugstack(),
            ..Options::default()
        };
        change(&product, &mut options)?;
        let cluster = Cluster::start(&options)?;
        let clean = Snapshot::take(Some(&cluster))?;
        Ok(Self {
            cluster,
            product,
            a,
            b,
            clean,
            registry,
            _turn: turn,
        })
    }

    /// Calls srun as a user with an image and waits for its end.
    pub fn srun(&self, user: User, image: &Stored, args: &[&str]) -> Result<Output> {
        let call = self
            .cluster
            .srun(user, [format!("--image={}", image.reference)]);
        call.args(args.iter().copied()).output()
    }

    /// Fails unless every node is in service and holds just what it held at the beginning.
    pub fn ensure_clean(&self) -> Result<()> {
        self.clean.ensure_restored(Some(&self.cluster))?;
        self.cluster.ensure_in_service()
    }
}

impl Stored {
    /// Returns the option that asks for the image.
    pub fn option(&self) -> String {
        format!("--image={}", self.reference)
    }

    /// Returns the paths of the image's files in the site's store.
    pub fn files(&self) -> [String; 2] {
        ["squashfs", "meta"].map(|kind| format!("{STORE}/{}.{kind}", self.image.id()))
    }
}

/// Waits for this test's turn.
pub fn turn() -> Result<MutexGuard<'static, ()>> {
    world::require()?;
    // A test that failed leaves nothing that the next one would trip over.
    Ok(TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// Makes an image whose `/etc/marker` is its name, and puts it into the site's store as the site's
/// owner would.
pub fn stored(product: &Product, registry: &Registry, name: &str) -> Result<Stored> {
    stored_as(product, registry, name, Recipe::tiny(name))
}

/// Makes an image and puts it into the site's store.
pub fn stored_as(
    product: &Product,
    registry: &Registry,
    name: &str,
    recipe: Recipe,
) -> Result<Stored> {
    let image = recipe.build()?;
    let reference = registry.push(&image, &format!("{name}:latest"))?;
    product
        .shifterimg(["pull", "--quiet", &reference])
        .by(User::Shifter)
        .ok()?;
    Ok(Stored { image, reference })
}

//! What a soak does, decided by its seed alone.

use std::time::Duration;

use shifter_tests::world::User::{self, Alice, Bob};

/// Numbers that look random and are the same for the same seed (splitmix64, by Sebastiano Vigna).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from 0 to one below the limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Returns true that often in a hundred times.
    fn percent(&mut self, often: u64) -> bool {
        self.below(100) < often
    }
}

/// How a job is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A script, which starts a step.
    Sbatch,
    /// A step that is a job.
    Srun,
    /// A shell on the login host, which starts a step. Each takes 3 s.
    Salloc,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It looks on every node which image it is in.
    Look,
    /// It does so by a step with an image of its own.
    OwnImage,
    /// It leaves processes behind that want to live.
    Strays,
    /// It fails.
    Fail,
    /// It asks for a volume that is not there.
    Mistake,
    /// It waits to be cancelled.
    Wait,
}

/// What befalls slurmd of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It is told to end, as by systemd.
    Ended,
    /// It dies.
    Killed,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The place in the soak, from 0.
    pub number: usize,
    /// How it is submitted.
    pub command: Command,
    /// Who submits it.
    pub user: User,
    /// How many nodes it has.
    pub nodes: usize,
    /// Which of the images it has, if any.
    pub image: Option<usize>,
    /// Whether it is inside without asking.
    pub autoshift: bool,
    /// What it does.
    pub deed: Deed,
    /// When it is cancelled, from submission.
    pub cancelled: Option<Duration>,
    /// What happens right after its submission, and to which node, from 0.
    pub restart: Option<(usize, Restart)>,
}

/// Among so many jobs there is one allocation.
const ALLOCATIONS: usize = 40;

/// Returns the jobs of a soak on `nodes` nodes, of which the first keeps its slurmd; of the others'
/// slurmds some are killed where the soak is rough.
pub fn plans(seed: u64, jobs: usize, nodes: usize, is_rough: bool) -> Vec<Plan> {
    let mut random = Random::new(seed);
    (0..jobs)
        .map(|number| plan(&mut random, number, nodes, is_rough))
        .collect()
}

fn plan(random: &mut Random, number: usize, nodes: usize, is_rough: bool) -> Plan {
    let command = match random.below(100) {
        _ if number % ALLOCATIONS == ALLOCATIONS / 2 => Command::Salloc,
        0..60 => Command::Sbatch,
        _ => Command::Srun,
    };
    let user = if random.percent(50) { Alice } else { Bob };
    let image = (!random.percent(10)).then(|| random.below(2) as usize);
    let deed = match random.below(100) {
        0..50 => Deed::Look,
        50..60 => Deed::OwnImage,
        60..68 => Deed::Strays,
        68..74 => Deed::Fail,
        74..79 => Deed::Mistake,
        _ => Deed::Wait,
    };
    // Only what has an image can be mistaken about it, or leave something in it.
    let deed = match (deed, image, command) {
        (Deed::Mistake | Deed::Strays, None, _) => Deed::Look,
        // Steps of their own image are for scripts, and an allocation has no end to wait for.
        (Deed::OwnImage, _, Command::Srun) | (Deed::Wait, _, Command::Salloc) => Deed::Look,
        (deed, ..) => deed,
    };
    let restarts = random.percent(6).then(|| {
        let node = 1 + random.below(nodes as u64 - 1) as usize;
        let is_killed = random.percent(50) && is_rough;
        (
            node,
            if is_killed {
                Restart::Killed
            } else {
                Restart::Ended
            },
        )
    });
    let moment = Duration::from_millis(random.below(1500));
    Plan {
        number,
        command,
        user,
        nodes: 1 + random.below(2) as usize,
        image,
        // A script that is inside starts no steps: this site's images have no srun.
        autoshift: random.percent(30) && image.is_some() && deed != Deed::OwnImage,
        deed,
        cancelled: (deed == Deed::Wait).then_some(moment),
        restart: restarts,
    }
}

impl Plan {
    /// Returns the name by which Slurm knows the job.
    pub fn name(&self) -> String {
        format!("soak-{}", self.number)
    }

    /// Returns what the job prints, in order, when all goes well.
    pub fn expected(&self, images: [&str; 2]) -> String {
        let times = match (self.deed, self.command) {
            (Deed::Mistake | Deed::Wait, _) => 0,
            // The script itself is inside, on the first node.
            (_, Command::Sbatch) if self.autoshift => 1,
            _ => self.nodes,
        };
        let of = |image: usize| format!("{}\n", images[image]);
        let line = match (self.deed, self.image) {
            (Deed::OwnImage, image) => of(image.map_or(0, |image| 1 - image)),
            (_, Some(image)) => of(image),
            (_, None) => "none\n".to_owned(),
        };
        line.repeat(times)
    }

    /// Returns the state in which the job ends when all goes well.
    pub fn state(&self) -> &'static str {
        match self.deed {
            Deed::Look | Deed::OwnImage | Deed::Strays => "COMPLETED",
            Deed::Fail | Deed::Mistake => "FAILED",
            Deed::Wait => "CANCELLED",
        }
    }
}

#[test]
fn soak_is_decided_by_its_seed() {
    let jobs = plans(7, 500, 4, true);
    assert_eq!(jobs, plans(7, 500, 4, true));
    assert_ne!(jobs, plans(8, 500, 4, true));
    let count = |is: &dyn Fn(&Plan) -> bool| jobs.iter().filter(|plan| is(plan)).count();
    // Of everything there is some, and of what takes long there is little.
    for (what, at_least, found) in [
        (
            "sbatch",
            200,
            count(&|plan| plan.command == Command::Sbatch),
        ),
        ("srun", 100, count(&|plan| plan.command == Command::Srun)),
        ("salloc", 10, count(&|plan| plan.command == Command::Salloc)),
        ("autoshift", 80, count(&|plan| plan.autoshift)),
        ("cancelled", 50, count(&|plan| plan.cancelled.is_some())),
        ("own image", 15, count(&|plan| plan.deed == Deed::OwnImage)),
        ("strays", 20, count(&|plan| plan.deed == Deed::Strays)),
        ("mistakes", 10, count(&|plan| plan.deed == Deed::Mistake)),
        ("bob's", 150, count(&|plan| plan.user == Bob)),
        ("restarts", 15, count(&|plan| plan.restart.is_some())),
    ] {
        assert!(found >= at_least, "{what}: {found}");
    }
    assert!(count(&|plan| plan.command == Command::Salloc) < 15);
    let is_first = |plan: &Plan| plan.restart.is_some_and(|(node, _)| node == 0);
    assert_eq!(count(&is_first), 0);
}

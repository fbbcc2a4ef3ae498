//! The wall time of steps inside an allocation, without and with a container.

use anyhow::{Result, ensure};
use shifter_tests::cluster::{Cluster, Options};
use shifter_tests::world::User;

use crate::site::Site;
use crate::table::{Goal, Heading, Row, finish, row};

const PLAIN: &str = "srun /bin/true";

/// Measures them: the first rounds count too, as for a user.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let cluster = Cluster::start(&Options {
        plugstack: site.product.plugstack(),
        ..Options::default()
    })?;
    let script = format!(
        "t() {{ local a=$EPOCHREALTIME; \"$@\" || exit 1; local b=$EPOCHREALTIME
                echo \"$label $(( ${{b/./}} - ${{a/./}} ))\"; }}
        for i in $(seq {rounds}); do
            label=plain t srun -n1 -N1 /bin/true
            label=shifter t srun -n1 -N1 shifter /bin/true
        done"
    );
    let image = format!("--image=id:{}", site.image.id);
    let (job, info) = cluster.run(User::Alice, &[&image], &script)?;
    let output = job.output()?;
    ensure!(info.state() == "COMPLETED", "{output}");
    let mut rows = Vec::new();
    for (label, name) in [("plain", PLAIN), ("shifter", "srun shifter /bin/true")] {
        let lines = output.lines().filter_map(|line| line.strip_prefix(label));
        let millis: Vec<f64> = lines
            .filter_map(|micros| micros.trim().parse().ok())
            .map(|micros: f64| micros / 1e3)
            .collect();
        ensure!(millis.len() == rounds, "{output}");
        rows.push(row(name, Goal::None, millis));
    }
    let heading = Heading {
        title: "Steps inside an allocation",
        unit: "ms",
        base: PLAIN,
    };
    Ok(finish(heading, rows))
}

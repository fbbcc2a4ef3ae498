//! MPI programs of an image under Slurm's own process managers, on two nodes.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::world::User::Alice;

use crate::bench::{Bench, stored_as};

/// Every rank adds up all ranks; the first one says what came of it.
const SUM: &str = r#"
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, size, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) printf("%d ranks, sum %d\n", size, sum);
    MPI_Finalize();
    return 0;
}
"#;

#[test]
fn cluster_mpi_programs_of_an_image_start_with_pmi2_and_pmix() -> Result<()> {
    let bench = Bench::start_with(|product, _| {
        // The image is a Debian of the same release, without MPI: it takes the host's libraries.
        product.configure(
            "[module.hostmpi]\nsite_mounts = ['/usr/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu:ro', \
             '/usr/share/openmpi:/usr/share/openmpi:ro', \
             '/etc/openmpi:/etc/openmpi:ro']",
        )
    })?;
    fs::write("/tmp/sum.c", SUM)?;
    // The nodes of a world have no other network between them.
    let mut recipe = Recipe::debian("mpi").env("OMPI_MCA_btl_tcp_if_include", "lo");
    for kind in ["mpich", "openmpi"] {
        let program = format!("/tmp/sum-{kind}");
        Call::new([&*format!("mpicc.{kind}"), "-o", &program, "/tmp/sum.c"]).ok()?;
        recipe = recipe.file(
            &format!("usr/local/bin/sum-{kind}"),
            0o755,
            fs::read(&program)?,
        );
    }
    let image = stored_as(&bench.product, &bench.registry, "mpi", recipe)?;
    for (mpi, program) in [("pmi2", "sum-mpich"), ("pmix", "sum-openmpi")] {
        let mpi = format!("--mpi={mpi}");
        let shape = ["-N2", "--ntasks-per-node=2", "--module=hostmpi", &mpi];
        for words in [&["shifter", program][..], &["--autoshift", program]] {
            let output = bench.srun(Alice, &image, &[&shape[..], words].concat())?;
            ensure!(
                output.code == 0 && output.stdout == "4 ranks, sum 6\n",
                "{output}"
            );
        }
    }
    bench.ensure_clean()
}

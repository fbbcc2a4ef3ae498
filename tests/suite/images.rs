//! The site's store and users' own: who may put what where, and whose image a job gets.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::product::STORE;
use shifter_tests::world::User::{Alice, Bob, Shifter};

use crate::bench::Bench;

#[test]
fn cluster_users_pull_into_the_site_store() -> Result<()> {
    let bench = Bench::start()?;
    let image = Recipe::tiny("c").build()?;
    let reference = bench.registry.push(&image, "path/to/c:1.0")?;
    let output = bench
        .product
        .shifter(["pull", &reference])
        .by(Alice)
        .output()?
        .success()?;
    ensure!(output.stderr.lines().count() <= 2, "{output}");
    for kind in ["squashfs", "meta"] {
        let meta = fs::metadata(format!("{STORE}/{}.{kind}", image.id()))?;
        ensure!(
            meta.uid() == Shifter.uid() && meta.mode() & 0o022 == 0,
            "{kind}: {meta:?}"
        );
    }
    let found = bench.product.shifter(["lookup", &reference]).by(Bob).ok()?;
    ensure!(found.trim() == image.id(), "{found}");
    let list = bench.product.shifter(["images"]).by(Bob).ok()?;
    ensure!(list.contains("path/to/c"), "{list}");
    // Users may add to the site's store, not take away from it.
    bench
        .product
        .shifter(["rmi", &reference])
        .by(Alice)
        .output()?;
    ensure!(
        bench
            .product
            .shifter(["lookup", &reference])
            .by(Bob)
            .output()?
            .code
            == 0
    );
    let output = bench.srun(
        Bob,
        &bench.a,
        &[
            &format!("--image={reference}"),
            "shifter",
            "cat",
            "/etc/marker",
        ],
    )?;
    ensure!(output.success()?.stdout == "c\n");
    bench.ensure_clean()
}

#[test]
fn cluster_sudo_rule_permits_pulls_alone() -> Result<()> {
    let bench = Bench::start()?;
    let program = bench.product.path("bin/shifterimg");
    let sudo = |args: &[&str]| {
        let call = Call::new(["sudo", "-n", "-u", "shifter", &program]);
        call.args(args.iter().copied()).by(Alice).output()
    };
    ensure!(sudo(&["pull", "--quiet", &bench.a.reference])?.code == 0);
    let refused: [&[&str]; 6] = [
        &["rmi", &bench.a.reference],
        &[
            "--config",
            "/scratch/alice/x.toml",
            "pull",
            &bench.a.reference,
        ],
        &[
            "pull",
            "--config",
            "/scratch/alice/x.toml",
            &bench.a.reference,
        ],
        &["pull", "--config=/scratch/alice/x.toml", &bench.a.reference],
        &["pull", "--store", "user", &bench.a.reference],
        &["pull"],
    ];
    for args in refused {
        let output = sudo(args)?;
        ensure!(
            output.stderr.contains("password is required"),
            "{args:?}: {output}"
        );
    }
    Ok(())
}

#[test]
fn cluster_forged_image_of_a_user_never_reaches_another() -> Result<()> {
    for policy in ["no", "kernel"] {
        let bench = Bench::start_with(|product, _| {
            let config = fs::read_to_string(shifter_tests::product::CONFIG)?;
            let line = format!("[store]\nuser_images = '{policy}'");
            product.configure_with(&config.replacen("[store]", &line, 1))
        })?;
        // Bob's own store says that the site's image `a` is what he made.
        let forge = format!(
            "umask 022; mkdir -p ~/.shifter forged/etc && chmod 0755 ~ && echo forged >forged/etc/marker && \
             cp -r {STORE}/index ~/.shifter/ 2>/dev/null; cp {STORE}/{id}.meta ~/.shifter/ && \
             mksquashfs forged ~/.shifter/{id}.squashfs -quiet -no-progress >/dev/null",
            id = bench.a.image.id(),
        );
        Call::shell(&forge).by(Bob).ok()?;
        ensure!(fs::exists(format!(
            "/home/bob/.shifter/{}.squashfs",
            bench.a.image.id()
        ))?);
        let by_id = format!("--image=id:{}", bench.a.image.id());
        for user in [Alice, Bob, Alice] {
            for image in [bench.a.option(), by_id.clone()] {
                let call = bench
                    .cluster
                    .srun(user, [image.as_str(), "shifter", "cat", "/etc/marker"]);
                let output = call.output()?;
                ensure!(
                    output.code == 0 && output.stdout == "a\n",
                    "{policy} {user:?}: {output}"
                );
            }
        }
        // Also when the two run at the same time on one node.
        let bob = bench.cluster.submit(
            Bob,
            &["-w", "n1", &by_id],
            "srun shifter sh -c 'echo up; sleep 60'",
        )?;
        bob.wait_for_output("up")?;
        let output = bench.srun(
            Alice,
            &bench.a,
            &["-w", "n1", "shifter", "cat", "/etc/marker"],
        )?;
        ensure!(output.stdout == "a\n", "{policy}: {output}");
        bob.cancel()?;
        bob.wait()?;
        bench.ensure_clean()?;
    }
    Ok(())
}

#[test]
fn cluster_users_own_images_follow_the_policy() -> Result<()> {
    let bench = Bench::start()?;
    let image = Recipe::tiny("own").build()?;
    let reference = bench.registry.push(&image, "own:1")?;
    bench
        .product
        .shifter(["pull", "--store", "user", &reference])
        .by(Alice)
        .ok()?;
    ensure!(fs::exists(format!(
        "/home/alice/.shifter/{}.squashfs",
        image.id()
    ))?);
    let option = format!("--image={reference}");
    let call = bench
        .cluster
        .srun(Alice, [option.as_str(), "shifter", "cat", "/etc/marker"]);
    let output = call.output()?;
    ensure!(
        output.code != 0 && output.stderr.contains("hint:"),
        "{output}"
    );

    let config = fs::read_to_string(shifter_tests::product::CONFIG)?;
    bench.product.configure_with(&config.replacen(
        "[store]",
        "[store]\nuser_images = 'kernel'",
        1,
    ))?;
    let private = |user| {
        bench
            .cluster
            .srun(user, ["shifter", &option, "cat", "/etc/marker"])
    };
    ensure!(private(Alice).output()?.success()?.stdout == "own\n");
    // It stays Alice's own.
    let bob = private(Bob).output()?;
    ensure!(bob.code != 0 && bob.stdout.is_empty(), "{bob}");
    bench.ensure_clean()
}

#[test]
fn cluster_missing_image_is_pulled_where_the_site_allows_it() -> Result<()> {
    let bench = Bench::start_with(|product, _| {
        product.configure("[slurm]\nsubmit_pull_timeout_secs = 60")
    })?;
    let image = Recipe::tiny("late").build()?;
    let reference = bench.registry.push(&image, "late:1")?;
    let (job, info) = bench.cluster.run(
        Alice,
        &[&format!("--image={reference}")],
        "srun shifter cat /etc/marker",
    )?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(job.output()? == "late\n", "{}", job.output()?);
    let missing = format!("--image={}", bench.registry.reference("nowhere:1"));
    let output = bench.cluster.sbatch(Alice, &[&missing], "true")?;
    ensure!(
        output.code != 0 && output.stderr.contains("nowhere"),
        "{output}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_lookup_tells_all_of_an_image() -> Result<()> {
    let bench = Bench::start()?;
    let text = bench
        .product
        .shifterimg(["lookup", "--json", &bench.a.reference])
        .by(Alice)
        .ok()?;
    let found: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(
        found["id"] == bench.a.image.id() && found["store"] == "site",
        "{text}"
    );
    ensure!(
        found["reference"] == bench.a.reference && found["type"] == "docker",
        "{text}"
    );
    let path = found["path"].as_str().context("path")?;
    ensure!(
        fs::metadata(path)?.len() == found["size"].as_u64().context("size")?,
        "{text}"
    );
    let missing = bench.registry.reference("missing:1");
    let output = bench
        .product
        .shifterimg(["lookup", "--json", &missing])
        .by(Alice)
        .output()?;
    ensure!(output.code == 4 && output.stdout.is_empty(), "{output}");
    ensure!(output.stderr.contains("hint: "), "{output}");
    Ok(())
}

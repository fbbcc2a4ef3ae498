//! Pulls and imports under limits that sites and users set, and of files that are not what they
//! seem.

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, Output};
use shifter_tests::image::Recipe;
use shifter_tests::product::Product;
use shifter_tests::registry::Registry;
use shifter_tests::world::User::Alice;

use crate::bench::turn;

/// Pulls an image of a few megabytes into alice's store under a limit of prlimit's, twice: the
/// second time without it.
fn pull_under(limit: &str) -> Result<Output> {
    let _turn = turn()?;
    let product = Product::install()?;
    let registry = Registry::start(5000)?;
    let image = Recipe::debian("limits").build()?;
    let reference = registry.push(&image, "limits:1")?;
    Call::shell("rm -rf ~/.shifter").by(Alice).ok()?;
    let program = product.path("bin/shifterimg");
    let words = ["pull", "--store", "user", &reference];
    let output = Call::new(["prlimit", limit, &program])
        .args(words)
        .by(Alice)
        .output()?;
    // Whatever came of it, nothing half done is left, and nothing is in the way of the next one.
    let left = Call::shell("ls -A ~/.shifter | grep -E '^[.](tmp|new)' || true");
    let left = left.by(Alice).ok()?;
    product.shifterimg(words).by(Alice).ok()?;
    ensure!(
        output.code == 0 || left.is_empty(),
        "left behind: {left}\n{output}"
    );
    Ok(output)
}

/// Fails unless a program ended by itself, and said why in one line and perhaps a hint.
fn ensure_says_why(output: &Output) -> Result<()> {
    let lines: Vec<&str> = output.stderr.lines().collect();
    ensure!(output.code == 1, "{output}");
    ensure!(
        lines.len() == 1 || lines.len() == 2 && lines[1].starts_with("hint: "),
        "{output}"
    );
    ensure!(
        lines[0].starts_with("shifterimg: cannot pull image"),
        "{output}"
    );
    Ok(())
}

#[test]
fn privileged_limit_of_open_files_is_enough_or_said() -> Result<()> {
    ensure!(pull_under("--nofile=24")?.code == 0, "24 files are enough");
    ensure_says_why(&pull_under("--nofile=9")?)
}

#[test]
fn privileged_limit_of_file_sizes_is_said() -> Result<()> {
    ensure_says_why(&pull_under("--fsize=1000000")?)
}

#[test]
fn privileged_limit_of_processes_is_enough_or_said() -> Result<()> {
    for limit in [4, 6, 8, 10, 12] {
        let output = pull_under(&format!("--nproc={limit}"))?;
        ensure!(!output.stderr.contains("panicked"), "{limit}: {output}");
        if output.code != 0 {
            ensure_says_why(&output)?;
        }
    }
    Ok(())
}

#[test]
fn privileged_broken_archive_is_no_root_file_system() -> Result<()> {
    let _turn = turn()?;
    let product = Product::install()?;
    let manifest = r#"[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["x:1"]}]"#;
    let script = format!(
        "mkdir -p broken && cd broken && echo '{manifest}' >manifest.json && ln -sf /etc/passwd c.json \
         && ln -sf /etc/shadow l.tar && tar -cf ../broken.tar manifest.json c.json l.tar"
    );
    Call::shell(&script).by(Alice).ok()?;
    let words = ["import", "--store", "user", "broken.tar", "broken:1"];
    let output = product.shifterimg(words).by(Alice).output()?;
    ensure!(output.code == 4, "{output}");
    ensure!(output.stderr.contains("broken.tar"), "{output}");
    Ok(())
}

//! What the integration tests share.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure here fails the test"
)]

pub mod blobs;
pub mod facts;
pub mod images;
pub mod stack;
pub mod tar;
pub mod trees;

use std::path::Path;
use std::process::{Command, Output};

/// Runs a program that a test depends on; a missing one fails the test.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

/// Runs the rest of a test in a mount namespace of its own, so that nothing it mounts can stay.
pub fn in_private_mounts(test: impl FnOnce()) {
    const INNER: &str = "IMAGE_MANAGER_TEST_IN_PRIVATE_MOUNTS";
    let name = std::thread::current().name().unwrap().to_owned();
    if std::env::var(INNER).is_ok_and(|inner| inner == name) {
        return test();
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env(INNER, &name)
        .status()
        .expect("unshare is needed for this test");
    assert!(
        status.success(),
        "{name} failed in its own mount namespace (it needs root)"
    );
}

/// Mounts an image while `look` runs.
pub fn with_mounted<T>(image: &Path, look: impl FnOnce(&Path) -> T) -> T {
    with_mounted_as("squashfs", image, look)
}

/// Mounts an image of a file system while `look` runs.
pub fn with_mounted_as<T>(kind: &str, image: &Path, look: impl FnOnce(&Path) -> T) -> T {
    let directory = tempfile::tempdir().unwrap();
    let (image, at) = (image.to_str().unwrap(), directory.path().to_str().unwrap());
    run("mount", &["-t", kind, "-o", "loop,ro", image, at]);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(directory.path())));
    run("umount", &[at]);
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

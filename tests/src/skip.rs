//! Tests that cannot run here: each says why, and only those expected may.

use anyhow::{Result, bail};

use crate::{report, world};

/// Reports that `test` cannot run here because of `reason`; fails unless `tests/expected-skips`
/// lists it.
pub fn skip(test: &str, reason: &str) -> Result<()> {
    let listed = std::fs::read_to_string(world::checkout().join("tests/expected-skips"))?;
    let expected = |line: &str| line.split_whitespace().next() == Some(test);
    if !listed.lines().any(expected) {
        bail!("cannot run here ({reason}) and tests/expected-skips does not list '{test}'");
    }
    report::line(&format!("SKIP {test}: {reason}"));
    Ok(())
}

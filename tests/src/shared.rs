//! A directory that all nodes share, where they tell each other who the users of jobs are.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use anyhow::Result;

use crate::call::Call;
use crate::product::Product;
use crate::world::User;

/// Where it is.
pub const STATE: &str = "/var/lib/shifter/state";

/// Makes it anew, and configures the product to use it; `more` stands below that in the
/// configuration.
pub fn share(product: &Product, more: &str) -> Result<()> {
    let owner = User::Shifter.uid();
    Call::new(["rm", "-rf", STATE]).ok()?;
    fs::create_dir(STATE)?;
    fs::set_permissions(STATE, fs::Permissions::from_mode(0o700))?;
    chown(STATE, Some(owner), Some(owner))?;
    product.configure(&format!(
        "[shared_state]\npath = '{STATE}'\nowner = {owner}\n{more}"
    ))
}

/// Lists what is left of jobs there.
pub fn left() -> Result<Vec<String>> {
    let find = ["find", STATE, "-mindepth", "2", "-printf", "%P\n"];
    Ok(Call::new(find).ok()?.lines().map(str::to_owned).collect())
}

//! The product as a site has it: installed by `make install`, configured by its files.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};

use crate::call::Call;
use crate::world::{self, User};

/// Where the world's product is installed.
pub const PREFIX: &str = "/opt/shifter";

/// The site's image store.
pub const STORE: &str = "/var/lib/shifter/images";

/// The configuration that every program reads.
pub const CONFIG: &str = "/etc/shifter/shifter.toml";

/// The installed product.
#[derive(Clone, Copy, Debug)]
pub struct Product;

impl Product {
    /// Installs what was built, and configures it as the usual site.
    pub fn install() -> Result<Self> {
        world::require()?;
        let prefix = format!("PREFIX={PREFIX}");
        Call::new(["make", "--silent", "install", &prefix, "SYSCONFDIR=/etc"])
            .cwd(world::checkout())
            .ok()
            .context("is everything built? `make` does it")?;
        let product = Self;
        Call::new([
            "install",
            "-d",
            "-o",
            User::Shifter.name(),
            "-m",
            "0755",
            STORE,
        ])
        .ok()?;
        let rule = fs::read_to_string(format!("{PREFIX}/share/shifter/sudoers.d/shifter"))?;
        write_config("/etc/sudoers.d/shifter", &rule, 0o440)?;
        product.configure("")?;
        Ok(product)
    }

    /// Writes the usual site's configuration with `more` at its end.
    pub fn configure(&self, more: &str) -> Result<()> {
        let uid = User::Shifter.uid();
        let text = format!(
            "system = 'testbed'\n\
             prefix = '{PREFIX}'\n\
             [store]\n\
             path = '{STORE}'\n\
             image_owner = {uid}\n\
             site_pull_command = ['/usr/bin/sudo', '-n', '-u', 'shifter', '{PREFIX}/bin/shifterimg', 'pull']\n\
             [registry.'127.0.0.1:5000']\n\
             plain_http = true\n\
             [root]\n\
             site_mounts = ['/scratch', '/home']\n\
             {more}\n"
        );
        self.configure_with(&text)
    }

    /// Writes a configuration, whatever it says.
    pub fn configure_with(&self, text: &str) -> Result<()> {
        write_config(CONFIG, text, 0o644)
    }

    /// Returns the path of an installed file.
    pub fn path(&self, below_prefix: &str) -> String {
        format!("{PREFIX}/{below_prefix}")
    }

    /// Returns the line of plugstack.conf that loads the plugin.
    pub fn plugstack(&self) -> String {
        format!("required {PREFIX}/lib/shifter/shifter_slurm.so\n")
    }

    /// Prepares to run the users' command.
    pub fn shifter<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) -> Call {
        Call::new([self.path("bin/shifter")]).args(args)
    }

    /// Prepares to run the image manager.
    pub fn shifterimg<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) -> Call {
        Call::new([self.path("bin/shifterimg")]).args(args)
    }
}

fn write_config(path: &str, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

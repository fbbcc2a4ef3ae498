//! Per-node caches: a file system of the user's own on each node, in a file without a name.
//!
//! ```text
//! FROM ─▶ which [per_node_cache] ─▶ backing file: owner's, sparse, nlink 0   (backing)
//!                                      ▲ the few blocks that mkfs writes      (seed)
//!                                      │ from a template, else mkfs in memory (template, mkfs)
//!         TO ◀─ mount, nosuid, nodev ◀─ loop device, writable, autoclear
//! ```
//!
//! Nothing of it is journalled and nothing undoes it: when the container's mount namespace dies
//! the kernel drops the mount, with it the loop device, and with that the file. What is written
//! to a cache need survive nothing, so its file system keeps as little of a log as it can.

mod backing;
mod mkfs;
mod seed;
mod template;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use shifter_core::config::{Config, NodeCache};
use shifter_core::identity::Identity;
use shifter_core::volmap::{CacheFs, PerNodeCache, Volume, contains};

use crate::error::{Context, Error, Result};
use crate::mnt::{self, SAFE};
use crate::state::RunDir;
use crate::{loopdev, volumes};

use backing::BackingDir;

/// Unit in which caches are sized and written, and the sector size of their devices: what file
/// systems on disks and parallel ones write in one piece.
const BLOCK: u64 = 4096;

/// A cache to be made: judged, but nothing of it exists yet.
pub struct Cache {
    fs: CacheFs,
    size: u64,
    dir: PathBuf,
    owner: u32,
}

/// Judges the cache that a volume asks for. `stat` and `from` are the volume's source, opened as
/// the user, and where it is on the host; `on_host` translates the site's name of a directory.
///
/// # Errors
/// [`Error::Volume`] with the reason and, where there is one, the way out.
pub fn judge(
    volume: &Volume,
    asked: PerNodeCache,
    (stat, from): (&Stat, &str),
    on_host: impl Fn(&str) -> String,
    config: &Config,
) -> Result<Cache> {
    let refuse = |reason: String, hint: String| Err(volumes::refused(volume, reason, Some(hint)));
    let fs = asked.fs;
    if volume.flags.ro {
        let reason = "a read-only perNodeCache would stay empty".to_owned();
        return refuse(reason, "leave out the flag 'ro'".to_owned());
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        let reason = "the source of a perNodeCache is a directory".to_owned();
        return refuse(reason, format!("name a directory of {}", places(config)));
    }
    let Some(place) = place_of(from, on_host, config) else {
        let reason = "there are no per-node caches on the source's file system".to_owned();
        if config.per_node_cache.is_empty() {
            let hint = "the site offers none; use a site mount or /tmp for temporary files";
            return refuse(reason, hint.to_owned());
        }
        return refuse(reason, format!("name a directory of {}", places(config)));
    };
    if !place.fs_types.contains(&fs) {
        let allowed: Vec<&str> = place.fs_types.iter().map(|fs| fs.as_str()).collect();
        let reason = format!("the site does not allow {} in a perNodeCache", fs.as_str());
        return refuse(reason, format!("ask for fs={}", allowed.join(" or fs=")));
    }
    let limit = &place.size_limit;
    if asked.size > place.size_limit_bytes() {
        let reason = format!("the perNodeCache is larger than the site's limit of {limit}");
        return refuse(reason, format!("ask for size={limit} or less"));
    }
    let size = asked.size / BLOCK * BLOCK;
    let (smallest, largest) = mkfs::sizes(fs);
    if size < smallest.0 {
        let (fs, smallest) = (fs.as_str(), smallest.1);
        let reason = format!("{fs} needs a perNodeCache of at least {smallest}");
        return refuse(reason, format!("ask for size={smallest} or more"));
    }
    if size > largest.0 {
        let (fs, largest) = (fs.as_str(), largest.1);
        let reason = format!("a perNodeCache with {fs} has at most {largest}");
        return refuse(reason, format!("ask for size={largest} or less"));
    }
    Ok(Cache {
        fs,
        size,
        dir: place.dir.clone(),
        owner: place.owner,
    })
}

/// Returns the configured file system that contains a path of the host, the innermost one.
fn place_of<'a>(
    path: &str,
    on_host: impl Fn(&str) -> String,
    config: &'a Config,
) -> Option<&'a NodeCache> {
    let places = config.per_node_cache.iter();
    let named = places.flat_map(|(name, place)| [(name.clone(), place), (on_host(name), place)]);
    let containing = named.filter(|(name, _)| contains(name, path));
    let innermost = containing.max_by_key(|(name, _)| name.len());
    innermost.map(|(_, place)| place)
}

fn places(config: &Config) -> String {
    let names: Vec<&str> = config.per_node_cache.keys().map(String::as_str).collect();
    names.join(", ")
}

impl Cache {
    /// Makes the cache and mounts it, attached nowhere yet: dropping the mount frees everything.
    ///
    /// `run` keeps templates, by which the next cache of this kind is made sooner.
    ///
    /// # Errors
    /// [`Error::Volume`] if there is no room for it; anything else is the node's failure.
    pub fn make(&self, volume: &Volume, user: &Identity, run: Option<&RunDir>) -> Result<OwnedFd> {
        let dir = BackingDir::open(&self.dir, self.owner)?;
        let seed = template::seed(run, self.fs, self.size)?;
        let file = dir.create(&seed).map_err(|error| match error {
            Error::Step { source, .. } if is_lack_of_room(&source) => {
                let dir = self.dir.display();
                let reason = format!("there is no room for the perNodeCache in '{dir}': {source}");
                volumes::refused(volume, reason, None)
            }
            other => other,
        })?;
        let device = loopdev::attach_writable(&file, BLOCK as u32)?;
        let path = device.path();
        let fs = self.fs.as_str();
        let option = match self.fs {
            // All caches from one template have one id.
            CacheFs::Xfs => "nouuid",
            // The file is all zeroes already where mkfs wrote nothing.
            CacheFs::Ext4 => "noinit_itable",
        };
        let options = [("source", Some(&*path)), (option, None)];
        let mount = mnt::make(fs, &options, SAFE)?;
        give_to(user, &mount)?;
        Ok(mount)
    }
}

/// Makes the root directory of a new file system the user's, empty and closed to others.
fn give_to(user: &Identity, mount: &OwnedFd) -> Result<()> {
    const OBJECT: &str = "per-node cache";
    // A mount's own descriptor is an O_PATH one, by which modes cannot be changed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(mount, ".", flags, Mode::empty()).step("open", OBJECT)?;
    // What mkfs.ext4 always makes, for a program that nobody will run.
    match rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error).step("clear", OBJECT),
    }
    rustix::fs::fchmod(&root, Mode::RWXU).step("set the mode of", OBJECT)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::fs::fchown(&root, Some(uid), Some(gid)).step("give away", OBJECT)
}

/// True for what a full file system, a quota or a limit on the size of files answers.
fn is_lack_of_room(error: &std::io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(names: &[&str]) -> Config {
        let tables = names
            .iter()
            .map(|name| format!("[per_node_cache.'{name}']\ndir = '{name}/.caches'\n"));
        Config::parse(&tables.collect::<String>(), std::path::Path::new("test")).unwrap()
    }

    #[test]
    fn the_innermost_file_system_is_chosen_by_whole_components() {
        let config = config(&["/scratch", "/scratch/fast", "/home"]);
        let on_host = |path: &str| path.replacen("/home", "/lustre/home", 1);
        let dir = |path: &str| place_of(path, on_host, &config).map(|place| place.dir.clone());
        for (path, expected) in [
            ("/scratch", Some("/scratch")),
            ("/scratch/alice", Some("/scratch")),
            ("/scratch/fast", Some("/scratch/fast")),
            ("/scratch/fast/a", Some("/scratch/fast")),
            ("/scratch/faster", Some("/scratch")),
            ("/scratchy", None),
            ("/lustre/home/alice", Some("/home")),
            ("/home/alice", Some("/home")),
            ("/", None),
        ] {
            let expected = expected.map(|place| PathBuf::from(format!("{place}/.caches")));
            assert_eq!(dir(path), expected, "{path}");
        }
    }
}

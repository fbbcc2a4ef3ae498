//! Reading a tree as a program does that imports a thousand modules, and asking what of it the
//! kernel keeps.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::{open, sys};

/// What was found.
#[derive(Default)]
pub struct Seen {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Looks at every entry below `dir`, and opens and reads every file.
pub fn walk(dir: &Path) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut buffer = vec![0; 128 << 10];
    each_file(dir, &mut |path, _| {
        let mut file = open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => seen.bytes += read as u64,
            }
        }
        seen.files += 1;
        Ok(())
    })?;
    Ok(seen)
}

/// Walks once to warm up and then `times` more, and returns the shortest time in microseconds.
pub fn best_of(times: usize, dir: &Path) -> Result<(Seen, u128)> {
    let seen = walk(dir)?;
    let mut best = u128::MAX;
    for _ in 0..times {
        let began = Instant::now();
        walk(dir)?;
        best = best.min(began.elapsed().as_micros());
    }
    Ok((seen, best))
}

/// Says `DEVICE RESIDENT TOTAL`: the device of `dir`, and of the pages of the files below it how
/// many are in memory. Needs root: to others the kernel says that all are.
pub fn resident(dir: &Path) -> Result<String> {
    let device = fs::symlink_metadata(dir)?.dev();
    let (mut resident, mut total) = (0, 0);
    each_file(dir, &mut |path, meta| {
        let (in_memory, all) = sys::resident_pages(&open(path)?, meta.len())?;
        resident += in_memory;
        total += all;
        Ok(())
    })?;
    Ok(format!("{device} {resident} {total}"))
}

fn each_file(dir: &Path, act: &mut impl FnMut(&Path, &fs::Metadata) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        // What only root may read is none of the user's business.
        let may_read = meta.mode() & 0o004 != 0;
        if meta.is_dir() && may_read {
            each_file(&path, act)?;
        } else if meta.is_file() && may_read {
            act(&path, &meta)?;
        }
    }
    Ok(())
}

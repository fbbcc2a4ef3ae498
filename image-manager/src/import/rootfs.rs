//! Root file systems in one archive: they have no configuration, so one is made.

use serde::Serialize;

use super::error::ImportError;
use super::section::{Section, Verified};
use crate::build::BuildError;
use crate::cancel::Cancel;
use crate::layer::{Budget, EntryKind, LayerReader, Limits};

#[derive(Serialize)]
struct Config<'a> {
    architecture: &'a str,
    config: Empty,
    os: &'a str,
    rootfs: RootFs,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct RootFs {
    diff_ids: Vec<String>,
    #[serde(rename = "type")]
    kind: &'static str,
}

/// Makes the configuration of an image that consists of this archive: the same for the same bytes.
pub(super) fn config(
    file: &Section,
    architecture: &str,
    may_nest: bool,
    cancel: &Cancel,
) -> Result<Vec<u8>, ImportError> {
    let fail = |source| ImportError::Build(BuildError::Layer { layer: 1, source });
    let budget = Budget::new(&Limits::default());
    let bytes = Verified::new(file.reader(), None, cancel);
    let mut reader = LayerReader::open(bytes, "", true, &budget).map_err(fail)?;
    let (mut entries, mut archives) = (0u64, 0u64);
    while let Some(entry) = reader.next_entry().map_err(fail)? {
        cancel.check()?;
        if entry.path.is_empty() {
            continue;
        }
        entries += 1;
        let is_archive = matches!(entry.kind, EntryKind::File { .. }) && is_archive(&entry.path);
        archives += u64::from(is_archive);
    }
    if entries == 0 {
        return Err(ImportError::NoImage);
    }
    if archives == entries && !may_nest {
        return Err(ImportError::Unsupported(super::Unsupported::Nested));
    }
    let end = reader.finish().map_err(fail)?;
    let config = Config {
        architecture,
        config: Empty {},
        os: "linux",
        rootfs: RootFs {
            diff_ids: end.diff_id.into_iter().collect(),
            kind: "layers",
        },
    };
    serde_json::to_vec(&config).map_err(|source| ImportError::Syntax {
        name: "configuration".into(),
        source,
    })
}

fn is_archive(path: &[u8]) -> bool {
    const SUFFIXES: [&[u8]; 5] = [b".tar", b".tar.gz", b".tgz", b".tar.zst", b".tar.xz"];
    SUFFIXES.iter().any(|suffix| path.ends_with(suffix))
}

//! Merges layers exactly, on their entry lists.
//!
//! [`Merger`] takes the entries of each layer, bottom first, and keeps the tree that results;
//! files are only references to the layer and entry that have their bytes. It never reads
//! contents and never touches a file system: symbolic links are followed inside the tree alone,
//! so nothing an entry says can lead out of it.
//!
//! Whiteouts hide what lower layers have, wherever they stand in their own layer's archive. For
//! that, each name remembers the last layer that touched it. What would steer the node's kernel
//! rather than describe the image is left out: overlayfs attributes and whiteout devices, file
//! capabilities (unless asked for) and security labels of the machine that made the image.

mod error;
mod label;
mod name;
mod tree;

#[cfg(any(test, fuzzing))]
pub mod model;
#[cfg(test)]
pub(crate) mod tests;

pub use error::MergeError;
pub use tree::{Merged, Source};

use crate::layer::{Entry, EntryKind, Metadata};
pub(crate) use name::{Meaning, meaning, split};
use tree::{NodeId, NodeKind, Nodes};

/// What the caller may choose about a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeOptions {
    /// Keeps `security.capability`. Containers never gain privileges from it, so it is dropped
    /// by default.
    pub keep_capabilities: bool,
    /// Files, directories and everything else of all layers, with directories that no archive
    /// lists.
    pub nodes: u32,
    /// Longest path that following symbolic links may lead to.
    pub path_bytes: usize,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self {
            keep_capabilities: false,
            nodes: 2_000_000,
            path_bytes: 4095,
        }
    }
}

/// Merges layers, bottom first.
pub struct Merger {
    options: MergeOptions,
    nodes: Nodes,
    layers: u32,
}

impl Merger {
    /// Starts with an empty root directory (0755, owned by root).
    pub fn new(options: MergeOptions) -> Self {
        Self {
            options,
            nodes: Nodes::new(options.nodes),
            layers: 0,
        }
    }

    /// Puts a layer on top of those before; `entries` are all of it, in the archive's order.
    pub fn add_layer(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Result<(), MergeError> {
        let layer = self.layers;
        self.layers += 1;
        self.nodes.start_layer();
        for (number, entry) in entries.into_iter().enumerate() {
            // Lists are limited far below 2^32 entries.
            let source = Source {
                layer,
                entry: number as u32,
            };
            self.apply(entry, source)?;
        }
        Ok(())
    }

    /// The merged tree.
    pub fn finish(self) -> Merged {
        Merged::new(self.nodes)
    }

    fn apply(&mut self, entry: Entry, source: Source) -> Result<(), MergeError> {
        let Entry {
            path,
            kind,
            mut metadata,
        } = entry;
        let limit = self.options.path_bytes;
        let (parent, name) = match meaning(&path)? {
            Meaning::Root => {
                self.keep_allowed(&mut metadata);
                self.nodes.set_metadata(NodeId::ROOT, metadata);
                return Ok(());
            }
            Meaning::Ignored => return Ok(()),
            Meaning::Opaque { directory } => {
                if let Some(directory) = self.nodes.find_directory(directory)? {
                    self.nodes.hide_contents(directory);
                }
                return Ok(());
            }
            Meaning::Whiteout { parent, name } => {
                if let Some(parent) = self.nodes.find_directory(parent)? {
                    self.nodes.hide(parent, name);
                }
                return Ok(());
            }
            Meaning::Name { parent, name } => (parent, name),
        };
        // Overlayfs's own form of a whiteout. Layers have `.wh.` files instead; on the node it
        // would hide files behind the image's back.
        if kind == (EntryKind::CharDevice { major: 0, minor: 0 }) {
            return Ok(());
        }
        self.keep_allowed(&mut metadata);
        let parent = self.nodes.make_directory(parent, limit)?;
        let kind = match kind {
            EntryKind::Directory => {
                return self.nodes.put_directory(parent, name, metadata);
            }
            EntryKind::HardLink(target) => {
                let target = self.nodes.find_link_target(&path, &target)?;
                self.nodes.put(parent, name, target);
                return Ok(());
            }
            EntryKind::File { size } => NodeKind::File { source, size },
            EntryKind::Symlink(target) => {
                metadata.mode = 0o777;
                NodeKind::Symlink(target.into())
            }
            EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            EntryKind::Fifo => NodeKind::Fifo,
        };
        let node = self.nodes.add(kind, metadata)?;
        self.nodes.put(parent, name, node);
        Ok(())
    }

    fn keep_allowed(&self, metadata: &mut Metadata) {
        let keep_capabilities = self.options.keep_capabilities;
        metadata
            .xattrs
            .retain(|(name, _)| name::is_xattr_allowed(name, keep_capabilities));
    }
}

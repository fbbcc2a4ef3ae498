//! The tree while it is merged: nodes in one list, directories as maps from names to nodes.

use super::MergeError;
use super::label::Label;
use super::name::split;
use crate::layer::Metadata;
use shifter_core::sanitize;
use squashfs_writer::{self as squashfs, AttributeTable, DataId, InodeId, Kind, Shared, Tree};
use std::collections::BTreeMap;

/// As many links as Linux follows in one path.
const MAX_LINKS: u32 = 40;
/// Names looked at for one path, links included: no honest image needs more, and a hostile one
/// must not make each of a million entries expensive.
const MAX_STEPS: u32 = 4096;
const MAX_NAME: usize = 255;

/// Which entry of which layer has a file's bytes; both are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Layer, bottom first.
    pub layer: u32,
    /// Entry, in the order of the archive.
    pub entry: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(u32);

impl NodeId {
    pub(super) const ROOT: Self = Self(0);

    fn at(self) -> usize {
        self.0 as usize
    }
}

struct Node {
    kind: NodeKind,
    metadata: Shared,
}

pub(super) enum NodeKind {
    Directory(Box<Directory>),
    File {
        source: Source,
        size: u64,
    },
    Symlink(Box<[u8]>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// It has its inode; another name may follow.
    Written(InodeId),
}

#[derive(Default)]
pub(super) struct Directory {
    names: BTreeMap<Label, Child>,
    /// The last layer that hid all lower contents; makes hiding twice free.
    hidden_in: u32,
}

#[derive(Clone, Copy)]
struct Child {
    node: NodeId,
    /// The last layer that touched this name or anything below it.
    layer: u32,
}

/// All nodes; those that nothing refers to any more stay until the end.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    metadata: AttributeTable,
    limit: usize,
    /// Counted from 1.
    layer: u32,
    /// The last path given to `make_directory` and its result, for as long as nothing on its way
    /// can have changed: neighbours in an archive mostly share their directory.
    last_made: Option<(Vec<u8>, NodeId)>,
}

/// A name on the way to a place, and its node if there is one yet.
struct Step<'a> {
    name: &'a [u8],
    node: Option<NodeId>,
}

/// Where a path leads.
struct Walk<'a> {
    steps: Vec<Step<'a>>,
    /// A link went through a name that does not exist and out of it again. Nothing makes that
    /// name, so a later entry may, and the same path then leads elsewhere.
    left_missing: bool,
}

impl Nodes {
    pub(super) fn new(limit: u32) -> Self {
        let mut metadata = AttributeTable::default();
        let root = Node {
            kind: NodeKind::Directory(Box::default()),
            metadata: metadata.add(implied()),
        };
        Self {
            nodes: vec![root],
            metadata,
            limit: limit as usize,
            layer: 0,
            last_made: None,
        }
    }

    pub(super) fn start_layer(&mut self) {
        self.layer += 1;
        self.last_made = None;
    }

    pub(super) fn add(&mut self, kind: NodeKind, metadata: Metadata) -> Result<NodeId, MergeError> {
        if self.nodes.len() > self.limit {
            return Err(MergeError::TooMany { limit: self.limit });
        }
        let id = NodeId(self.nodes.len() as u32); // the limit is one of 32 bits
        let metadata = self.metadata.add(metadata);
        self.nodes.push(Node { kind, metadata });
        Ok(id)
    }

    pub(super) fn set_metadata(&mut self, node: NodeId, metadata: Metadata) {
        self.nodes[node.at()].metadata = self.metadata.add(metadata);
    }

    fn directory(&self, node: NodeId) -> Option<&Directory> {
        match &self.nodes[node.at()].kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, node: NodeId) -> Option<&mut Directory> {
        match &mut self.nodes[node.at()].kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<Child> {
        self.directory(parent)?.names.get(name).copied()
    }

    /// Follows a path of directories and symbolic links. Names that do not exist are allowed:
    /// they may be made. `..` in a link leads to the parent, at the root to the root.
    fn walk<'a>(&'a self, path: &'a [u8]) -> Result<Walk<'a>, MergeError> {
        let mut steps: Vec<Step<'a>> = Vec::new();
        let mut left_missing = false;
        let mut ahead: Vec<&'a [u8]> = path.rsplit(|&b| b == b'/').collect();
        let (mut links, mut names) = (0, 0);
        while let Some(name) = ahead.pop() {
            names += 1;
            if names > MAX_STEPS {
                return Err(MergeError::link_loop(path));
            }
            match name {
                b"" | b"." => continue,
                b".." => {
                    left_missing |= steps.pop().is_some_and(|step| step.node.is_none());
                    continue;
                }
                _ => {}
            }
            let here = steps.last().map_or(Some(NodeId::ROOT), |step| step.node);
            let node = here
                .and_then(|here| self.child(here, name))
                .map(|child| child.node);
            match node.map(|node| &self.nodes[node.at()].kind) {
                None | Some(NodeKind::Directory(_)) => steps.push(Step { name, node }),
                Some(NodeKind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(MergeError::link_loop(path));
                    }
                    if target.starts_with(b"/") {
                        steps.clear(); // nothing is left that is missing: below it is no link
                    }
                    ahead.extend(target.rsplit(|&b| b == b'/'));
                }
                Some(_) => return Err(MergeError::parent(path)),
            }
        }
        Ok(Walk {
            steps,
            left_missing,
        })
    }

    /// The directory at a path, links followed; `None` if there is none.
    pub(super) fn find_directory(&self, path: &[u8]) -> Result<Option<NodeId>, MergeError> {
        match self.walk(path) {
            Ok(Walk { steps, .. }) => Ok(steps.last().map_or(Some(NodeId::ROOT), |step| step.node)),
            Err(MergeError::ParentNotDirectory { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What a hard link at `path` means by `target`: its last name is not followed.
    pub(super) fn find_link_target(
        &self,
        path: &[u8],
        target: &[u8],
    ) -> Result<NodeId, MergeError> {
        let (parent, name) = split(target);
        let texts = || (sanitize::bytes(path), sanitize::bytes(target));
        let parent = self.find_directory(parent)?;
        match parent.and_then(|parent| self.child(parent, name)) {
            None => {
                let (path, target) = texts();
                Err(MergeError::LinkTargetMissing { path, target })
            }
            Some(child) if self.directory(child.node).is_some() => {
                let (path, target) = texts();
                Err(MergeError::LinkTargetDirectory { path, target })
            }
            Some(child) => Ok(child.node),
        }
    }

    /// The directory at a path, links followed, made where it is missing; all of it counts as
    /// touched by the current layer.
    pub(super) fn make_directory(
        &mut self,
        path: &[u8],
        path_bytes: usize,
    ) -> Result<NodeId, MergeError> {
        if let Some((last, node)) = &self.last_made
            && last == path
        {
            return Ok(*node);
        }
        let Walk {
            steps,
            left_missing,
        } = self.walk(path)?;
        let length: usize = steps.iter().map(|step| step.name.len() + 1).sum();
        if length > path_bytes || steps.iter().any(|step| step.name.len() > MAX_NAME) {
            return Err(MergeError::long(path));
        }
        let steps: Vec<_> = steps
            .iter()
            .map(|step| (step.name.to_vec(), step.node))
            .collect();
        let mut here = NodeId::ROOT;
        for (name, node) in steps {
            let node = match node {
                Some(node) => node,
                None => self.add(NodeKind::Directory(Box::default()), implied())?,
            };
            self.put(here, &name, node);
            here = node;
        }
        self.last_made = (!left_missing).then(|| (path.to_vec(), here));
        Ok(here)
    }

    /// Puts a directory at a name: one that is there keeps its contents.
    pub(super) fn put_directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        metadata: Metadata,
    ) -> Result<(), MergeError> {
        let existing = self.child(parent, name).map(|child| child.node);
        let node = match existing.filter(|&node| self.directory(node).is_some()) {
            Some(node) => {
                self.set_metadata(node, metadata);
                node
            }
            None => self.add(NodeKind::Directory(Box::default()), metadata)?,
        };
        self.put(parent, name, node);
        Ok(())
    }

    /// Puts a node at a name, in place of whatever was there.
    pub(super) fn put(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        let layer = self.layer;
        let Some(directory) = self.directory_mut(parent) else {
            return;
        };
        let child = Child { node, layer };
        if let Some(known) = directory.names.get_mut(name) {
            let old = std::mem::replace(known, child);
            if old.node != node {
                self.last_made = None;
            }
        } else {
            directory.names.insert(Label::new(name), child);
        }
    }

    /// Hides what lower layers have at a name. What the current layer has there stays.
    pub(super) fn hide(&mut self, parent: NodeId, name: &[u8]) {
        let Some(child) = self.child(parent, name) else {
            return;
        };
        self.last_made = None;
        if child.layer == self.layer {
            self.hide_contents(child.node);
        } else if let Some(directory) = self.directory_mut(parent) {
            directory.names.remove(name);
        }
    }

    /// Hides what lower layers have in a directory and everything below it.
    pub(super) fn hide_contents(&mut self, node: NodeId) {
        let layer = self.layer;
        self.last_made = None;
        let mut waiting = vec![node];
        while let Some(node) = waiting.pop() {
            let Some(directory) = self.directory_mut(node) else {
                continue;
            };
            if directory.hidden_in != layer {
                directory.hidden_in = layer;
                directory.names.retain(|_, child| child.layer == layer);
                waiting.extend(directory.names.values().map(|child| child.node));
            }
        }
    }
}

/// A directory that no layer describes.
fn implied() -> Metadata {
    Metadata {
        mode: 0o755,
        ..Metadata::default()
    }
}

/// The merged tree of an image.
pub struct Merged {
    nodes: Nodes,
}

impl Merged {
    pub(super) fn new(nodes: Nodes) -> Self {
        Self { nodes }
    }

    /// The files whose bytes are needed and their sizes, in the order of layers and archives.
    pub fn sources(&self) -> Vec<(Source, u64)> {
        let mut sources = Vec::new();
        let mut waiting = vec![NodeId::ROOT];
        while let Some(node) = waiting.pop() {
            match &self.nodes.nodes[node.at()].kind {
                NodeKind::Directory(directory) => {
                    waiting.extend(directory.names.values().map(|child| child.node));
                }
                NodeKind::File { source, size } => sources.push((*source, *size)),
                _ => {}
            }
        }
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    /// One line for each path: kind, source or target, attributes, and the first path of the
    /// same inode.
    #[cfg(any(test, fuzzing))]
    pub fn listing(&self) -> BTreeMap<String, String> {
        let mut lines = BTreeMap::new();
        let mut first = BTreeMap::new();
        self.list(NodeId::ROOT, "", &mut lines);
        for (path, (node, _)) in &lines {
            first.entry(*node).or_insert_with(|| path.clone());
        }
        lines
            .into_iter()
            .map(|(path, (node, line))| (path, format!("{line} ={}", first[&node])))
            .collect()
    }

    #[cfg(test)]
    pub(super) fn into_nodes(self) -> impl Iterator<Item = Metadata> {
        let Nodes {
            nodes, metadata, ..
        } = self.nodes;
        nodes
            .into_iter()
            .map(move |node| metadata.get(node.metadata))
    }

    #[cfg(any(test, fuzzing))]
    fn list(&self, node: NodeId, path: &str, lines: &mut BTreeMap<String, (NodeId, String)>) {
        let Node { kind, metadata } = &self.nodes.nodes[node.at()];
        let metadata = self.nodes.metadata.get(*metadata);
        let what = match kind {
            NodeKind::Directory(directory) => {
                for (name, child) in &directory.names {
                    let path = format!("{path}/{}", String::from_utf8_lossy(name.bytes()));
                    self.list(child.node, &path, lines);
                }
                "dir".to_owned()
            }
            NodeKind::File { source, .. } => format!("file {}:{}", source.layer, source.entry),
            NodeKind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            NodeKind::CharDevice { major, minor } => format!("char {major}:{minor}"),
            NodeKind::BlockDevice { major, minor } => format!("block {major}:{minor}"),
            NodeKind::Fifo => "fifo".to_owned(),
            NodeKind::Written(_) => "written".to_owned(),
        };
        let line = format!("{what} {:o} {}", metadata.mode, metadata.uid);
        lines.insert(path.to_owned(), (node, line));
    }

    /// The tree for the writer and the number of its names; `data` gives what was written for a
    /// source and its size.
    pub fn into_tree<E: From<squashfs::Error>>(
        self,
        mut data: impl FnMut(Source, u64) -> Result<DataId, E>,
    ) -> Result<(Tree, u64), E> {
        let Nodes {
            mut nodes,
            metadata: table,
            ..
        } = self.nodes;
        let root = &mut nodes[NodeId::ROOT.at()];
        let mut tree = Tree::new(table.get(root.metadata))?;
        let mut waiting = vec![(
            Tree::ROOT,
            std::mem::replace(&mut root.kind, NodeKind::Fifo),
        )];
        let mut count = 0;
        while let Some((parent, kind)) = waiting.pop() {
            let NodeKind::Directory(directory) = kind else {
                continue;
            };
            for (name, child) in directory.names {
                count += 1;
                let name = name.bytes();
                let node = &mut nodes[child.node.at()];
                let attributes = table.get(node.metadata);
                let kind = match std::mem::replace(&mut node.kind, NodeKind::Fifo) {
                    NodeKind::Written(inode) => {
                        node.kind = NodeKind::Written(inode);
                        tree.link(parent, name, inode)?;
                        continue;
                    }
                    kind @ NodeKind::Directory(_) => {
                        let inode = tree.add_directory(parent, name, attributes)?;
                        waiting.push((inode, kind));
                        continue;
                    }
                    NodeKind::File { source, size } => Kind::File(data(source, size)?),
                    NodeKind::Symlink(target) => Kind::Symlink(target.into()),
                    NodeKind::CharDevice { major, minor } => Kind::CharDevice { major, minor },
                    NodeKind::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
                    NodeKind::Fifo => Kind::Fifo,
                };
                let inode = tree.add_inode(kind, attributes)?;
                node.kind = NodeKind::Written(inode);
                tree.link(parent, name, inode)?;
            }
        }
        Ok((tree, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_small() {
        assert_eq!(size_of::<Node>(), 32);
        assert_eq!(size_of::<(Label, Child)>(), 32);
    }
}

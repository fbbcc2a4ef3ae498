//! Layers on top of each other as no person writes them: random, but the same for one seed.
//!
//! A few names in a few directories, so that nearly everything meets something: files over
//! directories and the reverse, links over both, whiteouts of what another layer made, parents that
//! are links or that nobody lists. What would be an error (a hard link to nothing) is left out;
//! for that a rough picture of the merged tree is kept.

use super::tar::Sample;
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq)]
enum Node {
    Dir,
    File,
    Other,
}

/// Layers in the making.
pub struct Stack {
    state: u64,
    /// Real paths, and the number of the layer that wrote each last.
    nodes: BTreeMap<String, (Node, usize)>,
    /// Links to directories: path and real path of the target.
    links: BTreeMap<String, String>,
    layer: usize,
    serial: u64,
}

/// Returns the layers of a seed, bottom first.
pub fn layers(seed: u64, count: usize) -> Vec<Vec<Sample>> {
    let mut stack = Stack {
        state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        nodes: BTreeMap::from([(String::new(), (Node::Dir, 0))]),
        links: BTreeMap::new(),
        layer: 0,
        serial: 0,
    };
    let mut layers = Vec::new();
    for number in 0..count {
        stack.layer = number;
        let steps = if number == 0 {
            30
        } else {
            10 + stack.below(10)
        };
        let mut samples = Vec::new();
        for _ in 0..steps {
            stack.step(&mut samples);
        }
        layers.push(samples);
    }
    layers
}

const NAMES: [&str; 9] = ["a", "b", "c", "foo", "foobar", "lib", "x.", "y y", "\u{fc}"];

impl Stack {
    fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as usize % limit
    }

    fn step(&mut self, samples: &mut Vec<Sample>) {
        match self.below(20) {
            0..=1 => self.white_out(samples),
            2 if self.below(2) == 0 => self.make_opaque(samples),
            3..=4 => self.repeat_directory(samples),
            5..=7 => self.hard_link(samples),
            _ => self.put(samples),
        }
    }

    /// A parent as an entry spells it, perhaps through a link, and as it is.
    fn parent(&mut self) -> (String, String) {
        let links = self.links.clone();
        if !links.is_empty() && self.below(4) == 0 {
            let at = self.below(links.len());
            if let Some((link, target)) = links.into_iter().nth(at) {
                return (link, target);
            }
        }
        let dirs = self.nodes.iter();
        let dirs = dirs.filter(|(path, (node, _))| *node == Node::Dir && path.len() < 40);
        let dirs: Vec<String> = dirs.map(|(path, _)| path.clone()).collect();
        let dir = dirs[self.below(dirs.len())].clone();
        (dir.clone(), dir)
    }

    /// A path as it is spelled and as it is.
    fn place(&mut self) -> (String, String) {
        let (spelled, real) = self.parent();
        let mut name = NAMES[self.below(NAMES.len())].to_owned();
        if self.below(12) == 0 {
            // Parents that no layer lists.
            let more = NAMES[self.below(NAMES.len())];
            if !self.nodes.contains_key(&join(&real, more)) {
                self.write(join(&real, more), Node::Dir);
                name = format!("{more}/{name}");
            }
        }
        (join(&spelled, &name), join(&real, &name))
    }

    fn sample(&mut self, sample: Sample) -> Sample {
        self.serial += 1;
        let mode = [0o644, 0o755, 0o600, 0o4755, 0o2770, 0o1777, 0o400][self.below(7)];
        // A directory that nobody lists has the group of one like that if umoci makes it, by the
        // kernel's habit.
        let mode = mode & if sample.kind == b'5' { !0o2000 } else { !0 };
        let mut sample = Sample {
            mtime: 1_000_000_000 + self.serial,
            mode: if sample.kind == b'2' { 0o777 } else { mode },
            uid: [0, 0, 7, 70_000, 3_000_000][self.below(5)],
            gid: [0, 0, 8, 80_000][self.below(4)],
            ..sample
        };
        let takes_attributes = sample.kind == b'0' || sample.kind == b'5';
        if takes_attributes && self.below(5) == 0 {
            let value = format!("value {}", self.serial);
            sample = sample.xattr("user.note", value.as_bytes());
        }
        sample
    }

    fn put(&mut self, samples: &mut Vec<Sample>) {
        let (spelled, real) = self.place();
        if self.children(&real).len() > 1 && self.below(3) > 0 {
            return; // or nothing would ever grow
        }
        let text = format!("{real} {}", self.serial);
        let body = text.repeat([0, 1, 1, 50, 20_000][self.below(5)]);
        let (sample, node) = match self.below(12) {
            0..=3 => (Sample::file(&spelled, body), Node::File),
            4..=6 => (Sample::dir(&spelled), Node::Dir),
            7..=9 => return self.put_link(&spelled, real, samples),
            10 => (Sample::new(b'6', &spelled), Node::Other),
            _ => {
                let device = (1 + self.below(200) as u64, self.below(300) as u64);
                let kind = [b'3', b'4'][self.below(2)];
                let sample = Sample {
                    device,
                    ..Sample::new(kind, &spelled)
                };
                (sample, Node::Other)
            }
        };
        let sample = self.sample(sample);
        samples.push(sample);
        let stays = node == Node::Dir && self.is_dir(&real);
        if !stays {
            self.remove(&real, |_| true);
        }
        self.write(real, node);
    }

    fn put_link(&mut self, spelled: &str, real: String, samples: &mut Vec<Sample>) {
        let (_, target) = self.parent();
        let inside = target == real || target.starts_with(&format!("{real}/"));
        if inside {
            return;
        }
        let text = match self.below(5) {
            0 => "/nowhere/at/all".to_owned(),
            1 => "t".repeat(101 + self.below(200)),
            _ => format!("/{target}"),
        };
        let sample = self.sample(Sample::symlink(spelled, &text));
        samples.push(sample);
        self.remove(&real, |_| true);
        self.write(real.clone(), Node::Other);
        if text == format!("/{target}") && self.is_dir(&target) {
            self.links.insert(real, target);
        }
    }

    fn hard_link(&mut self, samples: &mut Vec<Sample>) {
        let files = self.nodes.iter();
        let files = files.filter(|(_, (node, _))| *node == Node::File);
        let files: Vec<String> = files.map(|(path, _)| path.clone()).collect();
        if files.is_empty() {
            return;
        }
        let target = files[self.below(files.len())].clone();
        let (spelled, real) = self.place();
        if target == real || target.starts_with(&format!("{real}/")) {
            return;
        }
        samples.push(Sample::hard_link(spelled, &target));
        self.remove(&real, |_| true);
        self.write(real, Node::File);
    }

    fn white_out(&mut self, samples: &mut Vec<Sample>) {
        let layer = self.layer;
        let below = self.nodes.iter();
        let below = below.filter(|(path, (_, by))| *by < layer && !path.is_empty());
        let below: Vec<String> = below.map(|(path, _)| path.clone()).collect();
        if below.is_empty() {
            return;
        }
        let path = below[self.below(below.len())].clone();
        if self.children(&path).len() > 1 && self.below(3) > 0 {
            return;
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        samples.push(Sample::file(join(parent, &format!(".wh.{name}")), ""));
        self.remove(&path, |by| by < layer);
        // Sometimes something comes again in the same layer.
        if self.below(4) == 0 {
            let sample = self.sample(Sample::dir(&path));
            samples.push(sample);
            self.remove(&path, |by| by < layer);
            self.write(path, Node::Dir);
        }
    }

    fn make_opaque(&mut self, samples: &mut Vec<Sample>) {
        let (_, real) = self.parent();
        if real.is_empty() || self.layer == 0 {
            return;
        }
        let layer = self.layer;
        samples.push(Sample::file(join(&real, ".wh..wh..opq"), ""));
        for path in self.children(&real) {
            self.remove(&path, |by| by < layer);
        }
        self.write(real, Node::Dir);
    }

    fn repeat_directory(&mut self, samples: &mut Vec<Sample>) {
        let (_, real) = self.parent();
        if !real.is_empty() {
            let sample = self.sample(Sample::dir(&real));
            samples.push(sample);
            self.write(real, Node::Dir);
        }
    }

    fn is_dir(&self, real: &str) -> bool {
        matches!(self.nodes.get(real), Some((Node::Dir, _)))
    }

    fn children(&self, real: &str) -> Vec<String> {
        let prefix = format!("{real}/");
        let paths = self.nodes.keys().filter(|path| path.starts_with(&prefix));
        let direct = paths.filter(|path| !path[prefix.len()..].contains('/'));
        direct.cloned().collect()
    }

    /// Removes a path and what is below it if a layer wrote it of which `is_hit` says so.
    fn remove(&mut self, real: &str, is_hit: impl Fn(usize) -> bool) {
        let prefix = format!("{real}/");
        self.nodes.retain(|path, (_, by)| {
            let is_inside = path == real || path.starts_with(&prefix);
            !(is_inside && is_hit(*by))
        });
        let nodes = &self.nodes;
        let is_dir = |path: &String| matches!(nodes.get(path), Some((Node::Dir, _)));
        self.links
            .retain(|link, target| nodes.contains_key(link) && is_dir(target));
    }

    /// Remembers a path, and that its parents are needed.
    fn write(&mut self, real: String, node: Node) {
        let mut at = real.as_str();
        while let Some((parent, _)) = at.rsplit_once('/') {
            self.nodes
                .insert(parent.to_owned(), (Node::Dir, self.layer));
            self.links.remove(parent);
            at = parent;
        }
        self.links.remove(&real);
        self.nodes.insert(real, (node, self.layer));
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}/{name}")
    }
}

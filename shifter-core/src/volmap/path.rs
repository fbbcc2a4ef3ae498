//! Absolute paths as text: normalised and compared by component, never by string prefix.

use super::PathFault;

/// Bytes that a path may have, the kernel's PATH_MAX.
pub(crate) const PATH_LIMIT: usize = 4096;

/// Bytes that one name in a path may have, the kernel's NAME_MAX.
const NAME_LIMIT: usize = 255;

/// Normalises an absolute path: no `//`, no `/./`, no trailing `/`. `..` is refused, because
/// what it means depends on symbolic links.
pub(crate) fn clean(path: &str, forbidden: &[char]) -> Result<String, PathFault> {
    if path.is_empty() {
        return Err(PathFault::Empty);
    }
    if path.len() > PATH_LIMIT {
        return Err(PathFault::TooLong { limit: PATH_LIMIT });
    }
    let bad = |c: char| c.is_control() || forbidden.contains(&c);
    if let Some((at, found)) = path.chars().enumerate().find(|(_, c)| bad(*c)) {
        return Err(PathFault::Character {
            found,
            position: at + 1,
        });
    }
    if !path.starts_with('/') {
        return Err(PathFault::Relative);
    }
    let mut clean = String::with_capacity(path.len());
    for component in components(path) {
        if component == ".." {
            return Err(PathFault::Parent);
        }
        if component.len() > NAME_LIMIT {
            return Err(PathFault::LongName { limit: NAME_LIMIT });
        }
        clean.push('/');
        clean.push_str(component);
    }
    if clean.is_empty() {
        clean.push('/');
    }
    Ok(clean)
}

/// True if `path` is `ancestor` or lies below it: `/scratch` contains `/scratch/x`, but not
/// `/scratch2`. False if either is relative or has `..` in it.
pub fn contains(ancestor: &str, path: &str) -> bool {
    let judged = [ancestor, path];
    if judged
        .iter()
        .any(|p| !p.starts_with('/') || components(p).any(|c| c == ".."))
    {
        return false;
    }
    let mut below = components(path);
    components(ancestor).all(|component| below.next() == Some(component))
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter(|component| !matches!(*component, "" | "."))
}

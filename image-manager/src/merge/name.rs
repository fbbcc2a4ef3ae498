//! What the names of entries and attributes mean: whiteouts, marker files, attributes to drop.

use super::MergeError;

const WHITEOUT: &[u8] = b".wh.";
/// Names of the old aufs driver's own files; only one of them says something about the image.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry's path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// The root directory itself.
    Root,
    /// Nothing.
    Ignored,
    /// Lower layers' contents of a directory are hidden.
    Opaque { directory: &'a [u8] },
    /// A lower layer's name is hidden.
    Whiteout { parent: &'a [u8], name: &'a [u8] },
    /// An ordinary name.
    Name { parent: &'a [u8], name: &'a [u8] },
}

pub(crate) fn meaning(path: &[u8]) -> Result<Meaning<'_>, MergeError> {
    if path.is_empty() {
        return Ok(Meaning::Root);
    }
    let (parent, name) = split(path);
    let mut above = parent.split(|&b| b == b'/');
    if above.clone().any(|name| name.starts_with(AUFS)) {
        return Ok(Meaning::Ignored);
    }
    if above.any(|name| name.starts_with(WHITEOUT)) {
        return Err(MergeError::whiteout(path));
    }
    if name == OPAQUE {
        return Ok(Meaning::Opaque { directory: parent });
    }
    if name.starts_with(AUFS) {
        return Ok(Meaning::Ignored);
    }
    match name.strip_prefix(WHITEOUT) {
        Some(b"" | b"." | b"..") => Err(MergeError::whiteout(path)),
        Some(name) => Ok(Meaning::Whiteout { parent, name }),
        None => Ok(Meaning::Name { parent, name }),
    }
}

/// The directory and the last name of a path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Whether an extended attribute goes into the image. Squashfs has no room for other name spaces
/// (POSIX ACLs are in `system.`).
pub(super) fn is_xattr_allowed(name: &[u8], keep_capabilities: bool) -> bool {
    let starts = |prefix: &[u8]| name.starts_with(prefix);
    match name {
        b"security.capability" => keep_capabilities,
        // Labels belong to the policy of the machine that made the image.
        b"security.selinux" => false,
        _ if starts(b"trusted.overlay.") || starts(b"user.overlay.") => false,
        _ => starts(b"user.") || starts(b"trusted.") || starts(b"security."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_the_image_specification_says() {
        for (path, want) in [
            ("", Some(Meaning::Root)),
            (
                "a",
                Some(Meaning::Name {
                    parent: b"",
                    name: b"a",
                }),
            ),
            (
                "a/b/c",
                Some(Meaning::Name {
                    parent: b"a/b",
                    name: b"c",
                }),
            ),
            (
                "a/.wh.b",
                Some(Meaning::Whiteout {
                    parent: b"a",
                    name: b"b",
                }),
            ),
            (
                ".wh.b",
                Some(Meaning::Whiteout {
                    parent: b"",
                    name: b"b",
                }),
            ),
            (
                ".wh..hidden",
                Some(Meaning::Whiteout {
                    parent: b"",
                    name: b".hidden",
                }),
            ),
            (
                ".wh....",
                Some(Meaning::Whiteout {
                    parent: b"",
                    name: b"...",
                }),
            ),
            ("a/.wh..wh..opq", Some(Meaning::Opaque { directory: b"a" })),
            (".wh..wh..opq", Some(Meaning::Opaque { directory: b"" })),
            (".wh..wh.aufs", Some(Meaning::Ignored)),
            (".wh..wh.plnk", Some(Meaning::Ignored)),
            (".wh..wh.plnk/1.2", Some(Meaning::Ignored)),
            (".wh..wh.orph/.wh..wh..opq", Some(Meaning::Ignored)),
            (
                ".wha/b",
                Some(Meaning::Name {
                    parent: b".wha",
                    name: b"b",
                }),
            ),
            (".wh.", None),
            ("a/.wh..", None),
            ("a/.wh...", None),
            (".wh.a/b", None),
            (".wh.a/.wh.b", None),
        ] {
            assert_eq!(meaning(path.as_bytes()).ok(), want, "{path}");
        }
    }

    #[test]
    fn attributes_that_steer_the_kernel_are_dropped() {
        for (name, default, with_capabilities) in [
            ("user.comment", true, true),
            ("trusted.md5", true, true),
            ("security.ima", true, true),
            ("security.capability", false, true),
            ("security.selinux", false, false),
            ("trusted.overlay.opaque", false, false),
            ("trusted.overlay.overlay.opaque", false, false),
            ("user.overlay.redirect", false, false),
            ("user.overlays", true, true),
            ("system.posix_acl_access", false, false),
            ("", false, false),
        ] {
            assert_eq!(is_xattr_allowed(name.as_bytes(), false), default, "{name}");
            assert_eq!(
                is_xattr_allowed(name.as_bytes(), true),
                with_capabilities,
                "{name}"
            );
        }
    }
}

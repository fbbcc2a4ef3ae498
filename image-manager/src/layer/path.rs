//! Names from archives as paths inside an image.

/// Longest name in a directory.
const MAX_NAME: usize = 255;

/// Why a name cannot be a path inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// `..` climbs above the root.
    Escapes,
    /// A component has more than 255 bytes.
    LongName,
    /// The whole path is longer than allowed.
    LongPath,
    /// A NUL byte.
    Nul,
}

impl PathError {
    /// The rule that the path of an entry breaks.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Escapes => "its path leads out of the image",
            Self::LongName => "a name in its path is longer than 255 bytes",
            Self::LongPath => "its path is too long",
            Self::Nul => "its path contains a NUL",
        }
    }

    /// The rule that the target of a hard link breaks.
    pub(super) fn link_reason(self) -> &'static str {
        match self {
            Self::Escapes => "its link target leads out of the image",
            Self::LongName => "a name in its link target is longer than 255 bytes",
            Self::LongPath => "its link target is too long",
            Self::Nul => "its link target contains a NUL",
        }
    }
}

/// Makes a path relative to the root of the image: no leading or trailing `/`, no empty, `.` or
/// `..` component. The root itself is the empty path. `..` is resolved by name, as container
/// engines do; one that would leave the image is an error.
pub fn normalise(raw: &[u8], max_bytes: usize) -> Result<Vec<u8>, PathError> {
    if raw.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut path = Vec::with_capacity(raw.len());
    for name in raw.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                if path.is_empty() {
                    return Err(PathError::Escapes);
                }
                let parent = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                path.truncate(parent);
            }
            _ if name.len() > MAX_NAME => return Err(PathError::LongName),
            _ => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
            }
        }
    }
    if path.len() > max_bytes {
        return Err(PathError::LongPath);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_relative_and_confined() {
        let long = "x".repeat(256);
        for (raw, want) in [
            ("a/b", Ok("a/b")),
            ("./a//b/", Ok("a/b")),
            ("/a", Ok("a")),
            ("", Ok("")),
            (".", Ok("")),
            ("./", Ok("")),
            ("/", Ok("")),
            ("a/..", Ok("")),
            ("a/../b", Ok("b")),
            ("a/b/../../c", Ok("c")),
            ("..a/...", Ok("..a/...")),
            ("..", Err(PathError::Escapes)),
            ("/../etc", Err(PathError::Escapes)),
            ("a/../../etc/passwd", Err(PathError::Escapes)),
            ("a\0b", Err(PathError::Nul)),
            (&long, Err(PathError::LongName)),
        ] {
            let got = normalise(raw.as_bytes(), 4095);
            assert_eq!(got, want.map(|s| s.as_bytes().to_vec()), "{raw:?}");
        }
        assert_eq!(normalise(b"a/b/c", 4), Err(PathError::LongPath));
        assert_eq!(normalise(b"\xff\xfe", 4).unwrap(), b"\xff\xfe");
    }

    proptest! {
        #[test]
        fn no_path_escapes(raw in "[./ab\u{0}]{0,20}") {
            if let Ok(path) = normalise(raw.as_bytes(), 4095) {
                let names: Vec<_> = path.split(|&b| b == b'/').collect();
                prop_assert!(path.is_empty() || names.iter().all(|n| !matches!(*n, b"" | b"." | b"..")));
                prop_assert_eq!(normalise(&path, 4095).unwrap(), path);
            }
        }
    }
}

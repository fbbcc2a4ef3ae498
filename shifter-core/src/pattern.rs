//! Names that a pattern means, as a shell's patterns without brackets do.

/// True if `name` is what `pattern` means, in which `*` is any text and `?` any one byte.
pub fn fits(pattern: &[u8], name: &[u8]) -> bool {
    // Where the last star was, and up to where it has eaten: enough to go back to.
    let (mut at, mut seen, mut star) = (0, 0, None);
    while let Some(byte) = name.get(seen) {
        match (pattern.get(at), star) {
            (Some(b'*'), _) => {
                star = Some((at, seen));
                at += 1;
            }
            (Some(wanted), _) if *wanted == b'?' || wanted == byte => {
                at += 1;
                seen += 1;
            }
            (_, Some((place, eaten))) => {
                star = Some((place, eaten + 1));
                (at, seen) = (place + 1, eaten + 1);
            }
            (_, None) => return false,
        }
    }
    pattern.iter().skip(at).all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let table = [
            ("plain", "plain", true),
            ("plain", "plainer", false),
            ("pla", "plain", false),
            ("lib*.so", "lib.so", true),
            ("lib*.so", "libx.so.1", false),
            ("libmpi.so.*", "libmpi.so.12", true),
            ("libmpi.so.*", "libmpi.so", false),
            ("lib*.so*", "libmpi.so.12", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "abcb", false),
            ("ab*ba", "aba", false),
            ("**a*", "bab", true),
            ("*", "", true),
            ("?", "", false),
            ("", "", true),
            ("", "a", false),
            ("*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ];
        for (pattern, name, expected) in table {
            let found = fits(pattern.as_bytes(), name.as_bytes());
            assert_eq!(found, expected, "{pattern} {name}");
        }
    }
}

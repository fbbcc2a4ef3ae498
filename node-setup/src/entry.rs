//! Tasks of a batch system that the image's entry point starts.
//!
//! A batch system's process may change the first word of what it executes and no more. So that word
//! becomes [`STARTER`], which is told by one variable what to put before the other words, and takes
//! that variable away again.

use shifter_core::env::Pair;

/// What is executed in the place of a command: `shifter` as it is inside.
pub const STARTER: &str = "/opt/udiImage/bin/shifter";

/// What the variable is called. It has the entry point's words and the command's first one as JSON:
/// an array of arrays of bytes, for words need not be text.
const VARIABLE: &str = "SHIFTER_TASK";

/// Returns the variable for a task with this entry point that was to execute `program`.
pub fn tell(entry: &[Vec<u8>], program: &[u8]) -> Pair {
    let words: Vec<&[u8]> = entry.iter().map(Vec::as_slice).chain([program]).collect();
    let value = serde_json::to_vec(&words).unwrap_or_default();
    (VARIABLE.into(), value)
}

/// Takes the variable away and returns the words that come before the arguments; nothing where there
/// is none. What is no list of words is one of none.
pub fn told(environment: &mut Vec<Pair>) -> Option<Vec<Vec<u8>>> {
    let at = environment
        .iter()
        .position(|(name, _)| name == VARIABLE.as_bytes())?;
    let (_, value) = environment.remove(at);
    Some(serde_json::from_slice(&value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&[u8]]) -> Vec<Vec<u8>> {
        words.iter().map(|word| word.to_vec()).collect()
    }

    #[test]
    fn what_is_told_is_what_is_heard() {
        let entry = words(&[b"/entry", b"-c", b"a b\n\xff"]);
        let other = (b"A".to_vec(), b"b".to_vec());
        let mut environment = vec![tell(&entry, b"./x\xfe"), other.clone()];
        let expected = words(&[b"/entry", b"-c", b"a b\n\xff", b"./x\xfe"]);
        assert_eq!(told(&mut environment), Some(expected));
        assert_eq!(environment, [other]);
        assert_eq!(told(&mut environment), None);
    }

    #[test]
    fn what_others_write_is_no_command() {
        for value in [&b""[..], b"1", b"[\"a\"]", b"[[256]]"] {
            let mut environment = vec![(VARIABLE.into(), value.to_vec())];
            assert_eq!(told(&mut environment), Some(Vec::new()));
            assert!(environment.is_empty());
        }
    }
}

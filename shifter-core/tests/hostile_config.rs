//! S18: whatever stands in the configuration file, the answer is a message with a line number.

use std::path::Path;

use shifter_core::config::{Config, ConfigError};

const SAMPLE: &str = include_str!("../../conf/shifter.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/shifter/shifter.toml"))
}

/// Fails unless the error is one line of printable text that names a line of the file.
fn judge(error: &ConfigError, text: &str) -> usize {
    let ConfigError::Invalid { line, .. } = error else {
        panic!("{error}");
    };
    let said = format!("{error}{}", error.hint().unwrap_or_default());
    assert!(!said.chars().any(char::is_control), "{said:?}");
    assert!(
        said.starts_with(&format!("/etc/shifter/shifter.toml:{line}: ")),
        "{said}"
    );
    assert!(
        (1..=text.matches('\n').count() + 1).contains(line),
        "{line}: {said}"
    );
    *line
}

#[test]
fn s18_every_mistake_is_named_with_its_line() {
    let long = format!("system = 'x'\n# {}\nsystem = 'y'\n", "x".repeat(1 << 20));
    let one_line = "a".repeat(1 << 20);
    for (text, line) in [
        ("system = 'x'\nunknown = 1\n", 2),
        ("[store]\nunknown = 1", 2),
        ("[unknown]\n", 1),
        ("system = 'x'\nsystem = 'y'\n", 2),
        ("[store]\n[root]\n[store]\n", 3),
        ("system\n", 1),
        ("system =\n", 1),
        ("= 'x'\n", 1),
        ("\n\nsystem = 1\n", 3),
        ("system = 'x\n", 1),
        ("system = 'a\0b'\n", 1),
        ("\0", 1),
        ("system = 'x'\r\nunknown = 1\r\n", 2),
        ("[root]\ntmpfs_size_mib = 1e30\n", 2),
        ("[root]\ntmpfs_size_mib = -1\n", 2),
        ("[root]\ntmpfs_size_mib = 99999999999999999999\n", 2),
        ("[root]\ntmpfs_size_mib = 0x7fffffff\n", 2),
        (
            "[per_node_cache.'/s']\ndir = '/c'\nsize_limit = '1e30'\n",
            3,
        ),
        ("[store]\nimage_owner = 4294967296\n", 2),
        (&long, 3),
        (&one_line, 1),
    ] {
        let error = parse(text).expect_err(&text[..text.len().min(60)]);
        assert_eq!(judge(&error, text), line, "{error}");
    }
    // The ends of lines are nobody's mistake.
    for text in [
        "system = 'x'",
        "system = 'x'\r\n",
        "\u{feff}system = 'x'\n",
        "",
        "\n\n",
        "# x",
    ] {
        parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    }
    let file = std::env::temp_dir().join(format!("shifter-not-text-{}", std::process::id()));
    std::fs::write(&file, b"\xff\xfe").unwrap();
    let error = Config::open_trusted(&file).unwrap_err();
    std::fs::remove_file(&file).unwrap();
    assert!(!error.to_string().is_empty());
}

#[test]
fn s18_mutated_files_are_refused_with_a_line_or_understood() {
    let rounds = if std::env::var_os("SHIFTER_LONG_TESTS").is_some() {
        10_000
    } else {
        1_500
    };
    // Comments stripped, so that what is mutated counts.
    let sample: Vec<u8> = SAMPLE
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap_or(line))
        .filter(|line| line.contains('=') || line.starts_with('['))
        .flat_map(|line| [line.as_bytes(), b"\n"].concat())
        .collect();
    let mut state = 18_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let mut refused = 0;
    for _ in 0..rounds {
        let mut bytes = sample.clone();
        for _ in 0..=random(4) {
            if bytes.is_empty() {
                break;
            }
            let at = random(bytes.len());
            match random(5) {
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.drain(at..(at + random(40)).min(bytes.len()))),
                2 => bytes.truncate(at.max(1)),
                3 => bytes.insert(at, b"\n\r\0=[]'\"#{}\\9"[random(13)]),
                _ => {
                    let end = (at + random(60)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    let to = random(bytes.len());
                    bytes.splice(to..to, copy);
                }
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Err(error) = parse(&text) {
            judge(&error, &text);
            refused += 1;
        }
    }
    assert!(
        refused > rounds / 2,
        "only {refused} of {rounds} were mistakes"
    );
}

//! Values as the C Shifter reads them, and as this one writes them.

use shifter_core::volmap;

/// Splits a list of the C Shifter's.
pub(super) fn words(value: &str) -> Vec<String> {
    value.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Makes one value of those that a variable is given one after the other: each goes to the outside
/// of those before it, or takes their place.
pub(super) fn join(key: &str, mut values: Vec<String>) -> String {
    match key {
        "append" => values.join(":"),
        "prepend" => {
            values.reverse();
            values.join(":")
        }
        _ => values.pop().unwrap_or_default(),
    }
}

/// A number as strtol(3) reads it, other than 0.
pub(super) fn is_set(value: &str) -> bool {
    let digits = value.trim_start_matches(['+', '-']);
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].contains(|c| c != '0')
}

/// Gives an entry without a word on propagation the site's style.
pub(super) fn propagate(entry: &str, is_slave: bool) -> String {
    let mut fields = entry.split(':');
    let (from, to) = (fields.next().unwrap_or_default(), fields.next());
    let has_own = fields
        .any(|flag| flag.eq_ignore_ascii_case("slave") || flag.eq_ignore_ascii_case("private"));
    match (is_slave && !has_own, to) {
        (false, _) => entry.to_owned(),
        (true, Some(_)) => format!("{entry}:slave"),
        (true, None) => format!("{from}:{from}:slave"),
    }
}

/// Returns what the C Shifter makes of a volume, if that is something else: it removes all but these
/// characters.
pub(super) fn without_what_c_drops(entry: &str) -> Option<String> {
    let stays = |c: &char| c.is_ascii_alphanumeric() || "_:.+-/".contains(*c);
    let rest: String = entry.chars().filter(stays).collect();
    (rest != entry).then_some(rest)
}

/// Writes a size, which the C Shifter reads as a fraction with a unit, as a whole number with one.
pub(super) fn size(value: &str) -> Option<String> {
    let value = value.trim();
    if volmap::parse_size(value).is_ok() {
        return Some(value.to_owned());
    }
    let end = value
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(value.len());
    let number: f64 = value[..end].parse().ok()?;
    let unit = value[end..].chars().next().unwrap_or('b');
    let power = "bkmgtpe".find(unit.to_ascii_lowercase())?;
    let bytes = number * 1024f64.powi(i32::try_from(power).ok()?);
    let text = format!("{bytes:.0}");
    volmap::parse_size(&text).is_ok().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes() {
        for (text, expect) in [
            ("1", true),
            ("0", false),
            ("-1x", true),
            ("yes", false),
            ("00", false),
            ("", false),
        ] {
            assert_eq!(is_set(text), expect, "{text}");
        }
        let table = [
            ("500G", Some("500G")),
            ("1.5k", Some("1536")),
            ("10 g", None),
            ("0", None),
            ("", None),
            ("1.2.3", None),
            ("9999999999999999999999", None),
            ("5 bytes", None),
            ("5mbit", Some("5242880")),
        ];
        for (text, expect) in table {
            assert_eq!(size(text).as_deref(), expect, "{text}");
        }
    }

    #[test]
    fn propagation_of_the_site() {
        for (entry, expect) in [
            ("/a", "/a:/a:slave"),
            ("/a:/b", "/a:/b:slave"),
            ("/a:/b:rec", "/a:/b:rec:slave"),
            ("/a:/b:PRIVATE", "/a:/b:PRIVATE"),
        ] {
            assert_eq!(propagate(entry, true), expect);
            assert_eq!(propagate(entry, false), entry);
        }
    }
}

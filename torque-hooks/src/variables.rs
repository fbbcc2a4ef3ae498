//! Torque's list of a job's variables: `NAME=value,NAME=value`.
//!
//! In a value `\,` `\\` `\'` `\"` and a newline after a backslash stand for what follows the
//! backslash. A name may come again: the last one counts.

/// A job's variables, in the order of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// Takes the list apart. Every text is one: an element without `=` has an empty value.
    pub fn parse(list: &str) -> Self {
        let mut variables = Vec::new();
        let mut element = Element::default();
        let mut chars = list.chars();
        while let Some(c) = chars.next() {
            match c {
                // At the very end it stands for itself.
                '\\' => element.push(chars.next().unwrap_or('\\')),
                ',' => variables.push(std::mem::take(&mut element).split()),
                '=' if element.name.is_none() => {
                    element.name = Some(std::mem::take(&mut element.text));
                }
                c => element.push(c),
            }
        }
        if !list.is_empty() {
            variables.push(element.split());
        }
        Self(variables)
    }

    /// Takes pairs whose values are still written as in the list.
    pub fn of_escaped(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let unescape = |value: String| {
            let mut chars = value.chars();
            let next = || match chars.next()? {
                '\\' => Some(chars.next().unwrap_or('\\')),
                c => Some(c),
            };
            std::iter::from_fn(next).collect()
        };
        let pairs = pairs.into_iter();
        pairs.map(|(name, value)| (name, unescape(value))).collect()
    }

    /// Returns the last value of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut named = self.0.iter().rev();
        let (_, value) = named.find(|(known, _)| known == name)?;
        Some(value)
    }
}

impl FromIterator<(String, String)> for Variables {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        Self(pairs.into_iter().collect())
    }
}

#[derive(Default)]
struct Element {
    name: Option<String>,
    text: String,
}

impl Element {
    fn push(&mut self, c: char) {
        self.text.push(c);
    }

    fn split(self) -> (String, String) {
        match self.name {
            Some(name) => (name, self.text),
            None => (self.text, String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_by_themselves_have_the_same_escapes() {
        for (value, expected) in [
            ("/a:/b\\,/c:/d", "/a:/b,/c:/d"),
            ("a\\\\\\,b", "a\\,b"),
            ("a=b,c", "a=b,c"),
            ("a\\", "a\\"),
            ("", ""),
        ] {
            let variables = Variables::of_escaped([("A".into(), value.into())]);
            assert_eq!(variables.get("A"), Some(expected), "{value}");
        }
    }

    #[test]
    fn escapes_are_undone_and_the_last_one_wins() {
        let table = [
            (
                "PBS_O_QUEUE=batch,UDI=centos:latest,FOO=a,name=",
                "UDI",
                Some("centos:latest"),
            ),
            ("FOO=a,name=", "name", Some("")),
            ("UDI=a,UDI=b", "UDI", Some("b")),
            ("UDI=a\\,UDI=b", "UDI", Some("a,UDI=b")),
            ("UDI=a\\\\,UDI=b", "UDI", Some("b")),
            ("FOO=x\\\nUDI=forged", "UDI", None),
            ("FOO=x\\\nUDI=forged", "FOO", Some("x\nUDI=forged")),
            ("UDI=a\\'b\\\"c", "UDI", Some("a'b\"c")),
            ("UDI=a=b", "UDI", Some("a=b")),
            ("UDI", "UDI", Some("")),
            ("XUDI=a", "UDI", None),
            ("udi=a", "UDI", None),
            ("UDI=a\\", "UDI", Some("a\\")),
            ("UDI=$(reboot);`id`", "UDI", Some("$(reboot);`id`")),
            ("", "", None),
        ];
        for (list, name, expected) in table {
            assert_eq!(Variables::parse(list).get(name), expected, "{list}");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_read(values in proptest::collection::vec("[a-z,='\"\\\\\n]{0,6}", 1..4)) {
            let escape = |value: &String| {
                let mut text = String::new();
                for c in value.chars() {
                    if [',', '\\', '\'', '"', '\n'].contains(&c) {
                        text.push('\\');
                    }
                    text.push(c);
                }
                text
            };
            let list: Vec<String> = values
                .iter()
                .enumerate()
                .map(|(n, value)| format!("V{n}={}", escape(value)))
                .collect();
            let variables = Variables::parse(&list.join(","));
            for (n, value) in values.iter().enumerate() {
                prop_assert_eq!(variables.get(&format!("V{n}")), Some(&**value));
            }
        }
    }
}

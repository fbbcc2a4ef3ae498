//! `WWW-Authenticate` headers (RFC 9110, section 11.6.1).
//!
//! Only parsing; who is asked and with which login is decided in [`super::source`].

/// One way in which a server wants to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme in lower case.
    pub scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Returns the first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Parses a header with one or several challenges; what cannot be understood is left out.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = split_token(rest);
        if word.is_empty() {
            return found;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            found.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: Vec::new(),
            });
            rest = after;
            continue;
        };
        let (value, after) = split_value(value.trim_start());
        rest = after;
        if let Some(challenge) = found.last_mut() {
            challenge
                .parameters
                .push((word.to_ascii_lowercase(), value));
        }
    }
}

fn split_token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

fn split_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // `Bearer realm=https://…` without quotes is wrong and seen in the wild.
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let parsed = parse(hub);
        assert_eq!(parsed.len(), 1);
        assert_eq!(parsed[0].scheme, "bearer");
        assert_eq!(parsed[0].get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(parsed[0].get("scope"), Some("repository:a/b:pull,push"));

        let two = parse(r#"Basic realm="a, b=\"c\"" , BEARER Realm = x,service=y"#);
        assert_eq!(two.len(), 2);
        assert_eq!(two[0].get("realm"), Some("a, b=\"c\""));
        assert_eq!(
            (two[1].scheme.as_str(), two[1].get("realm")),
            ("bearer", Some("x"))
        );
        assert_eq!(two[1].get("service"), Some("y"));

        assert_eq!(parse("Negotiate")[0].scheme, "negotiate");
        assert_eq!(parse(""), []);
        assert_eq!(
            parse(r#"Bearer realm="unterminated"#)[0].get("realm"),
            Some("unterminated")
        );
    }

    proptest! {
        #[test]
        fn any_header_parses(header in "\\PC*") {
            parse(&header);
        }

        #[test]
        fn quoted_values_survive(value in "[ -~]*") {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            let parsed = parse(&format!("Bearer realm=\"{escaped}\",service=\"x\""));
            prop_assert_eq!(parsed[0].get("realm"), Some(value.as_str()));
            prop_assert_eq!(parsed[0].get("service"), Some("x"));
        }
    }
}

//! `--format`: a small part of Go's templates, as users of docker write them.
//!
//! ```text
//! {{.a.b}}        the value at that place: text as it is, everything else as JSON
//! {{json .a.b}}   the value as JSON
//! ```
//!
//! Keys are compared without regard to case, so that `{{.Record.Digest}}` finds `record.digest`.

use serde_json::Value;

/// Says what is wrong with a template.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// A part that is not understood.
    #[error("'{{{{{0}}}}}' is not understood")]
    Part(String),
    /// A key that is not there.
    #[error("there is no '{0}'")]
    Key(String),
    /// An opening without an end.
    #[error("a '{{{{' has no '}}}}'")]
    Open,
}

/// Fills a template with parts of `value`.
pub(super) fn fill(template: &str, value: &Value) -> Result<String, TemplateError> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (part, after) = after.split_once("}}").ok_or(TemplateError::Open)?;
        text.push_str(&unescaped(before));
        text.push_str(&expand(part, value)?);
        rest = after;
    }
    text.push_str(&unescaped(rest));
    Ok(text)
}

fn expand(part: &str, value: &Value) -> Result<String, TemplateError> {
    let words: Vec<&str> = part.split_whitespace().collect();
    let (is_json, path) = match words[..] {
        ["json", path] => (true, path),
        [path] => (false, path),
        _ => return Err(TemplateError::Part(part.to_owned())),
    };
    let Some(keys) = path.strip_prefix('.') else {
        return Err(TemplateError::Part(part.to_owned()));
    };
    let mut at = value;
    for key in keys.split('.').filter(|key| !key.is_empty()) {
        let found = match at {
            Value::Object(fields) => fields.get(key).or_else(|| {
                let same = |name: &&String| name.eq_ignore_ascii_case(key);
                fields.keys().find(same).and_then(|name| fields.get(name))
            }),
            Value::Array(items) => key.parse::<usize>().ok().and_then(|at| items.get(at)),
            _ => None,
        };
        at = found.ok_or_else(|| TemplateError::Key(path.to_owned()))?;
    }
    Ok(match at {
        Value::String(text) if !is_json => text.clone(),
        other => other.to_string(),
    })
}

/// Shells make it hard to write these two otherwise.
fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places_in_documents() {
        let value = serde_json::json!({"id": "x", "config": {"Env": ["A=b"], "n": null}});
        let table = [
            ("{{.id}}", "x"),
            ("{{ .Id }}!\\n", "x!\n"),
            ("{{json .id}}", "\"x\""),
            ("{{.Config.Env}}", "[\"A=b\"]"),
            ("{{.config.env.0}}", "A=b"),
            ("{{.config.n}}", "null"),
            ("no part", "no part"),
        ];
        for (template, expect) in table {
            assert_eq!(fill(template, &value).unwrap(), expect, "{template}");
        }
        for (template, expect) in [
            ("{{.none}}", "there is no '.none'"),
            ("{{range .x}}", "'{{range .x}}' is not understood"),
            ("{{.id", "a '{{' has no '}}'"),
        ] {
            assert_eq!(fill(template, &value).unwrap_err().to_string(), expect);
        }
    }

    proptest! {
        #[test]
        fn any_template_ends(template: String) {
            let _ = fill(&template, &Value::Null);
        }
    }
}

//! The new configuration while it is put together: tables of settings, each with where it came
//! from, and how they are written as TOML.

use std::collections::BTreeMap;
use std::path::Path;

use shifter_core::config::Config;
use shifter_core::sanitize;

use super::describe;

/// A value of the new configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A string.
    Text(String),
    /// A truth value.
    Flag(bool),
    /// A list of strings.
    List(Vec<String>),
    /// Strings by name.
    Map(BTreeMap<String, String>),
}

impl Value {
    /// Makes a list of strings.
    pub fn list<S: Into<String>>(items: impl IntoIterator<Item = S>) -> Self {
        Value::List(items.into_iter().map(Into::into).collect())
    }

    fn write(&self) -> String {
        match self {
            Value::Text(text) => quote(text),
            Value::Flag(flag) => flag.to_string(),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
                match items.len() {
                    0 | 1 => format!("[{}]", items.join("")),
                    _ => format!("[\n    {},\n]", items.join(",\n    ")),
                }
            }
            Value::Map(map) => {
                let pairs: Vec<String> = map
                    .iter()
                    .map(|(name, value)| format!("{} = {}", bare_or_quoted(name), quote(value)))
                    .collect();
                match pairs.len() {
                    0 => "{}".into(),
                    _ => format!("{{ {} }}", pairs.join(", ")),
                }
            }
        }
    }
}

/// The path of a table: `["module", "mpich", "env"]`; empty for the keys before all tables.
pub(super) type Table = Vec<String>;

struct Entry {
    table: Table,
    key: &'static str,
    value: Value,
    origin: String,
}

/// A configuration that is being put together.
#[derive(Default)]
pub(super) struct Draft {
    entries: Vec<Entry>,
}

impl Draft {
    /// Adds a setting, if the configuration's parser accepts it by itself; says why not.
    pub fn add(
        &mut self,
        table: &[&str],
        key: &'static str,
        value: Value,
        origin: String,
    ) -> Result<(), String> {
        try_alone(table, key, &value)?;
        self.add_tried(table, key, value, origin);
        Ok(())
    }

    /// Adds a setting that was tried, or that makes sense only with others.
    pub fn add_tried(&mut self, table: &[&str], key: &'static str, value: Value, origin: String) {
        self.entries.push(Entry {
            table: table.iter().map(|part| (*part).to_owned()).collect(),
            key,
            value,
            origin,
        });
    }

    /// Writes the whole as TOML; `file` is what it was made from.
    pub fn render(&self, file: &str) -> String {
        let mut text = format!(
            "# Made by 'shifter-config import' from {}.\n\
             # Judge it with 'shifter-config check'; shifter.toml(5) explains every key.\n",
            sanitize::text(file)
        );
        let mut tables: Vec<&Table> = Vec::new();
        for entry in &self.entries {
            if !tables.contains(&&entry.table) {
                tables.push(&entry.table);
            }
        }
        // Keys outside of any table must come first; a module's env comes after the module.
        tables.sort_by_key(|table| !table.is_empty());
        for table in tables {
            if !table.is_empty() {
                text += &format!("\n{}\n", header(table));
            }
            let mut entries = self
                .entries
                .iter()
                .filter(|entry| entry.table == *table)
                .peekable();
            if table.is_empty() && entries.peek().is_some() {
                text.push('\n');
            }
            for entry in entries {
                text += &format!(
                    "# {}\n{} = {}\n",
                    entry.origin,
                    entry.key,
                    entry.value.write()
                );
            }
        }
        text
    }
}

/// Asks the configuration's parser about one setting by itself.
pub(super) fn try_alone(table: &[&str], key: &str, value: &Value) -> Result<(), String> {
    let table: Table = table.iter().map(|part| (*part).to_owned()).collect();
    let header = if table.is_empty() {
        String::new()
    } else {
        header(&table)
    };
    let text = format!("{header}\n{key} = {}\n", value.write());
    match Config::parse(&text, Path::new("")) {
        Ok(_) => Ok(()),
        Err(error) => {
            let reason = describe(&error);
            Err(reason
                .strip_prefix(&format!("{key}: "))
                .unwrap_or(&reason)
                .to_owned())
        }
    }
}

fn header(table: &[String]) -> String {
    let parts: Vec<String> = table.iter().map(|part| bare_or_quoted(part)).collect();
    format!("[{}]", parts.join("."))
}

fn bare_or_quoted(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        quote(name)
    }
}

/// Writes a basic string of TOML.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // Beside those that TOML forbids, what an editor would not show.
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_being_written() {
        for text in ["", "a\"b\\c", "\u{1}\t\u{7f}\u{85}", "größe 日本", "'''"] {
            let value = Value::Map([(text.replace('=', ""), text.to_owned())].into());
            let tried = try_alone(&["env"], "set", &value);
            assert_eq!(tried.is_ok(), !text.is_empty(), "{text:?} {tried:?}");
            let value = Value::Text(text.into());
            assert_eq!(try_alone(&[], "system", &value), Ok(()), "{text:?}");
        }
    }
}

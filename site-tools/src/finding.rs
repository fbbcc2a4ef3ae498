//! What a check found: one value, and the three ways in which it is printed.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use shifter_core::exit::ExitCode;
use shifter_core::sanitize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Something to look at; containers run.
    Warning,
    /// Containers do not run, or the node is not safe.
    Error,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: a key of the configuration, a program, a part of the node.
    pub check: String,
    /// How bad it is.
    pub state: State,
    /// What was found.
    pub message: String,
    /// The way out, where one is known.
    pub hint: Option<String>,
}

impl Finding {
    /// Says that something is as it should be.
    pub fn ok(check: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(check, State::Ok, message, None)
    }

    /// Says that something should be looked at.
    pub fn warning(
        check: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::new(check, State::Warning, message, Some(hint.into()))
    }

    /// Says that something must be put right.
    pub fn error(
        check: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::new(check, State::Error, message, Some(hint.into()))
    }

    /// Lessens what containers run without.
    pub fn at_most_warning(mut self) -> Self {
        self.state = self.state.min(State::Warning);
        self
    }

    /// Makes a finding whose texts are for people and safe to print.
    pub fn new(
        check: impl Into<String>,
        state: State,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Self {
        Self {
            check: sanitize::text(&check.into()),
            state,
            message: sanitize::text(&sanitize::plain(message.into())),
            hint: hint.map(|hint| sanitize::text(&hint)),
        }
    }
}

/// How findings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// For people: a line for each, and its hint.
    #[default]
    Lines,
    /// For programs: an array of objects.
    Json,
    /// For Node Health Check: nothing, or one line with what is wrong.
    Nhc,
}

/// Writes findings in a form.
pub fn render(findings: &[Finding], form: Form) -> String {
    match form {
        Form::Lines => lines(findings),
        Form::Json => serde_json::to_string_pretty(findings).unwrap_or_default() + "\n",
        Form::Nhc => nhc(findings),
    }
}

fn lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let state = finding.state.as_str();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{state:<7}  {}: {}", finding.check, finding.message);
        if let Some(hint) = &finding.hint {
            let _ = writeln!(text, "hint: {hint}");
        }
    }
    text
}

fn nhc(findings: &[Finding]) -> String {
    let errors = findings.iter().filter(|f| f.state == State::Error);
    let errors: Vec<String> = errors
        .map(|f| format!("{}: {}", f.check, f.message))
        .collect();
    if errors.is_empty() {
        return String::new();
    }
    format!("ERROR shifter: {}\n", errors.join("; "))
}

/// Returns the exit code that says whether any of the findings is an error.
pub fn exit_code(findings: &[Finding]) -> ExitCode {
    match findings.iter().map(|finding| finding.state).max() {
        Some(State::Error) => ExitCode::Internal,
        _ => ExitCode::Success,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        let findings = [
            Finding::ok("kernel", "5.14"),
            Finding::warning("store\n", "it is '\x1b[1m'", "look"),
            Finding::error("hook", "gone (os error 2)", "put it back"),
        ];
        let text = render(&findings, Form::Lines);
        assert_eq!(
            text,
            "ok       kernel: 5.14\n\
             warning  store\\u{a}: it is '\\u{1b}[1m'\nhint: look\n\
             error    hook: gone\nhint: put it back\n"
        );
        let json: serde_json::Value = serde_json::from_str(&render(&findings, Form::Json)).unwrap();
        assert_eq!(json[1]["state"], "warning");
        assert_eq!(json[0]["hint"], serde_json::Value::Null);
        assert_eq!(render(&findings, Form::Nhc), "ERROR shifter: hook: gone\n");
        assert_eq!(render(&findings[..2], Form::Nhc), "");
        assert_eq!(exit_code(&findings), ExitCode::Internal);
        assert_eq!(exit_code(&findings[..2]), ExitCode::Success);
        assert_eq!(exit_code(&[]), ExitCode::Success);
    }
}

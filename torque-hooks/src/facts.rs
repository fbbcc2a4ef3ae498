//! What the hooks of OpenPBS say of a job, as JSON: they know it and need not ask the server.
//!
//! ```text
//! {"job": "12.server", "user": "alice", "group": "physics", "gres": "shifter",
//!  "exec_host": "n1/0+n2/0", "variables": {"UDI": "centos:latest"}}
//! ```
//!
//! The values of variables are written as PBS gives them to its hooks, with a backslash before commas,
//! quotes and backslashes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shifter_core::ids::{IdError, JobId};
use thiserror::Error;

use crate::call::{Call, CallError, Role, account};
use crate::qstat::{Listed, pairs_of};
use crate::variables::Variables;

/// A job as a hook describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    job: String,
    user: String,
    #[serde(default)]
    group: Option<String>,
    /// The generic resources.
    #[serde(default)]
    pub gres: Option<String>,
    #[serde(default)]
    exec_host: Option<String>,
    #[serde(default)]
    run_count: Option<u32>,
    #[serde(default)]
    variables: serde_json::Map<String, serde_json::Value>,
}

/// Says why the facts cannot be used.
#[derive(Debug, Error)]
pub enum FactsError {
    /// They are not JSON of this form.
    #[error("cannot understand the job's facts")]
    Form(#[from] serde_json::Error),
    /// The job's id is none.
    #[error(transparent)]
    Job(#[from] IdError),
    /// User or group is none.
    #[error(transparent)]
    Account(#[from] CallError),
}

impl Facts {
    /// Reads the facts and makes a call of them.
    pub fn parse(
        bytes: &[u8],
        role: Role,
        config: Option<PathBuf>,
    ) -> Result<(Call, Self), FactsError> {
        let facts: Self = serde_json::from_slice(bytes)?;
        let group = facts.group.as_deref().filter(|name| !name.is_empty());
        let call = Call {
            role,
            job: JobId::parse(&facts.job)?,
            user: account("user", &facts.user)?,
            group: group.map(|name| account("group", name)).transpose()?,
            resources: None,
            reservation: None,
            nids: None,
            direct: None,
            config,
        };
        Ok((call, facts))
    }

    /// Returns the same in the form of qstat's answer.
    pub fn listed(&self) -> Listed {
        Listed {
            variables: Some(Variables::of_escaped(pairs_of(&self.variables))),
            gres: self.gres.clone(),
            user: Some(self.user.clone()),
            exec_host: self.exec_host.clone(),
            start_count: self.run_count,
            state: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_a_call_and_an_answer() {
        let text = br#"{"job":"12.s","user":"alice","group":"physics","gres":"shifter",
            "exec_host":"n1/0+n2/0","variables":{"UDI":"a\\,b","N":7}}"#;
        let (call, facts) = Facts::parse(text, Role::Prologue, None).unwrap();
        assert_eq!((call.job.as_str(), &*call.user), ("12.s", "alice"));
        assert_eq!(call.group.as_deref(), Some("physics"));
        let listed = facts.listed();
        assert_eq!(listed.variables.unwrap().get("UDI"), Some("a,b"));
        assert_eq!(listed.exec_host.as_deref(), Some("n1/0+n2/0"));
    }

    #[test]
    fn facts_that_are_none_are_refused() {
        for text in [
            "",
            "{}",
            r#"{"job":"../x","user":"alice"}"#,
            r#"{"job":"1","user":"-x"}"#,
            r#"{"job":"1","user":"a:b"}"#,
            r#"{"job":"1","user":"a","group":"g\n"}"#,
            r#"{"job":"1","user":"a","uid":0}"#,
        ] {
            let refused = Facts::parse(text.as_bytes(), Role::Prologue, None);
            assert!(refused.is_err(), "{text}");
        }
    }
}

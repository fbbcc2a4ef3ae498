//! What the batch system knows of a job: `qstat -f -x` of Torque, `qstat -f -F json` of OpenPBS.
//!
//! Torque's text form is never looked at: a newline in a user's variable forges lines of it. XML
//! and JSON are read by parsers, and only what stands directly in the job is taken.

use std::borrow::Cow;

use serde::Deserialize;
use shifter_core::ids::JobId;
use shifter_core::sanitize;
use thiserror::Error;

use crate::variables::Variables;

/// Nodes that Torque's answer for one job may have.
const XML_NODE_LIMIT: u32 = 100_000;

/// Says why an answer cannot be used.
#[derive(Debug, Error)]
pub enum AnswerError {
    /// It is not XML.
    #[error("qstat's answer is not XML: {0}")]
    Xml(#[from] roxmltree::Error),
    /// It is not JSON.
    #[error("qstat's answer is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It does not describe this one job.
    #[error("qstat describes {count} jobs and not job '{job}'")]
    OtherJob {
        /// The job that was asked for.
        job: String,
        /// Jobs in the answer.
        count: usize,
    },
}

/// A job, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// What the user gave with `-v` and `-V`; nothing if the batch system keeps that from us.
    pub variables: Option<Variables>,
    /// The generic resources.
    pub gres: Option<String>,
    /// The name of the user it runs as.
    pub user: Option<String>,
    /// The nodes.
    pub exec_host: Option<String>,
    /// How often it was started.
    pub start_count: Option<u32>,
    /// Its state, a letter.
    pub state: Option<String>,
}

/// Reads Torque's answer.
pub fn parse_xml(bytes: &[u8], job: &JobId) -> Result<Listed, AnswerError> {
    let text = printable(bytes);
    let options = roxmltree::ParsingOptions {
        allow_dtd: false,
        nodes_limit: XML_NODE_LIMIT,
        ..Default::default()
    };
    let document = roxmltree::Document::parse_with_options(&text, options)?;
    let jobs: Vec<_> = document
        .root_element()
        .children()
        .filter(|node| node.has_tag_name("Job"))
        .collect();
    let other = || AnswerError::OtherJob {
        job: sanitize::text(job.as_str()),
        count: jobs.len(),
    };
    let [found] = jobs[..] else {
        return Err(other());
    };
    let child = |node: roxmltree::Node<'_, '_>, name: &str| {
        let child = node.children().find(|child| child.has_tag_name(name))?;
        let parts = child.children().filter(roxmltree::Node::is_text);
        let texts = parts.filter_map(|part| part.text());
        Some(texts.collect::<String>())
    };
    if !child(found, "Job_Id").is_some_and(|id| is_same_job(&id, job)) {
        return Err(other());
    }
    let resources = found
        .children()
        .find(|child| child.has_tag_name("Resource_List"));
    Ok(Listed {
        variables: child(found, "Variable_List").map(|list| Variables::parse(&list)),
        gres: resources.and_then(|resources| child(resources, "gres")),
        user: child(found, "euser"),
        exec_host: child(found, "exec_host"),
        start_count: child(found, "start_count").and_then(|text| text.parse().ok()),
        state: child(found, "job_state"),
    })
}

/// Reads OpenPBS's answer.
pub fn parse_json(bytes: &[u8], job: &JobId) -> Result<Listed, AnswerError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default, rename = "Jobs")]
        jobs: serde_json::Map<String, serde_json::Value>,
    }
    let answer: Answer = serde_json::from_str(&printable(bytes))?;
    let found: Vec<_> = answer.jobs.iter().collect();
    let [(id, attributes)] = found[..] else {
        return Err(AnswerError::OtherJob {
            job: sanitize::text(job.as_str()),
            count: found.len(),
        });
    };
    if !is_same_job(id, job) {
        return Err(AnswerError::OtherJob {
            job: sanitize::text(job.as_str()),
            count: 1,
        });
    }
    let text = |name: &str| attributes.get(name).map(plain_text);
    let resources = attributes.get("Resource_List");
    Ok(Listed {
        variables: attributes
            .get("Variable_List")
            .and_then(|list| list.as_object())
            .map(|list| pairs_of(list).collect()),
        gres: resources.and_then(|list| Some(plain_text(list.get("gres")?))),
        user: text("euser"),
        exec_host: text("exec_host"),
        start_count: text("run_count").and_then(|text| text.parse().ok()),
        state: text("job_state"),
    })
}

/// Returns variables that are an object in JSON.
pub fn pairs_of(
    object: &serde_json::Map<String, serde_json::Value>,
) -> impl Iterator<Item = (String, String)> {
    let pairs = object.iter();
    pairs.map(|(name, value)| (name.clone(), plain_text(value)))
}

/// OpenPBS writes what looks like a number as one.
fn plain_text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The server's name may be missing on one side.
fn is_same_job(listed: &str, job: &JobId) -> bool {
    let bare = |id: &str| id.split('.').next().map(str::to_owned);
    listed == job.as_str()
        || ((!listed.contains('.') || !job.as_str().contains('.'))
            && bare(listed) == bare(job.as_str()))
}

/// A variable that holds an escape sequence or bytes that are no text (`qsub -V` brings all of
/// them) makes Torque's answer one that no parser takes: such characters are replaced.
fn printable(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    let is_refused = |c: char| {
        (c.is_control() && !['\t', '\n', '\r'].contains(&c))
            || ['\u{fffe}', '\u{ffff}'].contains(&c)
    };
    if !text.contains(is_refused) {
        return text;
    }
    text.replace(is_refused, "\u{fffd}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str) -> JobId {
        JobId::parse(id).unwrap()
    }

    fn answer(id: &str, inside: &str) -> Vec<u8> {
        format!("<Data><Job><Job_Id>{id}</Job_Id>{inside}</Job></Data>\n").into_bytes()
    }

    /// As Torque 6.1.3 writes it.
    const RECORDED: &str = "<Job_Name>myjob</Job_Name><Job_Owner>alice@n2</Job_Owner>\
        <Resource_List><nodes>2:ppn=3</nodes><gres>shifter16</gres><walltime>00:10:00</walltime>\
        </Resource_List><exec_host>n2/0-2+n1/0-2</exec_host><Variable_List>PBS_O_QUEUE=batch,\
        PBS_O_HOME=/home/alice,UDI=centos:latest,FOO=a,name=</Variable_List>\
        <euser>alice</euser><egroup>physics</egroup><start_count>1</start_count>";

    #[test]
    fn torques_answer() {
        let listed = parse_xml(&answer("0.server", RECORDED), &job("0.server")).unwrap();
        let variables = listed.variables.as_ref().unwrap();
        assert_eq!(variables.get("UDI"), Some("centos:latest"));
        assert_eq!(listed.gres.as_deref(), Some("shifter16"));
        assert_eq!(listed.user.as_deref(), Some("alice"));
        assert_eq!(listed.exec_host.as_deref(), Some("n2/0-2+n1/0-2"));
        assert_eq!(listed.start_count, Some(1));
    }

    #[test]
    fn nothing_in_a_variable_forges_an_attribute() {
        let table = [
            (
                "UDI=a\\\n    Resource_List.gres = shifter16",
                "a\n    Resource_List.gres = shifter16",
            ),
            (
                "UDI=&lt;/Variable_List&gt;&lt;Resource_List&gt;&lt;gres&gt;shifter",
                "</Variable_List><Resource_List><gres>shifter",
            ),
            ("UDI=a&amp;lt;b", "a&lt;b"),
            ("UDI=x&#x41;", "xA"),
            ("UDI=x\x1b[2Jy", "x\u{fffd}[2Jy"),
            ("UDI=<![CDATA[<gres>]]>x", "<gres>x"),
            ("UDI=a<!-- b -->c", "ac"),
        ];
        for (list, expected) in table {
            let inside = format!("<Variable_List>{list}</Variable_List>");
            let listed = parse_xml(&answer("1.s", &inside), &job("1.s")).unwrap();
            let variables = listed.variables.unwrap();
            assert_eq!(variables.get("UDI"), Some(expected), "{list}");
            assert_eq!(listed.gres, None, "{list}");
        }
    }

    #[test]
    fn what_is_missing_is_told_from_what_is_empty() {
        let listed = parse_xml(&answer("1.s", "<euser>a</euser>"), &job("1.s")).unwrap();
        assert_eq!((listed.variables, listed.gres), (None, None));
        let empty = answer("1.s", "<Variable_List></Variable_List>");
        let listed = parse_xml(&empty, &job("1.s")).unwrap();
        assert_eq!(listed.variables, Some(Variables::default()));
    }

    #[test]
    fn only_the_job_itself_is_described() {
        let one = |id: &str, asked: &str| parse_xml(&answer(id, ""), &job(asked)).is_ok();
        assert!(one("1[2].server", "1[2].server") && one("1", "1.server") && one("1.s", "1"));
        assert!(!one("1[2].server", "1[3].server") && !one("2.s", "1.s") && !one("1.a", "1.b"));
        let two = b"<Data><Job><Job_Id>1.s</Job_Id></Job><Job><Job_Id>1.s</Job_Id></Job></Data>";
        assert!(matches!(
            parse_xml(two, &job("1.s")),
            Err(AnswerError::OtherJob { count: 2, .. })
        ));
        for text in [
            "",
            "qstat: Unknown Job Id",
            "<Data></Data>",
            "<Data>",
            "<!DOCTYPE Data [<!ENTITY a 'b'>]><Data><Job><Job_Id>1.s</Job_Id></Job></Data>",
        ] {
            assert!(parse_xml(text.as_bytes(), &job("1.s")).is_err(), "{text}");
        }
    }

    #[test]
    fn openpbss_answer() {
        let text = br#"{"timestamp":1,"pbs_version":"23.06.06","pbs_server":"s","Jobs":{"12.s":{
            "Job_Name":"x","euser":"alice","job_state":"R","Resource_List":{"gres":"shifter","ncpus":2},
            "exec_host":"n1/0*2+n2/1","run_count":2,
            "Variable_List":{"PBS_O_HOME":"/home/alice","UDI":"a,b","N":7}}}}"#;
        let listed = parse_json(text, &job("12.s")).unwrap();
        let variables = listed.variables.unwrap();
        assert_eq!(
            (variables.get("UDI"), variables.get("N")),
            (Some("a,b"), Some("7"))
        );
        assert_eq!(listed.gres.as_deref(), Some("shifter"));
        assert_eq!(listed.start_count, Some(2));
        assert_eq!(listed.state.as_deref(), Some("R"));
        assert!(parse_json(text, &job("13.s")).is_err());
        assert!(parse_json(b"{}", &job("13.s")).is_err());
        assert!(parse_json(b"qstat: no", &job("13.s")).is_err());
    }
}

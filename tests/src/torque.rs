//! A Torque site without pbs_server: what `qstat -f -x` says of jobs, and what was asked of
//! `qalter`, through stand-ins that serve recorded answers.
//!
//! ```text
//! /opt/torque/bin/qstat, qalter       the stand-ins (tests/torque)
//! /srv/torque/ID.xml, ID.json         the answer for one job, Torque's and OpenPBS's
//! /srv/torque/ID.comment              the job's comment, as qalter was told it
//! /srv/torque/calls                   one line for each call: program and arguments
//! /var/spool/torque/…                 a mom's own, on each node
//! ```

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::call::Call;
use crate::world::{self, User};

/// Where qstat and qalter are.
pub const BIN: &str = "/opt/torque/bin";

const ANSWERS: &str = "/srv/torque";

/// A job as the server and the mom know it.
#[derive(Clone, Debug)]
pub struct TorqueJob {
    /// The whole id, such as `3.server`.
    pub id: String,
    /// Who submitted it.
    pub user: User,
    /// The nodes and how often each is listed; the first one is the mother superior.
    pub nodes: Vec<(String, usize)>,
    /// The value of `-l gres=`.
    pub gres: Option<String>,
    /// What `-v` named, in this order and with repetitions; nothing where the server keeps the list
    /// to itself.
    pub variables: Option<Vec<(String, String)>>,
    /// The job's name.
    pub name: String,
}

impl TorqueJob {
    /// Makes a job of `user` on nodes with two slots each, with a container.
    pub fn new(id: &str, user: User, nodes: &[&str]) -> Self {
        Self {
            id: id.into(),
            user,
            nodes: nodes.iter().map(|node| ((*node).to_owned(), 2)).collect(),
            gres: Some("shifter16".into()),
            variables: Some(Vec::new()),
            name: "myjob".into(),
        }
    }

    /// Adds a variable of `qsub -v`.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        let variables = self.variables.get_or_insert_default();
        variables.push((name.into(), value.into()));
        self
    }

    /// Sets the gres.
    pub fn gres(mut self, gres: Option<&str>) -> Self {
        self.gres = gres.map(str::to_owned);
        self
    }

    /// Returns `-l nodes=`.
    pub fn nodes_resource(&self) -> String {
        let slots = self.nodes.first().map_or(1, |node| node.1);
        format!("{}:ppn={slots}", self.nodes.len())
    }

    /// Returns the list of resources as hooks get it.
    pub fn resources(&self) -> String {
        let nodes = self.nodes_resource();
        let gres = self.gres.iter().map(|gres| format!("gres={gres},"));
        format!(
            "nodes={nodes},{}walltime=00:10:00,neednodes={nodes}",
            gres.collect::<String>()
        )
    }

    /// Returns the lines of the node file.
    pub fn node_file(&self) -> String {
        let lines = self.nodes.iter();
        lines
            .map(|(name, slots)| format!("{name}\n").repeat(*slots))
            .collect()
    }

    /// Returns what `qstat -f -x` prints, in the order and with the escapes of Torque 6.1.3.
    pub fn xml(&self) -> String {
        let exec_host: Vec<String> = self
            .nodes
            .iter()
            .map(|(name, slots)| format!("{name}/0-{}", slots.saturating_sub(1)))
            .collect();
        let user = self.user.name();
        let gres = self.gres.as_deref().unwrap_or_default();
        let gres = match gres {
            "" => String::new(),
            gres => format!("<gres>{}</gres>", entities(gres)),
        };
        let nodes = self.nodes_resource();
        let variables = match &self.variables {
            Some(variables) => format!("<Variable_List>{}</Variable_List>", list(user, variables)),
            None => String::new(),
        };
        format!(
            "<Data><Job><Job_Id>{id}</Job_Id><Job_Name>{name}</Job_Name>\
             <Job_Owner>{user}@login</Job_Owner><job_state>R</job_state><queue>batch</queue>\
             <server>server</server><Checkpoint>u</Checkpoint><ctime>1795000000</ctime>\
             <Error_Path>login:/scratch/{user}/{name}.e</Error_Path>\
             <exec_host>{hosts}</exec_host><Hold_Types>n</Hold_Types><Join_Path>n</Join_Path>\
             <Mail_Points>a</Mail_Points><mtime>1795000001</mtime>\
             <Output_Path>login:/scratch/{user}/{name}.o</Output_Path><Priority>0</Priority>\
             <qtime>1795000000</qtime><Rerunable>True</Rerunable>\
             <Resource_List>{gres}<nodect>{count}</nodect><nodes>{nodes}</nodes>\
             <walltime>00:10:00</walltime></Resource_List><substate>40</substate>{variables}\
             <euser>{user}</euser><egroup>{user}</egroup><queue_type>E</queue_type>\
             <etime>1795000000</etime><start_time>1795000001</start_time>\
             <start_count>1</start_count><fault_tolerant>False</fault_tolerant>\
             <job_radix>0</job_radix></Job></Data>\n",
            id = entities(&self.id),
            name = entities(&self.name),
            hosts = exec_host.join("+"),
            count = self.nodes.len(),
        )
    }

    /// Returns `exec_host` as OpenPBS has it.
    pub fn exec_host(&self) -> String {
        let nodes = self.nodes.iter();
        let hosts = nodes.map(|(name, slots)| format!("{name}/0*{slots}"));
        hosts.collect::<Vec<_>>().join("+")
    }

    /// Returns what OpenPBS's `qstat -f -F json` prints.
    pub fn json(&self) -> String {
        let user = self.user.name();
        let mut job = json!({
            "Job_Name": self.name, "Job_Owner": format!("{user}@login"), "job_state": "R",
            "queue": "workq", "server": "server", "exec_host": self.exec_host(),
            "Resource_List": {"nodect": self.nodes.len(), "walltime": "00:10:00"},
            "euser": user, "egroup": user, "run_count": 1,
        });
        if let Some(gres) = &self.gres {
            job["Resource_List"]["gres"] = gres.as_str().into();
        }
        if let Some(variables) = &self.variables {
            let own = [("PBS_O_HOME".to_owned(), format!("/home/{user}"))];
            let all = own.iter().chain(variables);
            let all = all.map(|(name, value)| (name.clone(), Value::from(value.as_str())));
            job["Variable_List"] = Value::Object(all.collect());
        }
        let mut jobs = serde_json::Map::new();
        jobs.insert(self.id.clone(), job);
        json!({"timestamp": 1, "pbs_version": "23.06.06", "pbs_server": "server", "Jobs": jobs})
            .to_string()
    }
}

/// The site's server, as far as hooks talk to it.
#[derive(Clone, Copy, Debug)]
pub struct Server;

impl Server {
    /// Puts the stand-ins into place, with no job known.
    pub fn install() -> Result<Self> {
        world::require()?;
        let _ = fs::remove_dir_all(ANSWERS);
        fs::create_dir_all(ANSWERS)?;
        fs::create_dir_all(BIN)?;
        for program in ["qstat", "qalter"] {
            let from = world::checkout().join(format!("tests/torque/{program}-stand-in.sh"));
            let to = format!("{BIN}/{program}");
            fs::copy(&from, &to).with_context(|| format!("{}", from.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self)
    }

    /// Makes a job known.
    pub fn knows(&self, job: &TorqueJob) -> Result<()> {
        fs::write(file(&job.id, "json"), job.json())?;
        self.answers(&job.id, &job.xml())
    }

    /// Makes qstat answer for a job with this text.
    pub fn answers(&self, id: &str, text: &str) -> Result<()> {
        Ok(fs::write(file(id, "xml"), text)?)
    }

    /// Makes the server forget a job, as it does a while after its end.
    pub fn forgets(&self, id: &str) -> Result<()> {
        fs::remove_file(file(id, "json"))?;
        Ok(fs::remove_file(file(id, "xml"))?)
    }

    /// Makes qstat and qalter take `secs` for an answer.
    pub fn is_slow(&self, secs: u32) -> Result<()> {
        Ok(fs::write(
            Path::new(ANSWERS).join("slow"),
            secs.to_string(),
        )?)
    }

    /// Returns the job's comment, if anybody has set one.
    pub fn comment(&self, id: &str) -> Result<Option<String>> {
        match fs::read_to_string(file(id, "comment")) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns how often a program was called.
    pub fn calls(&self, program: &str) -> usize {
        let text = fs::read_to_string(Path::new(ANSWERS).join("calls")).unwrap_or_default();
        let begins = format!("{program} ");
        text.lines()
            .filter(|line| line.starts_with(&begins))
            .count()
    }
}

/// Makes what a mom has on a node: its directories and the hooks, each a link to `program`.
pub fn equip(call: impl Fn(&str) -> Call, hooks: &[(&str, &str)]) -> Result<()> {
    let mut script = String::from(
        "set -e; umask 022; cd /var/spool; mkdir -p torque/mom_priv/jobs torque/aux torque/spool\n",
    );
    for (hook, program) in hooks {
        script += &format!("ln -sfn {program} torque/mom_priv/{hook}\n");
    }
    call(&script).ok().map(drop)
}

/// Names of files come from ids, and an id may hold anything but a slash here.
fn file(id: &str, kind: &str) -> String {
    format!("{ANSWERS}/{}.{kind}", id.replace('/', "_"))
}

fn list(user: &str, variables: &[(String, String)]) -> String {
    let own = [
        ("PBS_O_QUEUE", "batch"),
        ("PBS_O_HOME", &*format!("/home/{user}")),
        ("PBS_O_LOGNAME", user),
        ("PBS_O_PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("PBS_O_SHELL", "/bin/bash"),
        ("PBS_O_WORKDIR", &*format!("/scratch/{user}")),
        ("PBS_O_HOST", "login"),
        ("PBS_O_SERVER", "server"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let all = own.iter().chain(variables);
    let pairs: Vec<String> = all
        .map(|(name, value)| format!("{name}={}", escaped(value)))
        .collect();
    entities(&pairs.join(","))
}

/// Escapes a variable's value as Torque does: a backslash before `,`, `\`, quotes and newlines.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        if matches!(c, ',' | '\\' | '\'' | '"' | '\n') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

fn entities(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_the_one_a_real_server_gave() {
        let mut job = TorqueJob::new("0.server", User::Alice, &["n2", "n3"])
            .variable("UDI", "centos:latest")
            .variable("A", "x,y\\z\n\"<&>'");
        job.nodes[0].1 = 3;
        let xml = job.xml();
        for part in [
            "<Data><Job><Job_Id>0.server</Job_Id>",
            "<exec_host>n2/0-2+n3/0-1</exec_host>",
            "<Resource_List><gres>shifter16</gres>",
            ",UDI=centos:latest,A=x\\,y\\\\z\\\n\\&quot;&lt;&amp;&gt;\\&apos;</Variable_List>",
            "<euser>alice</euser>",
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
        job.variables = None;
        assert!(!job.xml().contains("Variable_List"));
    }

    #[test]
    fn hooks_are_told_what_the_job_asked_for() {
        let job = TorqueJob::new("3.server", User::Alice, &["n2", "n3"]);
        assert_eq!(
            job.resources(),
            "nodes=2:ppn=2,gres=shifter16,walltime=00:10:00,neednodes=2:ppn=2"
        );
        assert_eq!(job.node_file(), "n2\nn2\nn3\nn3\n");
        assert!(!job.gres(None).resources().contains("gres"));
    }
}

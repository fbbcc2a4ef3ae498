//! A real LDAP server with the world's users, whom chosen nodes then know from there alone.
//!
//! slapd runs in the world, on loopback, and says in its log what it was asked; nslcd runs on the
//! nodes that may ask.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;

use anyhow::{Context, Result};

use crate::call::{Call, wait_for};
use crate::sandbox::Sandbox;
use crate::world;

const DIR: &str = "/tmp/ldap";

/// Files over those of the same name in /etc, on every node that has the users not in files.
const ACCOUNTS: [&str; 4] = ["passwd", "group", "shadow", "gshadow"];

/// The server, up until it is dropped.
#[derive(Debug)]
pub struct Ldap {
    slapd: Child,
}

impl Ldap {
    /// Starts it with alice, bob and their groups, and `crowd` more groups of alice's.
    pub fn start(crowd: usize) -> Result<Self> {
        world::require()?;
        let _ = fs::remove_dir_all(DIR);
        fs::create_dir_all(format!("{DIR}/database"))?;
        let schemas: String = ["core", "cosine", "nis"]
            .map(|name| format!("include /etc/ldap/schema/{name}.schema\n"))
            .concat();
        let config = format!(
            "{schemas}modulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {DIR}/pid\n\
             database mdb\nsuffix dc=site\ndirectory {DIR}/database\n\
             index uid,uidNumber,gidNumber,cn,memberUid eq\nindex objectClass eq\n"
        );
        fs::write(format!("{DIR}/slapd.conf"), config)?;
        fs::write(format!("{DIR}/users.ldif"), users(crowd))?;
        let config = format!("{DIR}/slapd.conf");
        Call::new([
            "slapadd",
            "-q",
            "-f",
            &config,
            "-l",
            &format!("{DIR}/users.ldif"),
        ])
        .ok()?;
        let slapd = Call::new([
            "slapd",
            "-d",
            "stats",
            "-f",
            &config,
            "-h",
            "ldap://127.0.0.1/",
        ])
        .timeout(0)
        .start(&log())?;
        let up = || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", 389))
                .ok()
                .map(drop))
        };
        wait_for("slapd", 20, up).with_context(|| fs::read_to_string(log()).unwrap_or_default())?;
        Ok(Self { slapd })
    }

    /// Takes the users from a node's own files; `knows` says whether it asks the server instead.
    pub fn serve(&self, node: &Sandbox, knows: bool) -> Result<()> {
        let own = node.path("/run/accounts");
        fs::create_dir_all(&own)?;
        for name in ACCOUNTS {
            let text = fs::read_to_string(format!("/etc/{name}"))?;
            let is_ours = |line: &&str| {
                !["alice:", "bob:", "proj:"]
                    .iter()
                    .any(|user| line.starts_with(user))
            };
            let lines: String = text
                .lines()
                .filter(is_ours)
                .map(|line| format!("{line}\n"))
                .collect();
            fs::write(format!("{own}/{name}"), lines)?;
        }
        let source = if knows { "files ldap" } else { "files" };
        let switch = format!("passwd: {source}\ngroup: {source}\nshadow: files\nhosts: files\n");
        fs::write(format!("{own}/nsswitch.conf"), switch)?;
        let config = "uid nslcd\ngid nslcd\nuri ldap://127.0.0.1/\nbase dc=site\nthreads 2\n";
        fs::write(format!("{own}/nslcd.conf"), config)?;
        for (name, mode) in [("shadow", 0o600), ("gshadow", 0o600), ("nslcd.conf", 0o600)] {
            fs::set_permissions(format!("{own}/{name}"), fs::Permissions::from_mode(mode))?;
        }
        let script =
            "cd /run/accounts && for file in *; do mount --bind $file /etc/$file || exit; done";
        node.shell(script).ok()?;
        if knows {
            node.shell("install -d -o nslcd /run/nslcd && nslcd").ok()?;
            let up = || Ok(fs::exists(node.path("/run/nslcd/socket"))?.then_some(()));
            wait_for("nslcd", 10, up)?;
        }
        Ok(())
    }

    /// Returns how many searches it was asked for so far.
    pub fn searches(&self) -> Result<usize> {
        let log = fs::read(log())?;
        let log = String::from_utf8_lossy(&log);
        Ok(log
            .lines()
            .filter(|line| line.contains(" SRCH base="))
            .count())
    }
}

impl Drop for Ldap {
    fn drop(&mut self) {
        let _ = self.slapd.kill();
        let _ = self.slapd.wait();
    }
}

fn log() -> String {
    format!("{DIR}/log")
}

fn users(crowd: usize) -> String {
    let mut text =
        String::from("dn: dc=site\nobjectClass: dcObject\nobjectClass: organization\no: site\n\n");
    for (name, id) in [("alice", 2001), ("bob", 2002)] {
        text += &format!(
            "dn: uid={name},dc=site\nobjectClass: account\nobjectClass: posixAccount\n\
             uid: {name}\ncn: {name}\nuidNumber: {id}\ngidNumber: {id}\n\
             homeDirectory: /home/{name}\nloginShell: /bin/bash\n\n{}",
            group(name, id, &[])
        );
    }
    text += &group("proj", 2100, &["alice"]);
    for number in 0..crowd {
        text += &group(&format!("crowd{number}"), 5000 + number, &["alice", "bob"]);
    }
    text
}

fn group(name: &str, gid: usize, members: &[&str]) -> String {
    let members: String = members
        .iter()
        .map(|user| format!("memberUid: {user}\n"))
        .collect();
    format!(
        "dn: cn={name},dc=site\nobjectClass: posixGroup\ncn: {name}\ngidNumber: {gid}\n{members}\n"
    )
}

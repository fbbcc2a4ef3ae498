//! Exchanges as registries have them, replayed: each request must be the next one of the recording.
//!
//! ```text
//! image PATH                what is resolved
//! access public|private     what it turns out to be
//! login USER SECRET         in docker's file; `identity TOKEN` for a refresh token
//! > METHOD PATH [Basic USER:SECRET | Bearer TOKEN]
//! = BODY                    of a POST
//! < STATUS
//! < NAME: VALUE
//! TEXT                      the body; MANIFEST and CONFIG are the image's
//! ```

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::dialect::{Reply, Request, Server};
use crate::site::image::{Image, small};

/// One request and its answer.
#[derive(Clone, Debug)]
struct Step {
    method: String,
    path: String,
    authorization: Option<String>,
    body: String,
    reply: Reply,
}

/// A recording, and what it is of.
pub struct Recording {
    pub image: String,
    pub is_private: bool,
    /// The entry in docker's file.
    pub entry: Option<serde_json::Value>,
    steps: Vec<Step>,
}

impl Recording {
    pub fn parse(text: &str) -> Self {
        let content = small("dialect");
        let mut recording = Self {
            image: String::new(),
            is_private: false,
            entry: None,
            steps: Vec::new(),
        };
        for line in text.lines() {
            let mut words = line.split(' ');
            match (words.next().unwrap(), recording.steps.last_mut()) {
                ("#", _) => {}
                ("image", None) => recording.image = words.next().unwrap().into(),
                ("access", None) => recording.is_private = words.next() == Some("private"),
                ("login", None) => {
                    let pair: Vec<&str> = words.collect();
                    let auth = BASE64_STANDARD.encode(pair.join(":"));
                    recording.entry = Some(serde_json::json!({"auth": auth}));
                }
                ("identity", None) => {
                    let auth = BASE64_STANDARD.encode("00000000-0000-0000-0000-000000000000:");
                    let token = words.next().unwrap();
                    recording.entry =
                        Some(serde_json::json!({"auth": auth, "identitytoken": token}));
                }
                (">", _) => {
                    let method = words.next().unwrap().to_owned();
                    let path = words.next().unwrap().to_owned();
                    let path = path.replace("{config}", &content.config.digest());
                    let rest: Vec<&str> = words.collect();
                    let authorization = match rest[..] {
                        [] => None,
                        ["Basic", pair] => Some(format!("Basic {}", BASE64_STANDARD.encode(pair))),
                        _ => Some(rest.join(" ")),
                    };
                    recording.steps.push(Step {
                        method,
                        path,
                        authorization,
                        body: String::new(),
                        reply: Reply::status(200),
                    });
                }
                ("=", Some(step)) => step.body = line[2..].to_owned(),
                ("<", Some(step)) => match line[2..].split_once(": ") {
                    Some((name, value)) => step.reply.headers.push((name.into(), value.into())),
                    None => step.reply.status = line[2..].parse().unwrap(),
                },
                (_, Some(step)) => step.reply = body(step.reply.clone(), line, &content),
                _ => panic!("{line}"),
            }
        }
        recording
    }

    /// Serves the recording; the second value has what did not happen as recorded, and the third
    /// how many requests came.
    pub fn serve(&self) -> (Server, Arc<Mutex<Vec<String>>>) {
        let faults: Arc<Mutex<Vec<String>>> = Arc::default();
        let (steps, record) = (self.steps.clone(), Arc::clone(&faults));
        let next = Mutex::new(0);
        let server = Server::with_address(move |address, request| {
            let mut next = next.lock().unwrap();
            let fault = match steps.get(*next) {
                Some(step) if step.is(request) => {
                    *next += 1;
                    let mut reply = step.reply.clone();
                    for (_, value) in &mut reply.headers {
                        *value = value.replace("{host}", address);
                    }
                    return reply;
                }
                expected => format!("{request:?}\nat step {} of {expected:?}", *next),
            };
            record.lock().unwrap().push(fault);
            Reply::status(418)
        });
        (server, faults)
    }

    /// How many requests there are.
    pub fn count(&self) -> usize {
        self.steps.len()
    }
}

impl Step {
    fn is(&self, request: &Request) -> bool {
        self.method == request.method
            && self.path == request.path
            && self.authorization.as_deref() == request.authorization()
            && self.body == request.body
    }
}

fn body(reply: Reply, line: &str, content: &Image) -> Reply {
    let bytes = match line {
        "MANIFEST" => content.manifest.bytes.clone(),
        "CONFIG" => content.config.bytes.clone(),
        text => text.as_bytes().to_vec(),
    };
    let full = Reply::new(reply.status, bytes);
    let reply = Reply {
        headers: reply.headers,
        ..full
    };
    match line {
        "MANIFEST" => reply.header("Content-Type", &content.manifest.media_type),
        _ => reply,
    }
}

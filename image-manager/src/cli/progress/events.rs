//! Progress as JSON, one object a line on standard output. The keys are an interface, described in
//! shifterimg(1).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::model::{Model, Phase};
use crate::cli::output;

/// How often a layer is told of.
const INTERVAL: Duration = Duration::from_secs(1);

/// What was told of one image.
#[derive(Debug)]
pub(super) struct Events {
    reference: String,
    told: BTreeMap<String, Instant>,
}

impl Events {
    pub fn new(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            told: BTreeMap::new(),
        }
    }

    pub fn phase(&self, model: &Model) {
        let mut event = json!({"event": model.phase.word()});
        if model.phase == Phase::Waiting {
            event["holder"] = model.holder.clone().into();
        }
        self.tell(event);
    }

    pub fn layers(&self, model: &Model) {
        let layers: Vec<Value> = model
            .layers
            .iter()
            .map(|layer| json!({"digest": layer.digest, "size": layer.size}))
            .collect();
        self.tell(json!({"event": "resolved", "layers": layers}));
    }

    pub fn layer(&mut self, model: &Model, digest: &str, is_done: bool) {
        let now = Instant::now();
        let is_due = self
            .told
            .get(digest)
            .is_none_or(|last| now.duration_since(*last) >= INTERVAL);
        let Some(layer) = model.layers.iter().find(|layer| layer.digest == digest) else {
            return;
        };
        if is_done || (is_due && !layer.is_done()) {
            self.told.insert(digest.to_owned(), now);
            self.tell(json!({
                "event": "layer", "digest": digest, "done": layer.done, "size": layer.size,
                "cached": layer.was_here,
            }));
        }
    }

    pub fn retry(&self, reason: &str) {
        self.tell(json!({"event": "retry", "reason": reason}));
    }

    fn tell(&self, mut event: Value) {
        event["reference"] = self.reference.clone().into();
        // A reader that has gone away ends the program when the result is printed.
        let _ = output::record(&event);
    }
}

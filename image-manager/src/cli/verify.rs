//! `verify`: comparing the stores with what they say of themselves.

use std::cell::Cell;

use serde::Serialize;
use shifter_core::exit::ExitCode;
use shifter_core::ids::ImageId;
use shifter_core::sanitize;

use super::failure::{Failure, Outcome};
use super::progress::{Phase, Progress};
use super::{Session, output, signals};
use crate::cache::BlobCache;
use crate::store::{Finding, Store, StoreKind, megabytes};

/// What was found out of one file, in JSON; the keys are an interface.
#[derive(Serialize)]
struct Record<'a> {
    event: &'static str,
    store: &'a str,
    path: String,
    id: Option<&'a str>,
    state: &'static str,
    problem: Option<String>,
}

impl Session {
    /// Verifies all that the caller can read, or the named images.
    pub(super) fn verify(&self) -> Result<ExitCode, Failure> {
        let context = "cannot verify";
        let mut outcome = Outcome::default();
        let mut only: Vec<ImageId> = Vec::new();
        for (reference, text) in self.references()?.iter().zip(&self.options.words) {
            match self.find(reference, text) {
                Ok(found) => only.push(found.id),
                Err(failure) => outcome.add(failure.report()),
            }
        }
        if only.is_empty() && !self.options.words.is_empty() {
            return Ok(outcome.code());
        }
        signals::watch(&self.cancel);
        let only = (!only.is_empty()).then_some(&only[..]);
        for store in self
            .stores()
            .map_err(|error| Failure::of_store(context, &error))?
        {
            outcome.add(self.verify_store(&store, only)?);
        }
        Ok(outcome.code())
    }

    fn verify_store(&self, store: &Store, only: Option<&[ImageId]>) -> Result<ExitCode, Failure> {
        let kind = store.kind().as_str();
        let context = format!("cannot verify the {kind} store");
        let fail = |error| Failure::of_store(&context, &error);
        let mut wishes = self.wishes();
        // Events of another form: one for each file.
        wishes.quiet |= wishes.json;
        wishes.json = false;
        let progress = Progress::new(&format!("{kind} store"), wishes);
        progress.phase(Phase::Comparing);
        let all = store.image_bytes(only).map_err(fail)?;
        let bytes = Cell::new(0);
        let watch = |count| {
            bytes.set(bytes.get() + count);
            progress.compared(bytes.get(), all);
        };
        let rules = self.config.type_rules();
        let findings = store.verify(only, &rules, &self.cancel, &watch);
        progress.clear();
        let findings = findings.map_err(fail)?;
        let mut outcome = Outcome::default();
        let mut unrecorded = 0;
        for finding in &findings {
            outcome.add(self.tell_finding(store, finding)?);
            let is_unknown = finding
                .fault
                .as_ref()
                .is_some_and(|fault| !fault.is_serious());
            unrecorded += u64::from(is_unknown);
        }
        // Blobs are of no value to anybody but the store's owner, who alone can read them.
        let is_owner = store.kind() == StoreKind::User || self.is_image_owner();
        if only.is_none() && is_owner && !self.cancel.is_cancelled() {
            let damaged = BlobCache::of_store(store).and_then(|cache| cache.verify());
            for digest in damaged.map_err(fail)? {
                // It will be downloaded again.
                output::note(&format!(
                    "the cached blob {digest} was damaged and is removed"
                ));
            }
        }
        if !self.options.quiet && !self.options.json {
            let count = findings.len();
            let bad = findings
                .iter()
                .filter(|f| f.fault.as_ref().is_some_and(|f| f.is_serious()));
            let mut text = format!(
                "{kind} store: files compared: {count} ({}), faults: {}",
                megabytes(bytes.get()),
                bad.count()
            );
            if unrecorded > 0 {
                text.push_str(&format!(", without a recorded digest: {unrecorded}"));
            }
            output::result(&text);
        }
        Ok(outcome.code())
    }

    fn tell_finding(&self, store: &Store, finding: &Finding) -> Result<ExitCode, Failure> {
        let path = sanitize::text(&finding.path.display().to_string());
        let is_serious = finding
            .fault
            .as_ref()
            .is_some_and(|fault| fault.is_serious());
        let problem = finding.fault.as_ref().map(|fault| output::chain(fault));
        if self.options.json {
            output::record(&Record {
                event: "verified",
                store: store.kind().as_str(),
                path: path.clone(),
                id: finding.id.as_ref().map(ImageId::as_str),
                state: match (&problem, is_serious) {
                    (None, _) => "ok",
                    (Some(_), true) => "bad",
                    (Some(_), false) => "unknown",
                },
                problem: problem.clone(),
            })?;
        }
        let Some(problem) = problem else {
            return Ok(ExitCode::Success);
        };
        if is_serious {
            output::failure(&format!("'{path}': {problem}"), None);
            return Ok(ExitCode::Image);
        }
        self.explain(|| format!("'{path}': {problem}"));
        Ok(ExitCode::Success)
    }
}

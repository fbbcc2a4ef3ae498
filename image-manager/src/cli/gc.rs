//! `gc`: removing what is not used any more.

use std::time::Duration;

use serde::Serialize;
use shifter_core::exit::ExitCode;

use super::failure::{Failure, Outcome};
use super::{Session, output, signals};
use crate::cache::BlobCache;
use crate::store::{Collected, Store, StoreError, StoreKind, Unused, megabytes};

/// Days for which an image without a tag is kept unless the user says otherwise.
const KEEP_DAYS: u32 = 7;
const DAY_SECS: u64 = 24 * 3600;

/// What was removed from one store, in JSON; the keys are an interface.
#[derive(Serialize)]
struct Record<'a> {
    event: &'static str,
    store: &'a str,
    dry_run: bool,
    images: Vec<Image<'a>>,
    kept: Vec<Image<'a>>,
    files: &'a [String],
    unfinished_bytes: u64,
    cache_bytes: u64,
}

#[derive(Serialize)]
struct Image<'a> {
    id: &'a str,
    size: u64,
}

fn list(unused: &[Unused]) -> Vec<Image<'_>> {
    let images = unused.iter().map(|one| Image {
        id: one.id.as_str(),
        size: one.size,
    });
    images.collect()
}

impl Session {
    /// Collects in each store that the caller may change.
    pub(super) fn collect(&self) -> Result<ExitCode, Failure> {
        let context = "cannot collect";
        let kinds = match (self.options.store, self.is_image_owner()) {
            (Some(StoreKind::Site), false) => return Err(self.not_owner(context)),
            (Some(kind), _) => vec![kind],
            (None, true) => vec![StoreKind::Site, StoreKind::User],
            (None, false) => vec![StoreKind::User],
        };
        signals::watch(&self.cancel);
        let mut outcome = Outcome::default();
        for store in self
            .stores()
            .map_err(|error| Failure::of_store(context, &error))?
        {
            if !kinds.contains(&store.kind()) || self.cancel.is_cancelled() {
                continue;
            }
            match self.collect_in(&store) {
                Ok((collected, freed)) => self.tell_collected(&store, &collected, freed)?,
                Err(error) => outcome.add(Failure::of_store(context, &error).report()),
            }
        }
        Ok(outcome.code())
    }

    fn collect_in(&self, store: &Store) -> Result<(Collected, u64), StoreError> {
        let days = self.options.older_than.unwrap_or(KEEP_DAYS);
        let keep = Duration::from_secs(u64::from(days) * DAY_SECS);
        let dry_run = self.options.dry_run;
        let collected = store.collect(keep, dry_run, &self.waiting())?;
        if !store.has_cache() {
            return Ok((collected, 0));
        }
        let cache = BlobCache::of_store(store)?;
        let before = cache.usage()?.all_bytes();
        if dry_run {
            return Ok((collected, before.saturating_sub(store.cache_limit())));
        }
        cache.sweep()?;
        cache.trim(store.cache_limit())?;
        let after = cache.usage()?.all_bytes();
        Ok((collected, before.saturating_sub(after)))
    }

    fn tell_collected(
        &self,
        store: &Store,
        collected: &Collected,
        cache_bytes: u64,
    ) -> Result<(), Failure> {
        let (removed, kept) = (list(&collected.removed), list(&collected.kept));
        if self.options.json {
            return output::record(&Record {
                event: "collected",
                store: store.kind().as_str(),
                dry_run: self.options.dry_run,
                images: removed,
                kept,
                files: &collected.strays,
                unfinished_bytes: collected.unfinished_bytes,
                cache_bytes,
            });
        }
        if self.options.quiet {
            return Ok(());
        }
        let verb = match self.options.dry_run {
            true => "would remove",
            false => "removed",
        };
        for image in &removed {
            let size = megabytes(image.size);
            output::result(&format!("{verb} image {} ({size})", image.id));
        }
        for name in &collected.strays {
            output::result(&format!("{verb} {name}"));
        }
        let bytes: u64 = removed.iter().map(|image| image.size).sum();
        let unfinished = match collected.unfinished_bytes {
            0 => String::new(),
            bytes => format!(" {} of images that were not finished,", megabytes(bytes)),
        };
        output::result(&format!(
            "{} store: {verb}{unfinished} {} of images and {} of the cache",
            store.kind().as_str(),
            megabytes(bytes),
            megabytes(cache_bytes)
        ));
        if !kept.is_empty() {
            let bytes: u64 = kept.iter().map(|image| image.size).sum();
            let (count, size) = (kept.len(), megabytes(bytes));
            output::result(&format!(
                "images without a tag that are kept for queued jobs: {count} ({size}); --older-than=0 removes them"
            ));
        }
        Ok(())
    }
}

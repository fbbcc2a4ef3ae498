//! `lookup`: which image a reference means, for people and for programs.

use serde::Serialize;
use shifter_core::config::UserImages;
use shifter_core::exit::ExitCode;
use shifter_core::reference::{ImageRef, ImageType};

use super::failure::{Failure, file_hint, shown};
use super::{Session, output, viewer};
use crate::store::{StoreError, StoreKind, StoredImage};

/// An image in JSON; the keys are an interface.
#[derive(Serialize)]
pub(super) struct ImageRecord<'a> {
    reference: Option<&'a str>,
    #[serde(rename = "type")]
    image_type: &'a str,
    id: &'a str,
    store: &'a str,
    path: String,
    size: u64,
    digest: Option<&'a str>,
    pulled: Option<u64>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    workdir: Option<String>,
    env: Vec<String>,
}

impl<'a> ImageRecord<'a> {
    pub fn new(
        image: &'a StoredImage,
        reference: Option<&'a str>,
        image_type: &'a ImageType,
    ) -> Self {
        // JSON has no place for bytes that are not UTF-8; the runtime reads the metadata itself.
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        let list = |words: &Vec<Vec<u8>>| words.iter().map(text).collect();
        let meta = &image.meta;
        let pair = |(key, value): &(Vec<u8>, Vec<u8>)| format!("{}={}", text(key), text(value));
        Self {
            reference,
            image_type: image_type.as_str(),
            id: image.id.as_str(),
            store: image.kind.as_str(),
            path: image.path.display().to_string(),
            size: image.size,
            digest: image.digest.as_deref(),
            pulled: image.pulled,
            entrypoint: meta.entry.as_ref().map(list),
            cmd: meta.cmd.as_ref().map(list),
            workdir: meta.workdir.as_ref().map(text),
            env: meta.env.iter().map(pair).collect(),
        }
    }
}

impl Session {
    /// Prints the id of one image, or all that a program needs of it.
    pub(super) fn lookup(&self) -> Result<ExitCode, Failure> {
        let text = self.options.words.first().map(String::as_str);
        let text = text.unwrap_or_default();
        let reference = self.reference(text)?;
        let found = self.find(&reference, text)?;
        self.check_use(&reference, &found)?;
        if self.options.json {
            let name = reference.canonical();
            let record = ImageRecord::new(&found, Some(&name), reference.image_type());
            output::record(&record)?;
        } else {
            output::data(&format!("{}\n", found.id))?;
        }
        Ok(ExitCode::Success)
    }

    /// Finds an image in the stores; `text` is how the user wrote its name.
    pub(super) fn find(&self, reference: &ImageRef, text: &str) -> Result<StoredImage, Failure> {
        let context = not_found(reference);
        let fail = |error: StoreError| Failure::of_store(&context, &error);
        if !reference.image_type().is_stored() {
            let message = format!("{context}: only images of a store can be looked up");
            return Err(Failure::new(ExitCode::Denied, message)
                .with_hint(format!("shifter run {}", shown(reference))));
        }
        let viewer = viewer(&context)?;
        // One after the other: what is wrong with the user's own concerns nobody who does not need it.
        for kind in [StoreKind::Site, StoreKind::User] {
            let Some(store) = self.store(kind).map_err(fail)? else {
                continue;
            };
            if let Some(found) = store.lookup(reference, &viewer).map_err(fail)? {
                return Ok(found);
            }
        }
        let place = match self.config.store.user_images {
            UserImages::No => "not in the site store",
            _ => "neither in the site store nor in your own",
        };
        let can_pull = *reference.image_type() == ImageType::Docker;
        let pull = can_pull.then(|| format!("shifter pull {}", reference.name()));
        let message = format!("{context}: {place}");
        Err(Failure::new(ExitCode::Image, message).with_hint(file_hint(text).or(pull)))
    }

    /// Refuses an image that this site would not run.
    fn check_use(&self, reference: &ImageRef, found: &StoredImage) -> Result<(), Failure> {
        let store = &self.config.store;
        if found.kind != StoreKind::User || store.user_images != UserImages::No {
            return Ok(());
        }
        let message = format!(
            "{}: it is only in your own store, and this site does not run images from there",
            not_found(reference)
        );
        let hint = match store.site_pull_command.is_empty() {
            true => "ask the site to pull it into the site store".to_owned(),
            false => format!("shifter pull {}", reference.name()),
        };
        Err(Failure::new(ExitCode::Denied, message).with_hint(hint))
    }
}

fn not_found(reference: &ImageRef) -> String {
    format!("cannot find image '{}'", shown(reference))
}

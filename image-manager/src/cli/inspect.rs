//! `inspect`: all that is known of images, as one JSON array.

use serde_json::{Map, Value, json};
use shifter_core::exit::ExitCode;
use shifter_core::sanitize;

use super::failure::{Failure, Outcome};
use super::lookup::ImageRecord as Described;
use super::template::fill;
use super::{Session, output};
use crate::store::{ImageRecord, StoredImage};

impl Session {
    /// Prints everything that is known of the images of the command line.
    pub(super) fn inspect(&self) -> Result<ExitCode, Failure> {
        let mut outcome = Outcome::default();
        let mut found = Vec::new();
        let references = self.references()?;
        for (reference, text) in references.iter().zip(&self.options.words) {
            let image = match self.find(reference, text) {
                Ok(image) => image,
                Err(failure) => {
                    outcome.add(failure.report());
                    continue;
                }
            };
            let name = reference.canonical();
            let record = Described::new(&image, Some(&name), reference.image_type());
            let known = self.known(&image).unwrap_or_else(|failure| {
                outcome.add(failure.report());
                None
            });
            found.push(describe(&image, &record, known.as_ref())?);
        }
        let text = match &self.options.format {
            // Nothing is on stdout if nothing was found.
            None if found.is_empty() => String::new(),
            None => output::pretty(&found)?,
            Some(format) => {
                let filled = found.iter().map(|value| fill(format, value));
                let lines = filled.collect::<Result<Vec<_>, _>>().map_err(|error| {
                    let message = format!("cannot use --format: {error}");
                    Failure::new(ExitCode::Usage, sanitize::text(&message))
                        .with_hint("shifterimg inspect IMAGE shows all there is".to_owned())
                })?;
                let lines = lines.into_iter().map(|line| output::harmless(&line) + "\n");
                lines.collect()
            }
        };
        output::data(&text)?;
        Ok(outcome.code())
    }

    /// Returns what is known of where an image came from.
    fn known(&self, image: &StoredImage) -> Result<Option<ImageRecord>, Failure> {
        let context = format!("cannot read the record of image '{}'", image.id);
        let fail = |error| Failure::of_store(&context, &error);
        match self.store(image.kind).map_err(fail)? {
            Some(store) => store.record(&image.id).map_err(fail),
            None => Ok(None),
        }
    }
}

/// Puts together what the store says of an image.
fn describe(
    image: &StoredImage,
    record: &Described<'_>,
    known: Option<&ImageRecord>,
) -> Result<Value, Failure> {
    let failed = |error: serde_json::Error| Failure::internal(error.to_string());
    let mut value = serde_json::to_value(record).map_err(failed)?;
    let meta = &image.meta;
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let mut more = Map::new();
    more.insert("format".into(), json!(meta.format));
    more.insert("public".into(), json!(meta.is_public()));
    more.insert("users".into(), json!(meta.user_acl));
    more.insert("groups".into(), json!(meta.group_acl));
    more.insert("user".into(), json!(meta.user.as_ref().map(text)));
    let volumes: Vec<String> = meta.volumes.iter().map(text).collect();
    more.insert("volumes".into(), json!(volumes));
    more.insert("labels".into(), json!(known.map(|known| &known.labels)));
    more.insert("layers".into(), json!(known.map(|known| &known.layers)));
    more.insert("record".into(), json!(known));
    if let Value::Object(fields) = &mut value {
        fields.extend(more);
    }
    Ok(value)
}

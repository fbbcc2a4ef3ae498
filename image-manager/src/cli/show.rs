//! `lookup` and `images`: what is in the stores, for people and for programs.

use serde::Serialize;
use shifter_core::exit::ExitCode;
use shifter_core::reference::{ImageRef, ImageType};
use shifter_core::sanitize;

use super::{Failure, Session, print, viewer};
use crate::store::{StoredImage, megabytes};

/// An image in JSON; the keys are an interface.
#[derive(Serialize)]
struct ImageRecord<'a> {
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

impl Session {
    /// Prints the id of one image, or all that is known of it.
    pub(super) fn lookup(&self) -> Result<ExitCode, Failure> {
        let text = self
            .options
            .images
            .first()
            .map(String::as_str)
            .unwrap_or_default();
        let reference = self.reference(text)?;
        let found = self.find(&reference)?;
        if self.options.json {
            print(&json(
                &found,
                Some(&reference.canonical()),
                reference.image_type(),
            )?)?;
        } else {
            print(&format!("{}\n", found.id))?;
        }
        Ok(ExitCode::Success)
    }

    /// Lists every image that the user may use.
    pub(super) fn images(&self) -> Result<ExitCode, Failure> {
        let context = "cannot list the images";
        let viewer = viewer(context)?;
        let rules = self.config.type_rules();
        let mut rows =
            vec![["REPOSITORY", "TAG", "DIGEST", "CREATED", "SIZE", "STORE"].map(String::from)];
        let mut lines = String::new();
        let mut code = ExitCode::Success;
        for store in self
            .stores()
            .map_err(|error| Failure::of_store(context, &error))?
        {
            let listed = store.list(&rules, &viewer);
            let (images, problems) = listed.map_err(|error| Failure::of_store(context, &error))?;
            for problem in problems {
                code = Failure::of_store(context, &problem).report();
            }
            for image in images {
                let parsed = image
                    .reference
                    .as_deref()
                    .and_then(|text| ImageRef::parse(text, &rules).ok());
                if self.options.json {
                    let kind = parsed.as_ref().map_or(&ImageType::Id, ImageRef::image_type);
                    lines.push_str(&json(&image, image.reference.as_deref(), kind)?);
                } else {
                    rows.push(row(&image, parsed.as_ref()));
                }
            }
        }
        print(&if self.options.json {
            lines
        } else {
            table(&rows)
        })?;
        Ok(code)
    }
}

fn json(
    image: &StoredImage,
    reference: Option<&str>,
    image_type: &ImageType,
) -> Result<String, Failure> {
    // JSON has no place for bytes that are not UTF-8; the runtime reads the metadata itself.
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let list = |words: &Vec<Vec<u8>>| words.iter().map(text).collect();
    let meta = &image.meta;
    let record = ImageRecord {
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
        env: meta
            .env
            .iter()
            .map(|(key, value)| format!("{}={}", text(key), text(value)))
            .collect(),
    };
    super::json_line(&record)
}

fn row(image: &StoredImage, reference: Option<&ImageRef>) -> [String; 6] {
    let none = || "<none>".to_owned();
    let (repository, tag) = match reference {
        Some(reference) => {
            let name = reference.name();
            let name = name.split('@').next().unwrap_or_default();
            let tag = reference.tag();
            let bare = tag
                .and_then(|tag| name.strip_suffix(&format!(":{tag}")))
                .unwrap_or(name);
            let repository = match reference.image_type() {
                ImageType::Docker => bare.to_owned(),
                other => format!("{other}:{bare}"),
            };
            (repository, tag.map_or_else(none, str::to_owned))
        }
        None => (format!("id:{}", image.id), none()),
    };
    let digest = image
        .digest
        .as_deref()
        .map(|digest| short(digest, 19))
        .unwrap_or_else(none);
    [
        sanitize::text(&repository),
        sanitize::text(&tag),
        sanitize::text(&digest),
        image.pulled.map_or_else(none, utc),
        megabytes(image.size),
        image.kind.as_str().to_owned(),
    ]
}

fn short(text: &str, length: usize) -> String {
    text.chars().take(length).collect()
}

/// Aligns columns, two spaces apart, the last one unpadded.
fn table(rows: &[[String; 6]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < row.len() {
                let gap = width(column).unwrap_or_default() - cell.chars().count() + 2;
                text.extend(std::iter::repeat_n(' ', gap));
            }
        }
        text.push('\n');
    }
    text
}

/// Writes seconds since 1970 as `2026-11-21T06:44:00Z` (Howard Hinnant's civil_from_days).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_243_440, "2026-11-21T06:44:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in table {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn columns_align() {
        let row = |first: &str| [first, "b", "c", "d", "e", "f"].map(String::from);
        assert_eq!(
            table(&[row("a"), row("aaa")]),
            "a    b  c  d  e  f\naaa  b  c  d  e  f\n"
        );
    }
}

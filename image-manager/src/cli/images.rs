//! `images`: what is in the stores, for people and for programs.

use std::collections::BTreeMap;

use shifter_core::exit::ExitCode;
use shifter_core::pattern;
use shifter_core::reference::{ImageRef, ImageType};
use shifter_core::sanitize;

use super::failure::{Failure, Outcome};
use super::lookup::ImageRecord;
use super::table::{align, utc};
use super::{Session, output, viewer};
use crate::store::{StoreKind, StoredImage, megabytes};

const TITLES: [&str; 7] = [
    "REPOSITORY",
    "TAG",
    "DIGEST",
    "CREATED",
    "SIZE",
    "SERVER",
    "STORE",
];
/// Digits of a digest that are shown unless all are wanted.
const SHORT: usize = 12;

/// What is listed.
#[derive(Debug, PartialEq, Eq)]
enum Filter {
    /// Names that a pattern means.
    Reference(String),
    /// Images with a tag, or those without one.
    Dangling(bool),
    /// Those of one store.
    Store(String),
    /// Those with a label.
    Label(String, Option<String>),
}

impl Filter {
    fn parse(text: &str) -> Option<Self> {
        let (key, value) = text.split_once('=')?;
        match (key, value) {
            ("reference", pattern) => Some(Self::Reference(pattern.to_owned())),
            ("dangling", "true") => Some(Self::Dangling(true)),
            ("dangling", "false") => Some(Self::Dangling(false)),
            ("store", "site" | "user") => Some(Self::Store(value.to_owned())),
            ("label", label) => Some(match label.split_once('=') {
                Some((name, value)) => Self::Label(name.to_owned(), Some(value.to_owned())),
                None => Self::Label(label.to_owned(), None),
            }),
            _ => None,
        }
    }

    fn admits(
        &self,
        image: &StoredImage,
        reference: Option<&ImageRef>,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        match self {
            Self::Reference(pattern) => reference.is_some_and(|found| is_called(pattern, found)),
            Self::Dangling(wanted) => reference.is_none() == *wanted,
            Self::Store(wanted) => image.kind.as_str() == wanted,
            Self::Label(name, value) => {
                let found = labels.get(name);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
        }
    }
}

/// True if a pattern means an image: its name without or with the tag, the server, or the type.
fn is_called(pattern: &str, reference: &ImageRef) -> bool {
    let name = reference.name();
    let canonical = reference.canonical();
    let (repository, tag, _) = parts(reference);
    let tagged = format!("{repository}:{}", tag.unwrap_or_default());
    [&name, &canonical, &repository, &tagged]
        .into_iter()
        .any(|name| pattern::fits(pattern.as_bytes(), name.as_bytes()))
}

impl Session {
    /// Lists every image that the user may use.
    pub(super) fn images(&self) -> Result<ExitCode, Failure> {
        let context = "cannot list the images";
        let filters = self.filters()?;
        let viewer = viewer(context)?;
        let rules = self.config.type_rules();
        let mut outcome = Outcome::default();
        let (mut rows, mut lines) = (Vec::new(), String::new());
        let fail = |error| Failure::of_store(context, &error);
        for kind in [StoreKind::Site, StoreKind::User] {
            let store = match self.store(kind) {
                Ok(Some(store)) => store,
                Ok(None) => continue,
                Err(problem) => {
                    outcome.add(fail(problem).report());
                    continue;
                }
            };
            let (images, problems) = store.list(&rules, &viewer).map_err(fail)?;
            for problem in problems {
                outcome.add(fail(problem).report());
            }
            for image in images {
                let parsed = image
                    .reference
                    .as_deref()
                    .and_then(|text| ImageRef::parse(text, &rules).ok());
                // Read only where somebody asks for them.
                let labels = match filters.iter().any(|f| matches!(f, Filter::Label(..))) {
                    true => store.record(&image.id).unwrap_or_else(|problem| {
                        outcome.add(fail(problem).report());
                        None
                    }),
                    false => None,
                };
                let labels = labels.map(|known| known.labels).unwrap_or_default();
                let is_listed = |f: &Filter| f.admits(&image, parsed.as_ref(), &labels);
                if !filters.iter().all(is_listed) {
                    continue;
                }
                if self.options.json {
                    let kind = parsed.as_ref().map_or(&ImageType::Id, ImageRef::image_type);
                    let record = ImageRecord::new(&image, image.reference.as_deref(), kind);
                    lines.push_str(&output::json(&record)?);
                } else if self.options.quiet {
                    lines.push_str(&format!("{}\n", image.id));
                } else {
                    rows.push(row(&image, parsed.as_ref(), self.options.digests));
                }
            }
        }
        if !self.options.json && !self.options.quiet {
            rows.insert(0, TITLES.map(String::from).to_vec());
            lines = align(&rows);
        }
        output::data(&lines)?;
        Ok(outcome.code())
    }

    fn filters(&self) -> Result<Vec<Filter>, Failure> {
        let mut filters = Vec::new();
        for text in &self.options.filters {
            filters.push(Filter::parse(text).ok_or_else(|| {
                let message = format!("--filter has no '{}'", sanitize::text(text));
                Failure::new(ExitCode::Usage, message).with_hint(
                    "reference=PATTERN, store=site|user, dangling=true|false, label=NAME[=VALUE]"
                        .to_owned(),
                )
            })?);
        }
        filters.extend(self.options.words.iter().cloned().map(Filter::Reference));
        Ok(filters)
    }
}

fn row(image: &StoredImage, reference: Option<&ImageRef>, whole: bool) -> Vec<String> {
    let none = || "<none>".to_owned();
    let (repository, tag, server) = match reference {
        Some(reference) => parts(reference),
        None => (format!("id:{}", image.id), None, None),
    };
    let digest = match (&image.digest, whole) {
        (Some(digest), true) => digest.clone(),
        (Some(digest), false) => {
            let digits = digest.split(':').next_back().unwrap_or_default();
            digits.chars().take(SHORT).collect()
        }
        (None, _) => none(),
    };
    vec![
        sanitize::text(&repository),
        sanitize::text(&tag.unwrap_or_else(none)),
        sanitize::text(&digest),
        image.pulled.map_or_else(none, utc),
        megabytes(image.size),
        sanitize::text(&server.unwrap_or_else(|| "-".into())),
        image.kind.as_str().to_owned(),
    ]
}

/// Splits a reference into repository, tag and server.
fn parts(reference: &ImageRef) -> (String, Option<String>, Option<String>) {
    let tag = reference.tag().map(str::to_owned);
    let server = reference.registry().map(str::to_owned);
    let repository = reference.repository();
    let repository = match (reference.image_type(), server.as_deref()) {
        // As people know it: without the part that Docker Hub adds.
        (ImageType::Docker, Some("docker.io")) => repository
            .strip_prefix("library/")
            .unwrap_or(repository)
            .to_owned(),
        (ImageType::Docker, _) => repository.to_owned(),
        (other, _) => format!("{other}:{repository}"),
    };
    (repository, tag, server)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shifter_core::reference::TypeRules;

    fn reference(text: &str) -> ImageRef {
        let rules = TypeRules {
            default_type: "docker",
            site_types: &[],
        };
        ImageRef::parse(text, &rules).unwrap()
    }

    #[test]
    fn names_are_split_as_people_know_them() {
        let table = [
            ("ubuntu:24.04", ("ubuntu", Some("24.04"), Some("docker.io"))),
            (
                "quay.io:443/a/b",
                ("a/b", Some("latest"), Some("quay.io:443")),
            ),
            ("custom:x:1", ("custom:x", Some("1"), None)),
        ];
        for (text, (repository, tag, server)) in table {
            let (found, found_tag, found_server) = parts(&reference(text));
            assert_eq!(
                (&*found, found_tag.as_deref(), found_server.as_deref()),
                (repository, tag, server)
            );
        }
    }

    #[test]
    fn filters_parse() {
        let table = [
            ("dangling=true", Some(Filter::Dangling(true))),
            ("store=site", Some(Filter::Store("site".into()))),
            (
                "label=a=b=c",
                Some(Filter::Label("a".into(), Some("b=c".into()))),
            ),
            ("label=a", Some(Filter::Label("a".into(), None))),
            ("dangling=yes", None),
            ("before=x", None),
            ("x", None),
        ];
        for (text, expect) in table {
            assert_eq!(Filter::parse(text), expect, "{text}");
        }
    }

    #[test]
    fn patterns_mean_names_in_each_form() {
        let image = reference("quay.io/bio/samtools:1.2");
        for pattern in [
            "bio/samtools",
            "*samtools*",
            "quay.io/*:1.2",
            "docker:quay.io/*",
            "bio/*:1.?",
        ] {
            assert!(is_called(pattern, &image), "{pattern}");
        }
        assert!(!is_called("samtools", &image));
    }
}

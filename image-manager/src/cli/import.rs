//! `import` and `load`: images from files.

use std::path::Path;
use std::time::Instant;

use shifter_core::exit::ExitCode;
use shifter_core::reference::{ImageRef, ImageType, TypeRules};
use shifter_core::sanitize;

use super::failure::{Failure, Outcome, shown};
use super::progress::{Phase, Progress};
use super::pull::{DoneRecord, warn_of_left_out};
use super::{Session, output, signals};
use crate::import::{Archive, ImportError, ImportStep, Imported, Request, Target};
use crate::store::{Store, StoreKind, megabytes};

impl Session {
    /// Imports the images of a file: all of them under their own names, or one under the user's.
    pub(super) fn import(&self) -> Result<ExitCode, Failure> {
        let [file, rest @ ..] = &self.options.words[..] else {
            return Err(Failure::internal("a file is missing".into()));
        };
        let context = format!("cannot import '{}'", sanitize::text(file));
        let name = rest.first().map(|text| self.name(text)).transpose()?;
        self.check_sudo(file)?;
        let kind = match (self.options.store, self.is_image_owner()) {
            (Some(kind), _) => kind,
            (None, true) => StoreKind::Site,
            (None, false) => StoreKind::User,
        };
        let wanted = self.wanted()?;
        let audience = self.audience()?;
        // Without a list everybody may have it.
        let is_restricted = !audience.users.is_empty() || !audience.groups.is_empty();
        let store = self
            .writable_store(kind)
            .map_err(|error| Failure::of_store(&context, &error))?;
        signals::watch(&self.cancel);

        let label = name.as_ref().map_or_else(|| file.clone(), shown);
        let progress = Progress::new(&label, self.wishes());
        progress.phase(Phase::Reading);
        let request = Request {
            path: Path::new(file),
            format: self.options.source_format,
            select: self.options.select.as_deref(),
            wanted: &wanted,
            is_squashfs_allowed: kind == StoreKind::User || !self.is_for_somebody_else(),
        };
        let archive = Archive::open(&request, &store, &self.cancel);
        progress.clear();
        let failed = |error: ImportError| fail(&context, &error);
        let archive = archive.map_err(failed)?;
        let names = archive.names();
        if name.is_some() && names.len() > 1 {
            let count = names.len();
            let names = names.into_iter().flatten().collect();
            return Err(failed(ImportError::Several { count, names }));
        }
        let mut outcome = Outcome::default();
        let options = self.build_options(store.kind());
        for (number, own) in names.iter().enumerate() {
            if self.cancel.is_cancelled() {
                break;
            }
            let names = match &name {
                Some(name) => Ok(vec![name.clone()]),
                None => own_names(own, &self.config.type_rules()),
            };
            let first = names.as_ref().ok().and_then(|names| names.first().cloned());
            let done = names.map_err(failed).and_then(|names| {
                let target = Target {
                    names,
                    importer: audience.puller,
                    audience: is_restricted.then(|| audience.clone()),
                    options: options.clone(),
                };
                self.import_one(&archive, number, &store, &target, &context)
            });
            if let Err(failure) = done {
                outcome.add(self.report(first.as_ref(), &failure)?);
            }
        }
        Ok(outcome.code())
    }

    fn import_one(
        &self,
        archive: &Archive,
        number: usize,
        store: &Store,
        target: &Target,
        context: &str,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        let [first, ..] = &target.names[..] else {
            return Err(fail(context, &ImportError::NoName));
        };
        let progress = Progress::new(&first.canonical(), self.wishes());
        let watch = |step: ImportStep<'_>| match step {
            ImportStep::Waiting(holder) => progress.waiting(holder),
            ImportStep::Building => progress.phase(Phase::Building),
        };
        let imported = archive.import(number, store, target, &self.cancel, &watch);
        progress.clear();
        let imported = imported.map_err(|error| fail(context, &error))?;
        warn_of_left_out(&imported.left_out);
        for name in &target.names {
            self.tell(name, store, &imported, begin.elapsed().as_secs_f64())?;
        }
        Ok(())
    }

    fn tell(
        &self,
        name: &ImageRef,
        store: &Store,
        imported: &Imported,
        seconds: f64,
    ) -> Result<(), Failure> {
        let canonical = name.canonical();
        if !self.options.quiet {
            let id: String = imported.id.as_str().chars().take(12).collect();
            let size = megabytes(imported.size);
            let text = format!("imported {canonical} (id {id}, {size}, {seconds:.1} s)");
            output::result(&text);
        }
        if self.options.json {
            output::record(&DoneRecord {
                event: "done",
                reference: &canonical,
                image_type: name.image_type().as_str(),
                id: imported.id.as_str(),
                digest: imported.digest.as_ref().map(ToString::to_string),
                store: store.kind().as_str(),
                path: imported.path.display().to_string(),
                size: imported.size,
                new: imported.is_new,
            })?;
        }
        Ok(())
    }

    /// Parses the name that the image is to get.
    fn name(&self, text: &str) -> Result<ImageRef, Failure> {
        let name = self.reference(text)?;
        match name.image_type() {
            ImageType::Docker | ImageType::Custom | ImageType::Site(_) => Ok(name),
            other => {
                let message = format!(
                    "cannot import as '{}': images of the type '{other}' are not given names",
                    shown(&name)
                );
                Err(Failure::new(ExitCode::Usage, message)
                    .with_hint("shifter import FILE NAME[:TAG]".to_owned()))
            }
        }
    }

    /// Through sudo nobody opens files with the eyes of the store's owner.
    fn check_sudo(&self, file: &str) -> Result<(), Failure> {
        if !self.is_for_somebody_else() || file == "-" {
            return Ok(());
        }
        let message = "through sudo, an image is read from standard input only".to_owned();
        Err(Failure::new(ExitCode::Denied, message)
            .with_hint("sudo … shifterimg import - NAME < FILE".to_owned()))
    }

    /// True if somebody other than root uses the rights of the store's owner.
    fn is_for_somebody_else(&self) -> bool {
        self.caller.is_sudo && self.caller.sudo_uid != Some(0)
    }
}

fn fail(context: &str, error: &ImportError) -> Failure {
    let message = format!("{context}: {}", output::chain(error));
    Failure::new(error.exit_code(), message).with_hint(error.hint())
}

/// Turns the names that an archive has for an image into tags.
fn own_names(names: &[String], rules: &TypeRules<'_>) -> Result<Vec<ImageRef>, ImportError> {
    // A bare tag, as layouts often have, is no name; neither is a path or an id.
    let whole = names.iter().filter(|name| name.contains([':', '/']));
    let parsed = whole.map(|name| {
        ImageRef::parse(&format!("docker:{name}"), rules).map_err(|source| ImportError::Name {
            name: name.clone(),
            source,
        })
    });
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    match parsed.is_empty() {
        true => Err(ImportError::NoName),
        false => Ok(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_archives_become_tags() {
        let rules = TypeRules {
            default_type: "custom",
            site_types: &[],
        };
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            own_names(&names, &rules).map(|found| {
                let names = found.iter().map(ImageRef::canonical);
                names.collect::<Vec<_>>()
            })
        };
        assert_eq!(
            names(&["docker.io/library/x:1", "localhost/y:2"]).unwrap(),
            ["docker:x:1", "docker:localhost/y:2"]
        );
        assert!(matches!(names(&["latest"]), Err(ImportError::NoName)));
        assert!(matches!(names(&["../x:1"]), Err(ImportError::Name { .. })));
    }
}

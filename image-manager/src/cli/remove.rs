//! `rmi`: removing tags, and images with their last one.

use shifter_core::exit::ExitCode;

use super::failure::{Failure, shown};
use super::{Session, viewer};
use crate::store::{StoreError, StoreKind};

impl Session {
    /// Removes tags from the store that the user may change.
    pub(super) fn remove(&self) -> Result<ExitCode, Failure> {
        self.each(|reference| {
            let context = format!("cannot remove image '{}'", shown(reference));
            let fail = |error: StoreError| Failure::of_store(&context, &error);
            let viewer = viewer(&context)?;
            let mut is_foreign = false;
            for store in self.stores().map_err(fail)? {
                if store.kind() == StoreKind::Site && !self.is_image_owner() {
                    is_foreign |= store.lookup(reference, &viewer).map_err(fail)?.is_some();
                    continue;
                }
                let waiting = self.waiting();
                if let Some(removed) = store.remove(reference, &waiting).map_err(fail)? {
                    self.explain(|| match removed.image_removed {
                        true => format!("removed image {}", removed.id),
                        false => format!("removed a tag of image {}", removed.id),
                    });
                    return Ok(());
                }
            }
            if is_foreign {
                return Err(fail(StoreError::NotOwner {
                    owner: self.config.store.image_owner,
                }));
            }
            Err(Failure::new(
                ExitCode::Image,
                format!("{context}: there is no such image"),
            ))
        })
    }
}

//! What a set-up waits for, told beforehand to whoever may have to end it.
//!
//! A file system whose server has stopped holds whoever asks it for ever, and nothing but death ends
//! such a wait. Who then has to say what happened cannot ask the process any more.

use shifter_core::volmap::Volume;

use crate::error::Result;

/// What the steps that follow may wait for.
#[derive(Clone, Copy, Debug)]
pub enum Awaited<'a> {
    /// What belongs to the node or the site.
    Site,
    /// The source of a user's volume, or where it is to appear.
    Volume(&'a Volume),
}

/// Somebody who is told.
pub trait Watch {
    /// Says what is waited for from here on.
    ///
    /// # Errors
    /// Those of telling it.
    fn on(&self, awaited: Awaited<'_>) -> Result<()>;
}

/// Nobody, where no end is set to waiting.
pub struct Nobody;

impl Watch for Nobody {
    fn on(&self, _: Awaited<'_>) -> Result<()> {
        Ok(())
    }
}

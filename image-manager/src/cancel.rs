//! Asking work to stop: one flag that whoever started it raises and everything that takes time looks
//! at.
//!
//! Work that sees the flag gives back what it holds and returns; it never ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to stop, shared by all its copies.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// Says that work was stopped because it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

impl Cancel {
    /// Asks; cannot be taken back.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// True if the work is to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Fails if the work is to stop: `cancel.check()?` between two steps.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_hears() {
        let (one, other) = (Cancel::default(), Cancel::default());
        let copy = one.clone();
        assert_eq!(copy.check(), Ok(()));
        one.cancel();
        assert_eq!(copy.check(), Err(Cancelled));
        assert!(!other.is_cancelled());
    }
}

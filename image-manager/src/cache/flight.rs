//! A blob on its way: where its bytes are, how many there are, and how it ended.
//!
//! One [`Flight`] for each blob that this process wants. Whoever downloads (or watches another
//! process download) reports here; readers wait here. Bytes are in a file and never in memory.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const LOOK_UP: Duration = Duration::from_millis(200);

/// How much the bytes of a blob have been compared with its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// This process hashes them as it writes them.
    Hashed,
    /// Somebody else wrote them: who reads them compares.
    Unread,
}

/// How a blob ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All of it is there.
    Complete,
    /// It cannot be had; whoever downloads knows why.
    Failed,
    /// It was there and is not what its digest says.
    Damaged,
}

/// What is known of a blob at this moment.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// The file that the bytes are in, once there is one.
    pub file: Option<Arc<File>>,
    /// Bytes that can be read.
    pub available: u64,
    /// Who answers for them.
    pub trust: Trust,
    /// Counts how often the blob was begun again: what was read before is void then.
    pub round: u32,
    /// True while a thread of this process sees to it.
    pub is_tended: bool,
    /// The end, once there is one.
    pub end: Option<End>,
}

/// A blob on its way.
#[derive(Debug)]
pub(super) struct Flight {
    state: Mutex<State>,
    changed: Condvar,
}

impl Flight {
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                file: None,
                available: 0,
                trust: Trust::Unread,
                round: 0,
                is_tended: false,
                end: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is known now.
    pub fn now(&self) -> State {
        self.lock().clone()
    }

    /// Changes what is known and wakes everybody.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Names the file that holds the first `available` bytes. Another file than before begins the
    /// blob again.
    pub fn show(&self, file: &Arc<File>, available: u64, trust: Trust) {
        self.update(|state| {
            let is_same = state.file.as_ref().is_some_and(|old| same(old, file));
            if !is_same || available < state.available {
                if state.available > 0 {
                    state.round += 1;
                }
                state.file = Some(Arc::clone(file));
            }
            state.available = available;
            state.trust = trust;
        });
    }

    /// Ends the blob; readers that still wait hear of it.
    pub fn finish(&self, end: End) {
        self.update(|state| {
            state.end = Some(end);
            state.is_tended = false;
        });
    }

    /// Waits until `is_enough` is content, or the blob has ended.
    pub fn wait(&self, is_enough: impl Fn(&State) -> bool) -> State {
        let mut state = self.lock();
        while state.end.is_none() && !is_enough(&state) {
            // What makes it content may be something that tells nobody, such as a signal.
            let waited = self.changed.wait_timeout(state, LOOK_UP);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.clone()
    }
}

fn same(a: &Arc<File>, b: &Arc<File>) -> bool {
    let identity = |file: &File| rustix::fs::fstat(file).map(|found| (found.st_dev, found.st_ino));
    Arc::ptr_eq(a, b) || identity(a).is_ok_and(|a| identity(b).is_ok_and(|b| a == b))
}

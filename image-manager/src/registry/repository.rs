//! One repository, wherever it is: the mirrors in their order, then the registry itself.
//!
//! Owns which source is asked, and again, and which one next. The one that gave the manifest is
//! asked first for the rest; one that gave something wrong, last.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::address::Address;
use super::error::RegistryError;
use super::resolve::Access;
use super::retry::Tries;
use super::rules::Place;
use super::source::Source;
use super::{Event, Parts};

/// How often a pause looks whether the work is to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// One repository of one registry.
pub struct Repository<'a> {
    pub(super) parts: &'a Parts,
    /// Where its name says that it is.
    own: Place,
    sources: Vec<Source<'a>>,
    /// The sources by their numbers, the one to ask first at the front.
    order: Mutex<Vec<usize>>,
}

impl<'a> Repository<'a> {
    pub(super) fn new(parts: &'a Parts, own: Place, sources: Vec<Source<'a>>) -> Self {
        let order = Mutex::new((0..sources.len()).collect());
        Self {
            parts,
            own,
            sources,
            order,
        }
    }

    /// Returns its name with that of the registry: `docker.io/library/debian`. Mirrors give what the
    /// registry has and have no part in it.
    pub fn source(&self) -> String {
        format!("{}/{}", self.own.registry, self.own.repository)
    }

    /// Returns the registry's name: `docker.io`.
    pub fn registry(&self) -> &str {
        &self.own.registry
    }

    /// Returns where the registry itself is, mirrors or not.
    pub(super) fn base(&self) -> &Address {
        &self.own.base
    }

    /// Returns whether a login has been needed so far.
    pub fn access(&self) -> Access {
        match self.sources.iter().any(Source::uses_login) {
            true => Access::Private,
            false => Access::Public,
        }
    }

    /// Does something with the first source that can.
    pub(super) fn with_each<T>(
        &self,
        mut work: impl FnMut(&Source<'a>, &mut Tries) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let order = self.order().clone();
        let mut patience = self.parts.http.patience();
        let retries = patience.retries;
        for (at, number) in order.iter().enumerate() {
            let next = order.get(at + 1).and_then(|next| self.sources.get(*next));
            let Some(source) = self.sources.get(*number) else {
                continue;
            };
            // Where there is somebody else to ask, one more try is enough.
            patience.retries = match next {
                Some(_) => retries.min(1),
                None => retries,
            };
            let mut tries = Tries::new(patience);
            let error = match self.patiently(&mut tries, |tries| work(source, tries)) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if matches!(error, RegistryError::Forged { .. }) {
                self.distrust(*number);
            }
            match next {
                Some(next) if !error.is_final() => (self.parts.watch)(&Event::NextSource {
                    error: &error,
                    next: next.registry(),
                }),
                _ => return Err(error),
            }
        }
        Err(RegistryError::Interrupted)
    }

    /// Does something until it is done or no use.
    pub(super) fn patiently<T>(
        &self,
        tries: &mut Tries,
        mut work: impl FnMut(&mut Tries) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        loop {
            if (self.parts.stop)() {
                return Err(RegistryError::Interrupted);
            }
            let error = match work(tries) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let Some(pause) = tries.pause(&error) else {
                return Err(error);
            };
            (self.parts.watch)(&Event::Retry {
                error: &error,
                pause,
            });
            let until = Instant::now() + pause;
            while Instant::now() < until && !(self.parts.stop)() {
                std::thread::sleep(GLANCE.min(until.saturating_duration_since(Instant::now())));
            }
        }
    }

    /// Asks this source first from now on.
    pub(super) fn prefer(&self, number: usize) {
        let mut order = self.order();
        order.retain(|other| *other != number);
        order.insert(0, number);
    }

    /// Asks this source last from now on.
    pub(super) fn distrust(&self, number: usize) {
        let mut order = self.order();
        order.retain(|other| *other != number);
        order.push(number);
    }

    /// Returns the source that is asked first.
    fn first(&self) -> Option<&Source<'a>> {
        let number = *self.order().first()?;
        self.sources.get(number)
    }

    /// True if the source that is asked first wanted a login.
    pub(super) fn uses_login(&self) -> bool {
        self.first().is_some_and(Source::uses_login)
    }

    /// Returns an address for a message.
    pub(super) fn shown(&self, path: &str) -> String {
        let url = self.first().map(|source| source.url(path).to_string());
        url.unwrap_or_default()
    }

    fn order(&self) -> MutexGuard<'_, Vec<usize>> {
        // Nothing that holds the lock can panic.
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

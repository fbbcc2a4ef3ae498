//! What the nodes of a job tell each other through a directory on shared storage, so that one of them
//! alone has to ask the name service.
//!
//! ```text
//! <path>/                                  the owner's alone (0700), made by the site
//!   .swept                                 its mtime: when somebody last looked for what is old
//!   <cluster>/<job>.<restart>/             a job's state, complete from the moment it has this name
//!     passwd group manifest ...            each a line with a stamp, then the contents (0600)
//!   <cluster>/.claim-<job>.<restart>-<n>   who wants to write; the n-th took over from a silent one
//!   <cluster>/.reports-<word>/             what nodes report to the launch node of a fan-out
//!   <cluster>/.new-<word>  .old-<word>     being written, being removed; nobody reads these
//! ```
//!
//! A state is written under a name of its own and then renamed, and renamed away before it is
//! removed: whoever dies in between leaves nothing that has a job's name. Nothing is needed of the
//! file system but rename(2) and O_EXCL. All of it is done as the owner, for root may have no say
//! there (root_squash), and nothing is believed that does not agree with what the batch system says.
//!
//! The state makes a job's start cheaper and never decides whether it starts: see
//! [`SharedState::get_or_write`].

#![forbid(unsafe_code)]

mod contents;
mod dirs;
mod election;
mod error;
mod owner;
mod reports;
mod stamp;
mod state;
#[cfg(test)]
mod tests;

pub use self::contents::{Contents, GROUP, MANIFEST, PASSWD};
pub use self::election::{Answer, Source};
pub use self::error::{Error, Result, Rule};
pub use self::stamp::Key;
pub use self::state::{SharedState, Stream};

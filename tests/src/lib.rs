//! The test bench: a registry, a Slurm cluster and the installed product in a world of their own.
//!
//! Everything here acts on the machine as root and therefore runs only inside `tests/world.sh`.
//! The programs under test are used as a site would use them: installed by `make install`,
//! configured by files, run by ordinary users. Nothing here links to their code.

pub mod alps;
pub mod call;
pub mod cluster;
pub mod image;
pub mod job;
pub mod ldap;
pub mod mom;
pub mod product;
pub mod registry;
pub mod report;
pub mod sandbox;
pub mod shared;
pub mod skip;
pub mod snapshot;
pub mod syslog;
pub mod torque;
pub mod tree;
pub mod world;

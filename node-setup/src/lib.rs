//! The only code of Shifter that mounts: builds, joins and removes container roots on a node.
//!
//! Everything here is single-threaded: identities are per thread in the kernel.

pub mod caller;
pub mod child;
pub mod deadline;
pub mod drop;
pub mod error;
pub mod etc;
pub mod filesystem;
pub mod fsuser;
pub mod hooks;
pub mod host_image;
pub mod image;
pub mod inside;
pub mod job;
pub mod kmod;
pub mod known;
pub mod launch;
pub mod layer;
pub mod lookup;
pub mod loopdev;
pub mod mnt;
pub mod modules;
pub mod namespace;
pub mod node_cache;
pub mod options;
pub mod out;
pub mod patience;
pub mod prepared;
pub mod private_dirs;
pub mod process;
pub mod root;
pub mod rootless;
pub mod run;
pub mod scratch;
pub mod squashfuse;
pub mod ssh;
pub mod state;
pub mod strays;
pub mod superblock;
pub mod sys;
pub mod task;
pub mod volumes;
pub mod watch;

//! ssh between the nodes of a job: what is placed at `/opt/udiImage` in every container.
//!
//! Runs as the user and as nobody else, without any privilege; what it decides on comes from
//! files that root has placed in the container and no user can change.
#![forbid(unsafe_code)]

pub mod client;
pub mod client_config;
pub mod connection;
pub mod keys;
pub mod options;
pub mod server;
pub mod session;
pub mod sftp;
pub mod terms;
pub mod wire;

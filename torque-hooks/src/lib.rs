//! The hooks that Torque, OpenPBS and ALPS run around a job.
//!
//! ```text
//! launch node   prologue: call ─▶ decide ─▶ qstat ─▶ request ─▶ user and image looked up once ─▶ record
//!                           ─▶ shared state ─▶ fan-out ─▶ report            epilogue: record ─▶ fan-out
//! every node    shifter-node: manifest ─▶ setupRoot        unsetupRoot
//! ```
//!
//! Nothing here mounts; no thread is started, and no shell. What a user wrote is data: it is never
//! part of a command but as one argument of the image manager, and never looked for in text.
#![forbid(unsafe_code)]

pub mod apstat;
pub mod call;
pub mod clean;
pub mod epilogue;
pub mod facts;
pub mod fanout;
pub mod gres;
pub mod guard;
pub mod hook;
pub mod host;
pub mod left;
pub mod node;
pub mod nodes;
pub mod outside;
pub mod prologue;
pub mod qstat;
pub mod report;
pub mod request;
pub mod resolve;
pub mod say;
pub mod service_cli;
pub mod services;
pub mod shared;
pub mod shiftrun;
pub mod site;
pub mod state;
pub mod submit;
pub mod variables;
pub mod words;

//! Pure data and rules shared by every part of Shifter.
//!
//! Nothing here mounts, forks or talks to the network; the only I/O is reading a
//! file that the caller names ([`trusted`]). Parsers take text or bytes and return values that
//! cannot be wrong; one thin function next to them reads the file.
#![forbid(unsafe_code)]

pub mod calendar;
pub mod cdi;
pub mod chain;
pub mod config;
pub mod elf;
pub mod env;
pub mod exit;
pub mod hostlist;
pub mod identity;
pub mod ids;
pub mod layout;
pub mod manifest;
pub mod meta;
pub mod pattern;
pub mod reference;
pub mod sanitize;
pub mod small;
pub mod ssh;
pub mod store;
pub mod trusted;
pub mod volmap;

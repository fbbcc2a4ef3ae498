//! The tools of a site's administrators; none of them has or needs a privilege.
//!
//! - `shifter-config import` turns a C Shifter's `udiRoot.conf` into a `shifter.toml`;
//!   `shifter-config check` judges a `shifter.toml` and what it names.
//! - `shifter doctor` judges a whole node.
//! - `shifter ps` lists the containers on a node.
//!
//! Nothing here changes a file but the one that `--output` names. What users control is read with
//! a size limit and without waiting, and is made safe before it is printed.
#![forbid(unsafe_code)]

pub mod config_cli;
pub mod doctor;
pub mod finding;
pub mod import;
pub mod judge;
mod look;
mod output;
pub mod ps;

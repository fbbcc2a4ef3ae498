//! Registry client and image store: everything about images that needs no privilege.
//!
//! Layer blobs become one squashfs file without a tree on disk: [`layer`] lists what a blob
//! contains, [`merge`] decides what survives, [`squashfs_writer`] writes it, [`build`] puts the three
//! together. [`pull`] fetches the blobs with [`registry`] into the [`cache`] and publishes the image in
//! a [`store`]; [`cli`] is the program `shifterimg`.
#![forbid(unsafe_code)]

pub mod build;
pub mod cache;
pub mod cancel;
pub mod cli;
mod files;
pub mod hash;
pub mod image_config;
pub mod image_options;
pub mod import;
pub mod layer;
pub mod merge;
pub mod pull;
pub mod registry;
pub mod store;

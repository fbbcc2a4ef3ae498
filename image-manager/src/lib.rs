//! Registry client, image store and squashfs writer: everything about images that needs no privilege.
//!
//! Layer blobs become one squashfs file without a tree on disk: [`layer`] lists what a blob
//! contains, [`merge`] decides what survives, [`squashfs`] writes it, [`build`] puts the three
//! together.
#![forbid(unsafe_code)]

pub mod build;
pub mod layer;
pub mod merge;
pub mod squashfs;

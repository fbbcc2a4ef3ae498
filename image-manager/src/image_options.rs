//! What the site's configuration says about the form of new images.

use crate::build::BuildOptions;
use crate::store::StoreKind;
use shifter_core::config::{self, ImageFormat};
use squashfs_writer as squashfs;

/// Turns the site's settings into those of a build for a store of this kind. Only the kernel mounts erofs,
/// and it mounts nothing of users' own.
pub fn of_site(store: &config::Store, kind: StoreKind) -> BuildOptions {
    let defaults = squashfs::Options::default();
    let format = match (store.format, kind) {
        (ImageFormat::Erofs, StoreKind::Site) => squashfs::Format::Erofs,
        (ImageFormat::Squashfs, _) | (_, StoreKind::User) => squashfs::Format::Squashfs,
    };
    let squashfs = squashfs::Options {
        format,
        // A configuration with anything else is refused when it is read.
        compression: store.compression.parse().unwrap_or(defaults.compression),
        block_size: store.block_bytes().unwrap_or(defaults.block_size),
        ..defaults
    };
    BuildOptions {
        squashfs,
        ..BuildOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shifter_core::config::Config;
    use squashfs_writer::Compression;
    use std::path::Path;

    fn site(text: &str) -> Option<squashfs::Options> {
        let config = Config::parse(&format!("[store]\n{text}"), Path::new("/x")).ok()?;
        Some(of_site(&config.store, StoreKind::Site).squashfs)
    }

    #[test]
    fn a_site_that_says_nothing_has_the_writers_defaults() {
        assert_eq!(site(""), Some(squashfs::Options::default()));
    }

    #[test]
    fn only_the_site_store_has_erofs() {
        let config = Config::parse("[store]\nformat = 'erofs'", Path::new("/x")).unwrap();
        for (kind, format) in [
            (StoreKind::Site, squashfs::Format::Erofs),
            (StoreKind::User, squashfs::Format::Squashfs),
        ] {
            assert_eq!(of_site(&config.store, kind).squashfs.format, format);
        }
    }

    #[test]
    fn the_configuration_knows_the_writers_compressors() {
        let texts = ["zstd", "gzip", "xz", "lz4", "none", "zip", ""];
        for text in texts {
            for level in (0..25).map(Some).chain([None]) {
                let text = level.map_or(text.into(), |level: u8| format!("{text}:{level}"));
                let options = site(&format!("compression = '{text}'\nblock_size = '64k'"));
                match text.parse::<Compression>() {
                    // Not compressing at all is for those who use the writer.
                    Ok(Compression::None) | Err(_) => assert_eq!(options, None, "{text}"),
                    Ok(compression) => {
                        let options = options.unwrap();
                        assert_eq!(
                            (options.compression, options.block_size),
                            (compression, 65536)
                        );
                    }
                }
            }
        }
    }
}

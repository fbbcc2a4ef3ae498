//! Reading the configuration: the site's, or a file that the user named.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use shifter_core::config::{Config, ConfigError, DEFAULT_PATH};
use shifter_core::exit::ExitCode;
use shifter_core::sanitize;

use super::failure::Failure;
use super::output;

const LIMIT: u64 = 1 << 20;

/// Reads the site's configuration, or the file that the user named.
pub(super) fn read(named: Option<&Path>, uid: u32) -> Result<Config, Failure> {
    match named {
        Some(path) => read_named(path, uid),
        None => Config::open_trusted(Path::new(DEFAULT_PATH))
            .map_err(|error| Failure::internal(output::chain(&error))),
    }
}

/// Reads a configuration that the user named. It steers only this user's own process, so it may be
/// the user's own file; what is root's is checked when the runtime reads it.
fn read_named(path: &Path, uid: u32) -> Result<Config, Failure> {
    Config::parse(&read_text(path, uid)?, path).map_err(|error: ConfigError| {
        Failure::new(
            ExitCode::Usage,
            output::chain(&error as &(dyn Error + 'static)),
        )
    })
}

/// Reads a file of settings that is root's or the user's and that nobody else can write.
pub(super) fn read_text(path: &Path, uid: u32) -> Result<String, Failure> {
    let fail = |reason: String| {
        let path = sanitize::text(&path.display().to_string());
        Failure::new(ExitCode::Usage, format!("cannot read '{path}': {reason}"))
    };
    let read = || -> io::Result<Vec<u8>> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || ![0, uid].contains(&meta.uid()) || meta.mode() & 0o022 != 0 {
            let rule = "it must be a file of root or yours that nobody else can write";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, rule));
        }
        let mut bytes = Vec::new();
        file.take(LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT {
            let rule = format!("it has more than {LIMIT} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, rule));
        }
        Ok(bytes)
    };
    let bytes = read().map_err(|error| fail(output::chain(&error)))?;
    String::from_utf8(bytes).map_err(|_| fail("it is not UTF-8 text".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        let uid = rustix::process::geteuid().as_raw();
        let limit = usize::try_from(LIMIT).unwrap();
        std::fs::write(&path, "#".repeat(limit)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
        assert_eq!(read_text(&path, uid).unwrap().len(), limit);
        std::fs::write(&path, "#".repeat(limit + 1)).unwrap();
        let refused = read_text(&path, uid).unwrap_err();
        assert_eq!(refused.code, ExitCode::Usage);
        assert!(refused.message.contains("more than"), "{}", refused.message);
    }
}

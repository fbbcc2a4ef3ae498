//! What the user gave: opened once, recognised by its content, and readable at any place.
//!
//! Standard input and compressed archives of images are copied into a file of the cache that has no
//! name any more; everything else is read where it is. Nothing is unpacked.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use super::SourceFormat;
use super::error::{ImportError, Unsupported};
use super::names::{Vocabulary, is_list, is_of_root, vocabulary};
use super::section::{Section, Stamp};
use crate::cancel::Cancel;
use crate::files;
use crate::layer::{Limits, Members, is_archive};
use crate::store::{Store, StoreError, is_full};

/// Bytes at the beginning that decide what it is.
const HEAD: usize = 64 << 10;
const PIECE: usize = 1 << 20;
/// 128 MiB, as for layers.
const ZSTD_WINDOW_LOG: u32 = 27;

/// An opened image file.
#[derive(Debug)]
pub(super) enum Input {
    /// The directory of an OCI layout.
    Layout(OwnedFd),
    /// An archive of images, uncompressed.
    Archive(Section),
    /// A root file system, compressed or not.
    RootFs(Section),
    /// A squashfs file.
    Squashfs(Section),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Input {
    /// Opens `path`, or standard input if it is `-`.
    pub fn open(
        path: &Path,
        wanted: Option<SourceFormat>,
        store: &Store,
        cancel: &Cancel,
    ) -> Result<Self, ImportError> {
        if path == Path::new("-") {
            return Self::from_stream(io::stdin(), wanted, store, cancel);
        }
        let fail = |source: io::Error| ImportError::Open {
            path: path.to_owned(),
            source,
        };
        let opened = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| fail(error.into()))?;
        let found = rustix::fs::fstat(&opened).map_err(|error| fail(error.into()))?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => Self::from_directory(opened, wanted),
            FileType::RegularFile => {
                let file = Section::whole(File::from(opened)).map_err(ImportError::Read)?;
                Self::from_file(file, wanted, store, cancel)
            }
            // Process substitution of a shell, and named pipes.
            FileType::Fifo => {
                // Opened again, to wait for the writer.
                let file = File::open(path).map_err(fail)?;
                Self::from_stream(file, wanted, store, cancel)
            }
            _ => Err(ImportError::Unsupported(Unsupported::Special)),
        }
    }

    /// Tells whether what it was read from is as it was.
    pub fn stamp(&self) -> Result<Option<Stamp>, ImportError> {
        match self {
            // Its files are compared with their digests.
            Self::Layout(_) => Ok(None),
            Self::Archive(file) | Self::RootFs(file) | Self::Squashfs(file) => {
                file.stamp().map(Some).map_err(ImportError::Read)
            }
        }
    }

    fn from_directory(dir: OwnedFd, wanted: Option<SourceFormat>) -> Result<Self, ImportError> {
        let is_layout = files::size(&dir, "index.json").is_some();
        match wanted {
            None | Some(SourceFormat::OciLayout) if is_layout => Ok(Self::Layout(dir)),
            None => Err(ImportError::Unsupported(Unsupported::Directory)),
            Some(format) => Err(ImportError::NotThat(format.described())),
        }
    }

    fn from_stream(
        mut stream: impl Read,
        wanted: Option<SourceFormat>,
        store: &Store,
        cancel: &Cancel,
    ) -> Result<Self, ImportError> {
        let mut head = Vec::with_capacity(HEAD);
        (&mut stream)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(ImportError::Read)?;
        // Fails before anything is copied.
        let kind = recognise(&head, wanted)?;
        let rest = Cursor::new(head).chain(stream);
        let mut spool = Spool::new(store, cancel)?;
        match kind {
            (Kind::Archive, packing) if packing != Packing::Plain => spool.unpack(rest, packing)?,
            _ => spool.copy(rest, || Limits::default().bytes)?,
        }
        let file = spool.finish()?;
        match kind {
            (Kind::Squashfs, _) => Ok(Self::Squashfs(file)),
            (Kind::RootFs, _) => Ok(Self::RootFs(file)),
            (Kind::Archive, _) => Ok(Self::Archive(file)),
        }
    }

    fn from_file(
        file: Section,
        wanted: Option<SourceFormat>,
        store: &Store,
        cancel: &Cancel,
    ) -> Result<Self, ImportError> {
        let head = file.part(0, HEAD as u64).bytes(HEAD as u64);
        let head = head.map_err(ImportError::Read)?.unwrap_or_default();
        match recognise(&head, wanted)? {
            (Kind::Squashfs, _) => Ok(Self::Squashfs(file)),
            (Kind::RootFs, _) => Ok(Self::RootFs(file)),
            (Kind::Archive, Packing::Plain) => Ok(Self::Archive(file)),
            (Kind::Archive, packing) => {
                let mut spool = Spool::new(store, cancel)?;
                spool.unpack(file.reader(), packing)?;
                Ok(Self::Archive(spool.finish()?))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Archive,
    RootFs,
    Squashfs,
}

/// Decides by the first bytes, and by the names that an archive begins with.
fn recognise(head: &[u8], wanted: Option<SourceFormat>) -> Result<(Kind, Packing), ImportError> {
    let unsupported = |what| Err(ImportError::Unsupported(what));
    let agrees = |kind: Kind| match wanted {
        None => true,
        Some(SourceFormat::Squashfs) => kind == Kind::Squashfs,
        Some(SourceFormat::OciLayout) => false,
        Some(_) => kind != Kind::Squashfs,
    };
    let packing = match head {
        [] => return unsupported(Unsupported::Empty),
        [b'h', b's', b'q', b's', ..] if agrees(Kind::Squashfs) => {
            return Ok((Kind::Squashfs, Packing::Plain));
        }
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return unsupported(Unsupported::Xz),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => return unsupported(Unsupported::Bzip2),
        _ if head
            .get(32..)
            .is_some_and(|rest| rest.starts_with(b"SIF_MAGIC")) =>
        {
            return unsupported(Unsupported::Sif);
        }
        _ => Packing::Plain,
    };
    let start = match packing {
        Packing::Plain => head.to_vec(),
        // What is there of it; the rest is not here yet.
        _ => {
            let mut start = Vec::new();
            let decoder = decoder(head, packing).map_err(ImportError::Read)?;
            let _ends_early = decoder.take(HEAD as u64).read_to_end(&mut start);
            start
        }
    };
    // An archive without entries begins with an empty block.
    let is_empty_archive = start.len() >= 512 && start.iter().take(512).all(|byte| *byte == 0);
    if !is_archive(&start) && !is_empty_archive {
        let what = match packing {
            Packing::Plain => Unsupported::Unknown,
            _ => Unsupported::Packed,
        };
        return match wanted {
            Some(format) if packing == Packing::Plain => {
                Err(ImportError::NotThat(format.described()))
            }
            _ => unsupported(what),
        };
    }
    match wanted {
        Some(SourceFormat::DockerArchive | SourceFormat::OciArchive) => {
            Ok((Kind::Archive, packing))
        }
        Some(SourceFormat::Tar) => Ok((Kind::RootFs, packing)),
        Some(format) => Err(ImportError::NotThat(format.described())),
        None if begins_like_images(&start) => Ok((Kind::Archive, packing)),
        None => Ok((Kind::RootFs, packing)),
    }
}

/// True if the first names are those of an archive of images, or if there is a list of images among
/// them and nothing of a root file system: other names may be any that the list has.
fn begins_like_images(start: &[u8]) -> bool {
    // The archive goes on behind what is here.
    let Ok(mut members) = Members::new(Cursor::new(start), u64::MAX) else {
        return false;
    };
    let (mut is_like, mut is_foreign, mut has_list, mut has_root) = (false, false, false, false);
    while let Ok(Some(member)) = members.next_member() {
        has_list |= is_list(&member.name);
        has_root |= is_of_root(&member.name);
        match vocabulary(&member.name) {
            Vocabulary::Neutral => {}
            Vocabulary::Images => is_like = true,
            Vocabulary::Other => is_foreign = true,
        }
    }
    is_like && !is_foreign || has_list && !has_root
}

fn decoder<'a>(source: impl Read + 'a, packing: Packing) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match packing {
        Packing::Plain => Box::new(source),
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(source)),
        Packing::Zstd => {
            let mut decoder = zstd::Decoder::new(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// A file of the cache that nobody else sees.
struct Spool<'a> {
    file: File,
    path: PathBuf,
    written: u64,
    cancel: &'a Cancel,
}

impl<'a> Spool<'a> {
    fn new(store: &Store, cancel: &'a Cancel) -> Result<Self, ImportError> {
        let (dir, path) = store.cache_dir()?;
        let name = format!(".tmp-import-{}", std::process::id());
        // Without a name from here on: a kill leaves nothing.
        let made = files::create(&dir, &name).and_then(|file| {
            files::remove(&dir, &name)?;
            Ok(file)
        });
        Ok(Self {
            file: made.map_err(StoreError::io("write to", &path))?,
            path,
            written: 0,
            cancel,
        })
    }

    fn unpack(&mut self, source: impl Read, packing: Packing) -> Result<(), ImportError> {
        let limits = Limits::default();
        let packed = Cell::new(0);
        let counted = Counted {
            inner: source,
            count: &packed,
        };
        let decoder = decoder(counted, packing).map_err(ImportError::Read)?;
        // A small archive must not fill the disk.
        self.copy(decoder, || {
            let by_ratio = packed.get().saturating_mul(limits.ratio);
            limits.bytes.min(by_ratio.saturating_add(limits.free_bytes))
        })
    }

    fn copy(&mut self, mut source: impl Read, limit: impl Fn() -> u64) -> Result<(), ImportError> {
        let mut piece = vec![0; PIECE];
        loop {
            self.cancel.check()?;
            let count = source.read(&mut piece).map_err(ImportError::Read)?;
            if count == 0 {
                return Ok(());
            }
            self.written += count as u64;
            if self.written > limit() {
                let (limit, what) = (limit(), "bytes");
                return Err(ImportError::Beyond { limit, what });
            }
            self.file
                .write_all(&piece[..count])
                .map_err(|error| self.failed(error))?;
        }
    }

    fn failed(&self, error: io::Error) -> ImportError {
        let dir = self.path.clone();
        ImportError::Store(match is_full(&error) {
            true => StoreError::Full {
                dir,
                need: self.written,
                free: None,
            },
            false => StoreError::io("write to", &dir)(error),
        })
    }

    fn finish(self) -> Result<Section, ImportError> {
        Section::whole(self.file).map_err(ImportError::Read)
    }
}

struct Counted<'a, R> {
    inner: R,
    count: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

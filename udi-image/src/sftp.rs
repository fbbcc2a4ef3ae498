//! The file server behind scp and sftp: version 3 of the protocol, as OpenSSH speaks it.
//!
//! A program of its own, as the user, that reads requests from its standard input and answers on
//! its standard output; it may do what the user may do and decides nothing. Names are bytes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions, ReadDir};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use shifter_core::calendar;

use crate::wire::{Attributes, Malformed, Reader, Writer, read_packet};

/// Files and directories that a client may have open.
const HANDLES: usize = 256;

/// Bytes that are read at most for one request.
const READ_LIMIT: u32 = 255 << 10;

/// Bytes of names in one answer.
const NAMES_LIMIT: usize = 64 << 10;

/// Extensions beside those of the protocol.
const EXTENSIONS: [(&[u8], &[u8]); 3] = [
    (b"posix-rename@openssh.com", b"1"),
    (b"hardlink@openssh.com", b"1"),
    (b"fsync@openssh.com", b"1"),
];

mod kind {
    pub const INIT: u8 = 1;
    pub const VERSION: u8 = 2;
    pub const OPEN: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const READ: u8 = 5;
    pub const WRITE: u8 = 6;
    pub const LSTAT: u8 = 7;
    pub const FSTAT: u8 = 8;
    pub const SETSTAT: u8 = 9;
    pub const FSETSTAT: u8 = 10;
    pub const OPENDIR: u8 = 11;
    pub const READDIR: u8 = 12;
    pub const REMOVE: u8 = 13;
    pub const MKDIR: u8 = 14;
    pub const RMDIR: u8 = 15;
    pub const REALPATH: u8 = 16;
    pub const STAT: u8 = 17;
    pub const RENAME: u8 = 18;
    pub const READLINK: u8 = 19;
    pub const SYMLINK: u8 = 20;
    pub const STATUS: u8 = 101;
    pub const HANDLE: u8 = 102;
    pub const DATA: u8 = 103;
    pub const NAME: u8 = 104;
    pub const ATTRS: u8 = 105;
    pub const EXTENDED: u8 = 200;
}

/// Why a request was not done.
enum Refusal {
    /// The end of a file or directory.
    End,
    /// What the operating system says.
    Os(io::Error),
    /// The request makes no sense.
    Malformed,
    /// The protocol knows it and we do not.
    Unsupported,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Os(error)
    }
}

impl From<Malformed> for Refusal {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Refusal {
    fn code(&self) -> u32 {
        match self {
            Self::End => 1,
            Self::Os(error) if error.kind() == ErrorKind::NotFound => 2,
            Self::Os(error) if error.kind() == ErrorKind::PermissionDenied => 3,
            Self::Os(_) => 4,
            Self::Malformed => 5,
            Self::Unsupported => 8,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::End => "end of file".into(),
            Self::Os(error) => error.to_string(),
            Self::Malformed => "bad message".into(),
            Self::Unsupported => "operation unsupported".into(),
        }
    }
}

/// Something that a client has open.
enum Open {
    File { file: File, is_appending: bool },
    Dir { path: PathBuf, entries: ReadDir },
}

/// A client's session.
#[derive(Default)]
pub struct Server {
    open: HashMap<u32, Open>,
    next: u32,
}

/// Serves until the input ends.
///
/// # Errors
/// As for read(2) and write(2), and where the input is none of the protocol's.
pub fn serve(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut server = Server::default();
    while let Some(packet) = read_packet(input)? {
        output.write_all(&server.answer(&packet)?)?;
        output.flush()?;
    }
    Ok(())
}

impl Server {
    /// Answers one packet.
    ///
    /// # Errors
    /// A packet without a number cannot be answered.
    pub fn answer(&mut self, packet: &[u8]) -> io::Result<Vec<u8>> {
        let mut reader = Reader(packet);
        let garbled = |Malformed| io::Error::from(ErrorKind::InvalidData);
        let request = reader.byte().map_err(garbled)?;
        let id = reader.number().map_err(garbled)?;
        if request == kind::INIT {
            // In the place of the id stands the client's version.
            let answer = Writer::new(kind::VERSION).number(3);
            let answer = EXTENSIONS
                .iter()
                .fold(answer, |a, (name, value)| a.string(name).string(value));
            return Ok(answer.finish());
        }
        let answer = self.act(request, reader, id);
        Ok(answer
            .unwrap_or_else(|refusal| status(id, &refusal))
            .finish())
    }

    fn act(&mut self, request: u8, mut reader: Reader<'_>, id: u32) -> Result<Writer, Refusal> {
        let reader = &mut reader;
        match request {
            kind::OPEN => return self.open_file(reader, id),
            kind::OPENDIR => {
                let path = path(reader)?;
                let entries = fs::read_dir(&path)?;
                return self.keep(Open::Dir { path, entries }, id);
            }
            kind::CLOSE => {
                let handle = handle(reader)?;
                self.open.remove(&handle).ok_or(Refusal::Malformed)?;
            }
            kind::READ => return self.read(reader, id),
            kind::WRITE => self.write(reader)?,
            kind::STAT => return Ok(attrs(id, &fs::metadata(path(reader)?)?)),
            kind::LSTAT => return Ok(attrs(id, &fs::symlink_metadata(path(reader)?)?)),
            kind::FSTAT => return Ok(attrs(id, &self.file(reader)?.0.metadata()?)),
            kind::SETSTAT => {
                let path = path(reader)?;
                change_path(&path, &reader.attributes()?)?;
            }
            kind::FSETSTAT => {
                let file = self.file(reader)?.0.try_clone()?;
                change_file(&file, &reader.attributes()?)?;
            }
            kind::READDIR => return self.read_dir(reader, id),
            kind::REMOVE => fs::remove_file(path(reader)?)?,
            kind::MKDIR => {
                let path = path(reader)?;
                let mode = reader.attributes()?.mode;
                let mut builder = fs::DirBuilder::new();
                let mode = mode.unwrap_or(0o777) & 0o7777;
                std::os::unix::fs::DirBuilderExt::mode(&mut builder, mode);
                builder.create(path)?;
            }
            kind::RMDIR => fs::remove_dir(path(reader)?)?,
            kind::REALPATH => {
                let name = real_path(&path(reader)?)?;
                let name = name.as_os_str().as_bytes();
                let none = Attributes::default();
                let answer = Writer::new(kind::NAME).number(id).number(1);
                return Ok(answer.string(name).string(name).attributes(&none));
            }
            kind::RENAME => {
                let (from, to) = (path(reader)?, path(reader)?);
                // The protocol's own way does not replace what is there.
                let flags = rustix::fs::RenameFlags::NOREPLACE;
                match rustix::fs::renameat_with(CWD, &from, CWD, &to, flags) {
                    Err(rustix::io::Errno::INVAL) if fs::symlink_metadata(&to).is_err() => {
                        fs::rename(from, to)?;
                    }
                    done => done.map_err(io::Error::from)?,
                }
            }
            kind::READLINK => {
                let target = fs::read_link(path(reader)?)?;
                let target = target.as_os_str().as_bytes();
                let none = Attributes::default();
                let answer = Writer::new(kind::NAME).number(id).number(1);
                return Ok(answer.string(target).string(target).attributes(&none));
            }
            kind::SYMLINK => {
                // The draft has them the other way round; OpenSSH has not, and so has nobody.
                let (target, link) = (path(reader)?, path(reader)?);
                std::os::unix::fs::symlink(target, link)?;
            }
            kind::EXTENDED => self.extended(reader)?,
            _ => return Err(Refusal::Unsupported),
        }
        Ok(done(id))
    }

    fn extended(&mut self, reader: &mut Reader<'_>) -> Result<(), Refusal> {
        match reader.string()? {
            b"posix-rename@openssh.com" => Ok(fs::rename(path(reader)?, path(reader)?)?),
            b"hardlink@openssh.com" => Ok(fs::hard_link(path(reader)?, path(reader)?)?),
            b"fsync@openssh.com" => Ok(self.file(reader)?.0.sync_all()?),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn keep(&mut self, open: Open, id: u32) -> Result<Writer, Refusal> {
        if self.open.len() >= HANDLES {
            return Err(
                io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()).into(),
            );
        }
        // A number that is still in use is that of another 4294967295 opens ago.
        while self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.open.insert(number, open);
        let answer = Writer::new(kind::HANDLE).number(id);
        Ok(answer.string(&number.to_be_bytes()))
    }

    fn open_file(&mut self, reader: &mut Reader<'_>, id: u32) -> Result<Writer, Refusal> {
        let path = path(reader)?;
        let flags = reader.number()?;
        let mode = reader.attributes()?.mode.unwrap_or(0o666);
        let is = |flag: u32| flags & flag != 0;
        let (read, write, append, create, truncate, new) =
            (is(1), is(2), is(4), is(8), is(16), is(32));
        let mut options = OpenOptions::new();
        options
            .read(read)
            .write(write && !append)
            .append(write && append)
            .truncate(write && truncate && !append)
            .create(write && create)
            .create_new(write && create && new)
            .mode(mode & 0o7777);
        let file = options.open(&path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::from(ErrorKind::IsADirectory).into());
        }
        // The standard library refuses the two together; the protocol does not.
        if write && truncate && append {
            file.set_len(0)?;
        }
        let is_appending = append;
        self.keep(Open::File { file, is_appending }, id)
    }

    fn file(&self, reader: &mut Reader<'_>) -> Result<(&File, bool), Refusal> {
        match self.open.get(&handle(reader)?) {
            Some(Open::File { file, is_appending }) => Ok((file, *is_appending)),
            _ => Err(Refusal::Malformed),
        }
    }

    fn read(&self, reader: &mut Reader<'_>, id: u32) -> Result<Writer, Refusal> {
        let (file, _) = self.file(reader)?;
        let offset = reader.long()?;
        let mut block = vec![0; reader.number()?.min(READ_LIMIT) as usize];
        let count = file.read_at(&mut block, offset)?;
        if count == 0 && !block.is_empty() {
            return Err(Refusal::End);
        }
        let block = block.get(..count).unwrap_or_default();
        Ok(Writer::new(kind::DATA).number(id).string(block))
    }

    fn write(&self, reader: &mut Reader<'_>) -> Result<(), Refusal> {
        let (mut file, is_appending) = self.file(reader)?;
        let offset = reader.long()?;
        let data = reader.string()?;
        if is_appending {
            file.write_all(data)?;
        } else {
            file.write_all_at(data, offset)?;
        }
        Ok(())
    }

    fn read_dir(&mut self, reader: &mut Reader<'_>, id: u32) -> Result<Writer, Refusal> {
        let Some(Open::Dir { path, entries }) = self.open.get_mut(&handle(reader)?) else {
            return Err(Refusal::Malformed);
        };
        let (mut names, mut count) = (Writer::new(kind::NAME), 0);
        for entry in entries {
            let name = entry?.file_name();
            // Gone since, or nobody's to look at: its name is all there is to tell.
            let meta = fs::symlink_metadata(path.join(&name)).ok();
            let attributes = meta.as_ref().map(attributes).unwrap_or_default();
            names = names
                .string(name.as_bytes())
                .string(&long_name(&name, meta.as_ref()))
                .attributes(&attributes);
            count += 1;
            if names.len() > NAMES_LIMIT {
                break;
            }
        }
        if count == 0 {
            return Err(Refusal::End);
        }
        let answer = Writer::new(kind::NAME).number(id).number(count);
        Ok(answer.append(&names))
    }
}

fn done(id: u32) -> Writer {
    let answer = Writer::new(kind::STATUS).number(id).number(0);
    answer.string(b"").string(b"")
}

fn status(id: u32, refusal: &Refusal) -> Writer {
    let answer = Writer::new(kind::STATUS).number(id).number(refusal.code());
    answer.string(refusal.text().as_bytes()).string(b"")
}

fn attrs(id: u32, meta: &Metadata) -> Writer {
    Writer::new(kind::ATTRS)
        .number(id)
        .attributes(&attributes(meta))
}

/// Takes a path; no path is the working directory.
fn path(reader: &mut Reader<'_>) -> Result<PathBuf, Refusal> {
    Ok(match reader.string()? {
        b"" => ".".into(),
        bytes => OsStr::from_bytes(bytes).into(),
    })
}

fn handle(reader: &mut Reader<'_>) -> Result<u32, Refusal> {
    let bytes: [u8; 4] = reader.string()?.try_into().map_err(|_| Malformed)?;
    Ok(u32::from_be_bytes(bytes))
}

/// Resolves a path whose last component need not exist.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = match path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => return Err(error),
            };
            let name = path.file_name().ok_or(error)?;
            Ok(fs::canonicalize(parent)?.join(name))
        }
        resolved => resolved,
    }
}

fn attributes(meta: &Metadata) -> Attributes {
    // The protocol's times end in 2106.
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    Attributes {
        size: Some(meta.size()),
        owner: Some((meta.uid(), meta.gid())),
        mode: Some(meta.mode()),
        times: Some((seconds(meta.atime()), seconds(meta.mtime()))),
    }
}

fn timestamps((access, change): (u32, u32)) -> Timestamps {
    let time = |seconds: u32| Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time(access),
        last_modification: time(change),
    }
}

fn change_path(path: &Path, change: &Attributes) -> io::Result<()> {
    if let Some(size) = change.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some(mode) = change.mode {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = change.times {
        rustix::fs::utimensat(CWD, path, &timestamps(times), AtFlags::empty())?;
    }
    if let Some((uid, gid)) = change.owner {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn change_file(file: &File, change: &Attributes) -> io::Result<()> {
    if let Some(size) = change.size {
        file.set_len(size)?;
    }
    if let Some(mode) = change.mode {
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = change.times {
        rustix::fs::futimens(file, &timestamps(times))?;
    }
    if let Some((uid, gid)) = change.owner {
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Describes a file as `ls -ln` would, for people: no program reads it.
fn long_name(name: &OsStr, meta: Option<&Metadata>) -> Vec<u8> {
    let Some(meta) = meta else {
        return name.as_bytes().to_vec();
    };
    let mode = meta.mode();
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let bits = (0..9).rev().zip("rwxrwxrwx".chars());
    let bits = bits.map(|(bit, letter)| if mode >> bit & 1 == 1 { letter } else { '-' });
    let mut text: String = std::iter::once(kind).chain(bits).collect();
    let (links, uid, gid, size) = (meta.nlink(), meta.uid(), meta.gid(), meta.size());
    text += &format!(
        " {links:4} {uid:<8} {gid:<8} {size:>8} {} ",
        date(meta.mtime())
    );
    let mut line = text.into_bytes();
    line.extend(name.as_bytes());
    line
}

/// Writes the day of a time, in UTC.
fn date(seconds: i64) -> String {
    let (year, month, day) = calendar::date(seconds);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests;

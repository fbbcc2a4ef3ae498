//! What a set-up waits for, told beforehand to whoever may have to end it.
//!
//! A file system whose server has stopped holds whoever asks it for ever, and nothing but death ends
//! such a wait. Who then has to say what happened cannot ask the process any more.

use std::fmt::{self, Display, Formatter};
use std::path::Path;

use shifter_core::sanitize;
use shifter_core::volmap::Volume;

use crate::error::Result;

/// What the steps that follow may wait for.
#[derive(Clone, Copy, Debug)]
pub enum Awaited<'a> {
    /// Nothing that could stop, or that has no deadline of its own.
    Nothing,
    /// The site's image store at a path of the host.
    Store(&'a Path),
    /// The user's own.
    UsersStore(&'a Path),
    /// The file or directory of the host that is the image.
    ImageAt(&'a Path),
    /// The files of the image with this name, which may lie in any of these places.
    Image(&'a str),
    /// What the site mounts into every container.
    SiteMount(&'a str),
    /// The storage of the per-node cache that a volume asks for.
    Cache(&'a Volume),
    /// The source of a user's volume, at this path of the host.
    Source(&'a Volume, &'a Path),
    /// The source of a user's volume, or where it is to appear.
    Volume(&'a Volume),
    /// The working directory that the user asks for.
    Directory(&'a Path),
    /// The file systems of the root with this name, as they are unmounted.
    Mounts(&'a str),
    /// The files that loop devices have.
    LoopDevices,
}

impl<'a> Awaited<'a> {
    /// Returns the path that is about to be looked up, if there is just one.
    pub fn place(&self) -> Option<&'a Path> {
        match *self {
            Self::Store(path)
            | Self::UsersStore(path)
            | Self::ImageAt(path)
            | Self::Source(_, path)
            | Self::Directory(path) => Some(path),
            Self::Nothing
            | Self::Image(_)
            | Self::SiteMount(_)
            | Self::Cache(_)
            | Self::Volume(_)
            | Self::Mounts(_)
            | Self::LoopDevices => None,
        }
    }

    /// True if nobody but the user can be blamed for it.
    pub fn is_users(&self) -> bool {
        matches!(self, Self::Volume(_) | Self::Source(..))
    }
}

/// The thing as it is called in a message; nothing for nothing.
impl Display for Awaited<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (what, name) = match self {
            Self::Nothing => return Ok(()),
            Self::LoopDevices => return f.write_str("the files of loop devices"),
            Self::Store(path) | Self::UsersStore(path) => ("image store", path.to_string_lossy()),
            Self::ImageAt(path) => ("image", path.to_string_lossy()),
            Self::Image(name) => ("image", (*name).into()),
            Self::SiteMount(path) => ("site mount", (*path).into()),
            Self::Cache(volume) => ("the storage of a per-node cache of", (&*volume.from).into()),
            Self::Source(volume, _) | Self::Volume(volume) => {
                ("the source of a volume:", (&*volume.from).into())
            }
            Self::Mounts(root) => ("the file systems of root", (*root).into()),
            Self::Directory(path) => ("working directory", path.to_string_lossy()),
        };
        write!(f, "{what} '{}'", sanitize::text(&name))
    }
}

/// Somebody who is told.
pub trait Watch {
    /// Says what is waited for from here on.
    ///
    /// # Errors
    /// Those of telling it.
    fn on(&self, awaited: Awaited<'_>) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use shifter_core::volmap::{Origin, VolumeMap};

    use super::*;

    #[test]
    fn things_have_names() {
        let map = VolumeMap::parse_many(["/a:/b"], Origin::User).unwrap();
        let volume = &map.entries()[0];
        for (awaited, name) in [
            (Awaited::Nothing, ""),
            (Awaited::LoopDevices, "the files of loop devices"),
            (Awaited::Mounts("job"), "the file systems of root 'job'"),
            (Awaited::Store(Path::new("/s\n")), "image store '/s\\u{a}'"),
            (Awaited::Image("docker:x"), "image 'docker:x'"),
            (Awaited::Volume(volume), "the source of a volume: '/a'"),
            (
                Awaited::Source(volume, Path::new("/host/a")),
                "the source of a volume: '/a'",
            ),
        ] {
            assert_eq!(awaited.to_string(), name);
        }
    }
}

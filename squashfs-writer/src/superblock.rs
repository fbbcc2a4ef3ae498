//! The 96 bytes at the start of an image.

/// Size of the superblock.
pub(super) const SIZE: usize = 96;
/// Position of a table that the image does not have.
pub(super) const ABSENT: u64 = u64::MAX;

const MAGIC: u32 = 0x7371_7368;
const FLAGS_ALL_RAW: u16 = 0x0001 | 0x0002 | 0x0008 | 0x0100 | 0x0800;
const FLAG_ALL_TAILS: u16 = 0x0020;
const FLAG_SHARED: u16 = 0x0040;
const FLAG_EXPORT: u16 = 0x0080;
const FLAG_NO_XATTRS: u16 = 0x0200;
const FLAG_OPTIONS: u16 = 0x0400;

/// What the superblock says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Superblock {
    pub(super) inodes: u32,
    pub(super) mtime: u32,
    pub(super) block_size: u32,
    pub(super) fragments: u32,
    pub(super) compressor: u16,
    pub(super) has_options: bool,
    pub(super) is_raw: bool,
    /// Whether tail ends of all files are in fragment blocks.
    pub(super) packs_tails: bool,
    /// Whether equal files share their blocks.
    pub(super) shares_equal: bool,
    pub(super) ids: u16,
    pub(super) root: u64,
    pub(super) bytes_used: u64,
    pub(super) id_table: u64,
    pub(super) xattr_table: u64,
    pub(super) inode_table: u64,
    pub(super) directory_table: u64,
    pub(super) fragment_table: u64,
    pub(super) export_table: u64,
}

impl Superblock {
    pub(super) fn encode(&self) -> Vec<u8> {
        let flags = [
            (self.is_raw, FLAGS_ALL_RAW),
            (self.packs_tails, FLAG_ALL_TAILS),
            (self.shares_equal, FLAG_SHARED),
            (self.export_table != ABSENT, FLAG_EXPORT),
            (self.has_options, FLAG_OPTIONS),
            (self.xattr_table == ABSENT, FLAG_NO_XATTRS),
        ]
        .iter()
        .fold(
            0,
            |all, &(is_set, flag)| if is_set { all | flag } else { all },
        );
        let mut out = Vec::with_capacity(SIZE);
        for word in [
            MAGIC,
            self.inodes,
            self.mtime,
            self.block_size,
            self.fragments,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let block_log = self.block_size.trailing_zeros() as u16;
        for word in [self.compressor, block_log, flags, self.ids, 4, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [
            self.root,
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            self.export_table,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out
    }
}

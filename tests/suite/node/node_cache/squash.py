#!/usr/bin/python3
"""Shows a directory as a server that does not trust root does: squash.py LOW HIGH [keep]

Whatever a caller names is opened and changed with the caller's uid and gid for files, and root
counts as nobody, as with root_squash. Like many a parallel file system it knows no file without a
name (O_TMPFILE), and a removed one lives on without a name while it is open; with `keep` it gets
another name instead, as with NFS.
"""
import contextlib
import ctypes
import errno
import os
import sys

import llfuse

NOBODY = 65534
libc = ctypes.CDLL(None)


@contextlib.contextmanager
def caller(ctx):
    """Acts as the caller would without being root; errors become the caller's."""
    libc.setfsgid(ctx.gid or NOBODY)
    libc.setfsuid(ctx.uid or NOBODY)
    try:
        yield
    except OSError as error:
        raise llfuse.FUSEError(error.errno) from None
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)


class Squash(llfuse.Operations):
    def __init__(self, low, keeps_names):
        super().__init__()
        self.keeps_names = keeps_names
        # An inode is known by a descriptor that stays right when names go.
        self.inodes = {llfuse.ROOT_INODE: os.open(low, os.O_PATH)}
        self.lookups = {llfuse.ROOT_INODE: 1}

    def path(self, inode):
        return f"/proc/self/fd/{self.inodes[inode]}"

    def attributes(self, inode):
        stat = os.stat(self.inodes[inode])
        entry = llfuse.EntryAttributes()
        for name in ("mode", "nlink", "uid", "gid", "size", "atime_ns", "mtime_ns", "ctime_ns",
                     "blksize", "blocks"):
            setattr(entry, f"st_{name}", getattr(stat, f"st_{name}"))
        entry.st_ino = inode
        # Nothing is cached: the server is asked each time.
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    def lookup(self, parent, name, ctx):
        with caller(ctx):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.inodes[parent])
        number = os.stat(fd).st_ino + llfuse.ROOT_INODE
        if number in self.inodes:
            os.close(fd)
        else:
            self.inodes[number] = fd
        self.lookups[number] = self.lookups.get(number, 0) + 1
        return self.attributes(number)

    def forget(self, inodes):
        for number, count in inodes:
            self.lookups[number] -= count
            if self.lookups[number] == 0:
                del self.lookups[number]
                os.close(self.inodes.pop(number))

    def getattr(self, inode, ctx):
        return self.attributes(inode)

    def opendir(self, inode, ctx):
        with caller(ctx):
            os.close(os.open(self.path(inode), os.O_RDONLY | os.O_DIRECTORY))
        return inode

    def readdir(self, inode, offset):
        for number, name in enumerate(os.listdir(self.path(inode))[offset:], offset + 1):
            entry = llfuse.EntryAttributes()
            entry.st_ino = os.stat(name, dir_fd=self.inodes[inode]).st_ino + llfuse.ROOT_INODE
            yield os.fsencode(name), entry, number

    def create(self, parent, name, mode, flags, ctx):
        with caller(ctx):
            fd = os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, mode, dir_fd=self.inodes[parent])
        return fd, self.lookup(parent, name, ctx)

    def open(self, inode, flags, ctx):
        with caller(ctx):
            return os.open(self.path(inode), flags & ~os.O_NOFOLLOW)

    def unlink(self, parent, name, ctx):
        with caller(ctx):
            dir = self.inodes[parent]
            if self.keeps_names:
                os.rename(name, b".nfs" + name, src_dir_fd=dir, dst_dir_fd=dir)
            else:
                os.unlink(name, dir_fd=dir)

    def setattr(self, inode, attributes, fields, fh, ctx):
        if fields.update_size and fh is not None:
            os.ftruncate(fh, attributes.st_size)
        elif fields.update_size or fields.update_mode or fields.update_uid or fields.update_gid:
            raise llfuse.FUSEError(errno.EPERM)
        return self.attributes(inode)

    # What is open was allowed when it was opened.

    def read(self, fh, offset, size):
        return os.pread(fh, size, offset)

    def write(self, fh, offset, data):
        return os.pwrite(fh, data, offset)

    def fsync(self, fh, datasync):
        os.fsync(fh)

    def flush(self, fh):
        pass

    def release(self, fh):
        os.close(fh)


os.setgroups([])
llfuse.init(Squash(sys.argv[1], "keep" in sys.argv), sys.argv[2], ["allow_other", "fsname=squash"])
try:
    llfuse.main(workers=1)
finally:
    llfuse.close(unmount=False)

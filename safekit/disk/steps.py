"""The system calls by which changes are recorded and applied, each under a label, so that a test can make exactly one
of them fail.

Whoever changes what must not be lost (the modules that `tests/t0_unit/test_house.py` names) calls nothing of `os` that
can fail but through this table: `steps.LABEL(...)`, looked up at the call. What Python has no name for is called as
`syscalls.NAME(...)`, which is such a label too. `tests/t2_process/test_nfsbox_steps.py` walks through all of them.

A call on an open descriptor that asks no disk (`os.fstat`, `os.close`) has no label.
"""

from __future__ import annotations

import os
from pathlib import Path

# the record of changes (nfsbox.pair.tracking)
record_create = os.open
record_allocate = os.pwrite
record_write = os.pwrite
record_commit = os.fdatasync
record_undo = os.pwrite
record_settle = os.fsync
record_install = os.rename
record_remove = os.unlink

# names and inodes of the data (safekit.rfs.tree)
tree_top = os.open
tree_part = os.open
tree_again = os.dup
tree_stat = os.stat
tree_numbers = os.statvfs
tree_readlink = os.readlink
tree_list = os.listdir
tree_scan = os.scandir
tree_open = os.open
tree_create = os.open
tree_settle = os.fsync
tree_truncate = os.ftruncate
tree_mode = os.chmod
tree_owner = os.chown
tree_xattrs = os.listxattr
tree_getxattr = os.getxattr
tree_setxattr = os.setxattr
tree_dropxattr = os.removexattr
tree_mkdir = os.mkdir
tree_mknod = os.mknod
tree_symlink = os.symlink
tree_link = os.link
tree_unlink = os.unlink
tree_rmdir = os.rmdir
tree_rename = os.rename

# open files, on the server where the application is (nfsbox.fs.operations, nfsbox.fs.content)
data_write = os.pwrite
data_read = os.pread
data_truncate = os.ftruncate
data_owner = os.fchown
data_mode = os.fchmod
data_dropxattr = os.removexattr
data_settle = os.fsync
data_commit = os.fdatasync

# open files, on the secondary (nfsbox.pair.apply, nfsbox.pair.secondary)
apply_write = os.pwrite
apply_truncate = os.ftruncate
apply_owner = os.fchown
apply_mode = os.fchmod
apply_setxattr = os.setxattr
apply_dropxattr = os.removexattr
apply_settle = os.fsync
apply_commit = os.fdatasync

# what the secondary has on disk before it acknowledges with async="none" (nfsbox.pair.commit)
commit_data = os.fdatasync
commit_inode = os.fsync
commit_name = os.fsync

# the names of what is unlinked and still open (nfsbox.pair.engine)
note_open = os.open
note_write = os.write
note_undo = os.ftruncate

# what the kernel holds back in a mount (nfsbox.pair.engine)
mount_open = os.open


# small files that are replaced whole: the state, the notes (safekit.disk.files)


def file_create(path: Path, flags: int, mode: int) -> int:
    """The file that will have the name."""
    return os.open(path, flags, mode)


def file_write(descriptor: int, data: memoryview) -> int:
    """Its content."""
    return os.write(descriptor, data)


def file_mode(descriptor: int, mode: int) -> None:
    """Who may read it."""
    os.fchmod(descriptor, mode)


def file_settle(descriptor: int) -> None:
    """On disk."""
    os.fsync(descriptor)


def file_install(made: Path, path: Path) -> None:
    """Its name."""
    os.rename(made, path)


def file_remove(path: Path) -> None:
    """What could not be completed goes."""
    os.unlink(path)


def reserve_open(path: Path, flags: int) -> int:
    """The room that was put by."""
    return os.open(path, flags)


def reserve_write(descriptor: int, data: bytes, offset: int) -> int:
    """The content, there."""
    return os.pwrite(descriptor, data, offset)


def directory_open(path: Path, flags: int) -> int:
    """The directory of a new name."""
    return os.open(path, flags)


def directory_settle(descriptor: int) -> None:
    """The new name, on disk."""
    os.fsync(descriptor)


def lock_open(path: Path, flags: int, mode: int) -> int:
    """A file to lock."""
    return os.open(path, flags, mode)

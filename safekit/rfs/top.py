"""The top of a replicated directory, closed to everybody but root.

Nobody may reach the data beside the mount: what he changed there, the peer would never get, and whoever owns a
directory of it could lead root anywhere. So the top belongs to root with mode 0700 from the first start on, while the
module runs and while it is stopped, over crashes and reboots. How it is to look, an extended attribute of its own
keeps: the mount shows that, the peer gets that, and `reopen` gives it back. An administrator who changes mode or owner
by hand has decided: what is found then counts, until the next start closes it again.

Order: the record is written before the top is closed, and taken away after it is open. While that is under way the
record says so and counts, whatever a crash has left of the rest. The group, and the bits that new entries inherit, stay
as they are: nobody gains anything by them.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass, replace
from typing import Final

PREFIX: Final = b"trusted.safekit."
ACCESS_ACL: Final = b"system.posix_acl_access"
_RECORD: Final = PREFIX + b"top"
_ACL: Final = PREFIX + b"acl"
_CLOSED: Final = 0o700
_INHERITED: Final = stat.S_ISGID | stat.S_ISVTX
_ACL_HEAD: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")  # tag, permissions, id
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20


@dataclass(frozen=True, slots=True)
class Shown:
    """What users are to see of the top: permission bits and owner. `settled` False while it is being closed or
    opened."""

    mode: int
    uid: int
    settled: bool = True

    def pack(self) -> bytes:
        """As it is kept."""
        return b"%o %d%s" % (self.mode, self.uid, b"" if self.settled else b" unsettled")

    @classmethod
    def unpack(cls, data: bytes) -> Shown | None:
        """None for what is no record."""
        fields = data.split(b" ")
        try:
            return cls(int(fields[0], 8) & 0o7777, int(fields[1]), len(fields) == 2)
        except (ValueError, IndexError):
            return None


def _get(fd: int, name: bytes) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def _drop(fd: int, name: bytes) -> None:
    try:
        os.removexattr(fd, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def _is_closed(status: os.stat_result) -> bool:
    return status.st_uid == 0 and status.st_mode & 0o777 == _CLOSED


def shown(fd: int, status: os.stat_result) -> Shown | None:
    """What users see of a top that is closed; None of one that is not. Raises OSError."""
    record = _get(fd, _RECORD)
    found = None if record is None else Shown.unpack(record)
    return found if found is not None and (_is_closed(status) or not found.settled) else None


def status(fd: int, real: os.stat_result) -> os.stat_result:
    """The status as users see it. Raises OSError."""
    found = shown(fd, real)
    if found is None:
        return real
    more = {name: getattr(real, name) for name in dir(real) if name.startswith("st_")}
    return os.stat_result((stat.S_IFMT(real.st_mode) | found.mode, *real[1:4], found.uid, *real[5:]), more)


def close(fd: int) -> None:
    """Close it. Nothing changes when it is closed already. Raises OSError: EOPNOTSUPP where the file system keeps no
    such attributes; nothing is changed then."""
    real = os.fstat(fd)
    found = shown(fd, real)
    if found is not None and found.settled:
        return
    if found is None:
        found = Shown(stat.S_IMODE(real.st_mode), real.st_uid, settled=False)
        acl = _get(fd, ACCESS_ACL)
        if acl is not None:
            os.setxattr(fd, _ACL, acl)
        else:
            _drop(fd, _ACL)
        os.setxattr(fd, _RECORD, found.pack())
        os.fsync(fd)
    _drop(fd, ACCESS_ACL)
    os.fchmod(fd, _CLOSED | real.st_mode & _INHERITED)
    os.fchown(fd, 0, -1)
    os.setxattr(fd, _RECORD, replace(found, settled=True).pack())
    os.fsync(fd)


def reopen(fd: int) -> bool:
    """As it was before, or as the mount has changed it; False when it was not closed. Raises OSError."""
    found = shown(fd, os.fstat(fd))
    if found is not None:
        acl = _get(fd, _ACL)
        os.setxattr(fd, _RECORD, replace(found, settled=False).pack())
        os.fsync(fd)
        os.fchown(fd, found.uid, -1)
        os.fchmod(fd, found.mode)
        if acl is not None:
            os.setxattr(fd, ACCESS_ACL, acl)
        os.fsync(fd)
    _drop(fd, _RECORD)
    _drop(fd, _ACL)
    return found is not None


# --- attributes of a top, closed or not ---------------------------------------------------------------------


def chmod(fd: int, mode: int) -> None:
    """Permission bits, as users are to see them. Raises OSError."""
    found = shown(fd, os.fstat(fd))
    if found is None:
        os.fchmod(fd, mode)
        return
    acl = _get(fd, _ACL)
    if acl is not None:
        os.setxattr(fd, _ACL, _with_mode(acl, mode))
    os.fchmod(fd, _CLOSED | mode & _INHERITED)
    os.setxattr(fd, _RECORD, replace(found, mode=mode).pack())


def chown(fd: int, uid: int, gid: int) -> None:
    """Owner and group, -1 leaves one as it is. Raises OSError."""
    found = shown(fd, os.fstat(fd))
    if found is None:
        os.fchown(fd, uid, gid)
        return
    os.fchown(fd, -1, gid)
    if uid != -1:
        os.setxattr(fd, _RECORD, replace(found, uid=uid).pack())


def xattr_names(fd: int, names: list[bytes]) -> list[bytes]:
    """The names that users see, of all that there are."""
    seen = [name for name in names if not name.startswith(PREFIX)]
    if _ACL in names and shown(fd, os.fstat(fd)) is not None:
        seen.append(ACCESS_ACL)
    return seen


def _mine(name: bytes) -> None:
    if name.startswith(PREFIX):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def getxattr(fd: int, name: bytes) -> bytes:
    """An extended attribute as users see it. Raises OSError."""
    _mine(name)
    if name == ACCESS_ACL and shown(fd, os.fstat(fd)) is not None:
        return os.getxattr(fd, _ACL)
    return os.getxattr(fd, name)


def setxattr(fd: int, name: bytes, value: bytes, flags: int) -> None:
    """Set an extended attribute; an access control list changes the mode as well. Raises OSError."""
    _mine(name)
    found = shown(fd, os.fstat(fd)) if name == ACCESS_ACL else None
    if found is None:
        os.setxattr(fd, name, value, flags)
        return
    entries = _entries(value)
    if not entries:
        _drop(fd, _ACL)
        return
    mode = _mode_of(entries)
    if len(entries) > 3:
        os.setxattr(fd, _ACL, value)
    else:
        _drop(fd, _ACL)  # it says no more than the mode
    os.setxattr(fd, _RECORD, replace(found, mode=found.mode & ~0o777 | mode).pack())


def removexattr(fd: int, name: bytes) -> None:
    """Remove an extended attribute. Raises OSError."""
    _mine(name)
    closed = name == ACCESS_ACL and shown(fd, os.fstat(fd)) is not None
    os.removexattr(fd, _ACL if closed else name)


# --- access control lists: pure -----------------------------------------------------------------------------


def _entries(acl: bytes) -> list[tuple[int, int, int]]:
    size = len(acl) - _ACL_HEAD.size
    if size < 0 or size % _ACL_ENTRY.size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return list(_ACL_ENTRY.iter_unpack(acl[_ACL_HEAD.size :]))


def _mode_of(entries: list[tuple[int, int, int]]) -> int:
    granted = {tag: permissions & 7 for tag, permissions, _ in entries}
    group = granted.get(_MASK, granted.get(_GROUP_OBJ, 0))
    return granted.get(_USER_OBJ, 0) << 6 | group << 3 | granted.get(_OTHER, 0)


def _with_mode(acl: bytes, mode: int) -> bytes:
    entries = _entries(acl)
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    new = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    return acl[: _ACL_HEAD.size] + b"".join(
        _ACL_ENTRY.pack(tag, new.get(tag, permissions), identity) for tag, permissions, identity in entries
    )

"""A .safe file: the tree of a module in a zip (guide 14.6.1). Nothing in an archive is trusted.

A module is conf/, bin/ and web/ with plain files and directories, and a manifest.xml; anything else in an archive
is refused, so that what an administrator looked at is what is installed.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

USERCONFIG = PurePosixPath("conf/userconfig.xml")
DIRECTORIES = frozenset({"conf", "bin", "web"})
FILES = frozenset({"manifest.xml", "index.html", "index.lua", "htmlib.lua"})
MAX_FILES = 2000
MAX_BYTES = 256 << 20
MAX_DEPTH = 12
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error, zlib.error)
_END_RECORD = b"PK\x05\x06"
_MAX_COMMENT = 65557
_MAX_LISTING = MAX_FILES * 1024


class ArchiveError(Exception):
    """A .safe that cannot be used; the text names the file and the reason."""


def _root(names: list[str]) -> PurePosixPath:
    """Directory of the archive that holds the module: its top, or one directory in it."""
    if str(USERCONFIG) in names:
        return PurePosixPath()
    tops = {PurePosixPath(n).parts[0] for n in names if n.endswith(f"/{USERCONFIG}") and n.count("/") == 2}
    if len(tops) != 1:
        raise ArchiveError(f"it has no {USERCONFIG}")
    return PurePosixPath(tops.pop())


def _inside(name: str, root: PurePosixPath) -> PurePosixPath:
    """Path of an entry inside the module. Raises ArchiveError when it is not of a module, or leaves it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise ArchiveError(f"entry {name!r} leaves the directory of the module")
    if len(path.parts) > MAX_DEPTH or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ArchiveError(f"entry {name[:80]!r} lies too deep, or its name is too long")
    try:
        inside = path.relative_to(root)
    except ValueError:
        inside = PurePosixPath(".outside")
    if inside != PurePosixPath() and not (
        inside.parts[0] in DIRECTORIES or (len(inside.parts) == 1 and inside.parts[0] in FILES)
    ):
        raise ArchiveError(
            f"entry {name!r} is not part of a module ({', '.join(sorted(DIRECTORIES))} and manifest.xml are)"
        )
    return inside


def _check_listing(archive: Path) -> None:
    """Refuse a list of entries that would fill the memory before anybody could count it."""
    with open(archive, "rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - _MAX_COMMENT))
        tail = handle.read()
    at = tail.rfind(_END_RECORD)
    if at < 0 or len(tail) < at + 22:
        raise ArchiveError(f"{archive} is not a .safe file (a zip)")
    count, size = struct.unpack_from("<HI", tail, at + 10)
    if count > MAX_FILES or size > _MAX_LISTING:
        raise ArchiveError(f"{archive}: it has more than {MAX_FILES} files or {MAX_BYTES >> 20} MB")


def unpack(archive: Path, target: Path) -> None:
    """Extract a module into `target`, which must not exist. Scripts in bin/ are made executable.

    Raises ArchiveError (nothing is left behind), OSError.
    """
    try:
        _check_listing(archive)
        opened = zipfile.ZipFile(archive)
    except FileNotFoundError:
        raise ArchiveError(f"{archive} does not exist") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ArchiveError(f"{archive} is not a .safe file (a zip): {error}") from None
    with opened:
        entries = opened.infolist()
        try:
            if len(entries) > MAX_FILES or sum(e.file_size for e in entries) > MAX_BYTES:
                raise ArchiveError(f"it has more than {MAX_FILES} files or {MAX_BYTES >> 20} MB")
            root = _root([e.filename for e in entries])
            target.mkdir(mode=0o770)
            try:
                for entry in entries:
                    _extract(opened, entry, root, target)
            except BaseException:
                shutil.rmtree(target)
                raise
        except ArchiveError as error:
            raise ArchiveError(f"{archive}: {error}") from None
        except _DAMAGE as error:
            raise ArchiveError(f"{archive} is damaged: {error}") from None


def _extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, root: PurePosixPath, target: Path) -> None:
    relative = _inside(entry.filename, root)
    if relative == PurePosixPath():
        return
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"entry {entry.filename!r} is neither a file nor a directory")
    destination = target / relative
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"entry {entry.filename!r} is compressed in an unusual way")
    try:
        if entry.is_dir():
            destination.mkdir(mode=0o770, parents=True, exist_ok=True)
            return
        destination.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
        with opened.open(entry) as source, open(destination, "xb") as copy:
            shutil.copyfileobj(source, copy)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise ArchiveError(f"entry {entry.filename!r} is there twice") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a damaged offset leads before the file's beginning
            raise ArchiveError(f"entry {entry.filename!r} is damaged") from None
        raise
    if destination.suffix == ".key":
        destination.chmod(0o640)
        return
    executable = relative.parts[0] == "bin" or (entry.external_attr >> 16) & 0o100
    destination.chmod(0o770 if executable else 0o660)


def _packed(module_root: Path) -> Iterator[Path]:
    """The plain files of a module that belong in an archive, in order."""
    for path in sorted(module_root.rglob("*")):
        parts = path.relative_to(module_root).parts
        belongs = parts[0] in DIRECTORIES or (len(parts) == 1 and parts[0] in FILES)
        if belongs and path.is_file() and not path.is_symlink():
            yield path


def pack(module_root: Path, archive: Path, *, keys: bool = True) -> int:
    """Write the tree of a module into `archive`, whole or not at all; the number of files.

    The same tree gives the same bytes. With `keys` the archive holds the module's key, so only root and group safekit
    may read it. Raises OSError.
    """
    temporary = archive.with_name(f".{archive.name}.{os.getpid()}.tmp")
    count = 0
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660)
        with os.fdopen(descriptor, "r+b") as handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED) as opened:
            for path in _packed(module_root):
                if path.suffix == ".key" and not keys:
                    continue
                info = zipfile.ZipInfo(path.relative_to(module_root).as_posix())
                info.external_attr = (stat.S_IFREG | stat.S_IMODE(path.stat().st_mode)) << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                opened.writestr(info, path.read_bytes())
                count += 1
        os.rename(temporary, archive)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count

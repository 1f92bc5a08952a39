"""A .safe file: the tree of a module in a zip (guide 14.6.1). Nothing in an archive is trusted."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

USERCONFIG = PurePosixPath("conf/userconfig.xml")
MAX_FILES = 2000
MAX_BYTES = 256 << 20


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


def _inside(name: str, root: PurePosixPath) -> PurePosixPath | None:
    """Path of an entry inside the module, None for one outside `root`. Raises ArchiveError when it leaves it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ArchiveError(f"entry {name!r} leaves the directory of the module")
    try:
        return path.relative_to(root)
    except ValueError:
        return None


def unpack(archive: Path, target: Path) -> None:
    """Extract a module into `target`, which must not exist. Scripts in bin/ are made executable.

    Raises ArchiveError (nothing is left behind), OSError.
    """
    try:
        opened = zipfile.ZipFile(archive)
    except FileNotFoundError:
        raise ArchiveError(f"{archive} does not exist") from None
    except zipfile.BadZipFile as error:
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
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ArchiveError(f"{archive} is damaged: {error}") from None


def _extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, root: PurePosixPath, target: Path) -> None:
    relative = _inside(entry.filename, root)
    if relative is None or relative == PurePosixPath():
        return
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"entry {entry.filename!r} is neither a file nor a directory")
    destination = target / relative
    if entry.is_dir():
        destination.mkdir(mode=0o770, parents=True, exist_ok=True)
        return
    destination.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
    with opened.open(entry) as source, open(destination, "xb") as copy:
        shutil.copyfileobj(source, copy)
    executable = relative.parts[0] == "bin" or (entry.external_attr >> 16) & 0o100
    destination.chmod(0o770 if executable else 0o660)


def pack(module_root: Path, archive: Path) -> int:
    """Write the tree of a module into `archive`, whole or not at all; the number of files.

    The same tree gives the same bytes. Raises OSError.
    """
    temporary = archive.with_name(f".{archive.name}.{os.getpid()}.tmp")
    files = sorted(path for path in module_root.rglob("*") if path.is_file() and not path.is_symlink())
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as opened:
            for path in files:
                info = zipfile.ZipInfo(path.relative_to(module_root).as_posix())
                info.external_attr = (stat.S_IFREG | stat.S_IMODE(path.stat().st_mode)) << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                opened.writestr(info, path.read_bytes())
        os.rename(temporary, archive)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return len(files)

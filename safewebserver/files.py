"""The file manager: SAFE/modules and SAFE/Application_Modules (guide 3.8).

For the role Admin. Keys are neither shown nor taken.

Every change of a file says which content it was made from (its tag): two editors never overwrite each other unseen.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

from aiohttp import web

from safekit.disk.archive import ArchiveError, pack, unpack
from safekit.disk.files import write_atomic
from safekit.disk.paths import node_name, safe
from safewebserver.api import MAX_ARCHIVE, PREFIX, ApiError, json_of, need, reply
from safewebserver.permissions import Role

AREAS = {"modules": "modules", "templates": "Application_Modules"}
MAX_FILE = 16 << 20
MAX_ENTRIES = 5000
MAX_PARTS = 14
ANY = "*"
_changing = threading.Lock()
"""From the look at what is there to its change: of two who saved at once, one must be told."""

Row = dict[str, Any]


def place_of(text: str, *, links: bool = False) -> tuple[Path, Path]:
    """The area and the path of a text such as `modules/AM/conf/userconfig.xml`; a path that is itself a link only
    with `links`, for what leaves alone where it leads. Raises ApiError."""
    parts = [part for part in text.split("/") if part]
    if not parts or parts[0] not in AREAS or len(parts) > MAX_PARTS:
        raise ApiError(400, "malformed", f"a path begins with {' or '.join(AREAS)}")
    for part in parts[1:]:
        if part.startswith(".") or part == "lastconfig" or not part.isprintable() or len(part.encode()) > 255:
            raise ApiError(400, "malformed", f"{part[:64]!r} is not a name of a file here")
        if part.endswith(".key"):
            raise ApiError(403, "forbidden", "keys are not shown", "safekit module genkey makes a new one")
    area = safe() / AREAS[parts[0]]
    path = area.joinpath(*parts[1:])
    try:
        path.parent.resolve().relative_to(area.parent.resolve())
        if path != area and path.parent != area:
            path.parent.resolve().relative_to(area.resolve())
    except (ValueError, OSError, RuntimeError):
        raise ApiError(400, "malformed", "a link leads out of the directory") from None
    if not links and path != area and path.is_symlink():
        raise ApiError(400, "malformed", "this is a link, which is not followed here", "name what it leads to")
    return area, path


def _stays(area: Path, path: Path) -> bool:
    """Whether commands alone make, move and remove this: an area, or the directory of a module."""
    return path == area or (area.name == AREAS["modules"] and path.parent == area)


def tag_of(content: bytes) -> str:
    """Changes with the content."""
    return hashlib.sha256(content).hexdigest()[:32]


class Files:
    """The handlers."""

    def routes(self) -> list[web.RouteDef]:
        """Their routes."""
        return [
            web.get(f"{PREFIX}/files", self.listed),
            web.post(f"{PREFIX}/files", self.change),
            web.get(f"{PREFIX}/file", self.read),
            web.put(f"{PREFIX}/file", self.write),
            web.delete(f"{PREFIX}/file", self.delete),
        ]

    async def listed(self, request: web.Request) -> web.StreamResponse:
        """What is in a directory."""
        need(request, Role.ADMIN)
        text = request.query.get("path", "modules")
        _, path = place_of(text)
        return reply(request, {"node": node_name(), "path": text, "entries": await _do(_entries, path)})

    async def read(self, request: web.Request) -> web.StreamResponse:
        """A file: its text, or base64 of what is no text."""
        need(request, Role.ADMIN)
        text = request.query.get("path", "")
        _, path = place_of(text)
        content = await _do(_content, path)
        answer: Row = {"node": node_name(), "path": text, "size": len(content), "etag": tag_of(content)}
        try:
            answer["text"] = content.decode()
        except UnicodeDecodeError:
            answer["base64"] = base64.b64encode(content).decode()
        response = reply(request, answer)
        response.headers["ETag"] = f'"{answer["etag"]}"'
        return response

    async def write(self, request: web.Request) -> web.StreamResponse:
        """Put a file in place of the one with that tag, or where there is none."""
        need(request, Role.ADMIN)
        text = request.query.get("path", "")
        match = request.query.get("match") or request.headers.get("If-Match", "").strip('"')
        area, path = place_of(text)
        content = _given(await json_of(request, 2 * MAX_FILE))
        if _stays(area, path):
            raise ApiError(400, "malformed", "a file of a module lies in its directory")
        await _do(_write, path, content, match)
        return reply(request, {"node": node_name(), "path": text, "size": len(content), "etag": tag_of(content)})

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """A file, or a directory with all that is in it."""
        need(request, Role.ADMIN)
        text = request.query.get("path", "")
        area, path = place_of(text, links=True)
        _not_whole(area, path)
        await _do(_remove, path)
        return reply(request, {"node": node_name(), "path": text, "size": 0, "etag": ""})

    async def change(self, request: web.Request) -> web.StreamResponse:
        """copy, move, mkdir, pack (a module's directory into .safe) and unpack."""
        need(request, Role.ADMIN)
        data = await json_of(request, MAX_ARCHIVE)
        operation, source, target = data.get("op"), data.get("from", ""), data.get("to")
        if (
            not isinstance(operation, str)
            or operation not in _OPERATIONS
            or not isinstance(source, str)
            or not isinstance(target, str)
        ):
            raise ApiError(400, "malformed", f"op is none of {', '.join(_OPERATIONS)}, or from, to are no paths")
        area, to = place_of(target)
        if _stays(area, to):
            raise ApiError(400, "malformed", "modules are installed, not copied", "use the wizard of Configuration")
        if operation == "mkdir":
            await _do(_mkdir, to)
        else:
            base, path = place_of(source)
            if path == base or (operation == "move" and _stays(base, path)):
                raise ApiError(400, "malformed", "this directory stays where it is")
            await _do(_OPERATIONS[operation], path, to)
        return reply(request, {"node": node_name(), "path": target, "size": 0, "etag": ""})


async def _do(function: Any, *arguments: Any) -> Any:
    """In a thread, with errors of the file system as answers."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except FileNotFoundError:
        raise ApiError(404, "no_file", "there is no such file or directory") from None
    except NotADirectoryError:
        raise ApiError(404, "no_file", "a part of the path is no directory") from None
    except FileExistsError:
        raise ApiError(409, "exists", "there is a file of that name already", "choose another name") from None
    except ArchiveError as error:
        raise ApiError(409, "archive", str(error)) from None
    except OSError as error:
        raise ApiError(409, "filesystem", error.strerror or str(error)) from None


def _entries(path: Path) -> list[Row]:
    rows: list[Row] = []
    for entry in os.scandir(path):
        if entry.name.startswith(".") or entry.name.endswith(".key") or entry.name == "lastconfig":
            continue
        about = entry.stat(follow_symlinks=False)
        if len(rows) >= MAX_ENTRIES:
            break
        rows.append(
            {
                "name": entry.name,
                "directory": stat.S_ISDIR(about.st_mode),
                "size": about.st_size,
                "modified": about.st_mtime,
            }
        )
    return sorted(rows, key=lambda row: (not row["directory"], row["name"]))


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ApiError(400, "malformed", "this is no plain file")
        if about.st_size > MAX_FILE:
            raise ApiError(413, "too_large", f"the file has more than {MAX_FILE >> 20} MB")
        return handle.read(MAX_FILE + 1)


def _given(data: Row) -> bytes:
    text, encoded = data.get("text"), data.get("base64")
    try:
        if isinstance(text, str) and encoded is None:
            return text.encode()
        if isinstance(encoded, str) and text is None:
            return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise ApiError(400, "malformed", "expected text, or base64")


def _write(path: Path, content: bytes, match: str) -> None:
    if len(content) > MAX_FILE:
        raise ApiError(413, "too_large", f"the file has more than {MAX_FILE >> 20} MB", "copy it on the server")
    with _changing:
        _replace(path, content, match)


def _replace(path: Path, content: bytes, match: str) -> None:
    mode = 0o770 if path.parent.name == "bin" else 0o660
    if path.is_symlink() or path.is_dir():
        raise ApiError(400, "malformed", "this is no plain file")
    if path.exists():
        if not match:
            raise ApiError(428, "no_match", "If-Match is missing: which content is replaced?")
        if match not in (ANY, tag_of(_content(path))):
            raise ApiError(412, "changed", "the file was changed meanwhile", "load it again, and compare")
        mode = stat.S_IMODE(path.stat().st_mode)
    elif match and match != ANY:
        raise ApiError(412, "changed", "the file was deleted meanwhile")
    write_atomic(path, content, mode=mode)


def _not_whole(area: Path, path: Path) -> None:
    if _stays(area, path):
        raise ApiError(400, "malformed", "a module is uninstalled, not deleted", "safekit module uninstall -m AM")
    if path.parent == area and path.name in ("generic", "demo", "other", "backup", "webconsole"):
        raise ApiError(400, "malformed", "this directory stays")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _mkdir(path: Path) -> None:
    path.mkdir(mode=0o770)


def _fresh(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise FileExistsError
    if not target.parent.is_dir():
        raise FileNotFoundError


def _copy(source: Path, target: Path) -> None:
    _fresh(target)
    if source.is_dir():
        if target.is_relative_to(source):
            raise ApiError(400, "malformed", "a directory cannot be copied into itself")
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.key"))
    else:
        write_atomic(target, _content(source), mode=stat.S_IMODE(source.stat().st_mode))


def _move(source: Path, target: Path) -> None:
    _fresh(target)
    os.lstat(source)
    if target.is_relative_to(source):
        raise ApiError(400, "malformed", "a directory cannot be moved into itself")
    os.rename(source, target)


def _pack(source: Path, target: Path) -> None:
    _fresh(target)
    if not (source / "conf" / "userconfig.xml").is_file():
        raise ArchiveError("it has no conf/userconfig.xml, so it is no module")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pack-") as work:
        made = Path(work) / "made.safe"
        pack(source, made, keys=False)
        os.rename(made, target)


def _unpack(source: Path, target: Path) -> None:
    _fresh(target)
    if not source.is_file():
        raise ArchiveError("this is no .safe file")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as work:
        unpack(source, Path(work) / "made")
        os.rename(Path(work) / "made", target)


_OPERATIONS: dict[str, Any] = {"copy": _copy, "move": _move, "mkdir": _mkdir, "pack": _pack, "unpack": _unpack}

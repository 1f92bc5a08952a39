"""Everything of a tree that two servers must have alike."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safekit.rfs.exclusions import HIDDEN

#: What a name stands for; link groups stand under the key ("links",).
Tree = dict[str, Any]


def _all(_path: bytes) -> bool:
    return False


def tree(base: Path, *, times: bool = True, local: Callable[[bytes], bool] | None = None) -> Tree:
    """Content, type, mode, owner, size, time, extended attributes, and names that belong together. `local`: what is not
    replicated; directories then have times of their own. Raises OSError when names go while it is looked at."""
    excluded = local or _all
    found: Tree = {}
    groups: dict[int, list[str]] = {}
    root = os.fsencode(base)
    pending = [b""]
    while pending:
        path = pending.pop()
        real = root + b"/" + path if path else root
        status = os.lstat(real)
        name = os.fsdecode(path)
        found[name] = _entry(real, status, times=times and not (local is not None and stat.S_ISDIR(status.st_mode)))
        if stat.S_ISDIR(status.st_mode):
            inside = [path + b"/" + n if path else n for n in os.listdir(real) if not n.startswith(HIDDEN)]
            pending += [below for below in inside if not excluded(below)]
        else:
            groups.setdefault(status.st_ino, []).append(name)
    found["links"] = sorted(sorted(names) for names in groups.values() if len(names) > 1)
    return found


def _entry(real: bytes, status: os.stat_result, *, times: bool) -> dict[str, Any]:
    mode = status.st_mode
    entry: dict[str, Any] = {"mode": oct(mode), "owner": (status.st_uid, status.st_gid)}
    if times:
        entry["time"] = status.st_mtime_ns
    entry["xattrs"] = {
        name: os.getxattr(real, name, follow_symlinks=False).hex()
        for name in sorted(os.listxattr(real, follow_symlinks=False))
    }
    if stat.S_ISREG(mode):
        entry["size"] = status.st_size
        entry["content"] = hashlib.blake2b(Path(os.fsdecode(real)).read_bytes(), digest_size=8).hexdigest()
    elif stat.S_ISLNK(mode):
        entry["target"] = os.fsdecode(os.readlink(real))
    return entry


def differences(one: Tree, other: Tree) -> list[str]:
    """For people: what differs."""
    found = []
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key), other.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found.append(
                f"{key}: "
                + ", ".join(f"{k} {a.get(k)} / {b.get(k)}" for k in a.keys() | b.keys() if a.get(k) != b.get(k))
            )
        else:
            found.append(f"{key}: {a} / {b}")
    return found

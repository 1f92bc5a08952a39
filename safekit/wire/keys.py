"""Which keys protect what (guide 9.3, 9.6, 10.4).

The cluster key protects everything between the servers. A module may have a key of its own: `module genkey`
puts it in SAFE/modules/AM/conf, so that it travels, is signed and becomes active with the configuration.

A new cluster key waits in `cluster.key.next` until the configuration is distributed. The keys before the
present one are kept for this server to ask with: a server that missed a change of key still has an old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from datetime import date
from pathlib import Path

from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths, cluster_dir
from safekit.wire.seal import KEY_SIZE, derive, load_key, new_key

MODULE_KEY = "module.key"
NEXT_KEY = "cluster.key.next"
FORMER_KEYS = "cluster.key.former"
FORMER_KEPT = 3
VALID_YEARS = 20
_UNTIL = re.compile(r"^# .*valid until (\d{4}-\d\d-\d\d)$", re.MULTILINE)
GRACE_SECONDS = 300.0
"""How long the module key of the previous configuration is still accepted: servers are configured one after the
other."""


def cluster_key() -> bytes:
    """The key that this server uses. Raises OSError, ValueError."""
    return load_key(cluster_dir() / "cluster.key")


def next_key() -> bytes | None:
    """The key made by `cluster genkey` that is not in force yet. Raises ValueError for a damaged file."""
    try:
        return load_key(cluster_dir() / NEXT_KEY)
    except FileNotFoundError:
        return None


def make_next_key() -> bytes:
    """Prepare a new cluster key. Raises OSError."""
    key = new_key()
    _write_secret(cluster_dir() / NEXT_KEY, key.hex() + "\n")
    return key


def former_keys() -> tuple[bytes, ...]:
    """The keys before the present one, newest first; damaged lines are passed over."""
    try:
        lines = (cluster_dir() / FORMER_KEYS).read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        return ()
    found = []
    for line in lines:
        try:
            key = bytes.fromhex(line)
        except ValueError:
            continue
        if len(key) == KEY_SIZE:
            found.append(key)
    return tuple(found)


def remember_former(key: bytes) -> None:
    """Note the key that is about to be replaced. Raises OSError."""
    kept = [key, *(k for k in former_keys() if k != key)][:FORMER_KEPT]
    _write_secret(cluster_dir() / FORMER_KEYS, "".join(f"{k.hex()}\n" for k in kept))


def asking_keys() -> tuple[bytes, ...]:
    """The keys with which this server may ask another one, the likely one first."""
    found: list[bytes] = []
    try:
        found.append(cluster_key())
    except (OSError, ValueError):
        found = []
    found += [key for key in former_keys() if key not in found]
    return tuple(found)


def fingerprint(key: bytes) -> str:
    """Twelve hexadecimal digits by which two servers compare keys without showing them."""
    return derive(key, "fingerprint", size=6).hex()


def overall_signature(configuration: str, key: bytes) -> str:
    """One signature (hex) for a cluster configuration and its key: equal only when both are (guide 9.3)."""
    return hashlib.sha256(f"{configuration}:{fingerprint(key)}".encode()).hexdigest()


def give_module_key(module: str, today: date | None = None) -> date:
    """Make a key for the module, used from its next configuration on; the last day of its validity. Raises OSError."""
    made = today or date.today()
    until = made.replace(year=made.year + VALID_YEARS, day=min(made.day, 28))
    text = f"{new_key().hex()}\n# made {made.isoformat()}, valid until {until.isoformat()}\n"
    _write_secret(ModulePaths(module).conf_dir / MODULE_KEY, text)
    return until


def valid_until(module: str) -> date | None:
    """The last day of the key in the active configuration; None without a key, or for one that does not tell it.

    A key that is older goes on working: an unplanned stop would be worse than an old key.
    """
    try:
        text = (ModulePaths(module).active / "conf" / MODULE_KEY).read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = _UNTIL.search(text)
    try:
        return date.fromisoformat(found[1]) if found else None
    except ValueError:
        return None


def take_module_key(module: str) -> bool:
    """Erase the module's key, from its next configuration on. False when it had none. Raises OSError."""
    try:
        (ModulePaths(module).conf_dir / MODULE_KEY).unlink()
    except FileNotFoundError:
        return False
    return True


def module_key(module: str) -> bytes | None:
    """The key in the active configuration, None without one. Raises ValueError for a damaged file, OSError."""
    try:
        return load_key(ModulePaths(module).active / "conf" / MODULE_KEY)
    except (FileNotFoundError, NotADirectoryError):
        return None


def wire_keys(module: str) -> tuple[bytes, ...]:
    """The keys of a module's wires: the first one seals, all of them open.

    The module's own key, else the cluster key. For a while after a change the keys before it are accepted too: two
    changes may follow each other before every server has heard of the first. A damaged module key is an error, never a
    reason to go on with another key. Raises OSError, ValueError.
    """
    own = module_key(module)
    keys = [own if own is not None else cluster_key()]
    keys += _former_wire_keys(module)
    if own is None and 0 <= time.time() - (cluster_dir() / "cluster.key").stat().st_mtime < GRACE_SECONDS:
        keys += former_keys()
    return tuple(dict.fromkeys(keys))


class KeysNow:
    """The keys of a module's wires at the time of the call; the last good ones while a file cannot be read."""

    def __init__(self, module: str) -> None:
        """Raises OSError, ValueError."""
        self._module, self._last = module, wire_keys(module)

    def __call__(self) -> tuple[bytes, ...]:
        with contextlib.suppress(OSError, ValueError):
            self._last = wire_keys(self._module)
        return self._last


def encrypted(module: str) -> bool:
    """Value of the resource `encryption` (10.4): whether the module has a key of its own."""
    return module_key(module) is not None


def _former_wire_keys(module: str) -> list[bytes]:
    """Keys of the configurations before the active one, newest first, while the active one is young."""
    paths = ModulePaths(module)
    try:
        number = int(os.path.basename(os.readlink(paths.active)))
        applied = os.lstat(paths.active).st_mtime
    except (OSError, ValueError):
        return []
    if not 0 <= time.time() - applied < GRACE_SECONDS:
        return []
    found = []
    for previous in sorted((n for n in _numbers(paths.active_store) if n < number), reverse=True):
        try:
            found.append(load_key(paths.active_store / str(previous) / "conf" / MODULE_KEY))
        except FileNotFoundError:
            found.append(cluster_key())
        except ValueError:
            continue
    return found


def _numbers(store: Path) -> tuple[int, ...]:
    try:
        return tuple(int(name) for name in os.listdir(store) if name.isdecimal())
    except FileNotFoundError:
        return ()


def _write_secret(path: Path, text: str) -> None:
    from safekit.model.cluster import give_to_group

    write_atomic(path, text.encode(), mode=0o640)
    give_to_group(path)

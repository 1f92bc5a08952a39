"""A server that waits to be brought into a cluster: a code that is shown there, and typed on the server that brings it.

The code is proved by SPAKE2, as a password of the web service is (`safekit.wire.proof`): it crosses no network, who
listens or stands in between learns nothing, and each try is one guess. It opens `PUT /api/v1/cluster` and nothing else,
until a cluster is configured, TRIES were made, SECONDS have passed, or the server has booted.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safekit.disk.files import boot_identity, locked, write_atomic
from safekit.disk.paths import safevar

USER = "safekit-join"
"""The name that is proved with the code. No user of the web service has it."""
SECONDS = 600.0
TRIES = 5
JUDGED_SECONDS = 15.0
"""The last try is judged, and does its work, in this time."""
ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
"""Without signs that look alike."""
LENGTH = 8


@dataclass(frozen=True)
class Invitation:
    """What is kept of it. `hashed`: bcrypt, of the code; `until`, and `tried`, when the last try began: of the clock
    that no administrator sets, of that boot."""

    hashed: str
    until: float
    boot: str
    tries: int = 0
    tried: float = 0.0


def path() -> Path:
    """Where it is kept, for root and group safekit."""
    return safevar() / "invitation"


def plain(code: str) -> str:
    """A code as it is hashed, however it was typed."""
    return "".join(c for c in code.upper() if c not in " -")


def make() -> str:
    """Invite, and the code to show. A former one is void."""
    import bcrypt

    code = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
    hashed = bcrypt.hashpw(code.encode(), bcrypt.gensalt(10)).decode("ascii")
    with _lock():
        _write(Invitation(hashed, _now() + SECONDS, boot_identity()))
    return f"{code[:4]}-{code[4:]}"


def present() -> Invitation | None:
    """The one that is valid now; after the last try, as long as that may take."""
    try:
        found = Invitation(**json.loads(path().read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return None  # no file of ours
    now = _now()
    open_ = found.tries < TRIES or now - found.tried < JUDGED_SECONDS
    return found if open_ and found.until > now and found.boot == boot_identity() else None


def spend() -> bool:
    """Count one try; False when there is none left, or no invitation. It counts before it is known whether the code was
    right: who breaks off has had it."""
    with _lock():
        found = present()
        if found is None or found.tries >= TRIES:
            return False
        _write(replace(found, tries=found.tries + 1, tried=_now()))
        return True


def withdraw() -> None:
    """Nobody is waited for any more."""
    path().unlink(missing_ok=True)


def left() -> float:
    """Seconds until it ends; 0 when there is none."""
    found = present()
    return found.until - _now() if found is not None else 0.0


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _write(invitation: Invitation) -> None:
    write_atomic(path(), json.dumps(asdict(invitation)).encode(), mode=0o640)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    with locked(path().with_suffix(".lock")):
        yield

"""Messages that wait for their delivery: SAFEVAR/notify/queue, one file for each message and channel.

They survive a restart and a power failure, are tried again at longer and longer intervals, and are given up after KEEP
seconds. Their number is bounded: a full queue loses its oldest message.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safekit.disk.files import write_atomic
from safekit.disk.paths import safe, safevar

FIRST, LONGEST = 30.0, 3600.0
KEEP = 3 * 86400.0
MAX_WAITING = 200
MAX_MESSAGE = 256 << 10


def settings_file() -> Path:
    """SAFE/conf/notify.conf."""
    return safe() / "conf" / "notify.conf"


def notify_dir() -> Path:
    """SAFEVAR/notify."""
    return safevar() / "notify"


def queue_dir() -> Path:
    return notify_dir() / "queue"


@dataclass(frozen=True)
class Waiting:
    """One delivery. Dates are Unix time."""

    path: Path
    channel: str
    message: Mapping[str, Any]
    since: float
    tries: int = 0
    due: float = 0.0
    error: str = ""


def put(message: Mapping[str, Any], channels: tuple[str, ...]) -> None:
    """Keep a message for each channel, durably. Raises OSError."""
    queue_dir().mkdir(mode=0o770, parents=True, exist_ok=True)
    now = time.time()
    for channel in channels:
        path = queue_dir() / f"{now:017.6f}-{os.getpid()}-{channel}.json"
        write(Waiting(path, channel, message, now))
    for old in sorted(queue_dir().glob("*.json"))[:-MAX_WAITING]:
        old.unlink(missing_ok=True)


def write(waiting: Waiting) -> None:
    """Raises OSError."""
    fields = {
        "channel": waiting.channel, "message": dict(waiting.message), "since": waiting.since, "tries": waiting.tries,
        "due": waiting.due, "error": waiting.error,
    }  # fmt: skip
    write_atomic(waiting.path, json.dumps(fields, ensure_ascii=False).encode(), mode=0o640)


def waiting() -> Iterator[Waiting]:
    """All that wait, oldest first. A damaged file is put aside as `.bad`."""
    for path in sorted(queue_dir().glob("*.json")):
        try:
            with open(path, "rb") as handle:
                data = json.loads(handle.read(MAX_MESSAGE))
            yield Waiting(
                path, str(data["channel"]), dict(data["message"]), float(data["since"]), int(data["tries"]),
                float(data["due"]), str(data["error"]),
            )  # fmt: skip
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".bad"))


def after_failure(item: Waiting, now: float, error: str) -> Waiting | None:
    """The delivery as it waits on, each time twice as long; None when it has waited long enough. Pure."""
    if now - item.since > KEEP:
        return None
    return replace(item, tries=item.tries + 1, due=now + min(FIRST * 2**item.tries, LONGEST), error=error)

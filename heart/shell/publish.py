"""What heart writes for others: the resource file, the decision history, the mark of a running module."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from heart.core.values import Beat, Decided, Reason
from safekit.disk.files import boot_identity, reserve, write_atomic
from safekit.disk.paths import ModulePaths
from safekit.disk.resources import ResourceWriter, is_durable

REMOTE = "remote."
RESERVED = 64 << 10
"""Bytes put by for the resource file, for when others have filled the disk."""
_SIGN = struct.Struct("dd")
HISTORY_BYTES = 512 * 1024
"""Size at which the decision history is renamed to .1; so twice this is kept."""

OWN_DURABLE = frozenset(
    {
        "state.term",
        "state.former",
        "state.held",
        "state.lastprimstate",
        "state.loop",
        "state.reboot",
        "state.rival",
        "state.lineage",
        "state.vouched",
        "state.place",
    }
)
"""Facts of the automaton that a power failure may not undo (besides safekit.disk.resources.DURABLE)."""


class Published:
    """The resource file of the module: this server's resources, and the peer's as remote.class.id."""

    def __init__(self, paths: ModulePaths) -> None:
        self._writer = ResourceWriter(paths.resources)
        with contextlib.suppress(OSError):  # no room to put by: it works as long as there is room
            reserve(paths.resources, RESERVED)
        self._remote: tuple[tuple[str, str], ...] | None = ()

    def loaded(self) -> dict[str, str]:
        """Resources of the previous life, without those of the peer."""
        found = self._writer.resources
        return {name: item.value for name, item in found.items() if not name.startswith(REMOTE)}

    def detail(self, name: str) -> tuple[str, float]:
        """Who set a resource, and when (Unix time); ("", 0) for what is not a resource."""
        found = self._writer.resources.get(name)
        return (found.setter, found.since) if found is not None else ("", 0.0)

    def remember(self, values: Iterable[tuple[str, str]], who: Mapping[str, str]) -> None:
        """Set resources; all durable ones are on disk, by one write, when this returns.

        `who` names the setter of a resource (heart when absent).  Raises OSError: then nothing may be
        done that relies on them.
        """
        durable = False
        for name, value in values:
            durable |= is_durable(name) or name in OWN_DURABLE
            self._put(name, value, who.get(name, "heart"))
        if durable:
            self._writer.flush(durable=True)

    def _put(self, name: str, value: str, who: str) -> None:
        self._writer.put(name, value, who)

    def forget(self, names: Iterable[str]) -> None:
        """Remove resources."""
        for name in names:
            self._writer.remove(name)

    def remote(self, beat: Beat | None) -> None:
        """Show what the peer says of itself; nothing while it is not heard."""
        values = beat.resources if beat is not None else ()
        if values == self._remote:
            return
        old = {name for name, _ in self._remote or ()}
        for name, value in values:
            self._put(REMOTE + name, value, beat.node if beat is not None else "heart")
        for name in old - {name for name, _ in values}:
            self._writer.remove(REMOTE + name)
        self._remote = values

    def clear_remote(self) -> None:
        """A heart that begins knows nothing of the peer."""
        for name in [name for name in self._writer.resources if name.startswith(REMOTE)]:
            self._writer.remove(name)
        self._remote = ()

    def flush(self) -> None:
        """Publish what changed and is not durable.  Raises OSError."""
        self._writer.flush()


class History:
    """The decisions of heart, one JSON object a line, bounded (read by `safekit why`)."""

    def __init__(self, directory: Path, node: str, name: str = "decisions.jsonl") -> None:
        self._path = directory / name
        self._node = node
        directory.mkdir(mode=0o770, parents=True, exist_ok=True)

    def record(self, decisions: Iterable[Decided]) -> None:
        """Append decisions.  Raises OSError."""
        lines = [
            json.dumps(
                {
                    "number": item.number,
                    "time": item.time,
                    "node": self._node,
                    "rule": item.rule,
                    "action": item.outcome,
                    "inputs": {
                        name: {"value": value, "setter": setter, "since": since} if setter else value
                        for name, value, setter, since in item.inputs
                    },
                    "text": str(Reason(item.rule, item.outcome, tuple((n, v) for n, v, _, _ in item.inputs))),
                },
                ensure_ascii=False,
            )
            for item in decisions
        ]
        if not lines:
            return
        with open(self._path, "a", encoding="utf-8") as handle:
            handle.write("\n".join(lines) + "\n")
            size = handle.tell()
        if size > HISTORY_BYTES:
            os.replace(self._path, self._path.with_suffix(".jsonl.1"))


class LifeSign:
    """SAFEVAR/modules/AM/heart.alive: when heart was last awake, and when it sent the newest heartbeat that the peer
    has confirmed, for the heart that follows it in the same boot."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)

    def ages(self) -> tuple[float, float]:
        """Seconds since heart was awake and since the confirmed heartbeat; infinite when nothing is known.  A suspended
        machine counts."""
        data, now = os.pread(self._descriptor, _SIGN.size, 0), time.clock_gettime(time.CLOCK_BOOTTIME)
        known = _SIGN.unpack(data) if len(data) == _SIGN.size else (-math.inf, -math.inf)
        return now - known[0], now - known[1]

    def give(self, unconfirmed: float) -> None:
        """Heart is awake; `unconfirmed`: seconds since the confirmed heartbeat.  Raises OSError.  Not synced: after a
        power failure nobody adopts anything."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.pwrite(self._descriptor, _SIGN.pack(now, now - unconfirmed), 0)

    def close(self) -> None:
        """No more signs."""
        os.close(self._descriptor)


class RunningMark:
    """SAFEVAR/modules/AM/running: there while the module runs; holds the identity of the boot."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def state(self) -> str:
        """ "" (clean), "same" (left by this boot: only processes died) or "other" (left by an earlier boot)."""
        try:
            text = self._path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""
        return "same" if text == boot_identity() else "other"

    def set(self, present: bool) -> None:
        """Make or remove the mark, durably.  Raises OSError."""
        if present:
            write_atomic(self._path, boot_identity().encode())
        else:
            self._path.unlink(missing_ok=True)

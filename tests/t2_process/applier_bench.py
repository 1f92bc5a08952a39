"""A secondary without a primary: frames are put into its applier, and what it does with them is noted."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfsbox.pair.commit import Disks
from nfsbox.pair.engine import Root
from nfsbox.pair.secondary import Applier
from safekit.rfs.exclusions import Exclusions
from safekit.rfs.wire import HEADER, Flag, Op, Set, WireClosed, pack_attr

Event = tuple[str, Any]


class Channel:
    """Frames in groups: those of one group have arrived together."""

    def __init__(self, groups: list[list[bytes]], events: list[Event]) -> None:
        self.groups = deque(deque(group) for group in groups)
        self.events = events
        self.received = 0

    def arrived(self) -> bool:
        return bool(self.groups and self.groups[0])

    def receive(self) -> bytes | None:
        while self.groups and not self.groups[0]:
            self.groups.popleft()
        if not self.groups:
            raise WireClosed(errno.EPIPE, "closed by the test")
        self.received += 1
        return self.groups[0].popleft()

    def send_ack(self, number: int) -> None:
        self.events.append(("ack", number))

    def send(self, _op: int, *, a: int, b: int, extra: int, flags: int, body: bytes, timeout: float) -> None:
        assert b in (0, 1) and timeout
        self.events.append(("error" if extra else "ack", (a, extra, flags, body)))

    def shutdown(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Bench:
    """A secondary that is equal, with async="none"; `events`: syncs (by name) and acknowledgements in their order."""

    backing: Path
    events: list[Event] = field(default_factory=list)
    reason: str = ""
    refused: bool = False
    """The disk is remembered to have refused something."""

    def run(self, *groups: list[bytes], durable: bool = True, strict: bool = True) -> list[Event]:
        ended = threading.Event()

        def end(reason: str, _token: bytes | None) -> None:
            self.reason = reason
            ended.set()

        root = Root(0, b"/nowhere", os.fsencode(self.backing), Exclusions((), ()))
        channel: Any = Channel([*groups], self.events)
        disks = Disks((root.backing,))
        Applier(channel, (root,), disks, strict=strict, durable=durable, on_end=end, on_strict=lambda _: None).start()
        assert ended.wait(10)
        self.refused = disks.refused
        return self.events


def frame(
    op: Op, fid: int = 0, a: int = 0, b: int = 0, body: bytes = b"", *, extra: int = 0, ack: bool = True
) -> bytes:
    return HEADER.pack(op, Flag.ACK if ack else 0, 0, extra, fid, a, b) + body


def create(fid: int, name: bytes, *, ack: bool = True) -> bytes:
    attr = pack_attr(Set.MODE | Set.UID | Set.GID, 0o100644, os.getuid(), os.getgid())
    return frame(Op.CREATE, fid, b=0o644, body=attr + name, ack=ack)


def write(fid: int, at: int, data: bytes, *, ack: bool = True) -> bytes:
    return frame(Op.WRITE, fid, at, body=data, ack=ack)

"""A slow link: carries frames between two interfaces of the switch, each a given time after it came.

The kernel's netem is not everywhere. Frames keep their unfinished checksums and segmentation (PACKET_VNET_HDR), so
that hosts behind the relay need no change.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from collections import deque

from safekit import syscalls

_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_ETH_P_ALL = 3
_FRAME = 1 << 17
_MAX_QUEUED = 64 << 20  # bytes each direction; beyond, a full queue drops, as a router does


class Direction:
    """Frames on their way from one interface to the other, first in first out."""

    def __init__(self, destination: socket.socket, delay: float) -> None:
        self.destination = destination
        self.delay = delay
        self.queue: deque[tuple[float, bytes]] = deque()
        self.queued = 0
        self.lost = 0

    def add(self, frame: bytes, now: float) -> None:
        if self.queued + len(frame) <= _MAX_QUEUED:
            self.queue.append((now + self.delay, frame))
            self.queued += len(frame)
        else:
            self.lost += 1

    def send_due(self, now: float) -> float | None:
        """Send what is due; returns when the next frame is."""
        while self.queue and self.queue[0][0] <= now:
            _, frame = self.queue.popleft()
            self.queued -= len(frame)
            try:
                self.destination.send(frame)
            except OSError:  # the far end is down or full: a wire loses such frames too
                self.lost += 1
        return self.queue[0][0] if self.queue else None


def open_interface(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((name, _ETH_P_ALL))
    sock.setblocking(False)
    return sock


def main(first: str, second: str, milliseconds: float) -> None:
    """Run for ever; the keeper ends us."""
    syscalls.name_process("safelab-relay")
    left, right = open_interface(first), open_interface(second)
    directions = {left: Direction(right, milliseconds / 1000), right: Direction(left, milliseconds / 1000)}
    selector = selectors.DefaultSelector()
    selector.register(left, selectors.EVENT_READ)
    selector.register(right, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        due = [when for direction in directions.values() if (when := direction.send_due(now)) is not None]
        for key, _ in selector.select(max(0.0, min(due) - time.monotonic()) if due else None):
            source = key.fileobj
            assert isinstance(source, socket.socket)
            for _ in range(64):
                try:
                    directions[source].add(source.recv(_FRAME), time.monotonic())
                except BlockingIOError:
                    break
                except OSError:  # told once when the interface goes down; frames come again when it is up
                    break


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))

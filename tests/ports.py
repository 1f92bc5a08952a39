"""Ports for servers that tests start.

A port that the kernel chooses (by a bind to 0) belongs to nobody as soon as it is let go of: before the server of the
test has it, a connection that goes out may have it, or the next who asks. These ports lie below the range from which
the kernel chooses, each worker of a run has its own part of them, and a worker gives none twice before it has given
all.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import chain

FIRST, PART, PARTS = 12_000, 2_500, 8
"""The ports of a worker are PART many; worker 8 shares those of worker 0. All lie below 32,768."""


def _of_this_worker() -> Iterator[int]:
    """Endless. Runs of several checkouts at once begin at different ones."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST + number % PARTS * PART
    begin = first + os.getpid() * 101 % PART
    while True:
        yield from chain(range(begin, first + PART), range(first, begin))


_ports = _of_this_worker()


def free_port() -> int:
    """A port that nobody has, neither of TCP nor of UDP. Raises RuntimeError when all are taken."""
    for _ in range(PART):
        port = next(_ports)
        if all(_is_free(kind, port) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            return port
    raise RuntimeError(f"none of {PART} ports is free: which processes of former tests are left?")


def free_ports(count: int) -> list[int]:
    """Different ones."""
    return [free_port() for _ in range(count)]


def _is_free(kind: socket.SocketKind, port: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as sock:
        try:
            sock.bind(("", port))
        except OSError:
            return False
    return True

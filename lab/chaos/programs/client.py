"""Clients of PostgreSQL in a campaign: insert rows through the virtual address, and note each that was acknowledged.

Runs in the client of a lab: `python -m lab.chaos.programs.client HOST WORKERS FILE`, until it is killed. A line of FILE
is `WORKER ROW TIME`. A connection that says nothing is given up, and a row whose fate is unknown is not counted.
"""

from __future__ import annotations

import os
import selectors
import sys
import time
from typing import TextIO

from lab.demo.client import SILENCE, Worker

CONNECTION = (
    "host={host} user=postgres dbname=postgres connect_timeout=2 tcp_user_timeout=2000 "
    "keepalives_idle=1 keepalives_interval=1 keepalives_count=2 application_name=chaos"
)
STANDSTILL = "/var/tmp/standstill"  # while this file is there, no row is sent
STILL = "/var/tmp/still"  # is there while that is so and every row that was answered is noted
PAUSE = 0.08  # seconds between two rows of a worker


class Client:
    """The workers, and the times at which they may send again."""

    def __init__(self, host: str, count: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.workers = [Worker(n, CONNECTION.format(host=host), self.selector) for n in range(1, count + 1)]
        begin = time.time_ns() // 1_000_000_000 % 1_000_000 * 1000  # rows of an earlier client are others
        for worker in self.workers:
            worker.row = begin
        self.rests: dict[int, float] = {}
        """Number of a worker whose row was confirmed: when it sends the next one."""

    def turn(self, notes: TextIO, *, still: bool) -> None:
        """Note what was confirmed, give up what says nothing, and send what is due unless the client stands still."""
        for key, _ in self.selector.select(0.02):
            row = key.data.confirmed()
            if row is not None:
                notes.write(f"{key.data.number} {row} {time.monotonic():.3f}\n")
                self.rests[key.data.number] = time.monotonic() + PAUSE
        now = time.monotonic()
        for worker in self.workers:
            if worker.psql is None:
                self.rests.pop(worker.number, None)
                if now >= worker.retry_at and not still:
                    worker.connect()
            elif worker.number not in self.rests:
                if now - worker.sent > SILENCE:
                    worker.drop()
            elif now >= self.rests[worker.number] and not still:
                del self.rests[worker.number]
                worker.insert()

    @property
    def under_way(self) -> bool:
        """Whether a row was sent whose answer is awaited."""
        return any(worker.psql is not None and worker.number not in self.rests for worker in self.workers)


def main() -> None:
    """Until killed."""
    host, count, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    client = Client(host, count)
    with open(path, "a", buffering=1) as notes:
        while True:
            still = os.path.exists(STANDSTILL)
            client.turn(notes, still=still)
            if still and not client.under_way and not os.path.exists(STILL):
                os.close(os.open(STILL, os.O_WRONLY | os.O_CREAT, 0o644))


if __name__ == "__main__":
    main()

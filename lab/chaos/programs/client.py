"""Clients of PostgreSQL in a campaign: insert rows through the virtual address, and note each that was acknowledged.

Runs in the client of a lab: `python -m lab.chaos.programs.client HOST WORKERS FILE`, until it is killed. A line of FILE
is `WORKER ROW TIME`. A connection that says nothing is given up, and a row whose fate is unknown is not counted.
"""

from __future__ import annotations

import os
import selectors
import sys
import time

from lab.demo.client import SILENCE, Worker

CONNECTION = (
    "host={host} user=postgres dbname=postgres connect_timeout=2 tcp_user_timeout=2000 "
    "keepalives_idle=1 keepalives_interval=1 keepalives_count=2 application_name=chaos"
)
STANDSTILL = "/var/tmp/standstill"  # while this file is there, no row is sent
PAUSE = 0.08  # seconds between two rows of a worker


def main() -> None:
    """Until killed."""
    host, count, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    selector = selectors.DefaultSelector()
    begin = time.time_ns() // 1_000_000_000 % 1_000_000 * 1000  # rows of an earlier client are others
    workers = [Worker(number, CONNECTION.format(host=host), selector) for number in range(1, count + 1)]
    for worker in workers:
        worker.row = begin
    with open(path, "a", buffering=1) as notes:
        while True:
            now = time.monotonic()
            for worker in workers:
                if worker.psql is None and now >= worker.retry_at:
                    worker.connect()
                elif worker.psql is not None and now - worker.sent > SILENCE:
                    worker.drop()
            for key, _ in selector.select(0.05):
                row = key.data.confirmed()
                if row is not None:
                    notes.write(f"{key.data.number} {row} {time.monotonic():.3f}\n")
                    time.sleep(PAUSE)
                    while os.path.exists(STANDSTILL):
                        time.sleep(PAUSE)
                    key.data.insert()


if __name__ == "__main__":
    main()

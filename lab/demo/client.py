"""The client of the demonstration: inserts rows as fast as it can, and keeps the list of those acknowledged.

Stands alone, inside the client node: `client.py HOST WORKERS FILE`. Each worker is a psql that is started again when
its connection breaks. A row counts when PostgreSQL has confirmed its commit: only then is its number written to FILE.
Prints one JSON object several times a second; ends when its standard input is closed.
"""

import json
import os
import selectors
import subprocess
import sys
import time

REPORT = 0.25
# A connection to a server that lost its power says nothing: give up after this, and connect again.
SILENCE = 2.0
CONNECTION = (
    "host={host} user=demo dbname=demo connect_timeout=2 tcp_user_timeout=2000 "
    "keepalives_idle=1 keepalives_interval=1 keepalives_count=2 application_name=demo"
)
PAYLOAD = "x" * 200


class Worker:
    """One connection and the row that is on its way."""

    def __init__(self, number: int, connection: str, selector: selectors.BaseSelector) -> None:
        self.number = number
        self.connection = connection
        self.selector = selector
        self.row = 0
        self.sent = 0.0
        self.psql: subprocess.Popen[bytes] | None = None
        self.buffer = b""
        self.retry_at = 0.0

    def connect(self) -> None:
        self.psql = subprocess.Popen(
            ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", self.connection],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self.psql.stdout is not None
        os.set_blocking(self.psql.stdout.fileno(), False)
        self.selector.register(self.psql.stdout, selectors.EVENT_READ, self)
        self.buffer = b""
        self.insert()

    def insert(self) -> None:
        """Send the next row. A row whose fate is unknown is left alone: it may be there or not, and is not counted."""
        assert self.psql is not None and self.psql.stdin is not None
        self.row += 1
        self.sent = time.monotonic()
        line = f"INSERT INTO rows VALUES ({self.number}, {self.row}, '{PAYLOAD}') RETURNING row;\n"
        try:
            self.psql.stdin.write(line.encode())
        except BrokenPipeError:
            self.drop()

    def drop(self) -> None:
        if self.psql is None:
            return
        assert self.psql.stdout is not None and self.psql.stdin is not None
        self.selector.unregister(self.psql.stdout)
        self.psql.kill()
        self.psql.wait()
        self.psql.stdout.close()
        self.psql.stdin.close()
        self.psql = None
        self.retry_at = time.monotonic() + 0.1

    def confirmed(self) -> int | None:
        """Number of the row that was just confirmed."""
        assert self.psql is not None and self.psql.stdout is not None
        try:
            data = os.read(self.psql.stdout.fileno(), 4096)
        except BlockingIOError:
            return None
        self.buffer += data
        if not data:
            self.drop()
            return None
        line, newline, rest = self.buffer.partition(b"\n")
        if not newline:
            return None
        self.buffer = rest
        if line.strip() != str(self.row).encode():
            self.drop()
            return None
        return self.row


def main() -> None:
    host, workers, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    connection = CONNECTION.format(host=host)
    all_workers = [Worker(number, connection, selector) for number in range(1, workers + 1)]
    acknowledged, longest, last, next_report = 0, 0.0, 0.0, 0.0
    stopping = False
    with open(path, "w") as kept:
        while not stopping:
            now = time.monotonic()
            for worker in all_workers:
                if worker.psql is None and now >= worker.retry_at:
                    worker.connect()
                elif worker.psql is not None and now - worker.sent > SILENCE:
                    worker.drop()
            if now >= next_report:
                pause = now - last if last else 0.0
                report = {"acknowledged": acknowledged, "pause": pause, "longest": max(longest, pause)}
                print(json.dumps(report), flush=True)
                kept.flush()
                next_report = now + REPORT
            for key, _ in selector.select(0.05):
                worker = key.data
                if worker is None:
                    stopping = not os.read(0, 4096)
                    continue
                row = worker.confirmed()
                if row is None:
                    continue
                now = time.monotonic()
                if last:
                    longest = max(longest, now - last)
                last = now
                acknowledged += 1
                kept.write(f"{worker.number} {row}\n")
                worker.insert()
    for worker in all_workers:
        worker.drop()
    print(json.dumps({"acknowledged": acknowledged, "pause": 0.0, "longest": longest}), flush=True)


if __name__ == "__main__":
    main()

"""Clients of a farm in a campaign: connect again and again, and note who answered.

Stands alone, in the client of a lab: `visitor.py ADDRESS THREADS FILE`, until it is killed. A line of FILE is
`BEGIN SECONDS SERVER`; SERVER begins with ! when the connection failed.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time

LIMIT = 2.0
PAUSE = 0.05
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no connection stays in TIME_WAIT


def visit(address: str, notes: int) -> None:
    """One thread."""
    while True:
        begun = time.monotonic()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.settimeout(LIMIT)
            try:
                connection.connect((address, 80))
                connection.sendall(b"x")
                who = connection.recv(64).decode() or "!empty"
            except OSError as error:
                who = f"!{type(error).__name__}"
        os.write(notes, f"{begun:.3f} {time.monotonic() - begun:.3f} {who}\n".encode())
        time.sleep(PAUSE)


def main() -> None:
    """Until killed."""
    notes = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    threads = [threading.Thread(target=visit, args=(sys.argv[1], notes)) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main()

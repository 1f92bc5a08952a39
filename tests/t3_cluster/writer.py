"""The application of the cluster tests: writes records durably, and notes each acknowledged one on its own node.

Runs alone inside a lab node: `writer.py DIRECTORY NOTES`. A record is a line of a journal (J), every tenth also a
slot of a table that is written at random places (T), every fortieth also a file of its own that is renamed
into place (F). A record is noted only when the system said that it is on disk.
"""

import os
import random
import sys
import time

PAUSE = "/var/tmp/writer.pause"
PAUSED = "/var/tmp/writer.paused"
INTERVAL = 0.004
SLOTS = 2048


def write_all(descriptor: int, data: bytes, offset: int | None = None) -> None:
    """Write and make durable."""
    if offset is None:
        assert os.write(descriptor, data) == len(data)
    else:
        assert os.pwrite(descriptor, data, offset) == len(data)
    os.fsync(descriptor)


def main(directory: str, acknowledged: str) -> None:
    """Until killed."""
    life = f"{os.uname().nodename}-{time.time_ns():x}"
    notes = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.makedirs(f"{directory}/files", exist_ok=True)
    journal = os.open(f"{directory}/journal.{life}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    table = os.open(f"{directory}/table.{life}", os.O_RDWR | os.O_CREAT, 0o640)
    places = random.sample(range(SLOTS), SLOTS)
    number = 0
    while True:
        number += 1
        record = f"{life}.{number}"
        write_all(journal, f"{record}\n".encode())
        os.write(notes, f"J{record}\n".encode())
        if number % 10 == 0 and places:
            write_all(table, record.encode().ljust(64, b"\0"), places.pop() * 512)
            os.write(notes, f"T{record}\n".encode())
        if number % 40 == 0:
            temporary, final = f"{directory}/files/.{record}", f"{directory}/files/{record}"
            fresh = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            write_all(fresh, record.encode())
            os.close(fresh)
            os.rename(temporary, final)
            folder = os.open(f"{directory}/files", os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
            os.write(notes, f"F{record}\n".encode())
        while os.path.exists(PAUSE):
            if not os.path.exists(PAUSED):
                os.close(os.open(PAUSED, os.O_WRONLY | os.O_CREAT, 0o644))
            time.sleep(0.02)
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Load of the stress campaign: threads that make records durable and note each acknowledged one on their own node.

Runs alone inside a lab node: `stress_load.py DIRECTORY BACKING NAME`. NAME `app` is the application of the module;
`stray` lives on whatever the module does, as a program that no stop script knows: it writes whenever the replicated
directory is mounted and lets it. Both account in the same way: a record is noted when the system said that it is on
disk, and not when it returned an error.

Records: `A file record` a line of one of many files that only grow; `O file slot number` a slot that is overwritten
with rising numbers; `R path` a file that was made, written, and renamed into place.
"""

import os
import random
import sys
import threading
import time

NOTES = "/witness/stress.acknowledged"  # on a disk that loses nothing at a power-off
PAUSE = "/var/tmp/stress.pause"
PAUSED = "/var/tmp/stress.paused."
FILES, SLOTS, SLOT = 12, 8, 32


class Load:
    """The threads and what they share."""

    def __init__(self, directory, backing, name):
        self.directory, self.backing, self.name = directory, backing, name
        self.life = f"{name}-{os.uname().nodename}-{time.time_ns():x}"
        self.notes = os.open(NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.changed = threading.Condition()
        self.going = True
        self.busy = 0

    def mounted(self, descriptor):
        """Whether a descriptor lies in the mount and not in the data behind it."""
        return os.fstat(descriptor).st_dev != os.stat(self.backing).st_dev

    def open(self, path, flags, mode=0o640):
        """A descriptor in the mount. Raises OSError otherwise."""
        above = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not self.mounted(above):
                raise OSError(1, "not mounted")
            folder = os.path.dirname(path)
            try:
                os.mkdir(folder, dir_fd=above)
            except FileExistsError:
                pass
            return os.open(path, flags, mode, dir_fd=above), above
        except BaseException:
            os.close(above)
            raise

    def append(self, number):
        path = f"a/{self.life}.{random.randrange(FILES)}"
        record = f"{self.life}.{threading.get_ident()}.{number}"
        self.write(path, f"{record}\n".encode(), None)
        return f"A {path} {record}"

    def overwrite(self, number):
        path, slot = f"o/{self.life}.{threading.get_ident()}", random.randrange(SLOTS)
        self.write(path, str(number).encode().ljust(SLOT, b"\n"), slot * SLOT)
        return f"O {path} {slot} {number}"

    def replace(self, number):
        name = f"{self.life}.{threading.get_ident()}.{number}"
        descriptor, above = self.open(f"r/.{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, name.encode())
            os.fsync(descriptor)
            os.rename(f"r/.{name}", f"r/{name}", src_dir_fd=above, dst_dir_fd=above)
        finally:
            os.close(descriptor)
            os.close(above)
        return f"R r/{name}"

    def write(self, path, data, offset):
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if offset is None else 0)
        descriptor, above = self.open(path, flags)
        try:
            done = os.write(descriptor, data) if offset is None else os.pwrite(descriptor, data, offset)
            if done != len(data):
                raise OSError(28, "short write")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            os.close(above)

    def work(self, operation, interval):
        number = 0
        while True:
            with self.changed:
                while not self.going:
                    self.changed.wait()
                self.busy += 1
            number += 1
            note, rest = "", interval
            try:
                note = operation(number)
            except OSError:
                rest = 0.05
            if note:
                os.write(self.notes, f"{note}\n".encode())
            with self.changed:
                self.busy -= 1
                self.changed.notify_all()
            time.sleep(rest)

    def run(self):
        """Start the threads, and pause when asked, until killed."""
        work = ((self.append, 0.004), (self.append, 0.004), (self.overwrite, 0.006), (self.replace, 0.02))
        for operation, interval in work:
            threading.Thread(target=self.work, args=(operation, interval), daemon=True).start()
        marker = PAUSED + self.name
        while True:
            if os.path.exists(PAUSE):
                with self.changed:
                    self.going = False
                    while self.busy:
                        self.changed.wait(1.0)
                if not os.path.exists(marker):
                    os.close(os.open(marker, os.O_WRONLY | os.O_CREAT, 0o644))
            elif not self.going:
                with self.changed:
                    self.going = True
                    self.changed.notify_all()
            time.sleep(0.02)


if __name__ == "__main__":
    Load(*sys.argv[1:4]).run()

"""The application of a campaign. It makes records durable and notes each one that the system has acknowledged.

Stands alone, inside a node: `application.py start|stop|prune DIRECTORY`. The ledgers:

- J: a line of a journal that only grows, one for each life of the application;
- R: a file that is made, written, and renamed into place;
- S: a row of a table in SQLite;
- churn, not a ledger: names, links, modes and lengths that change all the time, for the comparison of the trees.

With a directory `pg` of PostgreSQL in it the application runs that server too, for clients on the network. A note is
`LEDGER LIFE NUMBER TIME`, TIME on the monotonic clock that all machines of a lab share.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

NAME = "chaosapp"
WITNESS = "/witness"  # on a disk that loses nothing at a power-off
NOTES, PAUSE, PAUSED, LOCK = (f"{WITNESS}/{name}" for name in ("acknowledged", "pause", "paused", "runner"))
PID = "/run/chaosapp.pid"
STOP_SECONDS = 4.0
_PR_SET_NAME, _PR_SET_PDEATHSIG = 15, 1
_libc = ctypes.CDLL(None, use_errno=True)


class Application:
    """The threads of the ledgers, and PostgreSQL."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.life = f"{os.uname().nodename}-{time.time_ns():x}"
        self.notes = os.open(NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.changed = threading.Condition()
        self.going, self.busy = True, 0
        self.postgres: subprocess.Popen[bytes] | None = None
        self.numbers = random.Random(self.life)
        for name in ("j", "r", "c"):
            os.makedirs(f"{directory}/{name}", exist_ok=True)
        self.journal = os.open(f"{directory}/j/{self.life}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self.base: sqlite3.Connection | None = None

    def note(self, ledger: str, number: int) -> None:
        os.write(self.notes, f"{ledger} {self.life} {number} {time.monotonic():.3f}\n".encode())

    # --- the ledgers: return when the record is acknowledged

    def append(self, number: int) -> None:
        data = f"{number}\n".encode()
        if os.write(self.journal, data) != len(data):
            os.write(self.journal, b"\n")  # a short write on a full disk leaves a torn line, and no note
            raise OSError(errno.ENOSPC, "short write")
        os.fsync(self.journal)
        self.note("J", number)

    def replace(self, number: int) -> None:
        name = f"{self.life}.{number}"
        folder = f"{self.directory}/r"
        descriptor = os.open(f"{folder}/.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, name.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(f"{folder}/.{name}", f"{folder}/{name}")
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.note("R", number)

    def insert(self, number: int) -> None:
        try:
            if self.base is None:
                self.base = open_database(self.directory)
            self.base.execute("INSERT INTO ledger VALUES (?, ?)", (self.life, number))
            self.base.commit()
        except sqlite3.Error as error:
            if self.base is not None:
                self.base.close()
            self.base = None
            raise OSError(errno.EIO, str(error)) from error
        self.note("S", number)

    def churn(self, number: int) -> None:
        """One random change among few names. Whatever the file system refuses, the other names go on."""
        choose = self.numbers
        folder = f"{self.directory}/c"
        one, two = (f"{folder}/{choose.randrange(4)}/{choose.randrange(12)}" for _ in range(2))
        os.makedirs(os.path.dirname(one), exist_ok=True)
        os.makedirs(os.path.dirname(two), exist_ok=True)
        what = choose.randrange(9)
        if what <= 2:
            with open(one, "ab") as file:
                file.write(os.urandom(choose.randrange(1, 6000)))
        elif what == 3:
            os.truncate(one, choose.randrange(20000))
        elif what == 4:
            os.rename(one, two)
        elif what == 5:
            os.link(one, two, follow_symlinks=False)
        elif what == 6:
            os.unlink(one)
        elif what == 7:
            os.chmod(one, choose.choice((0o600, 0o644, 0o755)))
        else:
            os.symlink(f"../{number}", two)

    # --- life

    def work(self, operation: Callable[[int], None], interval: float) -> NoReturn:
        number = 0
        while True:
            with self.changed:
                while not self.going:
                    self.changed.wait()
                self.busy += 1
            number += 1
            rest = interval
            try:
                operation(number)
            except OSError:
                rest = 0.05  # not acknowledged: not noted
            with self.changed:
                self.busy -= 1
                self.changed.notify_all()
            time.sleep(rest)

    def run_postgres(self) -> None:
        """Start PostgreSQL when it does not run; it ends with this process."""
        data = f"{self.directory}/pg"
        if not os.path.isdir(data) or (self.postgres is not None and self.postgres.poll() is None):
            return
        # Only one server is primary: a lock file whose postmaster does not run here protects nobody.
        if os.path.exists(f"{data}/postmaster.pid"):
            os.unlink(f"{data}/postmaster.pid")
        os.makedirs("/var/run/postgresql", exist_ok=True)
        os.chmod("/var/run/postgresql", 0o1777)
        with open("/var/tmp/postgres.log", "ab") as log:
            self.postgres = subprocess.Popen(
                [f"{programs()}/postgres", "-D", data], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                user="postgres", group="postgres", extra_groups=[],
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT),
            )  # fmt: skip

    def end(self, *_: object) -> NoReturn:
        """At once and for good: PostgreSQL first, because its processes hold files of the directory."""
        if self.postgres is not None and self.postgres.poll() is None:
            self.postgres.send_signal(signal.SIGQUIT)
            try:
                self.postgres.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.postgres.kill()
        os._exit(0)

    def run(self, ready: int) -> NoReturn:
        """Until killed or told to stop; writes to `ready` when it works."""
        held = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.lockf(held, fcntl.LOCK_EX)  # waits for a predecessor on this server that is still dying
        signal.signal(signal.SIGTERM, self.end)
        self.run_postgres()
        for operation, interval in (
            (self.append, 0.025), (self.replace, 0.15), (self.insert, 0.15), (self.churn, 0.06),
        ):  # fmt: skip
            threading.Thread(target=self.work, args=(operation, interval), daemon=True).start()
        os.write(ready, b"ready")
        os.close(ready)
        looked = time.monotonic()
        while True:
            if os.path.exists(PAUSE):
                with self.changed:
                    self.going = False
                    while self.busy:
                        self.changed.wait(1.0)
                if not os.path.exists(PAUSED):
                    os.close(os.open(PAUSED, os.O_WRONLY | os.O_CREAT, 0o644))
            elif not self.going:
                with self.changed:
                    self.going = True
                    self.changed.notify_all()
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                self.run_postgres()
            time.sleep(0.02)


def programs() -> str:
    """Where PostgreSQL's programs are: the newest ones."""
    return max(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))


def open_database(directory: str) -> sqlite3.Connection:
    """The ledger in SQLite; each commit is on disk when it returns."""
    base = sqlite3.connect(f"{directory}/ledger.sqlite", timeout=10, check_same_thread=False)
    base.execute("PRAGMA synchronous=FULL")
    base.execute("CREATE TABLE IF NOT EXISTS ledger (life TEXT, number INTEGER, PRIMARY KEY (life, number))")
    base.commit()
    return base


def start(directory: str) -> int:
    """Start the application in the background; its end of the pipe says when it works."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        _libc.prctl(_PR_SET_NAME, NAME.encode())
        os.close(read)
        out = os.open("/var/tmp/chaosapp.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        with open(PID, "w") as file:
            file.write(str(os.getpid()))
        os.chdir("/")
        Application(directory).run(write)
    os.close(write)
    return 0 if os.read(read, 5) == b"ready" else 1


def is_ours(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip() == NAME
    except FileNotFoundError:
        return False


def stop(directory: str) -> int:
    """Stop the application, by force when it has to be."""
    try:
        with open(PID) as file:
            pid = int(file.read() or "0")
    except FileNotFoundError:
        return 0
    deadline = time.monotonic() + STOP_SECONDS + 0.5
    number: int = signal.SIGTERM
    while pid and is_ours(pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            break
        time.sleep(0.02)
        number = 0 if time.monotonic() < deadline else signal.SIGKILL
    return 0


class Checked(NamedTuple):
    """`lost`: records that are noted and not there, with the time of the note; `sqlite`: what it says of its file."""

    lost: list[tuple[str, float]]
    sqlite: str


def read_database(directory: str) -> tuple[set[tuple[str, int]], str]:
    """Every row of the ledger in SQLite, and what SQLite says of its file. It is read from a copy with its journal, as
    the application would find it: SQLite refuses paths through /proc, by which the campaign comes here."""
    with tempfile.TemporaryDirectory() as place:
        for name in ("ledger.sqlite", "ledger.sqlite-journal"):
            if os.path.exists(f"{directory}/{name}"):
                shutil.copyfile(f"{directory}/{name}", f"{place}/{name}")
        base = sqlite3.connect(f"{place}/ledger.sqlite")
        try:
            tables = base.execute("SELECT count(*) FROM sqlite_master WHERE name = 'ledger'").fetchone()[0]
            rows = set(base.execute("SELECT life, number FROM ledger")) if tables else set()
            return rows, str(base.execute("PRAGMA integrity_check").fetchone()[0])
        except sqlite3.DatabaseError as error:
            return set(), str(error)
        finally:
            base.close()


def check(directory: str, notes: list[str]) -> Checked:
    """Look for every record that was noted."""
    found: dict[str, set[str]] = {}
    lost: list[tuple[str, float]] = []
    rows, healthy = read_database(directory)
    names = set(os.listdir(f"{directory}/r"))
    for line in notes:
        ledger, life, number, when = line.split()
        if ledger == "J":
            if life not in found:
                try:
                    with open(f"{directory}/j/{life}") as file:
                        found[life] = set(file.read().split("\n")[:-1])
                except FileNotFoundError:
                    found[life] = set()
            there = number in found[life]
        elif ledger == "S":
            there = (life, int(number)) in rows
        else:
            there = f"{life}.{number}" in names
            if there:
                with open(f"{directory}/r/{life}.{number}") as file:
                    there = file.read() == f"{life}.{number}"
        if not there:
            lost.append((f"{ledger} {life} {number}", float(when)))
    return Checked(lost, healthy)


def prune(directory: str) -> int:
    """Remove records that were accounted for; the journal of a life that goes on stays."""
    for folder in ("j", "r"):
        names = sorted(os.listdir(f"{directory}/{folder}"), key=lambda name: name.split("-")[-1])
        for name in names[:-1] if folder == "j" else names:
            os.unlink(f"{directory}/{folder}/{name}")
    base = open_database(directory)
    base.execute("DELETE FROM ledger")
    base.commit()
    base.close()
    return 0


if __name__ == "__main__":
    sys.exit({"start": start, "stop": stop, "prune": prune}[sys.argv[1]](sys.argv[2]))

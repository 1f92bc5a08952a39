"""Workloads of the replication benchmark: each takes a directory and returns a rate, more is better."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
BLOCK = 4096

Workload = Callable[[Path], float]


def sequential_write(base: Path) -> float:
    """MB/s of 1 MiB writes and a final fsync."""
    data, count = os.urandom(MIB), 64
    begin = time.perf_counter()
    with open(base / "sequential", "wb", buffering=0) as handle:
        for _ in range(count):
            handle.write(data)
        os.fsync(handle.fileno())
    return count / (time.perf_counter() - begin)


def sequential_read(base: Path) -> float:
    """MB/s of 1 MiB reads of a file that the page cache does not hold."""
    path = base / "sequential"
    if not path.exists():
        sequential_write(base)
    forget(path)
    with open(path, "rb", buffering=0) as handle:
        begin = time.perf_counter()
        size = 0
        while data := handle.read(MIB):
            size += len(data)
        return size / MIB / (time.perf_counter() - begin)


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    if path.exists():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def random_write(base: Path) -> float:
    """4 KiB writes a second at random places of a file of 32 MiB."""
    return _random(base, 3000, sync=False)


def random_write_fsync(base: Path) -> float:
    """4 KiB writes a second, each followed by fsync."""
    return _random(base, 300, sync=True)


def _random(base: Path, count: int, *, sync: bool) -> float:
    rng, data = random.Random(1), os.urandom(BLOCK)
    descriptor = os.open(base / "random", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, 32 * MIB) if os.fstat(descriptor).st_size == 0 else None
        begin = time.perf_counter()
        for _ in range(count):
            os.pwrite(descriptor, data, rng.randrange(32 * MIB // BLOCK) * BLOCK)
            if sync:
                os.fsync(descriptor)
        return count / (time.perf_counter() - begin)
    finally:
        os.close(descriptor)


def small_files(base: Path) -> float:
    """Operations a second: 2,000 files of 1 KiB made, looked at and removed."""
    directory, data, count = base / "small", b"x" * 1024, 2000
    directory.mkdir()
    begin = time.perf_counter()
    for number in range(count):
        with open(directory / str(number), "wb", buffering=0) as handle:
            handle.write(data)
    for number in range(count):
        os.stat(directory / str(number))
    for number in range(count):
        os.unlink(directory / str(number))
    seconds = time.perf_counter() - begin
    directory.rmdir()
    return 3 * count / seconds


def sqlite_commits(base: Path) -> float:
    """Transactions a second with the default journal and full synchronisation."""
    path, count = base / "data.sqlite", 150
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("create table t (n integer primary key, v text)")
        begin = time.perf_counter()
        for number in range(count):
            connection.execute("insert into t values (?, ?)", (number, "v" * 100))
        return count / (time.perf_counter() - begin)
    finally:
        connection.close()


def postgres_directory() -> Path | None:
    """Programs of the newest PostgreSQL server that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    return found[-1] if found and shutil.which("pgbench") else None


def pgbench(base: Path) -> float:
    """Transactions a second of pgbench's own script, two clients, five seconds, PostgreSQL's data in `base`."""
    programs = postgres_directory()
    assert programs is not None
    user = pwd.getpwnam("postgres")
    data, run = base / "pg", base / "pg" / "run"

    def call(*words: str, check: bool = True) -> str:
        done = subprocess.run(
            words,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check and done.returncode:
            raise RuntimeError(f"{words[0]}: {done.stderr[-500:]}")
        return done.stdout

    if not data.exists():
        data.mkdir(mode=0o700)
        os.chown(data, user.pw_uid, user.pw_gid)
        call(str(programs / "initdb"), "-D", str(data), "-A", "trust", "--no-sync")
        run.mkdir()
        os.chown(run, user.pw_uid, user.pw_gid)
    socket_directory = Path("/tmp") / f"sk-pg-{os.getpid()}"
    socket_directory.mkdir(exist_ok=True)
    os.chown(socket_directory, user.pw_uid, user.pw_gid)
    call(
        str(programs / "pg_ctl"),
        "-D",
        str(data),
        "-w",
        "-l",
        str(data / "log"),
        "-o",
        f"-c listen_addresses= -c unix_socket_directories={socket_directory} -p 5499",
        "start",
    )
    try:
        common = ("-h", str(socket_directory), "-p", "5499", "postgres")
        call("pgbench", "-i", "-q", "-s", "1", *common)
        report = call("pgbench", "-c", "2", "-T", "5", "-n", *common)
        line = next(line for line in report.splitlines() if line.startswith("tps"))
        return float(line.split("=")[1].split()[0])
    finally:
        call(str(programs / "pg_ctl"), "-D", str(data), "-m", "fast", "-w", "stop", check=False)
        shutil.rmtree(socket_directory, ignore_errors=True)


WORKLOADS: dict[str, tuple[str, Workload]] = {
    "write 1M": ("MB/s", sequential_write),
    "read 1M": ("MB/s", sequential_read),
    "write 4k random": ("op/s", random_write),
    "write 4k + fsync": ("op/s", random_write_fsync),
    "2000 small files": ("op/s", small_files),
    "SQLite commits": ("tx/s", sqlite_commits),
    "pgbench": ("tx/s", pgbench),
}

"""Programs that are hard on file systems, in a replicated directory: SQLite through a power-off, git, shared maps."""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.t2_process.rfs_pair import Pair, equal, replicating

WRITER = """
import os, sqlite3, sys

database, journal, log = sys.argv[1:]
connection = sqlite3.connect(database, isolation_level=None, timeout=30)
connection.execute(f"pragma journal_mode={journal}")
connection.execute("pragma synchronous=full")
connection.execute("create table if not exists t (n integer primary key, v text)")
out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = connection.execute("select coalesce(max(n), 0) from t").fetchone()[0]
while True:
    number += 1
    connection.execute("insert into t values (?, ?)", (number, "v" * (number % 700)))
    os.write(out, b"%d\\n" % number)
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with replicating(tmp_path, ruzone_blocksize=1 << 20, reipacketsize=1 << 20) as found:
        yield found


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_survives_the_power_off_of_the_primary(pair: Pair, tmp_path: Path, journal: str) -> None:
    log = tmp_path / "acknowledged"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(pair.n1.dir / "data.sqlite"), journal, str(log)], stderr=subprocess.PIPE
    )

    def enough() -> bool:
        assert writer.poll() is None and writer.stderr is not None, writer.stderr and writer.stderr.read().decode()
        return log.exists() and log.read_bytes().count(b"\n") > 40

    pair.until(enough)
    pair.n1.power_off()
    writer.kill()
    writer.wait()
    acknowledged = [int(line) for line in log.read_text().split()]
    pair.until(lambda: "secondary_lost" in pair.n2.kinds())
    pair.n2.ask("primary")
    connection = sqlite3.connect(pair.n2.dir / "data.sqlite")
    try:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        found = {row[0] for row in connection.execute("select n from t")}
        assert set(acknowledged) <= found, f"{len(set(acknowledged) - found)} of {len(acknowledged)} commits are lost"
        connection.execute("insert into t values (1000000, 'after')")
        connection.commit()
    finally:
        connection.close()
    pair.start_secondary(pair.n1)
    equal(pair, 10)


def git(directory: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main", *words],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git(pair: Pair, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q")
    source = Path(__file__).parent.parent.parent
    for package in ("nfsbox", "reintegre", "safekit"):
        shutil.copytree(source / package, origin / package, ignore=shutil.ignore_patterns("__pycache__"))
        git(origin, "add", "-A")
        git(origin, "commit", "-q", "-m", package)
    git(pair.n1.dir, "clone", "-q", "--no-hardlinks", str(origin), "clone")
    clone = pair.n1.dir / "clone"
    for number in range(3):
        (clone / "reintegre" / f"new{number}").write_text("text" * number)
        git(clone, "add", "-A")
        git(clone, "commit", "-q", "-m", str(number))
    git(clone, "gc", "-q", "--aggressive", "--prune=now")
    git(clone, "fsck", "--full", "--strict")
    git(clone, "checkout", "-q", "HEAD~2")
    equal(pair, 10)
    git(pair.n2.dir / "clone", "-c", f"safe.directory={pair.n2.dir / 'clone'}", "fsck", "--full")


def test_a_shared_map_reaches_the_secondary(pair: Pair) -> None:
    path = pair.n1.dir / "mapped"
    path.write_bytes(bytes(1 << 20))
    with open(path, "r+b") as handle, mmap.mmap(handle.fileno(), 1 << 20) as view:
        for number in range(200):
            view[number * 5000 : number * 5000 + 8] = b"%08d" % number
        view.flush()
    equal(pair, 10)
    assert (pair.n2.backing / "mapped").read_bytes()[199 * 5000 : 199 * 5000 + 8] == b"00000199"
    pair.n2.ask("standby")
    pair.n1.ask("alone")
    with open(path, "r+b") as handle, mmap.mmap(handle.fileno(), 1 << 20) as view:
        view[123_456:123_464] = b"tracked!"
        view.flush()
    pair.n2.events.clear()
    pair.reintegrate(pair.n2)
    equal(pair, 10)

"""PostgreSQL under pgbench in a replicated directory whose primary loses its power: every transaction that a client
was told is committed is there on the other server, and the balances agree."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from safekit.model.types import Replicated, Rfs
from tests.t2_process.reintegre_primary import tree
from tests.t2_process.rfs_pair import Pair

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
PORT = "5499"
CLIENTS = 4

# pgbench's own transaction, which also notes whose it is: n counts up in each client.
TRANSACTION = """
\\set aid random(1, 100000)
\\set tid random(1, 10)
\\set delta random(-5000, 5000)
\\set n :n + 1
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO done VALUES (:client_id, :n);
END;
"""
BALANCES = """SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"""

pytestmark = pytest.mark.skipif(PROGRAMS is None or shutil.which("pgbench") is None, reason="PostgreSQL is missing")


class Database:
    """PostgreSQL over one data directory, run by the user postgres."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data, self.sockets = data, sockets
        self.user = pwd.getpwnam("postgres")
        self.server: subprocess.Popen[bytes] | None = None

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.sockets / "log").open("ab") as log:
            return subprocess.Popen(
                words,
                user=self.user.pw_uid,
                group=self.user.pw_gid,
                extra_groups=[],
                stdout=log,
                stderr=log,
                cwd=self.sockets,
            )

    def call(self, program: str, *words: str) -> str:
        done = subprocess.run(
            [f"{PROGRAMS}/{program}", *words],
            user=self.user.pw_uid,
            group=self.user.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.sockets,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        return (self.sockets / "log").read_text(errors="replace")[-2000:]

    @property
    def client(self) -> tuple[str, ...]:
        return "-h", str(self.sockets), "-p", PORT, "-U", "postgres"

    def sql(self, statement: str) -> list[list[str]]:
        out = self.call("psql", *self.client, "-X", "-q", "-A", "-t", "-F", " ", "-c", statement)
        return [line.split() for line in out.splitlines()]

    def start(self) -> None:
        """Recovery included."""
        settings = (
            f"unix_socket_directories={self.sockets}",
            "listen_addresses=",
            f"port={PORT}",
            "restart_after_crash=off",
        )
        options = [word for setting in settings for word in ("-c", setting)]
        self.server = self.popen(f"{PROGRAMS}/postgres", "-D", str(self.data), *options)
        deadline = time.monotonic() + 20
        while subprocess.run([f"{PROGRAMS}/pg_isready", *self.client], capture_output=True).returncode:
            assert self.server.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def kill(self) -> None:
        """Its backends end when they miss it."""
        if self.server is not None:
            self.server.kill()
            self.server.wait(10)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory with a name short enough for sockets, of the user postgres."""
    made = Path(tempfile.mkdtemp(prefix="sk-pg-"))
    shutil.chown(made, "postgres")
    yield made
    shutil.rmtree(made)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    for path in (tmp_path, *tmp_path.parents):  # the user postgres has to come through
        if path != Path("/tmp") and Path("/tmp") in path.parents:
            path.chmod(path.stat().st_mode | 0o011)
    with Pair(tmp_path, Rfs((Replicated("/replicated"),))) as found:
        found.start_primary(found.n1)
        found.start_secondary(found.n2)
        yield found


@contextmanager
def killed_at_the_end(*databases: Database) -> Iterator[None]:
    try:
        yield
    finally:
        for database in databases:
            database.kill()


def acknowledged(sockets: Path) -> dict[str, int]:
    """Transactions by client that pgbench was told are committed: its log has one line for each."""
    lines = [line.split() for path in sockets.glob("told*") for line in path.read_text().splitlines()]
    return dict(Counter(words[0] for words in lines if len(words) >= 6))


def test_pgbench_through_the_power_off_of_the_primary(pair: Pair, sockets: Path) -> None:
    one, two = Database(pair.n1.dir / "pg", sockets), Database(pair.n2.dir / "pg", sockets)
    script = sockets / "transaction"
    script.write_text(TRANSACTION)
    with killed_at_the_end(one, two):
        one.data.mkdir(mode=0o700)
        shutil.chown(one.data, "postgres", "postgres")
        one.call("initdb", "-D", str(one.data), "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8")
        one.start()
        one.call("pgbench", *one.client, "-i", "-q", "-s", "1", "postgres")
        one.sql("CREATE TABLE done (client int, n int)")
        load = one.popen(
            f"{PROGRAMS}/pgbench",
            *one.client,
            "-n",
            "-f",
            str(script),
            "-D",
            "n=0",
            "-c",
            str(CLIENTS),
            "-T",
            "60",
            "-l",
            f"--log-prefix={sockets}/told",
            "postgres",
        )
        try:
            pair.until(lambda: int(one.sql("SELECT count(*) FROM done")[0][0]) > 500)
            assert load.poll() is None, one.log()
            pair.n1.power_off()
            one.kill()
            load.wait(20)  # its connections are gone; its log is complete when it has ended
        finally:
            load.kill()
            load.wait()
        pair.until(lambda: "secondary_lost" in pair.n2.kinds())
        pair.n2.ask("primary")
        (two.data / "postmaster.pid").unlink()
        two.start()
        told, found = (
            acknowledged(sockets),
            {client: int(n) for client, n in two.sql("SELECT client, max(n) FROM done GROUP BY client")},
        )
        assert len(told) == CLIENTS and sum(told.values()) > 300, told
        assert all(found.get(client, 0) >= number for client, number in told.items()), (told, found)
        (counts,) = two.sql(
            "SELECT count(*), count(DISTINCT (client, n)), (SELECT count(*) FROM pgbench_history) FROM done"
        )
        assert {int(count) for count in counts} == {sum(found.values())}, (counts, found)
        (balances,) = two.sql(BALANCES)
        assert len(set(balances)) == 1, balances
        two.call("pg_amcheck", *two.client, "--install-missing", "--heapallindexed", "-d", "postgres")
        two.call("pgbench", *two.client, "-n", "-c", "2", "-t", "50", "postgres")
        two.call("pg_ctl", "-D", str(two.data), "-m", "fast", "-w", "stop")
    pair.start_secondary(pair.n1)
    deadline = time.monotonic() + 10
    while (here := tree(pair.n1.backing)) != (there := tree(pair.n2.backing)):
        assert time.monotonic() < deadline, [k for k in here.keys() | there.keys() if here.get(k) != there.get(k)][:10]
        time.sleep(0.1)
    assert os.listdir(pair.n1.backing) == ["pg"]

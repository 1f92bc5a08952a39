"""PostgreSQL under pgbench in a replicated directory whose primary loses its power: every transaction that a client
was told is committed is there on the other server, and the balances agree."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import Database, killed_at_the_end, place_of

from tests.t2_process.rfs_pair import Pair, equal, replicating

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


class PostgreSQL(Database):
    """Its own user runs it."""

    USER = "postgres"

    def program(self, name: str, *words: str) -> str:
        return self.call(f"{PROGRAMS}/{name}", *words)

    @property
    def client(self) -> tuple[str, ...]:
        return "-h", str(self.place), "-p", PORT, "-U", "postgres"

    def sql(self, statement: str) -> list[list[str]]:
        out = self.program("psql", *self.client, "-X", "-q", "-A", "-t", "-F", " ", "-c", statement)
        return [line.split() for line in out.splitlines()]

    def start(self) -> None:
        settings = (
            f"unix_socket_directories={self.place}",
            "listen_addresses=",
            f"port={PORT}",
            "restart_after_crash=off",
        )
        options = [word for setting in settings for word in ("-c", setting)]
        ask = (f"{PROGRAMS}/pg_isready", *self.client)
        self.serve(f"{PROGRAMS}/postgres", "-D", str(self.data), *options, ask=ask)


@pytest.fixture
def place() -> Iterator[Path]:
    with place_of(PostgreSQL.USER) as made:
        yield made


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with replicating(tmp_path, others=True) as found:
        yield found


def acknowledged(place: Path) -> dict[str, int]:
    """Transactions by client that pgbench was told are committed: its log has one line for each."""
    lines = [line.split() for path in place.glob("told*") for line in path.read_text().splitlines()]
    return dict(Counter(words[0] for words in lines if len(words) >= 6))


def test_pgbench_through_the_power_off_of_the_primary(pair: Pair, place: Path) -> None:
    one, two = PostgreSQL(pair.n1.dir / "pg", place), PostgreSQL(pair.n2.dir / "pg", place)
    script = place / "transaction"
    script.write_text(TRANSACTION)
    with killed_at_the_end(one, two):
        one.data.mkdir(mode=0o700)
        shutil.chown(one.data, "postgres", "postgres")
        one.program("initdb", "-D", str(one.data), "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8")
        one.start()
        one.program("pgbench", *one.client, "-i", "-q", "-s", "1", "postgres")
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
            f"--log-prefix={place}/told",
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
            acknowledged(place),
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
        two.program("pg_amcheck", *two.client, "--install-missing", "--heapallindexed", "-d", "postgres")
        two.program("pgbench", *two.client, "-n", "-c", "2", "-t", "50", "postgres")
        two.program("pg_ctl", "-D", str(two.data), "-m", "fast", "-w", "stop")
    pair.start_secondary(pair.n1)
    equal(pair, 10)
    assert os.listdir(pair.n1.backing) == ["pg"]

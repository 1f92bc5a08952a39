"""MariaDB (InnoDB) in a replicated directory whose primary loses its power under load: every transaction that a
client was told is committed is there on the other server, the balances agree, and its own checks find nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import Database, killed_at_the_end, place_of

from tests.t2_process.rfs_pair import Pair, equal, replicating

PROGRAMS = ("mariadbd", "mariadb", "mariadb-install-db")
CLIENTS, ACCOUNTS = 4, 100
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)), reason="MariaDB is missing (mariadb-server-core, mariadb-client-core)"
)


class MariaDB(Database):
    """Nothing of /etc/mysql counts."""

    USER = "nobody"  # the packages of the programs alone make no user

    @property
    def client(self) -> tuple[str, ...]:
        return "mariadb", "--no-defaults", f"--socket={self.place}/socket", "-u", "root"

    def make(self) -> None:
        self.data.mkdir(mode=0o700)
        shutil.chown(self.data, self.user.pw_uid, self.user.pw_gid)
        self.call(
            "mariadb-install-db", "--no-defaults", f"--datadir={self.data}", f"--user={self.USER}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )  # fmt: skip

    def sql(self, statement: str) -> list[list[str]]:
        out = self.call(*self.client, "-B", "-N", "app", input=statement)
        return [line.split("\t") for line in out.splitlines()]

    def start(self) -> None:
        self.serve(
            "mariadbd", "--no-defaults", f"--datadir={self.data}", f"--socket={self.place}/socket",
            "--skip-networking", f"--pid-file={self.place}/pid", "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=16M", "--sync-binlog=1", "--log-bin=binlog", "--server-id=1",
            ask=(*self.client, "-e", "SELECT 1"),
        )  # fmt: skip

    def stop(self) -> None:
        assert self.server is not None
        self.server.terminate()
        assert self.server.wait(30) == 0, self.log()


class Client(threading.Thread):
    """Moves money between accounts; `told` is the number of its last transaction that it was told is committed."""

    def __init__(self, database: MariaDB, number: int) -> None:
        super().__init__(daemon=True)
        self.number, self.told = number, 0
        words = [*database.client, "-B", "-N", "--unbuffered", "app"]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def run(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        while True:
            n = self.told + 1
            # accounts of its own: no deadlock, which is not what is tested here
            a, b = ((self.number + CLIENTS * (n * 7 + i * 3)) % ACCOUNTS for i in (0, 1))
            try:
                self.process.stdin.write(
                    f"BEGIN; UPDATE accounts SET balance = balance - {n} WHERE id = {a};"
                    f"UPDATE accounts SET balance = balance + {n} WHERE id = {b};"
                    f"INSERT INTO done VALUES ({self.number}, {n}, REPEAT('x', {n % 700})); COMMIT; SELECT {n};\n"
                )
                self.process.stdin.flush()
            except OSError:
                return
            if self.process.stdout.readline() != f"{n}\n":
                return
            self.told = n


@pytest.fixture
def place() -> Iterator[Path]:
    with place_of(MariaDB.USER) as made:
        yield made


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with replicating(tmp_path, others=True) as found:
        yield found


def test_transactions_through_the_power_off_of_the_primary(pair: Pair, place: Path) -> None:
    one, two = MariaDB(pair.n1.dir / "my", place), MariaDB(pair.n2.dir / "my", place)
    with killed_at_the_end(one, two):
        one.make()
        one.start()
        one.call(*one.client, "-e", "CREATE DATABASE app")
        one.sql(
            "CREATE TABLE accounts (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE=InnoDB;"
            "CREATE TABLE done (client INT, n INT, filler TEXT, PRIMARY KEY (client, n)) ENGINE=InnoDB;"
            f"INSERT INTO accounts SELECT seq, 0 FROM seq_0_to_{ACCOUNTS - 1};"
        )
        clients = [Client(one, number) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            pair.until(lambda: min(client.told for client in clients) > 100)
            pair.n1.power_off()
            one.kill()
        finally:
            for client in clients:
                client.process.kill()
                client.process.wait()
        for client in clients:
            client.join(10)
        told = {client.number: client.told for client in clients}
        pair.until(lambda: "secondary_lost" in pair.n2.kinds())
        pair.n2.ask("primary")
        two.start()
        found = {int(client): int(n) for client, n in two.sql("SELECT client, MAX(n) FROM done GROUP BY client")}
        missing = {client: (number, found.get(client, 0)) for client, number in told.items()
                   if found.get(client, 0) < number}  # fmt: skip
        assert not missing, f"{len(missing)} clients' commits are lost: {missing}"
        assert two.sql("SELECT COUNT(*) FROM done") == [[str(sum(found.values()))]]
        assert two.sql("SELECT SUM(balance) FROM accounts") == [["0"]]
        tables = two.sql(
            "SELECT CONCAT(table_schema, '.', table_name) FROM information_schema.tables "
            "WHERE table_type = 'BASE TABLE' AND engine IN ('InnoDB', 'Aria')"
        )
        assert len(tables) > 20
        for (table,) in tables:
            checked = two.sql(f"CHECK TABLE {table} EXTENDED")
            assert checked[-1][-2:] == ["status", "OK"], checked
        two.sql("INSERT INTO done VALUES (99, 1, 'after')")
        two.stop()
    pair.start_secondary(pair.n1)
    equal(pair, 20)
    assert os.listdir(pair.n1.backing) == ["my"]

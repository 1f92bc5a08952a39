"""MariaDB (InnoDB) in a replicated directory whose primary loses its power under load: every transaction that a
client was told is committed is there on the other server, the balances agree, and its own checks find nothing."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from safekit.model.types import Replicated, Rfs
from tests.t2_process.reintegre_primary import tree
from tests.t2_process.rfs_pair import Pair

PROGRAMS = ("mariadbd", "mariadb", "mariadb-install-db")
USER = "nobody"  # the packages of the programs alone make no user
CLIENTS, ACCOUNTS = 4, 100
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)), reason="MariaDB is missing (mariadb-server-core, mariadb-client-core)"
)


class Database:
    """MariaDB over one data directory, run by a user without rights; nothing of /etc/mysql counts."""

    def __init__(self, data: Path, place: Path) -> None:
        self.data, self.place = data, place
        self.user = pwd.getpwnam(USER)
        self.socket = place / "socket"
        self.server: subprocess.Popen[bytes] | None = None

    def call(self, program: str, *words: str, input: str | None = None) -> str:
        done = subprocess.run(
            [program, "--no-defaults", *words], input=input, capture_output=True, text=True, timeout=60, check=False,
            cwd=self.place, stdin=subprocess.DEVNULL if input is None else None,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        log = self.place / "log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else ""

    def make(self) -> None:
        self.data.mkdir(mode=0o700)
        shutil.chown(self.data, self.user.pw_uid, self.user.pw_gid)
        self.call(
            "mariadb-install-db", f"--datadir={self.data}", f"--user={USER}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )  # fmt: skip

    def sql(self, statement: str) -> list[list[str]]:
        out = self.call("mariadb", f"--socket={self.socket}", "-u", "root", "-B", "-N", "app", input=statement)
        return [line.split("\t") for line in out.splitlines()]

    def start(self) -> None:
        """Recovery included."""
        words = [
            "mariadbd", "--no-defaults", f"--datadir={self.data}", f"--socket={self.socket}", "--skip-networking",
            f"--pid-file={self.place}/pid", "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=16M", "--sync-binlog=1", "--log-bin=binlog", "--server-id=1",
        ]  # fmt: skip
        with (self.place / "log").open("ab") as log:
            self.server = subprocess.Popen(
                words, user=self.user.pw_uid, group=self.user.pw_gid, extra_groups=[], stdout=log, stderr=log,
                cwd=self.place,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        ping = ["mariadb", "--no-defaults", f"--socket={self.socket}", "-u", "root", "-e", "SELECT 1"]
        while subprocess.run(ping, capture_output=True, check=False).returncode:
            assert self.server.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop(self) -> None:
        assert self.server is not None
        self.server.terminate()
        assert self.server.wait(30) == 0, self.log()

    def kill(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.wait(10)


class Client(threading.Thread):
    """Moves money between accounts; `told` is the number of its last transaction that it was told is committed."""

    def __init__(self, database: Database, number: int) -> None:
        super().__init__(daemon=True)
        self.number, self.told = number, 0
        words = [
            "mariadb",
            "--no-defaults",
            f"--socket={database.socket}",
            "-u",
            "root",
            "-B",
            "-N",
            "--unbuffered",
            "app",
        ]
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
    """A directory with a name short enough for sockets, of that user."""
    made = Path(tempfile.mkdtemp(prefix="sk-my-"))
    shutil.chown(made, USER)
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    for path in (tmp_path, *tmp_path.parents):  # the user has to come through
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


def test_transactions_through_the_power_off_of_the_primary(pair: Pair, place: Path) -> None:
    one, two = Database(pair.n1.dir / "my", place), Database(pair.n2.dir / "my", place)
    with killed_at_the_end(one, two):
        one.make()
        one.start()
        one.call("mariadb", f"--socket={one.socket}", "-u", "root", "-e", "CREATE DATABASE app")
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
    deadline = time.monotonic() + 20
    while (here := tree(pair.n1.backing)) != (there := tree(pair.n2.backing)):
        assert time.monotonic() < deadline, [k for k in here.keys() | there.keys() if here.get(k) != there.get(k)][:10]
        time.sleep(0.1)
    assert os.listdir(pair.n1.backing) == ["my"]

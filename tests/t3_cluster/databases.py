"""What the tests of databases in a replicated directory share: a server of a database, run by a user without rights
over one data directory, its clients, and the end of both."""

from __future__ import annotations

import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from lab.waiting import wait_until


class Database:
    """`data`: its data directory. `place`: for sockets and the log, outside of what is replicated."""

    #: Runs the server and its programs.
    USER: ClassVar[str]

    def __init__(self, data: Path, place: Path) -> None:
        self.data, self.place = data, place
        self.user = pwd.getpwnam(self.USER)
        self.server: subprocess.Popen[bytes] | None = None

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        """A program of the user whose output goes to the log."""
        with (self.place / "log").open("ab") as log:
            return subprocess.Popen(
                words, user=self.user.pw_uid, group=self.user.pw_gid, extra_groups=[], stdout=log, stderr=log,
                cwd=self.place,
            )  # fmt: skip

    def call(self, *words: str, input: str | None = None) -> str:
        """The output of a program of the user that must not fail."""
        done = subprocess.run(
            words, user=self.user.pw_uid, group=self.user.pw_gid, extra_groups=[], capture_output=True, text=True,
            timeout=60, cwd=self.place, check=False, input="" if input is None else input,
        )  # fmt: skip
        assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        log = self.place / "log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else ""

    def serve(self, *words: str, ask: tuple[str, ...]) -> None:
        """Start the server; return when `ask` is answered, after any recovery."""
        server = self.server = self.popen(*words)

        def answers() -> bool:
            assert server.poll() is None, self.log()
            return subprocess.run(ask, capture_output=True, check=False).returncode == 0

        wait_until(answers, 30, self.log, 0.05)

    def kill(self) -> None:
        """Processes of its own end when they miss it."""
        if self.server is not None:
            self.server.kill()
            self.server.wait(10)


@contextmanager
def place_of(user: str) -> Iterator[Path]:
    """A directory of the user, with a name short enough for sockets."""
    made = Path(tempfile.mkdtemp(prefix="sk-db-"))
    shutil.chown(made, user)
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextmanager
def killed_at_the_end(*databases: Database) -> Iterator[None]:
    try:
        yield
    finally:
        for database in databases:
            database.kill()

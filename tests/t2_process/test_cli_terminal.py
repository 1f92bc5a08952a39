"""What a person at a terminal sees and a program does not: colours, and the progress of what takes its time."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.t2_process.cli_server import CHECKOUT, PRIM, RUNNING, NotedAdmin, Server, make_module, put_state


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, server: Server, *words: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", **server.env, **env}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *words],
            env=environment, cwd=CHECKOUT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def read_until(self, wanted: Callable[[str], bool], seconds: float = 30.0) -> None:
        """Read until `wanted`, at the end of the command at the latest."""
        deadline = time.monotonic() + seconds
        while not wanted(self.shown):
            assert time.monotonic() < deadline, self.shown
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    more = os.read(self._master, 65536)
                except OSError:  # the last process on the terminal has left it
                    break
                self.shown += more.decode()

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def end(self) -> tuple[int, str]:
        """Exit code, and all that was shown."""
        try:
            self.read_until(lambda _: False)
            return self._process.wait(10), self.shown
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._master)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_colours_are_for_terminals(server: Server, admin: NotedAdmin) -> None:
    put_state(make_module(), **PRIM)
    admin.modules = {"mirror": RUNNING}
    code, shown = Terminal(server, "state").end()
    assert code == 0 and "\x1b[32mPRIM green" in shown
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in Terminal(server, "state", **env).end()[1]
    assert "\x1b" not in server.run("state").stdout


def test_second_shows_the_reintegration_until_it_has_ended(server: Server, admin: NotedAdmin) -> None:
    paths = make_module()
    put_state(paths, state__local="SECOND", state__color="magenta")
    admin.modules = {"mirror": RUNNING}
    terminal = Terminal(server, "second", "-m", "mirror")
    terminal.read_until(lambda shown: "mirror: SECOND magenta" in shown)
    put_state(paths, state__color="green")
    code, shown = terminal.end()
    assert code == 0 and "mirror: SECOND green" in shown
    assert admin.asked[0][1]["action"] == "second"
    begun = time.monotonic()
    put_state(paths, state__color="magenta")
    assert server.run("second", "-m", "mirror").returncode == 0, "a script is not held up"
    assert time.monotonic() - begun < 15


def test_the_showing_can_be_left(server: Server, admin: NotedAdmin) -> None:
    put_state(make_module(), state__local="SECOND", state__color="magenta")
    admin.modules = {"mirror": RUNNING}
    terminal = Terminal(server, "second", "-m", "mirror")
    terminal.read_until(lambda shown: "mirror: SECOND magenta" in shown)
    terminal.press("\x03")
    code, shown = terminal.end()
    assert code == 0 and "safekit waitstart -m mirror shows it again" in shown


def test_a_second_that_could_not_start_says_so(server: Server, admin: NotedAdmin) -> None:
    put_state(make_module(), state__local="STOP", state__color="red")
    admin.modules = {"mirror": {**RUNNING, "running": False}}
    code, shown = Terminal(server, "second", "-m", "mirror").end()
    assert code == 1 and "could not become secondary" in shown and "safekit log -m mirror" in shown


def test_config_shows_its_steps(server: Server, admin: NotedAdmin, data: Path) -> None:
    code, shown = Terminal(server, "config", "-m", "mirror").end()
    assert code == 0, shown
    steps = ["checking", "copying configuration and scripts", f"converting {data}", "script config"]
    found = [shown.index(f"mirror: {step}") for step in steps]
    assert found == sorted(found)
    assert shown.rstrip().splitlines()[-1].startswith("Next step: ")


@pytest.mark.parametrize("words", [("dump",), ("snapshot",)])
def test_dump_and_snapshot_show_their_steps(
    server: Server, admin: NotedAdmin, tmp_path: Path, words: tuple[str, ...]
) -> None:
    make_module()
    target = (str(tmp_path / "s.zip"),) if words == ("snapshot",) else ()
    code, shown = Terminal(server, *words, "-m", "mirror", *target).end()
    assert code == 0, shown
    assert "dump: processes (1 of " in shown and ("packing: " in shown) == bool(target)
    assert "\x1b" not in server.run(*words, "-m", "mirror", *target).stdout


def test_a_server_that_is_slow_to_answer_is_named(server: Server, admin: NotedAdmin) -> None:
    """And how far a long body is sent to it."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        seen = threading.Event()

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                asked = b""
                while b'"level"' not in asked:
                    asked += connection.recv(65536)
                assert seen.wait(30)
                connection.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"status": 0, "output": "hello"}')

        thread = threading.Thread(target=answer)
        thread.start()
        terminal = Terminal(server, "-H", f"http://127.0.0.1:{port}", "level")
        terminal.read_until(lambda shown: "waiting for n1 (" in shown)
        seen.set()
        code, shown = terminal.end()
        thread.join()
    assert code == 0 and "hello" in shown, shown

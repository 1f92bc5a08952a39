"""nfscheck: a mount that answers, one that is frozen, one that is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from nfsbox.check.main import MOST_STUCK, SILENT, Checker, Failed, is_mounted
from safekit.bus.asking import Ask, name_of, request_fields
from safekit.bus.endpoint import BusError
from safekit.log.messages import MESSAGES, render
from safekit.process.frame import Context

FILE_SYSTEM = """
import sys, fuse
class Empty(fuse.Operations):
    pass
fuse.FUSE(Empty(), sys.argv[1], foreground=True, nothreads=True)
"""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    point = tmp_path / "mo unt"
    point.mkdir()
    process = subprocess.Popen([sys.executable, "-c", FILE_SYSTEM, str(point)])
    deadline = time.monotonic() + 10
    while not os.path.ismount(point):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    yield point, process
    process.kill()
    process.wait()
    subprocess.run(["umount", "-l", str(point)], check=True)


def probe(directory: Path | str, milliseconds: int) -> str:
    checker = Checker(cast(Context, None))
    return asyncio.run(checker.probe(str(directory), milliseconds))


def test_a_mount_that_answers(mount: tuple[Path, subprocess.Popen[bytes]]) -> None:
    assert probe(mount[0], 5000) == ""


def test_a_frozen_mount_does_not_hold_us(mount: tuple[Path, subprocess.Popen[bytes]]) -> None:
    point, process = mount
    checker = Checker(cast(Context, None))

    async def ask() -> None:
        process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        try:
            assert await checker.probe(str(point), 400) == SILENT
            assert time.monotonic() - begin < 5
        finally:
            process.send_signal(signal.SIGCONT)
        for stuck in checker._stuck:
            await stuck.communicate()  # a later loop cannot end it

    asyncio.run(ask())


def test_a_mount_whose_server_died(mount: tuple[Path, subprocess.Popen[bytes]]) -> None:
    point, process = mount
    process.kill()
    process.wait()
    assert probe(point, 5000) == "Transport endpoint is not connected"
    (failed,) = [asyncio.run(Checker(cast(Context, None)).twice([str(point)], 5000, 0.05))]
    assert failed == Failed(str(point), "Transport endpoint is not connected"), "asked twice"


def test_a_mount_that_is_taken_away_meanwhile_has_not_failed(mount: tuple[Path, subprocess.Popen[bytes]]) -> None:
    """The module stops: the request meets a mount whose file system has just ended."""
    point, process = mount
    process.kill()
    process.wait()

    class Meanwhile(Checker):
        async def round(self, directories: Sequence[str], timeout_ms: int) -> Failed | None:
            found = await super().round(directories, timeout_ms)
            rounds.append(found)
            subprocess.run(["umount", "-l", str(point)], check=True)
            return found

    rounds: list[Failed | None] = []
    try:
        assert asyncio.run(Meanwhile(cast(Context, None)).twice([str(point)], 5000, 0.0)) is None
        assert rounds == [Failed(str(point), "Transport endpoint is not connected")]
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "none", str(point)], check=True)  # for the end of the fixture


def test_children_that_cannot_be_killed_are_bounded() -> None:
    class Stuck:
        returncode = None

    checker = Checker(cast(Context, None))
    checker._stuck = [cast(asyncio.subprocess.Process, Stuck()) for _ in range(MOST_STUCK)]
    assert asyncio.run(checker.round(["/"], 1000)) == Failed("/", SILENT), "no more are started, and that is no answer"


def test_a_mount_that_does_not_answer_is_a_stopstart_and_a_message() -> None:
    """Guide 13.6.3: heart is asked; safeadmin is, when heart does not take it."""

    class Noted:
        name, module = "nfscheck", "AM"

        def __init__(self, *deaf: str) -> None:
            self.deaf, self.asked, self.said = deaf, [], []
            self.bus = self.log = self

        async def ask(self, module: str, ask: Ask[Any], timeout: float) -> None:
            target, fields = name_of(module, ask), request_fields(ask)
            assert fields.get("module", "AM") == "AM"
            self.asked.append((target, ask.op, fields["action"], fields["identity"]))
            if target in self.deaf:
                raise BusError("timeout", "no answer")

        def event(self, code: str, **fields: object) -> None:
            self.said.append((MESSAGES[code].level, render(code, fields)))

        def debug(self, text: str) -> None:
            pass

    for deaf, asked in (((), ["AM/heart"]), (("AM/heart",), ["AM/heart", "safeadmin"])):
        noted = Noted(*deaf)
        asyncio.run(Checker(cast(Context, noted)).react(Failed("/data", SILENT), 5000))
        assert noted.said == [("E", "/data does not answer within 5000 ms")]
        assert noted.asked == [(target, "control", "stopstart", "nfscheck") for target in asked]
    noted = Noted()
    asyncio.run(Checker(cast(Context, noted)).react(Failed("/data", "Input/output error"), 5000))
    assert noted.said == [("E", "/data answers with an error: Input/output error")], (
        "what it does, not what it does not"
    )


def test_mounted_is_read_from_the_table(mount: tuple[Path, subprocess.Popen[bytes]]) -> None:
    point, process = mount
    assert is_mounted(str(point))
    assert not is_mounted(str(point.parent))
    process.send_signal(signal.SIGSTOP)
    try:
        assert is_mounted(str(point)), "without asking the mount"
    finally:
        process.send_signal(signal.SIGCONT)

"""errd as a process: deaths are seen at once, classes are respected, handlers run."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from safekit.model.types import Errd, ModuleConfig, Proc
from tests.fakes import FakeServer


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    saved = dict(os.environ)
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()
    os.environ.clear()
    os.environ.update(saved)


STARTED: list[subprocess.Popen[bytes]] = []


def unique(name: str) -> str:
    """A command name that no other test run on this machine uses."""
    return f"{name}-{os.getpid()}"


class Application:
    """A program with a name of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        self.program = directory / name
        shutil.copy("/bin/sleep", self.program)
        self.process = subprocess.Popen([str(self.program), "1000"])
        STARTED.append(self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


async def enable(server: FakeServer, proc_class: str = "prim") -> None:
    await server.endpoints[0].request("AM/errd", "enable", 5.0, proc_class=proc_class)


def controls(server: FakeServer) -> list[tuple[str, str]]:
    return [(f["action"], f["identity"]) for _, op, f in server.told if op == "control"]


def test_a_death_is_an_action_within_a_moment(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = ModuleConfig("AM", 1, errd=Errd(polltimer=30, procs=(Proc(unique("e1"), "prim", action="restart"),)))
        async with FakeServer(tmp_path, config) as server:
            application = Application(tmp_path, unique("e1"))
            server.spawn("errd.main")
            await enable(server)
            await server.until(lambda: server.values("proc." + unique("e1"))[-1:] == ["up"], "the process is seen")
            died = time.monotonic()
            application.kill()
            await server.until(lambda: controls(server) == [("restart", "errd")], "the action", 5)
            when = next(when for when, op, _ in server.told if op == "control")
            assert when - died < 2.0, "the pidfd was not used: the poll takes 30 s"
            assert server.values("proc." + unique("e1")) == ["init", "up", "down"]
            assert f"event atleast on proc {unique('e1')}" in [line.text() for line in server.log()]

    asyncio.run(scenario())


def test_classes_and_suspension(tmp_path: Path) -> None:
    async def scenario() -> None:
        procs = (Proc(unique("e2"), "prim"), Proc(unique("e3"), "other"))
        config = ModuleConfig("AM", 1, errd=Errd(polltimer=1, procs=procs))
        async with FakeServer(tmp_path, config) as server:
            two, three = Application(tmp_path, unique("e2")), Application(tmp_path, unique("e3"))
            server.spawn("errd.main")
            await enable(server)
            await server.until(lambda: server.values("proc." + unique("e2"))[-1:] == ["up"], "the class is watched")
            three.kill()
            server.paths.resources.write_text("usersetting.errd off 1.0 root\n")
            two.kill()
            await asyncio.sleep(2.5)
            assert controls(server) == [], "a disabled class or a suspended errd acted"
            server.paths.resources.write_text("usersetting.errd on 2.0 root\n")
            await server.until(lambda: controls(server) == [("stopstart", "errd")], "resumed")
            await server.endpoints[0].request("AM/errd", "disable", 5.0, proc_class="prim")
            lines = (await server.endpoints[0].request("AM/errd", "list", 5.0))["lines"]
            assert lines[0].startswith(f"{unique('e2')} class=prim") and "disabled" in lines[0]
            assert (server.paths.var / "errdlist").read_text().splitlines() == lines

    asyncio.run(scenario())


@pytest.mark.parametrize(("status", "expected"), [(0, []), (4, [("stopstart", "errd")])])
def test_a_special_handler(tmp_path: Path, status: int, expected: list[tuple[str, str]]) -> None:
    async def scenario() -> None:
        config = ModuleConfig("AM", 1, errd=Errd(procs=(Proc(unique("e4"), "mine", action="handler"),)))
        async with FakeServer(tmp_path, config) as server:
            handler = server.paths.userbin / "handler"
            handler.write_text(f'#!/bin/sh\necho "$SAFEMODULE" > "$SAFEUSERVAR/handled"\nexit {status}\n')
            handler.chmod(0o755)
            application = Application(tmp_path, unique("e4"))
            server.spawn("errd.main")
            await enable(server, "mine")
            await server.until(lambda: server.values("proc." + unique("e4"))[-1:] == ["up"], "the process is seen")
            application.kill()
            handled = server.paths.var / "handled"
            await server.until(lambda: handled.exists() and handled.read_text() == "AM\n", "the handler runs")
            await server.until(lambda: any(line.code == "errd_handler" for line in server.log()), "its end is logged")
            await asyncio.sleep(0.2)
            assert controls(server) == expected

    asyncio.run(scenario())

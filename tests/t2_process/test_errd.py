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

from safekit.model.types import Errd, ModuleConfig, Proc, User
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

    def __init__(self, directory: Path, name: str, seconds: str = "1000") -> None:
        self.program = directory / name
        if not self.program.exists():
            shutil.copy("/bin/sleep", self.program)
        self.process = subprocess.Popen([str(self.program), seconds])
        STARTED.append(self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


async def enable(server: FakeServer, proc_class: str = "prim") -> None:
    await server.endpoints[0].by_word("AM/errd", "enable", 5.0, proc_class=proc_class)


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
            when, order = next((when, fields) for when, op, fields in server.told if op == "control")
            assert when - died < 2.0, "the pidfd was not used: the poll takes 30 s"
            assert order["why"] == f"0 of process {unique('e1')} run, at least 1 should", "for safekit why"
            assert server.values("proc." + unique("e1")) == ["init", "up", "down"]
            assert f"event atleast on proc {unique('e1')}" in [line.text() for line in server.log()]

    asyncio.run(scenario())


def test_kill_ends_the_modules_own_processes_only(tmp_path: Path) -> None:
    """Whoever may command a module has no right to other processes of the same name, nor to those of the product."""

    async def scenario() -> None:
        mine, others, watched, product = unique("k1"), unique("k1"), unique("k2"), unique("k3")
        config = ModuleConfig("AM", 1, errd=Errd(procs=(Proc(watched, "prim"),)))
        async with FakeServer(tmp_path, config) as server:
            started = Application(tmp_path, mine)
            saved = os.environ.pop("SAFEMODULE")
            configured = Application(tmp_path, watched)
            foreign = Application(tmp_path, others)
            os.environ["SAFEMODULE"] = "other"
            of_another = Application(tmp_path, others)
            os.environ["SAFEMODULE"] = saved
            programs = tmp_path / "safe" / "private" / "env" / "bin"
            programs.mkdir(parents=True)
            ours = Application(programs, product)
            server.spawn("errd.main")

            async def kill(name: str, level: str) -> tuple[int, int]:
                fields = {"name": name, "argregex": "", "level": level, "caller": 0, "who": "web"}
                answer = await server.endpoints[0].by_word("AM/errd", "kill", 10.0, **fields)
                return answer["count"], answer["foreign"]

            assert await kill(mine, "test") == (1, 2)
            assert await kill(mine, "terminate") == (1, 2)
            assert started.process.wait(5) != 0
            assert await kill(mine, "9") == (0, 2)
            assert await kill(product, "9") == (0, 1)
            assert await kill(watched, "9") == (1, 0)
            assert configured.process.wait(5) != 0
            assert [p.process.poll() for p in (foreign, of_another, ours)] == [None] * 3

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
            await server.endpoints[0].by_word("AM/errd", "disable", 5.0, proc_class="prim")
            lines = (await server.endpoints[0].by_word("AM/errd", "list", 5.0))["lines"]
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
            told = [fields["why"] for _, op, fields in server.told if op == "control"]
            assert told == [f"handler handler of process {unique('e4')}: 4" for _ in expected]

    asyncio.run(scenario())


def test_a_handler_that_hangs_goes_with_errd(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = ModuleConfig("AM", 1, errd=Errd(procs=(Proc(unique("e5"), "mine", action="handler"),)))
        async with FakeServer(tmp_path, config) as server:
            handler = server.paths.userbin / "handler"
            handler.write_text('#!/bin/sh\ntrap "" TERM\necho $$ > "$SAFEUSERVAR/pid"\nsleep 1000 & wait\nsleep 1000\n')
            handler.chmod(0o755)
            application = Application(tmp_path, unique("e5"))
            errd = server.spawn("errd.main")
            await enable(server, "mine")
            await server.until(lambda: server.values("proc." + unique("e5"))[-1:] == ["up"], "the process is seen")
            application.kill()
            pid = server.paths.var / "pid"
            await server.until(lambda: pid.exists() and pid.read_text().strip() != "", "the handler runs")
            errd.terminate()
            assert await asyncio.to_thread(errd.wait, 5) == 0
            running = Path(f"/proc/{int(pid.read_text())}")
            await server.until(lambda: not running.exists(), "the handler is ended")
            assert controls(server) == [], "a module that stops is not restarted"

    asyncio.run(scenario())


@pytest.mark.parametrize(("start", "expected"), [(0, "up"), (1, "down")])
def test_too_many_processes(tmp_path: Path, start: int, expected: str) -> None:
    """atmax="0": the process must not run; it is seen by the poll."""

    async def scenario() -> None:
        name = unique("e6")
        proc = Proc(name, "prim", atleast=-1, atmax=0, action="noaction")
        config = ModuleConfig("AM", 1, errd=Errd(polltimer=1, procs=(proc,)))
        async with FakeServer(tmp_path, config) as server:
            server.spawn("errd.main")
            await enable(server)
            await server.until(lambda: server.values("proc." + name)[-1:] == ["up"], "none runs")
            if start:
                Application(tmp_path, name)
                await server.until(lambda: server.values("proc." + name)[-1:] == ["down"], "one runs")
                assert f"event atmax on proc {name}" in [line.text() for line in server.log()]
            assert server.values("proc." + name)[-1] == expected and controls(server) == []

    asyncio.run(scenario())


def test_names_and_arguments_by_regular_expression(tmp_path: Path) -> None:
    """Two processes of a name, one meant by its arguments; and a name that is only a label."""

    async def scenario() -> None:
        one, two = Application(tmp_path, unique("e7")), Application(tmp_path, unique("e7"), "2000")
        procs = (
            Proc("label", "prim", nameregex=f"^{unique('e7')}$", atleast=2, action="noaction"),
            Proc(unique("e7"), "prim", argregex="2000$", action="restart"),
        )
        config = ModuleConfig("AM", 1, errd=Errd(procs=procs))
        async with FakeServer(tmp_path, config) as server:
            server.spawn("errd.main")
            await enable(server)
            await server.until(lambda: server.values("proc.label")[-1:] == ["up"], "both are seen")
            one.kill()
            await server.until(lambda: server.values("proc.label")[-1:] == ["down"], "one of two is not enough")
            assert controls(server) == [], "the process that is not meant"
            two.kill()
            await server.until(lambda: controls(server) == [("restart", "errd")], "the one that is meant")

    asyncio.run(scenario())


def test_start_after_gives_time_to_start(tmp_path: Path) -> None:
    """(start_after - 1) polls: an application that takes three seconds is not missed."""

    async def scenario() -> None:
        procs = (Proc(unique("e8"), "prim", start_after=5), Proc(unique("e9"), "prim", start_after=2))
        config = ModuleConfig("AM", 1, errd=Errd(polltimer=1, procs=procs))
        async with FakeServer(tmp_path, config) as server:
            server.spawn("errd.main")
            await enable(server)
            await server.until(lambda: controls(server) == [("stopstart", "errd")], "the one without its time", 8)
            Application(tmp_path, unique("e8"))
            await server.until(lambda: server.values("proc." + unique("e8"))[-1:] == ["up"], "the late one is seen")
            assert server.values("proc." + unique("e9"))[-1] == "down"
            assert controls(server) == [("stopstart", "errd")]

    asyncio.run(scenario())


SYSTEMCTL = """#!/bin/sh
[ -e "{silent}" ] && exit 1
sed -n p "{answer}"
"""


def test_a_silent_service_manager_is_no_death(tmp_path: Path) -> None:
    """What systemd does not say is not known: the service is judged when it answers again."""
    tools, silent, answer = tmp_path / "tools", tmp_path / "silent", tmp_path / "answer"
    tools.mkdir()
    (tools / "systemctl").write_text(SYSTEMCTL.format(silent=silent, answer=answer))
    (tools / "systemctl").chmod(0o755)
    os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"

    async def scenario() -> None:
        config = ModuleConfig("AM", 1, errd=Errd(polltimer=1, procs=(Proc("web", "prim", service=True),)))
        async with FakeServer(tmp_path, config) as server:
            application = Application(tmp_path, unique("e10"))
            answer.write_text(f"ActiveState=active\nMainPID={application.process.pid}\n")
            server.spawn("errd.main")
            await enable(server)
            await server.until(lambda: server.values("proc.web")[-1:] == ["up"], "the service is seen")
            silent.touch()
            answer.write_text("ActiveState=failed\nMainPID=0\n")
            await server.until(lambda: any(line.code == "errd_silent" for line in server.log()), "it is told")
            await asyncio.sleep(2.5)
            assert controls(server) == [] and server.values("proc.web")[-1] == "up"
            assert sum(line.code == "errd_silent" for line in server.log()) == 1, "once"
            silent.unlink()
            await server.until(lambda: controls(server) == [("stopstart", "errd")], "now it is known")

    asyncio.run(scenario())


def test_a_handler_is_a_script_of_the_module(tmp_path: Path) -> None:
    """Variables of <user>, output in the application log."""

    async def scenario() -> None:
        errd = Errd(procs=(Proc(unique("e11"), "mine", action="handler"),))
        config = ModuleConfig("AM", 1, user=User(vars=(("VARENV", "V1"),)), errd=errd)
        async with FakeServer(tmp_path, config) as server:
            handler = server.paths.userbin / "handler"
            handler.write_text('#!/bin/sh\necho "$VARENV of $SAFEMODULE"\n')
            handler.chmod(0o755)
            application = Application(tmp_path, unique("e11"))
            server.spawn("errd.main")
            await enable(server, "mine")
            await server.until(lambda: server.values("proc." + unique("e11"))[-1:] == ["up"], "the process is seen")
            application.kill()
            userlog = server.paths.userlog
            await server.until(lambda: userlog.exists() and userlog.read_text() == "V1 of AM\n", "what it says")

    asyncio.run(scenario())

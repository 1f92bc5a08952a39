"""User scripts as real processes: arguments, environment, output, time-outs, kills (guide 13.7, 14)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lab.waiting import wait_until
from safekit.disk.paths import ModulePaths
from safekit.log.module import ModuleLog, parse_line
from safekit.model.types import User
from safekit.process.scripts import ScriptRunner


class Place:
    """A module's directories with scripts in them."""

    def __init__(self, root: Path) -> None:
        self.paths = ModulePaths("AM")
        self.paths.userbin.mkdir(parents=True)
        self.root = root
        self.log = ModuleLog("AM", "heart", "n1")

    def script(self, name: str, body: str, *, mode: int = 0o755) -> None:
        path = self.paths.userbin / name
        path.write_text(body if body.startswith("#!") else f"#!/bin/sh\n{body}\n")
        path.chmod(mode)

    def runner(self, user: User | None = None) -> ScriptRunner:
        return ScriptRunner(self.paths, user or User(), self.log)

    def logged(self, code: str) -> list[str]:
        if not self.paths.log.exists():
            return []
        lines = map(parse_line, self.paths.log.read_text().splitlines())
        return [line.english for line in lines if line is not None and line.code == code]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("SAFE", str(tmp_path / "safe"))
    monkeypatch.setenv("SAFEVAR", str(tmp_path / "var"))
    return Place(tmp_path)


def run(work: Callable[[], Awaitable[None]], limit: float = 20.0) -> None:
    asyncio.run(asyncio.wait_for(work(), limit))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


PREDECESSOR = """
import asyncio
from safekit.log.module import ModuleLog
from safekit.model.types import User
from safekit.disk.paths import ModulePaths
from safekit.process.scripts import ScriptRunner
asyncio.run(ScriptRunner(ModulePaths("AM"), User(), ModuleLog("AM", "heart", "n1")).run("stop_prim", ()))
"""


def test_arguments_environment_output_and_directory(place: Place) -> None:
    place.script(
        "start_prim", 'echo "$0 $*|$SAFEMODULE|$SAFE|$SAFEVAR|$SAFEBIN|$SAFEUSERBIN|$SAFEUSERVAR|$VARENV|$PWD"; exit 3'
    )

    async def work() -> None:
        outcome = await place.runner(User(vars=(("VARENV", "V1"),))).run("start_prim", ("WAIT", "ALONE", "start"))
        assert outcome.status == 3 and not outcome.timed_out

    run(work)
    paths = place.paths
    fields = paths.userlog.read_text().strip().split("|")
    assert fields[0] == f"{paths.userbin}/start_prim WAIT ALONE start"
    assert fields[1:8] == [
        "AM", os.environ["SAFE"], os.environ["SAFEVAR"], f"{os.environ['SAFE']}/private/bin", str(paths.userbin),
        str(paths.var), "V1",
    ]  # fmt: skip
    assert fields[8] == str(paths.userbin)
    assert place.logged("script") == ["Script start_prim"]
    assert place.logged("script_error")[0].startswith("Script start_prim failed: exit status 3 after ")


def test_a_missing_script_is_skipped_silently_and_no_user_tag_means_no_scripts(place: Place) -> None:
    place.script("start_prim", "echo ran")

    async def work() -> None:
        assert (await place.runner().run("start_both", ())).status is None
        assert (await ScriptRunner(place.paths, None, place.log).run("start_prim", ())).status is None

    run(work)
    assert not place.paths.log.exists() and not place.paths.userlog.exists()


def test_what_cannot_be_run_is_told_with_the_next_step(place: Place) -> None:
    place.script("start_prim", "echo no", mode=0o644)
    place.script("start_both", "#!/no/such/interpreter\n")

    async def work() -> None:
        for name in ("start_prim", "start_both"):
            assert (await place.runner().run(name, ())).status is None

    run(work)
    told = place.logged("script_failed")
    assert "chmod +x" in told[0] and "interpreter" in told[1]


@pytest.mark.parametrize("args", [("PRIM", "WAIT", "stop"), ("force", "PRIM", "WAIT", "stop")])
def test_a_stop_script_that_hangs_is_killed_with_what_it_started(place: Place, args: tuple[str, ...]) -> None:
    place.script("stop_prim", f"sleep 100 & echo $! > {place.root}/child; wait")
    force = args[0] == "force"
    user = User(nicestoptimeout=100 if force else 1, forcestoptimeout=1 if force else 100)

    async def work() -> None:
        outcome = await place.runner(user).run("stop_prim", args)
        assert outcome.timed_out and outcome.status == 128 + signal.SIGKILL and outcome.seconds < 5

    run(work)
    child = int((place.root / "child").read_text())
    wait_until(lambda: not alive(child), 5)
    assert place.logged("script_timeout") == ["Script stop_prim killed: still running after 1.0 s"]


def test_a_stop_script_that_hangs_is_killed_with_what_detached_itself(place: Place) -> None:
    place.script("start_prim", f"(setsid sh -c 'echo $$ > {place.root}/application; exec sleep 60' &)")
    place.script("stop_prim", f"(setsid sh -c 'echo $$ > {place.root}/child; exec sleep 100' &); sleep 100")

    async def work() -> None:
        runner = place.runner(User(nicestoptimeout=1))
        await runner.run("start_prim", ())
        assert (await runner.run("stop_prim", ())).timed_out

    run(work)
    child, application = (int((place.root / name).read_text()) for name in ("child", "application"))
    wait_until(lambda: not alive(child), 5)
    assert alive(application), "what a start script started is for the stop scripts"
    os.kill(application, signal.SIGKILL)


def test_start_scripts_have_no_time_out_and_what_they_leave_lives_on(place: Place) -> None:
    place.script("start_prim", f"sleep 60 & echo $! > {place.root}/child; sleep 1.2")

    async def work() -> None:
        outcome = await place.runner(User(nicestoptimeout=1, forcestoptimeout=1)).run("start_prim", ())
        assert outcome.status == 0 and outcome.seconds > 1

    run(work)
    child = int((place.root / "child").read_text())
    assert alive(child), "the application"
    os.kill(child, signal.SIGKILL)


def test_cancelling_kills_the_script_and_lets_the_next_one_run(place: Place) -> None:
    place.script("start_prim", f"echo $$ > {place.root}/pid; sleep 100")
    place.script("stop_prim", "exit 0")

    async def work() -> None:
        runner = place.runner()
        task = asyncio.create_task(runner.run("start_prim", ()))
        while not (place.root / "pid").exists() or not (place.root / "pid").read_text().strip():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await runner.run("stop_prim", ())).status == 0

    run(work)
    pid = int((place.root / "pid").read_text())
    wait_until(lambda: not alive(pid), 5)


def test_a_successor_ends_what_a_killed_heart_left_running(place: Place) -> None:
    place.script("stop_prim", f"echo $$ > {place.root}/pid.new; mv {place.root}/pid.new {place.root}/pid; sleep 100")
    # a process of its own: a fork of this one, with its threads, could stand still at any lock
    with subprocess.Popen([sys.executable, "-c", PREDECESSOR]) as left:
        try:
            wait_until((place.root / "pid").exists, 20)
            wait_until((place.paths.var / "script.running").exists, 20)
        finally:
            left.kill()
    pid = int((place.root / "pid").read_text())
    assert alive(pid)
    assert place.runner().end_leftover() == str(pid)
    wait_until(lambda: not alive(pid), 5)
    assert place.runner().end_leftover() == "", "once"


def test_a_leftover_whose_pid_was_reused_is_not_touched(place: Place) -> None:
    place.paths.var.mkdir(parents=True)
    (place.paths.var / "script.running").write_text(f"{os.getpid()} 1")
    assert place.runner().end_leftover() == ""


def test_logging_none_discards_and_the_userlog_begins_again_at_its_limit(place: Place) -> None:
    place.script("start_prim", "echo hello; echo error >&2")

    async def work() -> None:
        await place.runner(User(logging="none")).run("start_prim", ())
        assert not place.paths.userlog.exists()
        await place.runner().run("start_prim", ())

    run(work)
    assert place.paths.userlog.read_text() == "hello\nerror\n"
    place.runner(User(userlogsize_kb=1)).trim_userlog()
    assert place.paths.userlog.stat().st_size == 12, "below the limit"
    place.paths.userlog.write_bytes(b"x" * 1024)
    place.runner(User(userlogsize_kb=1)).trim_userlog()
    assert place.paths.userlog.stat().st_size == 0


def test_scripts_run_one_at_a_time(place: Place) -> None:
    place.script("start_prim", f"echo begin >> {place.root}/t; sleep 0.3; echo end >> {place.root}/t")

    async def work() -> None:
        runner = place.runner()
        await asyncio.gather(runner.run("start_prim", ()), runner.run("start_prim", ()))

    run(work)
    assert (place.root / "t").read_text().split() == ["begin", "end"] * 2

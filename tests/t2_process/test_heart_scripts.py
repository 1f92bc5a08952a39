"""User scripts as real processes: arguments, environment, output, time-outs, kills (guide 13.7, 14)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lab.waiting import wait_until
from safekit.disk.paths import ModulePaths
from safekit.log import scripts
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


# ------------------------------------------------------------------------------- what became of it


@pytest.mark.parametrize(
    ("body", "problem", "said"),
    [
        ("echo begun\necho 'no such user: db' >&2\nexit 3", "exit status 3", "no such user: db"),
        ("dbd_that_is_not_there --now\ntrue", "exit status 0, but a command could not be run", "not found"),
        ("#!/bin/bash\n/opt/nothing/dbd\ntrue", "exit status 0, but a command could not be run", "No such file"),
        ("echo 'client: table: not found'\ncat /nothing\ntrue", "", "/nothing"),
        ("kill -9 $$", "exit status 137", ""),
    ],
)
def test_the_end_of_a_start_script_is_kept_with_what_it_said(place: Place, body: str, problem: str, said: str) -> None:
    place.script("start_prim", body)

    async def work() -> None:
        found = await place.runner().run("start_prim", ["WAIT", "ALONE", "start"])
        assert found.problem == problem and said in found.said

    run(work)
    (kept,) = scripts.runs(place.paths.script_log)
    assert (kept.name, kept.args, kept.problem) == ("start_prim", ("WAIT", "ALONE", "start"), problem)
    assert said in kept.said
    assert bool(place.logged("script_unfound")) == ("could not be run" in problem)


def test_only_what_this_run_wrote_is_told_and_no_terminal_obeys_it(place: Place) -> None:
    place.script("start_prim", "printf 'one\\033[2J\\n'; exit 1")

    async def work() -> None:
        runner = place.runner()
        place.paths.userlog.parent.mkdir(parents=True, exist_ok=True)
        place.paths.userlog.write_text("yesterday\n" * 5000)
        await runner.run("start_prim", [])
        place.script("start_prim", "seq 1 50; exit 1")
        await runner.run("start_prim", [])

    run(work)
    first, second = scripts.runs(place.paths.script_log)
    assert first.output == ("one [2J",)
    assert second.output == tuple(str(number) for number in range(31, 51))


def test_a_script_that_cannot_be_run_is_kept_and_no_logging_keeps_no_output(place: Place) -> None:
    place.script("start_prim", "exit 0", mode=0o644)
    place.script("stop_prim", "echo secret; exit 1")

    async def work() -> None:
        runner = place.runner(User(logging="none"))
        assert (await runner.run("start_prim", [])).problem == "could not be run"
        assert (await runner.run("stop_prim", [])).problem == "", "what is stopped already is no problem"

    run(work)
    first, second = scripts.runs(place.paths.script_log)
    assert first.status is None and "chmod +x" in first.said
    assert second.status == 1 and second.output == ()


def test_the_file_of_the_runs_is_bounded_and_survives_damage(tmp_path: Path) -> None:
    path = tmp_path / "log" / "scripts.jsonl"
    one = scripts.Run(1.0, "start_prim", (), 0, 0.1, "", ("x" * 400,) * 20)
    for number in range(80):
        scripts.append(path, replace(one, time=float(number)))
    with open(path, "ab") as handle:
        handle.write(b"\0\0{damaged\n")
    scripts.append(path, replace(one, time=99.0))
    found = list(scripts.runs(path))
    assert found[-1].time == 99.0 and found[-2].time == 79.0
    size = sum(each.stat().st_size for each in path.parent.iterdir())
    assert size <= 2 * (scripts.KEPT_BYTES + 16384)

"""A module's supervisord: dead children are restarted at once, and its own death kills nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safeadmin_node import Node

from lab.waiting import wait_until
from safeadmin.processes import Watch, describe_status
from safekit.process.supervision import Program, Supervisor, spawn, write_configuration
from safekit.process.table import lives, start_time

SLEEPER = "import signal\nwhile True: signal.pause()\n"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    node.configure_module("am")
    node.program("heart", SLEEPER)
    node.program("nfsbox", SLEEPER)
    yield node
    node.destroy()


def start(node: Node) -> int:
    """Start a supervisord with a heart and an nfsbox; its pid."""
    programs = (Program("heart", autostart=True), Program("nfsbox", autostart=True, autorestart=False))
    with node.here():
        write_configuration("am", programs)
        child = spawn("am")
    child.returncode = 0
    wait_until(lambda: node.pid("am", "heart") and node.pid("am", "nfsbox"), 15, "both run")
    return child.pid


def stable(node: Node) -> None:
    """Until supervisord calls both RUNNING: younger children get its back-off."""
    supervisor = Supervisor(node.var("am") / "supervisor.sock")
    wait_until(lambda: {i.state for i in asyncio.run(supervisor.states()).values()} == {"RUNNING"}, 15, "RUNNING")


def reap(pid: int) -> None:
    os.waitpid(pid, 0)


def test_a_dead_child_comes_back_at_once(node: Node) -> None:
    supervisord = start(node)
    stable(node)
    delays = []
    for _ in range(3):
        old = node.pid("am", "heart")
        os.kill(old, signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda old=old: node.pid("am", "heart") not in (0, old), 15, "another heart")
        delays.append(time.monotonic() - began)
        stable(node)
    # The stock program, which looks once a second, needs 1.1 s.
    assert min(delays) < 0.8, delays
    os.kill(supervisord, signal.SIGTERM)
    reap(supervisord)
    assert not node.processes("am")


def test_a_child_without_autorestart_stays_dead_and_its_status_is_known(node: Node) -> None:
    supervisord = start(node)
    stable(node)
    os.kill(node.pid("am", "nfsbox"), signal.SIGKILL)
    supervisor = Supervisor(node.var("am") / "supervisor.sock")
    wait_until(lambda: asyncio.run(supervisor.states())["nfsbox"].state == "EXITED", 15, "EXITED")
    assert node.pid("am", "nfsbox") == 0 and node.pid("am", "heart") != 0
    os.kill(supervisord, signal.SIGTERM)
    reap(supervisord)


def test_children_outlive_a_killed_supervisord(node: Node) -> None:
    supervisord = start(node)
    before = {name: node.pid("am", name) for name in ("heart", "nfsbox")}
    os.kill(supervisord, signal.SIGKILL)
    reap(supervisord)
    assert {name: node.pid("am", name) for name in before} == before


def test_a_lab_node_with_the_same_paths_is_not_ours(node: Node) -> None:
    program = str(node.programs / "nfsbox")
    environment = {**node.environment, "SAFEMODULE": "am"}
    ours = subprocess.Popen([program], env=environment)
    theirs = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", program], env=environment)
    try:
        wait_until(lambda: node.pid("am", "nfsbox") == ours.pid, 15, "ours is found")
        child = Path(f"/proc/{theirs.pid}/task/{theirs.pid}/children")
        wait_until(
            lambda: b"nfsbox" in b"".join(cmdline(int(pid)) for pid in child.read_text().split()), 15, "theirs runs"
        )
        assert [process.pid for process in node.processes("am")] == [ours.pid]
    finally:
        for process in (ours, theirs):
            process.kill()
            process.wait(10)


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_the_death_of_a_foreign_process_is_seen_at_once_and_named(node: Node) -> None:
    supervisord = start(node)
    stable(node)
    pid = node.pid("am", "heart")
    born = start_time(pid)
    assert born is not None

    async def scenario() -> tuple[float, int | None]:
        seen: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        watch = Watch(pid, born, seen.set_result)
        assert watch.alive
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        status = await asyncio.wait_for(seen, 5)
        assert not watch.alive
        with pytest.raises(ProcessLookupError):
            Watch(pid, born, seen.set_result)
        return time.monotonic() - began, status

    delay, status = asyncio.run(scenario())
    assert delay < 1.0
    # Kernels before 6.15 do not tell the status of another's child.
    assert describe_status(status) in ("killed by SIGKILL", "exit status unknown")
    assert not lives(pid, born)
    stable(node)
    os.kill(supervisord, signal.SIGTERM)
    reap(supervisord)

"""SIGUSR1: every process writes what its threads and tasks are at to its log, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safeadmin_node import CHECKOUT, Node, cluster
from web_server import WebServer

from lab.waiting import wait_until
from safekit.wire.seal import new_key
from tests.ports import free_port

PROGRAM = """
import asyncio, sys, threading, time
from safekit.process import stacks

def beside():
    time.sleep(60)

async def waits():
    await asyncio.sleep(60)

async def main():
    stacks.write_on_signal(asyncio.get_running_loop())
    threading.Thread(target=beside, name="helper", daemon=True).start()
    task = asyncio.create_task(waits(), name="patience")
    print("ready", flush=True)
    if "stuck" in sys.argv:
        time.sleep(60)
    await task

stacks.write_on_signal()
asyncio.run(main())
"""


class Asked:
    """A process of its own, and what it writes on a signal."""

    def __init__(self, errors: Path, *arguments: str) -> None:
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=errors.open("w"), text=True,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def signal(self) -> None:
        self.process.send_signal(signal.SIGUSR1)

    @property
    def written(self) -> str:
        return self.errors.read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)


def test_threads_and_tasks_are_written_each_time(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "log")
    try:
        for times in (1, 2):
            asked.signal()
            wait_until(lambda times=times: asked.written.count("end of the stacks") == times, 10, "they are written")
        assert asked.process.poll() is None, "it goes on"
        assert asked.written.count("in beside") == 2, "the stack of the thread"
        assert "is 'helper'" in asked.written and "is 'MainThread'" in asked.written
        assert "name='patience'" in asked.written and "in waits" in asked.written, "the stack of the task"
    finally:
        asked.close()


def test_a_loop_that_stands_still_hides_no_thread(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "log", "stuck")
    try:
        time.sleep(0.1)
        asked.signal()
        wait_until(lambda: "in beside" in asked.written and "in main" in asked.written, 10, "the threads are written")
        assert "end of the stacks" not in asked.written, "the tasks come when the loop turns"
    finally:
        asked.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.configure_cluster(cluster({"n1": "127.0.0.1", "n2": "127.0.0.2"}, free_port()), new_key())
    made.configure_module("am")
    yield made
    made.destroy()


def test_processes_of_a_module_and_its_supervisor(node: Node) -> None:
    node.start()
    node.control("am", "start")
    node.started("am")
    log = node.var("am") / "log"
    for name in ("heart", "circlog", "safesupervisord"):
        wait_until(lambda name=name: _catches(node.pid("am", name)), 10, f"{name} has begun")
        os.kill(node.pid("am", name), signal.SIGUSR1)
        wait_until(lambda name=name: "most recent call first" in _text(log / f"{name}.log"), 10, f"{name} has written")
    before = {name: node.pid("am", name) for name in ("heart", "circlog", "safesupervisord")}
    time.sleep(0.5)
    assert {name: node.pid("am", name) for name in before} == before, "all of them go on"


def test_safeadmin(node: Node) -> None:
    node.start()
    assert node.daemon is not None
    node.daemon.send_signal(signal.SIGUSR1)
    wait_until(lambda: "end of the stacks" in _text(node.root / "safeadmin.err"), 10, "safeadmin has written")
    assert node.call("ping") is not None and node.daemon.poll() is None


def test_the_web_service_and_its_forking_process(tmp_path: Path) -> None:
    server = WebServer(tmp_path).start()
    assert server.process is not None
    try:
        children = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True).stdout
        for pid in (server.process.pid, *map(int, children.split())):
            os.kill(pid, signal.SIGUSR1)
        wait_until(lambda: _text(server.output).count("most recent call first") >= 2, 10, "both have written")
        assert server.process.poll() is None
    finally:
        server.stop()


def _catches(pid: int) -> bool:
    """Whether a process has a handler for SIGUSR1 by now; before, the signal ends it."""
    status = _text(Path(f"/proc/{pid}/status"))
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGUSR1 - 1) & 1)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""

"""The real circlog process: copies within a second, survives kill -9, a second circlog waits, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safeadmin_node import Node, cluster

from lab.waiting import wait_until
from safekit.log.module import ModuleLog, parse_line
from safekit.wire.seal import new_key


class Circlog:
    """A module directory, and circlog processes on it."""

    def __init__(self, root: Path) -> None:
        self.node = Node(root)
        self.node.configure_cluster(cluster({"n1": "127.0.0.1"}, 4800), new_key())
        self.node.configure_module("am")
        self.directory = self.node.var("am") / "log"
        self.directory.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []
        with self.node.here():
            self.log = ModuleLog("am", "heart", "n1")
        self.written = 0

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(self.node.programs / "circlog"), "-m", "am"],
            env=self.node.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def write(self, count: int) -> None:
        for _ in range(count):
            self.log.event("printe", text=f"line {self.written}")
            self.log.event("printi", text="not an event")
            self.written += 1

    def copied(self) -> list[int]:
        found: list[str] = []
        for name in ("module.elog.1", "module.elog"):
            path = self.directory / name
            if path.exists():
                lines = [parse_line(text) for text in path.read_text().splitlines()]
                found += [line.fields["text"] for line in lines if line and line.code == "printe"]
        return [int(text.split()[1]) for text in found]

    def complete(self) -> bool:
        return self.copied() == list(range(self.written))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)


@pytest.fixture
def circlog(tmp_path: Path) -> Iterator[Circlog]:
    circlog = Circlog(tmp_path)
    yield circlog
    circlog.close()


def test_events_reach_the_short_log_while_it_runs_and_when_it_stops(circlog: Circlog) -> None:
    process = circlog.start()
    circlog.write(3)
    wait_until(circlog.complete, 10, "the lines are copied")
    circlog.write(1)
    wait_until(circlog.complete, 2, "one more line is copied at once")
    circlog.write(500)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert circlog.complete(), "what was written before the stop was left"
    assert Path(f"/proc/{os.getpid()}").exists()


def test_it_is_called_circlog(circlog: Circlog) -> None:
    process = circlog.start()
    circlog.write(1)
    wait_until(circlog.complete, 10, "it works")
    assert Path(f"/proc/{process.pid}/comm").read_text() == "circlog\n"


def test_killed_again_and_again_it_neither_loses_nor_doubles_a_line(circlog: Circlog) -> None:
    for _ in range(4):
        process = circlog.start()
        before = len(circlog.copied())
        for _ in range(20):
            circlog.write(30)
        wait_until(lambda before=before: len(circlog.copied()) > before, 10, "it is at work")
        process.kill()
        process.wait(10)
        circlog.write(10)
    circlog.start()
    wait_until(circlog.complete, 15, "everything is copied once")


def test_a_second_circlog_waits_for_the_first(circlog: Circlog) -> None:
    first = circlog.start()
    circlog.write(1)
    wait_until(circlog.complete, 10, "the first works")
    second = circlog.start()
    circlog.write(200)
    wait_until(circlog.complete, 10, "each line once")
    first.kill()
    first.wait(10)
    circlog.write(200)
    wait_until(circlog.complete, 10, "the second takes over")
    assert second.poll() is None


def test_a_full_disk_is_said_once_and_made_good(circlog: Circlog) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "full", circlog.directory], check=True, timeout=10)
    try:
        circlog.start()
        circlog.write(2)
        wait_until(circlog.complete, 10, "it works")
        ballast = circlog.directory / "ballast"
        fill(ballast)
        circlog.write(50)
        wait_until(lambda: noted(circlog), 10, "it is said")
        circlog.write(200)
        ballast.unlink()
        circlog.write(1)
        wait_until(lambda: circlog.written - 1 in circlog.copied(), 10, "it works again")
        wait_until(lambda: "is kept again" in (circlog.directory / "module.log").read_text(), 10, "the gap is told")
        text = (circlog.directory / "module.log").read_text()
        assert text.count("|the module log cannot be kept") == 1
    finally:
        circlog.close()
        subprocess.run(["umount", "-l", circlog.directory], check=True, timeout=10)


def fill(ballast: Path) -> None:
    """Take the space that there is, but for a few lines."""
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="space"):
            for _ in range(10_000):
                os.write(descriptor, b"x" * 4096)
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 16384)
    finally:
        os.close(descriptor)


def noted(circlog: Circlog) -> bool:
    return "disk is full" in (circlog.directory / "module.log").read_text(errors="replace")


def test_it_costs_next_to_nothing_when_nothing_happens(circlog: Circlog) -> None:
    process = circlog.start()
    circlog.write(1)
    wait_until(circlog.complete, 10, "it works")

    def switches() -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

    os.sched_yield()
    before = switches()
    time.sleep(3)
    # Its registration on the bus, once a second, is all that wakes it.
    assert switches() - before < 30

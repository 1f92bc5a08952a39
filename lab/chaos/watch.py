"""Looks at the servers of a lab many times a second, from outside: it costs them nothing and needs nothing of them.

State and colour come from the resource file, the address from the kernel's table of the node, and whether the
application runs from the lock that it holds. Every change goes to the timeline.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final

from lab.chaos.audits import Sample
from lab.chaos.programs import application
from lab.cluster import Lab, Node
from lab.state import Process, lab_directory
from safekit.disk.resources import Resource, parse

INTERVAL: Final = 0.04
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LOCK: Final = "@hhqqi"
Look = tuple[Sample, ...]


def beside(node: Node, path: str) -> Path:
    """A file of a directory that was given to `--bind`, as the host sees it, whether the node is on or not."""
    place, _, name = path.strip("/").partition("/")
    return lab_directory(node.lab.name) / "nodes" / node.name / "bind" / place / name


def holder(lock: Path) -> int:
    """Host's number of the process that holds the lock of the application, 0 for none. Looking takes no lock."""
    try:
        with lock.open("r+b") as file:
            asked = struct.pack(_LOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_LOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return 0
    return 0 if kind == fcntl.F_UNLCK else (pid or -1)


def has_address(pid: int, address: str) -> bool:
    """Whether the network namespace of that process has a local address."""
    table = Path(f"/proc/{pid}/net/fib_trie").read_text()
    return re.search(rf"\|-- {re.escape(address)}\n\s+/32 host LOCAL", table) is not None


class Watch:
    """The thread that looks. `looks`: those in which something changed, since `forget`."""

    def __init__(self, lab: Lab, module: str, timeline: IO[str]) -> None:
        self.lab = lab
        self.var = f"var/safekit/modules/{module}"
        self.timeline = timeline
        self.looks: list[Look] = []
        self.last: Look = ()
        self.broken = ""
        self._known: dict[str, tuple[tuple[int, int], dict[str, Resource]]] = {}
        self._machines: tuple[tuple[int, int], dict[str, Process]] | None = None
        self._changed = threading.Condition()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.last = self._look()
        self.forget()
        self._thread.start()

    # --- looking

    def _machine(self, node: Node) -> Process | None:
        """Process 1 of a node that is on. The keeper's note is read again only when it has changed."""
        about = (lab_directory(self.lab.name) / "lab.json").stat()
        key = (about.st_mtime_ns, about.st_ino)
        if self._machines is None or self._machines[0] != key:
            self._machines = (key, self.lab.state.machines)
        found = self._machines[1].get(node.name)
        return found if found is not None and found.alive else None

    def resources(self, node: Node) -> dict[str, Resource]:
        """The resource file of a server; empty without power, and when it is of an earlier life of the server."""
        machine = self._machine(node)
        if machine is None:
            return {}
        path = Path(f"/proc/{machine.pid}/root/{self.var}/resources")
        try:
            about = path.stat()
            key = (about.st_mtime_ns, about.st_ino)
            known = self._known.get(node.name)
            if known is None or known[0] != key:
                known = self._known[node.name] = (key, parse(path.read_text()))
            born = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + machine.start / _TICKS
        except OSError:
            return {}
        return known[1] if about.st_mtime > born else {}

    def _sample(self, node: Node) -> Sample:
        now = time.monotonic()
        machine = self._machine(node)
        runner = holder(beside(node, application.LOCK))
        if machine is None:
            return Sample(now, node.name, "off", False, runner)
        found = self.resources(node)
        words = [found[name].value for name in ("state.local", "state.color") if name in found]
        try:
            address = has_address(machine.pid, self.lab.vip)
        except OSError:  # it has just lost its power
            address = False
        return Sample(now, node.name, " ".join(words) or "?", address, runner)

    def _look(self) -> Look:
        look = tuple(self._sample(node) for node in self.lab)
        for what in ("runner", "address"):
            if sum(bool(getattr(sample, what)) for sample in look) > 1:
                # The samples are of different moments: only what is so before and after another one was so with it.
                again = {node.name: self._sample(node) for node in self.lab}
                if any(getattr(sample, what) and not getattr(again[sample.node], what) for sample in look):
                    return tuple(again.values())
        return look

    def _run(self) -> None:
        try:
            while not self._end.wait(INTERVAL):
                self._note(self._look())
        except Exception as error:
            self.broken = f"{type(error).__name__}: {error}"  # told by whoever waits next
            raise

    def _note(self, look: Look) -> None:
        several = sum(bool(s.runner) for s in look) > 1 or sum(s.address for s in look) > 1
        before = self._values(self.last)
        with self._changed:
            self.last = look
            if several or self._values(look) != before:
                self.looks.append(look)
                if self._values(look) != before:
                    self.timeline.write(json.dumps([asdict(sample) for sample in look]) + "\n")
                    self.timeline.flush()
            self._changed.notify_all()

    @staticmethod
    def _values(look: Look) -> list[tuple[object, ...]]:
        return [(sample.state, sample.address, sample.runner) for sample in look]

    # --- for whoever waits

    def say(self, text: str) -> None:
        """A line of the timeline."""
        with self._changed:
            self.timeline.write(json.dumps({"time": time.monotonic(), "clock": time.time(), "said": text}) + "\n")
            self.timeline.flush()

    def forget(self) -> None:
        """A new step begins."""
        with self._changed:
            self.looks = [self.last]

    def since(self) -> list[Look]:
        """The looks since `forget`."""
        with self._changed:
            return list(self.looks)

    def wait(self, reached: Callable[[Look], bool], timeout: float) -> bool:
        """Whether a look with that came within `timeout` seconds. Raises RuntimeError when nobody looks any more."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not reached(self.last):
                if self.broken:
                    raise RuntimeError(f"the watch of lab {self.lab.name} ended: {self.broken}")
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
        return True

    def states(self) -> dict[str, str]:
        return {sample.node: sample.state for sample in self.last}

    def at_rest(self, seconds: float, timeout: float) -> bool:
        """Whether no server changed its state for that long, with no scripts or copies running, within `timeout`."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            before = self._values(self.last)
            if any(value[0] == "?" or str(value[0]).endswith("magenta") for value in before):
                self.wait(lambda look, before=before: self._values(look) != before, deadline - time.monotonic())  # type: ignore[misc]
            elif not self.wait(lambda look, before=before: self._values(look) != before, seconds):  # type: ignore[misc]
                return True
        return False

    def close(self) -> None:
        self._end.set()
        self._thread.join(10)


def rows(looks: Sequence[Look]) -> list[str]:
    """A line for each look, for people."""
    return [
        f"{look[0].time:.2f}  "
        + "   ".join(
            f"{s.node} {s.state}{' app ' + str(s.runner) if s.runner else ''}{' address' if s.address else ''}"
            for s in look
        )
        for look in looks
    ]

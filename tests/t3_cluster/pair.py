"""A mirror module on two nodes of a lab: what the cluster tests do with it, and what they look at.

The application of the module is a writer that makes every record durable and then notes, on a disk of its
own node, that it was acknowledged. `verify` says whether one of them is missing, and whether both servers
hold the same tree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import writer as writer_program

from lab.archive import archive
from lab.cluster import Lab, Node
from lab.waiting import wait_until
from safekit.disk.resources import Resource, parse
from safekit.log.messages import MESSAGES
from safekit.log.module import Line, parse_line
from safekit.view import decisions as decisions_of

T = TypeVar("T")
MODULE = "mirror"
DIRECTORY = "/replicated"
BACKING = "/replicated_For_SafeKit_Replication"
VAR = "/var/safekit/modules"
WITNESS = "/witness"  # a directory of each node that loses nothing when the power fails: bind it in a lab with disks
PULSE_MS, TIMEOUT_MS = 150, 2000

# Messages of a healthy life. Every other E(vent) must be expected by the test, or it fails.
NORMAL = frozenset(
    """
    action_called action_boot action_auto transition_from begin_of_swap end_of_stop failover_remote_stop local_state
    remote_state resource_set script updating_tree copied reintegration_ended vip_set printe
    """.split()  # noqa: SIM905 - a table to read
)


def userconfig(
    *,
    service: str = "",
    heart: str = f'pulse="{PULSE_MS}" timeout="{TIMEOUT_MS}"',
    rfs: str = "",
    vip: str = "",
    directory: str = DIRECTORY,
    replicated: str = 'mode="read_only"',
    more: str = "",
) -> str:
    """userconfig.xml of a mirror with two heartbeats and one replicated directory."""
    return f"""<!DOCTYPE safe>
<safe>
 <service mode="mirror" {service}>
  <heart {heart}>
   <heartbeat name="default"/>
   <heartbeat name="repli" ident="flow"/>
  </heart>
  <rfs {rfs}>
   <replicated dir="{directory}" {replicated}/>
  </rfs>
  {vip}
  <user nicestoptimeout="10" forcestoptimeout="10" logging="userlog"/>
  {more}
 </service>
</safe>
"""


START_PRIM = """#!/bin/sh
echo "start_prim $*"
exec setsid /usr/bin/python3 -I "$SAFEUSERBIN/writer.py" {directory} {notes} >>/var/tmp/writer.out 2>&1 </dev/null &
echo $! > /run/writer.pid
"""
STOP_PRIM = """#!/bin/sh
echo "stop_prim $*"
[ -f /run/writer.pid ] || exit 0
kill -9 "$(cat /run/writer.pid)" 2>/dev/null
rm -f /run/writer.pid
exit 0
"""


def normal(text: str) -> str:
    """A message with its blanks normalised (B3)."""
    return " ".join(text.split())


def in_order(lines: Sequence[Line], wanted: Sequence[str | re.Pattern[str]]) -> str:
    """'' when the messages are there in that order (others may lie between them), else what is missing."""
    position = 0
    for message in wanted:
        for index in range(position, len(lines)):
            text = normal(lines[index].english)
            if text == normal(message) if isinstance(message, str) else message.fullmatch(text):
                position = index + 1
                break
        else:
            shown = "\n  ".join(f"{line.date} {line.level} {line.process}: {line.english}" for line in lines)
            return f"{message!r} is missing after {position} lines of:\n  {shown}"
    return ""


def assert_in_order(lines: Sequence[Line], wanted: Sequence[str | re.Pattern[str]]) -> None:
    """Fails when a message is missing or out of order."""
    problem = in_order(lines, wanted)
    assert not problem, problem


@dataclass(frozen=True)
class Mark:
    """A place in the log of each node: the number of lines before it."""

    lines: dict[str, int]


class Pair:
    """The module on both nodes."""

    def __init__(self, lab: Lab, module: str = MODULE, directory: str = DIRECTORY) -> None:
        self.lab = lab
        self.module = module
        self.directory = directory
        self.backing = f"{directory}_For_SafeKit_Replication"
        self.notes = f"{WITNESS if WITNESS in lab.plan.binds else '/var/tmp'}/acknowledged"
        self.one, self.two = lab.node("node1"), lab.node("node2")
        self.nodes = (self.one, self.two)
        self.begun = Mark({})
        self._expected: set[str] = set()
        self.same_release = True

    # --- set up

    def install(self, config: str, *, number: int = 1, **scripts: str) -> None:
        """Install and configure the module on both nodes; `number` is its id."""
        text = {
            "start_prim": START_PRIM.format(directory=self.directory, notes=self.notes),
            "stop_prim": STOP_PRIM,
            "writer.py": Path(writer_program.__file__).read_text(),
            **scripts,
        }
        data = archive(config, text)
        for node in self.nodes:
            node.run(["mkdir", "-p", self.directory])
            self.outside(node, "/root/module.safe").write_bytes(data)
            node.safekit("module", "install", "-r", "-M", str(number), "-m", self.module, "/root/module.safe")
            node.safekit("config", "-m", self.module)

    def first_start(self, prim: Node) -> None:
        """The guide's first start (5.3): prim on one server, second on the other, until both are green."""
        other = self.other(prim)
        prim.safekit("prim", "-m", self.module)
        self.wait(prim, "ALONE green")
        other.safekit("second", "-m", self.module)
        self.wait_protected(prim)

    def start_stopped(self) -> None:
        """Start the module where it does not run; after a power-off the resource file tells the state before it."""
        for node in self.nodes:
            if node.safekit("state", "-lq", "-m", self.module, check=False).stdout.strip() == "STOP":
                # It may be between the two halves of a stopstart; what comes of it is judged by the states.
                node.safekit("start", "-m", self.module, check=False)

    def other(self, node: Node) -> Node:
        """The other server."""
        return self.two if node is self.one else self.one

    # --- looking

    @staticmethod
    def outside(node: Node, path: str) -> Path:
        """A file of a node as this process sees it (not for replicated directories)."""
        return Path(f"/proc/{node.process.pid}/root{path}")

    def resources(self, node: Node) -> dict[str, Resource]:
        """The resource file of a node, empty when there is none."""
        try:
            return parse(self.outside(node, f"{VAR}/{self.module}/resources").read_text())
        except FileNotFoundError:
            return {}

    def value(self, node: Node, name: str) -> str:
        """Value of a resource, '' when it does not exist."""
        found = self.resources(node).get(name)
        return found.value if found is not None else ""

    def state(self, node: Node) -> str:
        """`PRIM green`; `off` for a node without power."""
        if not node.is_on:
            return "off"
        found = self.resources(node)
        words = [found[name].value for name in ("state.local", "state.color") if name in found]
        return " ".join(words) or "STOP red"

    def states(self) -> str:
        """Both states, for messages."""
        return ", ".join(f"{node.name} {self.state(node)}" for node in self.nodes)

    def wait(self, node: Node, state: str, timeout: float = 30.0) -> None:
        """Wait for a state like `PRIM green`; for STOP, until the processes are gone too."""
        wait_until(
            lambda: self.state(node) == state, timeout, lambda: f"{node.name} {state}; {self.states()}\n{self.tail()}"
        )
        if state.startswith("STOP"):
            node.safekit("waitstop", "-m", self.module, "--timeout", "30")

    def wait_protected(self, prim: Node, timeout: float = 60.0) -> None:
        """Wait until `prim` is PRIM green and the other one SECOND green."""
        second = self.other(prim)

        def reached() -> bool:
            return self.state(prim) == "PRIM green" and self.state(second) == "SECOND green"

        wait_until(reached, timeout, lambda: f"{prim.name} PRIM, {second.name} SECOND; {self.states()}\n{self.tail()}")

    def wait_copying(self, second: Node, timeout: float = 20.0) -> None:
        """Wait until a reintegration of `second` has changed data, as `safekit state` shows it."""
        self.wait(second, "SECOND magenta", timeout)

        def copying() -> bool:
            told = json.loads(second.safekit("state", "--json", "-m", self.module).stdout)["modules"][0]
            return bool(told["reintegration"] and told["reintegration"]["bytes"] > 0)

        wait_until(copying, timeout, lambda: f"progress of a reintegration; {self.states()}\n{self.tail()}")
        assert "reintegration" in second.safekit("state", "-m", self.module).stdout

    def tail(self) -> str:
        """The last lines of both logs, and the last decisions, for messages."""
        shown = []
        for node in self.nodes:
            if node.is_on:
                shown += [f"  {x.date} {x.node} {x.level} {x.process}: {x.english}" for x in self._lines(node)[-25:]]
                shown += [f"  {node.name} decided: {text}" for text in self._decisions(node)[-12:]]
        return "\n".join(shown)

    def _decisions(self, node: Node) -> list[str]:
        try:
            text = self.outside(node, f"{VAR}/{self.module}/why/decisions.jsonl").read_text()
        except FileNotFoundError:
            return []
        decisions = [decision for line in text.splitlines() if (decision := decisions_of.parse(line)) is not None]
        return [f"{decision.time:.3f} {decision.text}" for decision in decisions]

    # --- logs

    def _lines(self, node: Node) -> list[Line]:
        found: list[Line] = []
        for name in ("module.log.1", "module.log"):
            try:
                text = self.outside(node, f"{VAR}/{self.module}/log/{name}").read_text(errors="replace")
            except FileNotFoundError:
                continue
            found += [line for line in map(parse_line, text.splitlines()) if line is not None]
        return found

    def mark(self) -> Mark:
        """Remember where the logs are now. A node that is off keeps the mark of its last power-on."""
        return Mark({n.name: len(self._lines(n)) for n in self.nodes if n.is_on})

    def log(self, node: Node, mark: Mark, levels: str = "E") -> list[Line]:
        """Lines of a node since a mark."""
        return [line for line in self._lines(node)[mark.lines.get(node.name, 0) :] if line.level in levels]

    def wait_log(
        self, node: Node, mark: Mark, wanted: Sequence[str | re.Pattern[str]], timeout: float = 30.0, levels: str = "E"
    ) -> None:
        """Wait until the messages are in the log of a node, in that order."""
        wait_until(
            lambda: not in_order(self.log(node, mark, levels), wanted),
            timeout,
            lambda: f"{node.name}: {in_order(self.log(node, mark, levels), wanted)}",
        )

    def expect(self, *codes: str) -> None:
        """Messages that the present test provokes."""
        assert set(codes) <= MESSAGES.keys(), f"no such message: {set(codes) - MESSAGES.keys()}"
        self._expected.update(codes)

    def begin_test(self) -> None:
        """From here on the logs are judged by `check_logs`."""
        self._expected.clear()
        self.begun = self.mark()

    def check_logs(self) -> None:
        """Fails for an E message that is neither part of a healthy life nor expected, and for a traceback."""
        wrong = [
            f"{node.name} {line.date} {line.process}: {line.english} (code {line.code})"
            for node in self.nodes
            if node.is_on
            for line in self.log(node, self.begun)
            if line.code not in NORMAL | self._expected
        ]
        for node in self.nodes:
            if node.is_on:
                wrong += self._tracebacks(node)
        assert not wrong, "unexpected messages:\n  " + "\n  ".join(wrong)

    def _tracebacks(self, node: Node) -> Iterator[str]:
        for path in self.outside(node, f"{VAR}/{self.module}/log").glob("*.log"):
            if path.name != "module.log":
                text = path.read_text(errors="replace")
                if "Traceback" in text:
                    yield f"{node.name}: {path.name}: {text[text.index('Traceback') :][:3000]}"

    # --- the application

    def acknowledged(self, node: Node) -> list[str]:
        """Records that the writer of a node noted as acknowledged (a cut last line is none)."""
        try:
            text = self.outside(node, self.notes).read_text()
        except FileNotFoundError:
            return []
        return [line for line in text.split("\n")[:-1] if line]

    def forget_records(self) -> None:
        """Begin a new account of acknowledged records; a running writer goes on with it."""
        for node in self.nodes:
            self.outside(node, self.notes).write_text("")

    def wait_records(self, node: Node, count: int, timeout: float = 30.0) -> None:
        """Wait until the writer of a node got `count` more acknowledgements."""
        target = len(self.acknowledged(node)) + count
        wait_until(
            lambda: len(self.acknowledged(node)) >= target,
            timeout,
            lambda: f"{count} records on {node.name}; {self.states()}\n{self.tail()}",
        )

    @contextmanager
    def paused_writer(self, prim: Node) -> Iterator[None]:
        """The writer stands still between two records."""
        pause, paused = (self.outside(prim, path) for path in (writer_program.PAUSE, writer_program.PAUSED))
        paused.unlink(missing_ok=True)
        pause.touch()
        wait_until(paused.exists, 20, f"the writer of {prim.name} pauses; {self.states()}")
        try:
            yield
        finally:
            pause.unlink()

    def manifest(self, node: Node) -> dict[str, object]:
        """Everything about the tree behind the replicated directory of a node."""
        done = node.run(["/usr/bin/python3", "-I", "-c", _MANIFEST, self.backing], timeout=60)
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def lost(self, prim: Node, servers: Iterable[Node] | None = None) -> list[str]:
        """Acknowledged records of `servers` (default: both) that the primary does not have."""
        done = prim.run(["/usr/bin/python3", "-I", "-c", _RECORDS, self.directory], timeout=60)
        there = set(done.stdout.split())
        wanted = [record for node in servers or self.nodes for record in self.acknowledged(node)]
        return [record for record in wanted if record not in there]

    def verify(self, prim: Node, servers: Iterable[Node] | None = None) -> int:
        """No acknowledged record is lost, and both servers have the same tree. The number of records."""
        with self.paused_writer(prim):
            lost = self.lost(prim, servers)
            total = sum(len(self.acknowledged(node)) for node in servers or self.nodes)
            assert not lost, f"{len(lost)} of {total} acknowledged records are lost: {lost[:10]}"
            difference: list[str] = []

            def equal() -> bool:
                one, two = self.manifest(self.one), self.manifest(self.two)
                if not self.same_release:  # the directory itself is root's alone since this release
                    one.pop(".", None)
                    two.pop(".", None)
                difference[:] = [
                    f"{path}: {one.get(path)} != {two.get(path)}"
                    for path in sorted(one.keys() | two.keys())
                    if one.get(path) != two.get(path)
                ]
                return not difference

            wait_until(equal, 20, lambda: f"equal trees; {difference[:10]}", interval=0.5)
        assert total > 0, "the writer acknowledged nothing: this test shows nothing"
        return total


_MANIFEST = """
import hashlib, json, os, stat, sys
root = sys.argv[1]; found = {}
def look(path):
    s = os.lstat(path)
    entry = [stat.filemode(s.st_mode), s.st_uid, s.st_gid, s.st_nlink]
    if stat.S_ISREG(s.st_mode):
        with open(path, "rb") as f: entry += [s.st_size, s.st_mtime_ns, hashlib.file_digest(f, "sha256").hexdigest()]
    elif stat.S_ISLNK(s.st_mode): entry.append(os.readlink(path))
    entry.append(sorted((n, os.getxattr(path, n, follow_symlinks=False).hex())
                        for n in os.listxattr(path, follow_symlinks=False)))
    found[os.path.relpath(path, root)] = entry
look(root)
for folder, folders, files in os.walk(root):
    for name in folders + files: look(os.path.join(folder, name))
print(json.dumps(found))
"""
_RECORDS = """
import os, sys
root = sys.argv[1]
for name in os.listdir(root):
    path = os.path.join(root, name)
    if name.startswith("journal."):
        with open(path) as f: print(*["J" + line for line in f.read().split("\\n")[:-1]])
    elif name.startswith("table."):
        with open(path, "rb") as f: data = f.read()
        print(*["T" + data[i:i+64].rstrip(b"\\0").decode() for i in range(0, len(data), 512) if data[i:i+1] != b"\\0"])
    elif name == "files":
        for entry in os.listdir(path):
            with open(os.path.join(path, entry)) as f: print("F" + f.read())
"""

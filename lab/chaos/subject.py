"""What the campaigns of a mirror and of a farm have in common: the lab, the faults that are in effect, the evidence."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from lab import kernel
from lab.chaos import audits, rules
from lab.chaos.audits import Account, Seen, no_traceback
from lab.chaos.faults import Fault, Step
from lab.chaos.programs import application
from lab.chaos.watch import Look, Watch, rows
from lab.cluster import Completed, Lab, Node
from lab.errors import LabError
from lab.state import lab_directory
from lab.waiting import wait_until

T = TypeVar("T")
COMMAND: Final = 300.0
"""Seconds after which a command hangs, however little of the machine it gets."""
MODULE_PROCESSES: Final = frozenset(
    {"heart", "nfsbox", "nfsadmin", "reintegre", "nfscheck", "vipd", "arpreroute", "circlog", "errd"}
    | {"tcpcheck", "pingcheck", "intfcheck", "ipcheck", "customcheck", "modulecheck", "syncedcheck"}
    | {"splitbraincheck", "safesupervisord"}
)
_SILENT: Final = ("poweroff", "freeze", "cut", "block", "isolate")
VAR: Final = "/var/safekit/modules"
PYTHON: Final = sys.executable  # seen in the machines at the same place


class Finding(Exception):
    """Audits found what must not be."""

    def __init__(self, wrong: Sequence[str]) -> None:
        super().__init__("; ".join(wrong))
        self.wrong = list(wrong)


def together(*actions: Callable[[], object]) -> None:
    """Do them side by side. Raises the first error after all have ended."""
    with concurrent.futures.ThreadPoolExecutor(len(actions) or 1) as pool:
        for done in [pool.submit(action) for action in actions]:
            done.result()


def answered(what: str, ask: Callable[[], T], seconds: float) -> T:
    """What `ask` returns. Raises Finding when it does not within that time: a file system may never answer."""
    got: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            got.append(ask())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not got:
        raise Finding([f"{what} does not answer within {seconds:g} s"])
    return got[0]


def in_time(condition: Callable[[], T], seconds: float, what: str | Callable[[], str]) -> T:
    """`wait_until` for an audit: its first true value. Raises Finding."""
    try:
        return wait_until(condition, seconds, what)
    except TimeoutError as error:
        raise Finding([str(error)]) from None


class Subject(ABC):
    """A module on the nodes of a lab, and what the steps of a campaign do with it."""

    MODULE = "chaos"
    kinds: Mapping[str, Any]

    def __init__(self, lab: Lab, seed: int, keep: Path, settings: rules.Settings) -> None:
        self.lab, self.seed, self.keep, self.settings = lab, seed, keep, settings
        keep.mkdir(parents=True, exist_ok=True)
        self.account = Account()
        self.history: list[str] = []
        self.undo: list[Callable[[], None]] = []
        self.still: set[str] = set()
        """Servers that stand still: nobody there answers a command."""
        self.watch: Watch
        self._log_ends: dict[str, tuple[int, int]] = {}
        self._checked: dict[str, float] = {}

    @abstractmethod
    def set_up(self) -> None:
        """Bring the module to its normal life. Raises Finding."""

    @abstractmethod
    def about(self) -> str:
        """What this campaign has that others do not, in a few words."""

    @abstractmethod
    def run(self, step: Step) -> str:
        """Faults, repair, audit. Returns a few words on it. Raises Finding."""

    def install(self, node: Node, data: bytes) -> None:
        """Install and configure the module on a node; it starts at boot. The web service, which takes no part, stays
        off: a campaign boots often."""
        node.run("systemctl disable safewebserver; systemctl stop safewebserver", check=False)
        node.run(["mkdir", "-p", self.directory or "/data"])
        self.outside(node, "/root/module.safe").write_bytes(data)
        node.safekit("module", "install", "-r", "-M", "1", "-m", self.MODULE, "/root/module.safe", timeout=120)
        node.safekit("config", "-m", self.MODULE, timeout=120)
        node.safekit("boot", "-m", self.MODULE, "on")

    def close(self) -> None:
        """End what runs beside the lab."""
        if hasattr(self, "watch"):
            self.watch.close()

    # --- what is done

    def say(self, text: str) -> None:
        """Remember what was done, and when."""
        self.history.append(f"{time.monotonic():.2f} {time.strftime('%H:%M:%S')} {text}")
        if hasattr(self, "watch"):
            self.watch.say(text)

    def safekit(self, node: Node, *words: str, timeout: float = COMMAND) -> Completed | None:
        """A command on a server, whatever comes of it: in some states it is refused, and a server may lose its power
        under it (None). What comes of it all is for the audits."""
        if node.name in self.still:
            self.say(f"{node.name} stands still: nobody can say {' '.join(words)} there")
            return None
        try:
            done = node.safekit(*words, "-m", self.MODULE, check=False, timeout=timeout)
        except (LabError, subprocess.TimeoutExpired, OSError) as error:
            self.say(f"{node.name} {' '.join(words)}: {type(error).__name__}: {str(error)[:200]}")
            if isinstance(error, subprocess.TimeoutExpired):
                raise Finding([f"{node.name}: safekit {' '.join(words)} did not end within {timeout:g} s"]) from error
            return None
        said = " ".join((done.stdout + " " + done.stderr).split())[-160:]
        self.say(f"{node.name} safekit {' '.join(words)} -> {done.returncode} {said}")
        if "Traceback" in done.stdout + done.stderr:
            raise Finding([f"{node.name}: safekit {' '.join(words)}: {done.stdout}{done.stderr}"[:3000]])
        return done

    def kill(self, node: Node, names: Iterable[str], number: int = signal.SIGKILL) -> int:
        """Send a signal to the processes of these names; how many there were."""
        if not node.is_on:
            return 0
        wanted = set(names)
        pids = [pid for pid, name in node.processes().items() if name in wanted]
        for pid in pids:
            kernel.send_signal(pid, number)
        self.say(f"{node.name} signal {number} to {', '.join(sorted(wanted))}: {len(pids)} processes")
        return len(pids)

    def off(self, *nodes: Node) -> None:
        on = [node for node in nodes if node.is_on]
        if on:
            self.say(f"power off: {', '.join(node.name for node in on)}")
            self.lab.poweroff(*on)

    def shut_down(self, node: Node) -> None:
        if node.is_on:
            self.say(f"{node.name} is shut down in order")
            node.shutdown(timeout=120)

    def network(self, do: Callable[[], None], undo: Callable[[], None], told: str) -> None:
        """A fault of the network, until the repair."""
        self.say(told)
        do()
        self.undo.append(undo)

    def freeze(self, node: Node, process: str | None) -> None:
        """A server, or its processes of that name, stand still until the repair."""
        if not node.is_on or (process is not None and not node.pids(process)):
            self.say(f"{node.name} has no {process} to freeze")
            return
        self.say(f"{node.name} freeze {process or 'the server'}")
        node.freeze(process)
        if process is None:
            self.still.add(node.name)

        def thaw() -> None:
            self.still.discard(node.name)
            if node.is_on:
                node.thaw(process)

        self.undo.append(thaw)

    def heal(self) -> None:
        """End the faults that are in effect, the last one first."""
        while self.undo:
            self.undo.pop()()

    def hold(self, fault: Fault, looks: int) -> None:
        """The time before anybody repairs anything: a moment, until a server's state has changed, or long. `looks`: how
        many there were before the fault."""
        if fault.hold == "short":
            time.sleep(0.6 * fault.dice[3])
            return
        silent = fault.kind.name.startswith(_SILENT)  # the others notice by a time-out
        limit = rules.detection(self.settings) + 1 if silent else 1.0

        def changed(_: object) -> bool:
            states = [[s.state for s in look] for look in self.watch.looks[max(0, looks - 1) :]]
            return any(each != states[0] for each in states)

        self.watch.wait(changed, limit)
        if fault.hold == "long":
            time.sleep(1.5)

    def hit(self, fault: Fault, *nodes: Node) -> None:
        """Do it, and let the time pass that nobody repairs it."""
        looks = len(self.watch.looks)
        self.say(f"fault {fault.kind.name} (hold {fault.hold}, dice {', '.join(f'{d:.2f}' for d in fault.dice)})")
        getattr(self, f"_do_{fault.kind.name}")(fault, *nodes)
        self.hold(fault, looks)

    def order(self) -> None:
        """One round of what an administrator does, by lab/chaos/rules.py."""
        looks = {}
        for sample in self.watch.last:
            node = self.lab.node(sample.node)
            degraded = self.watch.resources(node).get("rfs.degraded")
            looks[sample.node] = rules.Look(sample.state, degraded is not None and degraded.value == "up")
        actions: list[Callable[[], object]] = []
        for name, order in rules.repairs(looks).items():
            node = self.lab.node(name)
            if order is rules.Order.POWERON:
                self.say(f"{name} poweron")
                actions.append(functools.partial(boot, node))
            else:
                actions.append(functools.partial(self.safekit, node, order.value))
        together(*actions)

    def start_the_silent(self) -> None:
        """A server whose resource file tells of nothing newer may be stopped all the same: ask it."""
        for sample in self.watch.last:
            node = self.lab.node(sample.node)
            if node.is_on and not sample.state.endswith("magenta"):
                done = self.safekit(node, "state", "-lq")
                if done is not None and done.stdout.strip() == "STOP":
                    self.safekit(node, "start")

    # --- what is there

    def outside(self, node: Node, path: str) -> Path:
        """A file of a node that is on, as this host sees it."""
        return Path(f"/proc/{node.process.pid}/root{path}")

    def seen(self, node: Node) -> Seen:
        """What is there on a server that is on."""
        sample = next(sample for sample in self.watch.last if sample.node == node.name)
        names = set(node.processes().values())
        mounts = Path(f"/proc/{node.process.pid}/mounts").read_text().splitlines()
        mounted = any(words[1] == self.directory and words[2].startswith("fuse") for words in map(str.split, mounts))
        return Seen(bool(sample.runner), sample.address, mounted, frozenset(names & MODULE_PROCESSES))

    directory = ""

    def said(self, node: Node) -> dict[str, Any]:
        """What `safekit state --json` says of the module. Raises Finding when it says nothing."""
        done = node.safekit("state", "--json", "-m", self.MODULE, check=False)
        try:
            (module,) = json.loads(done.stdout)["modules"]
        except (ValueError, KeyError):
            raise Finding(
                [f"{node.name}: safekit state --json -> {done.returncode} {done.stdout}{done.stderr}"]
            ) from None
        return dict(module)

    def all_say(self) -> dict[str, dict[str, Any]]:
        """`said` of every server, asked side by side."""
        found: dict[str, dict[str, Any]] = {}

        def ask(node: Node) -> None:
            found[node.name] = self.said(node)

        together(*(functools.partial(ask, node) for node in self.lab))
        return found

    def logs(self) -> dict[str, str]:
        """What the processes of the product have written since the last time."""
        found = {}
        for node in self.lab:
            if not node.is_on:
                continue
            try:
                paths = [*self.outside(node, f"{VAR}/{self.MODULE}/log").glob("*.log")]
                paths += self.outside(node, "/var/log").glob("safe*.log")
                for path in paths:
                    key = f"{node.name}:{path.name}"
                    about = path.stat()
                    inode, end = self._log_ends.get(key, (about.st_ino, 0))
                    if path.name == "module.log" or (inode == about.st_ino and end == about.st_size):
                        continue
                    with path.open("rb") as file:
                        file.seek(end if inode == about.st_ino and end <= about.st_size else 0)
                        found[key] = file.read().decode(errors="replace")
                    self._log_ends[key] = (about.st_ino, about.st_size)
            except OSError:
                continue  # the power failed while we read
        return found

    def audit_logs(self) -> list[str]:
        return no_traceback(self.logs())

    def audit_words(self) -> None:
        """In the middle of a fault, at rest: what each server says of itself is what is there. Raises Finding."""
        for _ in range(3):
            look = self.watch.last
            said, seen = {}, {}
            for node in self.lab:
                unknown = any(s.node == node.name and s.state == "?" for s in look)
                if not node.is_on or unknown or node.name in self.still:
                    continue
                try:
                    said[node.name], seen[node.name] = self.said(node), self.seen(node)
                except (OSError, LabError, Finding) as error:
                    if self.watch.at_rest(0.2, 1.0) and isinstance(error, Finding) and self.rested(look):
                        wrong = error.wrong
                        break
                    return
            else:
                wrong = [line for name in said for line in audits.says_what_is(name, said[name], seen[name])]
            if not wrong or not self.rested(look):
                return
            self.watch.at_rest(0.7, 1.5)  # the application may just have died, or an address be on its way
        raise Finding(wrong)

    def rested(self, look: Look) -> bool:
        return [(s.state, s.runner, s.address) for s in look] == [
            (s.state, s.runner, s.address) for s in self.watch.last
        ]

    # --- evidence

    def evidence(self, step: Step | None, wrong: Sequence[str]) -> Path:
        """A directory with all that may explain a finding."""
        number = step.number if step is not None else 0
        place = self.keep / f"seed{self.seed}-step{number}"
        place.mkdir(parents=True, exist_ok=True)
        text = [*wrong, "", self.replay(number), "", "What was done:", *self.history[-80:], "", "What was seen:"]
        (place / "finding.txt").write_text(
            "\n".join([*text, *(rows(self.watch.since()) if hasattr(self, "watch") else ())]) + "\n"
        )
        for node in (*self.lab, self.lab.client):
            self._keep_node(node, place / node.name)
        self.more_evidence(place)
        return place

    @abstractmethod
    def replay(self, number: int) -> str:
        """How to see it again."""

    def more_evidence(self, place: Path) -> None:  # noqa: B027 - not every subject has more
        """What only this subject has."""

    def _keep_node(self, node: Node, place: Path) -> None:
        place.mkdir(exist_ok=True)
        base = lab_directory(self.lab.name) / "nodes" / node.name
        for path in (base / "console.log", *(base / "bind").glob("witness/*")):
            if path.is_file():
                shutil.copy(path, place)
        if not node.is_on or node is self.lab.client:
            return
        skip = shutil.ignore_patterns("*.sock", "quarantine", "hidden", "places")
        try:
            shutil.copytree(self.outside(node, f"{VAR}/{self.MODULE}"), place / "var", dirs_exist_ok=True, ignore=skip)
            for path in (*self.outside(node, "/var/log").glob("safe*.log"), *self.outside(node, "/var/tmp").glob("*")):
                if path.is_file():
                    shutil.copy(path, place)
            said = node.safekit("state", "-v", "-m", self.MODULE, check=False)
            (place / "state.txt").write_text(said.stdout + said.stderr)
            why = node.safekit("why", "-m", self.MODULE, check=False)
            (place / "why.txt").write_text(why.stdout + why.stderr)
        except (OSError, shutil.Error, LabError, subprocess.SubprocessError) as error:
            (place / "incomplete.txt").write_text(f"{error}\n")


def manifest(root: Path) -> dict[str, object]:
    """Everything about a tree that both servers must have in common."""
    found: dict[str, object] = {}

    def look(path: Path) -> None:
        about = path.lstat()
        entry: list[object] = [stat.filemode(about.st_mode), about.st_uid, about.st_gid, about.st_nlink]
        if stat.S_ISREG(about.st_mode):
            with path.open("rb") as file:
                entry += [about.st_size, about.st_mtime_ns, hashlib.file_digest(file, "sha1").hexdigest()]
        elif stat.S_ISLNK(about.st_mode):
            entry.append(os.readlink(path))
        names = os.listxattr(path, follow_symlinks=False)
        entry.append(sorted((name, os.getxattr(path, name, follow_symlinks=False).hex()) for name in names))
        found[str(path.relative_to(root))] = entry

    look(root)
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            if not name.startswith(".fuse_hidden"):
                look(Path(folder, name))
    return found


def boot(node: Node) -> None:
    """Power a node on, unless somebody has. Raises LabError."""
    try:
        node.poweron()
    except LabError:
        if not node.is_on:
            raise


__all__ = ["Finding", "Subject", "application", "boot", "manifest", "together"]

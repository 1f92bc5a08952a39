"""The stress of a mirror: faults and orders in random seeded order, under load, with an account of every record.

`Stress(pair, seed).cycle()` starts from a protected pair, does one to three random things to it, also in the middle
and at the very end of a reintegration, brings everything back, and judges: every acknowledged record is there on the
primary, and both servers have the same tree. A finding is an AssertionError with the seed, the history and the logs
of both nodes. Networks are never cut altogether: what a split brain costs is another matter.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import stress_load
from pair import Pair, userconfig

from lab.cluster import Node
from lab.errors import LabError
from lab.waiting import wait_until

START_PRIM = """#!/bin/sh
exec setsid /usr/bin/python3 -I "$SAFEUSERBIN/stress_load.py" {0} {1} app >>/var/tmp/stress.out 2>&1 </dev/null &
echo $! > /run/stress.pid
"""
STOP_PRIM = """#!/bin/sh
[ -f /run/stress.pid ] || exit 0
kill -9 "$(cat /run/stress.pid)" 2>/dev/null
rm -f /run/stress.pid
exit 0
"""
CONFIG = userconfig(heart='pulse="100" timeout="1500"', rfs='locktimeout="4" sendtimeout="4"')

_CHECK = """
import os, sys
root, lost, total, slots, there = sys.argv[1], [], 0, {}, {}
for line in sys.stdin:
    total += 1
    kind, path, *rest = line.split()
    try:
        if kind == "A":
            if path not in there:
                with open(os.path.join(root, path)) as f: there[path] = set(f.read().split())
            if rest[0] not in there[path]: lost.append(line.strip())
        elif kind == "O":
            key = path, int(rest[0]); slots[key] = max(slots.get(key, 0), int(rest[1]))
        elif kind == "R":
            with open(os.path.join(root, path)) as f:
                if f.read() != os.path.basename(path): lost.append(line.strip())
    except OSError as e: lost.append(line.strip() + " " + str(e))
for (path, slot), number in slots.items():
    try:
        with open(os.path.join(root, path), "rb") as f:
            f.seek(slot * 32); found = f.read(32).split()
        if not found or int(found[0]) < number: lost.append(f"O {path} {slot} {number} found {found}")
    except OSError as e: lost.append(f"O {path} {slot} {number} {e}")
print(total, len(lost)); print("\\n".join(lost[:40]))
"""


class Stress:
    """See above. `keep`: where the logs of a finding go."""

    def __init__(self, pair: Pair, seed: int, keep: Path) -> None:
        self.pair = pair
        self.seed = seed
        self.keep = keep
        self.random = random.Random(seed)
        self.history: list[str] = []
        self.cycles = 0
        self.records = 0
        self.kinds: dict[str, int] = {}
        self._begun = time.monotonic()
        self._frozen: list[tuple[Node, str]] = []
        self._cut: list[Node] = []
        self.events: list[Callable[[Node, Node], None]] = [
            self.stop_prim, self.stop_second, self.swap, self.swap_on_second, self.stopstart_prim,
            self.stopstart_second, self.restart, self.poweroff_prim, self.poweroff_second, self.kill_on_prim,
            self.kill_on_second, self.cut_flow, self.freeze_second,
        ]  # fmt: skip

    @staticmethod
    def install(pair: Pair) -> None:
        """The module with this load, protected."""
        pair.install(
            CONFIG,
            start_prim=START_PRIM.format(pair.directory, pair.backing),
            stop_prim=STOP_PRIM,
            **{"stress_load.py": Path(stress_load.__file__).read_text()},
        )
        pair.first_start(pair.one)

    def note(self, text: str) -> None:
        """Remember what was done."""
        self.history.append(f"{time.strftime('%H:%M:%S')} +{time.monotonic() - self._begun:.2f} {text}")

    # --- what can happen

    def order(self, node: Node, *words: str) -> None:
        """A command; that it is refused in some states is no finding."""
        if node.is_on:
            done = node.safekit(*words, "-m", self.pair.module, check=False, timeout=60)
            self.note(f"{node.name} {' '.join(words)} -> {done.returncode} {done.stdout.strip()[-100:]}")

    def stop_prim(self, prim: Node, second: Node) -> None:
        self.order(prim, "stop")

    def stop_second(self, prim: Node, second: Node) -> None:
        self.order(second, "stop")

    def swap(self, prim: Node, second: Node) -> None:
        self.order(prim, "swap")

    def swap_on_second(self, prim: Node, second: Node) -> None:
        self.order(second, "swap")

    def stopstart_prim(self, prim: Node, second: Node) -> None:
        self.order(prim, "stopstart")

    def stopstart_second(self, prim: Node, second: Node) -> None:
        self.order(second, "stopstart")

    def restart(self, prim: Node, second: Node) -> None:
        self.order(prim, "restart")

    def poweroff_prim(self, prim: Node, second: Node) -> None:
        self.off(prim)

    def poweroff_second(self, prim: Node, second: Node) -> None:
        self.off(second)

    def off(self, node: Node) -> None:
        if node.is_on:
            self.note(f"{node.name} poweroff")
            node.poweroff()

    def kill_on_prim(self, prim: Node, second: Node) -> None:
        self.kill(prim)

    def kill_on_second(self, prim: Node, second: Node) -> None:
        self.kill(second)

    def kill(self, node: Node) -> None:
        """kill -9 of one process of the module."""
        process = self.random.choice(("nfsbox", "nfsbox", "nfsadmin", "reintegre", "heart"))
        self.note(f"{node.name} kill -9 {process}")
        try:
            node.kill(process)
        except LabError:
            self.note("  which does not run")

    def cut_flow(self, prim: Node, second: Node) -> None:
        """The network of the replication; heartbeats stay on the other one."""
        node = self.random.choice((prim, second))
        if node.is_on:
            self.note(f"{node.name} cut repli")
            node.cut("repli")
            self._cut.append(node)
            self.maybe_noticed()

    def freeze_second(self, prim: Node, second: Node) -> None:
        self.note(f"{second.name} freeze nfsbox")
        try:
            second.freeze("nfsbox")
            self._frozen.append((second, "nfsbox"))
            self.maybe_noticed()
        except LabError:
            self.note("  which does not run")

    def maybe_noticed(self) -> None:
        """Every other time, wait until a server has drawn its conclusion of a silent peer."""
        if self.random.random() < 0.5:
            return
        before, deadline = self.pair.states(), time.monotonic() + 8
        while self.pair.states() == before and time.monotonic() < deadline:
            time.sleep(0.05)

    # --- a cycle

    def rest(self, most: float) -> None:
        """A random while; mostly short."""
        time.sleep(most * self.random.random() ** 2)

    def cycle(self, *names: str) -> None:
        """One round; `names`: these events instead of random ones. Raises AssertionError."""
        self.cycles += 1
        self.note(f"--- cycle {self.cycles}")
        try:
            prim = self.protected()
            second = self.pair.other(prim)
            self.load(prim, second)
            self.rest(0.5)
            events = [e for name in names for e in self.events if e.__name__ == name] or [
                self.random.choice(self.events) for _ in range(self.random.choice((1, 1, 2, 2, 3)))
            ]
            for number, event in enumerate(events):
                if number:
                    self.between()
                self.kinds[event.__name__] = self.kinds.get(event.__name__, 0) + 1
                event(prim, second)
            self.rest(3.0)
            self.judge(self.protected())
        except (AssertionError, TimeoutError, OSError, LabError) as error:
            raise AssertionError(f"{self.report()}\n{type(error).__name__}: {error}") from error

    def between(self) -> None:
        """Before the next event: at once, some time later, or around the end of the reintegration that the last one
        has made necessary."""
        how = self.random.choice(("at once", "later", "copying", "end", "end"))
        self.note(f"next: {how}")
        if how == "at once":
            self.rest(0.3)
            return
        self.rest(2.5)
        if how == "later":
            return
        self.heal()
        wanted = "SECOND magenta" if how == "copying" else "SECOND green"
        deadline = time.monotonic() + 12
        while time.monotonic() < deadline:
            if any(self.pair.state(node) == wanted for node in self.pair.nodes):
                break
            self.pair.start_stopped() if self.random.random() < 0.1 else None
            time.sleep(0.005)
        if how == "copying":
            self.rest(0.5)
        elif self.random.random() < 0.5:
            self.rest(0.1)

    def heal(self) -> None:
        """Undo the faults and start what is stopped."""
        for node in self._cut:
            if node.is_on:
                node.join("repli")
        self._cut.clear()
        for node, process in self._frozen:
            if node.is_on:
                node.thaw(process)
        self._frozen.clear()
        for node in self.pair.nodes:
            if not node.is_on:
                self.note(f"{node.name} poweron")
                node.poweron()
        for node in self.pair.nodes:
            if self.pair.value(node, "rfs.degraded") == "up" and self.pair.state(node).startswith("ALONE"):
                self.order(node, "stop")  # the guide's way out of degraded (5.6)
                self.pair.wait(node, "STOP red", 60)
        self.pair.start_stopped()

    def protected(self) -> Node:
        """The primary of a protected pair, whatever was done to it."""
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            self.heal()
            for node in self.pair.nodes:
                other = self.pair.other(node)
                if self.pair.state(node) == "PRIM green" and self.pair.state(other) == "SECOND green":
                    return node
            time.sleep(0.2)
        raise AssertionError(f"no protected pair within 100 s: {self.pair.states()}")

    def load(self, *nodes: Node) -> None:
        """See to it that the stray writer lives on each node."""
        for node in nodes:
            node.run(
                "test -d /proc/$(cat /run/stray.pid 2>/dev/null || echo none) || { setsid /usr/bin/python3 -I "
                f"/opt/safekit/private/modules/{self.pair.module}/bin/stress_load.py {self.pair.directory} "
                f"{self.pair.backing} stray >>/var/tmp/stress.out 2>&1 </dev/null & echo $! > /run/stray.pid; }}"
            )

    def judge(self, prim: Node) -> None:
        """Nothing acknowledged is lost, and both trees are equal; then the account begins anew."""
        pair, second = self.pair, self.pair.other(prim)
        self.load(prim, second)
        names = {prim: ("app", "stray"), second: ("stray",)}
        for node in pair.nodes:
            for name in names[node]:
                pair.outside(node, stress_load.PAUSED + name).unlink(missing_ok=True)
            pair.outside(node, stress_load.PAUSE).touch()
        try:
            for node in pair.nodes:
                for name in names[node]:
                    marker = pair.outside(node, stress_load.PAUSED + name)
                    wait_until(marker.exists, 25, f"{name} of {node.name} pauses; {pair.states()}")
            notes = "".join(self.notes(node) for node in pair.nodes)
            said = prim.run(["/usr/bin/python3", "-I", "-c", _CHECK, pair.directory], input=notes).stdout
            total, lost = map(int, said.split()[:2])
            self.records += total
            assert not lost, f"{lost} of {total} acknowledged records are lost on {prim.name}:\n{said}"
            self.equal()
            self.note(f"{total} records, {prim.name} is primary")
            for node in pair.nodes:
                pair.outside(node, stress_load.NOTES).write_text("")
            if self.cycles % 5 == 0:
                prim.run(f"rm -rf {pair.directory}/a {pair.directory}/o {pair.directory}/r")
        finally:
            for node in pair.nodes:
                if node.is_on:
                    pair.outside(node, stress_load.PAUSE).unlink(missing_ok=True)

    def notes(self, node: Node) -> str:
        """Whole lines that a node has noted."""
        try:
            text = self.pair.outside(node, stress_load.NOTES).read_text()
        except FileNotFoundError:
            return ""
        return text[: text.rfind("\n") + 1]

    def equal(self) -> None:
        """Both trees have the same names, content, sizes, modes and owners; times follow within seconds."""
        difference: list[str] = []

        def same() -> bool:
            one, two = (self.pair.manifest(node) for node in self.pair.nodes)
            paths = one.keys() | two.keys()
            difference[:] = [f"{p}: {one.get(p)} != {two.get(p)}" for p in paths if one.get(p) != two.get(p)]
            return not difference

        wait_until(same, 15, lambda: "equal trees: " + "\n".join(sorted(difference)[:20]), interval=0.5)

    def report(self) -> str:
        """Seed and history; the logs of both nodes are kept beside."""
        target = self.keep / f"seed{self.seed}-cycle{self.cycles}"
        target.mkdir(parents=True, exist_ok=True)
        for node in self.pair.nodes:
            if node.is_on:
                base = self.pair.outside(node, f"/var/safekit/modules/{self.pair.module}")
                shutil.copytree(base, target / node.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
                (target / f"{node.name}.notes").write_text(self.notes(node))
        (target / "history").write_text("\n".join(self.history))
        told = [f"seed {self.seed}, cycle {self.cycles}, logs in {target}", *self.history[-25:], self.pair.tail()]
        return "\n".join(told)

    def summary(self) -> str:
        """Figures."""
        return json.dumps({"seed": self.seed, "cycles": self.cycles, "records": self.records, "kinds": self.kinds})

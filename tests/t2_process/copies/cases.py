"""A case: steps of two servers' life, made from a seed; run, and shrunk when it fails."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from safekit.bus.endpoint import BusError
from tests.t2_process.copies.changes import DIRECTORIES, Change, changes, foundation
from tests.t2_process.copies.nursery import Nursery
from tests.t2_process.copies.pair import Copies, Different, Server, sync

#: How a pair comes apart. The one that goes on is the primary of before unless the name says otherwise.
PARTINGS: Final = (
    *("second_stop", "second_kill", "second_power", "second_power", "second_frozen"),
    *("prim_stop", "prim_kill", "prim_power", "prim_power", "both_power", "both_stop", "swap", "swap", "split", "none"),
    *("swap_back", "reconfigure"),
)
#: What happens to a reintegration under way.
DISTURBANCES: Final = (
    "",
    "",
    "",
    "",
    "reintegre_kill",
    "second_kill",
    "second_power",
    "prim_kill",
    "prim_power",
    "cut",
)


@dataclass(frozen=True)
class Cycle:
    """From one pair to the next: changes in the pair, how it ends, changes without a peer, the way back."""

    paired: tuple[Change, ...] = ()
    parting: str = "second_stop"
    busy: bool = False  # the parting does not wait for the changes
    alone: tuple[Change, ...] = ()
    restart: str = ""  # of the one that goes on, between two halves of its changes: "", kill, power
    meanwhile: tuple[Change, ...] = ()  # while the other one is made equal
    disturbance: str = ""
    after: float = 0.0  # seconds of the reintegration before it
    pause: float = 0.0  # seconds in the pair: a checkpoint may come in between


@dataclass(frozen=True)
class Case:
    """Cycles one after the other on one pair."""

    seed: int
    durable: bool = False
    border: bool = False  # something stays local
    cycles: tuple[Cycle, ...] = ()


def make(seed: int, cycles: int) -> Case:
    """The case of a seed."""
    rnd = random.Random(seed)

    def some(most: int, often: float = 1.0) -> tuple[Change, ...]:
        return tuple(changes(rnd, rnd.randint(1, most))) if rnd.random() < often else ()

    return Case(
        seed,
        rnd.random() < 0.3,
        rnd.random() < 0.5,
        tuple(
            Cycle(
                some(40, 0.8),
                rnd.choice(PARTINGS),
                rnd.random() < 0.4,
                some(40, 0.8),
                rnd.choice(("", "", "", "", "kill", "power")),
                some(60, 0.5),
                rnd.choice(DISTURBANCES),
                rnd.random() ** 2 * 0.3,
                rnd.choice((0, 0, 0, 0, 0.5)),
            )
            for _ in range(cycles)
        ),
    )


@dataclass
class Runner:
    """One case on one pair."""

    copies: Copies
    primary: Server
    done: int = 0
    trace: list[str] = field(default_factory=list)

    @property
    def secondary(self) -> Server:
        return self.copies.other(self.primary)

    def start(self) -> None:
        """The first synchronisation."""
        for number in range(DIRECTORIES):
            (self.primary.backing / f"t{number}").mkdir()
        self.copies.start_primary(self.primary)
        self.copies.begin(self.primary, foundation())
        self.copies.settled()
        self.copies.follow(self.secondary)
        self.copies.equal("first synchronisation")

    def cycle(self, cycle: Cycle) -> None:
        """Raises Different."""
        copies = self.copies
        copies.begin(self.primary, cycle.paired)
        if not cycle.busy:
            copies.settled()
        if cycle.pause:
            time.sleep(cycle.pause)
        if copies.full and cycle.parting != "none":
            cycle = replace(cycle, parting="second_stop")  # the pair is none any more
        getattr(self, f"_{cycle.parting}")(cycle)
        self.alone(cycle)
        self.reintegrate(cycle)
        copies.settled()
        copies.equal(f"after cycle {self.done}: {cycle.parting}, {cycle.disturbance or 'undisturbed'}")
        self.done += 1

    def alone(self, cycle: Cycle) -> None:
        """Changes without a peer; the server may go down in the middle of them."""
        copies, half = self.copies, len(cycle.alone) // 2
        if cycle.parting == "none":
            return
        copies.begin(self.primary, cycle.alone[:half])
        if cycle.restart:
            if not cycle.busy:
                copies.settled()
            self.down(self.primary, cycle.restart)
            copies.lead(self.primary)
        copies.begin(self.primary, cycle.alone[half:])
        if not cycle.busy:
            copies.settled()

    def down(self, server: Server, how: str) -> None:
        """One server dies."""
        if server is self.primary:  # with its machine the application dies; with its processes the mount
            if how == "power":
                server.disk.power_off()
            server.kill_all()
            self.copies.ended()
        if how == "power":
            server.power_off()
        else:
            server.kill_all()

    def reintegrate(self, cycle: Cycle) -> None:
        """The way back, with what disturbs it."""
        copies = self.copies
        target = self.secondary
        if cycle.parting == "none" and target.alive:
            return
        copies.begin(self.primary, cycle.meanwhile)
        if not cycle.disturbance:
            copies.follow(target)
            return
        if not target.alive:
            target.up()
            target.ask("prepare")
        target.events.clear()
        try:
            target.ask("secondary")
        except BusError:
            pass
        time.sleep(cycle.after)
        match cycle.disturbance:
            case "reintegre_kill":
                target.kill("reintegre")
            case "cut":
                copies.settled()
                self.primary.ask("cut", target="nfsbox")
                self.primary.ask("alone")
            case "second_kill" | "second_power":
                self.down(target, cycle.disturbance.partition("_")[2])
                self.primary.ask("alone")
            case "prim_kill" | "prim_power":
                synced = "rfs_synced" in target.kinds()
                self.down(self.primary, cycle.disturbance.partition("_")[2])
                if synced and self.took_over(target):
                    return self.reintegrate(replace(cycle, disturbance=""))
                target.ask("standby")
                copies.lead(self.primary)
        copies.follow(target)

    def took_over(self, target: Server) -> bool:
        """heart of the secondary goes on alone; its former primary is the next to be made equal."""
        try:
            self.copies.lead(target)
        except BusError:
            return False
        self.primary = target
        return True

    # --- partings -------------------------------------------------------------------------------------------

    def _none(self, _cycle: Cycle) -> None:
        """Nothing happens."""

    def _second_stop(self, _cycle: Cycle) -> None:
        self.copies.leave(self.secondary)
        self.primary.ask("alone")

    def _second_kill(self, _cycle: Cycle) -> None:
        self.secondary.kill_all()
        self.primary.ask("alone")

    def _second_power(self, _cycle: Cycle) -> None:
        self.secondary.power_off()
        self.primary.ask("alone")

    def _second_frozen(self, _cycle: Cycle) -> None:
        self.secondary.signal(signal.SIGSTOP)
        self.primary.ask("alone")
        self.secondary.signal(signal.SIGCONT)

    def _leave_primary(self, cycle: Cycle, how: Callable[[], None]) -> None:
        image = None if cycle.busy else self.copies.image(self.primary)
        how()
        former, heir = self.primary, self.secondary
        self.copies.lead(heir)
        self.primary = heir
        self.copies.ended()
        if image is not None:
            self.copies.kept(heir, image, f"after cycle {self.done}: {cycle.parting} of {former.name}")

    def _prim_stop(self, cycle: Cycle) -> None:
        self.copies.ended()  # an orderly stop stops the application first
        self._leave_primary(cycle, lambda: self.copies.leave(self.primary))

    def _prim_kill(self, cycle: Cycle) -> None:
        self._leave_primary(cycle, self.primary.kill_all)

    def _prim_power(self, cycle: Cycle) -> None:
        primary = self.primary

        def fail() -> None:
            primary.disk.power_off()
            primary.kill_all()
            self.copies.ended()
            primary.power_off()

        self._leave_primary(cycle, fail)

    def _both_power(self, _cycle: Cycle) -> None:
        for server in (self.secondary, self.primary):
            server.disk.power_off()
        for server in (self.secondary, self.primary):
            server.kill_all()
        self.copies.ended()
        for server in (self.secondary, self.primary):
            server.power_off()
        self.copies.lead(self.primary)

    def _both_stop(self, _cycle: Cycle) -> None:
        self.copies.ended()
        self.copies.leave(self.primary)
        self.copies.leave(self.secondary)
        self.copies.lead(self.primary)

    def _swap(self, cycle: Cycle) -> None:
        self.copies.ended()
        if self.copies.full:
            return self._second_stop(cycle)
        former, heir = self.primary, self.secondary
        image = self.copies.image(former)
        former.ask("demote")
        heir.ask("primary", swap=True)
        former.ask("secondary", swap=True)
        self.primary = heir
        self.copies.kept(heir, image, f"after cycle {self.done}: swap")
        self.copies.begin(heir, cycle.alone)
        self.copies.settled()
        self.copies.equal(f"after cycle {self.done}: in the pair after a swap")
        self.copies.leave(former)
        heir.ask("alone")

    def _swap_back(self, cycle: Cycle) -> None:
        """The application is not stopped: it waits with what it has open, and goes on where it was."""
        copies, former, heir = self.copies, self.primary, self.secondary
        copies.left_behind()
        if copies.full:
            return self._second_stop(cycle)
        half = len(cycle.alone) // 2
        for old, new in ((former, heir), (heir, former)):
            old.ask("demote")
            new.ask("primary", swap=True)
            old.ask("secondary", swap=True)
            copies.begin(new, cycle.alone[:half] if new is heir else cycle.alone[half:])
            copies.settled()
            copies.equal(f"after cycle {self.done}: in the pair after a swap, {new.name} primary")
            if new is heir:
                copies.ended()
        copies.leave(heir)
        former.ask("alone")

    def _reconfigure(self, _cycle: Cycle) -> None:
        """What stays local changes; both servers are stopped meanwhile."""
        self.copies.ended()
        self.copies.leave(self.primary)
        self.copies.leave(self.secondary)
        self.copies.move_border()
        self.copies.lead(self.primary)

    def _split(self, cycle: Cycle) -> None:
        """Both go on; the former secondary gives its changes up."""
        self.copies.settled()
        former = self.secondary
        self.copies.lead(former)
        self.primary.ask("alone")
        self.copies.begin(former, cycle.alone)
        self.copies.settled()
        self.copies.ended()
        former.ask("standby")


def run(case: Case, directory: Path, nursery: Nursery) -> int:
    """Run a case; the number of its cycles. Raises Different."""
    copies = Copies(directory, nursery, durable=case.durable, border=case.border)
    with copies:
        runner = Runner(copies, copies.servers[0])
        runner.start()
        for cycle in case.cycles:
            runner.cycle(cycle)
        return runner.done


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A smaller case that still fails: fewer cycles, then fewer changes."""
    for index in range(len(case.cycles) - 1, -1, -1):
        smaller = replace(case, cycles=case.cycles[:index] + case.cycles[index + 1 :])
        if smaller.cycles and fails(smaller):
            case = smaller
    print(case, flush=True)
    for index in range(len(case.cycles)):
        for name in ("meanwhile", "alone", "paired"):
            case = _fewer(case, index, name, fails)
        for plain in ({"disturbance": ""}, {"restart": ""}, {"busy": False}, {"pause": 0.0}):
            smaller = _with(case, index, **plain)
            if smaller != case and fails(smaller):
                case = smaller
    return case


def _with(case: Case, index: int, **fields: object) -> Case:
    cycles = list(case.cycles)
    cycles[index] = replace(cycles[index], **fields)  # type: ignore[arg-type]
    return replace(case, cycles=tuple(cycles))


def _fewer(case: Case, index: int, name: str, fails: Callable[[Case], bool]) -> Case:
    step = max(1, len(getattr(case.cycles[index], name)))
    while step:
        at = 0
        while at < len(kept := getattr(case.cycles[index], name)):
            smaller = _with(case, index, **{name: kept[:at] + kept[at + step :]})
            if fails(smaller):
                case = smaller
                print("shrunk", [len(c.paired) + len(c.alone) + len(c.meanwhile) for c in case.cycles], flush=True)
            else:
                at += step
        step //= 2
    return case


__all__ = ["Case", "Cycle", "Different", "make", "run", "shrink", "sync"]

"""What is demanded of a cluster after a fault, as functions of what was observed. Pure.

An audit returns what is wrong, as sentences; nothing when all is well. What a fault may cost is decided by the table in
lab/chaos/faults.py, and nowhere else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.chaos.faults import Cost

BUCKETS = 256


@dataclass(frozen=True)
class Sample:
    """One server at one moment. `time` in seconds; `runner`: pid of the application, 0 when it does not run; `state` as
    `PRIM green`, `off` without power, `?` while nothing of this life of the server is known."""

    time: float
    node: str
    state: str = "?"
    address: bool = False
    runner: int = 0


@dataclass(frozen=True)
class Overlap:
    """Several servers had the same at the same moments."""

    what: str
    begin: float
    end: float
    nodes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def overlaps(looks: Iterable[Sequence[Sample]], what: str) -> list[Overlap]:
    """Times in which more than one server had `what` (`address` or `runner`). A look has one sample for each server."""
    found: list[Overlap] = []
    was = False
    for look in looks:
        nodes = tuple(sample.node for sample in look if getattr(sample, what))
        if len(nodes) > 1:
            end = max(sample.time for sample in look)
            if was:
                found[-1] = Overlap(what, found[-1].begin, end, nodes)
            else:
                found.append(Overlap(what, min(sample.time for sample in look), end, nodes))
        was = len(nodes) > 1
    return found


_NAMES = {"runner": "run the application", "address": "hold the virtual address"}


def one_at_a_time(looks: Sequence[Sequence[Sample]], allowed: Cost, longest: float) -> list[str]:
    """At most one server runs the application and holds its address. `longest`: seconds that Cost.OVERLAP allows."""
    wrong = []
    for what, name in _NAMES.items():
        for each in overlaps(looks, what):
            if allowed is Cost.SPLIT or (allowed is Cost.OVERLAP and each.seconds <= longest):
                continue
            wrong.append(f"{' and '.join(each.nodes)} {name} at the same time, for {each.seconds:.2f} s")
    return wrong


def untouched(before: int, looks: Sequence[Sequence[Sample]], node: str, allowed: Cost) -> list[str]:
    """A fault that may cost nothing leaves the application alone: the same process on the same server all the time."""
    if allowed is not Cost.NOTHING:
        return []
    runners = {sample.runner for look in looks for sample in look if sample.node == node}
    if runners == {before}:
        return []
    return [f"the application of {node} was touched: process {before} before, {sorted(runners - {before})} afterwards"]


@dataclass(frozen=True)
class Lost:
    """An acknowledged record that is not there. `node` acknowledged it (or the client), at `time`."""

    record: str
    node: str
    time: float


def nothing_lost(lost: Sequence[Lost], allowed: Cost, fault: float, kept: str, former: str) -> list[str]:
    """No acknowledged record is lost. `fault`: when the step began; `kept`: the primary now; `former`: the one then.

    A split costs what one side alone acknowledged since the fault, never what both had before; a client's record counts
    for either side. While nothing else happened, the former primary is the one that stays."""
    if not lost:
        return []
    if allowed is Cost.SPLIT:
        wrong = [each for each in lost if each.time < fault or each.node == kept]
        sides = {each.node for each in lost if each.time >= fault} - {"client"}
        if len(sides) > 1:
            wrong = list(lost)
    else:
        wrong = list(lost)
    if not wrong:
        return []
    shown = ", ".join(f"{each.record} ({each.node}, {each.time - fault:+.2f} s)" for each in wrong[:10])
    return [f"{len(wrong)} acknowledged records are lost on {kept} (primary before: {former}): {shown}"]


def kept_in_quarantine(given_up: int, quarantines: int) -> list[str]:
    """What a split made a server give up is kept there."""
    if given_up and not quarantines:
        return [f"{given_up} records were given up after a split, and no quarantine keeps them"]
    return []


def equal(one: Mapping[str, object], two: Mapping[str, object]) -> list[str]:
    """Both servers have the same tree: names, kinds, modes, owners, sizes, times, links, attributes, content."""
    differ = sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))
    if not differ:
        return []
    shown = "; ".join(f"{path}: {one.get(path)} != {two.get(path)}" for path in differ[:5])
    return [f"the trees of a protected pair differ in {len(differ)} paths: {shown}"]


@dataclass(frozen=True)
class Seen:
    """What is there on a server, whatever it says."""

    runner: bool
    address: bool
    mounted: bool
    processes: frozenset[str] = frozenset()
    """Names of the module's processes."""


_RUNS = ("PRIM green", "ALONE green", "UP green")
_IDLE = ("SECOND green", "SECOND magenta", "WAIT red", "STOP red")
_NEEDED = {
    "PRIM green": {"heart", "nfsbox", "nfsadmin"},
    "SECOND green": {"heart", "nfsbox", "nfsadmin"},
    "ALONE green": {"heart"},
    "WAIT red": {"heart"},
}


def says_what_is(node: str, said: Mapping[str, Any], seen: Seen) -> list[str]:
    """What `safekit state --json` says of a module on a server is what is there. Asked when the server is at rest."""
    state = f"{said['state']} {said['color']}"
    wrong = []

    def demand(is_so: bool, what: str) -> None:
        if not is_so:
            wrong.append(f"{node} says {state}, but {what}")

    if state in _RUNS:
        demand(seen.runner, "the application does not run there")
        demand(seen.address, "it does not hold the virtual address")
    if state in _IDLE:
        demand(not seen.runner, "the application runs there")
        demand(not seen.address, "it holds the virtual address")
    if state in ("PRIM green", "SECOND green", "ALONE green"):
        demand(seen.mounted, "its replicated directory is not mounted")
    missing = _NEEDED.get(state, set()) - seen.processes
    demand(not missing, f"{', '.join(sorted(missing))} does not run")
    demand(said["running"] == ("heart" in seen.processes or bool(seen.processes)), f"its processes: {_list(seen)}")
    if state == "STOP red":
        demand(not seen.mounted, "its replicated directory is mounted")
        demand(not seen.processes, f"processes of the module run: {_list(seen)}")
    return wrong


def _list(seen: Seen) -> str:
    return ", ".join(sorted(seen.processes)) or "none"


def verdict_fits(said: Mapping[str, Mapping[str, Any]], reachable: bool) -> list[str]:
    """The verdicts of both servers of a mirror agree with both states. `reachable`: they can hear each other. Asked
    when both are at rest; `said` has the answers of the servers that are on."""
    states = {node: f"{each['state']} {each['color']}" for node, each in said.items()}
    both = sorted(states.values()) == ["PRIM green", "SECOND green"]
    wrong = []
    for node, each in said.items():
        kind, reason = each["verdict"]["kind"], each["verdict"]["reason"]
        if kind == "protected" and not both:
            wrong.append(f"{node} says that it is protected, but the states are {states}")
        if both and reachable and kind != "protected":
            wrong.append(f"{node} says {kind} ({reason}), but the pair is complete")
        if each["state"] in ("PRIM", "ALONE") and kind == "stopped":
            wrong.append(f"{node} says stopped ({reason}), but its state is {states[node]}")
        others = [other for other in said if other != node]
        if reachable and others and each["state"] not in ("STOP",):
            other = said[others[0]]
            there = "UNKNOWN" if other["state"] == "STOP" else other["state"]
            if each["remote_state"] != there:
                wrong.append(f"{node} says that the other server is {each['remote_state']}, which is {other['state']}")
    return wrong


def in_time(what: str, took: float, bound: float) -> list[str]:
    """`took` seconds are within the bound."""
    return [f"{what} took {took:.1f} s; the configuration bounds it by {bound:.1f} s"] if took > bound else []


def no_traceback(logs: Mapping[str, str]) -> list[str]:
    """No process of the product has died of an error that nobody foresaw. `logs`: name -> what came since last time."""
    return [f"{name}: {text[text.index('Traceback') :][:1500]}" for name, text in logs.items() if "Traceback" in text]


# Farms


@dataclass(frozen=True)
class Answer:
    """One connection of the client to the farm: begun at `time`, answered by server `who` after `took` seconds; `who`
    begins with ! when it failed."""

    time: float
    took: float
    who: str


def one_owner(bitmaps: Mapping[str, Sequence[int]], sharing: Sequence[str]) -> list[str]:
    """Every bucket of every rule has exactly one owner among the servers that share the load. `bitmaps`: server -> one
    number of 256 bits for each rule."""
    wrong = []
    for node in sharing:
        if node not in bitmaps:
            wrong.append(f"{node} shares the load, and has no filter")
    for rule in range(max((len(rows) for rows in bitmaps.values()), default=0)):
        owners = [rows[rule] if rule < len(rows) else 0 for rows in bitmaps.values()]
        union, twice = 0, 0
        for bits in owners:
            twice |= union & bits
            union |= bits
        if twice:
            wrong.append(f"rule {rule + 1}: {twice.bit_count()} buckets have several owners")
        if union.bit_count() != BUCKETS:
            wrong.append(f"rule {rule + 1}: {BUCKETS - union.bit_count()} buckets have no owner")
    return wrong


def served(answers: Sequence[Answer], expected: Sequence[str]) -> list[str]:
    """A farm at rest serves every connection, and each of its servers has a share of them."""
    wrong = []
    failed = [answer for answer in answers if answer.who.startswith("!")]
    if failed:
        wrong.append(f"{len(failed)} of {len(answers)} connections failed at rest: {failed[0].who}")
    strangers = {answer.who for answer in answers} - set(expected) - {answer.who for answer in failed}
    if strangers:
        wrong.append(f"{', '.join(sorted(strangers))} answered, which do not share the load")
    missing = set(expected) - {answer.who for answer in answers}
    if missing and len(answers) >= 20 * len(expected):
        wrong.append(f"{', '.join(sorted(missing))} got none of {len(answers)} connections")
    return wrong


def longest_gap(times: Sequence[float], begin: float, end: float) -> float:
    """Seconds of the longest time between two acknowledgements within [begin, end], the ends counted."""
    inside = [begin, *(time for time in times if begin <= time <= end), end]
    return max(later - earlier for earlier, later in itertools.pairwise(inside))


@dataclass
class Account:
    """Figures of a campaign, added up as it goes."""

    kinds: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    faults: int = 0
    records: int = 0
    given_up: int = 0
    recoveries: list[float] = field(default_factory=list)
    gaps: dict[str, float] = field(default_factory=dict)
    """Kind -> the longest time without an acknowledgement in a step of that fault alone."""
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Account) -> None:
        """Of another lab."""
        for kind, count in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count
        for kind, gap in other.gaps.items():
            self.gaps[kind] = max(gap, self.gaps.get(kind, 0.0))
        self.steps += other.steps
        self.faults += other.faults
        self.records += other.records
        self.given_up += other.given_up
        self.recoveries += other.recoveries
        self.findings += other.findings
        self.seconds += other.seconds

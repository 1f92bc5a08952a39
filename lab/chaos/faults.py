"""The faults of a campaign, what each may cost, and the sequence that a seed makes of them. Pure.

Every choice is a hash of the seed, the step and the name of the choice: step 83 of a seed is the same whatever came of
the steps before it, so that a replay may begin there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class Cost(Enum):
    """What a fault may legitimately cost, beyond time. Whatever is not allowed here is a finding."""

    NOTHING = "nothing: the application is not touched"
    RESTART = "the application is started again, here or on the other server"
    OVERLAP = (
        "for a moment two servers run it: safeadmin stops it on one that lost heart for the time-out, nobody on one "
        "that stands still"
    )
    SPLIT = "a split without a witness: both servers run it, and what one of them acknowledged is given up"


@dataclass(frozen=True)
class Kind:
    """A kind of fault. `weight`: how often it is chosen; `repaired`: it ends by the repair that follows the audit,
    otherwise it is over when it has been done."""

    name: str
    weight: int
    cost: Cost
    told: str
    witnessed: Cost | None = None
    """The cost where a witness is configured, when that is another one."""


def _kinds(*kinds: Kind) -> Mapping[str, Kind]:
    return {kind.name: kind for kind in kinds}


MIRROR = _kinds(
    # Power. The lab's disks forget what was not synced.
    Kind("poweroff_prim", 6, Cost.RESTART, "the power of the primary fails"),
    Kind("poweroff_second", 4, Cost.NOTHING, "the power of the secondary fails"),
    Kind("poweroff_both", 3, Cost.RESTART, "the power of both servers fails at the same moment"),
    Kind("reboot_prim", 2, Cost.RESTART, "the primary is rebooted in order"),
    Kind("reboot_second", 1, Cost.NOTHING, "the secondary is rebooted in order"),
    # Processes.
    Kind("kill_small", 10, Cost.NOTHING, "one process is killed that the application must not miss"),
    Kind("kill_nfsbox_prim", 4, Cost.RESTART, "the file system of the primary is killed"),
    Kind("kill_second", 6, Cost.NOTHING, "one process of the secondary is killed"),
    Kind("kill_supervisor", 3, Cost.RESTART, "the supervisor of the module is killed"),
    Kind("kill_several", 6, Cost.OVERLAP, "two or three processes are killed at once"),
    Kind("kill_all", 5, Cost.OVERLAP, "all processes of the module are killed at once"),
    Kind("kill_application", 3, Cost.RESTART, "the application is killed"),
    # Standing still.
    Kind("freeze_heart", 3, Cost.OVERLAP, "heart stands still for a while"),
    Kind("freeze_nfsbox", 4, Cost.RESTART, "nfsbox stands still for a while"),
    Kind("freeze_server", 3, Cost.OVERLAP, "a whole server stands still for a while"),
    # Network.
    Kind("cut_flow", 5, Cost.RESTART, "the cable of the replication is unplugged"),
    Kind("cut_default", 4, Cost.NOTHING, "the cable of the clients is unplugged, heartbeats live on the other one"),
    Kind("cut_all", 4, Cost.SPLIT, "all cables of a server are unplugged", witnessed=Cost.RESTART),
    Kind("block_flow", 4, Cost.RESTART, "nothing gets through in one direction on the replication's network"),
    Kind("block_default", 3, Cost.NOTHING, "nothing gets through in one direction on the clients' network"),
    Kind("block_all", 4, Cost.SPLIT, "nothing gets through in one direction on any network", witnessed=Cost.RESTART),
    Kind("loss", 2, Cost.RESTART, "a part of the frames is lost on both networks"),
    Kind("delay", 2, Cost.RESTART, "every frame takes longer"),
    # Disk and directory.
    Kind("disk_full", 4, Cost.RESTART, "the disk of a server is full"),
    Kind("holder", 3, Cost.NOTHING, "a process holds the data of a stopped secondary, which is started"),
    # An administrator.
    Kind("stop_prim", 4, Cost.RESTART, "stop on the primary"),
    Kind("stop_second", 3, Cost.NOTHING, "stop on the secondary"),
    Kind("stop_both", 2, Cost.RESTART, "stop on both servers, one after the other"),
    Kind("swap", 4, Cost.RESTART, "swap"),
    Kind("restart", 3, Cost.RESTART, "restart of the application"),
    Kind("stopstart", 4, Cost.RESTART, "stopstart"),
    Kind("forcestop", 2, Cost.RESTART, "forcestop"),
    Kind("config", 2, Cost.NOTHING, "config of a module that runs"),
    Kind("wrong_role", 3, Cost.NOTHING, "start, prim or second of a module that runs"),
    Kind("wrong_directory", 2, Cost.NOTHING, "the secondary gets another replicated directory"),
    Kind("wrong_address", 2, Cost.NOTHING, "the secondary gets another virtual address"),
    Kind("wrong_timeout", 1, Cost.NOTHING, "the secondary gets another time-out"),
    Kind("wrong_xml", 2, Cost.NOTHING, "the secondary gets a configuration that is none"),
)
"""Faults of a mirror module on two servers."""

FARM = _kinds(
    Kind("poweroff", 5, Cost.NOTHING, "the power of a server fails"),
    Kind("reboot", 1, Cost.NOTHING, "a server is rebooted in order"),
    Kind("kill_small", 6, Cost.NOTHING, "one process of a server is killed"),
    Kind("kill_all", 4, Cost.NOTHING, "all processes of the module are killed on a server"),
    Kind("kill_application", 3, Cost.NOTHING, "the application of a server is killed"),
    Kind("freeze_vipd", 3, Cost.NOTHING, "vipd of a server stands still for a while"),
    Kind("freeze_server", 2, Cost.NOTHING, "a whole server stands still for a while"),
    Kind("cut", 4, Cost.NOTHING, "the cable of a server is unplugged"),
    Kind("isolate", 3, Cost.SPLIT, "no server hears one of them, the client hears all"),
    Kind("block", 3, Cost.SPLIT, "nothing gets through from one server to another"),
    Kind("loss", 2, Cost.NOTHING, "a part of a server's frames is lost"),
    Kind("stop", 4, Cost.NOTHING, "stop on a server"),
    Kind("stop_all", 1, Cost.RESTART, "stop on all servers"),
    Kind("restart", 2, Cost.NOTHING, "restart on a server"),
    Kind("stopstart", 3, Cost.NOTHING, "stopstart on a server"),
    Kind("config", 2, Cost.NOTHING, "config of a module that runs"),
)
"""Faults of a farm module on three servers."""


@dataclass(frozen=True)
class Fault:
    """One fault of a step. `dice`: a number from 0 to 1 for each choice that only the moment can make."""

    kind: Kind
    first: bool
    """Which server, where the kind leaves that open: the primary (the first one) or the other."""
    hold: str
    """How long before the repair: `short`, `noticed` (until a server's state has changed), or `long`."""
    dice: tuple[float, ...]

    def pick(self, number: int, choices: Sequence[T]) -> T:
        """One of the choices by the die of that number."""
        return choices[int(self.dice[number] * len(choices))]


@dataclass(frozen=True)
class Step:
    """Faults that hit before the cluster has recovered from the first one, then repair and audit."""

    number: int
    faults: tuple[Fault, ...]
    gaps: tuple[str, ...]
    """What lies between a fault and the next: `at once`, `noticed`, `recovering` (the repair has begun)."""


def die(seed: int, *names: object) -> float:
    """A number from 0 (included) to 1 (excluded) that depends on the arguments alone."""
    text = "/".join(map(str, (seed, *names))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") / (1 << 48)


def chosen(weights: Mapping[str, int], value: float) -> str:
    """The name in whose part of the whole `value` (0 to 1) lies."""
    at = value * sum(weights.values())
    for name, weight in weights.items():
        at -= weight
        if at < 0:
            return name
    raise ValueError(f"{value} is not within 0 to 1")


_HOLDS = {"short": 3, "noticed": 4, "long": 2}
_GAPS = {"at once": 3, "noticed": 3, "recovering": 4}
_COUNTS = {"1": 45, "2": 35, "3": 20}  # faults of a step
DICE = 4


def step(seed: int, number: int, kinds: Mapping[str, Kind]) -> Step:
    """Step `number` (from 1) of a seed."""
    count = int(chosen(_COUNTS, die(seed, number, "count")))
    weights = {name: kind.weight for name, kind in kinds.items()}
    faults = tuple(
        Fault(
            kinds[chosen(weights, die(seed, number, index, "kind"))],
            die(seed, number, index, "side") < 0.6,
            chosen(_HOLDS, die(seed, number, index, "hold")),
            tuple(die(seed, number, index, "die", each) for each in range(DICE)),
        )
        for index in range(count)
    )
    gaps = tuple(chosen(_GAPS, die(seed, number, index, "gap")) for index in range(count - 1))
    return Step(number, faults, gaps)


def schedule(seed: int, faults: int, kinds: Mapping[str, Kind], begin: int = 1) -> Iterator[Step]:
    """Steps from `begin` on until they hold at least that many faults. Raises ValueError for no kinds."""
    if not kinds:
        raise ValueError("a schedule needs kinds of faults")
    done, number = 0, begin
    while done < faults:
        made = step(seed, number, kinds)
        yield made
        done += len(made.faults)
        number += 1


_ORDER = (Cost.NOTHING, Cost.RESTART, Cost.OVERLAP, Cost.SPLIT)


def cost(faults: Sequence[Fault], *, witness: bool) -> Cost:
    """What a step may cost: the dearest of its faults. Two faults on one step may together do what none does alone (the
    last heartbeat of a server may be lost by two cuts): then it is what they have in common that decides."""
    costs = [fault.kind.witnessed if witness and fault.kind.witnessed else fault.kind.cost for fault in faults]
    dearest = max(costs, key=_ORDER.index)
    if len(costs) > 1:
        dearest = max(dearest, Cost.RESTART, key=_ORDER.index)
        if not witness and together_deaf(faults):
            dearest = Cost.SPLIT
    return dearest


_FLOW = frozenset({"cut_flow", "block_flow"})
_DEFAULT = frozenset({"cut_default", "block_default"})


def together_deaf(faults: Sequence[Fault]) -> bool:
    """Whether several faults together take every network: one that is lost for each."""
    names = {fault.kind.name for fault in faults}
    return bool(names & _FLOW and names & _DEFAULT)

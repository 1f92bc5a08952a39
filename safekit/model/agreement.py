"""What the servers of a module must have in common, told in a few words, and compared.

Each server tells its own (`agreement`) in its heartbeats, and through safeadmin to the whole cluster: when ids or ports
differ no heartbeat arrives, and only that way is left. A name that only one of two releases tells says nothing, so that
servers can be upgraded one after the other. Pure.

What may differ between servers is not among it: time-outs, scripts, variables, checkers. That their files differ at all
is told by the signature of the configuration, and stops nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from safekit.model.codec import to_json
from safekit.model.types import Interface, ModuleConfig, Vip

Agreement = tuple[tuple[str, str], ...]
"""(name, value), in a fixed order. Values have no white space."""

MAX_VALUE = 120
"""Longer values are told by their begin and a digest."""
MAX_NAMES = 32


class Weight(Enum):
    """What a difference forbids.

    NAMED: nothing, it is only told. WORD: to be the secondary, or to take part, unless an administrator says `second`:
    then addresses can be changed on one server after the other. NEVER: the same, whoever says so.
    """

    NAMED = 1
    WORD = 2
    NEVER = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """One name whose values differ."""

    name: str
    mine: str
    theirs: str
    weight: Weight


_WORDS = {
    "mode": ("the mode", Weight.NEVER),
    "id": ("the module id", Weight.NEVER),
    "directories": ("the replicated directories", Weight.NEVER),
    "replication_port": ("the replication port", Weight.NEVER),
    "farm_port": ("the farm port", Weight.NEVER),
    "balancing": ("the load balancing", Weight.NEVER),
    "addresses": ("the virtual addresses", Weight.WORD),
    "heartbeats": ("the heartbeats", Weight.NAMED),
    "exclusions": ("what is not replicated", Weight.NAMED),
    "files": ("the files of the module", Weight.NAMED),
}


def agreement(config: ModuleConfig) -> Agreement:
    """What a configuration has to have in common with that of the other servers."""
    rfs, farm, vip = config.rfs, config.farm, config.vip
    found = {
        "mode": config.service.mode,
        "id": str(config.id),
        "directories": _listed(replicated.dir for replicated in rfs.replicated) if rfs is not None else "",
        "replication_port": str(rfs.port) if rfs is not None else "",
        "farm_port": str(farm.port) if farm is not None else "",
        "balancing": _balancing(config) if farm is not None else "",
        "addresses": _addresses(vip, farm=farm is not None) if vip is not None else "",
        "heartbeats": _listed(f"{beat.name}:{beat.port}" for beat in config.heart.heartbeats) if config.heart else "",
        "exclusions": _digest(
            "\n".join("\t".join((r.dir, *r.notreplicated_paths, "", *r.notreplicated_regex)) for r in rfs.replicated)
        )
        if rfs is not None
        else "",
        "files": config.signature[:16],
    }
    return tuple((name, _bounded(value)) for name, value in found.items())


def differences(mine: Agreement, theirs: Agreement) -> tuple[Difference, ...]:
    """The names that both know and whose values differ, the heaviest first. An unknown name is only told."""
    if mine == theirs:
        return ()
    told = dict(theirs)
    found = [
        Difference(name, value, told[name], _WORDS[name][1] if name in _WORDS else Weight.NAMED)
        for name, value in mine
        if name in told and told[name] != value
    ]
    return tuple(sorted(found, key=lambda difference: -difference.weight.value))


def forbidding(found: Iterable[Difference], *, word: bool = False) -> tuple[Difference, ...]:
    """Those with which two servers do not work together; `word`: an administrator wants it."""
    return tuple(d for d in found if d.weight is Weight.NEVER or (d.weight is Weight.WORD and not word))


def text(found: Iterable[Difference], here: str = "here", there: str = "there") -> str:
    """For people: `the module id (1 here, 2 there)`."""
    return ", ".join(
        _WORDS.get(d.name, (d.name, None))[0]
        + (f" ({d.mine or 'none'} {here}, {d.theirs or 'none'} {there})" if d.name not in _OPAQUE else "")
        for d in found
    )


_OPAQUE = ("files", "exclusions", "balancing")


def names(found: Iterable[Difference]) -> str:
    """As the value of a resource: one word."""
    return ",".join(d.name for d in found) or "none"


def words(value: str) -> str:
    """What the value of a resource (`names`) means."""
    return ", ".join(_WORDS.get(name, (name, None))[0] for name in value.split(",") if name)


def _listed(values: Iterable[str]) -> str:
    return "+".join("%20".join(value.split()) for value in values)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def _bounded(value: str) -> str:
    return value if len(value) <= MAX_VALUE else f"{value[: MAX_VALUE - 20]}...{_digest(value)}"


def _addresses(vip: Vip, *, farm: bool) -> str:
    """In a farm each server must have them in the same way, with the same MAC."""
    return _listed(
        sorted(
            address.addr.casefold() + (f"/{_kind(interface)}" if farm else "")
            for interface in vip.interfaces
            for address in interface.addresses
        )
    )


def _kind(interface: Interface) -> str:
    return f"{interface.kind}{'/' + interface.mac.casefold() if interface.mac else ''}"


def _balancing(config: ModuleConfig) -> str:
    """All of <farm> and <vip>: the servers of a farm do not count one as a member that has others (vipd/farm/wire.py),
    so that each of the two would take the whole load."""
    return _digest(to_json(ModuleConfig("", 0, vip=config.vip, farm=config.farm)))

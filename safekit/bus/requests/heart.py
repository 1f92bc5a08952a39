"""Requests to heart, which decides for a module and alone writes its resources."""

from __future__ import annotations

from dataclasses import dataclass

from safekit.bus import asking
from safekit.bus.asking import Ask, Document, Done

HEART = "heart"


@dataclass(frozen=True, slots=True)
class Ping(asking.Ping):
    """Whether its loop turns, which sends the heartbeats."""

    process = HEART


@dataclass(frozen=True, slots=True)
class Changed:
    """Whether the resource had another value before."""

    changed: bool = True


@dataclass(frozen=True, slots=True)
class SetResource(Ask[Changed]):
    """Set a resource, `class.id`, to a value of one word; `who` sets it, for the log. Refused with bad_request."""

    process = HEART
    op = "set"
    resource: str
    value: str
    who: str


@dataclass(frozen=True, slots=True)
class Event(Ask[Done]):
    """News of nfsadmin and vipd. kind: a word that heart knows, or one that only goes to the verbose log."""

    process = HEART
    op = "event"
    kind: str
    reason: str = ""
    attempt: str = ""


@dataclass(frozen=True, slots=True)
class Reload(Ask[Done]):
    """A dynamic configuration, of the module or of the cluster. Refused with unusable."""

    process = HEART
    op = "reload"


@dataclass(frozen=True, slots=True)
class Counter:
    """The maxloop counter. reached: `count` is over `maxloop`, within loop_interval."""

    count: int
    maxloop: int
    reached: bool


@dataclass(frozen=True, slots=True)
class CountLoop(Ask[Counter]):
    """Count an automatic action. identity: the handler that asks, "" for a person (`who`)."""

    process = HEART
    op = "incloop"
    repeatable = False
    identity: str = ""
    who: str = ""


@dataclass(frozen=True, slots=True)
class ResetLoop(Ask[Counter]):
    """Set the counter to 0."""

    process = HEART
    op = "resetloop"
    identity: str = ""
    who: str = ""


@dataclass(frozen=True, slots=True)
class CheckLoop(Ask[Counter]):
    """Tell the counter."""

    process = HEART
    op = "checkloop"
    identity: str = ""
    who: str = ""


@dataclass(frozen=True, slots=True)
class RunProcess(Ask[Done]):
    """Have the supervisor run a process of the module, or end it. Refused with bad_request, supervisor."""

    process = HEART
    op = "process"
    name: str
    on: bool


@dataclass(frozen=True, slots=True)
class Pair(Ask[Done]):
    """A reintegration has ended: may the pair be complete? Answered when it is remembered."""

    process = HEART
    op = "pair"
    peer: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The command is taken."""

    accepted: bool = True


@dataclass(frozen=True, slots=True)
class Control(Ask[Accepted]):
    """A command of an administrator (`who`) or of a handler (`identity`, which counts for maxloop).

    value, args: the option of a command, such as on and off. why: what a handler found. Refused with a sentence and
    code refused.
    """

    process = HEART
    op = "control"
    repeatable = False
    action: str
    who: str = "root"
    identity: str = ""
    nosync: bool = False
    fullsync: bool = False
    value: str = ""
    args: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class GetStatus(Ask[Document]):
    """What heart knows now: state, peer, links, the loop counter, the last decisions."""

    process = HEART
    op = "status"

"""Requests to errd, the detection of dead processes of a module (guide 13.9)."""

from __future__ import annotations

from dataclasses import dataclass

from safekit.bus.asking import Ask, Done

ERRD = "errd"


@dataclass(frozen=True, slots=True)
class Watched:
    """How many <proc> the request was about."""

    procs: int


@dataclass(frozen=True, slots=True)
class Enable(Ask[Watched]):
    """Watch the <proc> of a class: their processes have been started."""

    process = ERRD
    op = "enable"
    proc_class: str


@dataclass(frozen=True, slots=True)
class Disable(Ask[Watched]):
    """Watch them no longer: their processes are about to be stopped."""

    process = ERRD
    op = "disable"
    proc_class: str


@dataclass(frozen=True, slots=True)
class Lines:
    """Text for people, as much of it as fits into one answer."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListWatched(Ask[Lines]):
    """What is watched, and the processes that count."""

    process = ERRD
    op = "list"


@dataclass(frozen=True, slots=True)
class Killed:
    """`count` processes of the module were found, `lines` shows them; `foreign` others of that name were left alone."""

    count: int
    foreign: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kill(Ask[Killed]):
    """Send a signal to the module's processes of a name.

    argregex: what their command lines match, "" for all. level: test, terminate, 9 or 15. caller: a process that is
    spared, 0 for none. who: for the log. Refused with bad_request for an expression that is none.
    """

    process = ERRD
    op = "kill"
    repeatable = False
    name: str
    level: str
    who: str
    argregex: str = ""
    caller: int = 0


@dataclass(frozen=True, slots=True)
class Look(Ask[Done]):
    """Look at once: something has changed."""

    process = ERRD
    op = "wake"


@dataclass(frozen=True, slots=True)
class Reload(Ask[Done]):
    """Take the new configuration over."""

    process = ERRD
    op = "reload"

"""Values that the mirror automaton works with: roles, configuration, heartbeats, commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from safekit.model.agreement import Agreement
from safekit.rules.ast import Rule

VERDICT = 3.5
"""Seconds after which a witness that has not answered counts as one that does not (a probe of it takes 3)."""
ADDRESSES = 2.0
"""Seconds in which the virtual addresses are taken away from a server that is cut off."""
MARK = 60.0
"""Seconds between two marks of a whole pair (see heart.core.lineage)."""
MARGIN, MARGIN_PULSES = 0.5, 4
"""Seconds, and pulses, that a server that is cut off may be late."""


class Role(StrEnum):
    """State of a module on one server (guide 5.2, 6.2)."""

    STOP = "STOP"
    WAIT = "WAIT"
    ALONE = "ALONE"
    PRIM = "PRIM"
    SECOND = "SECOND"
    UP = "UP"
    UNKNOWN = "UNKNOWN"
    """Only of the peer: nothing is heard from it."""

    primary: bool
    """The application runs in this role."""
    running: bool
    """Neither stopped nor waiting."""

    def __init__(self, name: str) -> None:
        self.primary = name in ("ALONE", "PRIM")
        self.running = self.primary or name in ("SECOND", "UP")


class Color(StrEnum):
    """green: stable; magenta: in transition; red: stopped or blocked; grey: not known."""

    RED = "red"
    MAGENTA = "magenta"
    GREEN = "green"
    GREY = "grey"


@dataclass(frozen=True, slots=True)
class Link:
    """A heartbeat: its ident, period and time-out in seconds."""

    ident: str
    pulse: float = 0.7
    timeout: float = 30.0


@dataclass(frozen=True)
class Setup:
    """What the configuration says to the automaton; seconds everywhere.

    ``checks`` are the resources of the checkers by phase (pre, prim, second,
    both): they go to init when the phase starts, and WAIT is not left before
    those of ``pre`` have left init.  ``classes`` are the phases that errd
    watches.  ``witness`` is the ident of the split-brain checker, "" without
    one.  Farm and light modules (``mode``) have no peer.
    """

    node: str
    peer: str
    hostname: str = ""
    links: tuple[Link, ...] = (Link("default"),)
    rfs: bool = True
    defaultprim: str = "alone"
    failover: bool = True
    maxloop: int = 3
    loop_interval: float = 24 * 3600.0
    automatic_reboot: bool = False
    rules: tuple[Rule, ...] = ()
    period: float = 5.0
    handle_time: float = 15.0
    checks: tuple[tuple[str, tuple[str, ...]], ...] = ()
    classes: tuple[str, ...] = ()
    witness: str = ""
    mode: str = "mirror"
    signature: str = ""
    agrees: Agreement = ()
    syncat: str = ""
    """When the secondary is synchronised, as in a crontab; "": at once, and always."""
    mark: float = MARK
    hurry: float = 10.0
    """Longest time in which the stop scripts of the application end, or are ended, when the witness says so."""

    @cached_property
    def timeout(self) -> float:
        """After this long without any heartbeat the peer is lost."""
        return max((link.timeout for link in self.links), default=0.0)

    @cached_property
    def pulse(self) -> float:
        """The longest period between two heartbeats of a link."""
        return max((link.pulse for link in self.links), default=1.0)

    @cached_property
    def holds(self) -> float:
        """With a witness: how long this server may run the application at most after the last of its heartbeats that
        the peer has heard (see `heart.core.witness`)."""
        margin = MARGIN + MARGIN_PULSES * self.pulse
        return self.timeout + VERDICT + self.hurry + ADDRESSES + margin if self.witness else 0.0

    @cached_property
    def is_default_prim(self) -> bool:
        """isdefaultprim(): the name may be the node's or the host's (any case)."""
        return self.defaultprim.casefold() in (self.node.casefold(), self.hostname.casefold())

    @cached_property
    def mirror(self) -> bool:
        """Two servers, a primary and a secondary."""
        return self.mode == "mirror"

    def watched(self, phase: str) -> bool:
        """Something starts and stops with the phase."""
        return phase in ("base", "pre") or phase in self.classes or bool(self.checks_of(phase))

    def checks_of(self, phase: str) -> tuple[str, ...]:
        """Resources of the checkers of a phase."""
        return next((names for name, names in self.checks if name == phase), ())


@dataclass(frozen=True, slots=True)
class SwapNotice:
    """Where a server stands in a swap: its number, the issuer, and the phase.

    Phases: asked, begun (the other may count on me), released (the former
    primary has stopped the application and given the data up), refused.
    """

    issuer: str
    number: int
    phase: str
    nosync: bool = False


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision as it is told to the other server: a growing number, Unix time, rule, outcome, and inputs
    (name, value, setter, since)."""

    number: int
    time: float
    rule: str
    outcome: str
    inputs: tuple[tuple[str, str, str, float], ...] = ()


class Beat(NamedTuple):
    """One heartbeat as the automaton sees it.

    ``incarnation`` grows with every start of a heart, ``sequence`` within one;
    older beats than the last one are ignored.  ``echo`` is the incarnation and
    sequence last heard from the receiver, ``sees`` the role it had then
    (UNKNOWN when it is lost).  ``claim`` asks for the right to be
    primary, ``grant`` gives it to an (incarnation, claim).  ``fence`` tells
    the receiver that its data is out of date; ``fenced`` is its durable
    acknowledgement (incarnation, fence).  ``decided`` are decisions of the
    sender, for people; ``decided_seen`` is the last of the receiver's that it
    has (see heart.shell.telling).  ``holds``: see `Setup.holds`; ``rival``: see
    `heart.core.alone`; ``lineage``: see `heart.core.lineage`.  ``leaving``: it is
    on its way out of its role, whatever its scripts still do.
    """

    node: str
    incarnation: int
    sequence: int = 0
    echo: tuple[int, int] = (0, 0)
    role: Role = Role.STOP
    color: Color = Color.RED
    sees: Role = Role.UNKNOWN
    uptodate: str = "unknown"
    paired: bool = False
    lastprim: bool = False
    degraded: bool = False
    term: int = 0
    former: str = "PRIM"
    eligible: bool = False
    forced: bool = False
    default_prim: bool = False
    serving: bool = False
    stream_lost: bool = False
    claim: int = 0
    grant: tuple[int, int] = (0, 0)
    swap: SwapNotice | None = None
    fence: int = 0
    fenced: tuple[int, int] = (0, 0)
    action: str = "start"
    resources: tuple[tuple[str, str], ...] = ()
    signature: str = ""
    agrees: Agreement = ()
    decided: tuple[Decided, ...] = ()
    decided_seen: int = 0
    holds: float = 0.0
    rival: str = "none"
    lineage: str = "none"
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Sibling:
    """A server of the module as safeadmin knows it, this one included: its state ("" while the module does not run
    there), since when (Unix time), and what it must have in common with the others."""

    node: str
    agrees: Agreement = ()
    state: str = ""
    since: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """An administrator's, a checker's or the machine's order.

    ``automatic`` commands carry an identity (-i) and count in maxloop;
    ``rule`` is set when a failover rule gave the order.  ``why`` is what a
    handler found, for people.
    """

    action: str
    who: str = "root"
    automatic: bool = False
    rule: str = ""
    option: str = ""
    token: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something was decided: a rule id, the inputs that made it true, the outcome."""

    rule: str
    outcome: str
    inputs: tuple[tuple[str, str], ...] = field(default=())

    def __str__(self) -> str:
        inputs = ", ".join(f"{name}={value}" for name, value in self.inputs)
        return f"{self.rule}: {self.outcome}" + (f" ({inputs})" if inputs else "")

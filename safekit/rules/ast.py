"""Syntax tree of the failover rules language (guide 13.18.5).

Every node is immutable; two equal texts give equal trees, whatever their
layout.  Positions are kept for messages only and never compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Verb(Enum):
    """Actions of the failover machine, weakest first (the strongest true rule wins)."""

    RESTART = "restart"
    SWAP = "swap"
    STOPSTART = "stopstart"
    WAIT = "wait"
    STOP = "stop"

    @property
    def strength(self) -> int:
        """Rank among the verbs: 0 for restart up to 4 for stop."""
        return _STRENGTH[self]


_STRENGTH = {verb: rank for rank, verb in enumerate(Verb)}

STATES = ("init", "down", "up", "unknown")


@dataclass(frozen=True, slots=True)
class Position:
    """Place in the rules text; lines and columns start at 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


@dataclass(frozen=True, slots=True)
class Resource:
    """``[local.|remote.]class.id``; class and id may be ``?`` (some) or ``*`` (all)."""

    remote: bool
    cls: str
    ident: str

    @property
    def name(self) -> str:
        """``class.id`` without its scope."""
        return f"{self.cls}.{self.ident}"

    @property
    def is_pattern(self) -> bool:
        """True when class or id is ``?`` or ``*``."""
        return self.cls in ("?", "*") or self.ident in ("?", "*")

    @property
    def existential(self) -> bool:
        """True when one matching resource is enough (``?``); ``*`` alone asks for all."""
        return self.cls == "?" or self.ident == "?"


@dataclass(frozen=True, slots=True)
class State:
    """One of init, down, up, unknown (kept in lower case)."""

    value: str


@dataclass(frozen=True, slots=True)
class Text:
    """A quoted string."""

    value: str


@dataclass(frozen=True, slots=True)
class Truth:
    """TRUE or FALSE."""

    value: bool


@dataclass(frozen=True, slots=True)
class Call:
    """hostname(), isdefaultprim() or cluster()."""

    function: str


@dataclass(frozen=True, slots=True)
class Not:
    """``! expression``."""

    operand: Expression


@dataclass(frozen=True, slots=True)
class And:
    """``left && right``."""

    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Or:
    """``left || right``."""

    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Compare:
    """``left == right``, or its negation ``left != right``."""

    equal: bool
    left: Expression
    right: Expression


Expression = Resource | State | Text | Truth | Call | Not | And | Or | Compare


@dataclass(frozen=True, slots=True)
class Act:
    """A verb to carry out."""

    verb: Verb


@dataclass(frozen=True, slots=True)
class Assign:
    """``class.id = state``: sets a local resource instead of acting on the module."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Rule:
    """``label: if (condition) then outcome;``."""

    label: str
    condition: Expression
    outcome: Act | Assign
    position: Position = field(default=Position(1, 1), compare=False)

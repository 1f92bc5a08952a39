"""Requests to splitbraincheck.IDENT, which asks the witness of a module (guide 13.17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from safekit.bus.asking import Ask

SPLITBRAINCHECK = "splitbraincheck"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the witness answered after the question."""

    witness: Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Isolated(Ask[Verdict]):
    """Every heartbeat is silent: is the witness there?"""

    process = SPLITBRAINCHECK
    op = "isolated"

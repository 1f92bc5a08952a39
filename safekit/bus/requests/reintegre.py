"""Requests to reintegre, which makes the directories of a secondary equal to those of its primary."""

from __future__ import annotations

from dataclasses import dataclass

from safekit.bus.asking import Ask, Done

REINTEGRE = "reintegre"


@dataclass(frozen=True, slots=True)
class Reconfigure(Ask[Done]):
    """Take a dynamic configuration up."""

    process = REINTEGRE
    op = "reconfigure"

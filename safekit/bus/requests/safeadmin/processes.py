"""Requests to safeadmin about processes of this server: its port mapper, and who starts and ends them.

The texts of all refusals are `cause; next step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safekit.bus.asking import Ask, Done
from safekit.bus.message import ADMIN


@dataclass(frozen=True, slots=True)
class Register(Ask[Done]):
    """A process tells where it is. life: what it calls this life of its endpoint."""

    process = ADMIN
    op = "map_register"
    name: str
    pid: int
    port: int
    life: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Port and pid of a process, 0 when there is none of that name; `incarnation` is which life of it that is."""

    port: int
    pid: int
    incarnation: str = ""


@dataclass(frozen=True, slots=True)
class Lookup(Ask[Place]):
    """Where a process is; safeadmin itself too."""

    process = ADMIN
    op = "map_lookup"
    name: str


@dataclass(frozen=True, slots=True)
class Processes:
    """Port and pid of every process, by name."""

    processes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ListProcesses(Ask[Processes]):
    """Everybody who has registered."""

    process = ADMIN
    op = "map_list"


@dataclass(frozen=True, slots=True)
class Ended(Ask[Done]):
    """heart has stopped the module: its supervisor must know that before heart leaves."""

    process = ADMIN
    op = "ended"
    module: str


@dataclass(frozen=True, slots=True)
class Respawn(Ask[Done]):
    """heart has stopped the module because its supervisor died: start it again under a new one."""

    process = ADMIN
    op = "respawn"
    module: str
    action: str = "start"
    who: str = "automatic"

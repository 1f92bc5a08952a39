"""Requests to safeadmin about a module: its state, its commands, its resources (guide 9.3, 9.4).

The texts of all refusals are `cause; next step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from safekit.bus.asking import Ask, Document
from safekit.bus.message import ADMIN

Switch = Literal["on", "off"]


@dataclass(frozen=True, slots=True)
class GetState(Ask[Document]):
    """The modules of this server and what runs of them: node, modules, cluster, cluster_problem."""

    process = ADMIN
    op = "state"


@dataclass(frozen=True, slots=True)
class Taken:
    """The command is taken; `note` says what there is to know of it."""

    accepted: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class Control(Ask[Taken]):
    """A command for a module (see safeadmin.actions), of a person (`who`) or a handler (`identity`, for maxloop).

    who: "boot" and "automatic" are the start at boot, and the start that nobody asked for. args, value, nosync,
    fullsync: options of the command, passed on to heart.
    """

    process = ADMIN
    op = "control"
    repeatable = False
    module: str
    action: str
    who: str
    identity: str = ""
    nosync: bool = False
    fullsync: bool = False
    value: str = ""
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """Whether the resource had another value before."""

    changed: bool = True


@dataclass(frozen=True, slots=True)
class SetResource(Ask[Changed]):
    """Set a resource, through heart or in the file of a stopped module."""

    process = ADMIN
    op = "set"
    module: str
    resource: str
    value: str
    who: str


@dataclass(frozen=True, slots=True)
class BootSetting:
    """Whether a module is started at boot."""

    boot: Switch


@dataclass(frozen=True, slots=True)
class Boot(Ask[BootSetting]):
    """Change the boot setting of a module; only ask for it without a value."""

    process = ADMIN
    op = "boot"
    module: str
    value: Switch | None = None

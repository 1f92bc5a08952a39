"""Requests to safeadmin, the daemon of a server: its modules, its cluster, its port mapper (guide 9.2 to 9.4, 10.1).

The texts of all refusals are `cause; next step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from safekit.bus.asking import Ask, Document, Done
from safekit.bus.message import ADMIN

Switch = Literal["on", "off"]


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
class GetState(Ask[Document]):
    """The modules of this server and what runs of them: node, modules, cluster, cluster_problem."""

    process = ADMIN
    op = "state"


@dataclass(frozen=True, slots=True)
class GetMembers(Ask[Document]):
    """The servers of the cluster, as this one hears them. Refused with no_cluster."""

    process = ADMIN
    op = "members"


@dataclass(frozen=True, slots=True)
class OtherServer:
    """value: up, down or unknown; servers: what each server tells of the module."""

    value: str
    servers: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class GetOtherServer(Ask[OtherServer]):
    """Whether the other servers of a module are there, and what they tell of it."""

    process = ADMIN
    op = "cluster"
    module: str


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


@dataclass(frozen=True, slots=True)
class Stopping:
    """The modules that are being stopped."""

    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shutdown(Ask[Stopping]):
    """Stop all running modules; answered when the stops have begun."""

    process = ADMIN
    op = "shutdown"
    who: str = "SYSTEM"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Whether this server is in a cluster now, and why it is not."""

    cluster: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Reload(Ask[Reloaded]):
    """Read the configuration of the cluster again."""

    process = ADMIN
    op = "reload"


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

"""Requests to safeadmin about the server and its cluster (guide 9.2, 10.1).

The texts of all refusals are `cause; next step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safekit.bus.asking import Ask, Document
from safekit.bus.message import ADMIN


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

"""The one request to nfsadmin that a command has: making the others costs `safekit state` more than asking this one."""

from __future__ import annotations

from dataclasses import dataclass

from safekit.bus.asking import Ask, Document

NFSADMIN = "nfsadmin"


@dataclass(frozen=True, slots=True)
class GetStatus(Ask[Document]):
    """State of the replication, and how far a reintegration is."""

    process = NFSADMIN
    op = "status"

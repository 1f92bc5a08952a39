"""Requests to nfsadmin, which decides for the replicated directories of a module what heart asks for."""

from __future__ import annotations

from dataclasses import dataclass

from safekit.bus.asking import Ask, Document

NFSADMIN = "nfsadmin"


@dataclass(frozen=True, slots=True)
class GetStatus(Ask[Document]):
    """State of the replication, and how far a reintegration is."""

    process = NFSADMIN
    op = "status"

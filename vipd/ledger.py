"""Which addresses this module has put on which interface: what a restarted vipd adopts, and what a crash of
everything left over even when the configuration has changed since.

An entry is written before its address is set, so that no address of ours is ever unknown. Entries of
another boot mean nothing: a power failure leaves no address.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safekit.disk.files import boot_identity, write_atomic
from safekit.net.packets import IP


@dataclass(frozen=True, slots=True)
class Entry:
    """An address of ours. `since` is CLOCK_MONOTONIC in seconds, the same clock for all processes."""

    ip: IP
    interface: str
    prefix: int
    since: float


def load(path: Path) -> dict[IP, Entry]:
    """Entries of this boot; none for a missing or damaged file (it was not made durable)."""
    try:
        data = json.loads(path.read_text())
        if data["boot"] != boot_identity():
            return {}
        entries = [
            Entry(ipaddress.ip_address(e["ip"]), str(e["interface"]), int(e["prefix"]), float(e["since"]))
            for e in data["held"]
        ]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return {entry.ip: entry for entry in entries}


def save(path: Path, entries: Iterable[Entry]) -> None:
    """Replace the ledger. Raises OSError."""
    held = [{"ip": str(e.ip), "interface": e.interface, "prefix": e.prefix, "since": e.since} for e in entries]
    # Not fsynced: the addresses do not survive a power failure either, and a slow disk must not delay a take-over.
    write_atomic(path, json.dumps({"boot": boot_identity(), "held": held}).encode(), durable=False)

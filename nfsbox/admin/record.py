"""The durable state of this server's data as nfsadmin keeps it: read when the directories are prepared, changed by
the pure steps of `safekit.rfs.generations`, written by nfsbox before what it announces takes effect."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from safekit.process.table import start_time
from safekit.rfs.generations import DataState, StateError, from_fields, opened


def new_number() -> int:
    """A random generation or server number, never 0."""
    return secrets.randbits(63) + 1


def boot_time_ns() -> int:
    """When this system (or the container, or lab node) was started, ns since 1970."""
    ticks = start_time(1) or 0
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time_ns() - int(since_boot * 1e9)


def boot_identity() -> int:
    """Names this start of the system (or of the container, or lab node), whatever its clock says."""
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    digest = hashlib.blake2b(f"{kernel} {start_time(1)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


def unwatched_since_boot(state: DataState, state_file: Path, boot: int, boot_ns: int) -> int:
    """boot_ns when the system was started after the state was last written, else 0: after a crash within one boot
    the dead mount kept everybody out of the directories, and no page of memory was lost."""
    if state.boot:
        return 0 if state.boot == boot else boot_ns
    try:  # written by a release that did not note it
        return boot_ns if state_file.stat().st_mtime_ns < boot_ns else 0
    except FileNotFoundError:
        return boot_ns


@dataclass(frozen=True, slots=True)
class Prepared:
    """The state after opening; `fault` says why an old one could not be used."""

    state: DataState
    fault: str = ""


def read(fields: object, journal: str, state_file: Path | None = None) -> Prepared:
    """What `prepare` of nfsbox found: its state map (None: none yet) and how the journal of changes ended.

    A server without a usable state never was synchronised, as far as anybody can prove. Without `state_file` the
    state is that of a life that goes on.
    """
    fault = ""
    try:
        state = DataState(new_number()) if fields is None else from_fields(fields)
    except StateError as error:
        fault = str(error)
        state = DataState(new_number())
    # Without a journal nothing is in flight, unless this server tracked changes for an absent peer.
    recorded = journal != "bad" and not (journal == "none" and state.base != 0)
    boot = boot_identity()
    boot_ns = unwatched_since_boot(state, state_file, boot, boot_time_ns()) if state_file is not None else 0
    return Prepared(opened(state, recorded=recorded, boot_ns=boot_ns, boot=boot), fault)

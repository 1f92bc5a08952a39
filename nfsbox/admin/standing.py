"""Where this server stands: its role, whether it is one of a pair, and the durable state of its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nfsbox.admin.asking import Asking
from nfsbox.admin.record import new_number, read
from safekit.bus.endpoint import BusError
from safekit.bus.requests import nfsbox
from safekit.rfs import generations
from safekit.rfs.generations import DataState

#: Times that a nfsbox which dies is started again within one operation or recovery.
TRIES: Final = 10


@dataclass
class Standing:
    """`role`: none, standby, primary, demoted (handed over, the next role is unknown yet), secondary."""

    role: str = "none"
    paired: bool = False
    """The secondary is equal and strict."""
    degraded: bool = False
    """A primary whose nfsbox died: its mount is remade, without replication."""
    peer: str = ""
    state: DataState | None = None
    durable: bool = False
    """The session acknowledges nothing before it is on disk."""
    unapplied: bool = False
    """The data may lack what it had acknowledged, and heart may not know."""

    refused: bool = False
    """The disk of this server has refused data, and may lack what memory shows."""

    unsure: bool = False
    """The data of this server or of its primary was set back or copied."""

    def known_state(self) -> DataState:
        """The state of the prepared directories. Raises BusError before `prepare`."""
        if self.state is None:
            raise BusError("not_prepared", "the replicated directories are not prepared")
        return self.state

    def begin(self, role: str) -> None:
        """Directories that were just prepared (standby) or released (none): in no pair, nothing degraded."""
        self.role, self.paired, self.degraded = role, False, False


async def opened(asking: Asking, standing: Standing, *, degraded: bool) -> DataState:
    """Wait for nfsbox, have it mount, and read what the last life left. Raises BusError."""
    answer = None
    for _ in range(TRIES):
        await asking.find()
        answer = await asking.unless_it_dies(nfsbox.Prepare(degraded))
        if answer is not None:
            break
        await asking.process("nfsbox", True)
    if answer is None:
        raise BusError("nfsbox", "nfsbox dies again and again: see log/nfsbox.log")
    prepared = read(answer.state, answer.journal, asking.context.paths.rfs / "state")
    if prepared.fault:
        asking.context.log.event("rfs_state_fault", reason=prepared.fault)
    standing.state = await _full_if_demanded(asking, prepared.state)
    return standing.state


async def _full_if_demanded(asking: Asking, state: DataState) -> DataState:
    """`config` of a stopped module leaves a note: the next reintegration copies everything (13.6.4.9)."""
    note = asking.context.paths.full_required
    if not note.exists():
        return state
    state = generations.full_demanded(state, new_number())
    # The demand is on disk before the note goes: a crash between them demands twice.
    await asking.nfsbox(nfsbox.SetState(generations.to_fields(state)))
    note.unlink(missing_ok=True)
    return state

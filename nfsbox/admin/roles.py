"""The operations by which heart gives this server's data its role.

Order that must hold: heart's own memory is durable before it asks; the state of the data is durable (nfsbox writes
it) before the role it announces takes effect; heart is told after both. One operation at a time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from nfsbox.admin.asking import Asking
from nfsbox.admin.bandwidth import Bandwidth
from nfsbox.admin.flow import Flow
from nfsbox.admin.record import new_number
from nfsbox.admin.recovery import Recovery
from nfsbox.admin.reintegration import Reintegration
from nfsbox.admin.standing import Standing, opened
from safekit.bus.endpoint import BusError
from safekit.bus.requests import nfsadmin, nfsbox
from safekit.rfs import generations
from safekit.rfs.generations import DataState

#: Tries of a secondary to reach a primary that is just opening its port.
CONNECT_S: Final = 15.0
#: What was changed so shortly before the directories are released counts as changed afterwards.
CLOSING_NS: Final = 100_000_000
#: Seconds for a nfsbox that was just started to release what one that was killed left.
LEFTOVER_S: Final = 15.0


class Roles:
    """prepare, primary, alone, secondary, demote, standby, release."""

    def __init__(
        self,
        asking: Asking,
        standing: Standing,
        flow: Flow,
        reintegration: Reintegration,
        recovery: Recovery,
        bandwidth: Bandwidth,
    ) -> None:
        self._asking, self._standing, self._flow = asking, standing, flow
        self._reintegration, self._recovery, self._bandwidth = reintegration, recovery, bandwidth

    async def prepare(self, _: nfsadmin.Prepare) -> nfsadmin.Prepared:
        """Mount, and read what the last life left."""
        state = await opened(self._asking, self._standing, degraded=False)
        self._standing.begin("standby")
        self._standing.unapplied = False  # heart is told, with this answer
        return nfsadmin.Prepared(state.consistent, state.unapplied, state.current, state.base)

    async def prepare_again(self) -> None:
        """heart had it prepared by a nfsadmin and a nfsbox that died: it may not know what may be missing."""
        state = await opened(self._asking, self._standing, degraded=False)
        self._standing.unapplied = state.unapplied
        self._standing.begin("standby")

    async def primary(self, asked: nfsadmin.Primary) -> nfsadmin.Generation:
        """Writable: after a hand-over (swap) in the pair, else for the peer to be reintegrated."""
        asking, standing = self._asking, self._standing
        state = standing.known_state()
        if asked.swap and not standing.degraded:
            # nfsbox writes it after it has applied everything
            state = generations.applied(state)
            peer = self._flow.peer(asked)
            await asking.nfsbox(nfsbox.Primary(peer, paired=True, state=generations.to_fields(state)))
            standing.state, standing.role, standing.paired = state, "primary", True
            return nfsadmin.Generation(state.current)
        if asked.force:
            state = generations.forced(state, new_number())
            asking.set_resource("rfs.inconsistent", "down")
        elif standing.unapplied:
            raise BusError(
                "unapplied",
                "nfsbox died before it had applied all that it had acknowledged: the other "
                "server has it all; start that one with safekit prim",
            )
        if not state.consistent:
            raise BusError("inconsistent", "the data is incomplete: its reintegration was interrupted")
        await self._reintegration.abandon()
        state = generations.left_peer(state, new_number(), time.time(), in_pair=False)
        await asking.nfsbox(nfsbox.Primary(state=generations.to_fields(state)))
        standing.state, standing.role, standing.paired = state, "primary", False
        self._bandwidth.clear()
        return nfsadmin.Generation(state.current)

    async def alone(self, _: nfsadmin.Alone) -> nfsadmin.Released:
        """The primary goes on without its peer, which heart has recorded to be out of date."""
        asking, standing = self._asking, self._standing
        state = generations.left_peer(standing.known_state(), new_number(), time.time())
        # The secondary may have told heart that our nfsbox is gone before we saw it.
        fields = generations.to_fields(state)
        answer: nfsbox.Held | None = None
        if not self._recovery.remade:
            answer = await asking.unless_it_dies(nfsbox.Alone(fields))
        if answer is None:
            await self._recovery.ended()
            await asking.nfsbox(nfsbox.Primary(state=fields))
            self._recovery.remade = False
            asking.tell_heart("nfsbox_died", "nfsbox ended unexpectedly; the mount is remade")
        standing.state, standing.role, standing.paired = state, "primary", False
        return nfsadmin.Released(answer.held if answer is not None else 0, state.current)

    async def secondary(self, asked: nfsadmin.Secondary) -> nfsadmin.Connected:
        """Connect to the primary, and have the data made equal unless they are (swap)."""
        asking, standing = self._asking, self._standing
        state = standing.known_state()
        peer, swap = self._flow.peer(asked), asked.swap
        if swap:
            state = generations.acknowledging(state)
        await self._reintegration.abandon()
        standing.unsure = asked.unsure
        if standing.unsure:
            state = generations.unsure(state)
        if asked.fullsync:
            state = await self._fullsync(state)
        asking.attempt = asked.attempt
        answer = await self._connect(asked, peer, state)
        standing.role, standing.paired, standing.peer, standing.state = "secondary", swap, peer, state
        standing.durable, standing.refused = answer.durable, answer.refused
        if swap and answer.refused:
            await self._leave_pair(state)
            return nfsadmin.Connected(answer.session)
        if swap and standing.durable:
            standing.state = generations.applied(state)
            await asking.nfsbox(nfsbox.SetState(generations.to_fields(standing.state)))
        if not swap:
            asking.spawn(self._reintegration.start())
        return nfsadmin.Connected(answer.session)

    async def _leave_pair(self, state: DataState) -> None:
        """The former primary's disk has refused data: it is no complete secondary before every file was compared. It
        had to connect, because the changes of the new primary wait for it."""
        asking, standing = self._asking, self._standing
        standing.role, standing.paired, standing.state = "standby", False, generations.applied(state)
        await asking.nfsbox(nfsbox.Standby(generations.to_fields(standing.state)))
        asking.tell_heart("secondary_lost", "the disk of this server has refused data: every file is compared")

    async def _connect(self, asked: nfsadmin.Secondary, peer: str, state: DataState) -> nfsbox.Connected:
        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                return await self._asking.nfsbox(
                    nfsbox.Secondary(
                        peer,
                        self._flow.address(asked, peer),
                        self._flow.port(asked),
                        source=self._flow.source(),
                        paired=asked.swap,
                        state=generations.to_fields(state),
                        attempt=asked.attempt,
                    )
                )
            except BusError as error:
                if error.code not in ("connect", "refused") or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)

    async def _fullsync(self, state: DataState) -> DataState:
        """`second fullsync`. It is on disk before anything else: whatever dies before the reintegration begins, and
        however often it is tried, the wish holds until it has begun; from then on an interruption is resumed."""
        self._standing.state = state = generations.full_demanded(state, new_number())
        # A secondary begins its stream with a state: the new connection brings this one.
        if self._standing.role != "secondary":
            await self._asking.nfsbox(nfsbox.SetState(generations.to_fields(state)))
        return state

    async def demote(self, _: nfsadmin.Demote) -> None:
        """The primary hands over: nothing is written any more, everything is at the peer."""
        await self._asking.nfsbox(nfsbox.Demote())
        # both disks have everything: a death of nfsbox from here on degrades no primary
        self._standing.role, self._standing.paired = "demoted", False

    async def standby(self, _: nfsadmin.Standby) -> None:
        """No role, the directories stay prepared."""
        asking, standing = self._asking, self._standing
        await self._reintegration.abandon()
        if standing.role != "none":
            state = standing.known_state()
            if standing.role == "secondary":
                state = generations.applied(state)  # nfsbox writes it after it has applied everything
            await asking.nfsbox(nfsbox.Standby(generations.to_fields(state)))
            standing.state, standing.role = state, "standby"
        standing.paired, standing.unapplied = False, False
        self._bandwidth.clear()

    async def release(self, _: nfsadmin.Release) -> None:
        """Unmount: the module stops. In no role too: a life before this one may have left its mounts."""
        asking, standing = self._asking, self._standing
        await self._reintegration.abandon()
        self._recovery.cancel()
        try:
            if standing.role == "none":
                await asking.nfsbox(nfsbox.Release(), LEFTOVER_S)
            else:
                # Before anybody can come in beside us; the time stamps of files are up to a tick late.
                closed_ns = time.time_ns() - CLOSING_NS
                await asking.nfsbox(nfsbox.Release())
                if standing.state is not None:
                    state = generations.applied(standing.state) if standing.role == "secondary" else standing.state
                    standing.state = generations.closed(state, closed_ns)
                    await asking.nfsbox(nfsbox.SetState(generations.to_fields(standing.state)))
        finally:
            asking.unwatch()  # the end of nfsbox is wanted now
            standing.begin("none")
            self._bandwidth.clear()

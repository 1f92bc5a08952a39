"""The operations by which heart gives this server's data its role.

Order that must hold: heart's own memory is durable before it asks; the state of the data is durable (nfsbox writes
it) before the role it announces takes effect; heart is told after both. One operation at a time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from nfsbox.admin.asking import Asking, Fields
from nfsbox.admin.bandwidth import Bandwidth
from nfsbox.admin.flow import Flow
from nfsbox.admin.record import new_number
from nfsbox.admin.recovery import Recovery
from nfsbox.admin.reintegration import Reintegration
from nfsbox.admin.standing import Standing, opened
from safekit.bus.endpoint import BusError, Request
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

    async def prepare(self, request: Request) -> Fields:
        """Mount, and read what the last life left."""
        state = await opened(self._asking, self._standing, degraded=False)
        self._standing.begin("standby")
        self._standing.unapplied = False  # heart is told, with this answer
        return {
            "consistent": state.consistent,
            "unapplied": state.unapplied,
            "generation": state.current,
            "base": state.base,
        }

    async def prepare_again(self) -> None:
        """heart had it prepared by a nfsadmin and a nfsbox that died: it may not know what may be missing."""
        state = await opened(self._asking, self._standing, degraded=False)
        self._standing.unapplied = state.unapplied
        self._standing.begin("standby")

    async def primary(self, request: Request) -> Fields:
        """Writable: after a hand-over (swap) in the pair, else for the peer to be reintegrated."""
        asking, standing = self._asking, self._standing
        state = standing.known_state()
        if request.fields.get("swap") and not standing.degraded:
            # nfsbox writes it after it has applied everything
            state = generations.applied(state)
            peer = self._flow.peer(request)
            await asking.nfsbox("primary", peer=peer, paired=True, state=generations.to_fields(state))
            standing.state, standing.role, standing.paired = state, "primary", True
            return {"generation": state.current}
        if request.fields.get("force"):
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
        await asking.nfsbox("primary", paired=False, state=generations.to_fields(state))
        standing.state, standing.role, standing.paired = state, "primary", False
        self._bandwidth.clear()
        return {"generation": state.current}

    async def alone(self, request: Request) -> Fields:
        """The primary goes on without its peer, which heart has recorded to be out of date."""
        asking, standing = self._asking, self._standing
        state = generations.left_peer(standing.known_state(), new_number(), time.time())
        # The secondary may have told heart that our nfsbox is gone before we saw it.
        fields = generations.to_fields(state)
        answer = None if self._recovery.remade else await asking.unless_it_dies("alone", state=fields)
        if answer is None:
            await self._recovery.ended()
            answer = await asking.nfsbox("primary", paired=False, state=fields)
            self._recovery.remade = False
            asking.tell_heart("nfsbox_died", "nfsbox ended unexpectedly; the mount is remade")
        standing.state, standing.role, standing.paired = state, "primary", False
        return {"held": answer.get("held", 0), "generation": state.current}

    async def secondary(self, request: Request) -> Fields:
        """Connect to the primary, and have the data made equal unless they are (swap)."""
        asking, standing = self._asking, self._standing
        state = standing.known_state()
        peer = self._flow.peer(request)
        swap = bool(request.fields.get("swap"))
        if swap:
            state = generations.acknowledging(state)
        await self._reintegration.abandon()
        standing.unsure = bool(request.fields.get("unsure"))
        if standing.unsure:
            state = generations.unsure(state)
        if request.fields.get("fullsync"):
            state = await self._fullsync(state)
        asking.attempt = str(request.fields.get("attempt", ""))
        answer = await self._connect(request, peer, swap, state)
        standing.role, standing.paired, standing.peer, standing.state = "secondary", swap, peer, state
        standing.durable = bool(answer.get("durable"))
        if swap and standing.durable:
            standing.state = generations.applied(state)
            await asking.nfsbox("state_set", state=generations.to_fields(standing.state))
        if not swap:
            asking.spawn(self._reintegration.start())
        return {"session": answer.get("session")}

    async def _connect(self, request: Request, peer: str, swap: bool, state: DataState) -> Fields:
        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                return await self._asking.nfsbox(
                    "secondary",
                    peer=peer,
                    address=self._flow.address(request, peer),
                    port=self._flow.port(request),
                    source=self._flow.source(),
                    paired=swap,
                    state=generations.to_fields(state),
                    attempt=self._asking.attempt,
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
            await self._asking.nfsbox("state_set", state=generations.to_fields(state))
        return state

    async def demote(self, request: Request) -> Fields:
        """The primary hands over: nothing is written any more, everything is at the peer."""
        await self._asking.nfsbox("demote")
        # both disks have everything: a death of nfsbox from here on degrades no primary
        self._standing.role, self._standing.paired = "demoted", False
        return {}

    async def standby(self, request: Request) -> Fields:
        """No role, the directories stay prepared."""
        asking, standing = self._asking, self._standing
        await self._reintegration.abandon()
        if standing.role != "none":
            state = standing.known_state()
            if standing.role == "secondary":
                state = generations.applied(state)  # nfsbox writes it after it has applied everything
            await asking.nfsbox("standby", state=generations.to_fields(state))
            standing.state, standing.role = state, "standby"
        standing.paired, standing.unapplied = False, False
        self._bandwidth.clear()
        return {}

    async def release(self, request: Request) -> Fields:
        """Unmount: the module stops. In no role too: a life before this one may have left its mounts."""
        asking, standing = self._asking, self._standing
        await self._reintegration.abandon()
        self._recovery.cancel()
        try:
            if standing.role == "none":
                await asking.nfsbox("release", LEFTOVER_S)
            else:
                # Before anybody can come in beside us; the time stamps of files are up to a tick late.
                closed_ns = time.time_ns() - CLOSING_NS
                await asking.nfsbox("release")
                if standing.state is not None:
                    state = generations.applied(standing.state) if standing.role == "secondary" else standing.state
                    standing.state = generations.closed(state, closed_ns)
                    await asking.nfsbox("state_set", state=generations.to_fields(standing.state))
        finally:
            asking.unwatch()  # the end of nfsbox is wanted now
            standing.begin("none")
            self._bandwidth.clear()
        return {}

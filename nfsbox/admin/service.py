"""nfsadmin: carries out what heart decides for the replicated file system, and tells heart what happens to it.

What the operations are and in which order they write is in `roles`; here they are served one at a time, and what
nfsbox tells by itself, its death included, is dealt with.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

from nfsbox.admin.adoption import adopt
from nfsbox.admin.asking import Asking, Died
from nfsbox.admin.bandwidth import Bandwidth
from nfsbox.admin.flow import Flow
from nfsbox.admin.recovery import Recovery
from nfsbox.admin.reintegration import Reintegration
from nfsbox.admin.roles import Roles
from nfsbox.admin.standing import TRIES, Standing
from safekit.bus.asking import Ask, Document, Serve, Service, answer_fields
from safekit.bus.endpoint import BusError
from safekit.bus.requests import nfsadmin, nfsadmin_status, nfsbox
from safekit.process.frame import Context
from safekit.rfs import generations

#: Between two records that the pair is in step: far below the grace of a timestamp resynchronisation.
IN_STEP_S: Final = 300.0


class Admin:
    """One per process."""

    def __init__(self, context: Context, *, adopting: bool = False) -> None:
        """`adopting`: nothing is served before `adopt` has ended."""
        self.context = context
        self.asking = Asking(context, self._nfsbox_died)
        self.standing = Standing()
        self.flow = Flow(context)
        self.bandwidth = Bandwidth(self.asking)
        self.reintegration = Reintegration(self.asking, self.standing)
        self.recovery = Recovery(self.asking, self.standing)
        roles = Roles(self.asking, self.standing, self.flow, self.reintegration, self.recovery, self.bandwidth)
        self._prepare_again = roles.prepare_again
        self._roles: dict[type[Ask[Any]], Serve] = {
            nfsadmin.Prepare: roles.prepare,
            nfsadmin.Primary: roles.primary,
            nfsadmin.Secondary: roles.secondary,
            nfsadmin.Alone: roles.alone,
            nfsadmin.Demote: roles.demote,
            nfsadmin.Standby: roles.standby,
            nfsadmin.Release: roles.release,
        }
        self._lock = asyncio.Lock()
        self._leaving = False  # the operation under way may wait for the peer
        self._adopted = asyncio.Event()
        if not adopting:
            self._adopted.set()

    async def adopt(self) -> None:
        """Find what a nfsadmin that died has left; only then is anything served."""
        try:
            await adopt(self.asking, self.standing, self.reintegration)
        finally:
            self._adopted.set()

    # --- the bus ------------------------------------------------------------------------------------------

    def requests(self) -> Service:
        """What nfsadmin serves: heart, nfsbox and reintegre."""
        return Service(
            nfsadmin_status.NFSADMIN,
            [
                *((kind, self._one_at_a_time) for kind in self._roles),
                (nfsadmin_status.GetStatus, self._status),
                (nfsadmin.Reconfigure, self._reconfigure),
                (nfsadmin.Pair, self._pair),
                (nfsadmin.ReplicationLost, self._replication_lost),
                (nfsadmin.SessionLost, self._session_lost),
                (nfsadmin.SessionOpen, self._session_open),
                (nfsadmin.Bandwidth, self._measured),
                *self.reintegration.handlers(),
            ],
            ready=self._adopted.wait,
        )

    async def _one_at_a_time(self, asked: Ask[Any]) -> Any:
        if isinstance(asked, nfsadmin.Alone) and self._leaving:
            await self._cut()
        async with self._lock:
            if isinstance(asked, nfsadmin.Release | nfsadmin.Prepare):
                return await self._operate(asked)
            return await self._again(asked)

    async def _again(self, asked: Ask[Any]) -> Any:
        """An operation on what is prepared; nfsbox may die in it, and before it."""
        for _ in range(TRIES):
            await self.recovery.ended()
            if self.standing.state is None and isinstance(asked, nfsadmin.Primary | nfsadmin.Secondary):
                await self._prepare_again()
            try:
                return await self._operate(asked)
            except Died as error:
                self.context.log.debug(error.text)  # the recovery has begun
        raise BusError("nfsbox", "nfsbox dies again and again: see log/nfsbox.log")

    async def _operate(self, asked: Ask[Any]) -> Any:
        self._leaving = isinstance(asked, nfsadmin.Demote | nfsadmin.Standby | nfsadmin.Release)
        try:
            return await self._roles[type(asked)](asked)
        finally:
            self._leaving = False

    async def _cut(self) -> None:
        """End what waits for the lost peer, else `alone` would wait behind it, up to a minute."""
        try:
            await self.asking.nfsbox(nfsbox.Cut(), 10.0)
        except BusError as error:
            self.context.log.debug(f"nfsbox was not told that the peer is given up: {error.text}")

    async def _reconfigure(self, _: nfsadmin.Reconfigure) -> None:
        self.context.reload()
        rfs = self.context.config.rfs
        if rfs is not None and self.standing.role != "none":
            await self.asking.nfsbox(nfsbox.Configure(rfs.async_mode == "none", self.flow.source()))

    async def _status(self, _: nfsadmin_status.GetStatus) -> Document:
        standing, box = self.standing, None
        if standing.role != "none":
            with contextlib.suppress(BusError):
                box = await self.asking.nfsbox(nfsbox.GetStatus(), 2.0)
        state = standing.state
        return {
            "role": standing.role,
            "paired": standing.paired,
            "degraded": standing.degraded,
            "nfsbox": answer_fields(box),
            "consistent": state.consistent if state else None,
            "generation": state.current if state else 0,
            "base": state.base if state else 0,
            "sync_point": state.sync_point if state else 0.0,
            "bandwidth": dict(self.bandwidth.shown),
            "reintegration": self.reintegration.shown(box),
        }

    # --- what nfsbox tells --------------------------------------------------------------------------------

    async def _pair(self, asked: nfsadmin.Pair) -> nfsadmin.Recorded:
        """END on the primary: heart's memory first, then the state that nfsbox records with it."""
        standing = self.standing
        state = standing.known_state()
        await self.asking.pair(asked.peer)
        if standing.state is not state:
            # heart decided that too, and later: the answer to this was on its way while this server went on alone.
            raise BusError("pair", "this server has gone on without its secondary meanwhile")
        # A peer of unknown number is known by the one it had: its own record says whether that is right.
        target = asked.server or state.peer or 1
        standing.state = generations.delivered(state, target, time.time())
        standing.paired, standing.peer = True, asked.peer
        self.bandwidth.reintegration_ended()
        return nfsadmin.Recorded(generations.to_fields(standing.state))

    async def _replication_lost(self, asked: nfsadmin.ReplicationLost) -> None:
        if self.standing.role == "primary":
            self.asking.tell_heart("replication_lost", asked.reason)

    async def _session_lost(self, asked: nfsadmin.SessionLost) -> None:
        if self.standing.role != "secondary":
            return
        if self.standing.paired:
            self.standing.paired = False
            self.asking.tell_heart("secondary_lost", asked.reason)
        else:
            self.reintegration.lost(asked.reason)

    async def _session_open(self, asked: nfsadmin.SessionOpen) -> None:
        self.standing.peer = asked.peer

    async def _measured(self, asked: nfsadmin.Bandwidth) -> None:
        if self.standing.role == "primary":
            self.bandwidth.show(asked)

    def _nfsbox_died(self, pid: int | None) -> None:
        standing = self.standing
        role, paired = standing.role, standing.paired
        if role == "none" or self.context.stopping.is_set():
            return
        reaction = "started again without replication" if role == "primary" else "started again"
        self.context.log.event(
            "process_died", name="nfsbox", pid=pid or "unknown", status="it ended unexpectedly", reaction=reaction
        )
        if self.recovery.active:
            return
        standing.paired = False
        if role == "primary":
            # heart makes the server ALONE, and restarts the application when it hears `nfsbox_died`: not before the
            # mount can be written again.
            standing.degraded = True
            self.asking.set_resource("rfs.degraded", "up")
            self.bandwidth.clear()
        elif role == "secondary":
            self.asking.spawn(self.reintegration.abandon())
            self.asking.tell_heart("nfsbox_died", "nfsbox ended unexpectedly")
        self.recovery.begin(role, paired)

    # --- life ---------------------------------------------------------------------------------------------

    async def keep_in_step(self) -> None:
        """Record from time to time that the pair is equal, so that a crash costs little comparing."""
        standing = self.standing
        while not self.context.stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.context.stopping.wait(), IN_STEP_S)
                return
            if standing.paired and standing.state is not None and not self._lock.locked():
                async with self._lock:
                    state = generations.in_step(standing.state, time.time())
                    with contextlib.suppress(BusError):
                        await self.asking.nfsbox(nfsbox.SetState(generations.to_fields(state)))
                        standing.state = state

"""nfsadmin: carries out what heart decides for the replicated file system, and tells heart what happens to it.

What the operations are and in which order they write is in `roles`; here they are served one at a time, and what
nfsbox tells by itself, its death included, is dealt with.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from nfsbox.admin.adoption import adopt
from nfsbox.admin.asking import Asking, Died, Fields
from nfsbox.admin.bandwidth import Bandwidth
from nfsbox.admin.flow import Flow
from nfsbox.admin.recovery import Recovery
from nfsbox.admin.reintegration import Reintegration
from nfsbox.admin.roles import Roles
from nfsbox.admin.standing import TRIES, Standing
from safekit.bus.endpoint import BusError, Request
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
        self._operations: dict[str, Callable[[Request], Awaitable[Fields]]] = {
            "prepare": roles.prepare,
            "primary": roles.primary,
            "secondary": roles.secondary,
            "alone": roles.alone,
            "demote": roles.demote,
            "standby": roles.standby,
            "release": roles.release,
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

    async def handle(self, request: Request) -> Fields | None:
        """Serve heart, nfsbox and reintegre."""
        await self._adopted.wait()
        op = request.op
        if op in self._operations:
            if op == "alone" and self._leaving:
                await self._cut()
            async with self._lock:
                return await (self._operate(request) if op in ("release", "prepare") else self._again(request))
        match op:
            case "status":
                return await self._status()
            case "reconfigure":
                return await self._reconfigure()
            case "pair":
                return await self._pair(request)
            case "replication_lost":
                self._replication_lost(str(request.fields.get("reason", "")))
            case "session_lost":
                self._session_lost(str(request.fields.get("reason", "")))
            case "session_open":
                self.standing.peer = str(request.fields.get("peer", self.standing.peer))
            case "rfs_bandwidth":
                if self.standing.role == "primary":
                    self.bandwidth.show(request.fields)
            case "rei_verdict" | "rei_begin" | "rei_end" | "rei_failed" | "rei_progress":
                return await self.reintegration.handle(request)
            case _:
                raise BusError("unknown_op", f"nfsadmin does not serve {op!r}")
        return None

    async def _again(self, request: Request) -> Fields:
        """An operation on what is prepared; nfsbox may die in it, and before it."""
        for _ in range(TRIES):
            await self.recovery.ended()
            if self.standing.state is None and request.op in ("primary", "secondary"):
                await self._prepare_again()
            try:
                return await self._operate(request)
            except Died as error:
                self.context.log.debug(error.text)  # the recovery has begun
        raise BusError("nfsbox", "nfsbox dies again and again: see log/nfsbox.log")

    async def _operate(self, request: Request) -> Fields:
        self._leaving = request.op in ("demote", "standby", "release")
        try:
            return await self._operations[request.op](request)
        finally:
            self._leaving = False

    async def _cut(self) -> None:
        """End what waits for the lost peer, else `alone` would wait behind it, up to a minute."""
        try:
            await self.asking.nfsbox("cut", 10.0)
        except BusError as error:
            self.context.log.debug(f"nfsbox was not told that the peer is given up: {error.text}")

    async def _reconfigure(self) -> Fields:
        self.context.reload()
        rfs = self.context.config.rfs
        if rfs is not None and self.standing.role != "none":
            await self.asking.nfsbox(
                "configure",
                rfs={
                    "nbrei": rfs.nbrei,
                    "reitimeout": rfs.reitimeout,
                    "reidetail": rfs.reidetail,
                    "async": rfs.async_mode,
                },
                listen=self.flow.source(),
            )
        return {}

    async def _status(self) -> Fields:
        standing, box = self.standing, Fields()
        if standing.role != "none":
            with contextlib.suppress(BusError):
                box = await self.asking.nfsbox("status", 2.0)
                box = {k: v for k, v in box.items() if k not in ("ok", "re")}
        state = standing.state
        return {
            "role": standing.role,
            "paired": standing.paired,
            "degraded": standing.degraded,
            "nfsbox": box,
            "consistent": state.consistent if state else None,
            "generation": state.current if state else 0,
            "base": state.base if state else 0,
            "sync_point": state.sync_point if state else 0.0,
            "bandwidth": dict(self.bandwidth.shown),
            "reintegration": self.reintegration.shown(box),
        }

    # --- what nfsbox tells --------------------------------------------------------------------------------

    async def _pair(self, request: Request) -> Fields:
        """END on the primary: heart's memory first, then the state that nfsbox records with it."""
        standing = self.standing
        state = standing.known_state()
        peer = str(request.fields.get("peer", standing.peer))
        await self.asking.pair(peer)
        if standing.state is not state:
            # heart decided that too, and later: the answer to this was on its way while this server went on alone.
            raise BusError("pair", "this server has gone on without its secondary meanwhile")
        # A peer of unknown number is known by the one it had: its own record says whether that is right.
        target = int(request.fields.get("server") or 0) or state.peer or 1
        standing.state = generations.delivered(state, target, time.time())
        standing.paired, standing.peer = True, peer
        self.bandwidth.reintegration_ended()
        return {"state": generations.to_fields(standing.state)}

    def _replication_lost(self, reason: str) -> None:
        if self.standing.role == "primary":
            self.asking.tell_heart("replication_lost", reason)

    def _session_lost(self, reason: str) -> None:
        if self.standing.role != "secondary":
            return
        if self.standing.paired:
            self.standing.paired = False
            self.asking.tell_heart("secondary_lost", reason)
        else:
            self.reintegration.lost(reason)

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
                        await self.asking.nfsbox("state_set", state=generations.to_fields(state))
                        standing.state = state

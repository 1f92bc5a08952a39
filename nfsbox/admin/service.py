"""nfsadmin: carries out what heart decides for the replicated file system, and tells heart what happens to it.

Order that must hold: heart's own memory is durable before it asks; the state of the data is durable (nfsbox writes
it) before the role it announces takes effect; heart is told after both. One operation at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from nfsbox.admin.record import new_number, read
from nfsbox.admin.recovery import TRIES, Recovery
from nfsbox.admin.reintegration import Reintegration
from nfsbox.admin.watch import Watch
from safekit.bus.endpoint import BusError, BusTimeout, Request, UnknownTarget
from safekit.disk import resources
from safekit.process.frame import Context
from safekit.rfs import generations
from safekit.rfs.generations import DataState

#: Seconds within which a started nfsbox must answer.
START_S: Final = 20.0
#: Seconds after which a nfsbox that does not answer is asked for once more.
AGAIN_S: Final = 2.0
#: Seconds for operations that mount, flush disks or wait for the peer.
LONG_S: Final = 120.0
#: Between two records that the pair is in step: far below the grace of a timestamp resynchronisation.
IN_STEP_S: Final = 300.0
#: Tries of a secondary to reach a primary that is just opening its port.
CONNECT_S: Final = 15.0

#: What was changed so shortly before the directories are released counts as changed afterwards.
CLOSING_NS: Final = 100_000_000

Fields = dict[str, Any]
#: What the state of the module says of our role, and whether the other server is equal.
_ROLES: Final = {"PRIM": ("primary", True), "ALONE": ("primary", False), "SECOND": ("secondary", True)}


class Died(BusError):
    """nfsbox died in the middle of an operation."""


class Admin:
    """One per process. `role`: none, standby, primary, demoted (handed over, the next role is unknown yet), secondary;
    `paired`: the secondary is equal and strict."""

    def __init__(self, context: Context, *, adopting: bool = False) -> None:
        """`adopting`: nothing is served before `adopt` has ended."""
        self.context = context
        self.module = context.module
        self.role = "none"
        self.paired = False
        self.degraded = False
        self.peer = ""
        self.state: DataState | None = None
        self.attempt = ""  # heart's name for the synchronisation that it asked for last
        self.reintegration = Reintegration(self)
        self._watch: Watch | None = None
        self._lock = asyncio.Lock()
        self._leaving = False  # the operation under way may wait for the peer
        self._tasks: set[asyncio.Task[None]] = set()
        self.recovery = Recovery(self)
        self._died = asyncio.Event()
        self.durable = False  # the session acknowledges nothing before it is on disk
        self.unapplied = False  # data that may lack what it had acknowledged, and heart may not know
        self._bandwidth: dict[str, int] = {}
        self._adopted = asyncio.Event()
        if not adopting:
            self._adopted.set()
        self._operations: dict[str, Callable[[Request], Awaitable[Fields | None]]] = {
            "prepare": self._prepare,
            "primary": self._primary,
            "secondary": self._secondary,
            "alone": self._alone,
            "demote": self._demote,
            "standby": self._standby,
            "release": self._release,
        }

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
                self._lost(str(request.fields.get("reason", "")), "replication_lost")
            case "session_lost":
                self._session_lost(str(request.fields.get("reason", "")))
            case "session_open":
                self.peer = str(request.fields.get("peer", self.peer))
            case "rfs_bandwidth":
                self._show_bandwidth(request.fields)
            case "rei_begin" | "rei_end" | "rei_failed" | "rei_progress":
                return await self.reintegration.handle(request)
            case _:
                raise BusError("unknown_op", f"nfsadmin does not serve {op!r}")
        return None

    async def _again(self, request: Request) -> Fields | None:
        """An operation on what is prepared; nfsbox may die in it, and before it."""
        for _ in range(TRIES):
            await self.recovery.ended()
            if self.state is None and request.op in ("primary", "secondary"):
                await self._prepare_again()
            try:
                return await self._operate(request)
            except Died as error:
                self.context.log.debug(error.text)  # the recovery has begun
        raise BusError("nfsbox", "nfsbox dies again and again: see log/nfsbox.log")

    async def _operate(self, request: Request) -> Fields | None:
        self._leaving = request.op in ("demote", "standby", "release")
        try:
            return await self._operations[request.op](request)
        finally:
            self._leaving = False

    async def _cut(self) -> None:
        """End what waits for the lost peer, else `alone` would wait behind it, up to a minute."""
        try:
            await self.nfsbox("cut", 10.0)
        except BusError as error:
            self.context.log.debug(f"nfsbox was not told that the peer is given up: {error.text}")

    async def nfsbox(self, op: str, timeout: float = LONG_S, **fields: Any) -> Fields:
        """An operation of nfsbox. Raises BusError, Died when it dies before it answers."""
        if self._watch is None:
            return await self.context.bus.request(f"{self.module}/nfsbox", op, timeout, **fields)
        answer = await self.unless_it_dies(op, timeout, **fields)
        if answer is None:
            raise Died("nfsbox", f"nfsbox died before it answered {op}")
        return answer

    async def unless_it_dies(self, op: str, timeout: float = LONG_S, **fields: Any) -> Fields | None:
        """An operation of nfsbox; None when nfsbox dies before it answers. Raises BusError."""
        if self._watch is None:
            return None
        asked = asyncio.ensure_future(self.context.bus.request(f"{self.module}/nfsbox", op, timeout, **fields))
        died = asyncio.ensure_future(self._died.wait())
        try:
            await asyncio.wait((asked, died), return_when=asyncio.FIRST_COMPLETED)
            return await asked if asked.done() else None
        finally:
            asked.cancel()
            died.cancel()

    def tell_heart(self, kind: str, reason: str = "") -> None:
        """An event for heart, repeated until heart has it: heart may be restarting."""
        self.spawn(self._tell_heart("event", kind=kind, reason=reason, attempt=self.attempt))

    def set_resource(self, name: str, value: str) -> None:
        """A resource in heart's file."""
        self.spawn(self._tell_heart("set", resource=name, value=value, who="nfsadmin"))

    async def process(self, name: str, on: bool) -> None:
        """Have heart's supervisor start or stop one of our processes. Raises BusError."""
        await self.context.bus.request(f"{self.module}/heart", "process", 15.0, name=name, on=on)

    async def _tell_heart(self, op: str, **fields: Any) -> None:
        for _ in range(30):
            try:
                await self.context.bus.request(f"{self.module}/heart", op, 2.0, **fields)
                return
            except (BusTimeout, UnknownTarget):
                await asyncio.sleep(0.5)
            except BusError as error:
                self.context.log.debug(f"heart refused {op} {fields}: {error.text}")
                return
        self.context.log.debug(f"heart does not answer: {op} {fields} was not told")

    def spawn(self, coroutine: Any) -> asyncio.Task[None]:
        """Run beside the operations; a defect in it is logged, not lost."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            if not done.cancelled() and (error := done.exception()) is not None:
                self.context.log.event("internal", text=f"nfsadmin: {type(error).__name__}: {error}")

        task.add_done_callback(ended)
        return task

    # --- operations of heart ------------------------------------------------------------------------------

    async def _prepare(self, request: Request) -> Fields:
        state = await self.open(degraded=False)
        self.role, self.paired, self.degraded, self.unapplied = "standby", False, False, False
        return {
            "consistent": state.consistent,
            "unapplied": state.unapplied,
            "generation": state.current,
            "base": state.base,
        }

    async def _prepare_again(self) -> None:
        """heart had it prepared by a nfsadmin and a nfsbox that died: it may not know what may be missing."""
        self.unapplied = (await self.open(degraded=False)).unapplied
        self.role, self.paired, self.degraded = "standby", False, False

    async def open(self, *, degraded: bool) -> DataState:
        """Wait for nfsbox, mount, and read what the last life left. Raises BusError."""
        answer = None
        for _ in range(TRIES):
            await self._find_nfsbox()
            answer = await self.unless_it_dies("prepare", degraded=degraded)
            if answer is not None:
                break
            await self.process("nfsbox", True)
        if answer is None:
            raise BusError("nfsbox", "nfsbox dies again and again: see log/nfsbox.log")
        prepared = read(answer.get("state"), str(answer.get("journal")), self.context.paths.rfs / "state")
        if prepared.fault:
            self.context.log.event("rfs_state_fault", reason=prepared.fault)
        self.state = await self._demand_full(prepared.state)
        return self.state

    async def _demand_full(self, state: DataState) -> DataState:
        """`config` of a stopped module leaves a note: the next reintegration copies everything (13.6.4.9)."""
        note = self.context.paths.full_required
        if not note.exists():
            return state
        state = generations.full_demanded(state, new_number())
        # The demand is on disk before the note goes: a crash between them demands twice.
        await self.nfsbox("state_set", state=generations.to_fields(state))
        note.unlink(missing_ok=True)
        return state

    async def _fullsync(self, state: DataState) -> DataState:
        """`second fullsync`. It is on disk before anything else: whatever dies before the reintegration begins, and
        however often it is tried, the wish holds until it has begun; from then on an interruption is resumed."""
        self.state = state = generations.full_demanded(state, new_number())
        if self.role != "secondary":  # there a state begins the stream; it is written with the new connection
            await self.nfsbox("state_set", state=generations.to_fields(state))
        return state

    async def _find_nfsbox(self) -> None:
        """Watch the running nfsbox; wait for one that is starting, and have one that died meanwhile started again.
        Raises BusError."""
        deadline = time.monotonic() + START_S
        again = time.monotonic() + AGAIN_S
        while True:
            try:
                pid = int((await self.nfsbox("ping", 1.0))["pid"])
                if self._watch is None or self._watch.pid != pid:
                    self._unwatch()
                    self._watch = Watch(pid, self._nfsbox_died)
                    self._died.clear()
                return
            except (BusTimeout, UnknownTarget, Died, ProcessLookupError) as error:
                if time.monotonic() > deadline:
                    raise BusError("nfsbox", f"nfsbox does not answer ({error}): see log/nfsbox.log") from None
                if time.monotonic() > again:
                    again = time.monotonic() + AGAIN_S
                    try:
                        await self.process("nfsbox", True)  # one that lives is left alone
                    except BusError as refused:
                        self.context.log.debug(f"nfsbox was not asked for again: {refused.text}")
                await asyncio.sleep(0.1)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def known_state(self) -> DataState:
        """The state of the prepared directories. Raises BusError before `prepare`."""
        if self.state is None:
            raise BusError("not_prepared", "the replicated directories are not prepared")
        return self.state

    async def _primary(self, request: Request) -> Fields:
        state = self.known_state()
        if request.fields.get("swap") and not self.degraded:
            # nfsbox writes it after it has applied everything
            state = generations.applied(state)
            await self.nfsbox("primary", peer=self._peer(request), paired=True, state=generations.to_fields(state))
            self.state, self.role, self.paired = state, "primary", True
            return {"generation": state.current}
        if request.fields.get("force"):
            state = generations.forced(state, new_number())
            self.set_resource("rfs.inconsistent", "down")
        elif self.unapplied:
            raise BusError(
                "unapplied",
                "nfsbox died before it had applied all that it had acknowledged: the other "
                "server has it all; start that one with safekit prim",
            )
        if not state.consistent:
            raise BusError("inconsistent", "the data is incomplete: its reintegration was interrupted")
        await self.reintegration.abandon()
        state = generations.left_peer(state, new_number(), time.time(), in_pair=False)
        await self.nfsbox("primary", paired=False, state=generations.to_fields(state))
        self.state, self.role, self.paired = state, "primary", False
        self._clear_bandwidth()
        return {"generation": state.current}

    async def _alone(self, request: Request) -> Fields:
        state = generations.left_peer(self.known_state(), new_number(), time.time())
        # The secondary may have told heart that our nfsbox is gone before we saw it.
        fields = generations.to_fields(state)
        answer = None if self.recovery.remade else await self.unless_it_dies("alone", state=fields)
        if answer is None:
            await self.recovery.ended()
            answer = await self.nfsbox("primary", paired=False, state=fields)
            self.recovery.remade = False
            self.tell_heart("nfsbox_died", "nfsbox ended unexpectedly; the mount is remade")
        self.state, self.role, self.paired = state, "primary", False
        return {"held": answer.get("held", 0), "generation": state.current}

    async def _secondary(self, request: Request) -> Fields:
        state = self.known_state()
        peer = self._peer(request)
        swap = bool(request.fields.get("swap"))
        if swap:
            state = generations.acknowledging(state)
        await self.reintegration.abandon()
        if request.fields.get("fullsync"):
            state = await self._fullsync(state)
        self.attempt = str(request.fields.get("attempt", ""))
        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                answer = await self.nfsbox(
                    "secondary",
                    peer=peer,
                    address=self._address(request, peer),
                    port=int(request.fields.get("port") or self._port()),
                    source=self._source(),
                    paired=swap,
                    state=generations.to_fields(state),
                    attempt=self.attempt,
                )
                break
            except BusError as error:
                if error.code not in ("connect", "refused") or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
        self.role, self.paired, self.peer, self.state = "secondary", swap, peer, state
        self.durable = bool(answer.get("durable"))
        if swap and self.durable:
            await self._applied()
        if not swap:
            self.spawn(self.reintegration.start())
        return {"session": answer.get("session")}

    async def _demote(self, request: Request) -> Fields:
        await self.nfsbox("demote")
        # both disks have everything: a death of nfsbox from here on degrades no primary
        self.role, self.paired = "demoted", False
        return {}

    async def _applied(self) -> None:
        self.state = generations.applied(self.known_state())
        await self.nfsbox("state_set", state=generations.to_fields(self.state))

    async def _standby(self, request: Request) -> Fields:
        await self.reintegration.abandon()
        if self.role != "none":
            state = self.known_state()
            if self.role == "secondary":
                state = generations.applied(state)  # nfsbox writes it after it has applied everything
            await self.nfsbox("standby", state=generations.to_fields(state))
            self.state, self.role = state, "standby"
        self.paired, self.unapplied = False, False
        self._clear_bandwidth()
        return {}

    async def _release(self, request: Request) -> Fields:
        await self.reintegration.abandon()
        self.recovery.cancel()
        try:
            if self.role != "none":
                # Before anybody can come in beside us; the time stamps of files are up to a tick late.
                closed_ns = time.time_ns() - CLOSING_NS
                await self.nfsbox("release")
                if self.state is not None:
                    state = generations.applied(self.state) if self.role == "secondary" else self.state
                    self.state = generations.closed(state, closed_ns)
                    await self.nfsbox("state_set", state=generations.to_fields(self.state))
        finally:
            self._unwatch()  # its end is now wanted
            self.role, self.paired, self.degraded = "none", False, False
            self._clear_bandwidth()
        return {}

    async def _reconfigure(self) -> Fields:
        self.context.reload()
        rfs = self.context.config.rfs
        if rfs is not None and self.role != "none":
            await self.nfsbox(
                "configure",
                rfs={
                    "nbrei": rfs.nbrei,
                    "reitimeout": rfs.reitimeout,
                    "reidetail": rfs.reidetail,
                    "async": rfs.async_mode,
                },
                listen=self._source(),
            )
        return {}

    async def _status(self) -> Fields:
        box: Fields = {}
        if self.role != "none":
            with contextlib.suppress(BusError):
                box = await self.nfsbox("status", 2.0)
                box = {k: v for k, v in box.items() if k not in ("ok", "re")}
        state = self.state
        return {
            "role": self.role,
            "paired": self.paired,
            "degraded": self.degraded,
            "nfsbox": box,
            "consistent": state.consistent if state else None,
            "generation": state.current if state else 0,
            "base": state.base if state else 0,
            "sync_point": state.sync_point if state else 0.0,
            "bandwidth": dict(self._bandwidth),
            "reintegration": self.reintegration.shown(box),
        }

    # --- what nfsbox tells --------------------------------------------------------------------------------

    async def _pair(self, request: Request) -> Fields:
        """END on the primary: heart's memory first, then the state that nfsbox records with it."""
        state = self.known_state()
        peer = str(request.fields.get("peer", self.peer))
        await self.context.bus.request(f"{self.module}/heart", "pair", 10.0, peer=peer)
        # A peer of unknown number is known by the one it had: its own record says whether that is right.
        target = int(request.fields.get("server") or 0) or state.peer or 1
        self.state = generations.delivered(state, target, time.time())
        self.paired, self.peer = True, peer
        self.set_resource("rfs_bandwidth.reintegration", "0")
        return {"state": generations.to_fields(self.state)}

    def _lost(self, reason: str, kind: str) -> None:
        if self.role == "primary" or kind != "replication_lost":
            self.tell_heart(kind, reason)

    def _session_lost(self, reason: str) -> None:
        if self.role != "secondary":
            return
        if self.paired:
            self.paired = False
            self.tell_heart("secondary_lost", reason)
        else:
            self.reintegration.lost(reason)

    def _show_bandwidth(self, fields: Fields) -> None:
        for name in ("replication", "reintegration"):
            value = int(fields.get(name) or 0)
            if self.role == "primary" and self._bandwidth.get(name) != value:
                self._bandwidth[name] = value
                self.set_resource(f"rfs_bandwidth.{name}", str(value))

    def _clear_bandwidth(self) -> None:
        for name, value in self._bandwidth.items():
            if value:
                self.set_resource(f"rfs_bandwidth.{name}", "0")
        self._bandwidth.clear()

    # --- the death of nfsbox ------------------------------------------------------------------------------

    def _nfsbox_died(self, pid: int | None) -> None:
        self._watch = None
        self._died.set()
        role, paired = self.role, self.paired
        if role == "none" or self.context.stopping.is_set():
            return
        reaction = "started again without replication" if role == "primary" else "started again"
        self.context.log.event(
            "process_died", name="nfsbox", pid=pid or "unknown", status="it ended unexpectedly", reaction=reaction
        )
        if self.recovery.active:
            return
        self.paired = False
        if role == "primary":
            # heart makes the server ALONE, and restarts the application when it hears `nfsbox_died`: not before the
            # mount can be written again.
            self.degraded = True
            self.set_resource("rfs.degraded", "up")
            self._clear_bandwidth()
        elif role == "secondary":
            self.spawn(self.reintegration.abandon())
            self.tell_heart("nfsbox_died", "nfsbox ended unexpectedly")
        self.recovery.begin(role, paired)

    # --- life ---------------------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """A restarted nfsadmin finds a running nfsbox and goes on with it, or that it died meanwhile."""
        try:
            while not self.context.stopping.is_set():
                try:
                    status = await self.nfsbox("status", 2.0)
                except UnknownTarget:
                    self._missing()
                    return
                except BusTimeout as error:
                    self.context.log.debug(f"nfsadmin waits for the nfsbox that it finds: {error.text}")
                    continue
                if status.get("role") not in (None, "none", "stopped"):
                    await self._adopt(status)
                return
        except BusError as error:
            self.context.log.debug(f"nfsadmin adopts nothing: {error.text}")
        finally:
            self._adopted.set()

    def _missing(self) -> None:
        """nfsbox does not run. While the module is in one of its roles it died with the nfsadmin before: nobody has
        told heart. Before and after, heart does not want it."""
        local = resources.load(self.context.paths.resources).get("state.local")
        role = _ROLES.get(local.value if local is not None else "")
        if role is not None:
            self.role, self.paired = role
            self._nfsbox_died(None)

    async def _adopt(self, status: Fields) -> None:
        self.role = str(status["role"])
        # A state that was not written again since the start says nothing yet of a crash before it; `prepare` of what
        # is prepared changes nothing.
        answer = await self.nfsbox(*(("prepare",) if self.role == "standby" else ("state_get",)))
        self.state = read(
            answer.get("state"), str(answer.get("journal", "clean")), self.context.paths.rfs / "state"
        ).state
        self.degraded = bool(status.get("degraded"))
        session = str(status.get("session"))
        self.paired = session in ("paired", "handed_over")
        self.unapplied = self.role == "standby" and self.state.unapplied
        self.peer, self.attempt = str(status.get("peer") or ""), str(status.get("attempt") or "")
        await self._find_nfsbox()
        self.context.log.debug(f"nfsadmin adopts the running nfsbox: {self.role}, {session}")
        if self.role == "secondary":
            self._adopt_secondary(session, self.state.consistent)

    def _adopt_secondary(self, session: str, consistent: bool) -> None:
        """Nobody was there for what reintegre and nfsbox told meanwhile; heart takes what it knows already for
        nothing new."""
        if session == "resync":
            # The reintegre of before would be refused; what it has copied is not copied again.
            self.spawn(self.reintegration.start())
        elif session == "paired" and consistent:
            self.tell_heart("rfs_synced")
        elif session != "handed_over":
            reason = "nfsadmin was restarted while the reintegration ended or its connection was lost"
            self.paired = False
            self.tell_heart("rfs_failed", reason)
            self.tell_heart("secondary_lost", reason)

    async def keep_in_step(self) -> None:
        """Record from time to time that the pair is equal, so that a crash costs little comparing."""
        while not self.context.stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.context.stopping.wait(), IN_STEP_S)
                return
            if self.paired and self.state is not None and not self._lock.locked():
                async with self._lock:
                    state = generations.in_step(self.state, time.time())
                    with contextlib.suppress(BusError):
                        await self.nfsbox("state_set", state=generations.to_fields(state))
                        self.state = state

    # --- where the peer is --------------------------------------------------------------------------------

    def _peer(self, request: Request) -> str:
        peer = request.fields.get("peer") or self.context.config.peer(self.context.cluster, self.context.node)
        if not peer:
            raise BusError("peer", "the other server of the module is not known")
        return str(peer)

    def _address(self, request: Request, peer: str) -> str:
        rfs = self.context.config.rfs
        address = request.fields.get("address") or (
            self.context.cluster.address(rfs.flow, peer) if rfs is not None else None
        )
        if not address:
            raise BusError("peer", f"{peer} has no address on the network of the replication flow")
        return str(address)

    def _port(self) -> int:
        rfs = self.context.config.rfs
        return rfs.port if rfs is not None else 0

    def _source(self) -> str | None:
        rfs = self.context.config.rfs
        return self.context.cluster.bind_address(rfs.flow, self.context.node) if rfs is not None else None

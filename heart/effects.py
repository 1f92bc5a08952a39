"""Carrying out the effects of the automaton: scripts, nfsadmin, vipd, processes of a phase.

Each effect runs as a task of its own and ends as a `Done` event.  None of them
is on the path of the heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

from heart.actions import Effect, Processes, Rfs, Scripts, Vip
from heart.events import Done
from safekit.bus import BusError
from safekit.process import Context
from safekit.scripts import ScriptRunner
from safekit.supervision import Supervisor, SupervisorError

RFS_SECONDS = {"prepare": 600.0, "demote": 150.0, "release": 120.0, "standby": 60.0}
"""Bounds of nfsadmin's operations; the others have RFS_DEFAULT."""
RFS_DEFAULT = 60.0
FORCED_SECONDS = 10.0
VIP_SECONDS = 20.0

_UNKNOWN_PID = 0


class Effects:
    """Runs effects; `done` gets the event that ends each of them."""

    def __init__(self, context: Context, scripts: ScriptRunner, done: Callable[[Done], None]) -> None:
        self._context = context
        self._done = done
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._pids: dict[str, int] = {}
        self.scripts = scripts
        self.supervisor = Supervisor(context.paths.supervisor_sock)

    def start(self, token: int, effect: Effect) -> None:
        """Begin an effect; its Done carries `token`."""
        task = asyncio.get_running_loop().create_task(self._run(token, effect))
        self._tasks[token] = task
        task.add_done_callback(lambda _: self._tasks.pop(token, None))

    def abort(self, token: int) -> None:
        """Kill an effect: the script with all that it started; an operation is no longer waited for."""
        task = self._tasks.pop(token, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """End everything that still runs."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, token: int, effect: Effect) -> None:
        try:
            done = await self._carry_out(token, effect)
        except (BusError, SupervisorError, OSError) as error:
            code = error.code if isinstance(error, BusError) else type(error).__name__
            done = Done(token, False, code, str(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # a defect must not leave the automaton waiting for ever
            self._context.log.event("internal", text=f"{type(effect).__name__}: {type(error).__name__}: {error}")
            done = Done(token, False, "internal", str(error))
        self._done(done)

    async def _carry_out(self, token: int, effect: Effect) -> Done:
        match effect:
            case Scripts(calls):
                for call in calls:
                    await self.scripts.run(call.name, call.args)
                return Done(token)
            case Rfs():
                return await self._rfs(token, effect)
            case Vip(operation):
                await self._vip(operation)
                return Done(token)
            case Processes(start, phase):
                await self._phase(start, phase)
                return Done(token)

    # -- replication and addresses

    async def _rfs(self, token: int, effect: Rfs) -> Done:
        options: dict[str, Any] = dict(effect.options)
        limit = RFS_SECONDS.get(effect.operation, RFS_DEFAULT)
        if options.get("force"):
            limit = min(limit, FORCED_SECONDS) if effect.operation == "release" else limit
        if effect.operation in ("secondary", "primary"):
            options |= self._peer_fields()
        reply = await self._context.bus.request(
            f"{self._context.module}/nfsadmin", effect.operation, limit, **options
        )
        return Done(token, consistent=bool(reply.get("consistent", True)))

    def _peer_fields(self) -> dict[str, Any]:
        config, cluster, node = self._context.config, self._context.cluster, self._context.node
        peer = config.peer(cluster, node)
        if config.rfs is None or peer is None:
            return {}
        return {"peer": peer, "address": cluster.address(config.rfs.flow, peer), "port": config.rfs.port}

    async def _vip(self, operation: str) -> None:
        if self._context.config.vip is None:
            return
        try:
            await self._context.bus.request(f"{self._context.module}/vipd", f"vip_{operation}", VIP_SECONDS)
        except BusError as error:
            # the application goes on: an address that cannot be set is told, and vipd tries again
            self._context.log.event("vip_failed", operation=operation, reason=error.text)

    # -- processes

    def programs(self, phase: str) -> tuple[str, ...]:
        """The processes of a phase, in the order of their start."""
        config = self._context.config
        if phase == "pre":
            # from here on the mounts exist, and nfscheck has something to ask
            return ("nfscheck",) if config.rfs is not None else ()
        if phase != "base":
            return ()
        rfs = ("nfsbox", "nfsadmin") if config.rfs is not None else ()
        vip = ("vipd", "arpreroute") if config.vip is not None else ()
        return rfs + vip

    async def _phase(self, start: bool, phase: str) -> None:
        names = self.programs(phase)
        for name in names if start else (*reversed(names), *(("reintegre",) if "nfsbox" in names else ())):
            if start:
                await self.start_process(name)
            else:
                await self.stop_process(name)

    async def start_process(self, name: str) -> None:
        """Have the supervisor run a process; one that an earlier supervisor left alive is kept."""
        if await self._alive(name):
            return
        try:
            await self.supervisor.start(name)
        except SupervisorError as error:
            self._context.log.event("process_not_started", name=name, reason=str(error))
            raise

    async def stop_process(self, name: str) -> None:
        """Stop a process; without a supervisor, by signal."""
        pid = await self._pid(name)
        try:
            await self.supervisor.stop(name)
        except SupervisorError as error:
            self._context.log.debug(f"supervisor: stop {name}: {error}")
        if pid and await self._ends(pid, 0.0):
            return
        if pid:
            for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                if await self._ends(pid, patience):
                    return

    async def _alive(self, name: str) -> bool:
        pid = await self._pid(name)
        return bool(pid) and not await self._ends(pid, 0.0)

    async def _pid(self, name: str) -> int:
        try:
            reply = await self._context.bus.request(
                "safeadmin", "map_lookup", 1.0, name=f"{self._context.module}/{name}"
            )
        except BusError:
            return _UNKNOWN_PID
        return int(reply.get("pid") or _UNKNOWN_PID)

    async def _ends(self, pid: int, patience: float) -> bool:
        """True when the process is gone within `patience` seconds."""
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            try:
                with open(f"/proc/{pid}/stat", "rb") as handle:
                    if handle.read().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
                        return True
            except OSError:
                return True
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)

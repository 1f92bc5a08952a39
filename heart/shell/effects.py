"""Carrying out the effects of the automaton: scripts, nfsadmin, vipd, processes of a phase.

Each effect runs as a task of its own and ends as a `Done` event.  None of them
is on the path of the heartbeats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from heart.core.actions import Effect, Processes, Rfs, ScriptCall, Scripts, Vip, Witness
from heart.core.events import Done, Ended
from heart.shell.processes import ModuleProcesses
from safekit.bus.asking import Ask
from safekit.bus.endpoint import BusError
from safekit.bus.requests import nfsadmin, vipd
from safekit.bus.requests.splitbraincheck import Isolated
from safekit.process.frame import Context
from safekit.process.scripts import ScriptRunner
from safekit.process.supervision import SupervisorError

RFS_SECONDS = {"prepare": 600.0, "demote": 150.0, "release": 120.0, "standby": 60.0}
"""Bounds of nfsadmin's operations; the others have RFS_DEFAULT."""
RFS_DEFAULT = 60.0
LEAVING = frozenset({"alone", "demote", "standby"})
FORCED_SECONDS = 10.0
VIP_SECONDS = 20.0
TOLD_BY_VIPD = frozenset({"vip_duplicate", "vip_place", "vip_name", "vip_kernel", "vip_filter"})
"""Why an address cannot be set: vipd has said it in the log already."""
WITNESS_ANSWER = 4.0
"""More than a verdict takes (checkers.splitbraincheck.VERDICT_SECONDS)."""
WITNESS_SECONDS = 3.0
"""Until a witness that is not there counts as one that does not answer."""

_VIP: dict[str, Callable[[], Ask[Any]]] = {
    "init": vipd.Init,
    "set": vipd.Set,
    "unset": vipd.Unset,
    "announce": vipd.AnnounceAgain,
    "join": vipd.Join,
    "leave": vipd.Leave,
}

_RFS: dict[str, Callable[[], Ask[Any]]] = {
    "prepare": nfsadmin.Prepare,
    "alone": nfsadmin.Alone,
    "demote": nfsadmin.Demote,
    "standby": nfsadmin.Standby,
    "release": nfsadmin.Release,
}
"""Those that need to be told nothing."""


class Effects:
    """Runs effects; `done` gets the event that ends each of them."""

    def __init__(self, context: Context, scripts: ScriptRunner, done: Callable[[Done], None]) -> None:
        self._context = context
        self._done = done
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.scripts = scripts
        self.processes = ModuleProcesses(context)
        self.supervisor = self.processes.supervisor

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
            case Scripts(calls, within):
                return Done(token, scripts=await self._scripts(calls, within))
            case Rfs():
                return await self._rfs(token, effect)
            case Vip(operation, within):
                await self._vip(operation, within or VIP_SECONDS)
                return Done(token)
            case Processes():
                await self.processes.carry_out(effect)
                return Done(token)
            case Witness(ident):
                return await self._witness(token, ident)
        raise AssertionError(f"unknown effect {effect!r}")

    async def _scripts(self, calls: tuple[ScriptCall, ...], within: float) -> tuple[Ended, ...]:
        """Run scripts one after the other; how each of them ended that was run."""
        end = asyncio.get_running_loop().time() + within
        ended = []
        for number, call in enumerate(calls):
            share = (end - asyncio.get_running_loop().time()) / (len(calls) - number)
            found = await self.scripts.run(call.name, call.args, at_most=max(share, 0.0) if within else None)
            if found.status is not None or found.problem:
                ended.append(Ended(call.name, found.problem, found.said))
        return tuple(ended)

    # -- replication and addresses

    async def _rfs(self, token: int, effect: Rfs) -> Done:
        limit = RFS_SECONDS.get(effect.operation, RFS_DEFAULT)
        if effect.operation == "release" and dict(effect.options).get("force"):
            limit = min(limit, FORCED_SECONDS)
        if effect.operation == "primary" and self._context.config.vip is not None:
            # it asks the network about the addresses meanwhile
            self._context.bus.tell(self._context.module, vipd.Expect())
        await self._able(effect.operation)
        answer = await self._context.bus.ask(self._context.module, self._asked(effect), limit)
        if isinstance(answer, nfsadmin.Prepared):
            return Done(token, consistent=answer.consistent, unapplied=answer.unapplied)
        return Done(token)

    def _asked(self, effect: Rfs) -> Ask[Any]:
        options = dict(effect.options)
        swap = bool(options.get("swap"))
        if effect.operation == "primary":
            return nfsadmin.Primary(swap, bool(options.get("force")), **self._peer_fields())
        if effect.operation == "secondary":
            full, unsure = bool(options.get("fullsync")), bool(options.get("unsure"))
            return nfsadmin.Secondary(swap, full, unsure, str(options.get("attempt", "")), **self._peer_fields())
        return _RFS[effect.operation]()

    async def _able(self, operation: str) -> None:
        """A nfsadmin that died is started before it is asked, and nobody waits for what can do nothing: without nfsbox,
        and without a supervisor that could start one. Raises SupervisorError."""
        processes = self.processes
        await processes.ensure("nfsadmin")
        if operation == "release":
            # mounts that a dead one left are released by a new one
            await processes.ensure("nfsbox")
        elif operation in LEAVING and not await processes.registered("nfsbox"):
            await processes.supervisor.states()

    def _peer_fields(self) -> dict[str, Any]:
        config, cluster, node = self._context.config, self._context.cluster, self._context.node
        peer = config.peer(cluster, node)
        if config.rfs is None or peer is None:
            return {}
        return {"peer": peer, "address": cluster.address(config.rfs.flow, peer) or "", "port": config.rfs.port}

    async def _vip(self, operation: str, limit: float) -> None:
        if self._context.config.vip is None:
            return
        try:
            await self.processes.ensure("vipd")
            await self._context.bus.ask(self._context.module, _VIP[operation](), limit)
        except SupervisorError as error:
            self._context.log.event("vip_failed", operation=operation, reason=str(error))
        except BusError as error:
            # the application goes on: an address that cannot be set is told, and vipd tries again
            if not (operation == "set" and error.code in TOLD_BY_VIPD):
                self._context.log.event("vip_failed", operation=operation, reason=error.text)

    # -- the witness

    async def _witness(self, token: int, ident: str) -> Done:
        """A verdict that was taken after this call.  A checker that was killed is back within a second."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WITNESS_SECONDS
        while True:
            try:
                verdict = await self._context.bus.ask(self._context.module, Isolated(), WITNESS_ANSWER, instance=ident)
                return Done(token, verdict.witness == "up")
            except BusError as error:
                if loop.time() >= deadline:
                    return Done(token, False, error.code, f"splitbraincheck does not answer: {error.text}")
                await asyncio.sleep(0.1)

"""The other processes of a module: started and stopped at their phase, and never missed in silence.

supervisord runs them, and starts again what dies.  This file decides when: the processes of the product first
and the checkers after them; errd watches a class only while its phase lasts.  Each process is followed by a
pidfd, so that a death is a line in the log at once, and so is the time until its successor runs (M5).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from heart.core.actions import Processes
from safekit.bus.endpoint import BusError
from safekit.bus.requests import errd
from safekit.bus.requests.safeadmin.processes import Lookup
from safekit.model.checkers import Checker
from safekit.process.frame import Context
from safekit.process.supervision import Supervisor, SupervisorError
from safekit.process.table import runs

BASE = "base"
ERRD_SECONDS = 3.0
"""Until errd must have taken a class up; it may just have been restarted."""
RESTART_SECONDS = 30.0
LOOK = 0.1
REGISTERED_SECONDS = 3.0
"""More than a young safeadmin waits for the processes that it does not know yet."""
UNKNOWN_PID = 0
LOG_TAIL = 16 * 1024
UNWATCHED = frozenset({"heart", "nfsbox", "reintegre"})
"""safeadmin sees the end of heart, nfsadmin that of nfsbox and reintegre."""
_EXITED = re.compile(r"exited: (\S+) \(([^;)]*)")


class ModuleProcesses:
    """Start, stop and watch the processes of one module."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.supervisor = Supervisor(context.paths.supervisor_sock)
        self.checkers: tuple[Checker, ...] = ()
        self.silenced: Callable[[str], None] = lambda resource: None
        """Called with the resource of a checker that died: until its successor speaks nobody knows."""
        self._watched: dict[str, tuple[int, int]] = {}
        self._beside = context.beside()

    # ------------------------------------------------------------------ phases

    def programs(self, phase: str) -> tuple[str, ...]:
        """The product's own processes of a phase, in the order of their start."""
        config = self._context.config
        if phase == "pre":
            # from here on the mounts exist, and nfscheck has something to ask
            return ("nfscheck",) if config.rfs is not None else ()
        if phase != BASE:
            return ()
        rfs = ("nfsbox", "nfsadmin") if config.rfs is not None else ()
        vip = ("vipd", "arpreroute") if config.vip is not None else ()
        errd = ("errd",) if config.errd is not None else ()
        return rfs + vip + errd

    async def carry_out(self, step: Processes) -> None:
        """Begin or end a phase.  Raises SupervisorError when a process that is needed cannot be started."""
        if step.start:
            await self._begin(step)
        else:
            await self._end(step)

    async def _begin(self, step: Processes) -> None:
        names = self.programs(step.phase)
        if "errd" in names and not step.keep and not await self._alive("errd"):
            # classes that a killed errd would take up again belong to a run that is over
            (self._context.paths.var / "errd.enabled").unlink(missing_ok=True)
        for name in names:
            await self.start_process(name)
        if step.checkers:
            await asyncio.gather(*(self.start_checker(c, fresh=not step.keep) for c in self._of(step.phase)))
        await self._watch_all()
        if step.errd:
            await self._errd_class(errd.Enable, step.phase)

    async def _end(self, step: Processes) -> None:
        if step.errd:
            await self._errd_class(errd.Disable, step.phase)
        await asyncio.gather(*(self.stop_checker(checker) for checker in self._of(step.phase)))
        names = self.programs(step.phase)
        for name in (*reversed(names), *(("reintegre",) if "nfsbox" in names else ())):
            await self.stop_process(name)

    def _of(self, phase: str) -> tuple[Checker, ...]:
        return tuple(checker for checker in self.checkers if checker.when == phase)

    async def _errd_class(self, request: type[errd.Enable] | type[errd.Disable], phase: str) -> None:
        """A class that errd does not take up is told: its processes would die unseen."""
        configured = self._context.config.errd
        if configured is None or not any(proc.proc_class == phase for proc in configured.procs):
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ERRD_SECONDS
        while True:
            try:
                await self._context.bus.ask(self._context.module, request(phase), 1.0)
                return
            except BusError as error:
                if loop.time() >= deadline:
                    self._context.log.event("errd_unreachable", operation=request.op, name=phase, reason=error.text)
                    return
                await asyncio.sleep(LOOK)

    # -------------------------------------------------------------- one process

    async def start_checker(self, checker: Checker, *, fresh: bool) -> None:
        """Start a checker.  `fresh`: one that runs already is replaced, so that it speaks again."""
        if await self._alive(bus_name(checker)):
            if not fresh:
                return
            await self.stop_checker(checker)
        try:
            await self.supervisor.start(checker.process)
        except SupervisorError as error:
            # its resource stays init, which no rule acts on: say it, and let the module go on
            self._context.log.event("process_not_started", name=checker.process, reason=str(error))

    async def stop_checker(self, checker: Checker) -> None:
        """Stop a checker and what it started."""
        await self.stop_process(checker.process, bus_name(checker))

    async def start_process(self, name: str) -> None:
        """Have the supervisor run a process; one that an earlier supervisor left alive is kept."""
        if await self._alive(name):
            return
        try:
            await self.supervisor.start(name)
        except SupervisorError as error:
            self._context.log.event("process_not_started", name=name, reason=str(error))
            raise

    async def stop_process(self, name: str, bus_name: str = "") -> None:
        """Stop a process; without a supervisor, by signal."""
        self._unwatch(name)
        pid = await self._pid(bus_name or name)
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

    async def _alive(self, bus_name: str) -> bool:
        pid = await self._pid(bus_name)
        return bool(pid) and not await self._ends(pid, 0.0)

    async def registered(self, bus_name: str) -> bool:
        """Whether a process of that name lives, as far as safeadmin knows."""
        try:
            place = await self._context.bus.ask("", Lookup(f"{self._context.module}/{bus_name}"), REGISTERED_SECONDS)
        except BusError:
            return False
        return place.port != 0

    async def ensure(self, name: str) -> None:
        """Have a process run that is about to be asked something. Raises SupervisorError."""
        if not await self.registered(name):
            await self.supervisor.start(name)

    async def end(self, name: str) -> None:
        """Kill a process that is of no use any more; what follows from its death is decided elsewhere."""
        pid = await self._pid(name)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _pid(self, bus_name: str) -> int:
        try:
            place = await self._context.bus.ask("", Lookup(f"{self._context.module}/{bus_name}"), 1.0)
        except BusError:
            return UNKNOWN_PID
        return place.pid or UNKNOWN_PID

    async def _ends(self, pid: int, patience: float) -> bool:
        """True when the process is gone within `patience` seconds."""
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            if not runs(pid):
                return True
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)

    # ------------------------------------------------------ dynamic configuration

    async def replace_checkers(
        self, new: tuple[Checker, ...], changed: Iterable[Checker], phases: Iterable[str], *, running: bool
    ) -> None:
        """A dynamic configuration: `changed` are new or have another definition; `phases` are those in progress.

        Checkers that stay as they were are not touched.  Raises SupervisorError.
        """
        changed = set(changed)
        gone = [checker for checker in self.checkers if checker not in new or checker in changed]
        await asyncio.gather(*(self.stop_checker(checker) for checker in gone))
        await self.supervisor.reread(lambda name: name == "errd" or name.partition(".")[0].endswith("check"))
        self.checkers = new
        if not running:
            return
        active = set(phases)
        begun = [checker for checker in new if checker in changed and checker.when in active]
        await asyncio.gather(*(self.start_checker(checker, fresh=True) for checker in begun))
        await self._watch_all()

    async def replace_errd(self, phases: Iterable[str]) -> None:
        """A dynamic configuration: errd takes the new one up, or begins.  Raises SupervisorError."""
        if await self._alive("errd"):
            with contextlib.suppress(BusError):
                await self._context.bus.ask(self._context.module, errd.Reload())
        else:
            await self.start_process("errd")
            await self._watch_all()
        for phase in phases:
            await self._errd_class(errd.Enable, phase)

    async def runs(self, name: str) -> bool:
        """Whether that process of the module is there."""
        return await self._alive(name)

    async def renew(self, name: str) -> None:
        """End a process and start it again, when it runs.  Raises SupervisorError."""
        if await self._alive(name):
            await self.stop_process(name)
            await self.start_process(name)
            await self._watch_all()

    # ---------------------------------------------------------------- watching

    async def adopt(self) -> None:
        """A restarted heart follows the processes that run."""
        await self._watch_all()

    async def _watch_all(self) -> None:
        try:
            states = await self.supervisor.states()
        except SupervisorError as error:
            self._context.log.debug(f"supervisor: {error}")
            return
        for name, info in states.items():
            if info.pid and name not in UNWATCHED and self._watched.get(name, (0, 0))[0] != info.pid:
                self._watch(name, info.pid)

    def _watch(self, name: str, pid: int) -> None:
        self._unwatch(name)
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            self._died(name, pid)
            return
        self._watched[name] = (pid, descriptor)
        asyncio.get_running_loop().add_reader(descriptor, self._died, name, pid)

    def _unwatch(self, name: str) -> None:
        pid, descriptor = self._watched.pop(name, (0, -1))
        if pid:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _died(self, name: str, pid: int) -> None:
        self._unwatch(name)
        for checker in self.checkers:
            if checker.process == name:
                self.silenced(checker.resource)
        self._beside.start(self._follow_restart(name, pid))

    async def _follow_restart(self, name: str, pid: int) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        # supervisord notes the exit status before it starts the successor
        await asyncio.sleep(LOOK)
        status = exit_status(self._context.paths.log_dir / "supervisord.log", name)
        self._context.log.event("process_died", name=name, pid=pid, status=status, reaction="it is started again")
        while loop.time() < begin + RESTART_SECONDS:
            try:
                info = (await self.supervisor.states()).get(name)
            except SupervisorError:
                # the end of supervisord is a decision of its own
                return
            if info is None or name in self._watched:
                return
            if info.pid and info.pid != pid:
                self._watch(name, info.pid)
                gap = f"{loop.time() - begin:.1f}"
                self._context.log.event("process_again", name=name, pid=info.pid, seconds=gap)
                return
            await asyncio.sleep(LOOK)
        self._context.log.event("process_not_started", name=name, reason="it died again and again; see its log")

    def close(self) -> None:
        """Follow nothing any more; the processes go on."""
        for name in list(self._watched):
            self._unwatch(name)
        self._beside.cancel()


def exit_status(log: Path, name: str) -> str:
    """How a process ended, in supervisord's words."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(os.fstat(handle.fileno()).st_size - LOG_TAIL, 0))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return "exit status not known"
    found = [status for who, status in _EXITED.findall(text) if who == name]
    return found[-1].strip() if found else "exit status not known"


def bus_name(checker: Checker) -> str:
    """Its name on the local bus, within the module."""
    return f"{checker.program}.{checker.ident}"

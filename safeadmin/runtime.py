"""The running side of one module: its supervisord and its heart, watched, started and asked (M5).

Nothing here dies with safeadmin: supervisord runs in a session of its own, and a successor of safeadmin
finds it again by the environment of its processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from safeadmin import forcestop
from safeadmin.mapper import Mapper
from safeadmin.modules import Registry
from safeadmin.obstacles import obstacle
from safeadmin.processes import SUPERVISORD, Kind, Member, Watch, describe_status, end_processes, find, product
from safekit.bus.endpoint import Endpoint, Fields
from safekit.bus.message import BusError, BusTimeout, UnknownTarget
from safekit.disk.files import boot_identity
from safekit.disk.paths import ModulePaths
from safekit.disk.resources import load
from safekit.log.module import ModuleLog
from safekit.model.checkers import checkers
from safekit.model.types import User
from safekit.net import addresses
from safekit.process.frame import Unconfigured, load_cluster
from safekit.process.supervision import Supervisor, SupervisorError, module_programs, spawn, write_configuration
from safekit.process.table import start_time

HEART_SECONDS = 15.0
"""Until a heart that was just started must be on the bus."""
MAX_FAILURES = 4
"""Looks (every half second) that find heart ended, until starting it is given up."""
ANSWER_SECONDS = 5.0
"""Until heart must accept or refuse a command."""
LAST_WORK_SECONDS = 20.0
"""Until the processes of a module that has stopped must be gone."""
IMPATIENCE_SECONDS = 600.0
"""A second forcestop within this time no longer waits for heart."""
MAX_RESPAWNS, RESPAWN_SECONDS = 3, 600.0


class ModuleRuntime:
    """One module on this server. changed: called whenever running or heart changes."""

    def __init__(
        self,
        name: str,
        node: str,
        registry: Registry,
        bus: Endpoint,
        mapper: Mapper,
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self._registry = registry
        self.paths = ModulePaths(name)
        self.node = node
        self.log = ModuleLog(name, "safeadmin", node)
        self._bus, self._mapper, self._tell = bus, mapper, changed
        self._supervisord: Watch | None = None
        self._heart: Watch | None = None
        self._lock = asyncio.Lock()
        self._event = asyncio.Event()
        self._forcing: asyncio.Task[None] | None = None
        self._forced_at = float("-inf")
        self._respawns: deque[float] = deque(maxlen=MAX_RESPAWNS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._expecting_end = False

    # What is known

    @property
    def supervised(self) -> bool:
        """A supervisord of the module runs."""
        return self._supervisord is not None and self._supervisord.alive

    @property
    def heart(self) -> bool:
        """A heart of the module runs; it may hang."""
        return self._heart is not None and self._heart.alive

    @property
    def running(self) -> bool:
        """The module is not stopped, as far as processes tell."""
        return self.supervised or self.heart or self.forcing

    @property
    def ending(self) -> bool:
        """The module has stopped, and its last processes are about to go."""
        return self._expecting_end and self.running and not self.forcing

    @property
    def forcing(self) -> bool:
        """A forced stop is at work."""
        return self._forcing is not None and not self._forcing.done()

    def _stopped(self) -> bool:
        """Whether the resource file says STOP: then there is nothing to take up."""
        state = load(self.paths.resources).get("state.local")
        return state is None or state.value == "STOP"

    def interrupted(self) -> bool:
        """Whether the module ran in this boot of the server and was never stopped."""
        try:
            mark = self.paths.marker.read_text(errors="replace").strip()
        except OSError:
            return False
        return mark == boot_identity() and not self._stopped()

    def _in_order(self, status: int | None) -> bool:
        """Whether the end of a process is the end of a stop, not a death."""
        if self._expecting_end or self.forcing:
            return True
        return self._stopped() and not self.paths.marker.exists() and not status

    # Watching

    def adopt(self, members: list[Member] | None = None) -> None:
        """Watch the supervisord and the heart that run already, at the start of safeadmin or before a spawn."""
        for member in find(self.name) if members is None else members:
            if member.kind is Kind.PRODUCT and member.name == SUPERVISORD and not self.supervised:
                self._watch_supervisord(member.pid, member.born)
            elif member.kind is Kind.PRODUCT and member.name == "heart" and not self.heart:
                self._watch_heart(member.pid, member.born)

    def heart_registered(self, pid: int, born: int) -> None:
        """heart told the mapper where it is."""
        if self._heart is None or not self._heart.alive or self._heart.pid != pid:
            self._watch_heart(pid, born)
        self._notify()

    def _watch_supervisord(self, pid: int, born: int) -> None:
        def ended(status: int | None) -> None:
            if self._supervisord is watch:
                self._supervisord = None
            self._supervisord_ended(pid, status)

        with contextlib.suppress(ProcessLookupError):
            watch = Watch(pid, born, ended)
            if self._supervisord is not None:
                self._supervisord.close()
            self._supervisord = watch
        self._notify()

    def _watch_heart(self, pid: int, born: int) -> None:
        def ended(status: int | None) -> None:
            if self._heart is watch:
                self._heart = None
            self._heart_ended(pid, status)

        with contextlib.suppress(ProcessLookupError):
            watch = Watch(pid, born, ended)
            if self._heart is not None:
                self._heart.close()
            self._heart = watch
        self._notify()

    def _notify(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()
        self._tell()

    def _supervisord_ended(self, pid: int, status: int | None) -> None:
        if not self._in_order(status):
            reaction = (
                "heart will stop and start the module under a new one"
                if self.heart
                else "no process of the module decides any more: they are started again"
            )
            self._died("supervisord", pid, status, reaction)
            self._rescue_if_headless()
        self._notify()

    def _heart_ended(self, pid: int, status: int | None) -> None:
        if not self._in_order(status):
            reaction = (
                "its supervisor starts it again, and it takes up the state in the resource file"
                if self.supervised
                else "no process of the module decides any more: they are started again"
            )
            self._died("heart", pid, status, reaction)
            self._rescue_if_headless()
        self._notify()

    def _died(self, name: str, pid: int, status: int | None, reaction: str) -> None:
        self.log.event("process_died", name=name, pid=pid, status=describe_status(status), reaction=reaction)

    def _rescue_if_headless(self) -> None:
        if not self.supervised and not self.heart:
            self.background(self.rescue())

    async def rescue(self) -> None:
        """M5: supervisord and heart are both gone while the module runs: start them again. heart takes up the
        role that the resource file tells."""
        async with self._lock:
            if self.supervised or self.heart or self.forcing or not self.interrupted():
                return
            now = time.monotonic()
            if len(self._respawns) == MAX_RESPAWNS and now - self._respawns[0] < RESPAWN_SECONDS:
                self.log.event(
                    "internal",
                    text=f"supervisord and heart died {MAX_RESPAWNS} times within {RESPAWN_SECONDS / 60:.0f} minutes:"
                    f" they are not started again; safekit forcestop -m {self.name}, then start",
                )
                return
            self._respawns.append(now)
            # nfsbox and vipd serve the application: what becomes of them is heart's decision, not ours.
            await end_processes(product(self.name, lambda name: name == "circlog"))
            try:
                await self._spawn()
            except BusError as error:
                self.log.event("internal", text=f"the module's processes could not be started again: {error.text}")

    def background(self, work: Any) -> asyncio.Task[None]:
        """Run something that nobody waits for; kept so that it is not lost."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            if not done.cancelled() and (error := done.exception()) is not None:
                self.log.event("internal", text=f"defect in safeadmin: {type(error).__name__}: {error}")

        task.add_done_callback(ended)
        return task

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait for a change that makes the condition true; False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._event.wait()
        except TimeoutError:
            return condition()
        return True

    # Starting

    async def start(self, fields: Fields) -> Fields:
        """Start the processes of a stopped module and hand the command to its heart.

        Raises BusError with what failed and where to look."""
        async with self._lock:
            self.adopt()
            if self.running and not await self.until(lambda: not self.running, LAST_WORK_SECONDS):
                return await self.forward(fields)
            await self._clear_leftovers()
            self._look_for_obstacles()
            await self._spawn()
            try:
                return await self.forward(fields)
            except BusError:
                self.background(self._retire())
                raise

    def _look_for_obstacles(self) -> None:
        module = self._registry.get(self.name)
        if module is None or module.config is None:
            return
        try:
            found = obstacle(module.config, load_cluster(), self.node)
        except Unconfigured as error:
            raise BusError("no_cluster", str(error)) from None
        if found:
            raise BusError("cannot_start", found)

    async def _spawn(self) -> None:
        module = self._registry.get(self.name)
        if module is None or module.config is None:
            text = module.problem if module is not None else ""
            raise BusError(
                "not_configured", text or f"module {self.name} is not configured; safekit config -m {self.name}"
            )
        config = module.config
        self._expecting_end = False
        try:
            write_configuration(
                self.name,
                module_programs(config, checkers(config, addresses.local_interfaces())),
                {"SAFENODE": self.node},
            )
            child = spawn(self.name)
        except OSError as error:
            raise BusError(
                "cannot_start", f"supervisord cannot be started: {error}; free space, or run safekitinstall again"
            ) from None
        born = start_time(child.pid)
        # The watch reaps it; the object must not complain about a child that it did not wait for.
        child.returncode = 0
        if born is not None:
            self._watch_supervisord(child.pid, born)
        why = await self._wait_for_heart()
        if not why:
            return
        self.background(self._retire())
        raise BusError(
            "no_heart",
            f"module {self.name}: its processes were started, but heart {why}; see {self.paths.log_dir}/heart.log"
            f" and {self.paths.log_dir}/supervisord.log",
        )

    async def _wait_for_heart(self) -> str:
        """Until a heart that was just started is on the bus; "" then, else what is wrong with it."""
        failures, deadline = 0, time.monotonic() + HEART_SECONDS
        supervisor = Supervisor(self.paths.supervisor_sock)
        while time.monotonic() < deadline:
            if await self.until(lambda: not self.supervised or self._registered(), 0.5):
                return "" if self._registered() else "has no supervisor: supervisord has ended"
            with contextlib.suppress(SupervisorError, KeyError):
                info = (await supervisor.states())["heart"]
                failures += info.state in ("BACKOFF", "FATAL", "EXITED")
                if failures >= MAX_FAILURES:
                    return f"ends at once, exit status {info.exit_status}"
        return "does not answer"

    async def _clear_leftovers(self) -> None:
        """Processes of an earlier life of a stopped module would be in the way: they hold its ports."""
        await end_processes(product(self.name, lambda name: name != SUPERVISORD))

    def _registered(self) -> bool:
        entry = self._mapper.lookup(f"{self.name}/heart")
        return entry is not None

    async def _retire(self) -> None:
        """End a supervisord whose heart refused to start, unless the module runs after all."""
        if self._stopped() and self.supervised:
            await self._end_supervisord()

    async def _end_supervisord(self) -> None:
        await self._dismiss()
        if not await self.until(lambda: not self.supervised and not self.heart, LAST_WORK_SECONDS):
            await end_processes(product(self.name))

    async def _dismiss(self) -> None:
        """From here on supervisord starts nothing any more; it ends when its processes have ended."""
        self._expecting_end = True
        with contextlib.suppress(SupervisorError):
            await Supervisor(self.paths.supervisor_sock).shutdown()

    async def ended(self) -> None:
        """heart says that the module has stopped. Before it gets the answer and leaves, supervisord must know,
        or it would start another heart."""
        if self.supervised:
            await self._dismiss()
            self.background(self._end_supervisord())

    async def respawn(self, fields: Fields) -> None:
        """heart has stopped the module because its supervisord died: when it is gone, start again."""
        if not await self.until(lambda: not self.heart, LAST_WORK_SECONDS):
            await end_processes(product(self.name, lambda name: name == "heart"))
        async with self._lock:
            try:
                if not self.supervised:
                    await self._clear_leftovers()
                    await self._spawn()
                await self.forward(fields)
            except BusError as error:
                self.log.event("internal", text=f"the module could not be started again: {error.text}")

    # Asking

    async def forward(self, fields: Fields) -> Fields:
        """Give a command to heart. Raises BusError: heart's refusal, or that it does not answer."""
        try:
            reply = await self._bus.request(f"{self.name}/heart", "control", ANSWER_SECONDS, **fields)
        except (BusTimeout, UnknownTarget):
            raise BusError(
                "heart_hangs",
                f"heart of module {self.name} does not answer; if this lasts: safekit forcestop -m {self.name}",
            ) from None
        return {key: value for key, value in reply.items() if key not in ("re", "ok")}

    async def stop(self, action: str, who: str, bound: float) -> None:
        """Orderly stop; forced when it does not end within `bound` seconds. Returns when it is done."""
        try:
            await self.forward({"action": action, "who": who})
        except BusError as error:
            self.log.event("internal", text=f"{action}: {error.text}")
            await self.force(who, announce=False)
            return
        if not await self.until(lambda: not self.running, bound):
            self.log.event("internal", text=f"{action}: not stopped after {bound:.0f} s, it is forced")
            await self.force(who, announce=False)

    # Forcing

    async def forcestop(self, fields: Fields) -> None:
        """The way out: asks heart, and does without it when it hangs, is gone, or is asked again."""
        who = str(fields.get("identity") or fields.get("who") or "root")
        impatient = time.monotonic() - self._forced_at < IMPATIENCE_SECONDS
        self._forced_at = time.monotonic()
        self.adopt()
        if self.heart and not impatient:
            with contextlib.suppress(BusError):
                await self.forward(fields)
                self.background(self._force_later(who, self._patience()))
                return
        self.background(self.force(who, announce=True))

    def _patience(self) -> float:
        """How long the forced stop scripts may take at most, and a margin."""
        module = self._registry.get(self.name)
        user = module.config.user if module is not None and module.config is not None else None
        return 30.0 + len(forcestop.SCRIPTS) * (user or User()).forcestoptimeout

    async def _force_later(self, who: str, bound: float) -> None:
        if not await self.until(lambda: not self.running, bound):
            await self.force(who, announce=False)

    async def force(self, who: str, *, announce: bool) -> None:
        """Stop without heart. A second call waits for the first."""
        if not self.forcing:
            module = self._registry.get(self.name)
            config = module.config if module is not None else None
            self._forcing = self.background(forcestop.run(self.name, who, self.log, config, self._bus, announce))
            self._forcing.add_done_callback(lambda _: self._forced())
            self._tell()
        assert self._forcing is not None
        await asyncio.wait([self._forcing])

    def _forced(self) -> None:
        self._forced_at = float("-inf")
        self._notify()

    def close(self) -> None:
        """Stop watching; the module goes on."""
        for watch in (self._supervisord, self._heart):
            if watch is not None:
                watch.close()
        for task in list(self._tasks):
            task.cancel()

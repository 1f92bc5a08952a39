"""The running side of one module: its supervisord and its heart, watched, started and asked (M5).

Nothing here dies with safeadmin: supervisord runs in a session of its own, and a successor of safeadmin
finds it again by the environment of its processes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from safeadmin.forcing import Forcing
from safeadmin.guard import Guard
from safeadmin.mapper import Mapper
from safeadmin.modules import Registry
from safeadmin.processes import SUPERVISORD, Member, describe_status, end_processes, find, product
from safeadmin.startup import LAST_WORK_SECONDS, Startup
from safeadmin.watched import Watched
from safekit.bus.endpoint import Endpoint
from safekit.bus.message import BusError, BusTimeout, UnknownTarget
from safekit.bus.requests.heart import Control
from safekit.disk.files import boot_identity
from safekit.disk.paths import ModulePaths
from safekit.disk.resources import load
from safekit.log.module import ModuleLog
from safekit.model.types import ModuleConfig
from safekit.process.tasks import Beside, told

ANSWER_SECONDS = 5.0
"""Until heart must accept or refuse a command."""
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
        self.paths = ModulePaths(name)
        self.log = ModuleLog(name, "safeadmin", node)
        self._bus = bus
        self._beside = Beside(lambda error: self.log.event("internal", text=f"defect in safeadmin: {told(error)}"))
        self._watched = Watched(self._process_ended, changed)
        self._startup = Startup(name, node, registry, mapper, self._watched)
        self._forcing = Forcing(name, self.log, registry, bus, self._watched, self._beside, self.forward)
        self._lock = asyncio.Lock()
        self._respawns: deque[float] = deque(maxlen=MAX_RESPAWNS)
        guard = Guard(name, bus, lambda: self._config(registry), self._served_by_primary, self._give_up)
        self._beside.start(guard.run())

    # What is known

    @property
    def heart(self) -> bool:
        """A heart of the module runs; it may hang."""
        return self._watched.heart

    @property
    def running(self) -> bool:
        """The module is not stopped, as far as processes tell."""
        return self._watched.anything or self.forcing

    @property
    def ending(self) -> bool:
        """The module has stopped, and its last processes are about to go."""
        return self._startup.expecting_end and self.running and not self.forcing

    @property
    def forcing(self) -> bool:
        """A forced stop is at work."""
        return self._forcing.active

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

    def _config(self, registry: Registry) -> ModuleConfig | None:
        module = registry.get(self.name)
        return module.config if module is not None else None

    def _served_by_primary(self) -> bool:
        """Whether another server takes over when nobody decides here any more: one that is ALONE has none that could.
        A module that is being stopped by force has ended what matters."""
        if self.forcing or not self.interrupted():
            return False
        state = load(self.paths.resources).get("state.local")
        return state is not None and state.value == "PRIM"

    def adopt(self, members: list[Member] | None = None) -> None:
        """Watch the supervisord and the heart that run already, at the start of safeadmin or before a start."""
        self._watched.adopt(find(self.name) if members is None else members)

    def heart_registered(self, pid: int, born: int) -> None:
        """heart told the mapper where it is."""
        self._watched.heart_registered(pid, born)

    # Deaths

    def _in_order(self, status: int | None) -> bool:
        """Whether the end of a process is the end of a stop, not a death."""
        if self._startup.expecting_end or self.forcing:
            return True
        return self._stopped() and not self.paths.marker.exists() and not status

    def _process_ended(self, name: str, pid: int, status: int | None) -> None:
        if self._in_order(status):
            return
        reaction = "no process of the module decides any more: they are started again"
        if name == SUPERVISORD and self._watched.heart:
            reaction = "heart will stop and start the module under a new one"
        elif name == "heart" and self._watched.supervised:
            reaction = "its supervisor starts it again, and it takes up the state in the resource file"
        shown = "supervisord" if name == SUPERVISORD else name
        self.log.event("process_died", name=shown, pid=pid, status=describe_status(status), reaction=reaction)
        if not self._watched.anything:
            self._beside.start(self.rescue())

    async def rescue(self) -> None:
        """M5: supervisord and heart are both gone while the module runs: start them again. heart takes up the
        role that the resource file tells."""
        async with self._lock:
            if self.running or not self.interrupted():
                return
            if self._too_often():
                return
            # nfsbox and vipd serve the application: what becomes of them is heart's decision, not ours.
            await end_processes(product(self.name, lambda name: name == "circlog"))
            try:
                await self._begin()
            except BusError as error:
                self.log.event("internal", text=f"the module's processes could not be started again: {error.text}")

    def _too_often(self) -> bool:
        """Count one more start that nobody asked for; True when there were so many that it is not made."""
        now = time.monotonic()
        if len(self._respawns) == MAX_RESPAWNS and now - self._respawns[0] < RESPAWN_SECONDS:
            self.log.event(
                "internal",
                text=f"supervisord and heart died, or were silent, {MAX_RESPAWNS} times within"
                f" {RESPAWN_SECONDS / 60:.0f} minutes: they are not started again; safekit forcestop -m {self.name},"
                " then start",
            )
            return True
        self._respawns.append(now)
        return False

    async def _give_up(self, seconds: float) -> None:
        """M1: heart has been silent for as long as the other server waits."""
        self.log.event("heart_silent", seconds=f"{seconds:.0f}")
        asked = self._forcing.asked
        await self._forcing.run("safeadmin", announce=True)
        if self._forcing.asked != asked + 1:
            self.log.event("internal", text="the module is not started again: somebody asked to stop it meanwhile")
            return
        if self._too_often():
            return
        try:
            await self.start(Control("start", "automatic"))
        except BusError as error:
            self.log.event("internal", text=f"the module could not be started again: {error.text}")

    # Starting and ending

    async def start(self, order: Control) -> None:
        """Start the processes of a stopped module and hand the command to its heart.

        Raises BusError with what failed and where to look."""
        async with self._lock:
            self.adopt()
            if self.running and not await self._watched.until(lambda: not self.running, LAST_WORK_SECONDS):
                await self.forward(order)
                return
            await self._startup.clear_leftovers()
            self._startup.look_for_obstacles()
            await self._begin()
            try:
                await self.forward(order)
            except BusError:
                self._beside.start(self._retire())
                raise

    async def _begin(self) -> None:
        try:
            await self._startup.begin()
        except BusError as error:
            if error.code == "no_heart":
                self._beside.start(self._retire())
            raise

    async def _retire(self) -> None:
        """End a supervisord whose heart refused to start, unless the module runs after all."""
        if self._stopped() and self._watched.supervised:
            await self._startup.end()

    async def ended(self) -> None:
        """heart says that the module has stopped. Before it gets the answer and leaves, supervisord must know,
        or it would start another heart."""
        if self._watched.supervised:
            await self._startup.dismiss()
            self._beside.start(self._startup.end())

    async def respawn(self, order: Control) -> None:
        """heart has stopped the module because its supervisord died: when heart is gone, start again."""
        if not await self._watched.until(lambda: not self.heart, LAST_WORK_SECONDS):
            await end_processes(product(self.name, lambda name: name == "heart"))
        async with self._lock:
            try:
                if not self._watched.supervised:
                    await self._startup.clear_leftovers()
                    await self._begin()
                await self.forward(order)
            except BusError as error:
                if error.code != "already":  # it was, by the new processes themselves
                    self.log.event("internal", text=f"the module could not be started again: {error.text}")

    # Asking

    async def forward(self, order: Control) -> None:
        """Give a command to heart. Raises BusError: heart's refusal, or that it does not answer."""
        try:
            await self._bus.ask(self.name, order, ANSWER_SECONDS)
        except (BusTimeout, UnknownTarget):
            raise BusError(
                "heart_hangs",
                f"heart of module {self.name} does not answer; if this lasts: safekit forcestop -m {self.name}",
            ) from None

    async def stop(self, action: str, who: str, bound: float) -> None:
        """Orderly stop; forced when it does not end within `bound` seconds. Returns when it is done."""
        try:
            await self.forward(Control(action, who))
        except BusError as error:
            self.log.event("internal", text=f"{action}: {error.text}")
            await self._forcing.run(who, announce=False)
            return
        if not await self._watched.until(lambda: not self.running, bound):
            self.log.event("internal", text=f"{action}: not stopped after {bound:.0f} s, it is forced")
            await self._forcing.run(who, announce=False)

    async def forcestop(self, order: Control) -> None:
        """The way out: asks heart, and does without it when it hangs, is gone, or is asked again."""
        self.adopt()
        await self._forcing.ask(order)

    def close(self) -> None:
        """Stop watching; the module goes on."""
        self._watched.close()
        self._beside.cancel()

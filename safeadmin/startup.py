"""How the processes of a module begin and end: its supervisord, and the heart that it starts."""

from __future__ import annotations

import contextlib
import time

from safeadmin.mapper import Mapper
from safeadmin.modules import Registry
from safeadmin.obstacles import obstacle
from safeadmin.processes import SUPERVISORD, end_processes, product
from safeadmin.watched import Watched
from safekit.bus.message import BusError
from safekit.disk.paths import ModulePaths
from safekit.model.checkers import checkers
from safekit.model.types import ModuleConfig
from safekit.net import addresses
from safekit.process.frame import Unconfigured, load_cluster
from safekit.process.supervision import Supervisor, SupervisorError, module_programs, spawn, write_configuration
from safekit.process.table import start_time

HEART_SECONDS = 15.0
"""Until a heart that was just started must be on the bus."""
MAX_FAILURES = 4
"""Looks (every half second) that find heart ended, until starting it is given up."""
LAST_WORK_SECONDS = 20.0
"""Until the processes of a module that has stopped must be gone."""


class Startup:
    """Of one module. `expecting_end`: supervisord was told to end, so its end and heart's are no deaths."""

    def __init__(self, name: str, node: str, registry: Registry, mapper: Mapper, watched: Watched) -> None:
        self._name, self._node = name, node
        self._registry, self._mapper, self._watched = registry, mapper, watched
        self._paths = ModulePaths(name)
        self.expecting_end = False

    def look_for_obstacles(self) -> None:
        """Raises BusError when something that heart would stumble over is in the way."""
        module = self._registry.get(self._name)
        if module is None or module.config is None:
            return
        try:
            found = obstacle(module.config, load_cluster(), self._node)
        except Unconfigured as error:
            raise BusError("no_cluster", str(error)) from None
        if found:
            raise BusError("cannot_start", found)

    async def clear_leftovers(self) -> None:
        """Processes of an earlier life of a stopped module would be in the way: they hold its ports."""
        await end_processes(product(self._name, lambda name: name != SUPERVISORD))

    async def begin(self) -> None:
        """Start supervisord, and wait until heart is on the bus. Raises BusError with what failed and where to look."""
        config = self._config()
        self.expecting_end = False
        try:
            write_configuration(
                self._name,
                module_programs(config, checkers(config, addresses.local_interfaces())),
                {"SAFENODE": self._node},
            )
            child = spawn(self._name)
        except OSError as error:
            raise BusError(
                "cannot_start", f"supervisord cannot be started: {error}; free space, or run safekitinstall again"
            ) from None
        born = start_time(child.pid)
        # The watch reaps it; the object must not complain about a child that it did not wait for.
        child.returncode = 0
        if born is not None:
            self._watched.watch(SUPERVISORD, child.pid, born)
        why = await self._wait_for_heart()
        if why:
            raise BusError(
                "no_heart",
                f"module {self._name}: its processes were started, but heart {why}; see {self._paths.log_dir}/heart.log"
                f" and {self._paths.log_dir}/supervisord.log",
            )

    def _config(self) -> ModuleConfig:
        module = self._registry.get(self._name)
        if module is None or module.config is None:
            text = module.problem if module is not None else ""
            raise BusError(
                "not_configured", text or f"module {self._name} is not configured; safekit config -m {self._name}"
            )
        return module.config

    async def _wait_for_heart(self) -> str:
        """Until a heart that was just started is on the bus; "" then, else what is wrong with it."""
        failures, deadline = 0, time.monotonic() + HEART_SECONDS
        supervisor, watched = Supervisor(self._paths.supervisor_sock), self._watched
        while time.monotonic() < deadline:
            if await watched.until(lambda: not watched.supervised or self._registered(), 0.5):
                return "" if self._registered() else "has no supervisor: supervisord has ended"
            with contextlib.suppress(SupervisorError, KeyError):
                info = (await supervisor.states())["heart"]
                failures += info.state in ("BACKOFF", "FATAL", "EXITED")
                if failures >= MAX_FAILURES:
                    return f"ends at once, exit status {info.exit_status}"
        return "does not answer"

    def _registered(self) -> bool:
        return self._mapper.lookup(f"{self._name}/heart") is not None

    async def dismiss(self) -> None:
        """From here on supervisord starts nothing any more; it ends when its processes have ended."""
        self.expecting_end = True
        with contextlib.suppress(SupervisorError):
            await Supervisor(self._paths.supervisor_sock).shutdown()

    async def end(self) -> None:
        """End supervisord and what it runs, with force when that takes too long."""
        await self.dismiss()
        if not await self._watched.until(lambda: not self._watched.anything, LAST_WORK_SECONDS):
            await end_processes(product(self._name))

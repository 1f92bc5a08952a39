"""The forced stop of one module: asked of heart first, done without it when it hangs, is gone, or is asked again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from safeadmin import forcestop
from safeadmin.modules import Registry
from safeadmin.watched import Watched
from safekit.bus.endpoint import Endpoint
from safekit.bus.message import BusError
from safekit.bus.requests.heart import Control
from safekit.log.module import ModuleLog
from safekit.model.types import ModuleConfig, User
from safekit.process.tasks import Beside

IMPATIENCE_SECONDS = 600.0
"""A second forcestop within this time no longer waits for heart."""


class Forcing:
    """`forward` gives a command to heart, and raises BusError when it does not take it."""

    def __init__(
        self,
        name: str,
        log: ModuleLog,
        registry: Registry,
        bus: Endpoint,
        watched: Watched,
        beside: Beside,
        forward: Callable[[Control], Awaitable[None]],
    ) -> None:
        self._name, self._log, self._registry, self._bus = name, log, registry, bus
        self._watched, self._beside, self._forward = watched, beside, forward
        self._task: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self.asked = 0
        """How many have asked for a forced stop, also while one was at work."""

    @property
    def active(self) -> bool:
        """A forced stop is at work."""
        return self._task is not None and not self._task.done()

    async def ask(self, order: Control) -> None:
        """What `safekit forcestop` does; returns when it has begun."""
        who = order.identity or order.who
        impatient = time.monotonic() - self._asked_at < IMPATIENCE_SECONDS
        self._asked_at = time.monotonic()
        if self._watched.heart and not impatient:
            with contextlib.suppress(BusError):
                await self._forward(order)
                self._beside.start(self._later(who, self._patience()))
                return
        self._beside.start(self.run(who, announce=True))

    def _config(self) -> ModuleConfig | None:
        module = self._registry.get(self._name)
        return module.config if module is not None else None

    def _patience(self) -> float:
        """How long the forced stop scripts may take at most, and a margin."""
        config = self._config()
        user = config.user if config is not None else None
        return 30.0 + len(forcestop.SCRIPTS) * (user or User()).forcestoptimeout

    async def _later(self, who: str, bound: float) -> None:
        if not await self._watched.until(lambda: not (self._watched.anything or self.active), bound):
            await self.run(who, announce=False)

    async def run(self, who: str, *, announce: bool) -> None:
        """Stop without heart. A second call waits for the first."""
        self.asked += 1
        if not self.active:
            stop = forcestop.run(self._name, who, self._log, self._config(), self._bus, announce)
            self._task = self._beside.start(stop)
            self._task.add_done_callback(lambda _: self._done())
            self._watched.notify()
        assert self._task is not None
        await asyncio.wait([self._task])

    def _done(self) -> None:
        self._asked_at = float("-inf")
        self._watched.notify()

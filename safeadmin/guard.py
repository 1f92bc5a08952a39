"""The application of a primary does not go on for long without a heart that lives.

The loop that answers here sends the heartbeats too: when it has been silent for as long as the other server waits for
them, that one takes the application over, and here nobody is left who stops it. safeadmin does then, by force (M5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from safekit.bus.endpoint import Endpoint
from safekit.bus.message import BusError
from safekit.bus.requests.heart import Ping
from safekit.model.types import ModuleConfig

LOOKS = 6
"""Questions within one time-out."""
SHORTEST, LONGEST = 0.25, 1.0
"""Seconds between two questions."""
PATIENCE = 3
"""A question is waited for as long as this part of the time-out: who is slow, but sends heartbeats, is not silent."""


def silence_allowed(config: ModuleConfig | None) -> float:
    """Seconds after which the other server goes on alone; 0 where none does."""
    if config is None or config.service.mode != "mirror" or config.heart is None:
        return 0.0
    return max((beat.timeout_ms for beat in config.heart.heartbeats), default=0) / 1000


class Guard:
    """Of one module. `serves`: it runs here, and another server would take it over. `give_up` stops the application
    after so many seconds of silence."""

    def __init__(
        self,
        name: str,
        bus: Endpoint,
        config: Callable[[], ModuleConfig | None],
        serves: Callable[[], bool],
        give_up: Callable[[float], Awaitable[None]],
    ) -> None:
        self._name, self._bus = name, bus
        self._config, self._serves, self._give_up = config, serves, give_up

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            allowed = silence_allowed(self._config())
            period = min(max(allowed / LOOKS, SHORTEST), LONGEST)
            begun = loop.time()
            await asyncio.sleep(period)
            within = max(min(allowed / PATIENCE, heard + allowed + period - loop.time()), period)
            if not allowed or await self._answers(within) or not self._serves():
                heard = loop.time()
                continue
            # A safeadmin that stood still itself has missed nothing meanwhile (M4).
            heard += max(loop.time() - begun - period - within, 0.0)
            # Its last heartbeat may be later than its last answer, but not later than the next question.
            if loop.time() - heard >= allowed + period:
                await self._give_up(loop.time() - heard)
                heard = loop.time()

    async def _answers(self, within: float) -> bool:
        try:
            await self._bus.ask(self._name, Ping(), within)
        except BusError:
            return False
        return True

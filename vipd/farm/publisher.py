"""Tells heart the shares of this server, until it has taken them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NoReturn

from safekit.bus.endpoint import BusError
from safekit.bus.requests.heart import SetResource
from safekit.process.frame import Context

HEART_SECONDS = 1.0


class Publisher:
    """The resources of a farm, as heart has them. `values()` gives them as they are now."""

    def __init__(self, context: Context, values: Callable[[], Mapping[str, str]]) -> None:
        self._context, self._values = context, values
        self._taken: dict[str, str] = {}
        self._due = asyncio.Event()

    def changed(self) -> None:
        """Other values: `run` tells them."""
        self._due.set()

    async def run(self) -> NoReturn:
        """Tell what has changed, again and again while heart does not answer."""
        while True:
            await self._due.wait()
            self._due.clear()
            if not await self.tell(self._values()):
                await asyncio.sleep(HEART_SECONDS)
                self._due.set()

    async def tell(self, values: Mapping[str, str]) -> bool:
        """Tell heart these values; whether it has taken them all."""
        try:
            for name, value in values.items():
                if self._taken.get(name) != value:
                    await self._context.bus.ask(self._context.module, SetResource(name, value, "vipd"), HEART_SECONDS)
                    self._taken[name] = value
        except BusError:
            return False
        return True

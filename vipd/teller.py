"""Tells arpreroute what it has to repeat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NoReturn

from safekit.bus.endpoint import BusError
from safekit.bus.requests.arpreroute import Announce
from safekit.process.frame import Context
from vipd.announce import Announcement

TRIES = 5


class Teller:
    """`changed` is set when the announcements have changed. arpreroute also asks when it starts, so that
    telling may fail."""

    def __init__(self, context: Context, announcements: Callable[[], list[Announcement]]) -> None:
        self._context, self._announcements = context, announcements
        self.changed = asyncio.Event()

    async def run(self) -> NoReturn:
        """For ever."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            for _ in range(TRIES):
                told = tuple(announcement.to_fields() for announcement in self._announcements())
                try:
                    await self._context.bus.ask(self._context.module, Announce(told), 1.0)
                    break
                except BusError:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.changed.wait(), 1.0)

"""What the checkers share: say a resource's value to heart until heart has taken it, probe at an interval or
when something wakes us, and stop at once when told to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from safekit.bus import BusError
from safekit.process import Context

HEART_TIMEOUT = 2.0
RETRY = 0.2
REPEAT = 30.0

Configured = TypeVar("Configured")


def configured(context: Context, items: Iterable[Configured], ident: str) -> Configured:
    """The checker of that ident in the active configuration.

    Raises KeyError when the configuration no longer has it: heart then no longer starts it either.
    """
    for item in items:
        if getattr(item, "ident", None) == ident:
            return item
    raise KeyError(f"{context.name} {ident} is not in the configuration of module {context.module}")


class Reporter:
    """Sets one resource through heart, in the name of this checker.

    The last value wins, and is repeated now and then, so that a restarted heart learns it. heart logs changes
    only.
    """

    def __init__(self, context: Context, resource: str) -> None:
        self.context = context
        self.resource = resource
        self.value: str | None = None
        self._changed = asyncio.Event()

    def set(self, up: bool) -> None:
        """Say up or down; returns at once."""
        value = "up" if up else "down"
        if value != self.value:
            self.value = value
            self._changed.set()

    async def run(self) -> None:
        """Deliver for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), REPEAT)
            self._changed.clear()
            while self.value is not None and not await self._deliver(self.value):
                await asyncio.sleep(RETRY)

    async def _deliver(self, value: str) -> bool:
        try:
            await self.context.bus.request(
                f"{self.context.module}/heart",
                "set",
                HEART_TIMEOUT,
                resource=self.resource,
                value=value,
                who=self.context.name,
            )
        except BusError as error:
            self.context.log.debug(f"{self.context.name}: {self.resource} {value} not delivered yet: {error}")
            return False
        return True


async def until_stopped(context: Context, *work: Awaitable[None]) -> None:
    """Run `work` until the process is told to stop; a defect in it ends the process, which is then
    restarted by its supervisor."""
    stopping = asyncio.ensure_future(context.stopping.wait())
    tasks = [asyncio.ensure_future(item) for item in work]
    done, pending = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


async def probe_periodically(
    reporter: Reporter,
    probe: Callable[[], Awaitable[bool]],
    interval: float,
    wake: asyncio.Event | None = None,
) -> None:
    """Probe now, then every `interval` seconds from start to start, and whenever `wake` is set."""
    loop = asyncio.get_running_loop()
    while True:
        begin = loop.time()
        reporter.set(await probe())
        delay = max(begin + interval - loop.time(), 0.0)
        if wake is None:
            await asyncio.sleep(delay)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), delay)
            wake.clear()


async def resolve(name: str, port: int, kind: int) -> list[tuple[int, tuple[str, int]]]:
    """(family, address) of a name or literal address, in the resolver's order.

    Raises OSError when the name is unknown. The resolver runs in a thread: it may block for long.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, port, type=kind)
    return [(family, (str(address[0]), port)) for family, _, _, _, address in found
            if family in (socket.AF_INET, socket.AF_INET6)]  # fmt: skip

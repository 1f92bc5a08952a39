"""What the checkers share: say a resource's value to heart until heart has taken it, probe at an interval or
when something wakes us, and stop at once when told to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from safekit.bus.endpoint import BusError
from safekit.bus.requests.heart import SetResource
from safekit.process.frame import Context, NotConfigured

HEART_TIMEOUT = 2.0
RETRY = 0.2
REPEAT = 30.0
RESOLVE_SECONDS = 0.5

Configured = TypeVar("Configured")


def configured(context: Context, items: Iterable[Configured], ident: str) -> Configured:
    """The checker of that ident in the active configuration.

    Raises NotConfigured when the configuration no longer has it: heart then no longer starts it either.
    """
    for item in items:
        if getattr(item, "ident", None) == ident:
            return item
    raise NotConfigured(f"{context.name} {ident} is not in the configuration of module {context.module}")


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
        self._probes = self._failures = 0
        self._seconds = 0.0
        context.figures = self._figures

    def probed(self, up: bool, seconds: float) -> None:
        """The answer to a probe, and how long it took."""
        self._probes += 1
        self._failures += not up
        self._seconds = seconds
        self.set(up)

    def _figures(self) -> dict[str, Any]:
        if not self._probes:
            return {}
        counts = {"probes": self._probes, "failures": self._failures}
        return {"checker": {"resource": self.resource, "seconds": round(self._seconds, 6), **counts}}

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
            order = SetResource(self.resource, value, self.context.name)
            await self.context.bus.ask(self.context.module, order, HEART_TIMEOUT)
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
        up = await probe()
        reporter.probed(up, loop.time() - begin)
        delay = max(begin + interval - loop.time(), 0.0)
        if wake is None:
            await asyncio.sleep(delay)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), delay)
            wake.clear()


Addresses = list[tuple[int, tuple[str, int]]]
"""(family, (literal, port))."""
_known: dict[tuple[str, int, int], Addresses] = {}
_asking: dict[tuple[str, int, int], asyncio.Future[Addresses]] = {}


async def resolve(name: str, port: int, kind: int) -> Addresses:
    """(family, (literal, port)) of a name or literal address, in the resolver's order.

    A name service that is away is no fault of what is checked: the addresses that the name had are used while it
    does not answer, or takes longer than RESOLVE_SECONDS. Raises OSError when the name was never known.
    """
    key = (name, port, kind)
    asked = _asking.get(key)
    if asked is None or asked.done():
        asked = _asking[key] = asyncio.ensure_future(_ask(name, port, kind))
        # the failure of a look-up may come when nobody waits for it any more
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        if key in _known:
            _known[key] = await asyncio.wait_for(asyncio.shield(asked), RESOLVE_SECONDS)
        else:
            _known[key] = await asyncio.shield(asked)
    except (TimeoutError, OSError):
        if key not in _known:
            raise
    return _known[key]


async def _ask(name: str, port: int, kind: int) -> Addresses:
    """A thread of its own asks the resolver, which may block for long: the end of this process does not wait for it."""
    with contextlib.suppress(OSError):
        return _addresses(socket.getaddrinfo(name, port, type=kind, flags=socket.AI_NUMERICHOST))
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Addresses] = loop.create_future()

    def settle(found: Addresses | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: Addresses | OSError
        try:
            found = _addresses(socket.getaddrinfo(name, port, type=kind))
        except (OSError, UnicodeError) as error:
            found = error if isinstance(error, OSError) else OSError(f"{name!r} is no host name: {error}")
        with contextlib.suppress(RuntimeError):
            # the loop may have ended meanwhile
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=ask, daemon=True).start()
    return await answer


def _addresses(found: Iterable[tuple[Any, ...]]) -> Addresses:
    return [(family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found
            if family in (socket.AF_INET, socket.AF_INET6)]  # fmt: skip

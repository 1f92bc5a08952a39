"""A primary whose heart is silent is given up, one whose heart is slow is not. The clock jumps to what is next."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

import pytest

from safeadmin.guard import Guard
from safekit.bus.message import BusTimeout
from safekit.model.types import Heart, Heartbeat, ModuleConfig

TIMEOUT = 30.0
CONFIG = ModuleConfig("am", 1, heart=Heart((Heartbeat("default", "default", 8888, timeout_ms=int(TIMEOUT * 1000)),)))


class Loop(asyncio.SelectorEventLoop):
    """Its time passes where it would wait."""

    def __init__(self) -> None:
        super().__init__(Jump(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class Jump(selectors.DefaultSelector):
    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self.loop.now += timeout or 0.0
        return super().select(0)


class Bus:
    """heart answers after so many seconds, at that time."""

    def __init__(self, latency: Callable[[float], float]) -> None:
        self.latency = latency

    async def ask(self, module: str, ask: Any, within: float) -> None:
        latency = self.latency(asyncio.get_running_loop().time())
        await asyncio.sleep(min(latency, within))
        if latency > within:
            raise BusTimeout(module, ask.op, within)


def given_up(latency: Callable[[float], float], seconds: float) -> list[float]:
    """When, on that clock, within so many seconds."""
    found: list[float] = []

    async def give_up(_silent: float) -> None:
        found.append(asyncio.get_running_loop().time())

    async def main() -> None:
        bus: Any = Bus(latency)
        guard = asyncio.ensure_future(Guard("am", bus, lambda: CONFIG, lambda: True, give_up).run())
        await asyncio.sleep(seconds)
        guard.cancel()

    loop = Loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    return found


@pytest.mark.parametrize("latency", [0.0, 0.9, 1.5, 5.0])
def test_a_slow_heart_is_no_silent_one(latency: float) -> None:
    """On a machine that is loaded it answers late, and sends its heartbeats: nobody takes over."""
    assert given_up(lambda _: latency, 20 * TIMEOUT) == []


@pytest.mark.parametrize("lived", [0.0, 3.3, 100.0])
def test_a_silent_heart_is_given_up_after_the_time_out(lived: float) -> None:
    silent = TIMEOUT * 1000
    (at,) = given_up(lambda now: 0.0 if now <= lived else silent, lived + TIMEOUT + 4)
    assert lived + TIMEOUT - 1 <= at <= lived + TIMEOUT + 2

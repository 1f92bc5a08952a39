"""Waiting in a test that runs an event loop of its own; all others wait with lab.waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(
    condition: Callable[[], object],
    timeout: float = 10.0,
    what: str | Callable[[], object] = "",
    interval: float = 0.01,
) -> float:
    """Wait for a condition; the seconds that it took. Raises TimeoutError with `what` (a function gives it from what
    is known by then) when it does not hold after `timeout` seconds."""
    begin = time.monotonic()
    while True:
        late = time.monotonic() - begin >= timeout
        if condition():
            return time.monotonic() - begin
        if late:
            raise TimeoutError(f"not within {timeout:g} s: {what if isinstance(what, str) else what()}")
        await asyncio.sleep(interval)

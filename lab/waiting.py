"""Waiting for what other processes bring about, for labs and tests: never longer than told, and with a name for what
did not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def wait_until(
    condition: Callable[[], _T], timeout: float = 10.0, what: str | Callable[[], str] = "", interval: float = 0.02
) -> _T:
    """The first true value of `condition`, which is asked every `interval` seconds and once more when `timeout`
    seconds have passed. Raises TimeoutError with `what` (a function gives it from what is known by then)."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if late:
            raise TimeoutError(f"not within {timeout:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(interval)

"""A change of key while a module runs: no datagram is refused on the way (guide 10.4)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from safekit.wire.keys import wire_keys

SWITCH_SECONDS = 30.0
"""How long a running process goes on sealing with the former key: time for every server to have the new one."""
FOLLOW_SECONDS = 2.0


class Rotation:
    """The keys with which a running process seals (the first) and opens (all), through a change of key.

    The servers learn of a new key one after the other. Each goes on sealing with the former key until all of
    them can open the new one, so that no datagram is refused on the way. Pure.
    """

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self.keys = keys
        self._next: bytes | None = None
        self._since = 0.0

    def look(self, found: tuple[bytes, ...], now: float) -> bool:
        """Take in what `wire_keys` tells at monotonic time `now`; True when `keys` changed."""
        if found[0] == self.keys[0]:
            self._next, wanted = None, found
        else:
            if found[0] != self._next:
                # A change that follows another one gives the servers their time again.
                self._next, self._since = found[0], now
            former = self.keys[0]
            switched = now - self._since >= SWITCH_SECONDS or former not in found
            wanted = found if switched else (former, *(key for key in found if key != former))
        changed, self.keys = wanted != self.keys, wanted
        return changed


async def follow_keys(module: str, rotation: Rotation, changed: Callable[[], None]) -> None:
    """Call `changed` each time the keys of a rotation change, for ever."""
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        with contextlib.suppress(OSError, ValueError):
            if rotation.look(wire_keys(module), time.monotonic()):
                changed()

"""Guesses of passwords: who has to wait, and whose turn it is (guide 11.4.4 has neither).

Nobody can lock out somebody else: what is counted against an account counts for the address that guessed, never for
the account as a whole. An account under attack from many addresses is asked slowly from addresses that never had its
password; from those that had, as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from safekit.wire.proof import guesser

FREE = 5
"""Wrong passwords for one account from one address before it has to wait."""
FREE_ADDRESS = 20
"""The same for all accounts together."""
FREE_ACCOUNT = 50
"""Wrong passwords for one account from everywhere, from which on addresses that never had it are slow."""
MAX_WAIT = 300.0
FORGET_SECONDS = 900.0
SLOW_SECONDS = 2.0
MAX_ENTRIES = 10_000
AT_ONCE = 2
MAX_QUEUE = 200
MAX_QUEUE_ADDRESS = 10


class Wait(Exception):
    """Too many wrong passwords: not before `seconds` have passed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong passwords; try again in {seconds:.0f} s")
        self.seconds = seconds


class Busy(Exception):
    """Too many passwords are being checked."""


@dataclass(frozen=True)
class _Count:
    wrong: int
    last: float


class Guesses:
    """What was guessed lately. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str], _Count] = OrderedDict()
        self._friends: OrderedDict[tuple[str, str], float] = OrderedDict()

    def check(self, account: str, address: str, now: float) -> float:
        """Seconds by which an answer is to be delayed. Raises Wait."""
        place = guesser(address)
        wait = max(
            self._wait((account, place), FREE, now),
            self._wait(("", place), FREE_ADDRESS, now),
        )
        if wait > 0:
            raise Wait(wait)
        attacked = self._count((account, ""), now).wrong >= FREE_ACCOUNT
        return SLOW_SECONDS if attacked and (account, place) not in self._friends else 0.0

    def wrong(self, account: str, address: str, now: float) -> None:
        """A wrong password."""
        for key in _counted(account, address):
            self._counts[key] = _Count(self._count(key, now).wrong + 1, now)
            self._counts.move_to_end(key)
        _bound(self._counts)

    def withdraw(self, account: str, address: str, now: float) -> None:
        """What was noted as wrong, once, turned out to be right: a proof counts until it is finished."""
        for key in _counted(account, address):
            count = self._count(key, now)
            if count.wrong:
                self._counts[key] = replace(count, wrong=count.wrong - 1)

    def right(self, account: str, address: str, now: float) -> None:
        """A right one. What was guessed from there for other accounts stays counted."""
        place = guesser(address)
        self._counts.pop((account, place), None)
        self._friends[account, place] = now
        self._friends.move_to_end((account, place))
        _bound(self._friends)

    def rank(self, account: str, address: str, now: float) -> int:
        """Whose password is checked first: the lower number's."""
        place = guesser(address)
        return -1 if (account, place) in self._friends else self._count(("", place), now).wrong

    def _count(self, key: tuple[str, str], now: float) -> _Count:
        found = self._counts.get(key)
        return found if found is not None and now - found.last < FORGET_SECONDS else _Count(0, now)

    def _wait(self, key: tuple[str, str], free: int, now: float) -> float:
        count = self._count(key, now)
        if count.wrong < free:
            return 0.0
        return count.last + min(2.0 ** min(count.wrong - free, 20), MAX_WAIT) - now


def _counted(account: str, address: str) -> tuple[tuple[str, str], ...]:
    """What a guess is counted against."""
    place = guesser(address)
    return (account, place), ("", place), (account, "")


def _bound(entries: OrderedDict[tuple[str, str], _Count] | OrderedDict[tuple[str, str], float]) -> None:
    while len(entries) > MAX_ENTRIES:
        entries.popitem(last=False)


class Turns:
    """AT_ONCE at a time, by rank, then by address and by arrival; what waits longest in vain is never an honest one:
    when too many wait, the last of the highest rank is sent away."""

    def __init__(self) -> None:
        self._free = AT_ONCE
        self._arrived = 0
        self._queue: list[tuple[int, int, int, str, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def turn(self, rank: int, address: str) -> AsyncIterator[None]:
        """Wait for a turn and have it. Raises Busy."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(rank, guesser(address))
        try:
            yield
        finally:
            self._next()

    async def _wait(self, rank: int, place: str) -> None:
        before = sum(1 for each in self._queue if each[3] == place)
        if before >= MAX_QUEUE_ADDRESS:
            raise Busy
        self._arrived += 1
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (rank, before, self._arrived, place, waiting))
        if len(self._queue) > MAX_QUEUE:
            last = max(self._queue)
            self._queue.remove(last)
            heapq.heapify(self._queue)
            last[4].set_exception(Busy())
        try:
            await waiting
        except asyncio.CancelledError:
            self._left(waiting)
            raise

    def _left(self, waiting: asyncio.Future[None]) -> None:
        """Somebody does not wait any more; a turn that he had been given goes to the next one."""
        if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
            self._next()
            return
        self._queue = [each for each in self._queue if each[4] is not waiting]
        heapq.heapify(self._queue)

    def _next(self) -> None:
        while self._queue:
            waiting = heapq.heappop(self._queue)[4]
            if not waiting.done():
                waiting.set_result(None)
                return
        self._free += 1

"""The supervisord and the heart of one module: whether they run, and who waits for that to change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from safeadmin.processes import SUPERVISORD, Kind, Member, Watch

Ended = Callable[[str, int, int | None], None]


class Watched:
    """`ended(name, pid, wait status)` is called when one of the two ends, `changed` whenever one comes or goes."""

    def __init__(self, ended: Ended, changed: Callable[[], None]) -> None:
        self._ended, self._changed = ended, changed
        self._watches: dict[str, Watch] = {}
        self._event = asyncio.Event()

    @property
    def supervised(self) -> bool:
        """A supervisord of the module runs."""
        return self._alive(SUPERVISORD)

    @property
    def heart(self) -> bool:
        """A heart of the module runs; it may hang."""
        return self._alive("heart")

    @property
    def anything(self) -> bool:
        """One of the two runs."""
        return self.supervised or self.heart

    def _alive(self, name: str) -> bool:
        watch = self._watches.get(name)
        return watch is not None and watch.alive

    def adopt(self, members: Iterable[Member]) -> None:
        """Watch those of a module's processes that are not watched yet."""
        for member in members:
            if member.kind is Kind.PRODUCT and member.name in (SUPERVISORD, "heart") and not self._alive(member.name):
                self.watch(member.name, member.pid, member.born)

    def heart_registered(self, pid: int, born: int) -> None:
        """heart told the mapper where it is."""
        if not self.heart or self._watches["heart"].pid != pid:
            self.watch("heart", pid, born)
        self.notify()

    def watch(self, name: str, pid: int, born: int) -> None:
        """This process is the module's supervisord, or heart, from now on."""

        def ended(status: int | None) -> None:
            if self._watches.get(name) is watch:
                del self._watches[name]
            self._ended(name, pid, status)
            self.notify()

        with contextlib.suppress(ProcessLookupError):
            watch = Watch(pid, born, ended)
            former = self._watches.get(name)
            if former is not None:
                former.close()
            self._watches[name] = watch
        self.notify()

    def notify(self) -> None:
        """Something has changed that somebody may wait for."""
        event, self._event = self._event, asyncio.Event()
        event.set()
        self._changed()

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait for a change that makes the condition true; False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._event.wait()
        except TimeoutError:
            return condition()
        return True

    def close(self) -> None:
        """Stop watching; the processes go on."""
        for watch in self._watches.values():
            watch.close()

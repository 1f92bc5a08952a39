"""What nfsadmin asks of nfsbox and heart, and how it notices at once that nfsbox has died under a question."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from nfsbox.admin.watch import Watch
from safekit.bus.asking import Answer, Ask
from safekit.bus.endpoint import BusError, BusTimeout, UnknownTarget
from safekit.bus.requests import heart, nfsbox
from safekit.process.frame import Context

#: Seconds within which a started nfsbox must answer.
START_S: Final = 20.0
#: Seconds after which a nfsbox that does not answer is asked for once more.
AGAIN_S: Final = 2.0
#: Seconds for operations that mount, flush disks or wait for the peer.
LONG_S: Final = 120.0
#: Tries to tell heart something, and seconds between two: a heart that is restarted answers well within them.
TOLD_TRIES: Final = 30
TOLD_S: Final = 0.5


class Died(BusError):
    """nfsbox died in the middle of an operation."""


class Asking:
    """The bus as nfsadmin uses it. `attempt` is heart's name for the synchronisation that it asked for last."""

    def __init__(self, context: Context, on_death: Callable[[int | None], None]) -> None:
        """`on_death` is called with the process number of a watched nfsbox that ended, None when it was missed."""
        self.context = context
        self.attempt = ""
        self._on_death = on_death
        self._watch: Watch | None = None
        self._died = asyncio.Event()
        self._beside = context.beside()

    # --- nfsbox -------------------------------------------------------------------------------------------

    async def nfsbox(self, ask: Ask[Answer], timeout: float = LONG_S) -> Answer:
        """An operation of nfsbox. Raises BusError, Died when it dies before it answers."""
        if self._watch is None:
            return await self._ask(ask, timeout)
        answer = await self.unless_it_dies(ask, timeout)
        if answer is None:
            raise Died("nfsbox", f"nfsbox died before it answered {ask.op}")
        return answer

    async def unless_it_dies(self, ask: Ask[Answer], timeout: float = LONG_S) -> Answer | None:
        """An operation of nfsbox; None when nfsbox dies before it answers. Raises BusError."""
        if self._watch is None:
            return None
        asked = asyncio.ensure_future(self._ask(ask, timeout))
        died = asyncio.ensure_future(self._died.wait())
        try:
            await asyncio.wait((asked, died), return_when=asyncio.FIRST_COMPLETED)
            return await asked if asked.done() else None
        finally:
            asked.cancel()
            died.cancel()

    async def find(self) -> None:
        """Watch the running nfsbox; wait for one that is starting, and have one that died meanwhile started again.
        Raises BusError."""
        deadline = time.monotonic() + START_S
        again = time.monotonic() + AGAIN_S
        while True:
            try:
                pid = (await self.nfsbox(nfsbox.Ping(), 1.0)).pid
                if self._watch is None or self._watch.pid != pid:
                    self.unwatch()
                    self._watch = Watch(pid, self.ended)
                    self._died.clear()
                return
            except (BusTimeout, UnknownTarget, Died, ProcessLookupError) as error:
                if time.monotonic() > deadline:
                    raise BusError("nfsbox", f"nfsbox does not answer ({error}): see log/nfsbox.log") from None
                if time.monotonic() > again:
                    again = time.monotonic() + AGAIN_S
                    try:
                        await self.process("nfsbox", True)  # one that lives is left alone
                    except BusError as refused:
                        self.context.log.debug(f"nfsbox was not asked for again: {refused.text}")
                await asyncio.sleep(0.1)

    def ended(self, pid: int | None) -> None:
        """nfsbox is gone: whoever waits for an answer of it stops waiting, then its death is dealt with."""
        self._watch = None
        self._died.set()
        self._on_death(pid)

    def unwatch(self) -> None:
        """The end of nfsbox is wanted from here on, or it is another one that matters."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    # --- heart --------------------------------------------------------------------------------------------

    def tell_heart(self, kind: str, reason: str = "") -> None:
        """An event for heart, repeated until heart has it: heart may be restarting."""
        self.spawn(self._tell_heart(heart.Event(kind, reason, self.attempt)))

    def set_resource(self, name: str, value: str) -> None:
        """A resource in heart's file."""
        self.spawn(self._tell_heart(heart.SetResource(name, value, "nfsadmin")))

    async def process(self, name: str, on: bool) -> None:
        """Have heart's supervisor start or stop one of our processes. Raises BusError."""
        await self._ask(heart.RunProcess(name, on), 15.0)

    async def pair(self, peer: str) -> None:
        """The end of a reintegration: heart's memory of the pair is durable when this returns. Raises BusError."""
        await self._ask(heart.Pair(peer), 10.0)

    async def _tell_heart(self, ask: Ask[Any]) -> None:
        for _ in range(TOLD_TRIES):
            try:
                await self._ask(ask, 2.0)
                return
            except (BusTimeout, UnknownTarget):
                await asyncio.sleep(TOLD_S)
            except BusError as error:
                self.context.log.debug(f"heart refused {ask}: {error.text}")
                return
        self.context.log.debug(f"heart does not answer: {ask} was not told")

    async def _ask(self, ask: Ask[Answer], timeout: float) -> Answer:
        return await self.context.bus.ask(self.context.module, ask, timeout)

    # --- beside the operations ----------------------------------------------------------------------------

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside the operations."""
        return self._beside.start(coroutine)

"""The processes safehttp and safetls, as the web service sees them: started, told what to do, started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Sequence

from safekit.bus.front import Channel, FrameError, Order, Told, unpacked
from safekit.disk.paths import process_program

AGAIN_SECONDS = 1.0
"""Between two starts of a process that ends at once."""
END_SECONDS = 2.0
START_SECONDS = 60.0
MAX_MESSAGE = 64 << 10


def _say(text: str) -> None:
    print(f"safewebserver: {text}", file=sys.stderr, flush=True)


class NotStarted(Exception):
    """A process that ended, or said nothing, before it was ready; it may have told why itself."""


class Worker:
    """One of the two. It runs as a user without rights, and ends when its socket does."""

    def __init__(self, name: str, module: str, heard: Callable[[Told], None], lost: Callable[[], None]) -> None:
        """`heard` gets what it tells; `lost` is called when it has ended after it was ready."""
        self.name = name
        self._module = module
        self._heard = heard
        self._lost = lost
        self._channel: Channel | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Until it is ready, so that nobody is accepted whom nobody answers. Raises OSError, NotStarted."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(*self._program(), stdin=theirs.fileno())
            except OSError:
                ours.close()
                raise
        self._channel = Channel(ours)
        self._ready = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(ours, self._readable, ours)
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready
        except TimeoutError:
            self._close()
            raise NotStarted(f"{self.name} was not ready within {START_SECONDS:.0f} s") from None

    def _program(self) -> list[str]:
        installed = process_program(self.name)
        return [installed] if os.access(installed, os.X_OK) else [sys.executable, "-m", self._module]

    async def give(self, order: Order, descriptors: Sequence[int]) -> None:
        """Raises OSError when it is not there."""
        if self._channel is None:
            raise ConnectionError(f"{self.name} is not there")
        await self._channel.give(order, descriptors)

    def _readable(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(MAX_MESSAGE)
            if data:
                self._take(unpacked(Told, data))
                return
        except BlockingIOError:
            return
        except (OSError, FrameError) as error:
            _say(f"{self.name}: {error}")
        self._close()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(NotStarted(f"{self.name} has ended at its start"))
        else:
            self._lost()

    def _take(self, told: Told) -> None:
        if told.op != "ready":
            self._heard(told)
        elif self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def ended(self) -> int:
        """Its status, when it ends by itself now or is made to."""
        self._close()
        if self._process is None:
            return 0
        try:
            async with asyncio.timeout(END_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            return await self._process.wait()

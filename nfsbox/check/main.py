"""The process nfscheck: asks each mount for something from time to time, and has the module stopped and started
when there is no answer (guide 13.6.3, checktime and checkintv)."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

from nfsbox.check import ask
from safekit.bus.asking import Ask
from safekit.bus.endpoint import BusError
from safekit.bus.requests import heart
from safekit.bus.requests.safeadmin.modules import Control
from safekit.process.frame import Context, run

#: A child that was killed while the kernel holds it can stay for ever; so many are left behind at most.
MOST_STUCK = 8


class Checker:
    """Looks after the mounts of one module."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._stuck: list[asyncio.subprocess.Process] = []

    async def probe(self, directory: str, timeout_ms: int) -> bool:
        """One null request in a process of its own: whoever waits for a dead mount cannot be interrupted."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-E", "-P", ask.__file__ or "", directory, stdin=asyncio.subprocess.DEVNULL
        )
        try:
            return await asyncio.wait_for(child.wait(), timeout_ms / 1000) == 0
        except TimeoutError:
            child.kill()
            self._stuck.append(child)
            return False

    def room(self) -> bool:
        """Whether another child may be started."""
        self._stuck = [child for child in self._stuck if child.returncode is None]
        return len(self._stuck) < MOST_STUCK

    async def round(self, directories: Sequence[str], timeout_ms: int) -> str | None:
        """Ask all mounts at once; the first that does not answer."""
        if not self.room():
            return directories[0]
        answers = await asyncio.gather(*(self.probe(directory, timeout_ms) for directory in directories))
        return next((d for d, ok in zip(directories, answers, strict=True) if not ok), None)

    async def react(self, directory: str, timeout_ms: int) -> None:
        """stopstart in the name of nfscheck."""
        self.context.log.event("nfscheck_timeout", dir=directory, ms=timeout_ms)
        module, me = self.context.module, self.context.name
        orders: tuple[Ask[Any], ...] = (
            heart.Control("stopstart", me, me),
            Control(module, "stopstart", me, identity=me),
        )
        for order in orders:
            try:
                await self.context.bus.ask(module, order, 5.0)
                return
            except BusError as error:
                self.context.log.debug(f"{order.process} did not take the stopstart: {error.text}")


async def serve(context: Context) -> int:
    """Until told to stop."""
    rfs = context.config.rfs
    if rfs is None:
        return 2
    checker = Checker(context)
    while not context.stopping.is_set():
        try:
            await asyncio.wait_for(context.stopping.wait(), rfs.checkintv)
        except TimeoutError:
            mounted = [r.dir for r in rfs.replicated if is_mounted(r.dir)]
            failed = await checker.round(mounted, rfs.checktime) if mounted else None
            context.log.debug(
                f"nfscheck: null request on {', '.join(mounted) or 'no mount'}: "
                f"{'no answer of ' + failed if failed else 'answered'}"
            )
            if failed is not None:
                await checker.react(failed, rfs.checktime)
    return 0


def is_mounted(directory: str) -> bool:
    """From the kernel's table: asking the directory itself could hang."""
    wanted = os.fsencode(directory).replace(b"\\", b"\\134").replace(b" ", b"\\040").replace(b"\t", b"\\011")
    with open("/proc/self/mountinfo", "rb") as handle:
        return any(line.split(b" ", 5)[4] == wanted for line in handle)


def main() -> None:
    """Entry point."""
    run("nfscheck", serve)


if __name__ == "__main__":
    main()

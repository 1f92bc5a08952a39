"""The process nfscheck: asks each mount for something from time to time, and has the module stopped and started
when there is no answer (guide 13.6.3, checktime and checkintv)."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nfsbox.check import ask
from safekit.bus.asking import Ask
from safekit.bus.endpoint import BusError
from safekit.bus.requests import heart
from safekit.bus.requests.safeadmin.modules import Control
from safekit.process.frame import Context, run

#: A child that was killed while the kernel holds it can stay for ever; so many are left behind at most.
MOST_STUCK = 8
AGAIN = 3.0
"""Seconds after which a mount that answered with an error is asked once more: longer than a module takes to unmount."""
SILENT = "no answer"


@dataclass(frozen=True, slots=True)
class Failed:
    """A mount, and what it answered; SILENT: nothing in time."""

    directory: str
    answer: str


class Checker:
    """Looks after the mounts of one module."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._stuck: list[asyncio.subprocess.Process] = []

    async def probe(self, directory: str, timeout_ms: int) -> str:
        """One null request in a process of its own: whoever waits for a dead mount cannot be interrupted. "" when it is
        answered, SILENT, or the error that is the answer."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-E", "-P", ask.__file__ or "", directory,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            said, _ = await asyncio.wait_for(child.communicate(), timeout_ms / 1000)
        except TimeoutError:
            child.kill()
            self._stuck.append(child)
            return SILENT
        return (
            "" if child.returncode == 0 else said.decode(errors="replace").strip() or f"exit status {child.returncode}"
        )

    def room(self) -> bool:
        """Whether another child may be started."""
        self._stuck = [child for child in self._stuck if child.returncode is None]
        return len(self._stuck) < MOST_STUCK

    async def round(self, directories: Sequence[str], timeout_ms: int) -> Failed | None:
        """Ask all mounts at once; the first that fails."""
        if not self.room():
            return Failed(directories[0], SILENT)
        answers = await asyncio.gather(*(self.probe(directory, timeout_ms) for directory in directories))
        return next((Failed(d, answer) for d, answer in zip(directories, answers, strict=True) if answer), None)

    async def twice(self, directories: Sequence[str], timeout_ms: int, pause: float = AGAIN) -> Failed | None:
        """What fails, and fails again when it has answered with an error: a mount that is taken away answers so too,
        and is not there any more when the module has stopped."""
        found = await self.round(directories, timeout_ms)
        if found is None or found.answer == SILENT:
            return found
        await asyncio.sleep(pause)
        again = [directory for directory in directories if is_mounted(directory)]
        return await self.round(again, timeout_ms) if again else None

    async def react(self, failed: Failed, timeout_ms: int) -> None:
        """stopstart in the name of nfscheck."""
        if failed.answer == SILENT:
            self.context.log.event("nfscheck_timeout", dir=failed.directory, ms=timeout_ms)
        else:
            self.context.log.event("nfscheck_error", dir=failed.directory, text=failed.answer)
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
            failed = await checker.twice(mounted, rfs.checktime) if mounted else None
            context.log.debug(
                f"nfscheck: null request on {', '.join(mounted) or 'no mount'}: "
                f"{f'{failed.directory}: {failed.answer}' if failed else 'answered'}"
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

"""circlog: the process that keeps a module's log bounded (guide 7.3, 10.1)."""

from __future__ import annotations

import asyncio
import syslog

from circlog.keeper import DiskReport, Keeper, check_space
from safekit.disk.files import locked
from safekit.disk.paths import ModulePaths
from safekit.disk.watch import DirectoryWatch
from safekit.log.module import now
from safekit.process.frame import Context, run

IDLE_SECONDS = 30.0
"""The safety net when inotify lost its events."""
GATHER_SECONDS = 0.2
"""Lines come in bursts: one look for all of a burst."""
STEPS = 64


async def keep(context: Context) -> int:
    """Until the module's supervisor ends us; last, copy what the others wrote while stopping."""
    paths = ModulePaths(context.module)
    # The circlog of an earlier supervisor may still be ending.
    while True:
        try:
            with locked(paths.log_dir / ".circlog.lock", wait=False):
                return await _keep(context, paths)
        except BlockingIOError:
            if await _stopped(context, 0.5):
                return 0


async def _keep(context: Context, paths: ModulePaths) -> int:
    keeper, report = Keeper(context.module), DiskReport()
    with DirectoryWatch(paths.log_dir) as watch:
        while not context.stopping.is_set():
            more = _step(keeper, report, context)
            if more:
                await asyncio.sleep(0)
                continue
            if await _stopped(context, GATHER_SECONDS):
                break
            changed = asyncio.ensure_future(watch.wait(IDLE_SECONDS))
            stopping = asyncio.ensure_future(context.stopping.wait())
            await asyncio.wait((changed, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in (changed, stopping):
                task.cancel()
    for _ in range(STEPS):
        if not _step(keeper, report, context):
            break
    return 0


async def _stopped(context: Context, seconds: float) -> bool:
    try:
        await asyncio.wait_for(context.stopping.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _step(keeper: Keeper, report: DiskReport, context: Context) -> bool:
    try:
        more = keeper.step()
        check_space(keeper.log.parent)
    except OSError as error:
        text = report.failed(error, now())
        if text is not None:
            context.log.event("internal", text=text)
            # The module log is the wrong place to read it when that is what cannot be written.
            syslog.syslog(syslog.LOG_ERR, f"safekit module {context.module}: {text}")
        return False
    text = report.worked()
    if text is not None:
        context.log.event("internal", text=text)
    return more


def main() -> None:
    """Entry point: circlog -m AM."""
    run("circlog", keep)


if __name__ == "__main__":
    main()

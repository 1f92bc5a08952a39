"""Work that goes on beside what a process waits for: kept, so that it is not lost, and its defects are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


def report(error: BaseException) -> None:
    """To the error output of the process, as the loop does what nobody takes."""
    asyncio.get_running_loop().call_exception_handler({"message": "a defect beside", "exception": error})


class Beside:
    """`defect` is called with what a task raised: nobody awaits it, so nobody else would hear of it."""

    def __init__(self, defect: Callable[[BaseException], None] = report) -> None:
        self._defect = defect
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it from the next turn of the loop on."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect(error)

    def cancel(self) -> None:
        """End all of them."""
        for task in list(self._tasks):
            task.cancel()

    async def end(self) -> None:
        """End all of them, and wait until they have."""
        tasks = list(self._tasks)
        self.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def told(error: BaseException) -> str:
    """A defect in one line."""
    return f"{type(error).__name__}: {error}"

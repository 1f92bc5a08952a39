"""Whether what an adopted role needs is there: a heart that was restarted proves it before it believes it (M0).

A process is there when it is registered with safeadmin, which forgets the dead, or when the supervisor runs it and it
is about to register. The replicated directories are there when the kernel gets an answer from them; one that only takes
long is nfscheck's affair.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from heart.shell.processes import ModuleProcesses, bus_name
from safekit.process.supervision import SupervisorError

ANSWER_SECONDS = 5.0
DEAD = frozenset({errno.ENOTCONN, errno.ESHUTDOWN, errno.EIO, errno.ENODEV})
"""What a mount says whose file system process is gone."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Processes that are missing, the resources that they set, and whether the data cannot be reached."""

    names: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    data: bool = False


async def lost(
    processes: ModuleProcesses, phases: Iterable[str], directories: Iterable[str], *, checkers: bool
) -> Lost:
    """What is missing of a role whose phases these are.  `checkers`: they are not switched off."""
    try:
        running = {name for name, info in (await processes.supervisor.states()).items() if info.pid}
    except SupervisorError:
        return Lost()  # its end is a decision of its own
    active = ("base", "pre", *phases)
    wanted = [name for phase in active for name in processes.programs(phase)]
    missing = [name for name in wanted if name not in running and not await processes.registered(name)]
    silent = [
        checker
        for checker in (processes.checkers if checkers else ())
        if checker.when in active
        and checker.process not in running
        and not await processes.registered(bus_name(checker))
    ]
    dead = await dead_mounts(directories)
    if dead and "nfsbox" not in missing:
        # it serves nothing any more; its end is what nfsadmin, or what follows here, reacts to
        await processes.end("nfsbox")
        missing.append("nfsbox")
    # a nfsadmin that lives has seen the end of nfsbox, and deals with it
    data = "nfsbox" in missing and "nfsadmin" in missing
    names = (*missing, *(checker.process for checker in silent))
    return Lost(names, tuple(checker.resource for checker in silent), data)


async def dead_mounts(directories: Iterable[str]) -> tuple[str, ...]:
    """The directories whose file system has lost its process."""
    found = await asyncio.gather(*(_error(directory) for directory in directories))
    return tuple(directory for directory, code in zip(directories, found, strict=True) if code in DEAD)


async def _error(directory: str) -> int:
    """The error that the directory answers with; 0 for none, and for no answer within ANSWER_SECONDS."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[int] = loop.create_future()

    def tell(code: int) -> None:
        if not answer.done():
            answer.set_result(code)

    def ask() -> None:
        try:
            os.statvfs(directory)
            code = 0
        except OSError as error:
            code = error.errno or 0
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, code)

    # a thread of its own, which nobody waits for: a file system that hangs keeps it
    threading.Thread(target=ask, daemon=True).start()
    try:
        return await asyncio.wait_for(answer, ANSWER_SECONDS)
    except TimeoutError:
        return 0

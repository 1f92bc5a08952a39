"""SIGUSR1: a process writes what each of its threads and tasks is at to its standard error, which is its own log.

The threads come first and from C code: they are written although the interpreter or the event loop stands still. Their
names and the tasks follow as soon as the loop turns; when they do not follow, it does not. The process goes on.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time

SIGNAL = signal.SIGUSR1


def write_on_signal(loop: asyncio.AbstractEventLoop | None = None) -> None:
    """From now on, in this process. Call it once at its start, and once more with its event loop when that is there."""
    faulthandler.unregister(SIGNAL)
    if loop is not None:
        loop.add_signal_handler(SIGNAL, _write_tasks, loop)
    # The chain leads to the handler of the loop; without one it would lead to the end of the process.
    faulthandler.register(SIGNAL, file=sys.stderr, all_threads=True, chain=loop is not None)


def ignore() -> None:
    """The process ends, and its loop is about to take its handlers away."""
    faulthandler.unregister(SIGNAL)
    signal.signal(SIGNAL, signal.SIG_IGN)


def _write_tasks(loop: asyncio.AbstractEventLoop) -> None:
    stream = sys.stderr
    stream.write(f"stacks of process {os.getpid()}, {time.strftime('%Y-%m-%dT%H:%M:%S')}\n")
    for thread in threading.enumerate():
        stream.write(f"Thread 0x{thread.ident or 0:016x} is {thread.name!r}\n")
    for task in sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name()):
        task.print_stack(file=stream)
    stream.write(f"end of the stacks of process {os.getpid()}\n")
    stream.flush()

"""Commands run as child processes, so that what the service does is what the command line does."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from safekit.disk.paths import safe
from safewebserver.forks import Forks, reads
from safewebserver.permissions import Refusal, Role, judge

MAX_OUTPUT = 4 << 20
MAX_AT_ONCE = 8
MAX_WAITING = 64
WAITING = frozenset({"waitstart", "waitstop", "waitstate"})


@dataclass(frozen=True)
class Result:
    """How a command ended. `status` as in the shell (128 + signal when it was killed)."""

    status: int
    output: str
    truncated: bool = False


def program() -> list[str]:
    """The command `safekit` of the product that this service belongs to."""
    installed = safe() / "safekit"
    return [str(installed)] if os.access(installed, os.X_OK) else [sys.executable, "-m", "cli.main"]


class _Kind(Enum):
    """Whose turn a command waits for. Nobody who only looks, or only waits, keeps from its turn what changes something:
    a Monitor's thousand questions do not hold up a stop."""

    WAITS = auto()
    LOOKS = auto()
    CHANGES = auto()


def _kind_of(words: Sequence[str]) -> _Kind:
    if only_waits(words):
        return _Kind.WAITS
    plain = words[2:] if words and words[0] == "-u" else words
    return _Kind.CHANGES if isinstance(judge(plain, Role.MONITOR), Refusal) else _Kind.LOOKS


def only_waits(words: Sequence[str]) -> bool:
    """Whether the command changes nothing and may be ended at any time."""
    rest = list(words)
    while len(rest) > 2 and rest[0] in ("-u", "-m"):
        del rest[:2]
    return bool(rest) and rest[0] in WAITING


class Commands:
    """Runs at most MAX_AT_ONCE commands of a kind at a time; the others wait their turn."""

    def __init__(self) -> None:
        self._turns = {kind: asyncio.Semaphore(MAX_WAITING if kind is _Kind.WAITS else MAX_AT_ONCE) for kind in _Kind}
        self._forks = Forks()
        self._running: set[asyncio.Task[Result]] = set()
        self._processes: dict[asyncio.Task[Result], asyncio.subprocess.Process] = {}

    async def start(self) -> None:
        """Make ready for the first command."""
        await self._forks.start()

    async def run(
        self, words: Sequence[str], timeout: float, alive: Callable[[], Awaitable[None]] | None = None
    ) -> Result | None:
        """Run `safekit WORDS`; None when it has not ended after `timeout` seconds, and then it goes on.

        `alive` is awaited every second meanwhile; what it raises comes out of here. A command is never killed
        half-way because its asker left: only one that merely waits is.
        """
        task = asyncio.create_task(self._run(tuple(words)))
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            return await self._wait(task, timeout, alive)
        finally:
            if not task.done() and only_waits(words) and task in self._processes:
                self._processes[task].terminate()

    async def _wait(
        self, task: asyncio.Task[Result], timeout: float, alive: Callable[[], Awaitable[None]] | None
    ) -> Result | None:
        deadline = asyncio.get_running_loop().time() + timeout
        while not task.done():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return None
            await asyncio.wait({task}, timeout=min(1.0, left))
            if alive is not None and not task.done():
                await alive()
        return task.result()

    def _ended(self, task: asyncio.Task[Result]) -> None:
        self._running.discard(task)
        self._processes.pop(task, None)

    async def _run(self, words: tuple[str, ...]) -> Result:
        async with self._turns[_kind_of(words)]:
            if reads(words) and (done := await self._forked(words)) is not None:
                return done
            process = await asyncio.create_subprocess_exec(
                *program(),
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
            assert process.stdout is not None
            task = asyncio.current_task()
            assert task is not None
            self._processes[task] = process
            output, truncated = await _read(process.stdout)
            status = await process.wait()
        return Result(status if status >= 0 else 128 - status, output, truncated)

    async def _forked(self, words: tuple[str, ...]) -> Result | None:
        """The result of a command that reads, None when it must be run as a process of its own."""
        source, target = os.pipe2(os.O_CLOEXEC)
        reader = asyncio.StreamReader()
        try:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader),
                open(source, "rb", buffering=0),  # noqa: SIM115 - closed with the transport
            )
            begun = await self._forks.run(words, target)
        finally:
            os.close(target)
        try:
            if begun is None:
                return None
            output, truncated = await _read(reader)
            status = await begun
        finally:
            transport.close()
        return None if status is None else Result(status, output, truncated)

    async def close(self) -> None:
        """Let running commands end; the service is not there any more to tell."""
        if self._running:
            await asyncio.wait(self._running, timeout=5.0)
        await self._forks.close()


async def _read(stream: asyncio.StreamReader) -> tuple[str, bool]:
    """What a command says, until it ends; whether more than MAX_OUTPUT bytes were cut."""
    kept, truncated = bytearray(), False
    while data := await stream.read(65536):
        room = MAX_OUTPUT - len(kept)
        kept += data[:room]
        truncated |= len(data) > room
    return kept.decode("utf-8", "replace"), truncated

"""Commands that only read, run in forks of a process that has imported them: a tenth of the cost of a new process,
and the same code. Everything that changes the system is a process of its own (child.py)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from safekit.process import stacks
from safekit.process.frame import set_process_name
from safewebserver.permissions import command_word

NAME = "safewebserver.f"
MODULES = ("state", "level", "logs", "why", "configure", "module", "cluster", "boot")
"""Of cli: what the commands below need."""
READING = {
    "state": None, "level": None, "log": None, "why": None, "confinfo": None,
    "module": frozenset({"list", "listid", "getports"}), "cluster": frozenset({"state", "confinfo"}),
}  # fmt: skip
"""Commands, and (None: all) the words after them."""
MAX_MESSAGE = 60_000
RESTARTS = 5
"""A process that ends again and again is not started for ever."""


def reads(words: Sequence[str]) -> bool:
    """Whether these words only read. They begin with `-u WHO`."""
    found = command_word(words[2:] if words and words[0] == "-u" else words)
    if found is None or found[0] not in READING:
        return False
    allowed = READING[found[0]]
    return allowed is None or (bool(found[1]) and found[1][0] in allowed)


# In the forking process


def serve(sock: socket.socket) -> None:
    """Until the other end is closed: a message is JSON [number, words] with the pipe for the output; the answer is
    JSON [number, status]."""
    for name in ("main", *MODULES):
        importlib.import_module(f"cli.{name}")
    gc.collect()
    gc.freeze()  # what is shared with the children stays shared
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, 4096)
                    continue
                data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 1)
                if not data:
                    return
                number, words = json.loads(data)
                pid = os.fork()
                if pid == 0:
                    _child(words, descriptors[0])
                os.close(descriptors[0])
                running[pid] = number
            while running:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                code = os.waitstatus_to_exitcode(status)
                sock.send(json.dumps([running.pop(pid), code if code >= 0 else 128 - code]).encode())


def _child(words: list[str], output: int) -> NoReturn:
    """Run the command with its output into the pipe, as a new process would."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.closerange(3, 4096)  # the pipe of another command must not stay open here
        from cli.main import run

        code = run(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        os.write(2, f"safekit: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def main() -> int:
    """Entry point: the descriptor of the socket is the argument."""
    set_process_name(NAME)
    stacks.write_on_signal()
    # A terminal's Ctrl-C is for the service, which closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
    return 0


# In the service


class Forks:
    """The forking process, started with the first command and again when it has died."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[int, asyncio.Future[int | None]] = {}
        self._number = 0
        self._starts = 0
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Begin to import, so that the first command does not wait for it."""
        async with self._starting:
            if self._sock is None:
                await self._start()

    async def run(self, words: Sequence[str], output: int) -> asyncio.Future[int | None] | None:
        """Begin a command that writes to the descriptor `output`; the future gives its status, None when it is not
        known because the forking process died. None instead of a future: run it as a process of its own."""
        async with self._starting:
            if self._sock is None and not await self._start():
                return None
            assert self._sock is not None
            self._number += 1
            message = json.dumps([self._number, list(words)]).encode()
            if len(message) > MAX_MESSAGE:
                return None
            try:
                socket.send_fds(self._sock, [message], [output])
            except OSError:
                self._lost()
                return None
            future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
            self._waiting[self._number] = future
            return future

    async def _start(self) -> bool:
        if self._starts >= RESTARTS:
            return False
        self._starts += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-c", _PROGRAM, str(theirs.fileno()), *sys.path,
                    pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
            except OSError:
                ours.close()
                return False
        ours.setblocking(False)
        self._sock = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)
        return True

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        number, status = json.loads(data)
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result(status)

    def _lost(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def close(self) -> None:
        """End the forking process; it ends when its socket does."""
        self._lost()
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 2.0)


_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from safewebserver.forks import main; sys.exit(main())"

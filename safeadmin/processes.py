"""The processes of a module as the kernel knows them: found by their environment, watched by pidfd.

A module's processes carry SAFEMODULE and SAFEVAR in their environment, but so may an administrator's shell
or the application: only programs of the product and running user scripts are ever ended from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from safekit.disk.paths import ModulePaths
from safekit.process import table
from safekit.process.ownership import modules, product_program
from safekit.process.table import Process, descendants, lives, start_time

SUPERVISORD = "safesupervisord"
_COMMAND = "safekit"
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_INFO_SIZE = 64
_EXIT_CODE_OFFSET = 60
STATUS_TRIES, STATUS_INTERVAL = 10, 0.01


class Kind(Enum):
    """What a process is to its module."""

    PRODUCT = "product"
    SCRIPT = "script"


@dataclass(frozen=True, slots=True)
class Member:
    """A process of a module. `name` is that of the program or script, which the kernel's name of it need not be."""

    process: Process
    name: str
    kind: Kind

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def born(self) -> int:
        return self.process.born


def _kind(arguments: Sequence[str], paths: ModulePaths) -> tuple[str, Kind] | None:
    """What a command line is to the module: a program of the product, a user script, or neither."""
    program = product_program(arguments)
    if program is not None:
        return (program, Kind.PRODUCT) if program != _COMMAND else None
    scripts = (f"{paths.userbin}/", f"{paths.active_store}/")
    # A script is started as `interpreter path`, so the path is one of the first words.
    for word in arguments[:3]:
        if word.startswith(scripts):
            return os.path.basename(word), Kind.SCRIPT
    return None


def find_all() -> dict[str, list[Member]]:
    """The living processes of the modules of this SAFEVAR, by module, in one pass over all."""
    found: dict[str, list[Member]] = {}
    for pid, module in modules():
        known = table.process(pid)
        what = None if known is None or known.ended else _kind(known.arguments, ModulePaths(module))
        if known is not None and what is not None:
            found.setdefault(module, []).append(Member(known, *what))
    return found


def find(module: str) -> list[Member]:
    """The living processes of a module on this server, whoever started them."""
    return find_all().get(module, [])


def product(module: str, keep: Callable[[str], bool] = lambda name: True) -> list[Process]:
    """The living programs of the product that belong to a module, those whose names `keep` takes."""
    return [member.process for member in find(module) if member.kind is Kind.PRODUCT and keep(member.name)]


def with_descendants(scripts: Iterable[Member]) -> list[Process]:
    """Scripts and all that they started and still wait for, children first."""
    tops = {member.pid: member.process for member in scripts}
    below = (table.process(pid) for pid in descendants(tops) if pid not in tops)
    return [*reversed([child for child in below if child is not None]), *tops.values()]


async def wait_ended(processes: Iterable[Process], timeout: float) -> list[Process]:
    """Wait until all have ended; those that live after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    alive = []
    for process in processes:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            if start_time(process.pid) != process.born:
                continue
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            try:
                await asyncio.wait_for(ended.wait(), max(deadline - loop.time(), 0))
            except TimeoutError:
                alive.append(process)
            finally:
                loop.remove_reader(descriptor)
        finally:
            os.close(descriptor)
    return alive


async def end_processes(processes: list[Process], patience: float = 5.0) -> list[Process]:
    """SIGTERM, then SIGKILL after `patience` seconds; those that even this did not end (waiting in the
    kernel for a device) are returned."""
    for process in processes:
        process.send(signal.SIGTERM)
    stubborn = await wait_ended(processes, patience) if patience > 0 else processes
    for process in stubborn:
        process.send(signal.SIGKILL)
    return await wait_ended(stubborn, 5.0)


def describe_status(status: int | None) -> str:
    """Words for a wait status."""
    if status is None:
        return "exit status unknown"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
        return f"killed by signal {number}"
    return f"exit status {os.WEXITSTATUS(status)}"


def _pidfd_exit(descriptor: int) -> int | None:
    """Wait status of a process that is nobody's child here; kernels before 6.15 do not tell."""
    buffer = bytearray(_INFO_SIZE)
    struct.pack_into("=Q", buffer, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(descriptor, _PIDFD_GET_INFO, buffer, True)
    except OSError:
        return None
    (mask,) = struct.unpack_from("=Q", buffer, 0)
    if not mask & _PIDFD_INFO_EXIT:
        return None
    (status,) = struct.unpack_from("=i", buffer, _EXIT_CODE_OFFSET)
    return int(status)


class Watch:
    """Calls back once when a process ends, with its wait status where it can be known."""

    def __init__(self, pid: int, born: int, ended: Callable[[int | None], None]) -> None:
        """Raises ProcessLookupError when the process is gone already."""
        self.pid, self.born = pid, born
        self._ended = ended
        self._descriptor = os.pidfd_open(pid)
        if start_time(pid) != born:
            os.close(self._descriptor)
            raise ProcessLookupError(pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._fire)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._descriptor >= 0 and lives(self.pid, self.born)

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _fire(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._report(STATUS_TRIES)

    def _report(self, tries: int) -> None:
        if self._descriptor < 0:
            return
        status: int | None = None
        try:
            pid, reaped = os.waitpid(self.pid, os.WNOHANG)
            status = reaped if pid == self.pid else None
        except ChildProcessError:
            # Somebody else's child: the kernel tells its status once the parent has taken it.
            status = _pidfd_exit(self._descriptor)
        if status is None and tries > 0:
            asyncio.get_running_loop().call_later(STATUS_INTERVAL, self._report, tries - 1)
            return
        os.close(self._descriptor)
        self._descriptor = -1
        self._ended(status)

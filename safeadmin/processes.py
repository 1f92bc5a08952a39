"""The processes of a module as the kernel knows them: found by their environment, watched by pidfd.

A module's processes carry SAFEMODULE and SAFEVAR in their environment, but so may an administrator's shell
or the application: only programs of the product and running user scripts are ever ended from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from safekit.disk.files import process_start_time
from safekit.disk.paths import ModulePaths, process_program, safevar, valid_module_name

SUPERVISORD = "safesupervisord"
_COMMAND = "safekit"
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_INFO_SIZE = 64
_EXIT_CODE_OFFSET = 60
STATUS_TRIES, STATUS_INTERVAL = 10, 0.01


def lives(pid: int, born: int) -> bool:
    """Whether that process runs; one that has ended and waits for its parent does not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0] not in (b"Z", b"X") and int(fields[19]) == born
    except (OSError, IndexError, ValueError):
        return False


class Kind(Enum):
    """What a process is to its module."""

    PRODUCT = "product"
    SCRIPT = "script"


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a module. pid and born (start time) together name it for ever."""

    pid: int
    born: int
    parent: int
    name: str
    kind: Kind

    def signal(self, number: int) -> bool:
        """Send a signal to exactly this process; False when it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if process_start_time(self.pid) != self.born:
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


def _read(pid: int, name: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")
    except OSError:
        # Ended meanwhile, or of another user: not one of ours.
        return []


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _kind(arguments: list[bytes], paths: ModulePaths) -> tuple[str, Kind] | None:
    """What a command line is to the module: a program of the product, a user script, or neither."""
    programs = os.path.dirname(process_program("x"))
    scripts = (str(paths.userbin), str(paths.active_store))
    # A script is started as `interpreter path`, so the path is the first or the second word.
    for word in (os.fsdecode(argument) for argument in arguments[:3]):
        directory, name = os.path.split(word)
        if directory == programs and not name.startswith("python"):
            return (name, Kind.PRODUCT) if name != _COMMAND else None
        if word.startswith(tuple(base + "/" for base in scripts)):
            return name, Kind.SCRIPT
    return None


def find_all() -> dict[str, list[Process]]:
    """The living processes of the modules of this SAFEVAR, by module, in one pass over /proc.

    A lab node on this machine has the same paths: its processes, in a PID namespace of their own, are not ours.
    """
    space = _pid_namespace(os.getpid())
    prefix, ours = b"SAFEMODULE=", f"SAFEVAR={safevar()}".encode()
    found: dict[str, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        variables = _read(int(entry), "environ")
        names = [os.fsdecode(v[len(prefix) :]) for v in variables if v.startswith(prefix)]
        if len(names) != 1 or ours not in variables or not valid_module_name(names[0]):
            continue
        if _pid_namespace(int(entry)) != space:
            continue
        process = _process(int(entry), ModulePaths(names[0]))
        if process is not None:
            found.setdefault(names[0], []).append(process)
    return found


def find(module: str) -> list[Process]:
    """The living processes of a module on this server, whoever started them."""
    return find_all().get(module, [])


def _process(pid: int, paths: ModulePaths) -> Process | None:
    what, born = _kind(_read(pid, "cmdline"), paths), process_start_time(pid)
    return None if what is None or born is None else Process(pid, born, _parent(pid), *what)


def with_descendants(scripts: Iterable[Process]) -> list[Process]:
    """Scripts and all that they started and still wait for, children first."""
    parents = {int(entry): _parent(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    ordered: dict[int, Process] = {}
    waiting = list(scripts)
    while waiting:
        process = waiting.pop()
        if process.pid in ordered:
            continue
        ordered[process.pid] = process
        for pid in children.get(process.pid, []):
            born = process_start_time(pid)
            if born is not None:
                waiting.append(Process(pid, born, process.pid, f"child of {process.name}", Kind.SCRIPT))
    return list(reversed(ordered.values()))


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
            if process_start_time(process.pid) != process.born:
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
        process.signal(signal.SIGTERM)
    stubborn = await wait_ended(processes, patience) if patience > 0 else processes
    for process in stubborn:
        process.signal(signal.SIGKILL)
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
    return int(ctypes.c_int(struct.unpack_from("=i", buffer, _EXIT_CODE_OFFSET)[0]).value)


class Watch:
    """Calls back once when a process ends, with its wait status where it can be known."""

    def __init__(self, pid: int, born: int, ended: Callable[[int | None], None]) -> None:
        """Raises ProcessLookupError when the process is gone already."""
        self.pid, self.born = pid, born
        self._ended = ended
        self._descriptor = os.pidfd_open(pid)
        if process_start_time(pid) != born:
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

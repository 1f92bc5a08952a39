"""One supervisord per running module: write its configuration, start it, ask it.

The program is the stock supervisord, woken by signals (safekit.process.supervisord). Nothing dies with it: its
children keep running, and heart decides what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import subprocess
import xmlrpc.client
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths, process_program
from safekit.model.checkers import Checker
from safekit.model.types import ModuleConfig
from safekit.process import ownlog

RPC_LIMIT = 1 << 20


@dataclass(frozen=True)
class Program:
    """A process of a module. `autostart`: runs as long as the module's supervisor; the others are started
    and stopped by heart. `autorestart`: restarted whenever it dies; the others' death is a decision of heart
    or nfsadmin. `priority` orders the stop: higher stops first."""

    name: str
    autostart: bool = False
    autorestart: bool = True
    priority: int = 500
    stop_seconds: int = 10
    arguments: tuple[str, ...] = ()
    program: str | None = None


HEART = Program("heart", autostart=True, priority=900, stop_seconds=30)
CIRCLOG = Program("circlog", autostart=True, priority=100)
NFSBOX = Program("nfsbox", autorestart=False, priority=300, stop_seconds=30)
NFSADMIN = Program("nfsadmin", priority=400)
NFSCHECK = Program("nfscheck", priority=450)
REINTEGRE = Program("reintegre", autorestart=False, priority=450)
VIPD = Program("vipd", priority=350)
ARPREROUTE = Program("arpreroute", priority=450)
ERRD = Program("errd", priority=450)
RFS_PROGRAMS = (NFSBOX, NFSADMIN, NFSCHECK, REINTEGRE)


def checker_program(checker: Checker) -> Program:
    """A checker runs under a name of its own: there may be several of one kind."""
    return Program(
        checker.process,
        priority=450,
        arguments=("--ident", shlex.quote(checker.ident)),
        program=process_program(checker.program),
    )


def module_programs(config: ModuleConfig, checkers: Sequence[Checker] = ()) -> tuple[Program, ...]:
    """The processes of a module, by what it configures."""
    return (
        CIRCLOG,
        HEART,
        *(RFS_PROGRAMS if config.rfs is not None else ()),
        *((VIPD, ARPREROUTE) if config.vip is not None else ()),
        *((ERRD,) if config.errd is not None else ()),
        *map(checker_program, checkers),
    )


def _escape(value: str) -> str:
    return value.replace("%", "%%").replace('"', "'")


def configuration(module: str, programs: Sequence[Program], environment: Mapping[str, str]) -> str:
    """Text of a supervisord configuration: a unix socket for the owner only, no network server."""
    paths = ModulePaths(module)
    variables = ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(environment.items()))
    lines = [
        "[supervisord]",
        f"logfile={paths.log_dir}/supervisord.log",
        "logfile_maxbytes=1MB",
        "logfile_backups=1",
        f"pidfile={paths.var}/supervisord.pid",
        "nodaemon=true",
        "silent=true",
        f"directory={paths.var}",
        f"identifier=safekit-{module}",
        "",
        "[unix_http_server]",
        f"file={paths.supervisor_sock}",
        "chmod=0700",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "",
    ]
    for program in programs:
        command = " ".join((program.program or process_program(program.name), *program.arguments))
        lines += [
            f"[program:{program.name}]",
            f"command={_escape(command)}",
            f"environment={variables}",
            f"autostart={str(program.autostart).lower()}",
            f"autorestart={str(program.autorestart).lower()}",
            # One that nobody restarts may be done at once; supervisord must not start it again as a failed start.
            f"startsecs={int(program.autorestart)}",
            "startretries=1000",
            f"stopwaitsecs={program.stop_seconds}",
            f"priority={program.priority}",
            # Each process writes its own log file (safekit.process.frame): it must outlive supervisord's pipes.
            "stdout_logfile=NONE",
            "redirect_stderr=true",
            "",
        ]
    return "\n".join(lines)


def write_configuration(module: str, programs: Sequence[Program], extra_environment: Mapping[str, str] = {}) -> None:
    """Write SAFEVAR/modules/AM/supervisord.conf. Raises OSError."""
    paths = ModulePaths(module)
    paths.log_dir.mkdir(mode=0o770, parents=True, exist_ok=True)
    environment = {**paths.environment(), **extra_environment}
    for name in ("SAFEMAPPER", "SAFENODE", "PATH", "LANG"):
        if name in os.environ:
            environment.setdefault(name, os.environ[name])
    text = configuration(module, programs, environment)
    write_atomic(paths.supervisor_conf, text.encode(), mode=0o600)


def spawn(module: str) -> subprocess.Popen[bytes]:
    """Start the module's supervisord in a session of its own; it survives its parent.

    Raises OSError when the program is missing. The caller waits for its socket with `Supervisor.states`.
    """
    paths = ModulePaths(module)
    with contextlib.suppress(FileNotFoundError):
        paths.supervisor_sock.unlink()
    errors = ownlog.opened(paths, "safesupervisord")
    try:
        return subprocess.Popen(
            [process_program("safesupervisord"), "-c", str(paths.supervisor_conf)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd="/",
            env={**os.environ, **paths.environment()},
            start_new_session=True,
        )
    finally:
        os.close(errors)


class SupervisorError(Exception):
    """The supervisor cannot be asked, or refused."""


@dataclass(frozen=True)
class ProcessInfo:
    """What the supervisor knows of a process. `state` is supervisord's word (RUNNING, STARTING, STOPPED,
    EXITED, BACKOFF, FATAL, STOPPING); `pid` is 0 when it does not run."""

    name: str
    state: str
    pid: int
    exit_status: int


class Supervisor:
    """Client of a module's supervisord over its unix socket."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    async def _call(self, method: str, *arguments: Any, timeout: float = 5.0) -> Any:
        body = xmlrpc.client.dumps(arguments, method).encode()
        request = (
            f"POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode()
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(str(self.socket_path), limit=RPC_LIMIT)
                try:
                    writer.write(request + body)
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = next(
                        int(line.split(b":", 1)[1])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    )
                    if length > RPC_LIMIT:
                        raise SupervisorError(f"{self.socket_path}: answer of {length} bytes")
                    answer = await reader.readexactly(length)
                finally:
                    writer.close()
        except TimeoutError:
            raise SupervisorError(f"supervisord does not answer on {self.socket_path}") from None
        except (OSError, asyncio.IncompleteReadError, StopIteration, ValueError) as error:
            raise SupervisorError(f"supervisord cannot be reached on {self.socket_path}: {error}") from None
        try:
            return xmlrpc.client.loads(answer)[0][0]
        except xmlrpc.client.Fault as fault:
            raise SupervisorError(str(fault.faultString)) from None

    async def states(self) -> dict[str, ProcessInfo]:
        """All processes by name."""
        found: dict[str, ProcessInfo] = {}
        for info in await self._call("supervisor.getAllProcessInfo"):
            name = str(info["name"])
            found[name] = ProcessInfo(name, str(info["statename"]), int(info["pid"]), int(info["exitstatus"]))
        return found

    async def start(self, name: str) -> None:
        """Start a process and return at once; one that runs already is left alone."""
        try:
            await self._call("supervisor.startProcess", name, False)
        except SupervisorError as error:
            if not str(error).startswith("ALREADY_STARTED"):
                raise

    async def stop(self, name: str, *, wait: bool = True, timeout: float = 60.0) -> None:
        """Stop a process with SIGTERM (SIGKILL after its stop time); one that does not run is left alone."""
        try:
            await self._call("supervisor.stopProcess", name, wait, timeout=timeout)
        except SupervisorError as error:
            if not str(error).startswith("NOT_RUNNING"):
                raise

    async def reread(self, ours: Callable[[str], bool]) -> None:
        """Take up a configuration that was written again, for the processes that `ours` names: they must not
        run. The others stay as they are. Raises SupervisorError."""
        added, changed, removed = (await self._call("supervisor.reloadConfig"))[0]
        for name in (*changed, *removed):
            if ours(name):
                await self._call("supervisor.removeProcessGroup", name)
        for name in (*changed, *added):
            if ours(name):
                await self._call("supervisor.addProcessGroup", name)

    async def shutdown(self) -> None:
        """End supervisord and all that it runs, heart included; returns before they have ended."""
        await self._call("supervisor.shutdown")

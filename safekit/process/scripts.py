"""The user scripts of a module: environment, output, time-outs (guide 13.7, 14).

The caller gives the order; scripts of one module run one at a time.  A script
runs in a session of its own, so that a time-out or an abort ends it with all
the processes that still belong to that session; of a stop script even what
detached itself goes.  What a script leaves running when it ends by itself (the
application) is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths
from safekit.log.module import ModuleLog
from safekit.log.scripts import TAIL_BYTES, Run, append, not_run, tail
from safekit.model.types import User
from safekit.process import offspring, ordinary
from safekit.process.table import start_time

FORCE = "force"
START_PREFIX, STOP_PREFIX = "start_", "stop_"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a script ended.  ``status`` is its exit status (128 + signal when killed), None when it did not
    run; ``seconds`` is how long it took; ``problem`` says what is wrong with it ("" nothing), ``said`` is the last line
    of its output."""

    name: str
    status: int | None
    seconds: float = 0.0
    timed_out: bool = False
    problem: str = ""
    said: str = ""


def environment(paths: ModulePaths, user: User) -> dict[str, str]:
    """Environment of user scripts: this process's, then SAFE..., then the <var> of the configuration."""
    return {**os.environ, **paths.environment(), **dict(user.vars)}


def open_output(paths: ModulePaths, user: User) -> int:
    """Descriptor of the application log, or of nowhere (logging="none"). Raises OSError."""
    if user.logging == "none":
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    paths.userlog.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
    return os.open(paths.userlog, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)


def time_limit(name: str, args: Sequence[str], user: User) -> float | None:
    """Seconds that a call may take: stop scripts nicely or with force; None for the others."""
    if not name.startswith(STOP_PREFIX):
        return None
    return float(user.forcestoptimeout if args and args[0] == FORCE else user.nicestoptimeout)


class ScriptRunner:
    """Runs the scripts of SAFEUSERBIN, one at a time.

    Without a <user> tag (`user` None) nothing runs.  `scripts_dir` defaults to the active configuration's.
    """

    def __init__(
        self, paths: ModulePaths, user: User | None, log: ModuleLog, *, scripts_dir: Path | None = None
    ) -> None:
        self._paths = paths
        self._log = log
        self._dir = scripts_dir
        self._lock = asyncio.Lock()
        self._running: asyncio.subprocess.Process | None = None
        self.user = user

    @property
    def _left(self) -> Path:
        """Names the script that runs: pid and start time."""
        return self._paths.var / "script.running"

    def end_leftover(self) -> str:
        """Kill the script that a killed predecessor of this process left running; its pid, "" when there is none.

        Otherwise a stop script could still stop the application after it has been started again.
        """
        try:
            words = self._left.read_text(encoding="ascii").split()
            pid, born = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):
            return ""
        self._left.unlink(missing_ok=True)
        if start_time(pid) != born:
            return ""
        _kill(pid)
        self._end_detached()
        return str(pid)

    def trim_userlog(self) -> None:
        """At module start: an application log that has reached its limit begins again (userlogsize, KB)."""
        if self.user is None or self.user.logging == "none":
            return
        with contextlib.suppress(FileNotFoundError):
            if self._paths.userlog.stat().st_size >= self.user.userlogsize_kb * 1024:
                os.truncate(self._paths.userlog, 0)

    def path(self, name: str) -> Path | None:
        """Where a script is; None when the module does not have it."""
        path = (self._dir or self._paths.userbin) / name
        return path if path.is_file() else None

    async def run(
        self, name: str, args: Sequence[str], extra: Mapping[str, str] | None = None, *, at_most: float | None = None
    ) -> Outcome:
        """Run one script to its end, its time-out (never longer than `at_most` seconds) or `abort`.

        A missing script is skipped silently; a script that cannot be run is
        logged and skipped.  Cancelling this call kills the script.
        """
        async with self._lock:
            path = self.path(name)
            if self.user is None or path is None:
                return Outcome(name, None)
            self._log.event("script", name=name)
            began, started, before = time.time(), time.monotonic(), self._written()
            try:
                process = await self._spawn(path, args, extra or {})
            except OSError as error:
                reason = _reason(path, error)
                self._log.event("script_failed", name=name, reason=reason)
                self._keep(Run(time.time(), name, tuple(args), None, 0.0, "could not be run", (reason,)))
                return Outcome(name, None, problem="could not be run", said=reason)
            self._running = process
            self._remember(process.pid)
            timed_out = False
            limits = (time_limit(name, args, self.user), at_most)
            limit = min((seconds for seconds in limits if seconds is not None), default=None)
            try:
                try:
                    await asyncio.wait_for(process.wait(), limit)
                except TimeoutError:
                    timed_out = True
                    self._log.event("script_timeout", name=name, seconds=limit if at_most is None else f"{limit:.1f}")
                    self._end(process, name)
                    await process.wait()
                except asyncio.CancelledError:
                    self._end(process, name)
                    raise
            finally:
                self._running = None
                self._left.unlink(missing_ok=True)
            seconds = time.monotonic() - started
            status = process.returncode if process.returncode is not None else -signal.SIGKILL
            status = 128 - status if status < 0 else status
            # SafeKit goes on (guide 15.1); who reads the short log is to know that the application may not run
            ended = "script_error" if status and name.startswith(START_PREFIX) else "script_end"
            self._log.event(ended, name=name, status=status, seconds=f"{seconds:.2f}")
            output = self._output(before)
            unfound = not_run(name, output) if not status else ""
            if unfound:
                self._log.event("script_unfound", name=name, line=unfound)
            problem = _problem(name, status, limit if timed_out else None, bool(unfound))
            run = Run(began, name, tuple(args), status, round(seconds, 2), problem, output)
            self._keep(run)
            return Outcome(name, status, seconds, timed_out, problem, unfound or run.said)

    def _written(self) -> int:
        """Bytes in the application log."""
        try:
            return self._paths.userlog.stat().st_size
        except OSError:
            return 0

    def _output(self, before: int) -> tuple[str, ...]:
        """The last that was written to the application log since it had that size."""
        if self.user is None or self.user.logging == "none":
            return ()
        try:
            with open(self._paths.userlog, "rb") as handle:
                handle.seek(max(before, os.fstat(handle.fileno()).st_size - TAIL_BYTES))
                return tail(handle.read(TAIL_BYTES))
        except OSError:
            return ()

    def _keep(self, run: Run) -> None:
        """For people.  A full disk must not keep scripts from running."""
        try:
            append(self._paths.script_log, run)
        except OSError as error:
            self._log.debug(f"{self._paths.script_log}: {error.strerror}")

    def _remember(self, pid: int) -> None:
        """For `end_leftover`.  A full disk must not keep scripts from running."""
        try:
            self._paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
            # whole or not at all: a heart that is killed here leaves no name that cannot be read
            write_atomic(self._left, f"{pid} {start_time(pid) or 0}".encode(), durable=False)
        except OSError as error:
            self._log.debug(f"{self._left}: {error.strerror}")

    def abort(self) -> bool:
        """Kill the script that runs, with its session; True when there was one."""
        if self._running is None:
            return False
        _kill(self._running.pid)
        return True

    def _end(self, process: asyncio.subprocess.Process, name: str) -> None:
        _kill(process.pid)
        if name.startswith(STOP_PREFIX):
            self._end_detached()

    def _end_detached(self) -> None:
        """What stop scripts started in sessions of their own.  That of a start script may be the application: it
        is for the stop scripts."""
        offspring.kill(self._paths.module, STOP_PREFIX)

    async def _spawn(self, path: Path, args: Sequence[str], extra: Mapping[str, str]) -> asyncio.subprocess.Process:
        user = self.user or User()
        output = open_output(self._paths, user)
        try:
            with ordinary.oom_score():
                return await asyncio.create_subprocess_exec(
                    str(path),
                    *args,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=str(path.parent),
                    env={**environment(self._paths, user), **offspring.mark(self._paths.module, path.name), **extra},
                    start_new_session=True,
                    umask=ordinary.UMASK,
                )
        finally:
            os.close(output)


def _problem(name: str, status: int, killed_after: float | None, unfound: bool) -> str:
    """What is wrong with a script that has ended.  What a stop script finds stopped already is nothing wrong."""
    if killed_after is not None:
        return f"killed after {killed_after:g} s"
    if unfound:
        return "exit status 0, but a command could not be run"
    return f"exit status {status}" if status and not name.startswith(STOP_PREFIX) else ""


def _kill(pid: int) -> None:
    """The script leads its session's process group; what it started in the foreground is in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _reason(path: Path, error: OSError) -> str:
    if error.errno == errno.EACCES:
        return f"{path} is not executable: chmod +x it in the module's bin directory, then run config"
    if error.errno == errno.ENOEXEC:
        return f"{path} has no interpreter line: its first line must be #!/bin/sh or the like"
    if error.errno == errno.ENOENT:
        return f"{path}: the interpreter of its first line does not exist"
    return f"{path}: {error.strerror}"

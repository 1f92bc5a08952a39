"""A small service manager: runs systemd units the way systemd would, for a node whose process 1 is ours.

Only what the product's units use: ExecStart, Environment, Restart (no, on-failure, always), RestartSec,
TimeoutStopSec, KillMode (process, control-group as mixed), LimitMEMLOCK, LimitRTPRIO, LimitNOFILE, UMask.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 0.001, "min": 60.0, "h": 3600.0}
_LIMITS = {
    "LimitMEMLOCK": resource.RLIMIT_MEMLOCK,
    "LimitRTPRIO": resource.RLIMIT_RTPRIO,
    "LimitNOFILE": resource.RLIMIT_NOFILE,
}


def seconds(text: str) -> float:
    """A time span of systemd: `90`, `1min 30s`, `infinity`. Raises ValueError."""
    if text.strip() == "infinity":
        return float("inf")
    parts = re.findall(r"([0-9.]+)\s*([a-z]*)", text)
    if not parts or any(unit not in _UNITS for _, unit in parts):
        raise ValueError(f"{text!r} is not a time span")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _limit(text: str) -> int:
    return resource.RLIM_INFINITY if text == "infinity" else int(text)


@dataclass(frozen=True)
class Unit:
    """One service unit."""

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    restart: str = "no"
    restart_delay: float = 0.1
    stop_timeout: float = 90.0
    limits: tuple[tuple[int, tuple[int, int]], ...] = ()
    umask: int = 0o022


def parse(name: str, text: str) -> Unit:
    """Read a unit file. Raises ValueError when ExecStart is missing or a value is malformed."""
    values: dict[str, list[str]] = {}
    section = ""
    for raw in text.replace("\\\n", " ").splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = line.strip("[]")
        elif section == "Service":
            key, _, value = line.partition("=")
            values.setdefault(key.strip(), []).append(value.strip())

    def last(key: str, default: str) -> str:
        return values.get(key, [default])[-1]

    command = tuple(shlex.split(last("ExecStart", "")))
    if not command:
        raise ValueError(f"unit {name} has no ExecStart")
    environment = []
    for item in values.get("Environment", []):
        for assignment in shlex.split(item):
            variable, _, value = assignment.partition("=")
            environment.append((variable, value))
    limits = []
    for key, kind in _LIMITS.items():
        if key in values:
            soft, _, hard = last(key, "").partition(":")
            limits.append((kind, (_limit(soft), _limit(hard or soft))))
    return Unit(
        name=name,
        command=command,
        environment=tuple(environment),
        restart=last("Restart", "no"),
        restart_delay=seconds(last("RestartSec", "100ms")),
        stop_timeout=seconds(last("TimeoutStopSec", "90")),
        limits=tuple(limits),
        umask=int(last("UMask", "022"), 8),
    )


class Phase(Enum):
    INACTIVE = "inactive"
    ACTIVE = "active"
    STOPPING = "deactivating"
    WAITING = "activating"  # for the restart
    FAILED = "failed"


def clean(status: int) -> bool:
    """Whether systemd takes wait status `status` for a success."""
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    return os.WEXITSTATUS(status) == 0


def restarts(unit: Unit, status: int) -> bool:
    """Whether systemd would start the unit again after it ended by itself with wait status `status`."""
    return unit.restart == "always" or (unit.restart == "on-failure" and not clean(status))


@dataclass
class Service:
    """A unit and its process."""

    unit: Unit
    log: Path
    phase: Phase = Phase.INACTIVE
    pid: int = 0
    due: float = 0.0  # monotonic: of the restart, or of SIGKILL while stopping
    when_settled: list[Callable[[], None]] = field(default_factory=list)

    def start(self) -> None:
        if self.phase in (Phase.ACTIVE, Phase.STOPPING):
            return
        self.pid = _spawn(self.unit, self.log)
        self.phase = Phase.ACTIVE

    def stop(self) -> None:
        if self.phase is Phase.ACTIVE:
            os.kill(self.pid, signal.SIGTERM)
            self.phase, self.due = Phase.STOPPING, time.monotonic() + self.unit.stop_timeout
        elif self.phase is Phase.WAITING:
            self.phase = Phase.INACTIVE

    def ended(self, status: int) -> None:
        """The process was reaped."""
        self.pid = 0
        if self.phase is Phase.STOPPING:
            self.phase = Phase.INACTIVE
        elif restarts(self.unit, status):
            self.phase, self.due = Phase.WAITING, time.monotonic() + self.unit.restart_delay
        else:
            self.phase = Phase.INACTIVE if clean(status) else Phase.FAILED
        if self.phase is not Phase.WAITING:
            waiting, self.when_settled = self.when_settled, []
            for callback in waiting:
                callback()

    def tick(self, now: float) -> float | None:
        """Do what is due; returns when to come back."""
        if self.phase is Phase.WAITING and now >= self.due:
            self.start()
        elif self.phase is Phase.STOPPING and now >= self.due:
            os.kill(self.pid, signal.SIGKILL)
            self.due = float("inf")
        return self.due if self.phase in (Phase.WAITING, Phase.STOPPING) and self.due != float("inf") else None


def _raise_limit(name: str, kind: int, value: tuple[int, int]) -> None:
    """As far as this host allows: a container may lack CAP_SYS_RESOURCE."""
    try:
        resource.setrlimit(kind, value)
    except (ValueError, PermissionError) as error:
        highest = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (highest, highest))
        os.write(2, f"{name}: limit {kind} stays at {highest}: {error}\n".encode())


def _spawn(unit: Unit, log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.umask(unit.umask)
        for kind, value in unit.limits:
            _raise_limit(unit.name, kind, value)
        null = os.open("/dev/null", os.O_RDONLY)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        environment.update(unit.environment)
        os.execve(unit.command[0], unit.command, environment)
    except BaseException as error:
        os.write(2, f"{unit.name}: cannot start {unit.command[0]}: {error}\n".encode())
    os._exit(203)  # systemd's EXIT_EXEC

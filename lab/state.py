"""Where labs are kept, and what is written down about each: enough to find and remove it without its keeper."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import kernel
from lab.errors import LabError
from lab.plan import Plan
from safekit.disk import placeholder
from safekit.process.table import lives

SOCKET = "keeper.sock"
NAME_VARIABLE = "SAFELAB_NAME"


def labs_directory() -> Path:
    """SAFELAB_DIR, else /var/lib/safelab."""
    return Path(os.environ.get("SAFELAB_DIR", "/var/lib/safelab")).resolve()


def lab_directory(name: str) -> Path:
    return labs_directory() / name


@dataclass(frozen=True)
class Process:
    """One process for ever: pids are used again, a pid with its start time is not."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Raises ProcessLookupError when there is no such process."""
        start = kernel.start_time(pid)
        if start is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, start)

    @property
    def alive(self) -> bool:
        return lives(self.pid, self.start)


@dataclass(frozen=True)
class State:
    """What the keeper last wrote."""

    plan: Plan
    keeper: Process
    image: str | None
    complete: bool = False
    machines: dict[str, Process] = field(default_factory=dict)  # the machines that are powered on
    faults: dict[str, Any] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        return self.keeper.alive

    def save(self, directory: Path) -> None:
        temporary = directory / ".lab.json.new"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.rename(directory / "lab.json")


def load(directory: Path) -> State | None:
    """None when the directory holds no state (a lab that was never completed, or is being removed)."""
    try:
        data = json.loads((directory / "lab.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return State(
        plan=Plan.from_json(data["plan"]),
        keeper=Process(**data["keeper"]),
        image=data["image"],
        complete=data["complete"],
        machines={name: Process(**process) for name, process in data["machines"].items()},
        faults=data["faults"],
    )


def lab_names() -> list[str]:
    """Labs that have a directory, alive or not."""
    base = labs_directory()
    if not base.is_dir():
        return []
    return sorted(entry.name for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def live_labs() -> list[State]:
    states = (load(lab_directory(name)) for name in lab_names())
    return [state for state in states if state is not None and state.alive]


def choose(name: str | None) -> State:
    """The lab that is meant: `name`, else SAFELAB_NAME, else the only one that is up.

    Raises LabError when there is none, or when several could be meant.
    """
    name = name or os.environ.get(NAME_VARIABLE)
    if name is None:
        live = live_labs()
        if not live:
            raise LabError("no lab is up", "safelab up")
        if len(live) > 1:
            names = ", ".join(state.plan.name for state in live)
            raise LabError(f"several labs are up: {names}", f"name one with --name, or export {NAME_VARIABLE}=NAME")
        return live[0]
    state = load(lab_directory(name))
    if state is None:
        raise LabError(
            f"there is no lab {name!r}", f"labs: {', '.join(lab_names()) or 'none'}; make one: safelab up --name {name}"
        )
    if not state.alive:
        raise LabError(
            f"lab {name!r} is dead: its keeper (process {state.keeper.pid}) is gone, and all its nodes with it",
            f"remove what is left with: safelab down --name {name}",
        )
    return state


@contextmanager
def changing_labs() -> Iterator[Path]:
    """Held while a lab is named or removed, so that two commands never want the same name."""
    base = labs_directory()
    base.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield base
    finally:
        os.close(descriptor)


def remove_directory(directory: Path) -> None:
    """Remove a dead lab's directory. Renamed first: a half-removed lab is never taken for a lab."""
    grave = directory.with_name(f".removed-{directory.name}-{os.getpid()}")
    try:
        directory.rename(grave)
    except FileNotFoundError:
        return
    shutil.rmtree(grave, onerror=_unseal)


def _unseal(
    remove: Callable[[str], object], path: str, failure: tuple[type[BaseException], BaseException, object]
) -> None:
    """What lies under the mount of a server that lost its power lets nobody remove it."""
    if not isinstance(failure[1], PermissionError):
        raise failure[1]
    placeholder.unseal(os.fsencode(path))
    remove(path)

"""What the agent knows of modules and resources: the present, and what has changed since it looks.

`Inventory` is told what the files say (`observe`) and counts; reading them is `sight`. Numbers of resources never move:
a manager that graphs row 7 graphs the same resource next year, so they are kept in a file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from safekit.configuration import list_modules
from safekit.disk.files import boot_identity, write_atomic
from safekit.disk.paths import ModulePaths, safevar
from safekit.disk.resources import MAX_FILE, Resource, parse
from safekit.view.module import ModuleView, view_of

MAX_RESOURCES = 2000
"""Per module; what comes later is not shown. A module has some dozens."""


class Action(IntEnum):
    """What can be written to skModuleAction. The numbers are frozen."""

    NONE = 0
    START = 1
    STOP = 2
    RESTART = 3
    SWAP = 4
    STOPSTART = 5
    PRIM = 6
    SECOND = 7


class Outcome(IntEnum):
    """What became of the last action. The numbers are frozen."""

    NONE = 0
    PENDING = 1
    """Asked for, no answer yet."""
    RUNNING = 2
    """Accepted; the module is on its way."""
    DONE = 3
    """The module is in a stable state after it."""
    REFUSED = 4


@dataclass
class Tracked:
    """A value that is watched: `changed` is Unix time, 0 when it has not changed since the agent looks."""

    value: str
    since: float
    setter: str = ""
    changes: int = 0

    def see(self, value: str, since: float, setter: str = "") -> bool:
        """Take a new sight; True when something happened. A value that went and came back between two looks has
        another date: that is two changes."""
        if (value, since) == (self.value, self.since):
            return False
        self.changes += 1 if value != self.value else 2
        self.value, self.since, self.setter = value, since, setter
        return True


@dataclass
class Module:
    """One row of the module table, and its resources by their number."""

    name: str
    id: int
    view: ModuleView
    state: Tracked
    resources: dict[int, Tracked] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    action: Action = Action.NONE
    outcome: Outcome = Outcome.NONE
    message: str = ""
    asked: float = 0.0


@dataclass(frozen=True)
class Sight:
    """What the files of a module say. `known`: as safeadmin tells it (running, heart, mode, id)."""

    name: str
    known: Mapping[str, Any]
    resources: Mapping[str, Resource]


class Inventory:
    """All modules by id. `version` grows with every change that a manager could see."""

    def __init__(self, numbers: Mapping[str, Mapping[str, int]]) -> None:
        self.modules: dict[int, Module] = {}
        self.version = 0
        self.numbers: dict[str, dict[str, int]] = {name: dict(known) for name, known in numbers.items()}
        self.numbers_changed = False

    def observe(self, sights: list[Sight]) -> None:
        """The files now. A module that has gone loses its row and its numbers: its id may be another module's next."""
        found = {}
        for sight in sights:
            number = int(sight.known.get("id") or 0)
            if number and number not in found:
                found[number] = self._module(number, sight)
        if found.keys() != self.modules.keys():
            self.version += 1
        self.modules = found
        names = {sight.name for sight in sights}
        for gone in self.numbers.keys() - names:
            del self.numbers[gone]
            self.numbers_changed = True

    def _module(self, number: int, sight: Sight) -> Module:
        view = view_of(sight.name, sight.known, sight.resources)
        text, since = f"{view.state} {view.color}", view.since
        known = self.modules.get(number)
        if known is None or known.name != sight.name:
            known = Module(sight.name, number, view, Tracked(text, since))
            self.version += 1
        elif known.state.see(text, since) or known.view != view:
            self.version += 1
        known.view = view
        self._resources(known, sight.resources)
        if known.outcome is Outcome.RUNNING and not view.transient and time.time() - known.asked > SETTLE_SECONDS:
            known.outcome = Outcome.DONE
            self.version += 1
        return known

    def _resources(self, module: Module, resources: Mapping[str, Resource]) -> None:
        numbers = self.numbers.setdefault(module.name, {})
        for name in sorted(resources.keys() - numbers.keys()):
            if len(numbers) >= MAX_RESOURCES:
                break
            numbers[name] = max(numbers.values(), default=0) + 1
            self.numbers_changed = True
        shown = {numbers[name]: resource for name, resource in resources.items() if name in numbers}
        for number in module.resources.keys() - shown.keys():
            del module.resources[number], module.names[number]
            self.version += 1
        for number, resource in shown.items():
            tracked = module.resources.get(number)
            if tracked is None:
                module.resources[number] = Tracked(resource.value, resource.since, resource.setter)
                module.names[number] = resource.name
                self.version += 1
            elif tracked.see(resource.value, resource.since, resource.setter):
                self.version += 1

    def by_name(self, name: str) -> Module | None:
        return next((module for module in self.modules.values() if module.name == name), None)


SETTLE_SECONDS = 1.0
"""A module needs a moment to begin what it has accepted; until then its state is still the former one."""


def numbers_file() -> Path:
    """Where the numbers of the resources are kept."""
    return safevar() / "snmp" / "numbers.json"


def load_numbers() -> dict[str, dict[str, int]]:
    """The kept numbers; none when the file is damaged: rows then are numbered anew, which the agent says."""
    try:
        data = json.loads(numbers_file().read_bytes())
        return {str(m): {str(n): int(i) for n, i in known.items()} for m, known in data.items()}
    except FileNotFoundError:
        return {}


def save_numbers(inventory: Inventory) -> None:
    """Raises OSError."""
    if inventory.numbers_changed:
        numbers_file().parent.mkdir(mode=0o770, parents=True, exist_ok=True)
        write_atomic(numbers_file(), json.dumps(inventory.numbers, sort_keys=True).encode())
        inventory.numbers_changed = False


class Files:
    """Reads the files of all modules; those that have not changed cost a `stat` each."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[tuple[int, ...], Any]] = {}

    def _cached(self, path: Path, read: Any, default: Any) -> Any:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            found = self._kept.get(path)
            if found is None or found[0] != stamp:
                with open(path, encoding="utf-8", errors="replace") as handle:
                    found = self._kept[path] = (stamp, read(handle.read(MAX_FILE)))
            return found[1]
        except (OSError, ValueError):
            self._kept.pop(path, None)
            return default

    def sights(self, admin: Mapping[str, Any]) -> list[Sight]:
        """All installed modules. `admin` is what safeadmin said last of each; empty when it is silent."""
        boot = boot_identity()
        found = []
        for name in list_modules():
            paths = ModulePaths(name)
            running = self._cached(paths.marker, str.strip, "") == boot
            known = {
                "heart": running,
                "mode": self._cached(paths.active_json, _mode, ""),
                **(admin.get(name) or {}),
                "running": running,
                "past": False,
                "id": self._cached(paths.id_file, int, 0),
            }
            found.append(Sight(name, known, self._cached(paths.resources, parse, {})))
        return found


def _mode(text: str) -> str:
    return str(json.loads(text)["service"]["mode"])

"""What the web service knows of the modules of this server: from the resource files, and from safeadmin."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safekit.bus.endpoint import BusError, Endpoint
from safekit.bus.requests.safeadmin.modules import GetState
from safekit.configuration import list_modules
from safekit.disk.files import boot_identity
from safekit.disk.paths import ModulePaths, valid_module_name
from safekit.disk.resources import load
from safekit.view.module import ModuleView, as_data, read_module

ADMIN_SECONDS = 1.0
READY_STATES = frozenset({"PRIM", "ALONE", "UP"})


class NoModule(Exception):
    """A module that is not installed, or a name that is none."""


def paths_of(name: str) -> ModulePaths:
    """Paths of an installed module: no name leaves the module directories. Raises NoModule."""
    if not valid_module_name(name) or name == "lastconfig" or not ModulePaths(name).root.is_dir():
        raise NoModule(f"module {name[:64]} is not installed on this server")
    return ModulePaths(name)


def runs(paths: ModulePaths) -> bool:
    """Whether the module runs since this boot: after a power failure its resource file still tells the past."""
    try:
        return paths.marker.read_text(encoding="utf-8").strip() == boot_identity()
    except (FileNotFoundError, NotADirectoryError):
        return False


def local_state(paths: ModulePaths) -> tuple[str, str]:
    """State and colour, without asking anybody: load balancers come several times a second."""
    if not runs(paths):
        return "STOP", "red"
    resources = load(paths.resources)
    state, color = resources.get("state.local"), resources.get("state.color")
    return state.value if state else "WAIT", color.value if color else "magenta"


def ready(paths: ModulePaths) -> bool:
    """Whether this server offers the module's service: PRIM, ALONE or UP, green (guide 13.5.3)."""
    state, color = local_state(paths)
    return state in READY_STATES and color == "green"


def incarnation(paths: ModulePaths) -> int:
    """Grows with every start of the module (and of its heart), so that a checker sees a restart that happened
    between two looks; 0 before the first start."""
    return _number(paths.var / "heart.epoch")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


class Modules:
    """The modules as safeadmin and the resource files tell, with one question to safeadmin a second at most."""

    def __init__(self, bus: Endpoint) -> None:
        self._bus = bus
        self._asked = -ADMIN_SECONDS
        self._answer: dict[str, Any] = {}

    async def admin(self) -> dict[str, Any]:
        """The answer of safeadmin to `state`; empty when it does not answer."""
        if time.monotonic() - self._asked >= ADMIN_SECONDS:
            self._answer = {}
            with contextlib.suppress(BusError):
                self._answer = await self._bus.ask("", GetState(), 1.0)
            self._asked = time.monotonic()
        return self._answer

    async def view(self, paths: ModulePaths) -> ModuleView:
        """One module."""
        answer = await self.admin()
        known: Mapping[str, Any] = answer.get("modules", {}).get(paths.module, {})
        seen = answer.get("cluster", {}).get(paths.module)
        return read_module(paths.module, {**known, "cluster": seen} if known else {"running": runs(paths)})

    async def describe(self, paths: ModulePaths) -> dict[str, Any]:
        """The JSON form of one module, as `safekit state --json` prints it."""
        return {
            **as_data(await self.view(paths), None, resources=False),
            "configured": paths.active_json.exists(),
            "incarnation": incarnation(paths),
            "ready": ready(paths),
        }

    async def all(self) -> list[dict[str, Any]]:
        """Every installed module, by name."""
        return [await self.describe(ModulePaths(name)) for name in list_modules()]

"""What is known of the modules of this server without asking their processes: installed, configured,
boot setting (guide 9.2, 9.3). Read from files, and read again only when a file has changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime

from safeadmin.facts import ModuleFacts
from safekit.disk.paths import ModulePaths, safe, valid_module_name
from safekit.disk.resources import load
from safekit.model.agreement import agreement
from safekit.model.types import ModuleConfig
from safekit.process.frame import Unconfigured, load_module


@dataclass(frozen=True, slots=True)
class Installed:
    """A module of this server. `config` is None until it is configured; `problem` says why a
    configuration that is there cannot be used."""

    name: str
    id: int
    boot: bool
    config: ModuleConfig | None
    problem: str = ""

    @property
    def mode(self) -> str:
        """mirror, farm or light; "" when not configured."""
        return "" if self.config is None else self.config.service.mode

    def facts(self, running: bool) -> ModuleFacts:
        """What the other servers may know."""
        if self.config is None:
            return ModuleFacts(self.name, self.id, "", "", "", running)
        date = datetime.fromtimestamp(self.config.configured_at).isoformat(timespec="seconds")
        state, since = _state(self.name) if running else ("", 0)
        return ModuleFacts(
            self.name, self.id, self.mode, self.config.signature, date, running, agreement(self.config), state, since
        )


def _state(name: str) -> tuple[str, int]:
    """The state of a module that runs, and since when."""
    try:
        found = load(ModulePaths(name).resources).get("state.local")
    except OSError:
        return "", 0
    return (found.value, int(found.since)) if found is not None else ("", 0)


def read_boot(paths: ModulePaths) -> bool:
    """Whether the module starts at boot; off by default."""
    try:
        return paths.boot_file.read_text().strip() == "on"
    except OSError:
        return False


def _read_id(paths: ModulePaths) -> int:
    try:
        return int(paths.id_file.read_text())
    except (OSError, ValueError):
        return 0


class Registry:
    """The modules under SAFE/modules and SAFE/private/modules."""

    def __init__(self) -> None:
        self._configs: dict[str, tuple[tuple[int, int, int], ModuleConfig | None, str]] = {}

    def names(self) -> list[str]:
        """Installed or configured modules, sorted."""
        found: set[str] = set()
        for directory in (safe() / "modules", safe() / "private" / "modules"):
            try:
                entries = list(os.scandir(directory))
            except OSError:
                continue
            found |= {e.name for e in entries if valid_module_name(e.name) and e.is_dir() and e.name != "lastconfig"}
        return sorted(found)

    def get(self, name: str) -> Installed | None:
        """A module, None when there is none of that name. Raises ValueError for what is no module name."""
        paths = ModulePaths(name)
        if not paths.root.is_dir() and not paths.active.is_dir():
            self._configs.pop(name, None)
            return None
        config, problem = self._config(paths)
        return Installed(name, config.id if config else _read_id(paths), read_boot(paths), config, problem)

    def all(self) -> list[Installed]:
        """Every module, by name."""
        return [module for module in map(self.get, self.names()) if module is not None]

    def _config(self, paths: ModulePaths) -> tuple[ModuleConfig | None, str]:
        try:
            status = os.stat(paths.active_json)
        except OSError:
            self._configs.pop(paths.module, None)
            return None, ""
        version = (status.st_dev, status.st_ino, status.st_mtime_ns)
        known = self._configs.get(paths.module)
        if known is None or known[0] != version:
            try:
                known = (version, load_module(paths), "")
            except Unconfigured as error:
                known = (version, None, str(error))
            self._configs[paths.module] = known
        return known[1], known[2]

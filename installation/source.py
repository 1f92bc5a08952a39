"""What of a checkout makes up the product, and a fingerprint of it."""

from __future__ import annotations

import configparser
import fnmatch
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from installation.requirements import requirements

MODULE_KINDS = ("generic", "demo", "other", "backup")


@dataclass(frozen=True)
class Source:
    """A checkout of the product. Raises FileNotFoundError when `path` holds no setup.cfg."""

    path: Path

    @cached_property
    def settings(self) -> configparser.ConfigParser:
        parser = configparser.ConfigParser()
        parser.read_string((self.path / "setup.cfg").read_text())
        return parser

    @property
    def version(self) -> str:
        return self.settings["metadata"]["version"]

    @property
    def requirements(self) -> tuple[str, ...]:
        return requirements(self.path / "setup.cfg")

    @property
    def packaged(self) -> bool:
        """Whether this is what a .deb brought: complete, and not to be written to."""
        return (self.path / "wheels").is_dir()

    @property
    def wheels(self) -> Path:
        """The third-party packages that `bin/setup` collected, or that a .deb brought."""
        return self.path / "wheels" if self.packaged else self.path / ".cache" / "wheels"

    @cached_property
    def packages(self) -> tuple[str, ...]:
        """Top-level packages, as setup.cfg finds them."""
        patterns = [item.strip() for item in self.settings["options.packages.find"]["include"].split(",")]
        return tuple(
            sorted(
                entry.name
                for entry in self.path.iterdir()
                if (entry / "__init__.py").is_file() and any(fnmatch.fnmatch(entry.name, item) for item in patterns)
            )
        )

    @cached_property
    def scripts(self) -> dict[str, tuple[str, str]]:
        """Name of a process or command -> its module and function."""
        found = {}
        for line in self.settings["options.entry_points"]["console_scripts"].splitlines():
            if line.strip():
                name, _, target = line.partition("=")
                module, _, function = target.strip().partition(":")
                found[name.strip()] = (module, function)
        return found

    @cached_property
    def _data_patterns(self) -> tuple[str, ...]:
        return tuple(item.strip() for item in self.settings["options.package_data"]["*"].split(","))

    def package_files(self) -> Iterator[Path]:
        """Files of the Python packages, relative to the checkout."""
        for package in self.packages:
            for folder, folders, names in os.walk(self.path / package):
                folders[:] = sorted(name for name in folders if name != "__pycache__")
                for name in sorted(names):
                    if name.endswith(".py") or any(fnmatch.fnmatch(name, item) for item in self._data_patterns):
                        yield (Path(folder) / name).relative_to(self.path)

    def tree_files(self, folder: str) -> Iterator[Path]:
        """Files below `folder` of the checkout, relative to the checkout."""
        for top, folders, names in os.walk(self.path / folder):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                yield (Path(top) / name).relative_to(self.path)

    def module_templates(self) -> Iterator[tuple[str, str, Path]]:
        """(kind, module name, directory) of each module template."""
        for kind in MODULE_KINDS:
            base = self.path / "Application_Modules" / kind
            for entry in sorted(base.iterdir()) if base.is_dir() else ():
                if (entry / "conf" / "userconfig.xml").is_file():
                    yield kind, entry.name, entry

    def fingerprint(self) -> str:
        """Changes with every file that is installed, its mode included; 16 hexadecimal digits."""
        digest = hashlib.sha256((self.path / "setup.cfg").read_bytes())
        files = [*self.package_files(), *self.tree_files("private"), *self.tree_files("Application_Modules")]
        for relative in files:
            path = self.path / relative
            digest.update(f"\0{relative}\0{path.stat().st_mode:o}\0".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def this_checkout() -> Source:
    """The checkout that the running code belongs to. Raises FileNotFoundError in an installed product."""
    path = Path(__file__).resolve().parents[1]
    if not (path / "setup.cfg").is_file():
        raise FileNotFoundError(f"{path} is not a checkout of the product (no setup.cfg)")
    return Source(path)

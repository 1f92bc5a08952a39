"""Ids of the installed modules: the same number on every server, what the ports of a module are made of."""

from __future__ import annotations

from cli.base import Failure, installed_modules
from safekit.disk.paths import ModulePaths


def module_id(paths: ModulePaths) -> int | None:
    """Id of an installed module, None when it has none."""
    try:
        return int(paths.id_file.read_text().strip())
    except (FileNotFoundError, ValueError):
        return None


def ids_in_use() -> dict[int, str]:
    """Ids of the installed modules."""
    found = {name: module_id(ModulePaths(name)) for name in installed_modules()}
    return {number: name for name, number in found.items() if number is not None}


def free_id(used: dict[int, str]) -> int:
    """The smallest free id. Raises Failure when there is none."""
    from safekit.model.ports import MAX_MODULE_ID

    for number in range(1, MAX_MODULE_ID + 1):
        if number not in used:
            return number
    raise Failure("every module id is in use", "uninstall a module: safekit module uninstall -m AM")

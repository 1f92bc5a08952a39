"""Ids of the installed modules: the same number on every server, what the ports of a module are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cli.base import Failure, installed_modules
from safekit.disk.files import write_atomic
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


@dataclass(frozen=True)
class Elsewhere:
    """A module of another server, as safeadmin knows it. `agrees`: see safekit.model.agreement."""

    node: str
    module: str
    id: int
    configured: bool
    agrees: tuple[tuple[str, str], ...] = ()


def elsewhere() -> tuple[Elsewhere, ...]:
    """The modules of the other servers that are known; none while this server is in no cluster."""
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError
    from safekit.bus.requests.safeadmin.node import GetMembers

    try:
        told = ask_sync("", GetMembers(), 1.0)
    except BusError:
        return ()
    nodes: dict[str, Any] = told.get("nodes") or {}
    return tuple(
        Elsewhere(
            name,
            str(module["name"]),
            int(module["id"]),
            bool(module.get("signature")),
            tuple((str(key), str(value)) for key, value in module.get("agrees") or ()),
        )
        for name, node in nodes.items()
        if name != told.get("node")
        for module in (node.get("facts") or {}).get("modules", ())
    )


def cluster_id(module: str, others: tuple[Elsewhere, ...]) -> Elsewhere | None:
    """The server that says what the id of a module is: one on which it is configured, else one that has it installed.
    None when no other server knows the module."""
    known = [other for other in others if other.module == module and other.id]
    return min(known, key=lambda other: (not other.configured, other.node), default=None)


def chosen_id(module: str, used: dict[int, str], others: tuple[Elsewhere, ...]) -> int:
    """The id of a module that is installed here: that of the other servers, else one that is free on all of them, in
    whatever order modules are installed. Raises Failure."""
    known = cluster_id(module, others)
    if known is None:
        return free_id({other.id: other.module for other in others} | used)
    if used.get(known.id, module) != module:
        raise Failure(
            f"module {module} has id {known.id} on {known.node}, which belongs to module {used[known.id]} here",
            f"choose an id that is free on all servers (safekit module listid), and install with it everywhere: "
            f"safekit module install -M ID -m {module} FILE.safe",
        )
    return known.id


def align(paths: ModulePaths) -> str:
    """Before the first configuration here: the id becomes that of the servers on which the module is configured. What
    was done, as a sentence; "" when there was nothing to do. Raises OSError."""
    if paths.active_json.exists():
        return ""
    known = cluster_id(paths.module, elsewhere())
    if known is None or not known.configured or known.id == module_id(paths):
        return ""
    if ids_in_use().get(known.id, paths.module) != paths.module:
        return ""  # other ids are told as a difference when the module is configured
    former = module_id(paths)
    write_atomic(paths.id_file, f"{known.id}\n".encode())
    return f"the id of module {paths.module} is now {known.id}, as on {known.node} (it was {former})"


def free_id(used: dict[int, str]) -> int:
    """The smallest free id. Raises Failure when there is none."""
    from safekit.model.ports import MAX_MODULE_ID

    for number in range(1, MAX_MODULE_ID + 1):
        if number not in used:
            return number
    raise Failure("every module id is in use", "uninstall a module: safekit module uninstall -m AM")

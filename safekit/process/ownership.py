"""Whose a process is: the module that started it, and the programs of the product.

What a module starts inherits SAFEMODULE and SAFEVAR, however it detaches itself: a process group is left with setsid,
and the parent's number is lost by a double fork. (A program that empties its environment is lost to this.) A container
or a lab node on this machine may use the same paths: what runs in another PID namespace is never ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from safekit.disk.paths import process_program, safevar, valid_module_name
from safekit.process.table import Process, environment, namespace, numbers, processes

DEFAULT_VAR = "/var/safekit"


def module_of(pid: int, variables: dict[str, str] | None = None) -> str | None:
    """The module of this server that started a process; None when none did, or when it may not be known.

    variables: the process's environment, where it has been read already.
    """
    variables = environment(pid) if variables is None else variables
    module = variables.get("SAFEMODULE", "")
    if not valid_module_name(module) or variables.get("SAFEVAR", DEFAULT_VAR) != str(safevar()):
        return None
    return module if namespace(pid) == namespace(os.getpid()) else None


def modules() -> Iterator[tuple[int, str]]:
    """The processes that modules of this server started, with their module; never the caller."""
    for pid in numbers():
        module = module_of(pid) if pid != os.getpid() else None
        if module is not None:
            yield pid, module


def product_program(arguments: Iterable[str]) -> str | None:
    """The program of the product that a command line runs; None for everything else.

    A program of ours is a script, so its path is one of the first words.
    """
    programs = os.path.dirname(process_program("x"))
    for word in list(arguments)[:3]:
        directory, name = os.path.split(word)
        if directory == programs and not name.startswith("python"):
            return name
    return None


def of_module(module: str, names: Iterable[str], supervisor_conf: str) -> list[Process]:
    """The processes of these names that belong to a module, told by their environment, or by the supervisor's
    configuration in their command."""
    wanted = set(names)
    return [
        process
        for process in processes()
        if process.name in wanted
        and namespace(process.pid) == namespace(os.getpid())
        and (module_of(process.pid) == module or supervisor_conf in process.arguments)
    ]

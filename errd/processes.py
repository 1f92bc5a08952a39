"""Which of the processes of this server a <proc> means, and which of them are the module's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from safekit.model.regex import Expression
from safekit.model.types import Proc
from safekit.process.ownership import module_of, product_program
from safekit.process.table import Process, descendants, named


class Matcher:
    """Selects the processes of a <proc>: by name or nameregex, and by argregex (13.9.3)."""

    def __init__(self, name: str, nameregex: str | None = None, argregex: str | None = None) -> None:
        self._name = name
        self._nameregex = Expression(nameregex) if nameregex is not None else None
        self._argregex = Expression(argregex) if argregex is not None else None

    @classmethod
    def of(cls, proc: Proc) -> Matcher:
        """The matcher of a configured <proc>. Raises BadExpression, which the configuration check excludes."""
        return cls(proc.name, proc.nameregex, proc.argregex)

    def __call__(self, process: Process) -> bool:
        if self._nameregex is not None:
            if not self._nameregex.found_in(process.name):
                return False
        elif not named(process, self._name):
            return False
        return self._argregex is None or self._argregex.found_in(process.command)

    def select(self, processes: Iterable[Process]) -> tuple[Process, ...]:
        """The processes that match."""
        return tuple(process for process in processes if self(process))


def own(module: str, found: Sequence[Process], watched: Iterable[Process]) -> tuple[Process, ...]:
    """The processes of `found` that a command for the module may end.

    A process is the module's own when the module started it, or one of its <proc> counts it (`watched`), or when it
    descends from such a one. The programs of the product never are, nor what another module started: whoever may
    command one module has no right to those.
    """
    modules = {process.pid: module_of(process.pid) for process in found}
    roots = {pid for pid, owner in modules.items() if owner == module} | {process.pid for process in watched}
    below = roots | set(descendants(roots))
    return tuple(
        process
        for process in found
        if process.pid in below
        and modules[process.pid] in (module, None)
        and product_program(process.arguments) is None
    )

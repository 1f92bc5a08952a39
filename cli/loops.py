"""incloop, checkloop, resetloop (guide 14.5): the maxloop counter, for special handlers.

While the module runs, heart has the counter; it leaves it in the resource file, where it stands until the module is
started again by hand. Exit code 1 is an answer (the limit is reached), so an error is 2: a handler that asks must not
take the one for the other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from cli.base import Failure, ask, command, identity_options, module_option, module_paths, require_admin, session, who
from safekit.bus.requests import heart
from safekit.bus.requests.safeadmin.modules import SetResource
from safekit.disk.paths import ModulePaths

LIMIT_REACHED, FAILED = 1, 2
_COUNT, _SINCE = "state.loop", "state.loopsince"


@dataclass(frozen=True, slots=True)
class Counter:
    """The counter of a module. reached: over maxloop, and counted first within loop_interval."""

    count: int
    maxloop: int
    reached: bool

    def show(self, module: str) -> int:
        """Print it; the exit code."""
        click.echo(f"{module}: {self.count} automatic actions, maxloop {self.maxloop}")
        return LIMIT_REACHED if self.reached else 0


def _paths(module: str | None) -> ModulePaths:
    try:
        return module_paths(module, configured=True)
    except Failure as failure:
        raise Failure(failure.text, failure.next_step, FAILED) from None


def _running(paths: ModulePaths) -> bool:
    return bool(require_admin().get("modules", {}).get(paths.module, {}).get("running"))


def _of_heart(
    paths: ModulePaths, request: type[heart.CountLoop] | type[heart.CheckLoop] | type[heart.ResetLoop]
) -> Counter:
    """What heart answers. Raises Failure."""
    try:
        answer = ask(paths.module, request(session().identity or "", who()))
    except Failure as failure:
        raise Failure(failure.text, failure.next_step, FAILED) from None
    return Counter(answer.count, answer.maxloop, answer.reached)


def _left_behind(paths: ModulePaths) -> Counter:
    """What the last heart left in the resource file of a stopped module."""
    from safekit.configuration import active
    from safekit.disk.resources import load

    service, resources = active(paths.module).service, load(paths.resources)
    count, since = (resources[name].value if name in resources else "" for name in (_COUNT, _SINCE))
    if not count.isdigit() or not since.isdigit():
        return Counter(0, service.maxloop, reached=False)
    recent = time.time() - int(since) < service.loop_interval_h * 3600
    return Counter(int(count), service.maxloop, int(count) > service.maxloop and recent)


@command("incloop", example="safekit incloop -m mirror -i restart_appli || safekit stop -m mirror", modifies="by hand")
@module_option
@identity_options
def incloop_command(module: str | None, **_: object) -> int:
    """Count one automatic action of handler -i. Exit code 1 when this count exceeds maxloop, else 0; 2 for an error.

    A stopped module has nothing to count.
    """
    paths = _paths(module)
    if not _running(paths):
        raise Failure(
            f"module {paths.module} is stopped: automatic actions are counted while it runs",
            f"safekit checkloop -m {paths.module} shows the count; safekit start -m {paths.module}",
            FAILED,
        )
    return _of_heart(paths, heart.CountLoop).show(paths.module)


@command("checkloop", example="safekit checkloop -m mirror")
@module_option
@identity_options
def checkloop_command(module: str | None, **_: object) -> int:
    """Exit code 1 when the counter exceeds maxloop, within loop_interval, else 0; 2 for an error.

    Of a stopped module it tells the count that the module was stopped with.
    """
    paths = _paths(module)
    return (_of_heart(paths, heart.CheckLoop) if _running(paths) else _left_behind(paths)).show(paths.module)


@command("resetloop", example="safekit resetloop -m mirror", modifies="by hand")
@module_option
@identity_options
def resetloop_command(module: str | None, **_: object) -> int:
    """Set the counter to 0, that of a stopped module too. Exit code 2 for an error."""
    paths = _paths(module)
    if _running(paths):
        _of_heart(paths, heart.ResetLoop)
        return 0
    if _left_behind(paths).count:
        ask("", SetResource(paths.module, _COUNT, "0", session().identity or who()))
    return 0

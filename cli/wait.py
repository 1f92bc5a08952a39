"""waitstart, waitstop, waitstate (guide 9.4): follow the resource file until the wanted state is stable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from cli.base import Failure, command, module_option, module_paths, on_terminal, require_admin, session, tell, wrapped
from cli.progress import Live
from cli.state import progress, verdict_line
from safekit.view.module import ModuleView, as_data, read_module
from safekit.view.words import progress_line

POLL = 0.05
ADMIN_POLL = 0.5
TIMEOUT_CODE = 1
STOPPED_SECONDS = 1.0
"""A module without processes for so long is not about to have new ones by itself."""
MIRROR_STATES, FARM_STATES = frozenset({"ALONE", "PRIM", "SECOND"}), frozenset({"UP"})
OTHER_MODE = {"mirror": FARM_STATES, "farm": MIRROR_STATES, "light": MIRROR_STATES}
_GREEN = ("ALONE", "PRIM", "SECOND", "UP")


def _known(module: str) -> dict[str, Any]:
    """What safeadmin says about the module now."""
    session().admin_state = None
    found = require_admin().get("modules", {}).get(module, {})
    return dict(found)


def views(module: str, deadline: float | None) -> Iterator[ModuleView]:
    """The view of the module after each change, at most POLL seconds late, until the deadline."""
    path = module_paths(module).resources
    last: tuple[int, int] | None = None
    known, asked = _known(module), time.monotonic()
    while True:
        try:
            status = os.stat(path)
            stamp = (status.st_ino, status.st_mtime_ns)
        except FileNotFoundError:
            stamp = (0, 0)
        refreshed = time.monotonic() - asked > ADMIN_POLL
        if refreshed:
            known, asked = _known(module), time.monotonic()
        if stamp != last or refreshed:
            last = stamp
            yield read_module(module, known)
        if deadline is not None and time.monotonic() >= deadline:
            return
        time.sleep(POLL)


def follow(view: ModuleView, live: Live) -> None:
    """Show the state, and how far a reintegration is."""
    running = progress(view) if on_terminal() else None
    tail = f", {progress_line(running)}" if running is not None else ""
    live.show(f"{view.module}: {view.state} {view.color}{tail}")


def wait_until(
    module: str, wanted: Callable[[ModuleView], bool | None], timeout: float, what: str, hopeless: str = ""
) -> ModuleView:
    """Wait until `wanted` says True. Raises Failure when it says None (it can no longer happen: `hopeless` and the
    verdict tell why) or when `timeout` seconds (0: no limit) have passed."""
    view: ModuleView | None = None
    with Live(keep=True) as live:
        for view in views(module, time.monotonic() + timeout if timeout else None):
            follow(view, live)
            answer = wanted(view)
            if answer is None:
                verdict = view.verdict
                text = hopeless.format(state=view.state, color=view.color)
                step = f"safekit log -m {module} tells what happened"
                step = f"{verdict.next_step}; {step}" if verdict.next_step else step
                raise Failure(f"{text}: {verdict.reason}", step)
            if answer:
                return view
    assert view is not None
    raise Failure(
        f"{what} of module {module}: not reached within {timeout:g} s, the state is {view.state} {view.color}: "
        f"{view.verdict.reason}",
        f"safekit why -m {module}, safekit log -m {module}",
        TIMEOUT_CODE,
    )


def show_end(view: ModuleView) -> None:
    """What became of a start or of a wait: the state, and the verdict on it."""
    click.echo(f"{view.module}: {view.state} {view.color}")
    click.echo(wrapped(verdict_line(view, time.time()), "  "))
    tell(**as_data(view, None, resources=False))


def wait_for_start(module: str, timeout: float, hopeless: str) -> None:
    """Wait until a start has ended, and say what became of it. Raises Failure when the module has stopped instead."""
    show_end(wait_until(module, started, timeout, "start", hopeless))


_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0), default=0, metavar="SECONDS", help="Give up after that (0: never)."
)


def started(view: ModuleView) -> bool | None:
    """Whether a start has ended; None: in a stop."""
    if not view.running:
        return None
    if view.state == "WAIT":
        return view.color == "red"
    return view.state in _GREEN and view.color == "green"


@command("waitstart", example="safekit waitstart -m mirror --timeout 60")
@module_option
@_timeout
def waitstart_command(module: str | None, timeout: float) -> int:
    """Wait until the start of the module has ended: a stable state, green, or WAIT red when a resource is down.

    Shows the state and the verdict. Exit code 1, with the cause, when the module stopped instead, or when the time is
    over.
    """
    paths = module_paths(module, configured=True)
    wait_for_start(paths.module, timeout, f"module {paths.module} is stopped ({{state}} {{color}})")
    return 0


@command("waitstop", example="safekit waitstop -m mirror --timeout 60")
@module_option
@_timeout
def waitstop_command(module: str | None, timeout: float) -> int:
    """Wait until the module is stopped completely. Exit code 1 when the time is over."""
    paths = module_paths(module, configured=True)
    wait_until(paths.module, lambda view: not view.running, timeout, "stop")
    return 0


@command("waitstate", example="safekit waitstate -m mirror PRIM --timeout 60")
@module_option
@click.argument("wanted", metavar="STATE", type=click.Choice(["STOP", "WAIT", "ALONE", "UP", "PRIM", "SECOND"]))
@_timeout
def waitstate_command(module: str | None, wanted: str, timeout: float) -> int:
    """Wait until the module is in STATE, and stable (red or green).

    Exit code 1 when the time is over, and at once when the state cannot come: the module is stopped (whoever stopped
    it, maxloop too), or has another mode.
    """
    paths = module_paths(module, configured=True)
    color = "red" if wanted in ("STOP", "WAIT") else "green"
    stopped_at: float | None = None

    def reached(view: ModuleView) -> bool | None:
        nonlocal stopped_at
        if view.state == wanted and view.color == color:
            return True
        if view.mode and wanted in OTHER_MODE.get(view.mode, ()):
            raise Failure(
                f"a {view.mode} module is never {wanted}",
                f"safekit waitstate -m {paths.module} {'UP' if wanted in MIRROR_STATES else 'ALONE'}",
            )
        if view.running or wanted == "STOP":
            stopped_at = None
            return False
        # its processes are replaced for a moment when supervisord has died
        stopped_at = stopped_at or time.monotonic()
        return None if time.monotonic() - stopped_at >= STOPPED_SECONDS else False

    hopeless = f"{wanted} cannot come: module {paths.module} is stopped"
    show_end(wait_until(paths.module, reached, timeout, f"state {wanted} {color}", hopeless))
    return 0

"""Commands that change the state of a module (guide 9.4, stopwait: 13.18.4).

The command is handed to safeadmin, which passes it to heart, or starts the module's processes first. It
returns when the command is accepted; waitstart, waitstop and waitstate wait for its end. A start that comes while the
module still stops waits for the end of the stop, and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.base import (
    Failure,
    ask,
    command,
    identity_options,
    module_option,
    module_paths,
    on_terminal,
    require_admin,
    session,
    tell,
    who,
)
from safekit.bus.requests.safeadmin.modules import Control

if TYPE_CHECKING:
    from safekit.disk.paths import ModulePaths

CONTROL_TIMEOUT = 20.0
STOP_SECONDS = 900.0
"""As long as a start waits for the stop before it: more than the stop scripts may take by default."""
STOPPING = ("refused", "stopping")
"""How heart, and safeadmin while a stop is forced, refuse a start that comes too early."""
ALREADY = "already"
"""How heart refuses the start of a module that is started."""
STOPS = ("stop", "forcestop")
STARTS = ("start", "prim", "primforce", "second")
_MIRROR_ONLY = "is for mirror modules only"


def control(
    module: str | None, action: str, *, mirror: bool = False, nosync: bool = False, fullsync: bool = False
) -> int:
    """Send one control command. Raises Failure when the module cannot take it."""
    paths = module_paths(module, configured=True)
    known = require_admin().get("modules", {}).get(paths.module, {})
    mode = known.get("mode")
    if mirror and mode not in (None, "", "mirror"):
        raise Failure(f"safekit {action} {_MIRROR_ONLY}; {paths.module} is a {mode} module", "safekit module listid")
    identity = session().identity or ""
    if action in STARTS and not identity and not known.get("running"):
        _refuse_holders(paths)
    told = Control(paths.module, action, identity or who(), identity, nosync, fullsync)

    def order() -> None:
        ask("", told, CONTROL_TIMEOUT, f"safekit state -m {paths.module}")

    tell(module=paths.module, action=action, changed=True)
    if action in STOPS and "running" in known and not known["running"]:
        click.echo(f"module {paths.module} is stopped already")
        tell(changed=False)
    try:
        order()
    except Failure as failure:
        if failure.refusal == ALREADY:
            # whoever asks for what is so already has it
            click.echo(failure.text)
            tell(changed=False)
            return 0
        if action not in STARTS or failure.refusal not in STOPPING or not _being_stopped(paths):
            raise
        _wait_for_stop(paths)
        order()
    return 0


def _refuse_holders(paths: ModulePaths) -> None:
    """Say at once what nfsbox would say in the log: somebody has files of a replicated directory. Raises Failure."""
    import os

    if os.geteuid() != 0:
        return  # others do not see who has what
    from safekit.configuration import active
    from safekit.process.holders import objection

    rfs = active(paths.module).rfs
    for replicated in rfs.replicated if rfs is not None else ():
        backing = rfs.backing(replicated) if rfs is not None else ""
        if os.path.isdir(backing):
            found = objection(os.fsencode(backing))
            if found is not None:
                problem, next_step = found
                raise Failure(problem, next_step)


def _being_stopped(paths: ModulePaths) -> bool:
    """Whether a stop that no start follows by itself is in progress, or has just ended."""
    from safekit.disk.resources import load

    asked = load(paths.resources).get("state.command")
    session().admin_state = None
    running = require_admin().get("modules", {}).get(paths.module, {}).get("running")
    return not running or (asked is not None and asked.value == "stop")


def _wait_for_stop(paths: ModulePaths) -> None:
    """Wait until the module has stopped. Raises Failure after STOP_SECONDS."""
    from cli.wait import wait_until

    click.echo(f"Module {paths.module} is being stopped: the start waits for the end of the stop.", err=True)
    wait_until(paths.module, lambda view: not view.running, STOP_SECONDS, "the end of the stop")


def _simple(name: str, help_text: str, example: str, *, mirror: bool = False, action: str | None = None) -> Any:
    @command(name, example=example, modifies=True, help=help_text)
    @module_option
    @identity_options
    def run(module: str | None, **_: object) -> int:
        return control(module, action or name, mirror=mirror)

    return run


@command("start", example="safekit start -m mirror\nsafekit start --wait -m mirror", modifies=True)
@module_option
@click.option("--wait", is_flag=True, help="Wait for the end of the start, and say what became of it.")
@identity_options
def start_command(module: str | None, wait: bool, **_: object) -> int:
    """Start the module. In a mirror, the server with the up-to-date data becomes primary; a server whose data are not
    up to date waits for the other one. While the module still stops, the command waits for that.

    On a terminal, and with --wait, it waits for the end of the start and says what became of it (Ctrl-C ends the
    showing only; exit code 1 when the module has stopped instead). Elsewhere it returns when the start has begun:
    safekit waitstart waits. A module that is started already is no error.
    """
    code = control(module, "start")
    if wait or (on_terminal() and not session().identity):
        _follow(module, "it could not be started")
    return code


stop_command = _simple(
    "stop",
    "Stop the module. If it was primary, the secondary takes over. The command returns when the stop has begun; "
    "waitstop waits for its end.",
    "safekit stop -m mirror",
)
restart_command = _simple(
    "restart",
    "Run the stop and start scripts of the application; the state of the servers does not change.",
    "safekit restart -m mirror",
)
stopstart_command = _simple(
    "stopstart",
    "Stop the module completely, then start it. If it was primary, the secondary takes over.",
    "safekit stopstart -m mirror",
)
update_command = _simple(
    "update",
    "Have the failover rules evaluated again now. checker and failover do it by themselves.",
    "safekit update -m mirror",
)
stopwait_command = _simple(
    "stopwait",
    "Leave the running state for WAIT, as the rule action wait() does: prestart and poststop are not run, checkers "
    'with when="pre" go on.',
    "safekit stopwait -m mirror -i customscript",
)
forcestop_command = _simple(
    "forcestop", "Stop the module even if a script or a process hangs.", "safekit forcestop -m mirror"
)
prim_command = _simple(
    "prim",
    "Start as primary. Fails when the other server is primary, or when the data of this server may be inconsistent. "
    "Needed once, for the first start.",
    "safekit prim -m mirror",
    mirror=True,
)
primforce_command = _simple(
    "primforce",
    "Start as primary even if a reintegration of the data of this server was interrupted: files may be damaged. The "
    "secondary is then reintegrated completely.",
    "safekit primforce -m mirror",
    mirror=True,
)


@command("swap", example="safekit swap -m mirror\nsafekit swap nosync -m mirror", modifies=True)
@click.argument("nosync", required=False, type=click.Choice(["nosync"]))
@module_option
@identity_options
def swap_command(module: str | None, nosync: str | None, **_: object) -> int:
    """Exchange the roles of primary and secondary. With nosync the replicated directories are not synchronised
    afterwards."""
    return control(module, "swap", mirror=True, nosync=nosync is not None)


@command("second", example="safekit second -m mirror\nsafekit second fullsync -m mirror", modifies=True)
@click.argument("fullsync", required=False, type=click.Choice(["fullsync"]))
@module_option
@identity_options
def second_command(module: str | None, fullsync: str | None, **_: object) -> int:
    """Start as secondary. Fails when the other server is not primary. With fullsync all files are copied.

    On a terminal the progress of the reintegration is shown until it has ended, and how long it will take; Ctrl-C ends
    the showing only. Elsewhere the command returns at once: safekit waitstart waits for the end.
    """
    control(module, "second", mirror=True, fullsync=fullsync is not None)
    if on_terminal():
        _follow(module, "it could not become secondary")
    return 0


def _follow(module: str | None, hopeless: str) -> None:
    """Show a start until it has ended, and what became of it. Raises Failure when the module has stopped instead."""
    from cli.wait import wait_for_start

    name = module_paths(module).module
    try:
        wait_for_start(name, 0, f"module {name} is stopped, {hopeless}")
    except KeyboardInterrupt:
        click.echo(f"It goes on: safekit waitstart -m {name} shows it again.")

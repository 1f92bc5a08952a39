"""Settings of a running module: errd, checker, failover (guide 9.4) and the states of resources (13.18.4)."""

from __future__ import annotations

import click

from cli.base import Failure, ask, command, identity_options, module_option, module_paths, require_admin, session, who
from cli.control import CONTROL_TIMEOUT
from safekit.bus.requests import heart
from safekit.bus.requests.safeadmin.modules import SetResource

SYNCAT = "rfs.syncat"
_STATES = ("up", "down", "init", "unknown")


def change_setting(module: str | None, setting: str, value: str, *, mirror: bool = False) -> int:
    """Set usersetting.<setting>, on a live module in a stable state only. Raises Failure."""
    paths = module_paths(module, configured=True)
    known = require_admin().get("modules", {}).get(paths.module, {})
    if mirror and known.get("mode") not in (None, "", "mirror"):
        raise Failure(f"safekit {setting} is for mirror modules only", "safekit module listid shows the modules")
    if not known.get("running"):
        raise Failure(
            f"module {paths.module} is stopped: this setting is of a running module",
            f"safekit start -m {paths.module}",
        )
    from safekit.view.module import read_module

    view = read_module(paths.module, known)
    if setting != "errd" and view.color == "magenta":
        raise Failure(
            f"module {paths.module} is {view.state} ({view.color}): not a stable state",
            f"safekit waitstart -m {paths.module}, then the same command again",
        )
    ask(paths.module, heart.Control(setting, who(), value=value), CONTROL_TIMEOUT)
    return 0


@command("checker", example="safekit checker off -m mirror\nsafekit checker on -m mirror", modifies=True)
@click.argument("setting", type=click.Choice(["on", "off"]))
@module_option
@identity_options
def checker_command(module: str | None, setting: str, **_: object) -> int:
    """Stop or start all checkers of a live module in a stable state, for example during maintenance.

    usersetting.checker shows the setting; the next start of the module sets it back to on.
    """
    return change_setting(module, "checker", setting)


@command("failover", example="safekit failover off -m mirror\nsafekit failover on -m mirror", modifies=True)
@click.argument("setting", type=click.Choice(["on", "off"]))
@module_option
@identity_options
def failover_command(module: str | None, setting: str, **_: object) -> int:
    """Switch the automatic failover of a live mirror module on or off. Give it on both servers.

    usersetting.failover shows the setting; the next start of the module sets it back to the configured one.
    """
    return change_setting(module, "failover", setting, mirror=True)


def complete_resources(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion: the resources that the module has."""
    from safekit.disk.resources import load

    module = ctx.params.get("module") or session().module
    names = load(module_paths(module).resources) if module else {}
    own = ("state.", "remote.", "usersetting.")
    return sorted(name for name in names if name.startswith(incomplete) and not name.startswith(own))


def complete_states(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion of a state."""
    return [state for state in _STATES if state.startswith(incomplete)]


@command("set", example="safekit set -m mirror -r custom.disk -v down -i diskcheck", modifies="by hand")
@module_option
@click.option(
    "-r", "resource", required=True, metavar="CLASS.ID", shell_complete=complete_resources, help="Name of the resource."
)
@click.option(
    "-v",
    "value",
    required=True,
    metavar="STATE",
    shell_complete=complete_states,
    help="up, down, init or unknown (or on, off).",
)
@identity_options
def set_command(module: str | None, resource: str, value: str, identity: str | None, **_: object) -> int:
    """Set the state of a resource: how a custom checker tells what it has found."""
    from safekit.disk.resources import valid_name

    paths = module_paths(module, configured=True)
    if not valid_name(resource):
        raise Failure(f"{resource!r} is not a resource name", "write class.id, for example custom.disk")
    state = value.lower()
    if state not in (*_STATES, "on", "off"):
        raise Failure(f"{value!r} is not a state", "write one of: " + ", ".join((*_STATES, "on", "off")))
    if resource == SYNCAT:
        from safekit.view.module import read_module

        running = read_module(paths.module, require_admin().get("modules", {}).get(paths.module, {})).state
        if running != "WAIT":
            click.echo(f"{paths.module} is {running}: nothing to do, {SYNCAT} is for a server that waits for its time")
            return 0
    order = SetResource(paths.module, resource, state, identity or session().identity or who())
    ask("", order, CONTROL_TIMEOUT)
    return 0

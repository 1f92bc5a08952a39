"""config, deconfig, confcheck, confinfo (guide 9.6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import date
from typing import NoReturn

import click

from cli.base import Failure, ask, command, json_option, module_option, module_paths, require_admin, show_json, tell
from cli.boot import boot_setting
from cli.ids import align, elsewhere
from cli.progress import Live
from safekit.bus.requests import heart
from safekit.configuration import (
    ConfigureError,
    active_stamp,
    apply,
    confcheck,
    current_signature,
    deconfig,
)
from safekit.model.findings import ConfigError, Finding
from safekit.model.types import ModuleConfig
from safekit.net.firewall import follow
from safekit.view.module import read_module
from safekit.wire.keys import valid_until


def show_findings(findings: Iterable[Finding]) -> None:
    told = list(findings)
    for finding in told:
        click.echo(str(finding), err=True)
    tell(findings=[asdict(finding) for finding in told])


def refuse(error: ConfigError | ConfigureError, module: str) -> NoReturn:
    """Turn what the model found into the command's error."""
    if isinstance(error, ConfigError):
        show_findings(error.findings)
        raise Failure(
            f"the configuration of module {module} is not correct; nothing was changed",
            "correct the lines above, then run the command again",
        ) from None
    raise Failure(error.text, error.next_step) from None


def running_state(module: str) -> str:
    """STOP, or the state word; a state that is passing is told with its colour, which nothing accepts."""
    view = read_module(module, require_admin().get("modules", {}).get(module, {}))
    return view.state if view.color in ("red", "green") else f"{view.state} {view.color}"


@command("config", example="safekit config -m mirror", modifies=True)
@module_option
def config_command(module: str | None) -> int:
    """Apply SAFE/modules/AM: userconfig.xml and the scripts, whole or not at all.

    In STOP everything may change; in ALONE and WAIT (red) only what the guide calls dynamic; in PRIM, SECOND and UP
    only the key of the module.
    """
    paths = module_paths(module)
    state = running_state(paths.module)
    if state == "STOP" and (aligned := align(paths)):
        click.echo(aligned)
    try:
        with Live() as live:
            result = apply(paths.module, state, lambda step: live.show(f"{paths.module}: {step}"))
    except (ConfigError, ConfigureError) as error:
        refuse(error, paths.module)
    show_findings(result.warnings)
    suffix = result.config.rfs.suffix if result.config.rfs is not None else ""
    for directory in result.converted:
        click.echo(f"{directory} is now a link to {directory}{suffix}")
    for directory in result.restored:
        click.echo(f"{directory} is no longer replicated")
    with Live() as live:
        live.show(f"{paths.module}: firewall")
        problem = follow(paths.module, configured=True)
    _warn(problem)
    if state != "STOP":
        ask(paths.module, heart.Reload(), 15.0)
        click.echo(
            f"module {paths.module} is configured (id {result.config.id}); it goes on with the new configuration"
        )
        _compare(result.config)
        return 0
    click.echo(f"module {paths.module} is configured (id {result.config.id})")
    tell(module=paths.module, id=result.config.id, signature=result.config.signature)
    if boot_setting(paths.module) == "off":
        click.echo(f"It does not start when the server boots; for that: safekit boot -m {paths.module} on")
    if result.first and result.config.rfs is not None:
        click.echo(
            f"Next step: configure it on the other server too; then safekit prim -m {paths.module} on the server that "
            f"has the data, safekit second -m {paths.module} on the other one"
        )
    elif result.full_required:
        click.echo("The next synchronisation of the replicated directories copies all files.")
    _compare(result.config)
    return 0


def _compare(config: ModuleConfig) -> None:
    """Say on which servers the module is configured otherwise, and what follows from that."""
    from safekit.model.agreement import agreement, differences, forbidding, text

    refused = False
    for other in elsewhere():
        if other.module != config.name or not other.configured:
            continue
        found = differences(agreement(config), other.agrees)
        if forbidden := forbidding(found):
            refused = True
            what = text(forbidden, "here", f"on {other.node}")
            click.echo(f"Warning: this configuration does not fit that of {other.node}: {what}", err=True)
        elif found:
            click.echo(f"{other.node} has another configuration of module {config.name}: {text(found)}")
    if refused:
        click.echo(
            f"While that is so, the server that is started later waits. Next step: configure the other servers in the "
            f"same way: safekit -H SERVERS -E {config.name}",
            err=True,
        )


def undo(module: str) -> None:
    """Undo the configuration of a stopped module. Raises Failure."""
    try:
        warnings = deconfig(module, running_state(module))
    except (ConfigError, ConfigureError) as error:
        refuse(error, module)
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)
    _warn(follow(module, configured=False))


def _warn(problem: str) -> None:
    if problem:
        click.echo(f"Warning: {problem}", err=True)


@command("deconfig", example="safekit deconfig -m mirror", modifies=True)
@module_option
def deconfig_command(module: str | None) -> int:
    """Undo the configuration of a stopped module; replicated directories become plain ones again."""
    undo(module_paths(module, configured=True).module)
    return 0


@command("confcheck", example="safekit confcheck -m mirror")
@module_option
def confcheck_command(module: str | None) -> int:
    """Check SAFE/modules/AM without applying it, and run its confcheck script."""
    paths = module_paths(module)
    try:
        result = confcheck(paths.module)
    except (ConfigError, ConfigureError) as error:
        refuse(error, paths.module)
    show_findings(result.warnings)
    if result.script_status:
        raise Failure(
            f"the script {paths.bin_dir / 'confcheck'} ended with status {result.script_status}",
            "see its messages above",
        )
    click.echo(f"the configuration of module {paths.module} is correct")
    _compare(result.config)
    return 0


@command("confinfo", example="safekit confinfo -m mirror\nsafekit confinfo -m mirror --json")
@module_option
@json_option
def confinfo_command(module: str | None, as_json: bool) -> int:
    """Show signature and date (Unix time) of the active and of the current configuration.

    Different signatures: SAFE/modules/AM was changed and not applied yet.
    """
    paths = module_paths(module)
    try:
        current = current_signature(paths.module)
        active = active_stamp(paths.module) if paths.active_json.exists() else None
    except ConfigureError as error:
        refuse(error, paths.module)
    if as_json:
        stamps = {"active": active, "current": current}
        return show_json({k: v and {"signature": v.signature, "date": int(v.date)} for k, v in stamps.items()})
    if active is None:
        click.echo("active   not configured")
    else:
        click.echo(f"active   {active.signature}  {active.date:.0f}")
    click.echo(f"current  {current.signature}  {current.date:.0f}")
    if active is None or active.signature != current.signature:
        click.echo(f"Next step: safekit config -m {paths.module}")
    elif (until := valid_until(paths.module)) is not None and until < date.today():
        click.echo(f"The key of module {paths.module} was valid until {until}; it still protects the module", err=True)
        click.echo(f"Next step: safekit module genkey -m {paths.module}", err=True)
    elif differing := _differing(paths.module, active.signature):
        click.echo(f"Other configuration or key of module {paths.module} on: {', '.join(differing)}", err=True)
        click.echo(f"Next step: on the server with the right one: safekit -H SERVERS -E {paths.module}", err=True)
    return 0


def _differing(module: str, signature: str) -> list[str]:
    """The servers that have another configuration of the module applied, as safeadmin knows. The module's key is
    part of the signature."""
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError
    from safekit.bus.requests.safeadmin.node import GetMembers

    try:
        nodes = ask_sync("", GetMembers()).get("nodes", {})
    except BusError:
        return []  # this server is in no cluster now: there is nobody to compare with
    return [
        f"{name} ({known['signature'][:16]}, {known['date']})"
        for name, node in nodes.items()
        for known in (node.get("facts") or {}).get("modules", ())
        if known["name"] == module and known["signature"] not in ("", signature)
    ]

"""incloop, checkloop, resetloop (guide 14.5): the maxloop counter, for special handlers."""

from __future__ import annotations

import click

from cli.base import bus, command, identity_options, module_option, module_paths, session, who

LIMIT_REACHED = 1


def _ask(module: str | None, operation: str) -> tuple[str, int, int, bool]:
    """Module, count, maxloop and whether the limit is reached, from heart."""
    paths = module_paths(module, configured=True)
    answer = bus(f"{paths.module}/heart", operation, identity=session().identity or "", who=who())
    return paths.module, int(answer.get("count", 0)), int(answer.get("maxloop", 0)), bool(answer.get("reached"))


@command("incloop", example="safekit incloop -m mirror -i restart_appli || safekit stop -m mirror", modifies="by hand")
@module_option
@identity_options
def incloop_command(module: str | None, **_: object) -> int:
    """Count one automatic action of handler -i. Exit code 1 when this count exceeds maxloop, else 0."""
    name, count, maxloop, reached = _ask(module, "incloop")
    click.echo(f"{name}: {count} automatic actions, maxloop {maxloop}")
    return LIMIT_REACHED if reached else 0


@command("checkloop", example="safekit checkloop -m mirror")
@module_option
@identity_options
def checkloop_command(module: str | None, **_: object) -> int:
    """Exit code 1 when the counter exceeds maxloop and its last increment is within loop_interval, else 0."""
    name, count, maxloop, reached = _ask(module, "checkloop")
    click.echo(f"{name}: {count} automatic actions, maxloop {maxloop}")
    return LIMIT_REACHED if reached else 0


@command("resetloop", example="safekit resetloop -m mirror", modifies="by hand")
@module_option
@identity_options
def resetloop_command(module: str | None, **_: object) -> int:
    """Set the counter to 0."""
    _ask(module, "resetloop")
    return 0

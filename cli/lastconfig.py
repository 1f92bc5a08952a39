"""The last three configurations that were applied, and going back to one (guide 3.8.3, 3.9)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

import click

from cli.base import Failure, command, json_option, module_option, module_paths, show_json
from safekit.configuration import ConfigureError, active_stamp
from safekit.disk.archive import pack, unpack
from safekit.disk.files import locked
from safekit.disk.paths import ModulePaths, safe
from safekit.model.lastconfig import Copy, DamagedCopy
from safekit.model.lastconfig import copies_of as kept_copies
from safekit.model.store import TreeError, signature


def copies_of(module: str) -> tuple[Copy, ...]:
    """The kept configurations of a module, the latest first. Raises Failure for a damaged archive."""
    try:
        return kept_copies(module)
    except DamagedCopy as error:
        raise Failure(str(error), error.next_step) from None


def table(copies: Sequence[Copy], active: str, current: str) -> list[str]:
    """A line for each copy."""
    lines = ["No  Applied              Signature"]
    for number, copy in enumerate(copies, 1):
        marks = [word for word, other in (("active", active), ("in SAFE/modules", current)) if copy.signature == other]
        lines.append(f"{number:<3} {copy.applied}  {copy.signature[:16]}  {', '.join(marks)}".rstrip())
    return lines


def _signatures(paths: ModulePaths) -> tuple[str, str]:
    """Of the active configuration ("" without one) and of SAFE/modules/AM."""
    try:
        active = active_stamp(paths.module).signature
    except ConfigureError:
        active = ""
    try:
        return active, signature(paths.root)
    except TreeError as error:
        raise Failure(str(error), "repair the module's directory") from None


@command("lastconfig", example="safekit module lastconfig -m mirror")
@module_option
@json_option
def lastconfig_command(module: str | None, as_json: bool) -> int:
    """List the last three configurations that were applied on this server, the latest first."""
    paths = module_paths(module)
    copies = copies_of(paths.module)
    if not copies:
        raise Failure(f"module {paths.module} was never configured on this server", f"safekit config -m {paths.module}")
    if as_json:
        active, current = _signatures(paths)
        return show_json(
            [
                {
                    "no": number,
                    "applied": copy.applied,
                    "signature": copy.signature,
                    "active": copy.signature == active,
                    "current": copy.signature == current,
                }
                for number, copy in enumerate(copies, 1)
            ]
        )
    for line in table(copies, *_signatures(paths)):
        click.echo(line)
    click.echo(f"Next step: safekit module restore -m {paths.module} NO brings one back")
    return 0


@command("restore", example="safekit module restore -m mirror 2\nsafekit config -m mirror", modifies=True)
@module_option
@click.argument("number", type=click.IntRange(min=1), metavar="NO")
def restore_command(module: str | None, number: int) -> int:
    """Put configuration NO of `safekit module lastconfig` back in SAFE/modules/AM, ready to be applied.

    What runs is not touched until `safekit config`. What is in SAFE/modules/AM now and was never applied is kept in
    SAFE/Application_Modules/backup.
    """
    paths = module_paths(module)
    with locked(paths.root.parent / ".lock"):
        copies = copies_of(paths.module)
        if number > len(copies):
            raise Failure(
                f"module {paths.module} has {len(copies)} kept configurations",
                f"safekit module lastconfig -m {paths.module}",
            )
        chosen = copies[number - 1]
        _, current = _signatures(paths)
        if current not in {copy.signature for copy in copies}:
            backup = safe() / "Application_Modules" / "backup"
            backup.mkdir(mode=0o770, parents=True, exist_ok=True)
            kept = backup / f"{paths.module}_{time.strftime('%Y-%m-%d_%H:%M:%S')}.safe"
            pack(paths.root, kept)
            click.echo(f"what was never applied is kept in {kept}")
        fresh, former = (paths.root.with_name(f".{paths.module}.{end}") for end in ("new", "former"))
        for leftover in (fresh, former):
            shutil.rmtree(leftover, ignore_errors=True)
        unpack(chosen.path, fresh)
        paths.root.rename(former)
        fresh.rename(paths.root)
        shutil.rmtree(former)
    click.echo(f"the configuration of {chosen.applied} is in {paths.root}")
    click.echo(f"Next step: safekit config -m {paths.module}, then on the others: safekit -H SERVERS -E {paths.module}")
    return 0

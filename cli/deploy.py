"""What -E does on a server that receives a module, and the module's key (guide 9.1, 9.6, 10.4)."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from cli.base import FILE, Failure, ask, command, module_option, module_paths, session, tell
from cli.configure import refuse, running_state, show_findings
from cli.ids import free_id, ids_in_use, module_id
from safekit.bus.requests import heart
from safekit.configuration import STABLE_STATES, ConfigureError, active, apply, current_signature
from safekit.disk.archive import ArchiveError, unpack
from safekit.disk.files import locked, write_atomic
from safekit.disk.paths import ModulePaths, cluster_dir
from safekit.model.findings import ConfigError
from safekit.wire.keys import MODULE_KEY, give_module_key, take_module_key


@command("deploy", example="safekit module deploy -m mirror -M 1 --configure /tmp/mirror.safe", modifies=True)
@module_option
@click.option("-M", "number", type=click.IntRange(min=1), metavar="ID", help="Id, the same on all servers.")
@click.option("--configure", is_flag=True, help="Configure it too.")
@click.argument("archive", metavar="FILE.safe", type=FILE)
def deploy_command(module: str | None, number: int | None, configure: bool, archive: str) -> int:
    """Install a module and configure it, or leave everything as it was. Used by safekit -H ... -E AM.

    A module that runs keeps running: its new configuration may then change only what is dynamic.
    """

    name = module or session().module
    try:
        paths = ModulePaths(name or "")
    except ValueError as error:
        raise Failure(str(error), "add -m AM") from None
    if not (cluster_dir() / "cluster.xml").exists():
        raise Failure("the cluster is not configured on this server", 'safekit -H "*" -G on the server that has it')
    paths.root.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
    with locked(paths.root.parent / ".lock"):
        state = running_state(paths.module) if paths.root.exists() else "STOP"
        if state != "STOP" and not configure:
            raise Failure(f"module {paths.module} is running ({state})", f"safekit stop -m {paths.module}")
        used, former = ids_in_use(), module_id(paths)
        chosen = number or former or free_id(used)
        if used.get(chosen, paths.module) != paths.module:
            raise Failure(
                f"id {chosen} belongs to module {used[chosen]} on this server",
                "install the module with an id that is free on all servers: safekit module install -r -M ID",
            )
        if state != "STOP" and chosen != former:
            raise Failure(f"module {paths.module} runs with id {former}", f"safekit stop -m {paths.module}")
        before = _stamps(paths)
        _replace(paths, Path(archive), chosen, state, configure=configure)
        same = before is not None and before == _stamps(paths) and chosen == former
    done = "installed and configured" if configure else "installed"
    told = " already, with the same files and key: nothing has changed" if same else ""
    click.echo(f"module {paths.module} is {done}{told} (id {chosen})")
    tell(module=paths.module, id=chosen, changed=not same)
    return 0


def _stamps(paths: ModulePaths) -> tuple[str, str] | None:
    """What is installed and what is applied, None when one of them is not there."""
    try:
        return current_signature(paths.module).signature, active(paths.module).signature
    except (ConfigureError, OSError):
        return None


def _replace(paths: ModulePaths, archive: Path, number: int, state: str, *, configure: bool) -> None:
    """Put the module of the archive in place, apply it, and put the former one back when that fails."""
    fresh, former = (paths.root.with_name(f".{paths.module}.{end}") for end in ("new", "former"))
    for leftover in (fresh, former):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        unpack(archive, fresh)
    except ArchiveError as error:
        raise Failure(
            str(error), f"nothing was changed; make it with: safekit module package -m {paths.module}"
        ) from None
    had, had_id = paths.root.exists(), paths.id_file.read_bytes() if paths.id_file.exists() else None
    if had:
        paths.root.rename(former)
    try:
        fresh.rename(paths.root)
        paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
        write_atomic(paths.id_file, f"{number}\n".encode())
        if configure and not (state in STABLE_STATES and _is_active(paths)):
            show_findings(apply(paths.module, state).warnings)
    except BaseException as error:
        shutil.rmtree(paths.root, ignore_errors=True)
        if had:
            former.rename(paths.root)
        if had_id is not None:
            write_atomic(paths.id_file, had_id)
        elif not had:
            shutil.rmtree(paths.var, ignore_errors=True)
        if isinstance(error, ConfigError | ConfigureError):
            refuse(error, paths.module)
        raise
    shutil.rmtree(former, ignore_errors=True)
    if configure and state != "STOP":
        ask(paths.module, heart.Reload(), 15.0)


def _is_active(paths: ModulePaths) -> bool:
    """Whether the module is applied as it is: then a second -E, after one that failed elsewhere, has nothing to do."""
    return current_signature(paths.module).signature == active(paths.module).signature


@command("genkey", example="safekit module genkey -m mirror", modifies=True)
@module_option
def genkey_command(module: str | None) -> int:
    """Give the module a key of its own, for what its servers say to each other; used from its next configuration."""
    paths = module_paths(module)
    until = give_module_key(paths.module)
    click.echo(f"module {paths.module} has a new key in {paths.conf_dir / MODULE_KEY}, valid until {until}")
    click.echo(f'Next step: all its servers need the same: safekit -H SERVERS -E {paths.module}   (-H "*" for all)')
    return 0


@command("delkey", example="safekit module delkey -m mirror", modifies=True)
@module_option
def delkey_command(module: str | None) -> int:
    """Erase the module's own key. From its next configuration on the key of the cluster protects it again."""
    paths = module_paths(module)
    if not take_module_key(paths.module):
        click.echo(f"module {paths.module} has no key of its own")
        return 0
    click.echo(f"module {paths.module} has no key of its own any more; the key of the cluster will protect it")
    click.echo(f'Next step: safekit -H SERVERS -E {paths.module}   (-H "*" for all)')
    return 0

"""Installed modules and their ports (guide 9.6, 10.2.3.2)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.base import (
    FILE,
    Failure,
    SafekitGroup,
    command,
    installed_modules,
    json_option,
    module_option,
    module_paths,
    require_admin,
    session,
    show_json,
)
from cli.deploy import delkey_command, deploy_command, genkey_command
from cli.ids import Elsewhere, chosen_id, cluster_id, elsewhere, ids_in_use, module_id
from cli.lastconfig import lastconfig_command, restore_command
from safekit.disk.archive import ArchiveError, pack, unpack
from safekit.disk.files import locked, write_atomic
from safekit.disk.paths import ModulePaths, cluster_dir, safe

MODES = ("mirror", "farm", "light")


@click.group("module", cls=SafekitGroup)
def module_command() -> None:
    """Install, list, pack and remove modules."""


def _running(name: str) -> bool:
    return bool(require_admin().get("modules", {}).get(name, {}).get("running"))


def _archive(given: str) -> Path:
    """A path, or the name of a template under SAFE/Application_Modules."""
    path = Path(given)
    if os.path.exists(path) or path.is_absolute():  # Path.exists raises in a directory that is not ours to read
        return path
    templates = safe() / "Application_Modules"
    for candidate in (templates / given, *(templates / kind / given for kind in ("generic", "demo", "other"))):
        for named in (candidate, candidate.with_name(candidate.name + ".safe")):
            if named.is_file():
                return named
    return path


def complete_archives(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion: the templates, or a file."""
    templates = safe() / "Application_Modules"
    found = sorted(f"{path.parent.name}/{path.name}" for path in templates.glob("*/*.safe"))
    known = [CompletionItem(name) for name in found if incomplete and name.startswith(incomplete)]
    return known or [CompletionItem(incomplete, type="file")]


def install_archive(name: str, archive: Path, number: int | None, others: tuple[Elsewhere, ...], *, again: bool) -> int:
    """Install under a lock, so that two installations never take one id. The id. Raises Failure."""
    try:
        paths = ModulePaths(name)
    except ValueError as error:
        raise Failure(str(error), "choose another name") from None
    if name == "lastconfig":
        raise Failure("lastconfig is the directory of saved configurations", "choose another name")
    paths.root.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
    with locked(paths.root.parent / ".lock"):
        exists = paths.root.exists()
        if exists and not again:
            raise Failure(f"module {name} is already installed", f"safekit module install -r -m {name} {archive}")
        if exists and _running(name):
            raise Failure(f"module {name} is running", f"safekit stop -m {name}")
        used = ids_in_use()
        chosen = number or module_id(paths) or chosen_id(name, used, others)
        if used.get(chosen, name) != name:
            raise Failure(f"id {chosen} belongs to module {used[chosen]}", "choose another id with -M")
        fresh = paths.root.with_name(f".{name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            unpack(archive, fresh)
        except ArchiveError as error:
            templates = safe() / "Application_Modules"
            raise Failure(str(error), f"the templates are in {templates}") from None
        if exists:
            shutil.rmtree(paths.root)
        fresh.rename(paths.root)
        paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
        write_atomic(paths.id_file, f"{chosen}\n".encode())
    return chosen


@command(
    "install",
    example="safekit module install -m mirror /opt/safekit/Application_Modules/generic/mirror.safe\n"
    "safekit module install -m mydb mirror.safe",
    modifies=True,
)
@module_option
@click.option("-r", "again", is_flag=True, help="Install again over an installed module.")
@click.option("-M", "number", type=click.IntRange(min=1), metavar="ID", help="Id, the same on all servers.")
@click.argument("archive", metavar="AM.safe", shell_complete=complete_archives)
def install_command(module: str | None, again: bool, number: int | None, archive: str) -> int:
    """Install a .safe file, or a template of SAFE/Application_Modules, under the name AM."""
    if not (cluster_dir() / "cluster.xml").exists():
        raise Failure("the cluster is not configured", "safekit cluster config cluster.xml")
    path = _archive(archive)
    name = module or session().module or os.environ.get("SAFEMODULE") or path.stem
    others = elsewhere()
    chosen = install_archive(name, path, number, others, again=again)
    click.echo(f"module {name} is installed with id {chosen} in {ModulePaths(name).root}")
    other = cluster_id(name, others)
    if other is not None and other.id != chosen:
        click.echo(f"Warning: it has id {other.id} on {other.node}; an id must be the same on all servers", err=True)
    click.echo(f"Next step: edit {ModulePaths(name).userconfig} and the scripts, then: safekit config -m {name}")
    return 0


@command("list", example="safekit module list\nsafekit module list --json")
@json_option
def list_command(as_json: bool) -> int:
    """List the names of the installed modules."""
    if as_json:
        return show_json(installed_modules())
    for name in installed_modules():
        click.echo(name)
    return 0


@command("listid", example="safekit module listid\nsafekit module listid --json")
@json_option
def listid_command(as_json: bool) -> int:
    """List the names and ids of the installed modules. An id must be the same on all servers."""
    ids = {name: module_id(ModulePaths(name)) for name in installed_modules()}
    if as_json:
        return show_json(ids)
    width = max((len(name) for name in ids), default=0)
    for name, number in ids.items():
        click.echo(f"{name.ljust(width)}  {number or '-'}")
    return 0


def port_lines(safeadmin: int, heart: Iterable[int], rfs: Iterable[int], farm: Iterable[int]) -> list[str]:
    """The list of the guide (10.2.3.2)."""
    from safekit.model import ports

    lines = ["List of the ports used by SafeKit", "Process         Ports"]
    lines += ["safeadmin", f"        port    UDP {safeadmin}"]
    lines += ["webconsole", f"        port    TCP {ports.WEB_HTTP}"]
    for process, name, numbers in (("heart", "port    UDP", heart), ("rfs", "safenfs_port    TCP", rfs)):
        lines += [line for number in numbers for line in (process, f"        {name} {number}")]
    lines += [line for number in farm for line in ("farm", f"        port    UDP {number}")]
    return lines


def _cluster_port() -> int:
    import json

    from safekit.model.ports import SAFEADMIN

    try:
        return int(json.loads((cluster_dir() / "cluster.json").read_text()).get("port", SAFEADMIN))
    except (FileNotFoundError, ValueError):
        return SAFEADMIN


@command("getports", example="safekit module getports -m mirror\nsafekit module getports -i 2")
@module_option
@click.option("-i", "number", type=click.IntRange(min=1), metavar="ID", help="Id of a module, installed or not.")
@json_option
def getports_command(module: str | None, number: int | None, as_json: bool) -> int:
    """List the ports between the servers that a module uses: open them in the firewalls."""
    from safekit.model import ports

    port = _cluster_port()
    if number is None:
        active = _active(module_paths(module))
        found = [[p.number for p in of(active)] for of in (ports.heart_ports, ports.rfs_ports, ports.farm_ports)]
    else:
        try:
            found = [[of(number)] for of in (ports.heart_port, ports.rfs_port, ports.farm_port)]
        except ValueError as error:
            raise Failure(str(error), "safekit module listid shows the ids in use") from None
    heart, rfs, farm = found
    if as_json:
        udp = {"safeadmin": [port], "heart": heart, "farm": farm}
        return show_json({"udp": udp, "tcp": {"webconsole": [ports.WEB_HTTP], "rfs": rfs}})
    for line in port_lines(port, heart, rfs, farm):
        click.echo(line)
    return 0


def _active(paths: ModulePaths) -> dict[str, Any]:
    """What is configured. Raises Failure."""
    import json

    try:
        active: dict[str, Any] = json.loads(paths.active_json.read_text())
    except FileNotFoundError:
        raise Failure(f"module {paths.module} is not configured", f"safekit config -m {paths.module}") from None
    return active


@command("package", example="safekit module package -m mirror /tmp/mirror.safe", modifies=True)
@module_option
@click.argument("archive", metavar="FILE.safe", type=FILE)
def package_command(module: str | None, archive: str) -> int:
    """Pack the module under SAFE/modules/AM in a .safe file (absolute path)."""
    paths = module_paths(module)
    if not os.path.isabs(archive):
        raise Failure(
            f"{archive} is not an absolute path",
            f"safekit module package -m {paths.module} {os.path.abspath(archive)}",
        )
    count = pack(paths.root, Path(archive))
    click.echo(f"{count} files of module {paths.module} are in {archive}")
    return 0


@command("uninstall", example="safekit module uninstall -m mirror", modifies=True)
@module_option
def uninstall_command(module: str | None) -> int:
    """Remove a stopped module: undo its configuration and delete SAFE/modules/AM.

    A copy stays in SAFE/Application_Modules/backup/AM.safe; the replicated directories are untouched.
    """
    paths = module_paths(module)
    if _running(paths.module):
        raise Failure(f"module {paths.module} is running", f"safekit stop -m {paths.module}")
    if paths.active_json.exists():
        from cli.configure import undo

        undo(paths.module)
    backup = safe() / "Application_Modules" / "backup"
    backup.mkdir(mode=0o770, parents=True, exist_ok=True)
    pack(paths.root, backup / f"{paths.module}.safe")
    remove(paths)
    click.echo(f"module {paths.module} is removed; a copy is in {backup / (paths.module + '.safe')}")
    return 0


def remove(paths: ModulePaths) -> None:
    """The files of a module that is not configured any more. Raises OSError."""
    shutil.rmtree(paths.root)
    if paths.var.exists():
        shutil.rmtree(paths.var)


for _each in (
    install_command,
    list_command,
    listid_command,
    getports_command,
    package_command,
    uninstall_command,
    deploy_command,
    genkey_command,
    delkey_command,
    lastconfig_command,
    restore_command,
):
    module_command.add_command(_each)

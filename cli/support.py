"""dump, snapshot, clean (guide 9.7)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.base import FILE, Failure, command, module_option, module_paths
from cli.progress import Live, Meter
from safekit.disk.paths import ModulePaths

if TYPE_CHECKING:
    from safekit.process.table import Process

KILL_SECONDS = 5.0
MAIN_PROCESSES = ("safesupervisord", "supervisord", "heart", "circlog")  # in this order: the first restarts the others


@command("dump", example="safekit dump -m mirror", modifies=True, admin=False)
@module_option
def dump_command(module: str | None) -> int:
    """Keep what a problem can be understood from: logs, resources, processes, network, as they are now.

    The last three dumps stay under SAFEVAR/snapshot/modules/AM.
    """
    from cli.snapshots import dump

    with Live() as live:
        directory = dump(module_paths(module).module, live.show)
    click.echo(f"the dump is in {directory}")
    return 0


@command("snapshot", example="safekit snapshot -m mirror /tmp/snapshot_node1.zip", modifies=True, admin=False)
@module_option
@click.argument("file", metavar="FILE.zip", type=FILE)
def snapshot_command(module: str | None, file: str) -> int:
    """Make a dump, and pack the last three dumps and configurations in FILE.zip (absolute path)."""
    from cli.snapshots import snapshot

    paths = module_paths(module)
    if not os.path.isabs(file):
        raise Failure(f"{file} is not an absolute path", f"safekit snapshot -m {paths.module} {os.path.abspath(file)}")
    meter: list[Meter] = []

    def packed(done: int, total: int) -> None:
        first = not meter
        if first:
            meter.append(Meter(total))
        live.show(f"packing: {meter[0].line(done)}", now=first)

    with Live() as live:
        count = snapshot(paths.module, Path(file), live.show, packed)
    click.echo(f"{count} files are in {file}; no key is among them. Support needs one snapshot of every server.")
    return 0


@command("clean", example="safekit clean log -m mirror", modifies=True, admin=False)
@module_option
@click.argument("what", type=click.Choice(["all", "log", "process", "resource"]), default="all", required=False)
def clean_command(module: str | None, what: str) -> int:
    """Delete damaged logs or resources of a module, or kill its main processes. With caution.

    Without a word, all three. The application is not stopped: safekit forcestop does that.
    """
    paths = module_paths(module)
    if what in ("all", "process"):
        _clean_processes(paths)
    if what in ("all", "resource"):
        _clean_resources(paths)
    if what in ("all", "log"):
        _clean_logs(paths)
    return 0


def _clean_processes(paths: ModulePaths) -> None:
    """Kill supervisord, heart and circlog of the module, and see that they are gone. Raises Failure."""
    killed = []
    for name in MAIN_PROCESSES:
        for process in _main_processes(paths, name):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.append(f"{process.name} ({process.pid})")
    deadline = time.monotonic() + KILL_SECONDS
    while left := _main_processes(paths, *MAIN_PROCESSES):
        if time.monotonic() > deadline:
            names = ", ".join(f"{process.name} ({process.pid})" for process in left)
            raise Failure(f"still there after SIGKILL: {names}", "they hang in the kernel; look at dmesg")
        time.sleep(0.05)
    click.echo(f"killed: {', '.join(killed)}" if killed else "none of the main processes was running")


def _main_processes(paths: ModulePaths, *names: str) -> list[Process]:
    from safekit.process.ownership import of_module

    return of_module(paths.module, [name[:15] for name in names], str(paths.supervisor_conf))


def _clean_resources(paths: ModulePaths) -> None:
    if _main_processes(paths, "heart"):
        raise Failure(
            f"module {paths.module} is running: heart would write the resource file again",
            f"safekit forcestop -m {paths.module}, or safekit clean all -m {paths.module}",
        )
    try:
        os.replace(paths.resources, paths.resources.with_name("resources.before_clean"))
    except FileNotFoundError:
        click.echo("there was no resource file")
        return
    click.echo(f"the resource file is deleted (a copy is in {paths.resources}.before_clean)")
    click.echo(
        f"It told whether this server's data is up to date: choose the server with the right data by hand, "
        f"safekit prim -m {paths.module} there, safekit second -m {paths.module} on the other one"
    )


def _clean_logs(paths: ModulePaths) -> None:
    count = 0
    for log in (paths.log, paths.elog):
        for path in (log, log.with_name(log.name + ".1")):
            if path.exists():
                path.unlink()
                count += 1
    click.echo(f"{count} log files are deleted")

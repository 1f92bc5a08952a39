"""Forced stop of a module whose heart hangs or is gone (guide 9.4): nothing in it waits without a bound, and
nothing needs a process of the module to answer.

The order matters. First who decides and restarts (supervisord, heart) is ended, so that nobody undoes the
rest; then the application is stopped while its files and addresses are still there; then the addresses and
the file system go; last, the files say STOP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from typing import Any

from safeadmin.processes import SUPERVISORD, Kind, end_processes, find, product, with_descendants
from safekit import syscalls
from safekit.bus.asking import Ask
from safekit.bus.endpoint import Endpoint
from safekit.bus.message import BusError
from safekit.bus.requests import nfsadmin, vipd
from safekit.disk.files import locked
from safekit.disk.paths import ModulePaths
from safekit.disk.resources import ResourceWriter, load
from safekit.log.module import ModuleLog
from safekit.model import directories
from safekit.model.types import ModuleConfig, User
from safekit.net.addresses import addresses, delete_address
from safekit.net.netlink import Netlink
from safekit.process import offspring
from safekit.process.scripts import ScriptRunner

SCRIPTS = ("stop_sec", "stop_prim", "stop_second", "stop_both")
SCRIPT_MARGIN = 5.0
STOPS, OTHERS = ("stop_",), ("custom.", "handler.")
"""Runs of which even what detached itself is ended. That of a start script is for the stop scripts."""
MAX_LAYERS = 8
_LAST = ("circlog",)
_ORDERLY: tuple[tuple[Ask[Any], float], ...] = ((vipd.Unset(), 3.0), (nfsadmin.Release(), 5.0))
"""With the seconds that each may take."""


async def run(
    module: str, who: str, log: ModuleLog, config: ModuleConfig | None, bus: Endpoint, announce: bool
) -> None:
    """Stop the module. announce: heart did not log the action."""
    paths = ModulePaths(module)
    if announce:
        log.event("action_called", action="forcestop", who=who)
    before = find(module)
    deciders = [p.process for p in before if p.kind is Kind.PRODUCT and p.name in (SUPERVISORD, "heart")]
    # SIGKILL at once: asked nicely, supervisord would first stop what the application still needs.
    await end_processes(deciders, patience=0)
    await end_processes(with_descendants(p for p in before if p.kind is Kind.SCRIPT), patience=0)
    _end_detached(module, STOPS)
    state = load(paths.resources).get("state.local")
    runner = ScriptRunner(paths, config.user if config is not None else User(), log)
    await _run_scripts(SCRIPTS, ["force", state.value if state else "STOP", "STOP", "stop"], runner)
    for ask, patience in _ORDERLY:
        # Orderly where that still works; what fails is done below by force.
        with contextlib.suppress(BusError):
            if any(p.name == ask.process for p in before):
                await bus.ask(module, ask, patience)
    left = product(module, lambda name: name not in _LAST)
    stuck = await end_processes(left, patience=2.0)
    _end_detached(module, (*STOPS, *OTHERS))
    for process in stuck:
        log.event(
            "internal", text=f"process {process.name} (pid {process.pid}) cannot be killed: it waits in the kernel"
        )
    _remove_addresses(config, log)
    _unmount(config, log)
    await _run_scripts(("poststop", "transition"), ["WAIT", "STOP", "stop"], runner)
    await end_processes(product(module))
    _write_stop(paths, who, log)
    log.event("local_state", state="STOP", color="red")
    log.event("end_of_stop")


def _end_detached(module: str, runs: tuple[str, ...]) -> None:
    for run in runs:
        offspring.kill(module, run)


async def _run_scripts(names: tuple[str, ...], args: list[str], runner: ScriptRunner) -> None:
    """User scripts one after the other, each within forcestoptimeout whatever it does."""
    bound = (runner.user or User()).forcestoptimeout + SCRIPT_MARGIN
    for name in names:
        # The runner kills a stop script that is too long; one that waits in the kernel outlives even that.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(runner.run(name, args), bound)


def _remove_addresses(config: ModuleConfig | None, log: ModuleLog) -> None:
    """Virtual addresses that a dead vipd left behind: the peer is about to take them."""
    if config is None or config.vip is None:
        return
    wanted = set()
    for interface in config.vip.interfaces:
        for virtual in interface.addresses:
            with contextlib.suppress(ValueError):
                # A name instead of an address: only vipd knows what it resolved to.
                wanted.add(ipaddress.ip_address(virtual.addr))
    if not wanted:
        return
    try:
        with Netlink() as netlink:
            for address in addresses(netlink):
                if address.ip in wanted:
                    delete_address(netlink, address)
                    log.event("vip_unset", addr=address.ip)
    except OSError as error:
        log.event("internal", text=f"virtual addresses could not be removed: {error}; ip addr show, ip addr del")


def _unmount(config: ModuleConfig | None, log: ModuleLog) -> None:
    """Stale mounts over the replicated directories, and the symbolic links of a stopped module."""
    if config is None or config.rfs is None:
        return
    for replicated in config.rfs.replicated:
        directory, suffix = replicated.dir, config.rfs.suffix
        # A mount may lie over another one after a crash: take off what is there, a bounded number of times.
        for _ in range(MAX_LAYERS):
            if not any(m.point == directory and m.fstype.startswith("fuse") for m in directories.mounts()):
                break
            try:
                syscalls.detach(directory)
            except OSError as error:
                log.event("internal", text=f"{directory} cannot be unmounted: {error.strerror}; umount -l {directory}")
                break
        try:
            if directories.state(directory, suffix, directories.mounts()) is directories.State.INTERRUPTED:
                directories.convert(directory, suffix, directories.mounts())
        except OSError as error:
            log.event("internal", text=f"{directory}: {error}; the next start or safekit config repairs it")


def _write_stop(paths: ModulePaths, who: str, log: ModuleLog) -> None:
    """heart is dead: safeadmin is the writer of the resource file, under its lock.

    The marker `running` stays: the next start must treat this as the halt that it was."""
    try:
        with locked(paths.var / "resources.lock", wait=False):
            writer = ResourceWriter(paths.resources)
            for name, value in (
                ("state.local", "STOP"),
                ("state.color", "red"),
                ("state.remote", "UNKNOWN"),
                ("state.remotecolor", "grey"),
            ):
                writer.set(name, value, "safeadmin")
            writer.flush()
    except OSError as error:
        log.event("internal", text=f"{paths.resources} cannot be written: {error}; free space, then forcestop again")

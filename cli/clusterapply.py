"""Makes a cluster.xml the configuration of this server (guide 9.3, 12.2): what every command that does so needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.base import Failure, ask
from safekit.bus.requests.safeadmin.modules import GetState
from safekit.bus.requests.safeadmin.node import GetMembers, Reload
from safekit.disk.files import write_atomic
from safekit.disk.paths import cluster_dir, safevar
from safekit.wire import invitation
from safekit.wire.keys import NEXT_KEY, cluster_key, remember_former

if TYPE_CHECKING:
    from safekit.model.findings import Finding
    from safekit.model.types import ClusterConfig

RELOAD_TIMEOUT = 10.0


def lock_file() -> Path:
    """Present while `cluster config lock` is in force."""
    return cluster_dir() / "locked"


def show_findings(findings: Iterable[Finding]) -> None:
    """To standard error, one a line."""
    for finding in findings:
        click.echo(str(finding), err=True)


def checked(path: Path) -> tuple[ClusterConfig, Sequence[Finding]]:
    """The configuration of a file and its warnings. Raises Failure after printing each error."""
    from safekit.model.cluster import load_cluster_xml
    from safekit.model.findings import ConfigError

    try:
        return load_cluster_xml(path)
    except ConfigError as error:
        show_findings(error.findings)
        raise Failure(
            f"{path} is not a usable cluster configuration; nothing was changed",
            "correct the lines above, then run the command again",
        ) from None


def name_of_this_server(config: ClusterConfig) -> str:
    """The node of the new configuration that this server is. Raises Failure.

    A name kept from the previous configuration does not bind a new one that no longer has it.
    """
    from safekit.model.cluster import ClusterError, local_node, system_addresses

    kept = safevar() / "nodename"
    try:
        if "SAFENODE" not in os.environ and kept.read_text().strip() not in config.node_names:
            kept.unlink()
    except FileNotFoundError:
        pass
    try:
        return local_node(config, system_addresses())
    except ClusterError as error:
        text, _, step = str(error).partition("; ")
        raise Failure(text, step) from None


def apply_file(path: Path, key: str | None) -> ClusterConfig:
    """Make a cluster.xml the configuration of this server; without `key` (hexadecimal) it gets a new one. Raises
    Failure; nothing is changed then."""
    from safekit.model.cluster import ClusterError, apply_cluster

    config, warnings = checked(path)
    node = name_of_this_server(config)
    former = _present_key()
    affected = consequences(config, node)
    try:
        applied, _ = apply_cluster(path, key=key)
    except ClusterError as error:
        text, _, step = str(error).partition("; ")
        raise Failure(text, step) from None
    write_atomic(safevar() / "nodename", f"{node}\n".encode(), mode=0o644)
    (cluster_dir() / NEXT_KEY).unlink(missing_ok=True)
    invitation.withdraw()
    if former is not None and former != _present_key():
        remember_former(former)
    show_findings(warnings)
    for warning in affected:
        click.echo(f"Warning: {warning}", err=True)
    return applied


def consequences(config: ClusterConfig, node: str) -> list[str]:
    """What a new configuration does to modules that run now: here, and on servers that it leaves out."""
    from cli.clusterimpact import lost_servers, on_module
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError
    from safekit.configuration import ConfigureError, active

    try:
        nodes = ask_sync("", GetMembers())
        running = ask_sync("", GetState())["modules"]
    except BusError:
        return []  # in no cluster yet: nothing runs
    found = lost_servers(config, nodes.get("nodes", {}))
    for module in sorted(name for name, known in running.items() if known.get("running")):
        try:
            found += on_module(config, active(module), node)
        except ConfigureError:
            continue  # removed by hand under the running module: nothing is known of its lans
    return found


def _present_key() -> bytes | None:
    try:
        return cluster_key()
    except (FileNotFoundError, ValueError):
        return None


def reload_admin(*, joined: bool) -> None:
    """Have safeadmin read the cluster configuration again. Raises Failure when it is not `joined` afterwards."""
    answer = ask("", Reload(), RELOAD_TIMEOUT)
    if joined and not answer.cluster:
        raise Failure(f"safeadmin cannot use the cluster configuration: {answer.problem}", "journalctl -u safeadmin")

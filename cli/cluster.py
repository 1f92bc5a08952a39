"""The cluster configuration of this server (guide 9.3, 12.2).

The file and the key must be the same on all servers: `safekit -H "*" -G` distributes them. Without the web service
they are carried by hand: `cluster export` writes both in a zip, `cluster config FILE.zip` applies them there.
"""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.base import FILE, Failure, SafekitGroup, ask, command, json_option, require_admin, show_json
from cli.clusterapply import apply_file, checked, lock_file, reload_admin, show_findings
from cli.clustercreate import create_command, join_command
from safekit.bus.requests.safeadmin.node import GetMembers
from safekit.disk.files import write_atomic
from safekit.disk.paths import cluster_dir, safevar
from safekit.net.firewall import follow_cluster
from safekit.wire.keys import FORMER_KEYS, NEXT_KEY, make_next_key

MAX_CLUSTER_FILE = 1 << 20
LOCKED = "locked by safekit cluster config lock"
OTHERS = (
    'Next step: safekit -H "*" -G gives it to every server (or, by hand: safekit cluster export /tmp/cluster.zip, '
    "then on each other server: safekit cluster config /tmp/cluster.zip)"
)


@click.group("cluster", cls=SafekitGroup)
def cluster_command() -> None:
    """Configure the cluster: its servers, networks and key. The same on every server."""


def complete_config(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion: a file, or lock and unlock."""
    words = [CompletionItem(word) for word in ("lock", "unlock") if word.startswith(incomplete)]
    return words or [CompletionItem(incomplete, type="file")]


def _unzip(path: Path, directory: Path) -> tuple[Path, str]:
    """cluster.xml of a cluster.zip, extracted, and its key. Raises Failure."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("cluster.xml", "cluster.key"):
                if archive.getinfo(name).file_size > MAX_CLUSTER_FILE:
                    raise Failure(f"{path}: {name} is too large", "make the zip with: safekit cluster export")
            xml = directory / "cluster.xml"
            xml.write_bytes(archive.read("cluster.xml"))
            return xml, archive.read("cluster.key").decode("ascii", "replace").strip()
    except (KeyError, zipfile.BadZipFile) as error:
        raise Failure(
            f"{path} is not a zip with cluster.xml and cluster.key: {error}", "make it with: safekit cluster export"
        ) from None


@command(
    "config",
    example="safekit cluster config /tmp/cluster.xml\nsafekit cluster config /tmp/cluster.zip\n"
    "safekit cluster config lock",
    modifies=True,
)
@click.argument("words", metavar="[FILE.xml|FILE.zip] [lock|unlock]", nargs=-1, shell_complete=complete_config)
def config_command(words: tuple[str, ...]) -> int:
    """Apply a cluster configuration on this server.

    FILE.xml comes with a new key; FILE.zip with the key in it (safekit cluster export makes one); without a
    file the configuration stays and only the key changes. lock forbids further changes until unlock.
    """
    files = [word for word in words if word not in ("lock", "unlock")]
    turns = [word for word in words if word in ("lock", "unlock")]
    if len(files) > 1 or len(turns) > 1:
        raise Failure("too many arguments", "safekit cluster config [FILE.xml|FILE.zip] [lock|unlock]")
    turn = turns[0] if turns else ""
    if lock_file().exists() and turn != "unlock":
        raise Failure(f"the cluster configuration is {LOCKED}", "safekit cluster config unlock")
    current = cluster_dir() / "cluster.xml"
    if files or not turn:
        source = Path(files[0]) if files else current
        if not source.exists():
            raise Failure(
                f"{source} does not exist",
                "write one (guide 12.1.2), then: safekit cluster config FILE.xml",
            )
        with tempfile.TemporaryDirectory() as directory:
            key = None
            if source.suffix == ".zip":
                source, key = _unzip(source, Path(directory))
            config = apply_file(source, key)
        problem = follow_cluster()
        if problem:
            click.echo(f"Warning: {problem}", err=True)
        reload_admin(joined=True)
        click.echo(f"this server is node {(safevar() / 'nodename').read_text().strip()}")
        click.echo(f"cluster of {len(config.node_names)} nodes configured: {', '.join(config.node_names)}")
        if key is None:
            click.echo(OTHERS)
    if turn == "lock":
        write_atomic(lock_file(), b"1\n")
    elif turn == "unlock":
        lock_file().unlink(missing_ok=True)
    return 0


@command("export", example="safekit cluster export /tmp/cluster.zip", modifies=False)
@click.argument("file", metavar="FILE.zip", type=FILE)
def export_command(file: str) -> int:
    """Write cluster.xml and the key in a zip, to configure another server with. Keep it secret."""
    target = Path(file)
    for name in ("cluster.xml", "cluster.key"):
        if not (cluster_dir() / name).exists():
            raise Failure("the cluster is not configured", "safekit cluster config cluster.xml")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as handle, zipfile.ZipFile(handle, "w") as archive:
            archive.write(cluster_dir() / "cluster.xml", "cluster.xml")
            waiting = NEXT_KEY if (cluster_dir() / NEXT_KEY).exists() else "cluster.key"
            archive.write(cluster_dir() / waiting, "cluster.key")
        os.rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    click.echo(f"{target} holds the configuration and the key of the cluster")
    click.echo(f"Next step: carry it to each other server, then there: safekit cluster config {target}")
    return 0


@command("confcheck", example="safekit cluster confcheck /tmp/cluster.xml")
@click.argument("file", type=FILE)
def confcheck_command(file: str) -> int:
    """Check a cluster configuration without applying it."""
    config, warnings = checked(Path(file))
    show_findings(warnings)
    click.echo(f"{file} is correct: {len(config.node_names)} nodes, {len(config.lans)} networks")
    return 0


def _nodes() -> dict[str, Any]:
    """What safeadmin knows of each node of the cluster. Raises Failure when there is no cluster."""
    if not (cluster_dir() / "cluster.json").exists():
        raise Failure("the cluster is not configured", "safekit cluster config cluster.xml")
    answer = ask("", GetMembers())
    return dict(answer.get("nodes", {}))


def confinfo_lines(nodes: dict[str, Any]) -> list[str]:
    """A line per node that answers (guide 9.3)."""
    rows = [("Node", "Signature", "Date", "Lock")]
    for name, known in nodes.items():
        facts = known.get("facts")
        if known.get("answers") and facts:
            rows.append((name, facts["signature"], facts["date"], str(int(bool(facts["locked"])))))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@command("confinfo", example="safekit cluster confinfo")
@json_option
def confinfo_command(as_json: bool) -> int:
    """Show the signature, date and lock of the cluster configuration of each node that answers.

    Equal signatures: equal configurations. The JSON has all that is known of each node, also the protocol version
    that is spoken to it.
    """
    nodes = _nodes()
    if as_json:
        return show_json(nodes)
    for line in confinfo_lines(nodes):
        click.echo(line)
    silent = {name: str(known.get("problem", "")) for name, known in nodes.items() if not known.get("answers")}
    for name, problem in silent.items():
        if problem:
            click.echo(f"{name}: {problem}", err=True)
    if "" in silent.values():
        click.echo(f"No answer from: {', '.join(name for name, text in silent.items() if not text)}", err=True)
        click.echo("Next step: are they up, and do they know this server? there: safekit cluster confinfo", err=True)
    if any(silent.values()):
        click.echo('Next step: on the server with the right configuration and key: safekit -H "*" -G', err=True)
    return 0


def state_lines(nodes: dict[str, Any]) -> list[str]:
    """A line per node and module (guide 9.3)."""
    rows = [("Node", "Module", "Mode", "Id", "Date", "Signature")]
    for name, known in nodes.items():
        for module in (known.get("facts") or {}).get("modules", ()):
            rows.append(
                (
                    name,
                    module["name"],
                    module["mode"] or "-",
                    str(module["id"]),
                    module["date"] or "-",
                    module["signature"] or "not configured",
                )
            )
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@command("state", example="safekit cluster state\nsafekit cluster state --json")
@json_option
def state_command(as_json: bool) -> int:
    """List the modules of each node: mode, id, date and signature of the last configuration."""
    if as_json:
        nodes = _nodes().items()
        return show_json({name: list((known.get("facts") or {}).get("modules", ())) for name, known in nodes})
    for line in state_lines(_nodes()):
        click.echo(line)
    return 0


@command("deconfig", example="safekit cluster deconfig", modifies=True)
def deconfig_command() -> int:
    """Remove the cluster configuration and the key from this server. No module may run."""
    from safekit.model.cluster import deconfigure_cluster

    running = sorted(n for n, known in require_admin().get("modules", {}).items() if known.get("running"))
    if running:
        raise Failure(f"modules run on this server: {', '.join(running)}", "safekit shutdown")
    if lock_file().exists():
        raise Failure(f"the cluster configuration is {LOCKED}", "safekit cluster config unlock")
    deconfigure_cluster()
    for name in (NEXT_KEY, FORMER_KEYS):
        (cluster_dir() / name).unlink(missing_ok=True)
    (safevar() / "nodename").unlink(missing_ok=True)
    reload_admin(joined=False)
    return 0


@command("genkey", example="safekit cluster genkey", modifies=True)
def genkey_command() -> int:
    """Make a new cluster key. It comes into force everywhere when it is distributed: safekit -H "*" -G."""
    if not (cluster_dir() / "cluster.xml").exists():
        raise Failure("the cluster is not configured", "safekit cluster config cluster.xml")
    if lock_file().exists():
        raise Failure(f"the cluster configuration is {LOCKED}", "safekit cluster config unlock")
    make_next_key()
    click.echo(f"new key at {time.strftime('%H:%M:%S')}; the present one stays in force until it is distributed")
    click.echo('Next step: safekit -H "*" -G')
    return 0


@command("delkey", example="safekit cluster delkey")
def delkey_command() -> int:
    """Refused: traffic between the servers is never in clear."""
    raise Failure(
        "a cluster without a key is not supported: everything between the servers is encrypted",
        "safekit cluster genkey makes a new key",
    )


for _each in (
    create_command,
    join_command,
    config_command,
    export_command,
    confcheck_command,
    confinfo_command,
    state_command,
    deconfig_command,
    genkey_command,
    delkey_command,
):
    cluster_command.add_command(_each)

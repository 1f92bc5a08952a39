"""cluster create and cluster join: a cluster in one command on each server, with a code between them.

Beside the guide's way (a cluster.xml that is written by hand, `cluster config`, -G with a password): the result is the
same file and the same key.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import click

from cli.base import Failure, ask, command, json_option, on_terminal, show_json
from cli.clusterapply import apply_file, checked, lock_file, name_of_this_server, reload_admin
from cli.distributed import configured_cluster
from cli.progress import Live
from safekit.bus.requests.safeadmin.node import GetMembers
from safekit.disk.paths import node_name, speaks_https
from safekit.model.types import ClusterConfig
from safekit.net.firewall import follow_cluster
from safekit.view.words import duration
from safekit.wire import invitation
from safekit.wire.keys import cluster_key
from safekit.wire.targets import PORTS, Credentials, Target
from safekit.wire.webclient import Ask, CallError, proved

LAN_NAMES = ("default", "repli", "lan3", "lan4")
HEAR_SECONDS = 15.0
TRIES = 3
AGAIN_SECONDS = 3.0
POLL = 0.2
Nodes = dict[str, tuple[str, ...]]
"""Name of a node -> its address on each network."""


# --- the file


def parse_nodes(words: Sequence[str]) -> Nodes:
    """`node1=10.0.0.1,10.1.0.1` and so on. Raises Failure."""
    example = "safekit cluster create node1=10.0.0.1,10.1.0.1 node2=10.0.0.2,10.1.0.2"
    found: Nodes = {}
    for word in words:
        name, equals, addresses = word.partition("=")
        given = tuple(part.strip() for part in addresses.split(","))
        if not equals or not name or not all(given):
            raise Failure(f"{word} is not NODE=ADDRESS", example)
        if name in found:
            raise Failure(f"{name} is named twice", example)
        found[name] = given
    if len(found) < 2:
        raise Failure("a cluster has at least two servers", example)
    counts = {name: len(addresses) for name, addresses in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise Failure(f"every server needs an address on each network (given: {told})", example)
    return found


def cluster_xml(nodes: Nodes, lans: Sequence[str]) -> str:
    """The file of guide 12.1 for these servers."""
    lines = ["<cluster>", "  <lans>"]
    for number, lan in enumerate(lans):
        lines.append(f"    <lan name={quoteattr(lan)}>")
        for name, addresses in nodes.items():
            lines.append(f"      <node name={quoteattr(name)} addr={quoteattr(addresses[number])}/>")
        lines.append("    </lan>")
    return "\n".join([*lines, "  </lans>", "</cluster>", ""])


def _lans(nodes: Nodes, given: str) -> tuple[str, ...]:
    count = len(next(iter(nodes.values())))
    names = tuple(part.strip() for part in given.split(",") if part.strip()) or LAN_NAMES[:count]
    if len(names) != count or len(set(names)) != count:
        raise Failure(
            f"{count} networks need {count} names",
            f"--lans {','.join(LAN_NAMES[:count])}" if count <= 4 else "--lans A,B",
        )
    return names


# --- create


@command(
    "create",
    example="safekit cluster create node1=10.0.0.1 node2=10.0.0.2\n"
    "safekit cluster create node1=10.0.0.1,10.1.0.1 node2=10.0.0.2,10.1.0.2 --code node2=K7QF-3MXP",
    modifies=True,
)
@click.argument("nodes", metavar="NODE=ADDRESS[,ADDRESS...] ...", nargs=-1, required=True)
@click.option("--code", "codes", multiple=True, metavar="NODE=CODE", help="The code that the server shows. Repeatable.")
@click.option("--lans", default="", metavar="A,B", help="Names of the networks; default and repli by default.")
@json_option
def create_command(nodes: tuple[str, ...], codes: tuple[str, ...], lans: str, as_json: bool) -> int:
    """Make a cluster of this server and others: cluster.xml and the key, on all of them.

    On each other server run `safekit cluster join` first: it shows a code, which is asked for here. Several addresses
    of a server are its networks, in the same order for all. The key crosses the network sealed, and only to a server
    that has proved that it knows the code. The same line again brings in a server that failed; the others stay.
    """
    wanted = parse_nodes(nodes)
    text = cluster_xml(wanted, _lans(wanted, lans))
    given = _codes(codes, wanted)
    config = _apply_here(text)
    others = [name for name in wanted if name != node_name()]
    missing = [name for name in others if not _hears(name)]
    results = {name: "in the cluster already" for name in others if name not in missing}
    failures: dict[str, CallError] = {}
    for name in missing:
        try:
            _bring(config, name, text, given.get(name) or _asked_code(name, as_json))
            results[name] = "configured"
        except CallError as error:
            failures[name] = error
            results[name] = error.text
    silent = _wait([name for name in others if name not in failures])
    return _told(config, results, failures, silent, as_json)


def _codes(words: Sequence[str], wanted: Nodes) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, code = word.partition("=")
        if not equals and len(wanted) == 2:
            name, code = "", word
        if name and name not in wanted:
            raise Failure(f"{word}: {name} is none of {', '.join(wanted)}", "--code NODE=CODE")
        found[name] = code
    if "" in found:  # of two servers there is only one that can have shown it
        return dict.fromkeys(wanted, found[""])
    return found


def _asked_code(name: str, as_json: bool) -> str:
    if as_json or not sys.stdin.isatty():
        raise CallError(
            "credentials", "its code is missing", f"--code {name}=CODE, which safekit cluster join shows there"
        )
    return str(click.prompt(f"Code that `safekit cluster join` shows on {name}", err=True))


def _apply_here(text: str) -> ClusterConfig:
    """The configuration on this server, with a new key unless it is there already. Raises Failure."""
    if lock_file().exists():
        raise Failure("the cluster configuration is locked", "safekit cluster config unlock")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "cluster.xml"
        path.write_text(text)
        config, _ = checked(path)
        name_of_this_server(config)
        present = configured_cluster()
        if present is None:
            apply_file(path, None)
            problem = follow_cluster()
            if problem:
                click.echo(f"Warning: {problem}", err=True)
            reload_admin(joined=True)
        elif present.lans != config.lans:
            raise Failure(
                f"this server is in another cluster already ({', '.join(present.node_names)})",
                "to change it: safekit cluster config FILE.xml; to leave it: safekit cluster deconfig",
            )
    return config


def _bring(config: ClusterConfig, name: str, text: str, code: str) -> None:
    """One server, whose web service may just have been started, or end the connection before its answer has come: then
    what counts is whether the server is heard. Raises CallError."""
    for left in reversed(range(TRIES)):
        try:
            return _give(config, name, text, code)
        except CallError as error:
            if error.kind not in ("connect", "silent") or not left:
                raise
        if not _wait([name], AGAIN_SECONDS):
            return None
    return None


def _give(config: ClusterConfig, name: str, text: str, code: str) -> None:
    """The file and the key, to one server. Raises CallError."""
    lan = config.command_lan
    address = config.address(lan.name, name) if lan is not None else None
    assert address is not None, "every server is on each network"
    protocol = "https" if speaks_https() else "http"
    target = Target("", protocol, address, PORTS[protocol], others=frozenset())
    body = json.dumps({"cluster.xml": text, "cluster.key": cluster_key().hex()}).encode()
    order = Ask("PUT", "/api/v1/cluster", body, secret=True)
    try:
        answer = proved(target, order, Credentials(invitation.USER, invitation.plain(code)))
    except CallError as error:
        if error.kind in ("credentials", "no_invitation", "key"):
            text = "the code is not right, has expired, or was tried too often"
            raise CallError(error.kind, text, f"on {name}: safekit cluster join, then the same line here") from None
        raise
    if int(answer.get("status", 1)):
        lines = str(answer.get("output", "")).splitlines()
        raise CallError("failed", "; ".join(lines), f"on {name}: safekit cluster join, then the same line here")


def _members() -> dict[str, Any]:
    return dict(ask("", GetMembers()).get("nodes", {}))


def _hears(name: str) -> bool:
    return bool(_members().get(name, {}).get("answers"))


def _wait(names: Sequence[str], seconds: float = HEAR_SECONDS) -> list[str]:
    """Until all of them are heard, in a bounded time; those that are not."""
    deadline = time.monotonic() + seconds
    with Live() as live:
        while silent := [name for name in names if not _hears(name)]:
            if time.monotonic() > deadline:
                return silent
            live.show(f"waiting for {', '.join(silent)}")
            time.sleep(POLL)
    return []


def _told(
    config: ClusterConfig, results: dict[str, str], failures: dict[str, CallError], silent: Sequence[str], as_json: bool
) -> int:
    code = int(bool(failures or silent))
    if as_json:
        errors = {name: {"error": e.kind, "text": e.text, "next_step": e.next_step} for name, e in failures.items()}
        data = {"node": node_name(), "nodes": list(config.node_names), "results": results, "errors": errors}
        show_json({"ok": not code, "code": code, **data, "silent": list(silent)})
        return code
    click.echo(f"this server is node {node_name()}")
    for name, result in results.items():
        if name in failures:
            click.echo(f"Error: {name}: {result}", err=True)
            click.echo(f"Next step: {failures[name].next_step}", err=True)
        else:
            click.echo(f"{name}: {result}")
    if silent:
        click.echo(f"Error: {', '.join(silent)} has the configuration and is not heard", err=True)
        click.echo("Next step: UDP 4800 must pass both ways; on each server: safekit -r firewallcfg add", err=True)
    if code == 0:
        networks = f"{len(config.lans)} network{'s' if len(config.lans) > 1 else ''}"
        click.echo(f"cluster of {len(config.node_names)} servers on {networks}: all of them hear each other")
        if len(config.lans) == 1:
            click.echo(
                "Warning: one network only: when it fails, servers cannot tell it from the loss of a server", err=True
            )
        click.echo("Next step: safekit protect, on the server that has the service")
    return code


# --- join


@command("join", example="safekit cluster join\nsafekit cluster join --json", modifies=True)
@click.option("--stop", "stop", is_flag=True, help="Wait no more: the code is void.")
@json_option
def join_command(stop: bool, as_json: bool) -> int:
    """Show a code with which another server brings this one into its cluster: safekit cluster create.

    It is good for one cluster, ten minutes and five tries. On a terminal the command waits until it has happened, and
    Ctrl-C makes the code void; elsewhere it returns at once.
    """
    if stop:
        invitation.withdraw()
        return 0
    present = configured_cluster()
    if present is not None:
        raise Failure(
            f"this server is in a cluster already ({', '.join(present.node_names)})",
            "to leave it: safekit cluster deconfig",
        )
    from cli.boot import wait_for_web

    wait_for_web()  # it is the web service that waits for the other server
    code = invitation.make()
    if as_json:
        return show_json({"code": code, "seconds": invitation.SECONDS, "tries": invitation.TRIES})
    click.echo(f"Code: {code}")
    click.echo(f"Next step, on the other server: safekit cluster create NODE=ADDRESS NODE=ADDRESS --code {code}")
    return _wait_for_cluster() if on_terminal() else 0


def _wait_for_cluster() -> int:
    try:
        with Live() as live:
            while configured_cluster() is None:
                left = invitation.left()
                if not left:
                    raise Failure("the code has expired, or was tried too often", "safekit cluster join, again")
                live.show(f"waiting for the other server, {duration(left)} left")
                time.sleep(POLL)
    except KeyboardInterrupt:
        invitation.withdraw()
        raise
    config = configured_cluster()
    assert config is not None
    click.echo(f"this server is node {node_name()} of {', '.join(config.node_names)}")
    return 0

"""cluster.xml: loading, checking, this node's place in it, the compiled form and the key (chapter 12)."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from safekit.disk.files import write_atomic
from safekit.disk.paths import cluster_dir, safevar
from safekit.model import schema
from safekit.model.codec import from_json, to_json
from safekit.model.findings import ConfigError, Finding, Places, errors, ordered
from safekit.model.read import Reader
from safekit.model.types import ClusterConfig, Lan, LanNode
from safekit.model.xmlload import Node, parse, read_bytes

KEY_BYTES = 32
CLUSTER_XML = "cluster.xml"
CLUSTER_JSON = "cluster.json"
CLUSTER_KEY = "cluster.key"


class ClusterError(Exception):
    """The cluster is not configured, or this server is not in it. The text holds the next step."""


def load_cluster_xml(path: Path) -> tuple[ClusterConfig, tuple[Finding, ...]]:
    """The configuration that a cluster.xml describes, and the warnings. Raises ConfigError."""
    data = read_bytes(path)
    file = str(path)
    root = parse(data, file)
    findings = schema.check(root, schema.load("cluster"), file)
    if not root.usable:
        raise ConfigError(ordered(findings))
    places = Places(file)
    config = _build(root, places, findings)
    findings += _check(config, places)
    if errors(findings):
        raise ConfigError(ordered(findings))
    return config, ordered(findings)


def signature(config: ClusterConfig) -> str:
    """sha256 (hex) of what the file means: layout, comments and spelled-out defaults do not change it."""
    return hashlib.sha256(to_json(_unsigned(config)).encode()).hexdigest()


def _unsigned(config: ClusterConfig) -> ClusterConfig:
    return ClusterConfig(config.lans, config.port, config.pulse_ms, config.mlost_count, config.slost_count)


def _build(root: Node, places: Places, findings: list[Finding]) -> ClusterConfig:
    places.note("", root.line, root.tag)
    written = [child for child in root.children if child.tag == "lans"]
    for extra in written[1:]:
        findings.append(Finding(places.file, extra.line, "lans", "a second <lans>; expected exactly one"))
    lans = root.named("lans")[:1]
    if not lans:
        if not written:
            findings.append(places.finding("", "there is no <lans>; expected exactly one"))
        return ClusterConfig()
    top = lans[0]
    places.note("lans", top.line, top.tag)
    r = Reader(top, "lans", places)
    if not any(child.tag == "lan" for child in top.children):
        findings.append(places.finding("lans", "there is no <lan>; expected at least one"))
    config = ClusterConfig(
        lans=tuple(_lan(node, f"lans[{i}]", places) for i, node in enumerate(top.named("lan"))),
        port=r.number("port", "port", 4800),
        pulse_ms=r.number("pulse", "pulse_ms", 1000),
        mlost_count=r.number("mlost_count", "mlost_count", 5),
        slost_count=r.number("slost_count", "slost_count", 5),
    )
    return ClusterConfig(
        config.lans, config.port, config.pulse_ms, config.mlost_count, config.slost_count, signature(config)
    )


def _lan(node: Node, path: str, places: Places) -> Lan:
    places.note(path, node.line, node.tag)
    r = Reader(node, path, places)
    nodes = []
    for index, child in enumerate(node.named("node")):
        at = f"{path}.nodes[{index}]"
        places.note(at, child.line, child.tag)
        n = Reader(child, at, places)
        nodes.append(LanNode(n.text("name", "name", ""), n.text("addr", "addr", ""), n.optional("laddr", "laddr")))
    return Lan(
        name=r.text("name", "name", ""),
        framework=r.onoff("framework", "framework", True),
        console=r.onoff("console", "console", True),
        command=r.onoff("command", "command", False),
        nodes=tuple(nodes),
    )


def _check(config: ClusterConfig, places: Places) -> list[Finding]:
    found: list[Finding] = []
    every = set(config.node_names)

    def error(path: str, message: str) -> None:
        found.append(places.finding(path, message))

    names: set[str] = set()
    commands = 0
    for index, lan in enumerate(config.lans):
        path = f"lans[{index}]"
        if lan.name in names:
            error(f"{path}.name", f'the name "{lan.name}" is used by two lans; give each its own')
        names.add(lan.name)
        here = {node.name for node in lan.nodes}
        missing = ", ".join(name for name in config.node_names if name not in here)
        if len(here) < 2:
            error(path, f'the lan "{lan.name}" has {len(here)} node; expected at least two')
        if lan.console and missing:
            error(
                f"{path}.console", f'the console cannot reach {missing} on "{lan.name}"; add them or set console="off"'
            )
        if lan.command:
            commands += 1
            if commands > 1:
                error(f"{path}.command", 'a second lan has command="on"; expected at most one')
            if not lan.framework or missing:
                error(f"{path}.command", 'expected framework="on" and every node on a lan with command="on"')
        _check_nodes(lan, path, error)
    if config.lans and not any(lan.framework and {n.name for n in lan.nodes} == every for lan in config.lans):
        error("lans", 'no lan with framework="on" includes every node; expected at least one')
    return found


def _check_nodes(lan: Lan, path: str, error: Callable[[str, str], None]) -> None:
    names: set[str] = set()
    addresses: dict[str, str] = {}
    for number, node in enumerate(lan.nodes):
        at = f"{path}.nodes[{number}]"
        if node.name in names:
            error(f"{at}.name", f'the node "{node.name}" appears twice on the lan "{lan.name}"; keep one')
        names.add(node.name)
        other = addresses.setdefault(node.addr.lower(), node.name)
        if other != node.name:
            error(f"{at}.addr", f"{node.addr} is also the address of {other}; give each node its own")
        if node.laddr is not None and _parsed(node.laddr) is None:
            error(f"{at}.laddr", f'"{node.laddr}" is not an IP address; expected a local IPv4 or IPv6 address')


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def resolve(address: str) -> tuple[str, ...]:
    """The IP addresses of an address or host name, in normal form; empty when the name is unknown.

    A name is looked up with the system's resolver, which may take seconds.
    """
    parsed = _parsed(address)
    if parsed is not None:
        return (str(parsed),)
    try:
        answers = socket.getaddrinfo(address, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(_parsed(str(answer[4][0]))) for answer in answers))


def local_node(cluster: ClusterConfig, local_addresses: Iterable[str]) -> str:
    """The name of this server in the cluster, by the addresses of its interfaces.

    SAFENODE in the environment wins. Literal addresses are matched before any name is looked up. The
    name in SAFEVAR/nodename settles what the addresses leave open. Raises ClusterError when no node,
    or more than one, fits.
    """
    forced = os.environ.get("SAFENODE")
    if forced:
        if forced in cluster.node_names:
            return forced
        raise ClusterError(
            f"SAFENODE={forced} is not a node of cluster.xml; expected one of {', '.join(cluster.node_names)}"
        )
    mine = {str(_parsed(address) or address) for address in local_addresses}
    matches = _matching(cluster, mine, look_up=False) or _matching(cluster, mine, look_up=True)
    if len(matches) == 1:
        return matches[0]
    named = _written_name()
    if named in (matches or cluster.node_names):
        return named
    if matches:
        raise ClusterError(
            f"this server has the addresses of several nodes of cluster.xml ({', '.join(matches)}); "
            f"correct cluster.xml, or write the name of this node to {safevar() / 'nodename'}"
        )
    raise ClusterError(
        f"no node of cluster.xml has an address of this server ({', '.join(sorted(mine)) or 'none'}); "
        f"correct cluster.xml, or write the name of this node to {safevar() / 'nodename'}"
    )


def _matching(cluster: ClusterConfig, mine: set[str], *, look_up: bool) -> tuple[str, ...]:
    matches: dict[str, None] = {}
    for lan in cluster.lans:
        for node in lan.nodes:
            literal = _parsed(node.bind_address)
            if literal is not None:
                candidates: tuple[str, ...] = (str(literal),)
            else:
                candidates = resolve(node.bind_address) if look_up else ()
            if mine.intersection(candidates):
                matches.setdefault(node.name)
    return tuple(matches)


def _written_name() -> str:
    try:
        return (safevar() / "nodename").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def system_addresses() -> tuple[str, ...]:
    """The addresses on this server's interfaces, without loopback."""
    from safekit.net.addresses import local_addresses

    return tuple(sorted(str(address) for address in local_addresses() if not address.is_loopback))


def load_cluster() -> ClusterConfig:
    """The compiled cluster configuration that every process reads. Raises ClusterError."""
    path = cluster_dir() / CLUSTER_JSON
    try:
        return from_json(ClusterConfig, path.read_bytes())
    except FileNotFoundError as error:
        raise ClusterError("the cluster is not configured; run safekit cluster config <cluster.xml>") from error
    except (OSError, ValueError) as error:
        raise ClusterError(f"{path} cannot be read ({error}); run safekit cluster config again") from error


def compile_cluster() -> ClusterConfig:
    """Compile SAFEVAR/cluster/cluster.xml again, after its files were copied from another server.

    Writes the name of this node first, cluster.json last. Raises ConfigError, ClusterError, OSError.
    """
    config, _ = load_cluster_xml(cluster_dir() / CLUSTER_XML)
    _publish(config, local_node(config, system_addresses()))
    return config


def apply_cluster(source: Path, *, key: str | None = None) -> tuple[ClusterConfig, tuple[Finding, ...]]:
    """Install a new cluster.xml with `key` (hex), a fresh one by default; the warnings come back.

    Everything is checked first: ConfigError and ClusterError mean that nothing changed. cluster.json is
    written last, so that a process which follows it finds the rest in place. Raises OSError too.
    """
    config, warnings = load_cluster_xml(source)
    data = read_bytes(source)
    if key is not None and not valid_key(key):
        raise ClusterError(f"the cluster key is not {KEY_BYTES * 2} hexadecimal digits; make one with genkey")
    node = local_node(config, system_addresses())
    cluster_dir().mkdir(parents=True, exist_ok=True)
    if key is None or key.strip() != _written_key():
        write_key(key or new_key())
    write_atomic(cluster_dir() / CLUSTER_XML, data, mode=0o644)
    _publish(config, node)
    return config, warnings


def _publish(config: ClusterConfig, node: str) -> None:
    write_atomic(safevar() / "nodename", f"{node}\n".encode(), mode=0o644)
    write_atomic(cluster_dir() / CLUSTER_JSON, to_json(config).encode(), mode=0o644)


def deconfigure_cluster() -> None:
    """Remove the cluster's configuration and key, compiled form first."""
    for name in (CLUSTER_JSON, CLUSTER_XML, CLUSTER_KEY):
        (cluster_dir() / name).unlink(missing_ok=True)


def new_key() -> str:
    """A random cluster key: 64 hexadecimal digits."""
    return secrets.token_hex(KEY_BYTES)


def valid_key(text: str) -> bool:
    try:
        return len(bytes.fromhex(text.strip())) == KEY_BYTES
    except ValueError:
        return False


def _written_key() -> str:
    try:
        return (cluster_dir() / CLUSTER_KEY).read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""


def write_key(key: str) -> None:
    """Put the key in place, readable by root and group safekit only."""
    path = cluster_dir() / CLUSTER_KEY
    write_atomic(path, key.strip().encode() + b"\n", mode=0o640)
    give_to_group(path)


def give_to_group(path: Path) -> None:
    """Let group safekit read the file, where that group exists and we may."""
    if os.geteuid() == 0:
        try:
            shutil.chown(path, group="safekit")
        except LookupError:
            return  # no such group: a lab or a test; the file stays root's alone

"""Which servers a distributed command is for (guide 9.1). Pure: no file is read here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safekit.model.types import ClusterConfig

HTTP_PORT, HTTPS_PORT = 9010, 9453
PORTS = {"http": HTTP_PORT, "https": HTTPS_PORT}
_OVERRIDE = re.compile(r"\[(?P<protocol>[A-Za-z]+)(?::(?P<port>\d{1,5}))?\]")
_URL = re.compile(
    r"(?P<protocol>https?)://(?:(?P<user>[^:@/]+)(?::(?P<password>[^@/]*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[^:/@\[\]]+)(?::(?P<port>\d{1,5}))?/?",
    re.IGNORECASE,
)


class TargetError(Exception):
    """A list of servers that makes no sense; the text says which part."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.text = text
        self.next_step = next_step


@dataclass(frozen=True)
class Credentials:
    """Name and password of a user of a web service."""

    user: str
    password: str


@dataclass(frozen=True)
class Target:
    """A web service. `node`: its name in the cluster, '' for a server that is not in it. `others`: names of those that
    are not meant, so that somebody in between cannot have them do what this one is asked for."""

    node: str
    protocol: str
    host: str
    port: int
    credentials: Credentials | None = None
    others: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def url(self) -> str:
        """As people write it, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}"

    @property
    def label(self) -> str:
        """How the output names the server."""
        return self.node or self.url


def _port(text: str | None, protocol: str) -> int:
    port = PORTS[protocol] if text is None else int(text)
    if not 0 < port < 65536:
        raise TargetError(f"{text} is not a port", "a port lies between 1 and 65535")
    return port


def _node_of(host: str, cluster: ClusterConfig | None, me: str) -> str:
    """Name of the node with that address."""
    if host.lower() in ("localhost", "127.0.0.1", "::1"):
        return me
    for lan in cluster.lans if cluster is not None else ():
        for node in lan.nodes:
            if host.lower() in (node.addr.lower(), (node.laddr or "").lower()):
                return node.name
    return ""


def parse_targets(text: str, cluster: ClusterConfig | None, me: str, protocol: str) -> tuple[Target, ...]:
    """The servers of a list such as `n1,n2`, `*`, `[http:9011],*` or `http://10.0.0.1:9010,n2`.

    `me` is this server's name, `protocol` (http or https) what names stand for when the list does not say.
    A server that is named twice is asked once. Raises TargetError.
    """
    port: int | None = None
    names = frozenset(node.name for lan in cluster.lans for node in lan.nodes) if cluster is not None else frozenset()
    found: dict[tuple[str, int], Target] = {}
    for item in (part.strip() for part in text.split(",")):
        if not item:
            continue
        override = _OVERRIDE.fullmatch(item)
        if override is not None:
            protocol = override["protocol"].lower()
            if protocol not in PORTS:
                raise TargetError(f"{item}: {protocol} is not a protocol", "use [http], [https] or [http:PORT]")
            port = _port(override["port"], protocol)
            continue
        for target in _targets(item, cluster, me, protocol, port or PORTS[protocol]):
            others = names - {target.node} if target.node else frozenset()
            found.setdefault((target.host, target.port), replace(target, others=others))
    if not found:
        raise TargetError(f"the list of servers {text!r} names no server", 'safekit -H "*" COMMAND is for all nodes')
    return tuple(found.values())


def _targets(item: str, cluster: ClusterConfig | None, me: str, protocol: str, port: int) -> Sequence[Target]:
    url = _URL.fullmatch(item)
    if url is not None:
        scheme, host = url["protocol"].lower(), url["host"].strip("[]")
        who = Credentials(url["user"], url["password"] or "") if url["user"] else None
        return [Target(_node_of(host, cluster, me), scheme, host, _port(url["port"], scheme), who)]
    if "/" in item or "@" in item:
        raise TargetError(f"{item} is not a URL of a server", "use for example http://192.168.0.2:9010")
    if cluster is None:
        raise TargetError(
            f"{item!r} stands for servers of cluster.xml, but the cluster is not configured on this server",
            "safekit cluster config cluster.xml, or give URLs: -H http://192.168.0.2:9010",
        )
    lan = cluster.command_lan
    nodes = lan.nodes if lan is not None else ()
    if item == "*":
        return [Target(node.name, protocol, node.addr, port) for node in nodes]
    node = next((node for node in nodes if node.name == item), None)
    if node is None:
        names = ", ".join(known.name for known in nodes)
        raise TargetError(f"cluster.xml has no node {item!r}", f"its nodes are: {names}")
    return [Target(node.name, protocol, node.addr, port)]


def default_list(text: str) -> str:
    """The list in default_cluster.txt: one or more a line, `#` begins a comment."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return ",".join(line for line in lines if line)

"""What a lab consists of: names, addresses, cables. Pure.

Addresses exist inside namespaces only, so every lab uses the same ones and labs side by side never meet.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lab.errors import LabError

CLIENT = "client"
MAX_NODES = 32
MAX_LANS = 9
MAX_NAME = 32
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_CLIENT_HOST = 200
_FIRST_HOST = 10
_VIRTUAL_HOST = 50


@dataclass(frozen=True)
class Cable:
    """One interface of a node: `interface` inside the node, `port` on the switch, `delayed` the port that takes its
    place in the bridge while a relay slows the link."""

    node: str
    lan: str
    bridge: str
    interface: str
    port: str
    delayed: str
    relay_end: str
    mac: str
    ipv4: str
    ipv6: str

    @property
    def ports(self) -> tuple[str, str]:
        return self.port, self.delayed


@dataclass(frozen=True)
class Plan:
    """Name, nodes and lans of a lab; with `disks`, each node has one of its own, which loses what was not synced when
    the power fails. Raises LabError for values out of range."""

    name: str
    size: int
    lans: tuple[str, ...]
    binds: tuple[str, ...] = ()
    disks: bool = False

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None or len(self.name) > MAX_NAME:
            raise LabError(
                f"{self.name!r} is not a name for a lab",
                f"use a letter, then letters, digits, '-' and '_', at most {MAX_NAME} in all",
            )
        if not 1 <= self.size <= MAX_NODES:
            raise LabError(f"a lab of {self.size} nodes is not possible", f"use --nodes 1 to {MAX_NODES}")
        if not 1 <= len(self.lans) <= MAX_LANS:
            raise LabError(
                f"a lab with {len(self.lans)} lans is not possible", f"use --lans with 1 to {MAX_LANS} names"
            )
        for lan in self.lans:
            if _NAME.fullmatch(lan) is None or self.lans.count(lan) > 1:
                raise LabError(f"{lan!r} is not a unique lan name", "use --lans default,repli with different names")
        for path in self.binds:
            if not path.startswith("/") or path.rstrip("/") in ("", "/opt", "/var", "/usr", "/etc") or ".." in path:
                raise LabError(f"--bind {path}: not a directory that can be kept apart", "use an absolute path")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """What `dataclasses.asdict` and JSON made of a plan."""
        return cls(data["name"], data["size"], tuple(data["lans"]), tuple(data["binds"]), data["disks"])

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"node{number}" for number in range(1, self.size + 1))

    @property
    def machines(self) -> tuple[str, ...]:
        """The nodes and the client."""
        return (*self.nodes, CLIENT)

    @property
    def virtual_ipv4(self) -> str:
        """A free address of the first lan, for a module's virtual IP."""
        return f"10.88.1.{_VIRTUAL_HOST}"

    @property
    def virtual_ipv6(self) -> str:
        return f"fd00:88:1::{_VIRTUAL_HOST}"

    def bridge(self, lan: str) -> str:
        return f"br{self.lan_index(lan)}"

    def lan_index(self, lan: str) -> int:
        if lan not in self.lans:
            raise LabError(f"lab {self.name} has no lan {lan!r}", f"its lans are: {', '.join(self.lans)}")
        return self.lans.index(lan)

    def require_machine(self, machine: str) -> None:
        if machine not in self.machines:
            raise LabError(f"lab {self.name} has no node {machine!r}", f"its nodes are: {', '.join(self.machines)}")

    def require_node(self, node: str) -> None:
        self.require_machine(node)
        if node == CLIENT:
            raise LabError("the client has no power switch", f"name one of: {', '.join(self.nodes)}")

    def cable(self, machine: str, lan: str) -> Cable:
        """Raises LabError when the machine is not on that lan."""
        self.require_machine(machine)
        index = self.lan_index(lan)
        if machine == CLIENT:
            if index != 0:
                raise LabError(f"the client is not on lan {lan}", f"it is on {self.lans[0]} only")
            number, host, prefix = 0, _CLIENT_HOST, "c0"
        else:
            number = self.nodes.index(machine) + 1
            host, prefix = _FIRST_HOST + number, f"n{number}"
        unique = hashlib.sha256(self.name.encode()).digest()
        return Cable(
            node=machine,
            lan=lan,
            bridge=self.bridge(lan),
            interface=f"eth{index}",
            port=f"{prefix}e{index}",
            delayed=f"{prefix}d{index}",
            relay_end=f"{prefix}x{index}",
            mac=f"02:{unique[0]:02x}:{unique[1]:02x}:{unique[2]:02x}:{number:02x}:{index:02x}",
            ipv4=f"10.88.{index + 1}.{host}",
            ipv6=f"fd00:88:{index + 1}::{host}",
        )

    def cables(self, machine: str, lan: str | None = None) -> Iterator[Cable]:
        """The cables of a machine; only that of `lan` when given."""
        if lan is not None:
            yield self.cable(machine, lan)
            return
        for name in self.lans[:1] if machine == CLIENT else self.lans:
            yield self.cable(machine, name)

    def cluster_xml(self) -> str:
        """The cluster configuration of this lab (guide 12)."""
        lines = ['<?xml version="1.0"?>', "<cluster>", "  <lans>"]
        for lan in self.lans:
            lines.append(f'    <lan name="{html.escape(lan)}">')
            for node in self.nodes:
                address = self.cable(node, lan).ipv4
                lines.append(f'      <node name="{node}" addr="{address}"/>')
            lines.append("    </lan>")
        return "\n".join([*lines, "  </lans>", "</cluster>", ""])

    def hosts(self) -> str:
        """/etc/hosts of every machine."""
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
        for machine in self.machines:
            for number, cable in enumerate(self.cables(machine)):
                name = machine if number == 0 else f"{machine}-{cable.lan}"
                lines += [f"{cable.ipv4} {name}", f"{cable.ipv6} {name}"]
        return "\n".join([*lines, ""])

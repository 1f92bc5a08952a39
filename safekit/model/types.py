"""What the configuration files mean, as immutable values (chapters 12 and 13 of the guide).

Every process of the product reads these trees and nothing else: the XML stays with the
`config` commands. Defaults are the documented ones. Units are in the attribute names
(`_ms`, `_kb`, `_h`) or, where the guide's own name is kept, in the docstring.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["mirror", "farm", "light"]
InterfaceKind = Literal["real", "vmac_directed", "vmac_invisible"]
Where = Literal["one_side_alias", "alias"]
When = Literal["pre", "prim", "second", "both"]
AsyncMode = Literal["second", "none"]
Cache = Literal["none", "writeback"]

DEFAULT_SUFFIX = "_For_SafeKit_Replication"
DEFAULT_REIPACKETSIZE = 8388608


# --------------------------------------------------------------------------- cluster.xml


@dataclass(frozen=True)
class LanNode:
    """One server on one network. `laddr` is its local address behind a NAT, else None."""

    name: str
    addr: str
    laddr: str | None = None

    @property
    def bind_address(self) -> str:
        """The address that is configured on an interface of the node itself."""
        return self.laddr if self.laddr is not None else self.addr


@dataclass(frozen=True)
class Lan:
    """A network of the cluster and what it may be used for (12.1.3)."""

    name: str
    framework: bool = True
    console: bool = True
    command: bool = False
    nodes: tuple[LanNode, ...] = ()

    def node(self, name: str) -> LanNode | None:
        return next((n for n in self.nodes if n.name == name), None)


@dataclass(frozen=True)
class ClusterConfig:
    """The compiled cluster.xml. `signature` is the sha256 (hex) of its canonical form."""

    lans: tuple[Lan, ...] = ()
    port: int = 4800
    pulse_ms: int = 1000
    mlost_count: int = 5
    slost_count: int = 5
    signature: str = ""

    @property
    def node_names(self) -> tuple[str, ...]:
        """Every node, each once, in the order of the file."""
        seen: dict[str, None] = {}
        for lan in self.lans:
            for node in lan.nodes:
                seen.setdefault(node.name)
        return tuple(seen)

    @property
    def framework_lans(self) -> tuple[Lan, ...]:
        return tuple(lan for lan in self.lans if lan.framework)

    @property
    def command_lan(self) -> Lan | None:
        """The network of distributed commands: the marked one, else the first framework lan."""
        marked = next((lan for lan in self.lans if lan.command), None)
        return marked or next(iter(self.framework_lans), None)

    def lan(self, name: str) -> Lan | None:
        return next((lan for lan in self.lans if lan.name == name), None)

    def address(self, lan: str, node: str) -> str | None:
        """The address under which others reach `node` on `lan`; None if it is not there."""
        found = self.lan(lan)
        entry = found.node(node) if found else None
        return entry.addr if entry else None

    def bind_address(self, lan: str, node: str) -> str | None:
        """The address which `node` itself has on `lan` (differs from address() behind a NAT)."""
        found = self.lan(lan)
        entry = found.node(node) if found else None
        return entry.bind_address if entry else None


# ------------------------------------------------------------------------ userconfig.xml


@dataclass(frozen=True)
class Service:
    """<service>, 13.2. `maxloop` counts automatic actions within `loop_interval_h` hours."""

    mode: Mode = "mirror"
    failover: bool = True
    defaultprim: str = "alone"
    maxloop: int = 3
    loop_interval_h: int = 24
    automatic_reboot: bool = False


@dataclass(frozen=True)
class Heartbeat:
    """<heartbeat>, 13.3. `name` is a lan of the cluster; the resource is heartbeat.<ident>."""

    name: str
    ident: str
    port: int
    pulse_ms: int = 700
    timeout_ms: int = 30000
    permanent_arp: bool = True


@dataclass(frozen=True)
class Heart:
    """<heart>, 13.3: the heartbeats in the order of the file."""

    heartbeats: tuple[Heartbeat, ...] = ()

    def heartbeat(self, ident: str) -> Heartbeat | None:
        return next((h for h in self.heartbeats if h.ident == ident), None)


@dataclass(frozen=True)
class Replicated:
    """<replicated>, 13.6. Paths and expressions are relative to `dir`."""

    dir: str
    read_only: bool = False
    notreplicated_paths: tuple[str, ...] = ()
    notreplicated_regex: tuple[str, ...] = ()
    tocheck: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rfs:
    """<rfs>, 13.6.3.

    Seconds: locktimeout, sendtimeout, reitimeout, checkintv. Milliseconds: checktime.
    Bytes: ruzone_blocksize, reipacketsize, packetsize (None: no limit of its own).
    reiallowedbw is in KB/s of 1024 bytes, None for no limit. syncdelta is in minutes.
    reicommit counts packets between two commits, 0 for one commit at the end.
    `flow` is the lan of the replication flow after the rules of 13.6.3 are applied
    (<flow>, else the heartbeat with ident "flow", else the first heartbeat); `port` its
    TCP port.
    """

    replicated: tuple[Replicated, ...] = ()
    async_mode: AsyncMode = "second"
    acl: bool = False
    locktimeout: int = 100
    sendtimeout: int = 30
    nbrei: int = 3
    ruzone_blocksize: int = DEFAULT_REIPACKETSIZE
    reipacketsize: int = DEFAULT_REIPACKETSIZE
    packetsize: int | None = None
    reitimeout: int = 150
    reicommit: int = 0
    reidetail: bool = False
    nbremconn: int = 1
    checktime: int = 220000
    checkintv: int = 120
    reiallowedbw: int | None = None
    scripts: bool = False
    namespacepolicy: int = 4
    syncdelta: int = 0
    syncat: str | None = None
    cache: Cache = "none"
    suffix: str = DEFAULT_SUFFIX
    flow: str = ""
    port: int = 0

    def backing(self, replicated: Replicated) -> str:
        """Where the data of a replicated directory really is."""
        return replicated.dir + self.suffix


@dataclass(frozen=True)
class VirtualAddr:
    """<virtual_addr>, 13.5. `netmask` is a dotted quad (IPv4 only) or None for the interface's."""

    addr: str
    where: Where = "one_side_alias"
    check: bool = True
    netmask: str | None = None


@dataclass(frozen=True)
class Interface:
    """<interface> with its <real_interface> or <virtual_interface>, 13.5.

    arpinterval and arpelapse are seconds. `name` is the network interface, None to find it
    by the network of the addresses. `mac` belongs to the vmac kinds only.
    """

    addresses: tuple[VirtualAddr, ...] = ()
    kind: InterfaceKind = "real"
    check: bool = True
    arpreroute: bool = False
    arpinterval: int = 60
    arpelapse: int = 1200
    name: str | None = None
    mac: str | None = None


@dataclass(frozen=True)
class Host:
    """<host> of a load balancing group: a node and its relative weight."""

    name: str
    power: int = 1


@dataclass(frozen=True)
class Rule:
    """<rule> of a load balancing group. `port` None and `virtual_addr` None mean any."""

    proto: Literal["udp", "tcp", "arp"]
    filter: Literal["on_addr", "on_port", "on_ipid"]
    virtual_addr: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class Group:
    """<group>, 13.5.6. Without hosts it covers every server of the farm."""

    name: str
    hosts: tuple[Host, ...] = ()
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Vip:
    """<vip>, 13.5. `engine` is what decides about packets in a farm (beyond the guide)."""

    tcpreset: bool = True
    interfaces: tuple[Interface, ...] = ()
    groups: tuple[Group, ...] = ()
    engine: Literal["nftables", "nfqueue"] = "nftables"


@dataclass(frozen=True)
class User:
    """<user>, 13.7. Time-outs in seconds; `vars` are exported to the scripts in file order."""

    nicestoptimeout: int = 300
    forcestoptimeout: int = 300
    logging: Literal["userlog", "none"] = "userlog"
    userlogsize_kb: int = 2048
    vars: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Failover:
    """<failover>, 13.18. `rules` is the text of the module's own rules, "" when it has none.

    `rules_line` is the line of the file where that text begins, for messages about it.
    """

    extends: bool = True
    period_ms: int = 5000
    handle_time_ms: int = 15000
    rules: str = ""
    rules_line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class FarmLan:
    """<lan> of a farm: the name of a lan of the cluster."""

    name: str


@dataclass(frozen=True)
class Farm:
    """<farm>, 13.4."""

    port: int
    lans: tuple[FarmLan, ...] = ()
    pulse_ms: int = 1000
    mlost_count: int = 5
    slost_count: int = 5


@dataclass(frozen=True)
class VirtualHostname:
    """<virtualhostname>, 13.8. A relative `envfile` is under SAFEUSERBIN."""

    name: str
    envfile: str
    when: Literal["prim", "second", "both"] = "prim"


@dataclass(frozen=True)
class Proc:
    """<proc>, 13.9. `start_after` counts polls; -1 in atleast or atmax switches the bound off.

    `action` is restart, stopstart, stop, noaction or the path of a handler.
    """

    name: str
    proc_class: str
    service: bool = False
    nameregex: str | None = None
    argregex: str | None = None
    atleast: int = 1
    atmax: int = -1
    action: str = "stopstart"
    start_after: int = 0


@dataclass(frozen=True)
class Errd:
    """<errd>, 13.9. `polltimer` in seconds."""

    polltimer: int = 30
    procs: tuple[Proc, ...] = ()


@dataclass(frozen=True)
class TcpCheck:
    """<tcp>, 13.11. Seconds: interval, timeout."""

    ident: str
    when: When
    addr: str
    port: int
    interval: int = 10
    timeout: int = 5


@dataclass(frozen=True)
class PingCheck:
    """<ping>, 13.12. Seconds: interval, timeout."""

    ident: str
    addr: str
    when: When = "pre"
    interval: int = 10
    timeout: int = 5


@dataclass(frozen=True)
class IntfCheck:
    """<intf>, 13.13."""

    ident: str
    local_addr: str
    when: When = "pre"


@dataclass(frozen=True)
class IpCheck:
    """<ip>, 13.14. `interval` in seconds."""

    ident: str
    addr: str
    when: When = "prim"
    interval: int = 10


@dataclass(frozen=True)
class CustomCheck:
    """<custom>, 13.15. A relative `exec` is under SAFEUSERBIN."""

    ident: str
    when: When
    exec: str
    arg: str = ""


@dataclass(frozen=True)
class ModuleCheck:
    """<module>, 13.16, one per target server. Seconds: interval, timeout."""

    ident: str
    name: str
    addr: str = "127.0.0.1"
    port: int = 9010
    interval: int = 10
    timeout: int = 5
    secure: bool = False


@dataclass(frozen=True)
class SplitbrainCheck:
    """<splitbrain>, 13.17. `arg` is the witness: an address (ping), an URL (http), a node of the cluster (node)."""

    ident: str
    arg: str
    exec: Literal["ping", "http", "node"] = "ping"
    when: When = "pre"


@dataclass(frozen=True)
class Check:
    """<check>, 13.10 to 13.17: the checkers that the file names itself."""

    tcp: tuple[TcpCheck, ...] = ()
    ping: tuple[PingCheck, ...] = ()
    intf: tuple[IntfCheck, ...] = ()
    ip: tuple[IpCheck, ...] = ()
    custom: tuple[CustomCheck, ...] = ()
    module: tuple[ModuleCheck, ...] = ()
    splitbrain: SplitbrainCheck | None = None


@dataclass(frozen=True)
class ModuleConfig:
    """The active configuration of a module. `signature` is the same on every server that
    applied the same files; `configured_at` is when this one did (seconds since 1970)."""

    name: str
    id: int
    service: Service = field(default_factory=Service)
    heart: Heart | None = None
    rfs: Rfs | None = None
    vip: Vip | None = None
    user: User | None = None
    failover: Failover = field(default_factory=Failover)
    farm: Farm | None = None
    vhost: tuple[VirtualHostname, ...] = ()
    errd: Errd | None = None
    check: Check = field(default_factory=Check)
    signature: str = ""
    configured_at: float = field(default=0.0, compare=False)

    def lan_names(self) -> tuple[str, ...]:
        """The lans on which this module talks to its other servers, in file order."""
        if self.heart is not None:
            return tuple(dict.fromkeys(h.name for h in self.heart.heartbeats))
        if self.farm is not None:
            return tuple(dict.fromkeys(lan.name for lan in self.farm.lans))
        return ()

    def nodes(self, cluster: ClusterConfig) -> tuple[str, ...]:
        """The nodes that may run the module: those that are on all of its lans."""
        lans = [lan for lan in map(cluster.lan, self.lan_names()) if lan is not None]
        if not lans:
            return cluster.node_names
        return tuple(name for name in cluster.node_names if all(lan.node(name) is not None for lan in lans))

    def peer(self, cluster: ClusterConfig, node: str) -> str | None:
        """The other server of a mirror on two nodes; None when the cluster does not settle it."""
        others = [name for name in self.nodes(cluster) if name != node]
        return others[0] if len(others) == 1 else None

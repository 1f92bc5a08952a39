"""What would be done to protect a service, and everything that speaks against it. Pure: facts in, plan out."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from cli.protect.facts import Directory, Listening, Server
from safekit.model.types import ClusterConfig, Lan

MAX_SKEW = 30.0
"""Seconds between two clocks from which on something is wrong with them. Logs are read by them, no more."""
ROOM = 1.1
"""Of the size of the data, what must be free where it will be copied to."""
SET_ASIDE = ".before-{module}"
"""The end of the name under which what stood on the other server in the place of a directory is kept."""
SYSTEM = frozenset(
    "/ /bin /boot /dev /etc /home /lib /lib64 /opt /proc /root /run /sbin /sys /tmp /usr /var /var/lib /var/log".split()  # noqa: SIM905 - a list to read
)
"""Directories that the server itself lives in."""
WITHIN = ("/dev/", "/proc/", "/run/", "/sys/", "/usr/", "/boot/", "/opt/safekit", "/var/safekit")
_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_PAIR = 2


@dataclass(frozen=True)
class Wish:
    """What was asked for. `module` "" is the name of the service; `timeout` in seconds, of the heartbeats; `port` 0 is
    the one that the service listens on."""

    service: str
    directories: tuple[str, ...]
    address: str = ""
    other: str = ""
    module: str = ""
    timeout: float = 30.0
    port: int = 0
    witness: str = ""
    despite: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The name of the module: letters, digits, - and _."""
        return self.module or (_NAME.sub("-", self.service.removesuffix(".service")).strip("-") or "service")[:64]


@dataclass(frozen=True)
class Obstacle:
    """Why it is not done. `node`: where the next step is to be made, "" for anywhere. `waivable`: an administrator who
    knows better may say so, by the code."""

    code: str
    text: str
    next_step: str
    node: str = ""
    waivable: bool = False


@dataclass(frozen=True)
class Plan:
    """What the module will be. `units` are started in this order, and stopped in the other one."""

    module: str
    here: str
    there: str
    units: tuple[str, ...]
    disabled: tuple[str, ...]
    directories: tuple[Directory, ...]
    lans: tuple[str, ...]
    flow: str
    address: str
    checked: Listening | None
    """Where the TCP checker asks; None where the service has no port."""
    timeout: float
    witness: str = ""
    seconds: float | None = None
    """How long the first copy takes at least, at a gigabit a second."""
    notes: tuple[str, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    waived: tuple[Obstacle, ...] = field(default=())


GIGABIT = 110e6


def make(wish: Wish, cluster: ClusterConfig, here: Server, there: Server, ahead: float = 0.0) -> Plan:
    """The plan. `ahead`: seconds by which the clock of the other server is ahead of ours."""
    directories = tuple(here.directory(path) for path in wish.directories)
    lans = lans_of(cluster, here.node, there.node)
    checked = _checked(wish, here)
    found = list(_obstacles(wish, cluster, here, there, ahead))
    data = sum(each.bytes for each in directories)
    return Plan(
        module=wish.name,
        here=here.node,
        there=there.node,
        units=here.unit.parts or (here.unit.name,),
        disabled=tuple(dict.fromkeys((here.unit.name, *here.unit.parts))),
        directories=directories,
        lans=tuple(lan.name for lan in lans),
        flow=_flow(lans, here.node, wish.address, here.networks),
        address=wish.address,
        checked=checked,
        timeout=wish.timeout,
        witness=wish.witness,
        seconds=data / GIGABIT if data > GIGABIT else None,
        notes=tuple(_notes(wish, lans, here, there, checked)),
        obstacles=tuple(each for each in found if not (each.waivable and each.code in wish.despite)),
        waived=tuple(each for each in found if each.waivable and each.code in wish.despite),
    )


def lans_of(cluster: ClusterConfig, here: str, there: str) -> tuple[Lan, ...]:
    """The networks for the heartbeats: all that both servers are on, of those only the pair's own where there are any,
    because the networks of a mirror hold exactly its two servers."""
    both = [lan for lan in cluster.framework_lans if lan.node(here) is not None and lan.node(there) is not None]
    own = [lan for lan in both if len(lan.nodes) == _PAIR]
    return tuple(own or both)


def _flow(lans: tuple[Lan, ...], here: str, address: str, networks: tuple[str, ...]) -> str:
    """Replication keeps off the network of the clients where it can."""
    clients = _network_of(address, networks)
    apart = [lan.name for lan in lans if clients is None or not _is_in(lan, here, clients)]
    return (apart or [lan.name for lan in lans] or [""])[-1]


def _is_in(lan: Lan, node: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    found = lan.node(node)
    ip = _ip(found.bind_address) if found is not None else None
    return ip is not None and ip in network


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network_of(address: str, networks: tuple[str, ...]) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    ip = _ip(address)
    known = [ipaddress.ip_network(each, strict=False) for each in networks]
    return next((each for each in known if ip is not None and ip in each), None)


def _checked(wish: Wish, here: Server) -> Listening | None:
    """Where a client would ask: at the virtual address, where the service listens there."""
    own = here.listens()
    port = wish.port or (own[0].port if own else 0)
    if not port:
        return None
    everywhere = any(each.port == port and each.everywhere for each in own)
    if wish.address and (everywhere or not own):
        return Listening(wish.address, port)
    first = next((each.address for each in own if each.port == port), "127.0.0.1")
    return Listening("127.0.0.1" if first in ("0.0.0.0", "::") else first, port)


# --------------------------------------------------------------------------------- what speaks against it


def _obstacles(wish: Wish, cluster: ClusterConfig, here: Server, there: Server, ahead: float) -> Iterator[Obstacle]:
    for server in (here, there):
        yield from _server(wish, server)
    yield from _networks(cluster, here, there)
    if wish.address:
        yield from _address(wish.address, cluster, here, there)
    if not here.unit.found or not there.unit.found:
        yield from _no_unit(wish, here, there)
        return  # what follows compares the two
    yield from _service(wish, here)
    yield from _programs(here, there)
    yield from _ports(wish, here, there)
    for path in wish.directories:
        yield from _directory(path, here, there)
    if abs(ahead) > MAX_SKEW:
        word = "ahead of" if ahead > 0 else "behind"
        text = f"the clock of {there.node} is {abs(ahead):.0f} s {word} that of {here.node}"
        yield Obstacle("clock", text, "start a time service on both: apt install chrony", there.node, waivable=True)


def _server(wish: Wish, server: Server) -> Iterator[Obstacle]:
    node = server.node
    if not server.root:
        yield Obstacle("root", f"on {node} this does not run as root, which stops services and renames directories",
                       "run it as root", node)  # fmt: skip
    if not server.systemd:
        yield Obstacle("systemd", f"{node} has no systemd that answers", "systemctl status; or write a module by hand: "
                       "safekit module install -m AM mirror.safe", node)  # fmt: skip
    if not server.fuse:
        yield Obstacle("fuse", f"/dev/fuse is missing on {node}: file replication needs it", "modprobe fuse", node)
    if wish.name in server.modules:
        yield Obstacle("module", f"{node} has a module {wish.name} already",
                       f"safekit state -m {wish.name} there; or give another name: --module NAME", node)  # fmt: skip


def _networks(cluster: ClusterConfig, here: Server, there: Server) -> Iterator[Obstacle]:
    lans = lans_of(cluster, here.node, there.node)
    if not lans:
        yield Obstacle("lan", f"no network of cluster.xml has both {here.node} and {there.node}",
                       "add a <lan> with both of them: safekit cluster config FILE.xml")  # fmt: skip
        return
    common = [name for name in cluster.node_names if all(lan.node(name) is not None for lan in lans)]
    if len(common) != _PAIR:
        yield Obstacle("lan", f"every network that {here.node} and {there.node} share has other servers too"
                       f" ({', '.join(common)}), and the networks of a mirror hold its two servers only",
                       'add a <lan> with these two to cluster.xml (it may repeat their addresses): safekit cluster '
                       'config FILE.xml, then safekit -H "*" -G')  # fmt: skip


def _address(address: str, cluster: ClusterConfig, here: Server, there: Server) -> Iterator[Obstacle]:
    ip = _ip(address)
    if ip is None or ip.is_loopback or ip.is_multicast or ip.is_unspecified:
        yield Obstacle(
            "address", f"{address} is no address that clients can have", "give a free one: --address 10.0.0.50"
        )
        return
    for lan in cluster.lans:
        for node in lan.nodes:
            if ip in (_ip(node.addr), _ip(node.bind_address)):
                yield Obstacle("address", f"{address} is the address of {node.name} itself on the lan {lan.name}",
                               "give a free one of the same network, which moves with the service")  # fmt: skip
                return
    for server in (here, there):
        if _network_of(address, server.networks) is None:
            yield Obstacle("network", f"no interface of {server.node} is in the network of {address}"
                           f" (it has {', '.join(server.networks) or 'none'})",
                           "give a free address of a network that both servers are on", server.node)  # fmt: skip
    if here.taken or there.taken:
        yield Obstacle("taken", f"{address} answers already: another machine has it",
                       f"give a free one (who has it: ip neighbour show {address})")  # fmt: skip


def _no_unit(wish: Wish, here: Server, there: Server) -> Iterator[Obstacle]:
    for server, other in ((here, there), (there, here)):
        if server.unit.found:
            continue
        name = server.unit.name
        if not other.unit.found:
            step = "systemctl list-units --type=service lists the services; safekit protect without options asks"
        elif other.unit.package:
            step = f"install the same there: apt install {other.unit.package}  (version {other.unit.version})"
        else:
            step = f"copy the unit file and its programs there: systemctl cat {name} shows them"
        yield Obstacle("unit", f"{server.node} has no service {name}", step, server.node)


def _service(wish: Wish, here: Server) -> Iterator[Obstacle]:
    unit = here.unit
    if not unit.active:
        yield Obstacle("inactive", f"{unit.name} does not run on {here.node}, so its port is not known",
                       f"systemctl start {unit.name}, and see that it serves", here.node)  # fmt: skip
    if unit.active and not unit.main_pid and not unit.parts:
        yield Obstacle("oneshot", f"{unit.name} has no process of its own (Type={unit.kind})",
                       "name the service that has: systemctl list-dependencies " + unit.name, here.node)  # fmt: skip
    for each in unit.sockets:
        yield Obstacle("socket", f"{each} starts {unit.name} whenever a client comes, also where it must not run",
                       f"on both servers: systemctl disable --now {each}", here.node)  # fmt: skip


def _programs(here: Server, there: Server) -> Iterator[Obstacle]:
    mine, other = here.unit, there.unit
    if mine.package and mine.package == other.package and mine.version != other.version:
        yield Obstacle("version", f"{mine.package} is {mine.version} on {here.node}, {other.version} on {there.node}:"
                       " the older one may not read the data of the newer one",
                       f"on both servers: apt install {mine.package}", there.node, waivable=True)  # fmt: skip
    elif mine.package != other.package:
        yield Obstacle("package", f"{mine.name} comes from {mine.package or 'no package'} on {here.node} and from"
                       f" {other.package or 'no package'} on {there.node}",
                       "install it in the same way on both", there.node, waivable=True)  # fmt: skip
    runs = bool(mine.parts or mine.main_pid)  # else it is told already that it does not
    for part in sorted({*other.parts} - {*mine.parts}) if runs else ():
        # It would be neither stopped nor disabled there, and its data may be where the module's come.
        yield Obstacle("units", f"{part}, a part of {other.name}, runs on {there.node} and not on {here.node}",
                       f"systemctl disable --now {part}", there.node)  # fmt: skip
    theirs = {each.path: each.digest for each in other.needs}
    for each in mine.needs:
        if each.digest and not theirs.get(each.path):
            yield Obstacle("program", f"{each.path}, which {mine.name} needs, is not on {there.node}",
                           f"copy it there with its owner and mode (rsync -a {each.path} {there.node}:{each.path})",
                           there.node)  # fmt: skip
        elif each.digest and theirs[each.path] != each.digest:
            yield Obstacle("program", f"{each.path} is another one on {there.node} than on {here.node}",
                           f"copy it there (rsync -a {each.path} {there.node}:{each.path})", there.node,
                           waivable=True)  # fmt: skip
    if here.release != there.release:
        yield Obstacle("release", f"SafeKit is {here.release} on {here.node} and {there.release} on {there.node}",
                       "install the same release on both (docs/installation.md, Upgrade)", waivable=True)  # fmt: skip


def _ports(wish: Wish, here: Server, there: Server) -> Iterator[Obstacle]:
    wanted = {wish.port} if wish.port else {each.port for each in here.listens()}
    own = {there.unit.name, *there.unit.parts, *here.unit.parts}
    for each in there.listening:
        if each.port in wanted and each.owner not in own:
            yield Obstacle("port", f"{each.owner or 'another program'} has TCP port {each.port} on {there.node}, which"
                           f" {here.unit.name} needs there",
                           f"stop it there: ss -ltnp 'sport = :{each.port}' shows it", there.node)  # fmt: skip


def _directory(path: str, here: Server, there: Server) -> Iterator[Obstacle]:
    if path in SYSTEM or path.startswith(WITHIN):
        text = f"{path} belongs to the system, or to this product, and not to a service"
        yield Obstacle("directory", text, "name the directory of the service's data below it")
        return
    mine, other = here.directory(path), there.directory(path)
    for server, found in ((here, mine), (there, other)):
        if found.module:
            yield Obstacle("directory", f"{path} is replicated by the module {found.module} on {server.node} already",
                           f"safekit state -m {found.module}", server.node)  # fmt: skip
        elif found.problem and (server is here or found.state != "MISSING"):
            yield Obstacle(
                "directory", f"{server.node}: {found.problem}", "then run the same command again", server.node
            )
        inside = ", ".join(found.mounts)
        if inside and server is here:
            yield Obstacle("mounts", f"other file systems are mounted in {path} on {server.node}: {inside}"
                           "; what is in them would not be replicated",
                           "name them as directories of their own (--data), or unmount them", server.node)  # fmt: skip
    if mine.bytes * ROOM > other.free:
        needed, free = mine.bytes / 1e6, other.free / 1e6
        yield Obstacle("space", f"{path} holds {needed:.0f} MB, and only {free:.0f} MB are free for it on {there.node}",
                       f"make room there: df -h {posixpath.dirname(path)}", there.node)  # fmt: skip
    yield from _accounts(mine, here, there)


def _accounts(mine: Directory, here: Server, there: Server) -> Iterator[Obstacle]:
    """Files are replicated with the numbers of their owners: the names behind them must be the same."""
    for kind, numbers in (("user", (mine.uid, *mine.uids)), ("group", (mine.gid, *mine.gids))):
        ours, theirs = here.names(kind), there.names(kind)
        numbers_there = {name: number for number, name in theirs.items()}
        change = "usermod -u" if kind == "user" else "groupmod -g"
        for number in sorted(set(numbers)):
            name = ours.get(number)
            if name is None or theirs.get(number) == name:
                continue  # a number without a name is the same everywhere
            if name in numbers_there:
                text = f"the {kind} {name} has number {number} on {here.node} and {numbers_there[name]} on {there.node}"
                step = f"give it the same one there: {change} {number} {name}, then chown what it owns"
            else:
                text = f"the {kind} {name} ({number}), who owns files of {mine.path}, is not on {there.node}"
                flag = "-u" if kind == "user" else "-g"
                step = f"make it there with the same number: {kind}add -r {flag} {number} {name}"
            if number in theirs:
                step = f"number {number} belongs to {theirs[number]} there: change that one first; then {step}"
            yield Obstacle("ids", text, step, there.node)


# --------------------------------------------------------------------------------- what should be known


def _notes(wish: Wish, lans: tuple[Lan, ...], here: Server, there: Server, checked: Listening | None) -> Iterator[str]:
    if there.unit.active:
        yield f"{there.unit.name} runs on {there.node} too: it is stopped there"
    for path in wish.directories:
        found = there.directory(path)
        if found.entries:
            kept = path + SET_ASIDE.format(module=wish.name)
            yield f"what is in {path} on {there.node} now is kept beside it, as {kept}"
    if not wish.address:
        yield "no virtual address: clients have to know both servers (--address gives one)"
    own = here.listens()
    if wish.address and own and all(each.local for each in own):
        ports = ", ".join(sorted({str(each.port) for each in own}))
        yield (f"{here.unit.name} listens on this server's own 127.0.0.1 only (port {ports}): no client reaches it"
               f" through {wish.address} until its configuration says otherwise, on both servers")  # fmt: skip
    elif wish.address and own and not any(each.everywhere for each in own):
        yield f"{here.unit.name} listens on {own[0].address} only, and not on {wish.address}"
    if checked is None:
        yield "the service has no TCP port: only its process is watched"
    if len(lans) == 1:
        yield "one heartbeat: when this network fails both servers run the service. Add a second <lan> to cluster.xml"
    if not wish.witness:
        yield "no witness: when all networks between the servers fail, both run the service (--witness IP prevents it)"
    theirs = {each.path: each.digest for each in there.settings}
    differing = sorted(each.path for each in here.settings if theirs.get(each.path) != each.digest)
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        yield (f"configuration that is not the same on {there.node}: {', '.join(differing[:3])}{more}; it is not"
               " replicated: copy it, or name its directory with --data too")  # fmt: skip
    for path in wish.directories:
        found = here.directory(path)
        if not found.whole:
            yield f"{path} has more than {found.entries} entries: they were not all counted"

"""The nftables rules of a farm, as text. Pure.

One table of family netdev for a module. What changes (who owns which bucket) is in maps and sets, replaced in
one transaction; the rules stay. Names end with the number of the interface.

    lease   protocols that may pass. Its elements end by themselves: a server whose vipd is dead or frozen stops
            accepting when the others take over. Empty: closed.
    speak   protocols in which this server answers for the virtual addresses.
    t4 t6   verdict of a bucket for TCP; p: for UDP; a: for ARP and neighbour discovery; m4 m6: for TCP that
            another server passed on.
    keep    connections that stay here, by address and port. fresh: those accepted here in a bucket which another
            living server shares, until the next look at the sockets puts them into keep.

The bucket comes first: a packet of a bucket that is plainly ours, or plainly another server's, asks no set of
connections. Only where connections of two servers may be in one bucket, they are told apart by name; a SYN ends
what is known of an earlier connection from the same port, on every server.

vmac_invisible: every server gets every frame; who does not own the bucket drops it. vmac_directed: the server
whose MAC the client knows passes it on to the owner; a frame from another server is never passed on again. A packet
of which it cannot know the server goes to all, under a multicast MAC (gather), and so does a copy of such a SYN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from safekit.net.jhash import SEED
from safekit.net.packets import IP, mac_text
from vipd.farm.layout import Balance, Connection, Layout, Proto, Verdicts, Wire

_SYN = "tcp flags & (fin|syn|rst|ack) == syn"
_TUPLE = {4: "ip saddr . tcp sport . ip daddr . tcp dport", 6: "ip6 saddr . tcp sport . ip6 daddr . tcp dport"}
_ADDRESS = {4: "ip", 6: "ip6"}
_PART = {4: "ip frag-off & 0x3fff != 0", 6: "exthdr frag exists"}
_OTHER_MAPS: tuple[tuple[str, Proto], ...] = (("p", "udp"), ("a", "arp"))
KEEP_SIZE = 1 << 18
RESET_SIZE, RESET_SECONDS = 1 << 16, 120
FRESH_SECONDS = 5
"""How long an accepted connection is known without being in keep; vipd looks at the sockets more often."""
_TARGET = "@th,64,128"
_OPTION = "@th,192,8"


def hash_of(rule: Balance, version: int, *, fragment: bool = False) -> str:
    """The expression that makes a bucket of a packet."""
    ip = _ADDRESS[version]
    kind = rule.filter
    if kind == "on_ipid" and version == 4:
        return f"jhash ip id mod 256 seed {SEED}"
    if kind == "on_addr" or fragment:
        # The later fragments of a datagram have no ports.
        return f"jhash {ip} saddr mod 256 seed {SEED}"
    return f"jhash {ip} saddr . {rule.proto} sport mod 256 seed {SEED}"


def match(rule: Balance, version: int) -> str:
    """The packets that a rule is about."""
    address = f"{_ADDRESS[version]} daddr {rule.vip} " if rule.vip is not None else ""
    return address + (f"{rule.proto} dport {rule.port}" if rule.port is not None else f"meta l4proto {rule.proto}")


def _opened_here(version: int) -> str:
    """A new connection, and its entry."""
    return f"{_SYN} delete @keep{version} {{ {_TUPLE[version]} }} update @fresh{version} {{ {_TUPLE[version]} }}"


def _opened_elsewhere(version: int) -> str:
    """A new connection for another server: no entry must be left for the packets that follow."""
    return f"{_SYN} delete @keep{version} {{ {_TUPLE[version]} }} delete @fresh{version} {{ {_TUPLE[version]} }}"


def _known(version: int) -> tuple[str, str]:
    """Packets of connections that are here."""
    return f"{_TUPLE[version]} @keep{version} accept", f"{_TUPLE[version]} @fresh{version} accept"


def _set(values: Iterable[object]) -> str:
    """A set as the right side of a comparison; one value alone is compared, not looked up."""
    texts = tuple(map(str, values))
    return texts[0] if len(texts) == 1 else "{ " + ", ".join(texts) + " }"


def _applies(rule: Balance, version: int) -> bool:
    return rule.vip is None or rule.vip.version == version


class _Text:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def chain(self, name: str, *rules: str, hook: str = "") -> None:
        self.lines.append(f" chain {name} {{")
        if hook:
            self.lines.append(f"  {hook}")
        self.lines.extend(f"  {rule}" for rule in rules if rule)
        self.lines.append(" }")

    def set(self, name: str, definition: str) -> None:
        self.lines.append(f" set {name} {{ {definition} }}")

    def map(self, name: str) -> None:
        self.lines.append(f" map {name} {{ typeof meta length : verdict; size 256; }}")


def names(wire: Wire, group: int) -> dict[str, str]:
    """Names of the maps of a group on an interface."""
    return {kind: f"{kind}_{wire.number}_{group}" for kind in ("t4", "t6", "p", "a", "m4", "m6")}


def kinds(layout: Layout, wire: Wire, group: int) -> tuple[str, ...]:
    """The maps which the rules of a group need on an interface; each costs a few milliseconds a swap."""
    needed: list[str] = []
    for version, vips in ((4, wire.v4), (6, wire.v6)):
        if vips and any(r.group == group and _applies(r, version) for r in layout.rules_of(wire, "tcp")):
            needed.append(f"t{version}")
            if wire.mode == "directed":
                needed.append(f"m{version}")
    needed += [kind for kind, proto in _OTHER_MAPS if any(r.group == group for r in layout.rules_of(wire, proto))]
    return tuple(needed)


def resolution_kinds(layout: Layout, wire: Wire, group: int) -> tuple[str, ...]:
    """The maps of a group for ARP and neighbour discovery alone."""
    return ("a",) if any(r.group == group for r in layout.rules_of(wire, "arp")) else ()


def table(layout: Layout, *, decides: bool = True) -> str:
    """The commands that make the table anew, closed. What it held before is gone in the same transaction.

    decides: here is decided what becomes of a bucket; otherwise balanced packets pass, for somebody behind.
    """
    text = _Text()
    text.set("lease", "type ether_type; flags timeout;")
    text.set("speak", "type ether_type;")
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")) if decides else ():
        key = f"type {kind} . inet_service . {kind} . inet_service;"
        text.set(f"keep{version}", f"{key} flags dynamic; size {KEEP_SIZE};")
        text.set(f"fresh{version}", f"{key} flags dynamic, timeout; timeout {FRESH_SECONDS}s; size {KEEP_SIZE};")
        text.chain(f"grace{version}", f"{_opened_here(version)} accept", *_known(version), "drop")
        text.chain(f"stray{version}", f"{_opened_elsewhere(version)} drop", *_known(version), "drop")
    for wire in layout.wires:
        _wire(text, layout, wire, decides)
    body = "\n".join(text.lines)
    name = f"netdev {layout.table}"
    return f"add table {name}\ndelete table {name}\ntable {name} {{\n{body}\n}}\n"


def remove(layout: Layout) -> str:
    """The commands that remove the table, there or not."""
    return f"add table netdev {layout.table}\ndelete table netdev {layout.table}\n"


def _wire(text: _Text, layout: Layout, wire: Wire, decides: bool) -> None:
    n = wire.number
    for group in range(len(layout.groups)):
        for kind in kinds(layout, wire, group) if decides else resolution_kinds(layout, wire, group):
            text.map(names(wire, group)[kind])
    if wire.mode == "directed" and decides:
        text.set(f"peers_{n}", f"type ether_addr; size {layout.nodes};")
        for node in range(layout.nodes):
            if node != layout.me:
                text.chain(f"fwd_{n}_{node}")
        for version, vips in ((4, wire.v4), (6, wire.v6)):
            if vips:
                _directed_chains(text, layout, wire, version)
    _resolution(text, layout, wire)
    for version, vips in ((4, wire.v4), (6, wire.v6)):
        if vips:
            if decides:
                _traffic_chains(text, layout, wire, version)
            text.chain(f"v{version}_{n}", *(_traffic if decides else _pass)(layout, wire, version))
    entry = []
    if wire.v4:
        entry.append(f"ip daddr {_set(wire.v4)} goto v4_{n}")
    if wire.v6:
        # Not goto: a neighbour that checks what it knows sends its solicitation to the address itself.
        entry.append(f"ip6 daddr {_set(wire.v6)} jump v6_{n}")
    if wire.v4:
        entry.append(f"ether type arp arp daddr ip {_set(wire.v4)} jump arp_{n}")
    if wire.v6:
        entry += [f"icmpv6 type nd-neighbor-solicit {_TARGET} {_hex(ip)} jump nd_{n}" for ip in wire.v6]
    text.chain(f"in_{n}", *entry, hook=f'type filter hook ingress device "{wire.device}" priority -10; policy accept;')
    if wire.vmac is not None:
        _egress(text, wire)


def _hex(ip: IP) -> str:
    return f"0x{ip.packed.hex()}"


def _to_host(wire: Wire) -> str:
    mac = wire.vmac if wire.vmac is not None else wire.gather
    return f"ether daddr {mac_text(mac)} meta pkttype set host"


def _resolution(text: _Text, layout: Layout, wire: Wire) -> None:
    """ARP requests and neighbour solicitations for the virtual addresses."""
    n, rules = wire.number, layout.rules_of(wire, "arp")
    four = [
        f"arp operation request {f'arp daddr ip {rule.vip} ' if rule.vip else ''}"
        f"jhash arp saddr ip mod 256 seed {SEED} vmap @{names(wire, rule.group)['a']}"
        for rule in rules
        if _applies(rule, 4)
    ]
    six = [
        f"{f'{_TARGET} {_hex(rule.vip)} ' if rule.vip else ''}"
        f"jhash ip6 saddr mod 256 seed {SEED} vmap @{names(wire, rule.group)['a']}"
        for rule in rules
        if _applies(rule, 6)
    ]
    gate = "meta protocol != @lease drop"
    if wire.v4:
        silent = "arp operation request meta protocol != @speak drop"
        text.chain(f"arp_{n}", gate, _to_host(wire), silent, *four)
    if wire.v6:
        text.chain(f"nd_{n}", gate, _to_host(wire), "meta protocol != @speak drop", *six)


def _traffic(layout: Layout, wire: Wire, version: int) -> list[str]:
    """The way of a packet for a virtual address: few rules for each, since every packet pays for all that it passes."""
    n, rules = wire.number, _balanced(layout, wire, version)
    lines = ["meta protocol != @lease drop"]
    if wire.mode == "directed":
        lines.append(f"ether daddr {mac_text(wire.gather)} goto gathered{version}_{n}")
        lines.append(f"ether saddr @peers_{n} goto peer{version}_{n}")
    else:
        lines.append(_to_host(wire))
    if rules:
        lines.append(f"{_PART[version]} jump part{version}_{n}")
    lines += [f"meta l4proto {proto} jump {proto}{version}_{n}" for proto in rules]
    lines.append("meta protocol != @speak drop")
    return lines


def _balanced(layout: Layout, wire: Wire, version: int) -> dict[Proto, tuple[Balance, ...]]:
    """The rules for packets of an interface, by protocol; only protocols that have some."""
    protos: tuple[Proto, ...] = ("tcp", "udp")
    found = {proto: tuple(r for r in layout.rules_of(wire, proto) if _applies(r, version)) for proto in protos}
    return {proto: rules for proto, rules in found.items() if rules}


def _traffic_chains(text: _Text, layout: Layout, wire: Wire, version: int) -> None:
    """What the chain of _traffic jumps to."""
    n, balanced = wire.number, _balanced(layout, wire, version)
    parts = []
    for proto, rules in balanced.items():
        decided = []
        for rule in rules:
            target = names(wire, rule.group)[f"t{version}" if proto == "tcp" else "p"]
            # The comment says whose counter it is.
            number = layout.rules.index(rule)
            decided.append(f'{match(rule, version)} counter {hash_of(rule, version)} vmap @{target} comment "{number}"')
        text.chain(f"{proto}{version}_{n}", *decided)
        for vip in (*(r.vip for r in rules if r.vip is not None), None):
            fitting = next((r for r in rules if r.vip in (vip, None)), None)
            if fitting is not None:
                address = f"{_ADDRESS[version]} daddr {vip} " if vip is not None else ""
                target = names(wire, fitting.group)[f"t{version}" if proto == "tcp" else "p"]
                hash_ = hash_of(fitting, version, fragment=True)
                parts.append(f"{address}meta l4proto {proto} {hash_} vmap @{target}")
    if parts:
        text.chain(f"part{version}_{n}", *dict.fromkeys(parts))


def _pass(layout: Layout, wire: Wire, version: int) -> list[str]:
    lines = ["meta protocol != @lease drop", _to_host(wire)]
    for rule in (*layout.rules_of(wire, "tcp"), *layout.rules_of(wire, "udp")):
        if _applies(rule, version):
            lines += [f"{_PART[version]} meta l4proto {rule.proto} accept", f"{match(rule, version)} accept"]
    return [*dict.fromkeys(lines), "meta protocol != @speak drop"]


def _directed_chains(text: _Text, layout: Layout, wire: Wire, version: int) -> None:
    """What the server does that the client knows, and what the others do with what it passed on."""
    n = wire.number
    to_all = f"ether daddr set {mac_text(wire.gather)} ether saddr set {mac_text(wire.mac)}"
    copy, gather = f'{to_all} dup to "{wire.device}"', f'{to_all} fwd to "{wire.device}"'
    text.chain(f"grace{version}_{n}", f"{_opened_here(version)} {copy} accept", *_known(version), gather)
    for node in range(layout.nodes):
        if node != layout.me:
            on = f"goto fwd_{n}_{node}"
            elsewhere = f"{_opened_elsewhere(version)} {copy} {on}"
            text.chain(f"share{version}_{n}_{node}", elsewhere, *_known(version), gather)
            text.chain(f"held{version}_{n}_{node}", elsewhere, *_known(version), on)
    rules = [rule for rule in layout.rules_of(wire, "tcp") if _applies(rule, version)]
    decided = [
        f"{match(rule, version)} {hash_of(rule, version)} vmap @{names(wire, rule.group)[f'm{version}']}"
        for rule in rules
    ]
    text.chain(f"peer{version}_{n}", f"{_PART[version]} accept", *decided, "accept")
    # Of a gathered SYN the owner gets a frame of its own; the others only forget the port.
    gathered = f"ether daddr {mac_text(wire.gather)}"
    text.chain(f"foreign{version}_{n}", f"{gathered} goto stray{version}", f"goto grace{version}")
    text.chain(
        f"gathered{version}_{n}",
        f"ether saddr != @peers_{n} drop",
        _to_host(wire),
        f"{_SYN} goto peer{version}_{n}",
        *_known(version),
        "drop",
    )


def _egress(text: _Text, wire: Wire) -> None:
    """Whoever asks for a virtual address learns the virtual MAC; no frame ever comes from it."""
    assert wire.vmac is not None
    lines = []
    if wire.v4:
        lines.append(f"ether type arp arp saddr ip {_set(wire.v4)} arp saddr ether set {mac_text(wire.vmac)}")
    if wire.v6:
        text.chain(ndfix(wire))
        for ip in wire.v6:
            lines.append(f"icmpv6 type nd-neighbor-advert {_TARGET} {_hex(ip)} {_OPTION} 2 jump {ndfix(wire)}")
            lines.append(f"ip6 saddr {ip} icmpv6 type nd-neighbor-solicit {_OPTION} 1 jump {ndfix(wire)}")
    hook = f'type filter hook egress device "{wire.device}" priority 0; policy accept;'
    text.chain(f"out_{wire.number}", *lines, hook=hook)


def ndfix(wire: Wire) -> str:
    """The chain that rewrites link addresses in neighbour discovery; its rule is not text (see nft.py)."""
    return f"ndfix_{wire.number}"


# ------------------------------------------------------------------------------- what changes


def lease(layout: Layout, seconds: float | None) -> str:
    """Let packets pass for that many seconds, None without an end, 0 not at all."""
    if seconds == 0:
        return f"flush set netdev {layout.table} lease\n"
    end = "" if seconds is None else f" timeout {max(1, round(seconds * 1000))}ms"
    elements = ", ".join(f"{protocol}{end}" for protocol in ("ip", "ip6", "arp"))
    name = f"netdev {layout.table} lease"
    return f"flush set {name}\nadd element {name} {{ {elements} }}\n"


def keep(layout: Layout, connections: Iterable[Connection]) -> str:
    """Add connections that stay here."""
    lists: dict[int, list[str]] = {4: [], 6: []}
    for client, port, vip, service in sorted(connections):
        version = 4 if len(vip) == 4 else 6
        lists[version].append(f"{ip_address(client)} . {port} . {ip_address(vip)} . {service}")
    return "".join(
        f"add element netdev {layout.table} keep{version} {{ {', '.join(found)} }}\n"
        for version, found in lists.items()
        if found
    )


def state(layout: Layout, verdicts: Verdicts) -> str:
    """The commands that put verdicts into the table, to be run in one transaction."""
    name = f"netdev {layout.table}"
    lines = [f"flush set {name} speak"]
    if verdicts.speaks:
        lines.append(f"add element {name} speak {{ ip, ip6, arp }}")
    for wire in layout.wires:
        if wire.mode == "directed":
            lines += _forwarding(layout, wire, verdicts, name)
        for group in range(len(layout.groups)):
            lines += _maps(layout, wire, group, verdicts, kinds(layout, wire, group))
    lines += [f"flush set {name} keep4", f"flush set {name} keep6"]
    if not any(verdicts.shared) and not any(verdicts.held):
        lines += [f"flush set {name} fresh4", f"flush set {name} fresh6"]
    return "\n".join(lines) + "\n" + keep(layout, verdicts.keep)


def doubt(layout: Layout, seconds: float) -> str:
    """The commands that hold back resets for connections which this server does not know, until the client has repeated
    itself for that long; 0: not any more. Such a reset is the kernel's alone, without ACK; what an application aborts
    has one.

    Only in vmac_invisible a server sees the packets of another server's clients.
    """
    lines: list[str] = []
    name = f"netdev {layout.table}"
    for wire in layout.wires:
        if wire.mode != "invisible":
            continue
        chain = f"{name} reset_{wire.number}"
        if not seconds:
            lines += [f"add chain {chain}", f"flush chain {chain}", f"delete chain {chain}"]
            continue
        hook = f'type filter hook egress device "{wire.device}" priority 1; policy accept;'
        lines += [f"add chain {chain} {{ {hook} }}", f"flush chain {chain}"]
        for version, kind, vips in ((4, "ipv4_addr", wire.v4), (6, "ipv6_addr", wire.v6)):
            if not vips:
                continue
            word = _ADDRESS[version]
            tuple_ = f"{word} daddr . tcp dport . {word} saddr . tcp sport"
            key = f"type {kind} . inet_service . {kind} . inet_service; flags dynamic, timeout; size {RESET_SIZE};"
            for set_ in ("asked", "waits"):
                lines.append(f"add set {name} {set_}{version} {{ {key} timeout {RESET_SECONDS}s; }}")
            which = f"{word} saddr {_set(vips)} tcp flags & (rst | ack) == rst {tuple_}"
            wait = f"timeout {max(1, round(seconds * 1000))}ms"
            lines += [
                f"add rule {chain} {which} @waits{version} drop",
                f"add rule {chain} {which} @asked{version} accept",
                f"add rule {chain} {word} saddr {_set(vips)} tcp flags & (rst | ack) == rst"
                f" add @asked{version} {{ {tuple_} }} add @waits{version} {{ {tuple_} {wait} }} drop",
            ]
    return "".join(f"{line}\n" for line in lines)


def resolution(layout: Layout, verdicts: Verdicts) -> str:
    """The commands that put verdicts into the maps for ARP and neighbour discovery alone."""
    lines: list[str] = []
    for wire in layout.wires:
        for group in range(len(layout.groups)):
            lines += _maps(layout, wire, group, verdicts, resolution_kinds(layout, wire, group))
    return "".join(f"{line}\n" for line in lines)


def _maps(layout: Layout, wire: Wire, group: int, verdicts: Verdicts, wanted: Sequence[str]) -> list[str]:
    lines = []
    for kind, elements in _elements(layout, wire, group, verdicts, wanted).items():
        target = f"netdev {layout.table} {names(wire, group)[kind]}"
        lines += [f"flush map {target}", f"add element {target} {{ {', '.join(elements)} }}"]
    return lines


def _forwarding(layout: Layout, wire: Wire, verdicts: Verdicts, name: str) -> list[str]:
    lines = [f"flush set {name} peers_{wire.number}"]
    known: dict[int, bytes] = {}
    for node, macs in verdicts.macs.items():
        if node != layout.me and wire.number < len(macs) and len(macs[wire.number]) == 6:
            known[node] = macs[wire.number]
    if known:
        listed = ", ".join(sorted({mac_text(mac) for mac in known.values()}))
        lines.append(f"add element {name} peers_{wire.number} {{ {listed} }}")
    for node in range(layout.nodes):
        if node == layout.me:
            continue
        lines.append(f"flush chain {name} fwd_{wire.number}_{node}")
        mac = known.get(node)
        action = (
            "drop"
            if mac is None
            else f'ether saddr set {mac_text(wire.mac)} ether daddr set {mac_text(mac)} fwd to "{wire.device}"'
        )
        lines.append(f"add rule {name} fwd_{wire.number}_{node} {action}")
    return lines


def _elements(
    layout: Layout, wire: Wire, group: int, verdicts: Verdicts, wanted: Sequence[str]
) -> dict[str, list[str]]:
    """Elements of the maps of a group. Every bucket is there, so that no packet passes through a hole."""
    found: dict[str, list[str]] = {kind: [] for kind in wanted}
    held = verdicts.held[group] if verdicts.held else 0
    for bucket, owner in enumerate(verdicts.owners[group]):
        case = _Case(
            bool(verdicts.mine[group] >> bucket & 1),
            bool(verdicts.shared[group] >> bucket & 1),
            bool(held >> bucket & 1),
            owner if wire.mode == "directed" and 0 <= owner < layout.nodes and owner != layout.me else None,
        )
        for kind in found:
            found[kind].append(f"{bucket} : {_verdict(kind, wire, case)}")
    return found


@dataclass(frozen=True, slots=True)
class _Case:
    """A bucket. ours: accepted here. shared: another living server may hold connections in it; held: we may,
    although it is not plainly ours. owner: to whom it is passed on."""

    ours: bool
    shared: bool
    held: bool
    owner: int | None


def _verdict(kind: str, wire: Wire, case: _Case) -> str:
    family = kind[1:]
    if kind.startswith("m"):
        if not case.ours:
            return f"goto foreign{family}_{wire.number}"
        return f"goto grace{family}" if case.shared else "accept"
    connections = kind.startswith("t")
    if case.ours:
        own = f"_{wire.number}" if wire.mode == "directed" else ""
        return f"goto grace{family}{own}" if connections and case.shared else "accept"
    if kind == "a" or case.owner is None:
        return f"goto stray{family}" if connections and case.held else "drop"
    how = "fwd" if not connections else f"share{family}" if case.shared else f"held{family}" if case.held else "fwd"
    return f"goto {how}_{wire.number}_{case.owner}"

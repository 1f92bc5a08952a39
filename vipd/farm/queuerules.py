"""The nftables rules around the second engine, as text: everything but the decision about a bucket. Pure.

The netdev table is the same as in ruleset.py where it is about MACs, address resolution and the lease; balanced
traffic passes it. A table of family inet, behind connection tracking, asks the queue about what belongs to no
connection that was accepted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vipd.farm import ruleset
from vipd.farm.layout import Layout

ASK = "ask"
"""The chain whose one rule asks the queue; see nft.append_queue_rule."""


def table(layout: Layout) -> str:
    """Both tables anew, closed."""
    name = f"inet {layout.table}"
    # Connection tracking puts fragments together, and works only where a rule asks for it.
    lines = ["ct state invalid continue"]
    for wire in layout.wires:
        for version, vips in ((4, wire.v4), (6, wire.v6)):
            if not vips:
                continue
            word = "ip" if version == 4 else "ip6"
            on = f'iifname "{wire.device}" {word} daddr {{ {", ".join(map(str, vips))} }} '
            for proto in ("tcp", "udp"):
                for rule in layout.rules_of(wire, proto):
                    if rule.vip is not None and rule.vip.version != version:
                        continue
                    match = on + ruleset.match(rule, version)
                    number = layout.rules.index(rule)
                    if proto == "tcp":
                        lines.append(f"{match} ct state established,related accept")
                        if wire.mode == "invisible":
                            # In invisible mode every server sees the packets of all: only while a dead
                            # server's connections may still speak they are worth a question.
                            lines.append(f"{match} tcp flags & (fin|syn|rst|ack) != syn meta protocol != @orphan drop")
                    lines.append(f'{match} counter goto {ASK} comment "{number}"')
    body = "\n  ".join(dict.fromkeys(lines))
    return (
        ruleset.table(layout, decides=False)
        + f"add table {name}\ndelete table {name}\ntable {name} {{\n set orphan {{ type ether_type; flags timeout; }}\n"
        + f" chain {ASK} {{ }}\n chain balance {{\n  type filter hook prerouting priority -150; policy accept;\n"
        + f"  {body}\n }}\n}}\n"
    )


def state(layout: Layout, *, speaks: bool, orphans: float | None) -> str:
    """orphans: seconds for which unknown connections are worth a question, None to leave that as it is."""
    name = f"netdev {layout.table} speak"
    text = f"flush set {name}\n" + (f"add element {name} {{ ip, ip6, arp }}\n" if speaks else "")
    if orphans is not None:
        target = f"inet {layout.table} orphan"
        end = f"timeout {round(orphans)}s"
        text += f"flush set {target}\nadd element {target} {{ ip {end}, ip6 {end} }}\n"
    return text


def remove(layout: Layout) -> str:
    """Both tables away, there or not."""
    return ruleset.remove(layout) + f"add table inet {layout.table}\ndelete table inet {layout.table}\n"


def packets(listed: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Packets asked about, for each rule."""
    found: dict[int, int] = {}
    for entry in listed:
        rule = entry.get("rule", {})
        if str(rule.get("comment", "")).isdigit():
            seen = sum(part["counter"]["packets"] for part in rule["expr"] if "counter" in part)
            found[int(rule["comment"])] = found.get(int(rule["comment"]), 0) + seen
    return found

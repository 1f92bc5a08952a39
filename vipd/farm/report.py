"""What a farm tells about itself: lines of the log, resources, answers for the tools. No decisions here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from safekit.log.module import ModuleLog
from safekit.model.types import Group
from safekit.wire.membership import Cause, Change
from vipd.farm.buckets import bitmap_text, percentages
from vipd.farm.core import Event, FarmCore, News, Plan
from vipd.farm.layout import Balance, Layout
from vipd.farm.sockets import open_connections


def log_news(log: ModuleLog, names: Sequence[str], news: Iterable[News], changes: Iterable[Change]) -> None:
    """Lines about what happened to the membership."""
    for entry in news:
        node = names[entry.node]
        match entry.event:
            case Event.FROZEN:
                log.event("farm_frozen", seconds=round(entry.seconds, 1))
            case Event.GAVE_WAY:
                log.event("farm_gave_way", node=node)
            case Event.BACK:
                log.event("farm_back", node=node)
            case Event.IMPATIENT:
                log.event("farm_impatient", node=node)
    for change in changes:
        for reason in change.reasons:
            node = names[reason.node]
            match reason.cause:
                case Cause.HEARD:
                    log.event("farm_heard", node=node)
                case Cause.LEFT:
                    log.event("farm_left", node=node)
                case Cause.LEADER_SILENT | Cause.FOLLOWER_SILENT:
                    log.event("farm_silent", node=node, seconds=f"{reason.silence:.1f}")
                case Cause.RESTARTED:
                    log.event("farm_restarted", node=node)
                case Cause.LINK_TOLD:
                    # Whom another server hears: it comes with every other change.
                    log.debug(f"farm: {node} told whom it hears")


def log_assignment(log: ModuleLog, names: Sequence[str], groups: Sequence[Group], plan: Plan, me: int) -> None:
    """The documented lines of an assignment that is in the filters (guide 4.3.5)."""
    for number, group in enumerate(groups):
        hosts = {host.name for host in group.hosts} or set(names)
        members = " ".join(names[n] for n in plan.participants if names[n] in hosts)
        log.event("farm_membership", members=members, group=group.name)
        log.event("farm_load", bits=plan.owners[number].count(me), group=group.name)


def resources(core: FarmCore | None, groups: Sequence[Group], names: Sequence[str], me: int) -> dict[str, str]:
    """Resources of the groups and their values (guide 4.3.5: FarmProto 50%), and member.SERVER: whether each of the
    others takes part, as far as one that takes part knows."""
    taking = core is not None and core.taking_part
    there = core.plan().participants if core is not None else ()
    found = {
        f"member.{name}": ("up" if number in there else "down") if taking else "init"
        for number, name in enumerate(names)
        if number != me
    }
    for number, group in enumerate(groups):
        share = 0
        if core is not None and core.taking_part:
            owners = core.plan().owners[number]
            share = percentages([owners.count(n) for n in range(len(names))])[me]
        found["farm." + re.sub(r"\s+", "_", group.name)] = f"{share}%"
    return found


def counters(layout: Layout, packets: dict[int, int]) -> dict[str, Any]:
    """Packets seen by each rule, and connections open here. Raises OSError."""
    vips = {ip.packed: ip for ip in layout.vips}
    connections = [0] * len(layout.rules)
    for _, _, address, port in open_connections(layout.vips):
        rule = layout.rule_for(vips[address], "tcp", port)
        if rule is not None:
            connections[layout.rules.index(rule)] += 1
    rules = [
        {
            "label": rule.label,
            "group": layout.groups[rule.group],
            "packets": packets.get(number, 0),
            "connections": connections[number],
        }
        for number, rule in enumerate(layout.rules)
    ]
    return {"rules": rules}


def _rule(rule: Balance) -> dict[str, Any]:
    return {
        "label": rule.label,
        "proto": rule.proto,
        "filter": rule.filter,
        "addr": None if rule.vip is None else str(rule.vip),
        "port": rule.port,
    }


def status(
    node: str, names: Sequence[str], groups: Sequence[Group], core: FarmCore | None, layout: Layout | None, applied: int
) -> dict[str, Any]:
    """What the tools show. applied: number of the plan that is in the filters."""
    if core is None:
        return {"node": node, "nodes": list(names), "taking_part": False, "groups": []}
    plan = core.plan()
    described = []
    for number, group in enumerate(groups):
        owners = plan.owners[number]
        counts = [owners.count(n) for n in range(len(names))]
        described.append(
            {
                "name": group.name,
                "bitmap": bitmap_text(plan.mine[number]),
                "bits": counts,
                "percent": percentages(counts),
                "owners": list(owners),
                "shared": bitmap_text(plan.shared[number]),
                "kept": bitmap_text(core.kept_here[number]),
                "rules": [] if layout is None else [_rule(r) for r in layout.rules if r.group == number],
            }
        )
    wires = () if layout is None else layout.wires
    return {
        "node": node,
        "number": core.rules.me,
        "nodes": list(names),
        "members": [names[n] for n in core.membership.view.nodes()],
        "participants": [names[n] for n in plan.participants],
        "taking_part": core.taking_part,
        "final": plan.final and plan.number == applied,
        "groups": described,
        "interfaces": [
            {
                "name": wire.device,
                "mode": wire.mode,
                "mac": (wire.vmac or wire.mac).hex(":"),
                "addresses": [str(ip) for ip in wire.vips],
            }
            for wire in wires
        ],
    }

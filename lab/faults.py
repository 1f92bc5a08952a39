"""Faults of the network as values, and the rules that make them real in the switch. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lab.plan import Plan

_SCALE = 100_000


@dataclass(frozen=True)
class Faults:
    """What is wrong with the network of a lab. A link is (machine, lan); blocks are (from, to, lan)."""

    cut: frozenset[tuple[str, str]] = frozenset()
    blocked: frozenset[tuple[str, str, str]] = frozenset()
    loss: dict[tuple[str, str], float] = field(default_factory=dict)  # per cent of the frames, each direction
    delay: dict[tuple[str, str], float] = field(default_factory=dict)  # milliseconds, each direction
    limit: dict[tuple[str, str], str] = field(default_factory=dict)  # tc's notation, each direction

    def with_value(self, kind: str, link: tuple[str, str], value: float | str | None) -> Faults:
        """`kind` is loss, delay or limit; None takes the fault away."""
        values = dict(getattr(self, kind))
        if value is None:
            values.pop(link, None)
        else:
            values[link] = value
        changes: dict[str, Any] = {kind: values}
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        tables = asdict(self)
        return {
            "cut": sorted(map(list, self.cut)),
            "blocked": sorted(map(list, self.blocked)),
            **{kind: [[*link, value] for link, value in tables[kind].items()] for kind in ("loss", "delay", "limit")},
        }


def rules(plan: Plan, faults: Faults) -> str:
    """nft script that replaces the switch's rules in one transaction."""
    lines = ["table bridge safelab", "delete table bridge safelab", "table bridge safelab {", "chain forward {"]
    lines.append("type filter hook forward priority 0; policy accept;")
    for source, destination, lan in sorted(faults.blocked):
        incoming = ", ".join(plan.cable(source, lan).ports)
        outgoing = ", ".join(plan.cable(destination, lan).ports)
        lines.append(f"iifname {{ {incoming} }} oifname {{ {outgoing} }} drop")
    for (machine, lan), percent in sorted(faults.loss.items()):
        ports = ", ".join(plan.cable(machine, lan).ports)
        for direction in ("iifname", "oifname"):
            share = round(percent * _SCALE / 100)
            chance = f"numgen random mod {_SCALE} < {share} " if share < _SCALE else ""
            lines.append(f"{direction} {{ {ports} }} {chance}drop")
    return "\n".join([*lines, "}", "}", ""])

"""The decisions of heart as it wrote them down, with the rules that took them and what made them true.

heart writes one JSON object a line in SAFEVAR/modules/AM/why/*.jsonl:
time, node, rule, action, inputs {name: value, or {value, setter, since}}, text. Its own are in decisions.jsonl,
those that the heartbeats of the other server told in peer.jsonl.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safekit.spelling import harmless


@dataclass(frozen=True)
class Decision:
    """One decision of heart."""

    time: float
    node: str
    rule: str
    action: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def _harmless(value: Any) -> Any:
    """Texts name files, which anybody may have made, and are shown on terminals and in mails."""
    if isinstance(value, dict):
        return {harmless(name): _harmless(each) for name, each in value.items()}
    return harmless(value) if isinstance(value, str) else value


def parse(line: str) -> Decision | None:
    """A line of the history; None when it is damaged."""
    try:
        data = _harmless(json.loads(line.lstrip("\0")))  # left by a power failure: see safekit.log.module.parse_line
        inputs = data.get("inputs") or {}
        return Decision(
            float(data["time"]),
            str(data.get("node", "")),
            str(data["rule"]),
            str(data.get("action", "")),
            inputs if isinstance(inputs, dict) else {},
            str(data.get("text", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def history(directory: Path) -> Iterator[Decision]:
    """Every decision that is kept, oldest first."""
    found: list[Decision] = []
    for path in directory.glob("*.jsonl*"):
        with open(path, encoding="utf-8", errors="replace") as handle:
            found.extend(d for d in map(parse, handle) if d is not None)
    yield from sorted(found, key=lambda d: d.time)


def last(decisions: Iterable[Decision], count: int) -> list[Decision]:
    """The last `count`, oldest first."""
    return list(deque(decisions, maxlen=count))

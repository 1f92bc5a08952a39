"""The text that Prometheus reads: OpenMetrics 1.0, or its older form for who does not ask for it. Pure.

A few lines instead of a library: the client library is made for values that a process counts itself, not for a picture
that is drawn anew for each scrape, and its import costs half a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Kind(Enum):
    """Of a family."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Family:
    """What a name means. The samples of a counter end with `_total`; `help` is one sentence with the unit."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert _NAME.fullmatch(self.name) and not self.name.endswith("_total"), self.name


@dataclass
class Page:
    """The samples of one scrape. A series that is told twice would make a reader refuse all: the first one counts."""

    families: Sequence[Family]
    _samples: dict[str, dict[tuple[str, ...], list[tuple[str, str, float]]]] = field(default_factory=dict)

    def add(self, family: Family, value: float, *labels: str) -> None:
        """One value, with its labels in the order of the family."""
        assert family.kind is not Kind.HISTOGRAM and len(labels) == len(family.labels), family.name
        suffix = "_total" if family.kind is Kind.COUNTER else ""
        self._put(family, labels, [(suffix, "", value)])

    def add_histogram(
        self, family: Family, bounds: Sequence[float], counts: Sequence[int], total: float, *labels: str
    ) -> None:
        """`counts`: events up to each bound and above the last one, not added up."""
        assert family.kind is Kind.HISTOGRAM and len(counts) == len(bounds) + 1, family.name
        samples, seen = [], 0
        for bound, count in zip([*bounds, math.inf], counts, strict=True):
            seen += count
            samples.append(("_bucket", f'le="{_number(bound)}"', float(seen)))
        self._put(family, labels, [*samples, ("_sum", "", total), ("_count", "", float(seen))])

    def _put(self, family: Family, labels: tuple[str, ...], samples: list[tuple[str, str, float]]) -> None:
        self._samples.setdefault(family.name, {}).setdefault(labels, samples)

    def text(self, *, open_metrics: bool) -> str:
        """The page. Every family is described, also one without samples."""
        lines: list[str] = []
        for family in self.families:
            name = family.name + ("_total" if family.kind is Kind.COUNTER and not open_metrics else "")
            lines += [f"# HELP {name} {_escaped(family.help)}", f"# TYPE {name} {family.kind.value}"]
            for labels, samples in self._samples.get(family.name, {}).items():
                named = [f'{key}="{_escaped(value)}"' for key, value in zip(family.labels, labels, strict=True)]
                for suffix, extra, value in samples:
                    inside = ",".join([*named, extra] if extra else named)
                    lines.append(f"{family.name}{suffix}{'{' + inside + '}' if inside else ''} {_number(value)}")
        return "\n".join([*lines, "# EOF", ""] if open_metrics else [*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def one_of(page: Page, family: Family, states: Iterable[str], now: str, *labels: str) -> None:
    """A state as a series for each one that it may have, all of them always: 1 for the present one, else 0."""
    for state in states:
        page.add(family, 1 if state == now else 0, *labels, state)


def wants_open_metrics(accept: str) -> bool:
    """Whether the header Accept asks for OpenMetrics."""
    return "application/openmetrics-text" in accept


__all__ = ["OPEN_METRICS", "PLAIN", "Family", "Kind", "Page", "one_of", "wants_open_metrics"]

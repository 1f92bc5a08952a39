"""What may change while the module runs (chapter 13: "dynamic configuration").

The rule is data: private/conf/userconfig.dynamic.json names whole sections and single attributes by
their names in userconfig.xml.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from safekit.disk.paths import private_conf
from safekit.model.findings import Finding, Places
from safekit.model.types import ModuleConfig

SECTIONS = ("service", "heart", "farm", "vip", "rfs", "user", "vhost", "errd", "check", "failover")
#: States of a running module in which a dynamic configuration is possible; WAIT when it is red.
DYNAMIC_STATES = ("ALONE", "WAIT")
_XML_NAMES = {
    ("service", "loop_interval_h"): "loop_interval",
    ("rfs", "async_mode"): "async",
    ("rfs", "suffix"): "mountoversuffix",
    ("failover", "period_ms"): "period",
    ("failover", "handle_time_ms"): "handle_time",
}


@dataclass(frozen=True, slots=True)
class Change:
    """A difference: its section, its attribute in XML words, the path in the tree, both values."""

    section: str
    attribute: str
    path: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Table:
    """What is dynamic: whole sections, and attributes of the others."""

    subtrees: frozenset[str]
    attributes: frozenset[tuple[str, str]]

    def allows(self, change: Change) -> bool:
        return change.section in self.subtrees or (change.section, change.attribute) in self.attributes


def load_table() -> Table:
    """The table of the installed product. Raises OSError or ValueError when the installation is broken."""
    data = json.loads((private_conf() / "userconfig.dynamic.json").read_text())
    attributes = {(section, name) for section, names in data["attributes"].items() for name in names}
    return Table(frozenset(data["subtrees"]), frozenset(attributes))


def changes(old: ModuleConfig, new: ModuleConfig) -> tuple[Change, ...]:
    """Every difference between two configurations of a module, by section and attribute."""
    found: list[Change] = []
    for section in SECTIONS:
        before, after = getattr(old, section), getattr(new, section)
        if before == after:
            continue
        if dataclasses.is_dataclass(before) and dataclasses.is_dataclass(after):
            for field in dataclasses.fields(after):
                one, other = getattr(before, field.name), getattr(after, field.name)
                if field.compare and one != other:
                    name = _XML_NAMES.get((section, field.name), field.name)
                    path, a, b = _deepest(f"{section}.{field.name}", one, other)
                    found.append(Change(section, name, path, a, b))
        else:
            found.append(Change(section, "", section, before, after))
    return tuple(found)


def refused(old: ModuleConfig, new: ModuleConfig, table: Table, places: Places) -> list[Finding]:
    """Findings for every change that a running module does not take."""
    return [_finding(change, places, new.name) for change in changes(old, new) if not table.allows(change)]


def _deepest(path: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Follow a difference down to the single value, as long as both sides have the same shape."""
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            if one != other:
                return _deepest(f"{path}[{index}]", one, other)
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        for field in dataclasses.fields(old):
            one, other = getattr(old, field.name), getattr(new, field.name)
            if one != other:
                return _deepest(f"{path}.{field.name}", one, other)
    return path, old, new


def _finding(change: Change, places: Places, module: str) -> Finding:
    step = f"stop the module first: safekit stop -m {module}"
    if not change.attribute and (change.new is None or change.new == ()):
        message = f"the section <{change.section}> was removed, which a running module does not take; {step}"
    elif not change.attribute:
        message = f"the section <{change.section}> is new, which a running module does not take; {step}"
    elif _scalar(change.old) and _scalar(change.new):
        values = f"from {_show(change.old)} to {_show(change.new)}"
        message = f"changed {values}, which a running module does not take; {step}"
    else:
        message = f"<{change.section}> changed here, which a running module does not take; {step}"
    finding = places.finding(change.path, message)
    if change.attribute and _scalar(change.new) and not places.written(change.path):
        # A default that took the place of a removed attribute: name the attribute, at the element's line.
        finding = dataclasses.replace(finding, element=f"{change.section} {change.attribute}")
    return finding


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, bool))


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return '"on"' if value else '"off"'
    return "the default" if value is None else f'"{value}"'

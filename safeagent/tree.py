"""The objects of safekit.mib as an ordered list (guide 10.8.2). The numbers are frozen.

The prefix is enterprises.bull.safe.safekit. The test of the MIB compares this file with it.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from safeagent.inventory import Inventory, Module, Tracked
from safekit.model.snmpd import Oid
from safekit.view.verdict import Kind

SAFEKIT: Oid = (1, 3, 6, 1, 4, 1, 107, 175, 10)
MODULE_ENTRY = (*SAFEKIT, 1, 1)
RESOURCE_ENTRY = (*SAFEKIT, 2, 1)
TRAP_LOG_MESSAGE = (*SAFEKIT, 3)
AGENT = (*SAFEKIT, 4)
LOG = (*SAFEKIT, 5)
SYSTEM: Oid = (1, 3, 6, 1, 2, 1, 1)
SYS_UPTIME = (*SYSTEM, 3, 0)
TRAP_OID: Oid = (1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0)
TRAP_ENTERPRISE: Oid = (1, 3, 6, 1, 6, 3, 1, 1, 4, 3, 0)

STATES = {"STOP": 0, "WAIT": 1, "ALONE": 2, "UP": 3, "PRIM": 4, "SECOND": 5}
OTHER_STATE = 6
COLORS = {"red": 0, "magenta": 1, "green": 2, "grey": 3}
MODES = {"mirror": 1, "farm": 2, "light": 3}
VERDICTS = {Kind.PROTECTED: 1, Kind.DEGRADED: 2, Kind.AT_RISK: 3, Kind.STOPPED: 4}
RESOURCE_STATES = {"unknown": 0, "init": 1, "up": 2, "down": 3}
OTHER_RESOURCE = 4
MAX_TEXT = 255
"""Of a DisplayString (RFC 2579)."""

ACTION_COLUMN = 4
MODULE_COLUMNS, RESOURCE_COLUMNS = 14, 7
"""Numbers of the last columns; the first one, the index, is not accessible."""


class Type(Enum):
    """How a value is encoded."""

    INTEGER = "INTEGER"
    STRING = "OCTET STRING"
    OID = "OBJECT IDENTIFIER"
    TICKS = "TimeTicks"
    COUNTER = "Counter32"


@dataclass(frozen=True)
class Value:
    """One object instance."""

    type: Type
    value: int | bytes | Oid


def integer(value: int) -> Value:
    return Value(Type.INTEGER, value)


def text(value: str, limit: int = MAX_TEXT) -> Value:
    """Cut at a character, so that it stays UTF-8."""
    data = value.encode("utf-8", "replace")[:limit]
    return Value(Type.STRING, data.decode("utf-8", "ignore").encode())


def counter(value: int) -> Value:
    return Value(Type.COUNTER, value & 0xFFFFFFFF)


def ticks(seconds: float) -> Value:
    """Hundredths of a second, which begin again after 497 days."""
    return Value(Type.TICKS, int(seconds * 100) & 0xFFFFFFFF)


def date(when: float) -> Value:
    """DateAndTime of RFC 2579 in UTC, 11 octets; all zero for a time that is not known."""
    if when <= 0:
        return Value(Type.STRING, bytes(8))
    t = time.gmtime(when)
    parts = (t.tm_mon, t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec, int(when * 10) % 10)
    return Value(Type.STRING, t.tm_year.to_bytes(2, "big") + bytes(parts) + b"+\0\0")


@dataclass
class Counters:
    """Of the agent itself."""

    traps_sent: int = 0
    traps_dropped: int = 0


Source = Value | Callable[[], Value]


def module_columns(module: Module) -> dict[int, Value]:
    """skModuleEntry, by column."""
    view, verdict = module.view, module.view.verdict
    return {
        2: integer(STATES.get(view.state, OTHER_STATE)),
        3: text(module.name),
        ACTION_COLUMN: integer(module.action),
        5: integer(module.outcome),
        6: text(module.message),
        7: integer(COLORS.get(view.color, COLORS["grey"])),
        8: integer(MODES.get(view.mode, 0)),
        9: integer(VERDICTS[verdict.kind]),
        10: text(verdict.reason),
        11: text(verdict.next_step),
        12: integer(STATES.get(view.remote_state, OTHER_STATE)),
        13: date(module.state.since),
        14: counter(module.state.changes),
    }


def resource_columns(name: str, tracked: Tracked) -> dict[int, Value]:
    """skResourceEntry, by column."""
    return {
        2: text(name),
        3: integer(RESOURCE_STATES.get(tracked.value, OTHER_RESOURCE)),
        4: text(tracked.value),
        5: text(tracked.setter),
        6: date(tracked.since),
        7: counter(tracked.changes),
    }


@dataclass(frozen=True)
class Host:
    """What the agent says of its server. `started`: time.monotonic of its start."""

    node: str
    version: str
    description: str
    started: float
    contact: str = ""
    location: str = ""
    name: str = ""


class Tree:
    """All instances in the order of their identifiers; made again when the inventory has changed."""

    def __init__(self, inventory: Inventory, host: Host, counters: Counters) -> None:
        self._inventory = inventory
        self._host = host
        self._counters = counters
        self._version = -1
        self._values: dict[Oid, Source] = {}
        self._order: list[Oid] = []

    def _refresh(self) -> None:
        if self._version == self._inventory.version:
            return
        self._version = self._inventory.version
        self._values = {**self._scalars(), **self._tables()}
        self._order = sorted(self._values)

    def uptime(self) -> Value:
        """Since the agent started."""
        return ticks(time.monotonic() - self._host.started)

    def _scalars(self) -> dict[Oid, Source]:
        host, counters = self._host, self._counters
        system: dict[int, Source] = {
            1: text(host.description),
            2: Value(Type.OID, SAFEKIT),
            3: self.uptime,
            4: text(host.contact),
            5: text(host.name or host.node),
            6: text(host.location),
            7: integer(72),
        }
        agent: dict[int, Source] = {
            1: text(host.node),
            2: text(host.version),
            3: lambda: counter(counters.traps_sent),
            4: lambda: counter(counters.traps_dropped),
        }
        return {(*SYSTEM, n, 0): v for n, v in system.items()} | {(*AGENT, n, 0): v for n, v in agent.items()}

    def _tables(self) -> dict[Oid, Source]:
        found: dict[Oid, Source] = {}
        for number, module in self._inventory.modules.items():
            found |= {(*MODULE_ENTRY, column, number): v for column, v in module_columns(module).items()}
            for row, tracked in module.resources.items():
                columns = resource_columns(module.names[row], tracked)
                found |= {(*RESOURCE_ENTRY, column, number, row): v for column, v in columns.items()}
        return found

    def get(self, oid: Oid) -> Value | None:
        """The instance, None when there is none."""
        self._refresh()
        found = self._values.get(oid)
        return found() if callable(found) else found

    def next(self, oid: Oid) -> tuple[Oid, Value] | None:
        """The first instance after `oid`, None at the end."""
        self._refresh()
        index = bisect.bisect_right(self._order, oid)
        if index == len(self._order):
            return None
        value = self.get(self._order[index])
        assert value is not None
        return self._order[index], value

    def has_object(self, oid: Oid) -> bool:
        """Whether an instance of the object of `oid` exists (noSuchInstance, else noSuchObject)."""
        self._refresh()
        for entry, columns in ((MODULE_ENTRY, MODULE_COLUMNS), (RESOURCE_ENTRY, RESOURCE_COLUMNS)):
            if oid[: len(entry)] == entry and len(oid) > len(entry):
                return 2 <= oid[len(entry)] <= columns
        return (*oid[:-1], 0) in self._values


def action_of(oid: Oid) -> int | None:
    """The module's id when `oid` is an instance of the writable column, whether the module is there or not."""
    prefix = (*MODULE_ENTRY, ACTION_COLUMN)
    return oid[-1] if len(oid) == len(prefix) + 1 and oid[:-1] == prefix else None

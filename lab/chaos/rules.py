"""What a campaign expects: how long a recovery may take, and what an administrator does. Pure.

The figures come from the configuration by the formulas that docs/failover.md and docs/replication.md give, with a time
for what no configuration bounds (a boot, scripts, a copy of some megabytes) and a factor for a machine with other work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Settings:
    """The time-outs of the module of a campaign, in seconds."""

    pulse: float = 0.1
    timeout: float = 2.0
    locktimeout: float = 4.0
    sendtimeout: float = 4.0
    nicestop: float = 6.0
    forcestop: float = 4.0
    witness: bool = False
    slack: float = 2.0
    """Factor for the load of the machine."""


BOOT = 6.0
SCRIPTS = 6.0
COPY = 12.0
CONFIG = 10.0
STOP_ASKED = 20.0
"""Seconds: a boot of a node with its safeadmin; a start script with the recovery of a database; a reintegration of what
a step changed; `safekit config`; a stop that has to start a process to ask it (docs/failover.md)."""


def detection(s: Settings) -> float:
    """From the loss of a server until the other one is alone: heart's time-out and, for a lost replication, the longer
    of its own; with a witness, the time in which the loser surely stops."""
    silence = max(s.timeout, s.locktimeout, s.sendtimeout)
    if s.witness:
        silence += 3.5 + min(10.0, s.nicestop + s.forcestop) + 2.0 + 0.5 + 4 * s.pulse
    return silence + 5 * s.pulse


def recovery(s: Settings, faults: int = 1) -> float:
    """From the repair until primary and secondary are green: what runs is stopped, the server boots, it listens for a
    time-out, a start, a copy; once more for each further fault."""
    stop = s.nicestop + s.forcestop + STOP_ASKED
    one = detection(s) + stop + BOOT + s.timeout + SCRIPTS + COPY + CONFIG
    return s.slack * (one + (faults - 1) * (detection(s) + SCRIPTS + COPY))


def takeover(s: Settings) -> float:
    """From the loss of a primary until its application runs on the other server."""
    return s.slack * (detection(s) + s.timeout + SCRIPTS)


def overlap(s: Settings) -> float:
    """How long a server that stood still may run on beside the one that took over: until it has heard it, and its stop
    scripts have ended."""
    return s.slack * (s.timeout + s.nicestop + s.forcestop)


def farm_recovery(pulse: float, count: int, slack: float = 2.0) -> float:
    """From the repair of a farm until all servers share: a silent server is replaced after `count` pulses; it boots,
    starts, and joins."""
    return slack * (STOP_ASKED + BOOT + SCRIPTS + 4 * pulse * count + CONFIG)


class Order(Enum):
    """What an administrator does on one server."""

    POWERON = "poweron"
    START = "start"
    STOP = "stop"


@dataclass(frozen=True)
class Look:
    """What an administrator sees of a server: its state (`PRIM green`, `off` without power), and rfs.degraded."""

    state: str
    degraded: bool = False


def repairs(servers: Mapping[str, Look]) -> dict[str, Order]:
    """The next order for each server that needs one, by the guide: power on, start what is stopped, stop a primary
    whose replication has failed (5.6). Nothing for a server that waits or works: it has to get on by itself."""
    orders: dict[str, Order] = {}
    for name, look in servers.items():
        if look.state == "off":
            orders[name] = Order.POWERON
        elif look.state.startswith("STOP"):
            orders[name] = Order.START
        elif look.degraded and look.state == "ALONE green":
            orders[name] = Order.STOP
    return orders

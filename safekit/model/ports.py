"""Ports of the product: fixed ones and those that follow from a module's id (10.3, 9.6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SAFEADMIN = 4800
MAPPER = 6259
WEB_HTTP = 9010
WEB_HTTPS = 9453
CASERV = 9001

_CASERV = re.compile(r'^\s*Define\s+caservport\s+"?([^\s"]+)"?\s*$', re.MULTILINE)
_HEART_BASE, _HEART_STEP = 8888, 1
_RFS_BASE, _RFS_STEP = 5600, 4
_FARM_BASE, _FARM_STEP = 4803, 3

#: The highest id whose ports stay distinct: above, the farm ports (4803 and up, UDP) of one
#: module would run into the replication ports (5600 and up) that administrators open for another.
MAX_MODULE_ID = (_RFS_BASE - _FARM_BASE) // _FARM_STEP


def _port(base: int, step: int, module_id: int) -> int:
    if not 1 <= module_id <= MAX_MODULE_ID:
        raise ValueError(f"module id {module_id} is outside 1..{MAX_MODULE_ID}")
    return base + step * (module_id - 1)


def heart_port(module_id: int) -> int:
    """UDP port of the heartbeats of a module."""
    return _port(_HEART_BASE, _HEART_STEP, module_id)


def rfs_port(module_id: int) -> int:
    """TCP port of the replication flow of a module."""
    return _port(_RFS_BASE, _RFS_STEP, module_id)


def farm_port(module_id: int) -> int:
    """UDP port of the farm protocol of a module."""
    return _port(_FARM_BASE, _FARM_STEP, module_id)


@dataclass(frozen=True, order=True)
class Port:
    """A port that other servers or workstations use."""

    protocol: str
    number: int


def heart_ports(active: Mapping[str, Any]) -> tuple[Port, ...]:
    """Of a module's active configuration (active.json): the attribute `port` may name others than the id gives."""
    beats = (active.get("heart") or {}).get("heartbeats") or ()
    return tuple(Port("udp", number) for number in sorted({int(beat["port"]) for beat in beats}))


def rfs_ports(active: Mapping[str, Any]) -> tuple[Port, ...]:
    """As heart_ports, of the replication."""
    rfs = active.get("rfs")
    return () if rfs is None else (Port("tcp", int(rfs["port"])),)


def farm_ports(active: Mapping[str, Any]) -> tuple[Port, ...]:
    """As heart_ports, of the membership of a farm."""
    farm = active.get("farm")
    return () if farm is None else (Port("udp", int(farm["port"])),)


def module_ports(active: Mapping[str, Any]) -> tuple[Port, ...]:
    """All ports between the servers of a module. Raises KeyError, ValueError, TypeError for a damaged file."""
    return (*heart_ports(active), *rfs_ports(active), *farm_ports(active))


def ca_service_port(conf: str) -> int:
    """TCP port of the CA web service, from the text of httpd.caserv.conf (guide 11.6.5). Raises ValueError."""
    found = _CASERV.findall(conf)
    if not found:
        return CASERV
    if not (found[-1].isascii() and found[-1].isdecimal() and 0 < int(found[-1]) < 65536):
        raise ValueError(f"caservport: {found[-1]!r} is not a port")
    return int(found[-1])

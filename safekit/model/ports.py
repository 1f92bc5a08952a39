"""Ports of the product: fixed ones and those that follow from a module's id (10.3, 9.6)."""

from __future__ import annotations

SAFEADMIN = 4800
MAPPER = 6259
WEB_HTTP = 9010
WEB_HTTPS = 9453

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

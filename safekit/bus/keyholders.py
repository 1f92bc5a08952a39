"""Which servers are known to have the key of the cluster, for those who are about to send a secret."""

from __future__ import annotations

from safekit.bus.asking import ask_sync
from safekit.bus.message import BusError
from safekit.bus.requests.safeadmin.node import GetMembers
from safekit.disk.paths import node_name


def key_holders() -> frozenset[str]:
    """The servers that prove to safeadmin, all the time, that they have the present key of the cluster; none where
    nothing is known: not in a cluster yet, or no safeadmin."""
    try:
        nodes = ask_sync("", GetMembers()).get("nodes", {})
    except BusError:
        return frozenset()
    return frozenset(str(name) for name, known in nodes.items() if known.get("answers") and name != node_name())

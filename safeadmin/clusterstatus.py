"""The value of cluster() in a failover rule, from the view of the cluster. Pure."""

from __future__ import annotations

from enum import Enum


class ClusterStatus(Enum):
    """The value of cluster() in a failover rule (guide 13.18)."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


def cluster_status(
    remote_nodes: frozenset[str] | None,
    responding: frozenset[str],
    configured_on: dict[str, bool],
    settled: bool,
) -> ClusterStatus:
    """The value of cluster() for a module.

    remote_nodes: the other nodes on the module's lans, None when the module is not configured
    here or this server is in no cluster. responding: nodes that answer now. configured_on: for
    nodes that told their facts, now or earlier, whether the module is configured there.
    settled: whether silence means something yet.

    up as soon as a remote node that has the module answers. down when every remote node that has
    it, or may have it, is silent. In all other cases (nobody else has it, the answer is not in
    yet, we just started) unknown: no rule may conclude from it that this server is alone.
    """
    if remote_nodes is None:
        return ClusterStatus.UNKNOWN
    candidates = frozenset(node for node in remote_nodes if configured_on.get(node, True))
    answering = candidates & responding
    if any(configured_on.get(node, False) for node in answering):
        return ClusterStatus.UP
    if answering or not candidates or not settled:
        return ClusterStatus.UNKNOWN
    return ClusterStatus.DOWN

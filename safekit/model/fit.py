"""Whether a module can run in a cluster as it is now, which may have changed since the module was configured (12.2).
Pure."""

from __future__ import annotations

from safekit.model.types import ClusterConfig, ModuleConfig


def usable_lan(cluster: ClusterConfig, name: str) -> bool:
    """Whether modules may use a lan of that name."""
    lan = cluster.lan(name)
    return lan is not None and lan.framework


def lost_lans(config: ModuleConfig, cluster: ClusterConfig) -> tuple[str, ...]:
    """The lans that the module uses and the cluster does not offer."""
    flow = (config.rfs.flow,) if config.rfs is not None and config.rfs.flow else ()
    names = dict.fromkeys((*config.lan_names(), *flow))
    return tuple(name for name in names if not usable_lan(cluster, name))


def misfit(config: ModuleConfig, cluster: ClusterConfig, node: str) -> str:
    """Why the module cannot run on the server `node`, with the next step; "" when it can. One heartbeat or lan of
    several may be missing, the replication flow not."""
    names, lost = config.lan_names(), lost_lans(config, cluster)
    if config.service.mode == "light" or not names:
        return ""
    again = f"correct userconfig.xml or cluster.xml, then safekit config -m {config.name}"
    if config.rfs is not None and config.rfs.flow in lost:
        return f"the lan of its replication flow, {config.rfs.flow}, is not in cluster.xml any more; {again}"
    if set(names) <= set(lost):
        return f"none of its lans ({', '.join(names)}) is in cluster.xml any more; {again}"
    if config.service.mode == "mirror" and config.peer(cluster, node) is None:
        return f"its lans do not have exactly two nodes with {node} among them; {again}"
    if node not in config.nodes(cluster):
        return f"{node} is not on its lans ({', '.join(names)}) in cluster.xml; {again}"
    return ""

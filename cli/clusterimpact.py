"""What a new cluster configuration does to modules that run (guide 12.2). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safekit.model.fit import lost_lans, misfit
from safekit.model.types import ClusterConfig, ModuleConfig


def on_module(cluster: ClusterConfig, module: ModuleConfig, node: str) -> list[str]:
    """What happens to a running module of the server `node`."""
    if reason := misfit(module, cluster, node):
        return [f"module {module.name} stops: {reason}"]
    return [
        f"module {module.name} goes on without the lan {name}, which it uses and which is not in the new configuration:"
        f" name another one in its userconfig.xml, then safekit config -m {module.name}"
        for name in lost_lans(module, cluster)
    ]


def lost_servers(cluster: ClusterConfig, nodes: Mapping[str, Any]) -> list[str]:
    """A sentence for each server that leaves the cluster while it runs modules. `nodes`: as safeadmin tells them."""
    found = []
    for name, known in nodes.items():
        facts = known.get("facts") or {}
        running = sorted(module["name"] for module in facts.get("modules", ()) if module.get("running"))
        if name in cluster.node_names or not known.get("answers") or not running:
            continue
        found.append(
            f"{name} leaves the cluster and runs {', '.join(running)}: the servers that stay do not hear it any more;"
            f" stop it there now: safekit stop -m {running[0]}"
        )
    return found

"""This server in its cluster: the configuration that it follows, and what it tells the other servers of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from safeadmin.adminlog import AdminLog
from safeadmin.cluster import Cluster
from safeadmin.facts import NodeFacts
from safeadmin.modules import Installed, Registry
from safekit.bus.endpoint import BusError, Fields
from safekit.bus.requests.safeadmin.node import OtherServer
from safekit.disk.paths import cluster_dir, node_name, safevar
from safekit.model.types import ClusterConfig
from safekit.process.frame import Unconfigured, load_cluster
from safekit.wire.keys import overall_signature
from safekit.wire.seal import load_key

FACTS_SECONDS = 2.0


class Joined:
    """`running(module)` tells whether a module runs here; `problem` why this server is in no cluster."""

    def __init__(self, log: AdminLog, registry: Registry, running: Callable[[str], bool]) -> None:
        self._log, self._registry, self._running = log, registry, running
        self.node = node_name()
        self.problem = ""
        self._cluster: Cluster | None = None
        self._lock = asyncio.Lock()
        self._applied: tuple[ClusterConfig, bytes, str] | None = None
        self._told = NodeFacts()
        self._due = asyncio.Event()

    def __bool__(self) -> bool:
        """Whether this server is in a cluster."""
        return self._cluster is not None

    async def reload(self) -> bool:
        """Read cluster.json and the key, and apply them if they changed. False for a missing or unusable configuration,
        which leaves this server alone, waiting for a better one."""
        async with self._lock:
            self.node = node_name()
            try:
                config = load_cluster()
                wanted = (config, _key(), self.node)
                if self._applied == wanted and self._cluster is not None:
                    await self._cluster.resolve_again()
                    self._log.info("cluster configuration unchanged, addresses looked up again")
                    return True
                made = Cluster(config, wanted[1], self.node, safevar() / "cluster", self._log, self._facts())
            except (Unconfigured, ValueError, OSError) as error:
                self.problem = str(error)
                self._applied = None
                await self.close()
                self._log.error(f"not in a cluster: {error}")
                return False
            if self._cluster is not None:
                await self._cluster.close()
            self._cluster, self._applied, self.problem = made, wanted, ""
            made.on_change = self._due.set
            await made.start()
            lans = ", ".join(lan.name for lan in config.framework_lans)
            self._log.info(
                f"cluster of {len(config.node_names)} nodes on lans {lans}, UDP port {config.port}, "
                f"signature {config.signature[:12]}; this is {self.node}"
            )
            return True

    def changed(self) -> None:
        """What this server tells of itself may be another thing now."""
        self._due.set()

    async def follow_facts(self) -> None:
        """Facts come from files that commands write: looked at every few seconds, and at every event."""
        while True:
            try:
                await asyncio.wait_for(self._due.wait(), FACTS_SECONDS)
            except TimeoutError:
                pass
            self._due.clear()
            facts = self._facts()
            if facts != self._told and self._cluster is not None:
                self._told = facts
                self._cluster.set_facts(facts)

    def _facts(self) -> NodeFacts:
        modules = tuple(module.facts(self._running(module.name)) for module in self._registry.all())
        try:
            stamp = (cluster_dir() / "cluster.json").stat().st_mtime
            date = datetime.fromtimestamp(stamp).isoformat(timespec="seconds")
            # Of configuration and key together: a server with another key must not look the same (guide 9.3).
            signature = overall_signature(load_cluster().signature, _key())
        except (OSError, Unconfigured):
            date = signature = ""
        return NodeFacts(signature, date, (cluster_dir() / "locked").exists(), modules)

    def status(self, module: Installed) -> str:
        """The value of cluster() in the rules of a module."""
        if self._cluster is None:
            return "unknown"
        nodes = None if module.config is None else module.config.nodes(self._cluster.config)
        return self._cluster.status(module.name, nodes).value

    def servers_of(self, module: Installed | None) -> OtherServer:
        """cluster() of a module, and what each server tells of it."""
        if module is None or self._cluster is None:
            return OtherServer("unknown")
        return OtherServer(self.status(module), tuple(self._cluster.servers_of(module.name)))

    def members(self) -> Fields:
        """The cluster as seen here. Raises BusError when this server is in none."""
        if self._cluster is None:
            raise BusError("no_cluster", f"this server is in no cluster: {self.problem}")
        return self._cluster.members()

    async def close(self) -> None:
        """Leave it."""
        if self._cluster is not None:
            await self._cluster.close()
            self._cluster = None


def _key() -> bytes:
    """The cluster key. Raises Unconfigured: nothing goes over a wire in clear."""
    path = cluster_dir() / "cluster.key"
    try:
        return load_key(path)
    except (OSError, ValueError) as error:
        raise Unconfigured(f"there is no cluster key: {error}; run safekit cluster config FILE") from None

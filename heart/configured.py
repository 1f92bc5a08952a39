"""From the configuration trees to what the automaton and the shell need."""

from __future__ import annotations

import os
from dataclasses import dataclass

from heart.values import Link, Setup
from heart.wire import Route
from safekit.model.types import ClusterConfig, ModuleConfig
from safekit.paths import private_conf
from safekit.rules.source import default_text, module_rules


class Unusable(Exception):
    """heart cannot run this configuration; the text names the cause and the next step."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Setup of the automaton, and the addresses of its links."""

    setup: Setup
    routes: tuple[Route, ...]
    permanent_arp: tuple[str, ...]


def read(config: ModuleConfig, cluster: ClusterConfig, node: str) -> Plan:
    """Translate.  Raises Unusable, RuleError, RulesFileError."""
    if config.service.mode != "mirror" or config.heart is None or not config.heart.heartbeats:
        raise Unusable(f"module {config.name}: heart runs mirror modules with at least one <heartbeat>")
    peer = config.peer(cluster, node)
    if peer is None:
        raise Unusable(
            f"module {config.name}: its lans do not have exactly two nodes with {node} among them:"
            " correct cluster.xml or <heartbeat name=...>, then run config again"
        )
    links: list[Link] = []
    routes: list[Route] = []
    arp: list[str] = []
    for item in config.heart.heartbeats:
        own, other = cluster.bind_address(item.name, node), cluster.address(item.name, peer)
        if own is None or other is None:
            raise Unusable(f"module {config.name}: {node} or {peer} has no address on lan {item.name}")
        links.append(Link(item.ident, item.pulse_ms / 1000, item.timeout_ms / 1000))
        routes.append(Route(item.ident, own, other, item.port, item.pulse_ms / 1000))
        if item.permanent_arp:
            arp.append(other)
    service, failover, rfs = config.service, config.failover, config.rfs
    default = default_text(private_conf() / "include" / "failover.xml") if failover.extends else None
    rules = module_rules(
        failover.rules, default, syncdelta=rfs.syncdelta if rfs else 0, syncat=bool(rfs and rfs.syncat)
    )
    setup = Setup(
        node=node,
        peer=peer,
        hostname=os.uname().nodename,
        links=tuple(links),
        rfs=rfs is not None,
        defaultprim=service.defaultprim,
        failover=service.failover,
        maxloop=service.maxloop,
        loop_interval=service.loop_interval_h * 3600.0,
        automatic_reboot=service.automatic_reboot,
        rules=rules,
        period=failover.period_ms / 1000,
        handle_time=failover.handle_time_ms / 1000,
        signature=config.signature,
    )
    return Plan(setup, tuple(routes), tuple(dict.fromkeys(arp)))

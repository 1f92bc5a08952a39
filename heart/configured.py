"""From the configuration trees to what the automaton and the shell need."""

from __future__ import annotations

import os
from dataclasses import dataclass

from heart.values import Link, Setup
from heart.wire import Route
from safekit import net
from safekit.model.checkers import Checker, checkers, in_phase
from safekit.model.types import ClusterConfig, ModuleConfig, When
from safekit.rules.source import default_rules, default_text, module_rules

PHASES: tuple[When, ...] = ("pre", "prim", "second", "both")
CLASSES = (*PHASES, "sec")
"""Classes of <proc> that are enabled and disabled around the scripts of the same name (13.9.3)."""


class Unusable(Exception):
    """heart cannot run this configuration; the text names the cause and the next step."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Setup of the automaton, the addresses of its links, and the checkers of the module."""

    setup: Setup
    routes: tuple[Route, ...]
    permanent_arp: tuple[str, ...]
    checkers: tuple[Checker, ...] = ()


def read(config: ModuleConfig, cluster: ClusterConfig, node: str) -> Plan:
    """Translate.  Raises Unusable, RuleError, RulesFileError, and OSError when addresses cannot be read."""
    peer = ""
    routes: tuple[Route, ...] = ()
    links: tuple[Link, ...] = ()
    arp: tuple[str, ...] = ()
    if config.service.mode == "mirror":
        peer, links, routes, arp = _links(config, cluster, node)
    found = checkers(config, net.local_interfaces())
    service, failover, rfs = config.service, config.failover, config.rfs
    splitbrain = config.check.splitbrain
    rules = module_rules(
        failover.rules,
        default_text(default_rules()) if failover.extends else None,
        syncdelta=rfs.syncdelta if rfs else 0,
        syncat=bool(rfs and rfs.syncat),
    )
    setup = Setup(
        node=node,
        peer=peer,
        hostname=os.uname().nodename,
        links=links,
        rfs=rfs is not None,
        defaultprim=service.defaultprim,
        failover=service.failover,
        maxloop=service.maxloop,
        loop_interval=service.loop_interval_h * 3600.0,
        automatic_reboot=service.automatic_reboot,
        rules=rules,
        period=failover.period_ms / 1000,
        handle_time=failover.handle_time_ms / 1000,
        checks=tuple((phase, tuple(c.resource for c in in_phase(found, phase))) for phase in PHASES),
        classes=tuple(dict.fromkeys(p.proc_class for p in config.errd.procs if p.proc_class in CLASSES))
        if config.errd is not None
        else (),
        witness=splitbrain.ident if splitbrain is not None else "",
        mode=service.mode,
        signature=config.signature,
    )
    return Plan(setup, routes, arp, found)


def _links(
    config: ModuleConfig, cluster: ClusterConfig, node: str
) -> tuple[str, tuple[Link, ...], tuple[Route, ...], tuple[str, ...]]:
    """The peer of a mirror, the links to it, and the addresses that get a permanent ARP entry."""
    if config.heart is None or not config.heart.heartbeats:
        raise Unusable(f"module {config.name}: a mirror needs at least one <heartbeat>: run config again")
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
    return peer, tuple(links), tuple(routes), tuple(dict.fromkeys(arp))

"""From the configuration trees to what the automaton and the shell need."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from heart.core.values import Link, Setup
from heart.shell.wire import Route
from safekit.model.agreement import agreement
from safekit.model.checkers import Checker, checkers, in_phase
from safekit.model.fit import misfit, usable_lan
from safekit.model.types import ClusterConfig, ModuleConfig, When
from safekit.net import addresses as net
from safekit.rules.order import module_rules
from safekit.rules.source import default_rules, default_text

PHASES: tuple[When, ...] = ("pre", "prim", "second", "both")
CLASSES = (*PHASES, "sec")
"""Classes of <proc> that are enabled and disabled around the scripts of the same name (13.9.3)."""


HURRY = 10.0
"""Seconds at most in which the application of a server that the witness does not see is stopped: the other one waits
for it."""


class Unusable(Exception):
    """heart cannot run this configuration; the text names the cause and the next step."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Setup of the automaton, the addresses of its links, and the checkers of the module. `permanent_arp`: idents of
    links. `unused`: (ident, lan) of the heartbeats whose lan the cluster does not have any more. `members`: the servers
    of a farm."""

    setup: Setup
    routes: tuple[Route, ...]
    permanent_arp: tuple[str, ...]
    checkers: tuple[Checker, ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    members: tuple[str, ...] = ()


def read(config: ModuleConfig, cluster: ClusterConfig, node: str) -> Plan:
    """Translate.  Raises Unusable, RuleError, RulesFileError, and OSError when addresses cannot be read."""
    peer, ways = "", _Ways()
    if config.service.mode == "mirror":
        peer, ways = _links(config, cluster, node)
    members = tuple(sorted(config.nodes(cluster))) if config.farm is not None else ()
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
        links=tuple(ways.links),
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
        agrees=agreement(config),
        syncat=(rfs.syncat or "") if rfs else "",
        hurry=min(HURRY, config.user.nicestoptimeout + config.user.forcestoptimeout)
        if config.user is not None
        else 0.0,
    )
    return Plan(setup, tuple(ways.routes), tuple(ways.arp), found, tuple(ways.unused), members)


def successor(config: ModuleConfig, cluster: ClusterConfig, node: str, former: Plan, *, reconfigured: bool) -> Plan:
    """The plan of a module that runs by `former`, when its configuration or the cluster has changed.

    Raises Unusable when a module that runs cannot become that, and what `read` raises.
    """
    plan = read(config, cluster, node)
    if plan.setup.peer != former.setup.peer:
        # The former one still runs the module: it must hear that this server stops, or both would go on alone.
        raise Unusable(
            f"module {config.name}: its other server was {former.setup.peer} and would be {plan.setup.peer}: stop the"
            " module on both, then start it"
        )
    if reason := misfit(config, cluster, node):
        raise Unusable(f"module {config.name}: {reason}")
    if not reconfigured:
        # What the checkers look at is not in cluster.xml, and an interface may just be unplugged.
        plan = replace(plan, checkers=former.checkers, setup=replace(plan.setup, checks=former.setup.checks))
    return plan


@dataclass(slots=True)
class _Ways:
    links: list[Link] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    arp: list[str] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)


def _links(config: ModuleConfig, cluster: ClusterConfig, node: str) -> tuple[str, _Ways]:
    """The peer of a mirror and the links to it. A lan that is gone costs its heartbeat, the last one the module."""
    if config.heart is None or not config.heart.heartbeats:
        raise Unusable(f"module {config.name}: a mirror needs at least one <heartbeat>: run config again")
    reason, peer = misfit(config, cluster, node), config.peer(cluster, node)
    if reason or peer is None:
        raise Unusable(f"module {config.name}: {reason or 'it has no other server'}")
    ways = _Ways()
    for item in config.heart.heartbeats:
        if not usable_lan(cluster, item.name):
            ways.unused.append((item.ident, item.name))
            continue
        own, other = cluster.bind_address(item.name, node), cluster.address(item.name, peer)
        if own is None or other is None:
            raise Unusable(f"module {config.name}: {node} or {peer} has no address on lan {item.name}")
        ways.links.append(Link(item.ident, item.pulse_ms / 1000, item.timeout_ms / 1000))
        ways.routes.append(Route(item.ident, own, other, item.port, item.pulse_ms / 1000))
        if item.permanent_arp:
            ways.arp.append(item.ident)
    return peer, ways

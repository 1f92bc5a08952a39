"""A module and a cluster that has changed since the module was configured (guide 12.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cli.clusterimpact import lost_servers, on_module
from safekit.model.fit import lost_lans, misfit
from safekit.model.types import (
    ClusterConfig,
    Farm,
    FarmLan,
    Heart,
    Heartbeat,
    Lan,
    LanNode,
    ModuleConfig,
    Replicated,
    Rfs,
    Service,
)


def cluster(**lans: str) -> ClusterConfig:
    """Lans with their nodes, one letter each; a lan whose letters are upper case has framework="off"."""
    return ClusterConfig(
        tuple(
            Lan(name, framework=nodes.islower(), nodes=tuple(LanNode(n, f"10.{i}.0.{ord(n)}") for n in nodes.lower()))
            for i, (name, nodes) in enumerate(lans.items())
        )
    )


MIRROR = ModuleConfig("db", 1, heart=Heart((Heartbeat("one", "one", 8888), Heartbeat("two", "flow", 8888))))
REPLICATED = replace(MIRROR, rfs=Rfs((Replicated("/d"),), flow="two", port=5600))
FARM = ModuleConfig("web", 2, Service(mode="farm"), farm=Farm(port=4803, lans=(FarmLan("all"), FarmLan("two"))))
LIGHT = ModuleConfig("light", 3, Service(mode="light"))


@pytest.mark.parametrize(
    ("module", "there", "reason", "lost"),
    [
        (MIRROR, cluster(all="abc", one="ab", two="ab"), "", ()),
        (MIRROR, cluster(all="abc", one="ab"), "", ("two",)),
        (MIRROR, cluster(all="abc", one="AB", two="ab"), "", ("one",)),
        (MIRROR, cluster(all="abc"), "none of its lans (one, two)", ("one", "two")),
        (MIRROR, cluster(all="abc", one="bc", two="bc"), "exactly two nodes with a among them", ()),
        (MIRROR, cluster(all="abc", one="abc", two="abc"), "exactly two nodes with a among them", ()),
        (REPLICATED, cluster(all="abc", two="ab"), "", ("one",)),
        (REPLICATED, cluster(all="abc", one="ab"), "replication flow, two,", ("two",)),
        (REPLICATED, cluster(all="abc", one="ab", two="AB"), "replication flow, two,", ("two",)),
        (FARM, cluster(all="abc", two="ab"), "", ()),
        (FARM, cluster(all="abc"), "", ("two",)),
        (FARM, cluster(all="abc", two="bc"), "a is not on its lans (all, two)", ()),
        (FARM, cluster(other="abc"), "none of its lans (all, two)", ("all", "two")),
        (LIGHT, cluster(other="bc"), "", ()),
    ],
)
def test_what_a_module_can_do_without(
    module: ModuleConfig, there: ClusterConfig, reason: str, lost: tuple[str, ...]
) -> None:
    found = misfit(module, there, "a")
    assert reason in found and bool(reason) == bool(found)
    assert lost_lans(module, there) == lost
    told = on_module(there, module, "a")
    if reason:
        assert told == [f"module {module.name} stops: {found}"] and f"safekit config -m {module.name}" in found
    else:
        assert [name for name in lost if any(f"without the lan {name}" in text for text in told)] == list(lost)


def test_servers_that_leave_while_they_run_something_are_named() -> None:
    def known(running: bool, answers: bool = True) -> dict[str, object]:
        return {"answers": answers, "facts": {"modules": [{"name": "web", "running": running}]}}

    nodes = {"a": known(True), "b": known(True), "c": known(False), "d": known(True, answers=False), "e": {}}
    (told,) = lost_servers(cluster(all="ax"), nodes)
    assert told.startswith("b leaves the cluster and runs web") and "safekit stop -m web" in told

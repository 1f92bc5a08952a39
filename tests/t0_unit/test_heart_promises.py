"""Small promises of the core that a whole scenario shows: what it reads, and when it announces the addresses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heart.core.values import Link, Role, Setup
from heart.scenario import Scenario
from safekit.rules.order import module_rules

PAIR = Setup(node="n1", peer="n2", links=(Link("l0", 0.5, 2.0),), period=1.0, handle_time=1.0)


def pair(setup: Setup = PAIR) -> Scenario:
    """Two servers with this setup."""
    return Scenario([setup, replace(setup, node="n2", peer="n1")])


def announced(scenario: Scenario, node: str) -> int:
    """How often a server told the network its addresses again."""
    return sum(told.node == node and "tells the network" in told.text for told in scenario.told)


def test_the_one_that_stays_after_a_split_brain_announces_when_they_meet_and_when_the_other_has_gone() -> None:
    scenario = pair()
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.cut_heartbeats()
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "ALONE green", "n2": "ALONE green"}
    assert announced(scenario, "n1") == 0
    scenario.join_heartbeats()
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "PRIM green", "n2": "SECOND green"}
    assert (announced(scenario, "n1"), announced(scenario, "n2")) == (2, 0)


def test_a_primary_that_hears_the_other_again_announces_whatever_that_one_is_now() -> None:
    """It may have been primary meanwhile, and have stopped unheard."""
    scenario = pair()
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.cut_heartbeats()
    scenario.run(until=scenario.now + 10)
    scenario.order("n2", "stop")
    scenario.run(until=scenario.now + 5)
    scenario.join_heartbeats()
    scenario.run(until=scenario.now + 5)
    assert announced(scenario, "n1") == 0, "the other one is not heard at all"
    scenario.order("n2", "start")
    scenario.run(until=scenario.now + 10)
    assert announced(scenario, "n1") == 1


@pytest.mark.parametrize("command", ["restart", "swap", "stop"])
def test_nobody_announces_without_a_rival(command: str) -> None:
    scenario = pair()
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.order("n1", command)
    scenario.run(until=scenario.now + 10)
    assert (announced(scenario, "n1"), announced(scenario, "n2")) == (0, 0)


CHECKED = replace(
    PAIR,
    checks=(("both", ("tcp.new",)),),
    rules=module_rules(
        "all: if (tcp.* == down) then restart(); beats: if (heartbeat.* == down) then custom.lost=up;", ""
    ),
)


def test_a_rule_over_a_class_sees_only_what_is_configured() -> None:
    """The checker and the heartbeat had other names when the module ran the last time."""
    scenario = pair(CHECKED)
    left = {"tcp.old": "init", "tcp.older": "up", "heartbeat.old": "init", "custom.mine": "up", "custom.gone": "init"}
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND}, {"n1": left})
    heart = scenario.servers["n1"].heart
    assert heart is not None
    shown = {name for name in heart.resources if name.split(".")[0] in ("tcp", "heartbeat", "custom")}
    assert shown == {"tcp.new", "heartbeat.l0", "custom.mine"}
    scenario.set("n1", "tcp.new", "down")
    scenario.settle()
    assert "Action restart from failover rule all" in scenario.messages("n1"), "every tcp resource was down"
    scenario.power_off("n1")
    scenario.settle()
    heart = scenario.servers["n2"].heart
    assert heart is not None and heart.resources["custom.lost"] == "up", "rule beats: every heartbeat is down"


def test_what_was_configured_before_is_forgotten_at_a_start_too() -> None:
    """A module that stays on the bus while it is stopped: a stopstart, a start after a configuration."""
    scenario = pair(CHECKED)
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.set("n1", "ping.stranger", "down")
    scenario.order("n1", "stopstart")
    scenario.settle()
    heart = scenario.servers["n1"].heart
    assert heart is not None and "ping.stranger" not in heart.resources


def test_without_replication_no_memory_of_replicated_data_counts() -> None:
    """<rfs> was taken out of the configuration of a server whose data was out of date."""
    setup = replace(PAIR, rfs=False, rules=module_rules("old: if (rfs.uptodate == down) then wait();", ""))
    scenario = pair(setup)
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND}, {"n1": {"rfs.uptodate": "down"}})
    scenario.settle()
    assert scenario.states() == {"n1": "PRIM green", "n2": "SECOND green"}

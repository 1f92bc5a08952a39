"""Small promises of the core that a whole scenario shows: what it reads, when it announces the addresses, what it
proves before it believes it, and when it ends a degraded state."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heart.core.actions import Run, Scripts, Step, Vip
from heart.core.decide import Decision, decide, new_state
from heart.core.degraded import DELAY, TRIES
from heart.core.events import Born, Heard, Ordered, Proved, Replication, ResourceSet
from heart.core.values import ADDRESSES, VERDICT, Beat, Color, Command, Role, Setup
from heart.scenario import Scenario
from safekit.rules.order import module_rules
from safekit.rules.source import default_rules, default_text
from tests.t0_unit.scenarios import PAIR, pair


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


# --- adopted roles are proved


def ran(scenario: Scenario, node: str) -> list[str]:
    return [told.text for told in scenario.told if told.node == node and told.text.startswith("runs")]


def test_what_died_beside_the_application_is_made_again_beside_it() -> None:
    scenario = pair(CHECKED)
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.feed("n1", Proved(("vipd", "tcpcheck.new"), ("tcp.new",)))
    heart = scenario.servers["n1"].heart
    assert heart is not None and heart.resources["tcp.new"] == "init", "nobody sets it"
    scenario.run(until=scenario.now + 5)
    assert scenario.states() == {"n1": "PRIM green", "n2": "SECOND green"}
    assert heart is not scenario.servers["n1"].heart
    assert ran(scenario, "n1") == []
    assert "sets the virtual addresses" in [told.text for told in scenario.told if told.node == "n1"]


def test_a_primary_without_its_file_system_leaves_the_application_to_a_complete_secondary() -> None:
    scenario = pair()
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.feed("n1", Proved(("nfsbox", "nfsadmin"), data=True))
    scenario.feed("n2", Replication("secondary_lost"))
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "SECOND green", "n2": "PRIM green"}
    assert "Reason of failover: remote stop" in scenario.messages("n2")


def test_a_primary_without_its_file_system_and_without_a_secondary_starts_again() -> None:
    scenario = pair()
    scenario.begin({"n1": Role.ALONE, "n2": Role.STOP})
    scenario.feed("n1", Proved(("nfsbox", "nfsadmin"), data=True))
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "ALONE green", "n2": "off"}
    assert "runs transition, start_both, start_prim" in ran(scenario, "n1")


def test_a_secondary_without_its_file_system_is_synchronised_again() -> None:
    scenario = pair()
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.feed("n2", Proved(("nfsbox", "nfsadmin"), data=True))
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "PRIM green", "n2": "SECOND green"}
    assert "Local state WAIT magenta" in scenario.messages("n2")


def test_a_stop_wins_over_the_repair() -> None:
    scenario = pair()
    scenario.begin({"n1": Role.ALONE, "n2": Role.STOP})
    scenario.feed("n1", Proved(("nfsbox", "nfsadmin"), data=True))
    scenario.order("n1", "stop")
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "off", "n2": "off"}


def test_the_pair_is_not_broken_before_the_role_is_proved() -> None:
    """The secondary has lost the connection; whether there is a file system to go on with is about to be known."""
    values = {"state.local": "PRIM", "state.color": "green", "rfs.uptodate": "up", "rfs.paired": "up"}
    born = decide(new_state(PAIR, 7), Born(tuple(values.items()), True, True, unproved=True), 1.0).state
    lost = Beat("n2", 3, 1, role=Role.SECOND, color=Color.MAGENTA, sees=Role.PRIM, uptodate="up", stream_lost=True)
    heard = decide(born, Heard("l0", lost), 1.1).state
    assert (heard.role, heard.paired, heard.breaking) == (Role.PRIM, True, "")
    proved = decide(heard, Proved(), 1.2).state
    assert proved.breaking == "fence"


# --- degraded


def degraded_pair() -> Scenario:
    scenario = pair(replace(PAIR, rules=module_rules("d: if (remote.rfs.degraded == up) then wait();", "")))
    scenario.begin({"n1": Role.ALONE, "n2": Role.STOP}, {"n1": {"rfs.degraded": "up"}})
    return scenario


def test_a_degraded_primary_recovers_by_itself_when_the_other_one_waits_for_it() -> None:
    scenario = degraded_pair()
    scenario.run(until=scenario.now + 2 * DELAY)
    assert scenario.states()["n1"] == "ALONE green" and ran(scenario, "n1") == [], "nobody needs it"
    scenario.order("n2", "start")
    scenario.run(until=scenario.now + DELAY - 5)
    assert scenario.states() == {"n1": "ALONE green", "n2": "WAIT red"} and ran(scenario, "n1") == []
    scenario.run(until=scenario.now + 30)
    assert scenario.states() == {"n1": "PRIM green", "n2": "SECOND green"}
    assert any("(try 1 of 3)" in message for message in scenario.messages("n1"))


def test_a_file_system_that_dies_again_and_again_is_not_recovered_for_ever() -> None:
    scenario = degraded_pair()
    scenario.order("n2", "start")
    for _ in range(TRIES + 2):
        scenario.run(until=scenario.now + DELAY + 30)
        scenario.feed("n1", Replication("nfsbox_died"))
        scenario.feed("n1", ResourceSet("rfs.degraded", "up", "nfsadmin"))
    scenario.run(until=scenario.now + 2 * DELAY)
    tries = [message for message in scenario.messages("n1") if "stopped and started" in message]
    assert len(tries) == TRIES
    assert sum("stays degraded" in message for message in scenario.messages("n1")) == 1
    assert scenario.states()["n1"] == "ALONE green", "the application goes on"


# --- a server that the witness does not see


WITNESSED = replace(PAIR, witness="w", hurry=10.0, rules=module_rules("", default_text(default_rules())))
HURRIED = {"state.local": "PRIM", "state.color": "magenta", "state.command": "start", "splitbrain.uptodate": "down"}


def taken_up(setup: Setup, now: float) -> Decision:
    """A heart replaces the one that was stopping the application, 12 s after its last confirmed heartbeat."""
    left = {**HURRIED, "rfs.uptodate": "down", "rfs.paired": "up"} if setup.rfs else HURRIED
    born = Born(tuple(left.items()), adopt=True, gap=1.0, unproved=True, unconfirmed=12.0)
    return decide(new_state(setup, 5), born, now)


def effects(decision: Decision) -> list[Step]:
    """What is done, and is to be done."""
    return [a.effect for a in decision.actions if isinstance(a, Run)] + list(decision.state.plan)


@pytest.mark.parametrize("rfs", [False, True])
@pytest.mark.parametrize("again", ["", "forcestop"])
def test_a_heart_that_takes_up_a_hurried_stop_keeps_its_time(rfs: bool, again: str) -> None:
    """The other server counts on it: no start script, no address, and the stop scripts have what is left of their
    time, not all of it once more."""
    setup = replace(WITNESSED, rfs=rfs)
    left = setup.timeout + VERDICT + setup.hurry - 12.0
    decision = taken_up(setup, 100.0)
    if again:
        decision, left = decide(decision.state, Ordered(Command(again)), 101.0), left - 1.0
    found = effects(decision)
    calls = {call.name: step.within for step in found if isinstance(step, Scripts) for call in step.calls}
    assert not any(name.startswith("start_") for name in calls)
    assert Vip("set") not in found and Vip("unset", within=ADDRESSES) in found
    assert 0 < calls["stop_prim"] <= left + 1e-6


def test_a_primary_whose_rules_do_not_mind_the_witness_goes_on_when_its_heart_is_replaced() -> None:
    decision = taken_up(replace(WITNESSED, rfs=False, rules=()), 100.0)
    assert any(isinstance(step, Scripts) and step.calls[-1].name == "start_sec" for step in effects(decision))

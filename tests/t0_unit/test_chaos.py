"""The core of fault campaigns: a seed is a sequence of faults, and each audit finds what it is there to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lab.chaos import audits, rules
from lab.chaos.audits import Account, Answer, Lost, Sample, Seen
from lab.chaos.campaign import Wish, figures, summary
from lab.chaos.farm import Farm
from lab.chaos.faults import FARM, MIRROR, Cost, Fault, Kind, Step, cost, die, schedule, step, together_deaf
from lab.chaos.mirror import Mirror, protected, userconfig
from lab.chaos.rules import Look, Order, Settings

# The sequence of a seed


def names(steps: list[Step]) -> list[str]:
    return [fault.kind.name for each in steps for fault in each.faults]


def test_a_seed_is_a_sequence_and_another_seed_another_one() -> None:
    assert list(schedule(7, 200, MIRROR)) == list(schedule(7, 200, MIRROR))
    assert names(list(schedule(7, 200, MIRROR))) != names(list(schedule(8, 200, MIRROR)))


def test_a_step_does_not_depend_on_the_steps_before_it() -> None:
    steps = list(schedule(7, 200, MIRROR))
    assert list(islice(schedule(7, 10_000, MIRROR, begin=40), 20)) == steps[39:59]
    assert step(7, 83, MIRROR) == steps[82]


def test_a_schedule_has_as_many_faults_as_were_asked_for_and_all_kinds_come() -> None:
    for kinds in (MIRROR, FARM):
        done = names(list(schedule(1, 1500, kinds)))
        assert 1500 <= len(done) <= 1502
        total = sum(kind.weight for kind in kinds.values())
        for kind in kinds.values():
            expected = 1500 * kind.weight / total
            assert abs(done.count(kind.name) - expected) < 5 * expected**0.5 + 1, kind.name


def test_a_sequence_of_chosen_kinds_has_no_others() -> None:
    kinds = {name: MIRROR[name] for name in ("swap", "cut_all")}
    assert set(names(list(schedule(3, 50, kinds)))) == set(kinds)
    with pytest.raises(ValueError):
        list(schedule(3, 50, {}))


def test_dice_are_spread_over_the_whole_range() -> None:
    values = [die(5, "x", number) for number in range(2000)]
    assert min(values) >= 0 and max(values) < 1
    assert all(150 < sum(low <= value < low + 0.1 for value in values) < 250 for low in (0.0, 0.3, 0.6, 0.9))


def test_every_kind_can_be_done() -> None:
    for subject, kinds in ((Mirror, MIRROR), (Farm, FARM)):
        done = {name.removeprefix("_do_") for name in dir(subject) if name.startswith("_do_")}
        assert done == set(kinds)


# What a fault may cost


def fault(name: str, kinds: Any = MIRROR) -> Fault:
    return Fault(kinds[name], True, "short", (0.1, 0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    ("kinds", "witness", "allowed"),
    [
        (["kill_small"], False, Cost.NOTHING),
        (["poweroff_prim"], False, Cost.RESTART),
        (["kill_small", "config"], False, Cost.RESTART),
        (["freeze_server", "swap"], False, Cost.OVERLAP),
        (["cut_all"], False, Cost.SPLIT),
        (["cut_all"], True, Cost.RESTART),
        (["cut_all", "poweroff_prim"], False, Cost.SPLIT),
        (["block_flow", "cut_default"], False, Cost.SPLIT),
        (["block_flow", "cut_default"], True, Cost.RESTART),
        (["cut_flow", "block_flow"], False, Cost.RESTART),
    ],
)
def test_what_a_step_may_cost(kinds: list[str], witness: bool, allowed: Cost) -> None:
    assert cost([fault(name) for name in kinds], witness=witness) is allowed


def test_only_the_loss_of_every_network_is_a_split() -> None:
    assert together_deaf([fault("cut_flow"), fault("block_default")])
    assert not together_deaf([fault("cut_flow"), fault("block_flow"), fault("swap")])
    assert {name for name, kind in MIRROR.items() if kind.cost is Cost.SPLIT} == {"cut_all", "block_all"}


# One runner, one address


def look(time: float, *nodes: tuple[str, bool, int]) -> tuple[Sample, ...]:
    return tuple(
        Sample(time, f"node{number}", state, address, runner)
        for number, (state, address, runner) in enumerate(nodes, start=1)
    )


PAIR = look(1.0, ("PRIM green", True, 7), ("SECOND green", False, 0))
GONE = look(2.0, ("off", False, 0), ("ALONE magenta", False, 0))
MOVED = look(3.0, ("off", False, 0), ("ALONE green", True, 9))
BOTH = look(2.0, ("PRIM green", True, 7), ("ALONE green", True, 9))


def test_a_takeover_has_one_runner_all_the_time() -> None:
    assert audits.one_at_a_time([PAIR, GONE, MOVED], Cost.NOTHING, 0.0) == []


def test_two_runners_and_two_addresses_are_found() -> None:
    later = tuple(replace(sample, time=4.5) for sample in BOTH)
    found = audits.one_at_a_time([PAIR, BOTH, later, MOVED], Cost.RESTART, 9.0)
    assert len(found) == 2 and "node1 and node2 run the application" in found[0] and "2.50 s" in found[0]
    assert "hold the virtual address" in found[1]
    assert audits.one_at_a_time([PAIR, BOTH, later, MOVED], Cost.SPLIT, 0.0) == []
    assert audits.one_at_a_time([PAIR, BOTH, later, MOVED], Cost.OVERLAP, 3.0) == []
    assert len(audits.one_at_a_time([PAIR, BOTH, later, MOVED], Cost.OVERLAP, 2.0)) == 2


def test_each_overlap_is_counted_by_itself() -> None:
    again = tuple(replace(sample, time=9.0) for sample in BOTH)
    found = audits.overlaps([PAIR, BOTH, MOVED, again], "runner")
    assert [(each.begin, each.end) for each in found] == [(2.0, 2.0), (9.0, 9.0)]


def test_an_application_that_was_touched_is_found() -> None:
    restarted = look(2.0, ("PRIM green", True, 8), ("SECOND green", False, 0))
    assert audits.untouched(7, [PAIR, PAIR], "node1", Cost.NOTHING) == []
    assert "process 7 before" in audits.untouched(7, [PAIR, restarted], "node1", Cost.NOTHING)[0]
    assert audits.untouched(7, [PAIR, GONE], "node1", Cost.NOTHING)
    assert audits.untouched(7, [PAIR, restarted], "node1", Cost.RESTART) == []


def test_a_pair_is_protected_only_with_its_application_and_its_address() -> None:
    assert protected(PAIR)
    assert not protected(MOVED)
    assert not protected(look(1.0, ("PRIM green", True, 0), ("SECOND green", False, 0)))
    assert not protected(look(1.0, ("PRIM green", True, 7), ("SECOND green", True, 0)))
    assert not protected(look(1.0, ("PRIM green", True, 7), ("SECOND green", False, 9)))


# Nothing acknowledged is lost


OLD, NEW_HERE, NEW_THERE = Lost("J a 1", "node1", 90.0), Lost("J a 9", "node1", 101.0), Lost("J b 1", "node2", 102.0)
ASKED = Lost("P 1 4", "client", 103.0)


def test_a_lost_record_is_found_whatever_else_a_fault_may_cost() -> None:
    for allowed in (Cost.NOTHING, Cost.RESTART, Cost.OVERLAP):
        assert "1 acknowledged records are lost" in audits.nothing_lost([NEW_THERE], allowed, 100, "node1", "node1")[0]
    assert audits.nothing_lost([], Cost.NOTHING, 100, "node1", "node1") == []


def test_a_split_costs_what_one_side_acknowledged_meanwhile_and_no_more() -> None:
    def wrong(*lost: Lost) -> list[str]:
        return audits.nothing_lost(lost, Cost.SPLIT, 100.0, "node1", "node1")

    assert wrong(NEW_THERE, ASKED) == []
    assert wrong(OLD)  # both had it before
    assert wrong(NEW_HERE)  # the server that stays has lost something
    assert wrong(NEW_HERE, NEW_THERE)


def test_what_was_given_up_is_in_the_quarantine() -> None:
    assert audits.kept_in_quarantine(3, 1) == [] == audits.kept_in_quarantine(0, 0)
    assert audits.kept_in_quarantine(3, 0)


def test_trees_that_differ_are_found() -> None:
    tree: dict[str, object] = {"a": ["-rw", 1], "b": ["drwx"]}
    assert audits.equal(tree, dict(tree)) == []
    assert "b" in audits.equal(tree, {**tree, "b": ["drwxr"]})[0]
    assert "differ in 1 paths: c" in audits.equal(tree, {**tree, "c": []})[0]


# What a server says is what is


def said(state: str, color: str, remote: str = "SECOND", kind: str = "protected") -> dict[str, Any]:
    verdict = {"kind": kind, "reason": "why"}
    return {"state": state, "color": color, "remote_state": remote, "running": state != "STOP", "verdict": verdict}


ALL = frozenset({"heart", "nfsbox", "nfsadmin", "safesupervisord"})
PRIM = Seen(True, True, True, ALL)
SECOND = Seen(False, False, True, ALL)
STOPPED = Seen(False, False, False)


@pytest.mark.parametrize(
    ("state", "color", "seen"),
    [
        ("PRIM", "green", PRIM),
        ("ALONE", "green", PRIM),
        ("ALONE", "magenta", PRIM),
        ("SECOND", "green", SECOND),
        ("SECOND", "magenta", SECOND),
        ("WAIT", "red", replace(SECOND, mounted=False)),
        ("STOP", "red", STOPPED),
        ("UP", "green", PRIM),
    ],
)
def test_what_is_so_may_be_said(state: str, color: str, seen: Seen) -> None:
    assert audits.says_what_is("node1", said(state, color), seen) == []


@pytest.mark.parametrize(
    ("state", "color", "seen", "found"),
    [
        ("PRIM", "green", replace(PRIM, runner=False), "the application does not run"),
        ("ALONE", "green", replace(PRIM, address=False), "does not hold the virtual address"),
        ("ALONE", "green", replace(PRIM, mounted=False), "not mounted"),
        ("PRIM", "green", replace(PRIM, processes=ALL - {"nfsbox"}), "nfsbox does not run"),
        ("SECOND", "green", replace(SECOND, runner=True), "the application runs there"),
        ("SECOND", "green", replace(SECOND, address=True), "holds the virtual address"),
        ("SECOND", "green", replace(SECOND, mounted=False), "not mounted"),
        ("WAIT", "red", replace(SECOND, runner=True), "the application runs there"),
        ("WAIT", "red", STOPPED, "heart does not run"),
        ("STOP", "red", replace(STOPPED, mounted=True), "is mounted"),
        ("STOP", "red", replace(STOPPED, processes=frozenset({"nfsbox"})), "processes of the module run: nfsbox"),
        ("UP", "green", replace(PRIM, runner=False), "the application does not run"),
    ],
)
def test_what_is_not_so_is_found(state: str, color: str, seen: Seen, found: str) -> None:
    assert any(found in line for line in audits.says_what_is("node1", said(state, color), seen))


def test_the_verdicts_of_a_pair_agree_with_both_states() -> None:
    good = {"node1": said("PRIM", "green"), "node2": said("SECOND", "green", "PRIM")}
    alone = {"node1": said("ALONE", "green", "UNKNOWN", "degraded"), "node2": said("STOP", "red", "UNKNOWN", "stopped")}
    assert audits.verdict_fits(good, True) == [] == audits.verdict_fits(alone, True)
    assert audits.verdict_fits({"node1": said("ALONE", "green", "UNKNOWN", "protected")}, False)
    assert audits.verdict_fits({**good, "node2": said("SECOND", "green", "PRIM", "degraded")}, True)
    assert audits.verdict_fits({**good, "node2": said("SECOND", "green", "ALONE")}, True)
    assert audits.verdict_fits({"node1": said("ALONE", "green", "UNKNOWN", "stopped")}, True)


def test_a_traceback_in_a_log_is_found() -> None:
    assert audits.no_traceback({"heart.log": "all is well\n"}) == []
    assert "heart.log: Traceback (most" in audits.no_traceback({"heart.log": "x\nTraceback (most recent ...\n"})[0]


def test_a_recovery_that_takes_too_long_is_found() -> None:
    assert audits.in_time("the recovery", 5.0, 6.0) == []
    assert "took 7.0 s" in audits.in_time("the recovery", 7.0, 6.0)[0]


# Farms


def test_each_bucket_has_one_owner() -> None:
    third = (1 << 85) - 1
    shares = {"node1": [third], "node2": [third << 85], "node3": [((1 << 86) - 1) << 170]}
    assert audits.one_owner(shares, list(shares)) == []
    assert "85 buckets have no owner" in audits.one_owner({**shares, "node2": [0]}, list(shares))[0]
    assert "several owners" in audits.one_owner({**shares, "node2": [third << 84]}, list(shares))[0]
    assert audits.one_owner({"node1": [(1 << 256) - 1]}, ["node1", "node2"])


def test_a_farm_at_rest_serves_everybody() -> None:
    nodes = ["node1", "node2"]
    answers = [Answer(float(n), 0.1, nodes[n % 2]) for n in range(60)]
    assert audits.served(answers, nodes) == []
    assert "1 of 61 connections failed" in audits.served([*answers, Answer(9, 2.0, "!TimeoutError")], nodes)[0]
    assert "node2 answered" in audits.served(answers, ["node1"])[0]
    assert "node3 got none" in audits.served(answers, [*nodes, "node3"])[0]


# What is expected


def test_bounds_follow_the_configuration() -> None:
    base = Settings()
    bounds: tuple[Callable[[Settings], float], ...] = (rules.detection, rules.recovery, rules.takeover)
    for bound in bounds:
        assert bound(replace(base, timeout=base.timeout + 20)) > bound(base)
        assert bound(replace(base, witness=True)) > bound(base) + 5
    assert rules.recovery(base, 3) > rules.recovery(base, 2) > rules.recovery(base)
    assert rules.overlap(replace(base, forcestop=60)) > rules.overlap(base)
    assert rules.farm_recovery(1.0, 8) > rules.farm_recovery(0.2, 8)


def test_what_an_administrator_does() -> None:
    servers = {"node1": Look("off"), "node2": Look("ALONE green")}
    assert rules.repairs(servers) == {"node1": Order.POWERON}
    assert rules.repairs({"node1": Look("STOP red"), "node2": Look("WAIT red")}) == {"node1": Order.START}
    assert rules.repairs({"node1": Look("ALONE green", degraded=True)}) == {"node1": Order.STOP}
    assert rules.repairs({"node1": Look("PRIM green"), "node2": Look("SECOND magenta")}) == {}


def test_the_configuration_of_a_campaign_is_one() -> None:
    from lxml import etree

    text = userconfig(Settings(), "10.88.1.50", 'async="none"', witness="10.88.1.200")
    root = etree.fromstring(text.encode())
    assert root.find("service/heart").get("timeout") == "2000"
    assert root.find("service/check/splitbrain").get("arg") == "10.88.1.200"


def test_the_longest_pause_counts_both_ends() -> None:
    assert audits.longest_gap([1.0, 2.0, 7.0], 0.5, 8.0) == 5.0
    assert audits.longest_gap([], 2.0, 6.0) == 4.0


# The account


def test_accounts_of_labs_are_added_up_and_told() -> None:
    one = Account({"swap": 2}, steps=2, faults=2, records=10, recoveries=[1.0, 3.0], gaps={"swap": 1.0}, seconds=5)
    two = Account({"swap": 1, "loss": 1}, steps=1, faults=2, recoveries=[9.0], gaps={"swap": 2.5}, findings=["seed 4"])
    one.add(two)
    data = figures(Wish(3, 4, labs=2), one, [])
    assert data["kinds"] == {"loss": 1, "swap": 3} and data["longest_pause_seconds"] == {"swap": 2.5}
    assert data["recovery_seconds"]["median"] == 3.0 and data["recovery_seconds"]["longest"] == 9.0
    text = "\n".join(summary(data))
    assert "4 faults in 3 steps" in text and "FOUND seed 4" in text and "swap" in text


def test_kinds_say_what_they_are() -> None:
    for kind in (*MIRROR.values(), *FARM.values()):
        assert isinstance(kind, Kind) and len(kind.told) > 3 and kind.weight > 0


def test_the_page_has_the_table_of_what_a_fault_may_cost() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/lab.md").read_text(encoding="utf-8")
    for allowed in Cost:
        kinds = ", ".join(f"`{kind.name}`" for kind in MIRROR.values() if kind.cost is allowed)
        assert f"| {kinds} | {allowed.value} |" in page, allowed

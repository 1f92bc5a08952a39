"""Who may be alone, and when: rules about waking, doubt and the witness, each broken on purpose and found.

The schedules of mirror_schedules have pairs with a witness that only one side sees (kinds 10 and 11), and servers
whose interface is watched (11 to 13).
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from heart.core import alone, hearing, pairing, plans, witness
from heart.core.actions import Step
from heart.core.state import State
from heart.core.turn import CONDITIONS, Turn
from heart.core.values import Color, Role
from tests.t1_simulation import mirror_schedules as may
from tests.t1_simulation.mirror_parts import Options, Violation
from tests.t1_simulation.mirror_schedules import Kind, found, run, seeds_of
from tests.t1_simulation.mirror_world import World

COUNT = int(os.environ.get("SAFEKIT_WITNESS_SCHEDULES", "300"))
WITNESS, CABLE, ORDERS = 10, 12, 8


FAULTS: dict[str, tuple[int, tuple[Kind, ...]]] = {
    "isolated": (WITNESS, (may.isolate, may.isolate_one_way, may.crash, may._kill_heart, may._command)),
    "unplugged": (CABLE, (may.unplug, may.unplug, may.crash, may._command)),
    "killed": (ORDERS, (may.freeze, may.crash, may._kill_module)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_schedules_of_a_few_kinds_keep_the_invariants(name: str) -> None:
    kind, kinds = FAULTS[name]
    for seed in seeds_of(kind, COUNT // len(FAULTS)):
        try:
            run(seed, kinds=kinds)
        except AssertionError as error:
            pytest.fail(f"schedule {seed} of {name}: {error}", pytrace=False)


def test_finds_a_server_that_wakes_and_decides_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """M0: what was silent before counts for a server whose cable has just come back."""
    monkeypatch.setattr(hearing, "listen_again", lambda t: None)
    assert "M0" in found(seeds_of(CABLE, 200), (may.unplug,))


def test_finds_a_server_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """M0: silence counts before this server has listened for a time-out."""
    monkeypatch.setattr(Turn, "listened", lambda self: True)
    assert "M0" in found(seeds_of(CABLE, 200), (may.unplug,))


def test_no_way_into_alone_passes_the_guard() -> None:
    world = World(0, Options())
    world.power_on("A")
    world.order("A", "prim")
    heart = world.servers["A"].heart
    assert heart is not None and heart.role is Role.WAIT
    turn = Turn(heart.copy(), world.now)
    with pytest.raises(AssertionError, match="past its guard"):
        turn.become(Role.ALONE, Color.MAGENTA)
    with pytest.raises(AssertionError, match="without proof"):
        alone.enter(turn, Color.MAGENTA, alone.Evidence.SILENCE)


def test_finds_a_server_that_left_and_does_not_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It left the application by a rule, the other one served and died: its data is not the newest."""
    monkeypatch.setattr(alone, "in_doubt", lambda s: False)
    assert "doubt" in found(seeds_of(CABLE, 200), (may.unplug, may.crash))


def test_finds_a_former_primary_that_is_one_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """M7: it stopped and started again beside the one that took over, and counts as if it had never stopped."""
    real: Callable[[State], str] = alone.rival
    monkeypatch.setattr(alone, "rival", lambda s: "none" if real(s) == "possible" else real(s))
    kinds = (may.cut_both_ways, may.cut_both_ways, may._command, may.crash)
    assert "M7" in found(seeds_of(2, 1500), kinds)


def test_finds_a_winner_that_does_not_wait_for_the_loser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "_wait_for_the_loser", lambda t: None)
    assert "witness" in found(seeds_of(WITNESS, 200), (may.isolate,))


def test_finds_a_loser_that_counts_from_what_it_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other server may hear nothing of it for long while its own heartbeats still arrive."""
    monkeypatch.setattr(Turn, "cut_off", lambda self: False)
    assert "witness" in found(seeds_of(WITNESS, 200), (may.isolate_one_way,))


def test_finds_a_loser_that_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def kindly(role: Role, action: str, within: float) -> tuple[Step, ...]:
        return plans.leave(role, action)

    monkeypatch.setattr(plans, "leave_hurriedly", kindly)
    assert "witness" in found(seeds_of(WITNESS, 200), (may.isolate,))


def test_without_waiting_for_the_verdict_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turn, "undecided", lambda self: False)
    assert "witness" in found(seeds_of(WITNESS, 200), (may.isolate,))


def test_finds_a_primary_in_doubt_that_goes_on_without_replication(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module was killed just after it had stood still: the other one may have served meanwhile."""
    monkeypatch.setitem(CONDITIONS, pairing.pair_settled.__name__, lambda t: not t.s.breaking)
    assert "acknowledged writes" in found(seeds_of(ORDERS, 200), (may.freeze, may.freeze, may.crash, may._kill_module))


def test_violations_are_assertions() -> None:
    """`found` sees both what the simulation looks at and what the core asserts itself."""
    assert issubclass(Violation, AssertionError)

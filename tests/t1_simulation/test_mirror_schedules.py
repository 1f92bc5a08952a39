"""Thousands of random schedules for the mirror automaton, with the invariants of docs/invariants.md as assertions.

The number of schedules is SAFEKIT_SCHEDULES (1,500 by default, .ci/run plays 2,500, a longer campaign asks for more;
rules that are broken on purpose have seeds of their own), the first seed SAFEKIT_SEED.  A failing seed prints how to
replay it:

    python -m tests.t1_simulation.mirror_schedules SEED
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from heart.core import alone, doubt, hearing, news, pairing, running, waiting
from heart.core.decide import _HANDLERS, Decision, deadline
from heart.core.events import Born
from heart.core.state import State
from heart.core.turn import CONDITIONS, Turn
from tests.t1_simulation.mirror_judge import Judge
from tests.t1_simulation.mirror_schedules import crash, crash_both, cut_both_ways, found, freeze, run
from tests.t1_simulation.mirror_world import World

COUNT = int(os.environ.get("SAFEKIT_SCHEDULES", "1500"))
FIRST = int(os.environ.get("SAFEKIT_SEED", "0"))
SLICES = 10
TRACE_LINES = 120
STANDING_STILL = (freeze, crash, cut_both_ways)


def replay(seed: int) -> str:
    """The end of the trace of a schedule."""
    lines: list[str] = []
    try:
        run(seed, lines.append)
    except Exception as error:
        lines.append(f"{type(error).__name__}: {error}")
    return "\n".join(lines[-TRACE_LINES:])


def campaign(first: int, count: int) -> None:
    for seed in range(first, first + count):
        try:
            run(seed)
        except Exception as error:
            pytest.fail(
                f"schedule {seed}: {type(error).__name__}: {error}\n"
                f"replay: python -m tests.t1_simulation.mirror_schedules {seed}\n{replay(seed)}",
                pytrace=False,
            )


@pytest.mark.parametrize("part", range(SLICES))
def test_schedules_keep_the_invariants(part: int) -> None:
    size = max(COUNT // SLICES, 1)
    campaign(FIRST + part * size, size)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_long_campaign(part: int) -> None:
    campaign(1_000_000 + part * 10_000, 10_000)


@pytest.mark.slow
def test_long_campaign_of_servers_that_stand_still() -> None:
    assert found(range(5000), STANDING_STILL) == ""


def test_a_seed_replays_exactly() -> None:
    for seed in (3, 8, 17):
        assert replay(seed) == replay(seed)


def test_no_heart_asks_to_be_woken_for_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be woken again and again, and burn a processor for as long as a wait lasts."""
    real = Judge.check_told

    def check(judge: Judge, name: str, before: State, decision: Decision) -> None:
        real(judge, name, before, decision)
        assert deadline(decision.state) > judge.world.now, f"{name}, {decision.state.role}, at {judge.world.now:.2f}"

    monkeypatch.setattr(Judge, "check_told", check)
    for seed in range(45):
        run(seed)


# -- rules broken on purpose: each must be found


def test_finds_that_the_peer_was_not_told_before_writes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """M3: the primary does not wait until the peer knows that it is out of date."""
    monkeypatch.setattr(pairing, "peer_is_fenced", lambda t: True)
    assert "M3" in found(range(1500))


def test_finds_an_unexpected_halt_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that crashed in a pair calls itself up to date."""
    real = news.on_born

    def forgetful(t: Turn, event: Born) -> None:
        real(t, Born(event.resources, halted=False, adopt=event.adopt))

    monkeypatch.setitem(_HANDLERS, Born, forgetful)
    assert "acknowledged writes" in found(range(1500))


def test_finds_a_primary_without_a_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    """M1: two waiting servers that hear each other both become primary."""
    real: Callable[[Turn], bool] = waiting.settle

    def hasty(t: Turn) -> bool:
        s = t.s
        if s.listening and s.intent and s.uptodate and t.peer_role.value == "WAIT":
            return waiting.become_alone(t, alone.Evidence.SILENCE)
        return real(t)

    monkeypatch.setattr(waiting, "settle", hasty)
    monkeypatch.setattr(alone, "proved", lambda t, evidence: True)
    # Two servers wait at the same time, both with good data, after both had no power: there is no other fault.
    # The one of a thousand schedules in which they meet is another one with each change of the core.
    assert "M1" in found(range(1200, 2500), (crash_both,))


def test_finds_a_secondary_that_takes_over_with_old_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """M2: a secondary in the middle of its reintegration becomes primary."""
    take_over: Any = running._take_over
    monkeypatch.setattr(running, "_primary_gone", lambda t, why: take_over(t, why))
    assert "M2" in found(range(1500))


def test_finds_a_swap_without_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """M1: the new primary does not wait for the old one."""
    monkeypatch.setitem(CONDITIONS, "swap_released", lambda t: True)
    assert "M1" in found(range(1500))


def test_finds_a_server_that_trusts_its_data_after_a_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh time-out is all that a server that stood still gives its peer."""
    assert found(range(250), STANDING_STILL) == ""
    monkeypatch.setattr(hearing, "doubt", lambda t, seconds: None)
    assert "acknowledged writes" in found(range(1500), STANDING_STILL)


def test_finds_a_primary_that_overlooks_that_it_was_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood still; the other one went on alone, acknowledged, and stops when it is heard again."""

    def left(world: World) -> None:
        seconds = world.random.uniform(6.0, 10.0)
        world.freeze("A", seconds)
        world.at(seconds - world.random.uniform(0.0, 1.0), lambda: world.order("B", "stop"))

    monkeypatch.setattr(doubt, "left_behind", lambda s, peer: False)
    assert "acknowledged writes" in found(range(100), (left,))

"""What heart tells monitoring: lost heartbeats, take-overs and their time."""

from __future__ import annotations

import math

import pytest

from heart.core.values import Color, Role
from heart.shell.figures import Arrivals, TakeOvers
from nfsbox.pair.latency import BOUNDS, Latency


def test_heartbeats_that_did_not_come_are_counted() -> None:
    link = Arrivals(0.7)
    for number in range(100):
        if number not in (50, 51, 80):
            link.note(0.7 * number)
    told = link.told(0.7 * 99 + 0.3, refused=4)
    assert (told["received"], told["lost"], told["refused"]) == (97, 3, 4)
    assert told["age"] == pytest.approx(0.3, abs=0.001) and told["jitter"] == pytest.approx(0, abs=1e-6)
    assert Arrivals(0.7).told(5.0, 0)["age"] is None, "nothing was heard yet"


def test_jitter_is_the_mean_deviation_from_the_pulse() -> None:
    link = Arrivals(1.0)
    now = 0.0
    for number in range(400):
        now += 1.1 if number % 2 else 0.9
        link.note(now)
    assert link.lost == 0 and link.told(now, 0)["jitter"] == pytest.approx(0.1, rel=0.05)


def test_a_take_over_is_timed_from_the_last_sign() -> None:
    seen = TakeOvers()
    for role, color, heard, now in (
        (Role.WAIT, Color.MAGENTA, 0.0, 1.0),
        (Role.SECOND, Color.MAGENTA, 2.0, 2.0),
        (Role.SECOND, Color.GREEN, 9.5, 9.6),
        (Role.ALONE, Color.MAGENTA, 100.0, 102.0),
        (Role.ALONE, Color.MAGENTA, 100.0, 102.5),
        (Role.ALONE, Color.GREEN, 100.0, 104.5),
        (Role.PRIM, Color.GREEN, 200.0, 200.0),
    ):
        seen.note(role, color, heard, now, 1e9 + now)
    told = seen.told()
    assert told == {
        "role_changes": 4, "failovers": 1, "last_failover_seconds": 4.5, "last_failover_at": 1e9 + 104.5
    }  # fmt: skip


def test_a_take_over_that_fails_is_none() -> None:
    seen = TakeOvers()
    seen.note(Role.SECOND, Color.GREEN, 1.0, 1.0, 1.0)
    seen.note(Role.ALONE, Color.MAGENTA, 1.0, 5.0, 5.0)
    seen.note(Role.STOP, Color.RED, 1.0, 6.0, 6.0)
    seen.note(Role.ALONE, Color.GREEN, 1.0, 7.0, 7.0)
    assert seen.told() == {"role_changes": 4, "failovers": 0}


def test_the_histogram_holds_every_wait_once() -> None:
    latency = Latency()
    for bound in BOUNDS:
        latency.note(bound)
    latency.note(99.0)
    told = latency.told()
    assert told["counts"] == [1] * (len(BOUNDS) + 1) and math.isclose(told["sum"], sum(BOUNDS) + 99)

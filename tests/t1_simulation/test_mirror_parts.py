"""Servers that do not fit each other, roles whose parts have died, waits that say nothing: rules about them, broken on
purpose and found."""

from __future__ import annotations

import os

import pytest

from heart.core import fitting, parts, waiting
from heart.core.decide import _HANDLERS
from heart.core.events import Proved
from heart.core.turn import Turn
from tests.t1_simulation import mirror_schedules as may
from tests.t1_simulation.mirror_schedules import UNLIKE, Kind, found, run, seeds_of
from tests.t1_simulation.mirror_world import World

COUNT = int(os.environ.get("SAFEKIT_PARTS_SCHEDULES", "24"))
ORDERS, CABLE = 0, 12
UNLIKE_FAULTS: tuple[Kind, ...] = (may.configure, may.configure, may.crash, may._command)
KILLS: tuple[Kind, ...] = (may._kill_module, may._kill_module, may.crash, may._command)


@pytest.mark.parametrize(
    ("kind", "kinds"), [(UNLIKE, UNLIKE_FAULTS), (ORDERS, KILLS)], ids=["other addresses", "all processes killed"]
)
def test_schedules_of_a_few_kinds_keep_the_invariants(kind: int, kinds: tuple[Kind, ...]) -> None:
    for seed in seeds_of(kind, COUNT // 2):
        try:
            run(seed, kinds=kinds)
        except AssertionError as error:
            pytest.fail(f"schedule {seed}: {error}", pytrace=False)


def _leave_in_doubt(world: World) -> None:
    """The cable of A is out for so long that it leaves the application; the other one dies before it is heard again."""
    world.unplug("A", 12.0)
    world.at(11.5, lambda: world.power_off("B") if world.chaos else None)


def _kill_alone(world: World) -> None:
    """B has no power, and all processes of A die."""
    world.power_off("B")
    world.at(8.0, lambda: world.kill_module("A") if world.chaos else None)


def test_finds_a_pair_of_servers_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "unfit", lambda t: ())
    assert "M8" in found(seeds_of(UNLIKE, 100), UNLIKE_FAULTS)


def test_finds_a_role_that_is_adopted_without_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system of the role died with all processes, and nobody asks for it."""

    def believing(t: Turn, event: Proved) -> None:
        parts.on_proved(t, Proved())

    monkeypatch.setitem(_HANDLERS, Proved, believing)
    assert "PRIM" in found(seeds_of(ORDERS, 20), (_kill_alone,))


def test_finds_a_wait_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in doubt looks as one that is about to start."""

    def silent(t: Turn) -> bool:
        t.s.blocked = ""
        return waiting.unblocked_color(t)

    monkeypatch.setattr(waiting, "_doubtful", silent)
    assert "does not say what for" in found(seeds_of(CABLE, 20), (_leave_in_doubt,))

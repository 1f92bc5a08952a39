"""A pair with a split-brain witness that only one side sees when the networks fail: never two ALONE (guide 13.17).

The schedules crash servers, kill hearts, break streams, give commands, and cut everything between the servers
for a while. The witness stays on one side. Without its verdict the same schedules do show two ALONE, so the
assertion can fail.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from heart.core.actions import Effect, Witness
from heart.core.turn import Turn
from heart.core.values import Role, Setup
from tests.t1_simulation import mirror_schedules as kinds
from tests.t1_simulation.mirror_world import Options, Violation, World

COUNT = int(os.environ.get("SAFEKIT_WITNESS_SCHEDULES", "400"))
FAULTS = (kinds.crash, kinds._short_freeze, kinds._kill_heart, kinds._stream, kinds._command)


class WitnessWorld(World):
    """A pair with a witness; see the module's docstring."""

    def __init__(self, seed: int, options: Options, trace: Any = None) -> None:
        super().__init__(seed, options, trace)
        self.side = self.random.choice("AB")
        self.isolated = False

    def setup(self, name: str) -> Setup:
        return replace(super().setup(name), witness="w")

    def _carry_out(self, name: str, effect: Effect) -> bool:
        if isinstance(effect, Witness):
            return not self.isolated or name == self.side
        return super()._carry_out(name, effect)

    def feed(self, name: str, event: Any) -> None:
        super().feed(name, event)
        # one that waits for the verdict, or leaves after it, is still paired: it acknowledges nothing alone
        hearts = [s.heart for s in self.servers.values() if s.heart is not None]
        if [h.role for h in hearts if not h.paired] == [Role.ALONE, Role.ALONE]:
            raise Violation("both servers are ALONE")

    def isolate(self) -> None:
        """Cut everything between the servers for a while."""
        seconds = self.random.uniform(1.0, 20.0)
        self.say("-", f"== isolated for {seconds:.1f} s, the witness is with {self.side}")
        self.isolated = True
        for wire in self.wires.values():
            wire.cut = True
        self.part(seconds)
        self.at(seconds, self.heal)

    def heal(self) -> None:
        """Everything is connected again."""
        self.say("-", "== healed")
        self.isolated = False
        for wire in self.wires.values():
            wire.cut = False


def run(seed: int, trace: Any = None) -> WitnessWorld:
    """One schedule."""
    world = WitnessWorld(seed, Options(faults=False), trace)
    world.chaos = False
    for name in "AB":
        world.power_on(name)
    world.order("A", "prim")
    world.run_until(7.0)
    world.order("B", "second")
    world.run_until(15.0)
    world.check_settled()
    world.forced = False
    for _ in range(world.random.randint(1, 3)):
        world.at(world.random.uniform(0.0, 45.0), world.isolate)
    for _ in range(world.random.randint(0, 3)):
        kind = world.random.choice(FAULTS)
        world.at(world.random.uniform(0.0, 45.0), lambda kind=kind: kind(world))  # type: ignore[misc]
    world.run_until(80.0)
    kinds._peace(world)
    world.heal()
    for _ in range(30):
        world.run_until(world.now + 3.0)
        for name, server in world.servers.items():
            if server.heart is None and server.powered:
                world.order(name, "start")
        if settled(world):
            break
    # what is still under way must leave it so
    world.run_until(world.now + 3.0)
    world.check_settled()
    return world


def settled(world: World) -> bool:
    """Both servers have come to rest as a pair."""
    try:
        world.check_settled()
    except Violation:
        return False
    return True


def campaign(seeds: range) -> None:
    """None of these schedules shows two ALONE."""
    for seed in seeds:
        try:
            run(seed)
        except Exception as error:
            lines: list[str] = []
            try:
                run(seed, lines.append)
            except Exception as again:
                lines.append(repr(again))
            tail = "\n".join(lines[-100:])
            pytest.fail(f"schedule {seed}: {type(error).__name__}: {error}\n{tail}", pytrace=False)


def test_never_two_alone() -> None:
    campaign(range(COUNT))


@pytest.mark.slow
def test_long_campaign() -> None:
    campaign(range(100_000, 110_000))


def test_without_waiting_for_the_verdict_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turn, "undecided", lambda self: False)
    monkeypatch.setattr(Turn, "lost", Turn.silent)
    found = ""
    for seed in range(60):
        try:
            run(seed)
        except Violation as violation:
            found = str(violation)
            break
    assert found == "both servers are ALONE"

"""Membership under random loss, cuts (also one-way), restarts, sleeps and several lans, on a virtual clock.

A schedule is a function of its seed: a failing seed replays exactly. After each storm the network keeps the
cuts it has, stops losing messages, and the invariants are checked once the bound has passed:

- every live server's view is its connected component (links that work both ways, over any lan);
- equal components have equal leaders, and the leader is a member;
- a server that only overslept has dropped nobody.
"""

from __future__ import annotations

import heapq
import os
import random
from dataclasses import dataclass, field

import pytest

from safekit.wire.membership import Cause, Membership, Pulse, Rules, bits, component

PULSE = 1.0
SEEDS = int(os.environ.get("SAFEKIT_MEMBERSHIP_SEEDS", "2500"))
PARTS = 3
"""Processes share them."""


@dataclass
class World:
    """A network of lans, each with its directed cuts, and the servers on it."""

    seed: int
    nodes: int
    lans: int
    factory: type[Membership] = Membership
    loss: float = 0.0
    now: float = 0.0
    lives: int = 0
    sent: int = 0
    servers: list[Membership | None] = field(default_factory=list)
    asleep: list[float] = field(default_factory=list)
    queue: list[tuple[float, int, str, int, Pulse | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.cut: set[tuple[int, int, int]] = set()
        self.counter = 0
        self.servers = [None] * self.nodes
        self.asleep = [0.0] * self.nodes
        self.wakes = [-1.0] * self.nodes
        self.skew = [self.random.randint(0, 5) for _ in range(self.nodes)]
        self.mlost = self.random.randint(2, 5)
        self.slost = self.random.randint(2, 5)
        for node in range(self.nodes):
            self.boot(node)

    def push(self, at: float, kind: str, node: int, pulse: Pulse | None = None) -> None:
        self.counter += 1
        heapq.heappush(self.queue, (at, self.counter, kind, node, pulse))

    def boot(self, node: int) -> None:
        self.lives += 1
        # Lives of one server are numbered upwards; clocks of different servers disagree.
        incarnation = self.skew[node] + self.lives
        rules = Rules(self.nodes, node, PULSE, self.mlost, self.slost)
        self.servers[node] = self.factory(rules, incarnation, self.now)
        self.wake(node, self.now + self.random.random() * PULSE)

    def wake(self, node: int, at: float) -> None:
        """One timer a server: a new time replaces the one before."""
        if self.wakes[node] != at:
            self.wakes[node] = at
            self.push(at, "tick", node)

    def halt(self, node: int) -> None:
        self.servers[node] = None

    def sleep(self, node: int, duration: float) -> None:
        self.asleep[node] = max(self.asleep[node], self.now + duration)

    def run(self, until: float) -> None:
        while self.queue and self.queue[0][0] <= until:
            at, _, kind, node, pulse = heapq.heappop(self.queue)
            self.now = max(self.now, at)
            server = self.servers[node]
            if server is None:
                continue
            if self.asleep[node] > self.now:
                # A sleeping process keeps its socket buffer and its timer; a few of the messages fit.
                if kind == "tick":
                    if at == self.wakes[node]:
                        self.wake(node, self.asleep[node])
                elif self.random.random() < 0.5:
                    self.push(self.asleep[node], kind, node, pulse)
            elif pulse is not None:
                server.receive(pulse, self.now)
                self.wake(node, max(self.now, server.next_wakeup()))
            elif at == self.wakes[node]:
                self.tick(node, server)
        self.now = until

    def tick(self, node: int, server: Membership) -> None:
        pulse = server.tick(self.now)
        assert node in server.view and server.view.leader in server.view
        self.wake(node, server.next_wakeup())
        if pulse is None:
            return
        self.sent += 1
        for peer in range(self.nodes):
            for lan in range(self.lans):
                if peer != node and (node, peer, lan) not in self.cut and self.random.random() >= self.loss:
                    self.push(self.now + self.random.random() * 0.02 * PULSE, "message", peer, pulse)

    def works(self, source: int, target: int) -> bool:
        return any((source, target, lan) not in self.cut for lan in range(self.lans))

    def expected(self, node: int) -> int:
        hears = [0] * self.nodes
        for here in range(self.nodes):
            for there in range(self.nodes):
                alive = self.servers[here] is not None and self.servers[there] is not None
                if here != there and alive and self.works(there, here):
                    hears[here] |= 1 << there
        return component(node, hears)

    def bound(self) -> float:
        """Silence noticed by its neighbour, then told along the longest path, a period a step."""
        return (max(self.mlost, self.slost) + 2 + self.nodes) * PULSE

    def check(self) -> None:
        for node, server in enumerate(self.servers):
            if server is None:
                continue
            assert server.view.members == self.expected(node), (
                f"seed {self.seed}: node {node} sees {server.view.nodes()}, expected {tuple(bits(self.expected(node)))}"
            )
            for other in server.view.nodes():
                peer = self.servers[other]
                assert peer is not None and peer.view.leader == server.view.leader, f"seed {self.seed}: two leaders"


def storm(world: World) -> None:
    """Some periods of faults, then time to settle with the cuts that remain, then the invariants."""
    draw = world.random
    for _ in range(draw.randint(1, 3)):
        world.loss = draw.choice((0.0, 0.0, 0.1, 0.4))
        for _ in range(draw.randint(1, 4)):
            node = draw.randrange(world.nodes)
            fault = draw.randrange(6)
            if fault == 0:
                world.halt(node)
            elif fault == 1 and world.servers[node] is None:
                world.boot(node)
            elif fault == 2:
                world.halt(node)
                world.boot(node)
            elif fault == 3:
                world.sleep(node, draw.random() * 10 * PULSE)
            elif fault == 4:
                peer, lan = draw.randrange(world.nodes), draw.randrange(world.lans)
                world.cut.add((node, peer, lan))
                if draw.random() < 0.5:
                    world.cut.add((peer, node, lan))
            else:
                world.cut.clear()
            world.run(world.now + draw.random() * 2 * PULSE)
    world.loss = 0.0
    world.run(max(world.now, *world.asleep) + world.bound())
    world.check()


SMALL = (2, 2, 2, 3, 3, 4, 5)
LARGE = (6, 8, 12, 16, 24, 32)
LARGE_SEEDS = int(os.environ.get("SAFEKIT_MEMBERSHIP_LARGE_SEEDS", "24"))


def play(seed: int, factory: type[Membership] = Membership, sizes: tuple[int, ...] = SMALL) -> World:
    draw = random.Random(seed)
    nodes = draw.choice(sizes)
    world = World(seed, nodes, draw.choice((1, 1, 2)), factory)
    world.run(world.bound())
    world.check()
    for _ in range(2):
        storm(world)
    return world


@pytest.mark.parametrize("part", range(PARTS))
def test_random_schedules_converge_to_equal_views_with_one_leader(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        play(seed)


@pytest.mark.parametrize("nodes", LARGE)
def test_random_schedules_of_large_clusters(nodes: int) -> None:
    for seed in range(LARGE_SEEDS // len(LARGE)):
        play(seed, sizes=(nodes,))


def test_a_schedule_is_a_function_of_its_seed() -> None:
    first, second = play(77), play(77)
    assert (first.now, first.sent, first.counter) == (second.now, second.sent, second.counter)


class OneWayIsEnough(Membership):
    """Broken on purpose: takes whoever is heard for a member, although it may not hear us."""

    def _adopt_view(self, now: float) -> None:
        super()._adopt_view(now)
        self.view = type(self.view)(self.view.number, self.view.members | self.heard, self.view.leader)

    def _pulse(self) -> Pulse:
        view = self.view
        self.view = type(view)(view.number, component(self.rules.me, self._hears), view.leader)
        pulse = super()._pulse()
        self.view = view
        return pulse


class NeverForgets(Membership):
    """Broken on purpose: silence means nothing."""

    def _judge_silences(self, now: float) -> None:
        pass


class EveryoneLeads(Membership):
    """Broken on purpose: each server leads its own view."""

    def _adopt_view(self, now: float) -> None:
        super()._adopt_view(now)
        self.view = type(self.view)(self.view.number, self.view.members, self.rules.me)


class TellsNothing(Membership):
    """Broken on purpose: does not pass on what the others told, so paths longer than one link are lost."""

    def _pulse(self) -> Pulse:
        return Pulse(super()._pulse().rows[:1])


@pytest.mark.parametrize("broken", [OneWayIsEnough, NeverForgets, EveryoneLeads, TellsNothing])
def test_a_broken_rule_is_found(broken: type[Membership]) -> None:
    with pytest.raises(AssertionError):
        for seed in range(300):
            play(seed, broken)


@pytest.mark.parametrize("broken", [NeverForgets, EveryoneLeads, TellsNothing])
def test_a_broken_rule_is_found_in_a_large_cluster(broken: type[Membership]) -> None:
    with pytest.raises(AssertionError):
        for seed in range(20):
            play(seed, broken, (32,))


def test_a_full_cluster_of_32_nodes_forms_and_loses_its_leader() -> None:
    world = World(5, 32, 2)
    world.cut = set()
    world.run(3 * PULSE)
    world.check()
    leader = world.servers[0].view.leader  # type: ignore[union-attr]
    world.halt(leader)
    world.run(world.now + (world.mlost + 1.5) * PULSE)
    world.check()


@pytest.mark.parametrize("mlost, slost", [(2, 6), (6, 2), (4, 4)])
def test_the_leader_and_the_followers_have_their_own_counts(mlost: int, slost: int) -> None:
    world = World(1, 3, 1)
    world.mlost, world.slost = mlost, slost
    for node in range(3):
        world.halt(node)
        world.boot(node)
    world.run(world.bound())
    world.check()
    leader = world.servers[0].view.leader  # type: ignore[union-attr]
    follower, witness = (node for node in range(3) if node != leader)
    for victim, count, cause in (
        (follower, slost, Cause.FOLLOWER_SILENT),
        (leader, mlost, Cause.LEADER_SILENT),
    ):
        server = world.servers[witness]
        assert server is not None
        server.take_changes()
        world.halt(victim)
        halted = world.now
        while victim in server.view:
            world.run(world.now + PULSE / 20)
            assert world.now - halted < (count + 1.2) * PULSE, "detected too late"
        assert world.now - halted > (count - 1.1) * PULSE, "detected too early"
        (change,) = server.take_changes()
        reason = next(r for r in change.reasons if r.node == victim)
        assert reason.cause is cause and reason.silence > count * PULSE


@pytest.mark.parametrize("duration", [0.9, 3.0, 12.0, 3600.0])
def test_oversleeping_drops_nobody(duration: float) -> None:
    for seed in range(20):
        world = World(seed, 3, 1)
        world.run(world.bound())
        world.check()
        sleeper = world.servers[0]
        assert sleeper is not None
        sleeper.take_changes()
        world.sleep(0, duration * PULSE)
        world.run(world.now + min(duration, 20) * PULSE)
        # Every message of the time asleep is lost, the harder case.
        world.queue = [event for event in world.queue if event[2] == "tick" or event[3] != 0]
        heapq.heapify(world.queue)
        world.asleep[0] = world.now
        world.run(world.now + world.bound())
        assert not any(
            reason.cause in (Cause.LEADER_SILENT, Cause.FOLLOWER_SILENT)
            for change in sleeper.take_changes()
            for reason in change.reasons
        ), f"seed {seed}: the sleeper blamed its peers"
        world.check()


def test_a_server_whose_memory_was_erased_comes_back_with_an_older_incarnation() -> None:
    world = World(4, 3, 1)
    world.run(world.bound())
    world.halt(2)
    world.run(world.now + world.bound())
    world.skew[2] -= 1000
    world.boot(2)
    world.run(world.now + world.bound())
    world.check()
    assert world.servers[0].view.members == 7  # type: ignore[union-attr]


def test_a_server_that_is_always_late_still_finds_a_dead_peer() -> None:
    world = World(3, 2, 1)
    world.run(world.bound())
    server = world.servers[0]
    assert server is not None and 1 in server.view
    world.halt(1)
    now = world.now
    for _ in range(world.mlost + world.slost + 2):
        now = server.next_wakeup() + 3 * PULSE
        server.tick(now)
    assert 1 not in server.view


def test_traffic_is_one_pulse_a_period_when_nothing_happens() -> None:
    world = World(9, 4, 1)
    world.run(10 * PULSE)
    before = world.sent
    world.run(world.now + 50 * PULSE)
    assert world.sent - before == pytest.approx(4 * 50, abs=4)

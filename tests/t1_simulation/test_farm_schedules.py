"""Farms on a virtual clock: joins, leaves, power-offs, splits, merges, one-way cuts, restarts, frozen servers.

A schedule is a function of its seed. What the packet filter of a server accepts is tracked apart from what its
core wants: a plan takes some milliseconds to arrive there, and the filter works on alone, within its lease,
while the server's process is dead or frozen. Checked at every step of a schedule without faults: no bucket is
accepted by two servers (F1, F2), and no open connection of a living server is reset by another one (F3). Checked
after every storm: each group of servers that hear each other owns every
bucket exactly once, by the documented shares.
"""

from __future__ import annotations

import heapq
import os
import random
from dataclasses import dataclass, field
from functools import lru_cache

import pytest

from safekit.net.jhash import BUCKETS
from safekit.wire.membership import Pulse, Rules
from vipd.farm.buckets import FULL, NOBODY, Shares, bitmap_of
from vipd.farm.core import Event, FarmCore, News, Plan, repeat_seconds

PULSE = 0.1
COUNT = 5
SEEDS = int(os.environ.get("SAFEKIT_FARM_SEEDS", "300"))
PARTS = 6
"""Processes share them."""
Kept = tuple[int, ...]
REPEAT = repeat_seconds(PULSE)


class Connections:
    """The open connections of a server, by their bucket; `held`: the buckets in which there are some."""

    def __init__(self) -> None:
        self._buckets: list[int] = []
        self._counts = [0] * BUCKETS
        self.held = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def begin(self, bucket: int) -> None:
        self._buckets.append(bucket)
        self._counts[bucket] += 1
        self.held |= 1 << bucket

    def end(self, number: int) -> None:
        bucket = self._buckets.pop(number)
        self._counts[bucket] -= 1
        if not self._counts[bucket]:
            self.held ^= 1 << bucket


@dataclass
class Server:
    """A machine: its process (core, None when dead) and its packet filter, which outlives the process."""

    core: FarmCore | None = None
    asleep: float = 0.0
    mine: tuple[int, ...] = (0,)
    lease_until: float | None = 0.0
    applying: bool = False
    shared: tuple[int, ...] = (0,)
    kept: Kept = (0,)
    powered: bool = True
    connections: Connections = field(default_factory=lambda: Connections())
    recounted: float = 0.0
    news: list[News] = field(default_factory=list)
    done: tuple[FarmCore | None, int] = (None, 0)
    doubt: bool = False

    def accepts(self, now: float) -> int:
        if not self.powered or (self.lease_until is not None and now >= self.lease_until):
            return 0
        return self.mine[0]


@lru_cache(maxsize=64)
def _shares(powers: tuple[tuple[int, int], ...]) -> Shares:
    """They remember nothing but answers, which depend on nothing else."""
    return Shares(dict(powers))


class World:
    """Servers, directed cuts between them, a queue of what happens next."""

    def __init__(self, seed: int, nodes: int, powers: dict[int, int] | None = None) -> None:
        self.random = random.Random(seed)
        self.nodes, self.powers = nodes, powers or dict.fromkeys(range(nodes), 1)
        self.shares = [_shares(tuple(self.powers.items()))]
        self.servers = [Server() for _ in range(nodes)]
        self.cut: set[tuple[int, int]] = set()
        self.now, self.lives, self.counter, self.loss = 0.0, 0, 0, 0.0
        self.strict = False
        self.traffic = False
        self.moved = 0
        self.healed, self.doubted = 0.0, False
        self.overlaps: list[tuple[float, int, int, int]] = []
        self.queue: list[tuple[float, int, str, int, object]] = []
        self.pending_tick = [-1.0] * nodes

    # Machines

    def boot(self, node: int, join: bool = True) -> None:
        self.lives += 1
        server = self.servers[node]
        server.powered, server.applying, server.mine, server.lease_until = True, False, (0,), 0.0
        server.shared, server.kept, server.connections, server.recounted = (0,), (0,), Connections(), self.now
        rules = Rules(self.nodes, node, PULSE, COUNT, COUNT)
        server.core = FarmCore(rules, self.shares, self.lives, self.now)
        if join:
            server.core.join(self.now)
        self.wake(node)

    def power_off(self, node: int) -> None:
        self.servers[node].core, self.servers[node].powered = None, False

    def kill(self, node: int) -> None:
        """The process dies; the filter goes on."""
        self.servers[node].core = None

    def restart(self, node: int) -> None:
        """A process again, before the lease of the filter has ended: it goes on where the other one was."""
        self.lives += 1
        server = self.servers[node]
        rules = Rules(self.nodes, node, PULSE, COUNT, COUNT)
        server.applying = False
        server.core = FarmCore(rules, self.shares, self.lives, self.now, joined=True, resumed=self.memory)
        self.apply(node)
        self.wake(node)

    def remember(self, node: int) -> None:
        core = self.servers[node].core
        assert core is not None
        rows = (core.membership.row(n) for n in range(self.nodes) if core.membership.heard >> n & 1)
        self.memory = tuple(row for row in rows if row is not None)

    def freeze(self, node: int, seconds: float) -> None:
        self.servers[node].asleep = self.now + seconds

    # Events

    def push(self, at: float, kind: str, node: int, what: object = None) -> None:
        self.counter += 1
        heapq.heappush(self.queue, (at, self.counter, kind, node, what))

    def wake(self, node: int) -> None:
        core = self.servers[node].core
        assert core is not None
        at = max(self.now, core.next_wakeup())
        if self.pending_tick[node] != at:
            self.pending_tick[node] = at
            self.push(at, "tick", node)

    def send(self, node: int, pulse: Pulse) -> None:
        core = self.servers[node].core
        assert core is not None
        kept = core.claims_here
        for peer in range(self.nodes):
            if peer != node and (node, peer) not in self.cut and self.random.random() >= self.loss:
                self.push(self.now + 0.0002 + self.random.random() * 0.003, "pulse", peer, (pulse, kept))

    def apply(self, node: int) -> None:
        """One plan at a time is on its way into the filter."""
        server = self.servers[node]
        assert server.core is not None
        plan = server.core.plan()
        server.news += server.core.take_news()
        if not server.applying and (server.core, plan.number) != server.done:
            server.applying = True
            self.push(self.now + 0.001 + self.random.random() * 0.008, "applied", node, (server.core, plan))

    def run(self, until: float) -> None:
        while self.queue and self.queue[0][0] <= until:
            at, _, kind, node, what = heapq.heappop(self.queue)
            self.now = max(self.now, at)
            server = self.servers[node]
            if server.core is None:
                continue
            if server.asleep > self.now:
                if kind != "pulse" or self.random.random() < 0.5:
                    self.push(server.asleep, kind, node, what)
                continue
            self.handle(kind, at, node, what)
            if self.traffic:
                self.clients()
                self.check_connections()
            if self.strict:
                self.check_overlap()
        self.now = max(self.now, until)

    def handle(self, kind: str, at: float, node: int, what: object) -> None:
        server = self.servers[node]
        core = server.core
        assert core is not None
        if kind == "tick":
            if at != self.pending_tick[node] and server.asleep == 0.0:
                return
            self.pending_tick[node] = -1.0
            pulse = core.tick(self.now)
            if pulse is not None:
                self.send(node, pulse)
            if server.done == (core, core.plan().number):
                # Never for an assignment that the core has given up in the meantime.
                self.renew(server)
                if self.traffic and self.now - server.recounted >= 1.0 and any(core.claims_here):
                    server.done = (None, 0)
        elif kind == "pulse":
            assert isinstance(what, tuple)
            core.receive(what[0], what[1], self.now)
        else:
            assert isinstance(what, tuple)
            owner, plan = what
            if owner is core:
                assert isinstance(plan, Plan)
                server.applying = False
                server.done = (core, plan.number)
                server.mine, server.shared, server.recounted = plan.mine, plan.shared, self.now
                server.doubt = plan.doubt
                if plan.doubt:
                    self.doubted = True
                if self.traffic:
                    server.kept = (server.connections.held & (~plan.mine[0] | plan.shared[0]),)
                self.renew(server)
                pulse = core.confirm(plan.number, server.kept, self.now)
                if pulse is not None:
                    self.send(node, pulse)
        self.apply(node)
        self.wake(node)

    def renew(self, server: Server) -> None:
        assert server.core is not None
        lease = server.core.lease
        server.lease_until = None if lease is None else self.now + lease

    # Checks

    def check_overlap(self) -> None:
        seen = 0
        for server in self.servers:
            accepted = server.accepts(self.now)
            assert not seen & accepted, f"{(seen & accepted).bit_count()} buckets accepted twice at {self.now:.4f}"
            seen |= accepted

    def clients(self) -> None:
        """Now and then a connection begins, at whoever accepts its bucket, and another one ends."""
        for bucket in [self.random.randrange(256) for _ in range(max(1, self.nodes // 3))]:
            for server in self.servers:
                if server.accepts(self.now) >> bucket & 1 and self.random.random() < 0.1:
                    server.connections.begin(bucket)
        for server in self.servers:
            if server.connections and self.random.random() < 0.03:
                server.connections.end(self.random.randrange(len(server.connections)))

    def check_connections(self) -> None:
        """What a server accepts of a bucket and does not share with others, it resets where it knows no connection; in
        doubt only after a while. Clients are on the side of the server that they have."""
        alone = [server.accepts(self.now) & ~server.shared[0] for server in self.servers]
        once = twice = 0
        for accepted in alone:
            twice |= once & accepted
            once |= accepted
        for node, holder in enumerate(self.servers):
            if holder.core is None or not holder.connections:
                continue
            open_ = holder.connections.held
            self.moved += (open_ & ~holder.mine[0]).bit_count()
            if not open_ & (twice | once & ~alone[node]):
                continue  # nobody else accepts any of them
            for other, accepted in enumerate(alone):
                if (node, other) in self.cut or (self.servers[other].doubt and self.now < self.healed + REPEAT):
                    continue
                assert other == node or not open_ & accepted, (
                    f"server {other} resets connections of server {node} at {self.now:.4f}"
                )

    def settle(self) -> None:
        self.loss = 0.0
        asleep = max(server.asleep for server in self.servers)
        self.run(max(self.now, asleep) + (COUNT + 6 + self.nodes) * PULSE + 3.0)

    def check(self) -> None:
        """Of every set of servers that are connected, each bucket has one owner, and shares are as documented."""
        cores = [server.core for server in self.servers]
        for node, core in enumerate(cores):
            if core is None:
                continue
            members = core.membership.view.nodes()
            participants = tuple(n for n in members if _takes_part(cores[n]))
            plan = core.plan()
            assert plan.final and plan.participants == participants, f"node {node}: {plan.participants}"
            owners = self.shares[0].owners(participants)
            assert plan.owners == (owners,)
            assert self.servers[node].accepts(self.now) == bitmap_of(owners, node), f"node {node}"
            union = 0
            for participant in participants:
                union |= self.servers[participant].accepts(self.now)
            able = any(self.powers[n] for n in participants)
            assert union == (FULL if able else 0) and (able or set(owners) == {NOBODY})


def _takes_part(core: FarmCore | None) -> bool:
    return core is not None and core.taking_part


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 16])
def test_a_farm_forms_and_nobody_ever_accepts_what_another_accepts(nodes: int) -> None:
    for seed in range(5):
        world = World(seed, nodes)
        world.strict = True
        for node in range(nodes):
            world.boot(node)
            # Every other farm is started in one moment.
            world.run(world.now + world.random.random() * (0.4 if seed % 2 else 0.002))
        world.settle()
        world.check()
        assert all(server.core is not None and server.core.taking_part for server in world.servers)


def test_planned_joins_and_leaves_never_overlap_and_gaps_are_milliseconds() -> None:
    for seed in range(SEEDS // 5):
        world = World(seed, 3)
        for node in range(3):
            world.boot(node)
        world.settle()
        world.strict = True
        for _ in range(6):
            order(world, world.random.randrange(3))
            gap = 0.0
            for _ in range(600):
                before = world.now
                world.run(world.now + 0.001)
                union = 0
                for server in world.servers:
                    union |= server.accepts(world.now)
                gap += (world.now - before) if union != FULL else 0.0
            assert gap < 0.08, f"seed {seed}: buckets without an owner for {gap * 1000:.0f} ms"
            world.check()


def test_power_off_is_taken_over_within_the_detection_time() -> None:
    for seed in range(20):
        world = World(seed, 3)
        for node in range(3):
            world.boot(node)
        world.settle()
        world.power_off(1)
        died = world.now
        while (world.servers[0].accepts(world.now) | world.servers[2].accepts(world.now)) != FULL:
            world.run(world.now + 0.005)
            assert world.now < died + 0.7
        world.settle()
        world.check()


def test_a_killed_process_that_is_back_in_time_moves_nothing() -> None:
    for seed in range(20):
        world = World(seed, 3)
        for node in range(3):
            world.boot(node)
        world.settle()
        world.strict = True
        before = [server.mine for server in world.servers]
        world.remember(1)
        world.kill(1)
        world.run(world.now + 0.35)
        world.restart(1)
        for _ in range(300):
            world.run(world.now + 0.005)
            assert [server.mine for server in world.servers] == before
        world.check()


def test_a_killed_process_that_stays_away_is_replaced_when_its_lease_ends() -> None:
    world = World(1, 2)
    for node in range(2):
        world.boot(node)
    world.settle()
    world.kill(1)
    killed = world.now
    while world.servers[0].accepts(world.now) != FULL:
        world.run(world.now + 0.005)
        assert world.now < killed + 0.7
    world.run(world.now + 0.1)
    assert world.servers[1].accepts(world.now) == 0


def test_a_frozen_server_is_taken_out_and_knows_it_when_it_wakes() -> None:
    for seed in range(20):
        world = World(seed, 3)
        for node in range(3):
            world.boot(node)
        world.settle()
        world.servers[0].news.clear()
        world.freeze(0, 5.0)
        world.run(world.now + 1.0)
        assert world.servers[0].accepts(world.now) == 0
        assert world.servers[1].accepts(world.now) | world.servers[2].accepts(world.now) == FULL
        world.strict = True
        world.settle()
        world.check()
        assert Event.FROZEN in [news.event for news in world.servers[0].news]


@pytest.mark.parametrize("deaf", [0, 1])
def test_after_a_one_way_cut_the_end_that_knows_of_it_gives_way(deaf: int) -> None:
    for seed in range(20):
        world = World(seed, 2)
        for node in range(2):
            world.boot(node)
        world.settle()
        world.cut.add((1 - deaf, deaf))
        world.settle()
        assert world.servers[deaf].accepts(world.now) == FULL
        assert world.servers[1 - deaf].accepts(world.now) == 0
        told = [news.event for news in world.servers[1 - deaf].news]
        assert told.count(Event.GAVE_WAY) == 1 and Event.BACK not in told
        world.cut.clear()
        world.strict = True
        world.settle()
        world.check()
        assert world.servers[0].accepts(world.now).bit_count() == 128
        assert [news.event for news in world.servers[1 - deaf].news].count(Event.BACK) == 1


def test_a_server_that_flaps_is_not_told_of_as_giving_way() -> None:
    """When a link forms, one end hears the other a moment earlier: no news for anybody."""
    world = World(12, 3)
    for node in range(3):
        world.boot(node)
    world.settle()
    for second in range(40):
        world.cut = set() if second % 2 else {(2, 0), (0, 2), (2, 1), (1, 2)}
        world.run(world.now + 1.0)
    world.settle()
    told = {news.event for server in world.servers for news in server.news}
    assert not told & {Event.GAVE_WAY, Event.BACK}


def test_split_and_merge() -> None:
    for seed in range(20):
        world = World(seed, 2)
        for node in range(2):
            world.boot(node)
        world.settle()
        world.cut |= {(0, 1), (1, 0)}
        world.settle()
        assert [s.accepts(world.now) for s in world.servers] == [FULL, FULL]
        world.cut.clear()
        world.settle()
        world.check()
        assert [s.accepts(world.now).bit_count() for s in world.servers] == [128, 128]


def test_open_connections_are_shared_while_their_holder_lives() -> None:
    world = World(3, 3)
    for node in range(3):
        world.boot(node)
    world.settle()
    leaver = world.servers[1]
    assert leaver.core is not None
    held = leaver.mine[0]
    leaver.kept = (held,)
    leaver.core.leave(world.now)
    world.apply(1)
    world.wake(1)
    world.settle()
    for node in (0, 2):
        core = world.servers[node].core
        assert core is not None and core.plan().shared == (held,)
    world.power_off(1)
    world.settle()
    for node in (0, 2):
        core = world.servers[node].core
        assert core is not None and core.plan().shared == (0,)


@pytest.mark.parametrize("nodes", [2, 3, 5, 16])
def test_open_connections_of_the_living_are_never_reset_and_those_of_the_dead_always(nodes: int) -> None:
    """F3, under planned joins and leaves with power-offs between them."""
    moved = 0
    for seed in range(1 if nodes == 16 else 12):
        world = World(seed, nodes)
        world.traffic = world.strict = True
        for node in range(nodes):
            world.boot(node)
        world.settle()
        for _ in range(5):
            # The youngest ones come and go, so that their connections are there when they go.
            order(world, world.random.choice((0, nodes - 1)))
            world.run(world.now + 0.05 + world.random.random())
        world.settle()
        world.check()
        moved += world.moved
        for node in range(nodes):
            join(world, node)
        world.settle()
        victim = max(world.servers, key=lambda server: len(server.connections))
        orphans, victim.connections = victim.connections.held, Connections()
        world.power_off(world.servers.index(victim))
        world.settle()
        told = kept = 0
        for server in world.servers:
            told |= server.accepts(world.now) & ~server.shared[0]
            kept |= server.kept[0] if server.powered else 0
        # A bucket which another living server has connections in is answered by that one.
        assert orphans and not orphans & ~(told | kept), "clients of the dead server are left hanging"
    assert moved > 0, "no connection was open in a bucket that had moved: this shows nothing"


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_two_halves_that_meet_again_reset_no_connection_of_each_other(nodes: int) -> None:
    for seed in range(12):
        world = World(seed, nodes)
        world.traffic = True
        for node in range(nodes):
            world.boot(node)
        world.settle()
        half = set(world.random.sample(range(nodes), world.random.randint(1, nodes - 1)))
        between = {(a, b) for a in range(nodes) for b in range(nodes) if (a in half) != (b in half)}
        for _ in range(2):
            for server in world.servers:
                # The takeover tells the clients of the others that they are cut off from their server.
                server.connections = Connections()
            world.cut |= between
            world.run(world.now + 2 * COUNT * PULSE + 1.5)
            parts = half, set(range(nodes)) - half
            while not all(any(world.servers[node].connections for node in part) for part in parts):
                world.run(world.now + PULSE)
            world.cut.clear()
            world.healed = world.now
            world.settle()
            world.check()
            assert not any(server.doubt for server in world.servers)


def test_the_clients_of_a_dead_server_are_told_before_anybody_doubts() -> None:
    world = World(7, 3)
    for node in range(3):
        world.boot(node)
    world.settle()
    world.power_off(2)
    while world.servers[0].accepts(world.now) | world.servers[1].accepts(world.now) != FULL:
        world.run(world.now + 0.005)
    world.run(world.now + COUNT * PULSE)
    assert not world.doubted, "clients repeat themselves within the time that the takeover took"
    world.run(world.now + 1.2)
    assert world.servers[0].doubt and world.servers[1].doubt
    world.boot(2)
    world.settle()
    assert not any(server.doubt for server in world.servers)


def test_a_goodbye_is_no_reason_to_doubt() -> None:
    world = World(8, 2)
    for node in range(2):
        world.boot(node)
    world.settle()
    leaving = world.servers[1].core
    stays = world.servers[0].core
    assert leaving is not None and stays is not None
    stays.depart(1, leaving.membership.incarnation, world.now)
    world.power_off(1)
    world.settle()
    assert world.servers[0].accepts(world.now) == FULL and not world.doubted


def join(world: World, node: int) -> None:
    core = world.servers[node].core
    assert core is not None
    core.join(world.now)
    world.apply(node)
    world.wake(node)


def order(world: World, node: int) -> None:
    """Join, or leave while another one stays."""
    core = world.servers[node].core
    assert core is not None
    stays = any(_takes_part(server.core) for number, server in enumerate(world.servers) if number != node)
    if core.taking_part and stays:
        core.leave(world.now)
    else:
        core.join(world.now)
    world.apply(node)
    world.wake(node)


def storm(world: World) -> None:
    draw = world.random
    for _ in range(draw.randint(1, 3)):
        world.loss = draw.choice((0.0, 0.0, 0.1, 0.3))
        for _ in range(draw.randint(1, 4)):
            node = draw.randrange(world.nodes)
            core = world.servers[node].core
            fault = draw.randrange(8)
            if fault == 0:
                world.power_off(node)
            elif fault == 1 or core is None:
                world.boot(node)
            elif fault == 2:
                world.freeze(node, draw.random() * 2.0)
            elif fault == 3:
                core.leave(world.now)
                world.wake(node)
            elif fault == 4:
                core.join(world.now)
                world.wake(node)
            elif fault == 5:
                peer = draw.randrange(world.nodes)
                world.cut.add((node, peer))
                world.cut.add((peer, node))
            else:
                world.cut.clear()
            world.run(world.now + draw.random() * 3 * PULSE)
    world.settle()
    world.check()


def play(seed: int) -> World:
    draw = random.Random(seed)
    nodes = 16 if seed % 50 == 49 else draw.choice((2, 2, 3, 3, 4, 5))
    world = World(seed, nodes, {n: draw.choice((0, 1, 1, 1, 3)) if n else 1 for n in range(nodes)})
    for node in range(nodes):
        world.boot(node)
    world.settle()
    world.check()
    for _ in range(2):
        storm(world)
    return world


@pytest.mark.parametrize("part", range(PARTS))
def test_random_schedules_converge_to_exact_shares(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        try:
            play(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_a_flapping_server_never_makes_two_accept_the_same() -> None:
    world = World(11, 3)
    for node in range(3):
        world.boot(node)
    world.settle()
    world.strict = True
    for second in range(60):
        core = world.servers[2].core
        assert core is not None
        (core.leave if second % 2 == 0 else core.join)(world.now)
        world.apply(2)
        world.wake(2)
        world.run(world.now + 1.0)
    world.settle()
    world.check()


class Impatient(FarmCore):
    """Broken on purpose: takes before the others have let go."""

    def _told(self, node: int) -> bool:
        return True


def test_taking_before_the_others_let_go_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FarmCore", Impatient)
    with pytest.raises(AssertionError, match="accepted twice"):
        test_a_farm_forms_and_nobody_ever_accepts_what_another_accepts(3)


class Tongueless(FarmCore):
    """Broken on purpose: lets go of buckets without saying so at once."""

    def confirm(self, number: int, kept: tuple[int, ...], now: float) -> Pulse | None:
        super().confirm(number, kept, now)
        return None


def test_buckets_without_an_owner_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FarmCore", Tongueless)
    with pytest.raises(AssertionError, match="without an owner"):
        test_planned_joins_and_leaves_never_overlap_and_gaps_are_milliseconds()


class Modest(FarmCore):
    """Broken on purpose: does not tell where it holds connections."""

    @property
    def claims_here(self) -> tuple[int, ...]:
        return (0,) * len(super().claims_here)


class Insomniac(FarmCore):
    """Broken on purpose: goes on as if it had not slept."""

    def _notice_sleep(self, now: float) -> None:
        return


def test_a_reset_of_a_living_servers_connection_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FarmCore", Modest)
    with pytest.raises(AssertionError, match="resets connections"):
        test_open_connections_of_the_living_are_never_reset_and_those_of_the_dead_always(3)


def test_a_server_that_does_not_notice_its_sleep_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FarmCore", Insomniac)
    with pytest.raises(AssertionError, match="accepted twice"):
        test_a_frozen_server_is_taken_out_and_knows_it_when_it_wakes()


class Rash(FarmCore):
    """Broken on purpose: resets at once whatever it does not know."""

    def _watch_the_silent(self, now: float) -> None:
        return


class Stranger(FarmCore):
    """Broken on purpose: takes a server that served without it for one that has no connections."""

    def _meet(self) -> None:
        return


@pytest.mark.parametrize("broken", [Rash, Stranger])
def test_a_reset_at_the_meeting_of_two_halves_is_found(monkeypatch: pytest.MonkeyPatch, broken: type[FarmCore]) -> None:
    monkeypatch.setitem(globals(), "FarmCore", broken)
    with pytest.raises(AssertionError, match="resets connections"):
        test_two_halves_that_meet_again_reset_no_connection_of_each_other(3)

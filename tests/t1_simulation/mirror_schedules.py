"""Random schedules for the simulated pair: what happens, when, from one seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from heart.core import lineage
from tests.t1_simulation.mirror_parts import Options, Server, Violation
from tests.t1_simulation.mirror_world import World

SET_BACK = 14
UNLIKE = 7
Kind = Callable[[World], None]
KINDS_OF_PAIRS = 15
MARK = 3.0


def options_of(seed: int) -> Options:
    """The kind of schedule is part of the seed."""
    kind = seed % KINDS_OF_PAIRS
    return Options(
        rfs=kind != 9,
        links=2 if kind in (3, 7) else 1,
        prims=kind == 8,
        defaultprim={5: "A", 6: "lastprim"}.get(kind, "alone"),
        partitions=kind != 4,
        witness=kind in (10, 11),
        interface=kind in (11, 12, 13),
        mark=MARK,
        syncat=12.0 if kind == 0 and seed // KINDS_OF_PAIRS % 2 else 0.0,
        handle_time=6.0 if kind == 12 else 2.0 if kind == 13 else 4.0,
    )


def run(seed: int, trace: Callable[[str], None] | None = None, kinds: tuple[Kind, ...] = ()) -> World:
    """One schedule: a healthy pair, chaos (only of these `kinds`, if any), then peace; raises Violation."""
    options = options_of(seed)
    if kinds:
        options = replace(options, partitions=True)
    world = World(seed, options, trace)
    world.chaos = False
    for name in "AB":
        world.power_on(name)
    world.order("A", "prim" if options.rfs else "start")
    world.run_until(7.0)
    world.order("B", "second" if options.rfs else "start")
    world.run_until(15.0)
    if options.rfs and not options.syncat:
        world.judge.check_settled()
    world.judge.forced = False
    world.chaos = True
    _plan_chaos(world, kinds or _kinds_of(seed, options))
    world.run_until(15.0 + options.chaos_seconds)
    _peace(world)
    start = world.now
    while world.now < start + options.settle_seconds:
        world.run_until(world.now + 3.0)
        for name, server in world.servers.items():
            if server.heart is None and server.powered and world.now >= world.deciding_until:
                world.order(name, "start")
        decide_for_the_original(world)
        configure_alike(world)
        if world.now > start + 14.0:
            try:
                world.judge.check_settled()
                return world
            except Violation as error:
                if "not PRIM" not in str(error) and "without its" not in str(error):
                    raise
    world.judge.check_settled()
    return world


def seeds_of(kind: int, count: int) -> range:
    """So many seeds of a kind of pair."""
    return range(kind, kind + count * KINDS_OF_PAIRS, KINDS_OF_PAIRS)


def found(seeds: range, kinds: tuple[Kind, ...] = ()) -> str:
    """The first thing that breaks in these schedules, "" when nothing does."""
    for seed in seeds:
        try:
            run(seed, kinds=kinds)
        except AssertionError as error:
            return str(error)
    return ""


def decide_for_the_original(world: World) -> None:
    """Where both wait because disks were put back, the administrator decides for the data that is not old, if it is
    whole, in the words that the log tells."""
    servers = world.servers.values()
    if world.now < world.deciding_until or not (any(map(_told, servers)) or _out_of_date(world)):
        return
    world.deciding_until = world.now + 10.0
    chosen = next(s for s in servers if not s.old)
    whole = not chosen.inconsistent
    original = chosen if whole else world.servers[chosen.peer]

    def give_up() -> None:
        """What the other one has written by itself: until now, and until its application has stopped."""
        world.judge.acked -= set(world.servers[original.peer].data) - set(original.data)

    def begin() -> None:
        give_up()
        world.order(original.name, "prim", decided=whole)

    give_up()
    heart = original.heart
    if heart is not None and not heart.role.primary:
        world.say(original.name, "== the administrator decides for its data")
        for name in "AB":
            world.order(name, "stop")
        world.at(5.0, begin)
    elif heart is not None:
        world.order(original.peer, "stop")
        world.at(5.0, lambda: world.order(original.peer, "second", decided=whole))


def configure_alike(world: World) -> None:
    """The administrator configures the server that is refused as the other one is."""
    for name, server in world.servers.items():
        if server.heart is None or server.heart.blocked != "config_differs" or world.now < world.deciding_until:
            continue
        world.deciding_until = world.now + 6.0
        world.say(name, "== is configured as the other one")
        world.order(name, "stop")
        world.at(4.0, lambda name=name, peer=server.peer: _like(world, name, peer))  # type: ignore[misc]


def _like(world: World, name: str, other: str) -> None:
    if world.servers[name].heart is None:
        world.addresses[name] = world.addresses[other]
        world.order(name, "start")


def _told(server: Server) -> bool:
    """It waits for an administrator, and says so."""
    heart = server.heart
    if heart is None or heart.stopping or not heart.blocked:
        return False
    return heart.resources.get(lineage.FOUND, lineage.NONE) != lineage.NONE


def _out_of_date(world: World) -> bool:
    """Both wait: the one whose data was whole has got disks of a time at which it was out of date."""
    hearts = [server.heart for server in world.servers.values()]
    blocked = all(heart is not None and heart.blocked == "notuptodate_server" for heart in hearts)
    return blocked and any(server.old for server in world.servers.values())


def _kinds_of(seed: int, options: Options) -> tuple[Kind, ...]:
    """All kinds of faults, or only three of them: a meeting of a few kinds is rare where all take part."""
    kinds: tuple[Kind, ...] = _KINDS if options.partitions else _KINDS_WITHOUT_PARTITION
    if seed % KINDS_OF_PAIRS == SET_BACK:
        kinds = (*_KINDS, put_back, put_back, put_back, copy)
    elif seed % KINDS_OF_PAIRS == UNLIKE:
        kinds = (*_KINDS, configure, configure, configure)
    elif options.witness:
        kinds = (*_KINDS_WITHOUT_PARTITION, isolate, isolate, isolate_one_way, unplug)
    elif options.interface:
        kinds = (*_KINDS, unplug, unplug, unplug, unplug)
    return kinds if seed // KINDS_OF_PAIRS % 2 == 0 else tuple(random.Random(seed).sample(kinds, 3))


def _plan_chaos(world: World, kinds: tuple[Kind, ...]) -> None:
    pick = world.random
    for _ in range(pick.randint(2, 7)):
        delay = pick.uniform(0, world.options.chaos_seconds)
        kind = pick.choice(kinds)
        world.at(delay, lambda kind=kind: kind(world))  # type: ignore[misc]


def _peace(world: World) -> None:
    world.chaos = False
    world.say("-", "== peace")
    for wire in world.wires.values():
        wire.cut, wire.loss, wire.duplicate, wire.slow = False, 0.0, 0.0, 0.05
    world.witness_side = ""
    for name in "AB":
        world.power_on(name)
        world.plug(name)


def _one(world: World) -> str:
    return world.random.choice("AB")


def crash(world: World) -> None:
    name = _one(world)
    world.power_off(name)
    world.at(world.random.uniform(0.5, 20), lambda: _boot(world, name))


def crash_both(world: World) -> None:
    for name in "AB":
        world.at(world.random.choice((0.0, world.random.uniform(0, 3))), lambda name=name: world.power_off(name))  # type: ignore[misc]
        world.at(world.random.uniform(3.5, 20), lambda name=name: _boot(world, name))  # type: ignore[misc]


def _boot(world: World, name: str) -> None:
    world.power_on(name)
    if world.servers[name].heart is None:
        world.order(name, "start")


def _cut(world: World, *, both: bool) -> None:
    seconds = world.random.uniform(0.5, 15)
    directions = "AB" if both else _one(world)
    indexes = range(world.options.links) if world.random.random() < 0.7 else [0]
    world.say("-", f"== cut {directions} links {list(indexes)} for {seconds:.1f} s")
    keys = [(d, i) for d in directions for i in indexes]
    for key in keys:
        world.wires[key].cut = True
    world.part(seconds)

    def heal() -> None:
        world.say("-", "== healed")
        for key in keys:
            world.wires[key].cut = False

    world.at(seconds, heal)


def cut_both_ways(world: World) -> None:
    _cut(world, both=True)


def _cut_one_way(world: World) -> None:
    _cut(world, both=False)


def isolate(world: World, directions: str = "AB") -> None:
    """Everything between the servers fails; the witness is on one side."""
    if world.witness_side:
        return
    seconds = world.random.uniform(0.5, 25)
    world.witness_side = _one(world)
    world.say("-", f"== isolated {directions} for {seconds:.1f} s, the witness is with {world.witness_side}")
    world.part(seconds)
    keys = [key for key in world.wires if key[0] in directions]
    for key in keys:
        world.wires[key].cut = True

    def heal() -> None:
        world.say("-", "== healed")
        world.witness_side = ""
        for key in keys:
            world.wires[key].cut = False

    world.at(seconds, heal)


def isolate_one_way(world: World) -> None:
    isolate(world, _one(world))


def unplug(world: World) -> None:
    world.unplug(_one(world), world.random.uniform(0.5, 25))


def put_back(world: World) -> None:
    """A snapshot; some time later the server loses its power, has its disks of then again, and boots, before the other
    one or after it."""
    name = _one(world)
    if any(server.old or server.kept for server in world.servers.values()):
        return
    world.snapshot(name)

    def back() -> None:
        world.power_off(name)
        if world.random.random() < 0.5:
            world.power_off(world.servers[name].peer)
        world.restore(name)
        for each in "AB":
            world.at(world.random.uniform(0.5, 15), lambda each=each: _boot(world, each))  # type: ignore[misc]

    world.at(world.random.uniform(1, 30), back)


def configure(world: World) -> None:
    """Other virtual addresses on one server, which was stopped for that."""
    name = _one(world)
    world.order(name, "stop")

    def changed() -> None:
        if world.servers[name].heart is None:
            world.say(name, "== has other addresses")
            world.addresses[name] = world.random.choice(("one", "two"))
        _boot(world, name)

    world.at(world.random.uniform(3, 10), changed)


def copy(world: World) -> None:
    """The disks of a server become those of the other one."""
    name = _one(world)
    other = world.servers[name].peer
    if any(server.old or server.kept for server in world.servers.values()):
        return
    source = world.servers[name]
    if source.inconsistent or source.disk.get("rfs.uptodate") != "up":
        return
    world.power_off(other)
    world.clone(name, other)
    world.at(world.random.uniform(0.5, 20), lambda: _boot(world, other))


def _kill_module(world: World) -> None:
    world.kill_module(_one(world))


def _noise(world: World) -> None:
    wire = world.wires[_one(world), 0]
    wire.loss, wire.duplicate, wire.slow = world.random.uniform(0, 0.4), 0.3, world.random.choice((0.05, 0.5, 1.5))
    seconds = world.random.uniform(2, 15)
    world.part(seconds)

    def quiet() -> None:
        wire.loss, wire.duplicate, wire.slow = 0.0, 0.0, 0.05

    world.at(seconds, quiet)


def freeze(world: World) -> None:
    world.freeze(_one(world), world.random.uniform(0.5, 12), deaf=world.random.random() < 0.5)


def _short_freeze(world: World) -> None:
    world.freeze(_one(world), world.random.uniform(0.5, 3))


def _kill_heart(world: World) -> None:
    world.kill_heart(_one(world))


def _stream(world: World) -> None:
    """The replication connection breaks although the heartbeats go on."""
    server = world.servers[_one(world)]
    if server.stream is not None:
        world.say(server.name, "== replication stream broken")
        world.data.break_stream(server)


def _command(world: World) -> None:
    actions = ["stop", "start", "restart", "swap", "swap", "stopstart", "forcestop", "second", "stop", "stopwait"]
    if world.options.prims:
        actions += ["prim", "primforce"]
    name, action = _one(world), world.random.choice(actions)
    world.order(name, action)
    if action in ("stop", "forcestop"):
        world.at(world.random.uniform(0.5, 12), lambda: _boot(world, name))


_KINDS_WITHOUT_PARTITION = (
    crash, crash, crash_both, _short_freeze, _kill_heart, _kill_module, _stream, _command, _command, _command,
)  # fmt: skip
_KINDS = (*_KINDS_WITHOUT_PARTITION, cut_both_ways, _cut_one_way, _noise, freeze)


if __name__ == "__main__":
    import sys

    run(int(sys.argv[1]), print)

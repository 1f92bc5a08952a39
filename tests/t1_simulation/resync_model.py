"""Two simulated servers with disks that lose what was not flushed, the records that nfsbox keeps, and a
reintegration that runs between the writes of an application, one ordered stream of operations behind.

The decisions are the product's own: `safekit.rfs.generations` and `reintegre.plan`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from reintegre.plan import Content, Entry, Trust, content
from safekit.rfs.generations import (
    DataState,
    Kind,
    Verdict,
    applied,
    closed,
    delivered,
    in_step,
    left_peer,
    opened,
    received,
    receiving,
    verdict,
)

NAMES = ("a", "b", "c", "d", "e")
ZONES = 3
VALUES = 3  # few, so that different histories often give equal zones
ALL = frozenset(range(ZONES))
Record = dict[str, frozenset[int]]


@dataclass
class Inode:
    zones: list[int]
    mtime: int
    ctime: int


@dataclass
class Disk:
    names: dict[str, int] = field(default_factory=dict)
    inodes: dict[int, Inode] = field(default_factory=dict)

    def copy(self) -> Disk:
        kept = self.names.values()
        return Disk(
            dict(self.names), {n: Inode(list(i.zones), i.mtime, i.ctime) for n, i in self.inodes.items() if n in kept}
        )

    def tree(self) -> dict[str, tuple[tuple[int, ...], int]]:
        return {name: (tuple(self.inodes[i].zones), self.inodes[i].mtime) for name, i in self.names.items()}

    def file(self, name: str) -> Inode | None:
        return self.inodes[self.names[name]] if name in self.names else None


@dataclass
class Operation:
    """One element of the ordered stream."""

    kind: str
    path: str
    zone: int = 0
    value: int = 0
    mtime: int = 0
    other: str = ""
    number: int = 0
    zones: tuple[int, ...] = ()


class Server:
    """`mem` is what the application sees; `disk` what is sure to survive."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.rng = rng
        self.state = DataState(number)
        self.mem, self.disk = Disk(), Disk()
        self.volatile: set[tuple[int, int]] = set()  # (inode, zone) that may be lost
        self.past: list[Disk] = []  # directory states since the last flush
        self.dirty: Record = {}
        self.activity: Record = {}
        self.queue: list[tuple[Operation, int]] = []  # acknowledged as the secondary, not applied yet
        self.role = "stopped"
        self.crashed = False
        self.uptodate = False
        self.lastprim = False
        self.inode = number << 32

    # -- the file system of this server
    def flush(self) -> None:
        self.disk = self.mem.copy()
        self.volatile.clear()
        self.past.clear()

    def apply(self, op: Operation, now: int, *, durable_names: bool) -> bool:
        """False: it could not be applied, as happens while directories are not equal yet."""
        if op.kind in ("write", "zone"):
            inode = self.mem.file(op.path)
            if inode is None:
                return False
            inode.zones[op.zone] = op.value
            inode.mtime, inode.ctime = op.mtime, now
            self.volatile.add((self.mem.names[op.path], op.zone))
            return True
        done = True
        if op.kind == "create":
            self.inode += 1
            self.mem.names[op.path] = self.inode
            self.mem.inodes[self.inode] = Inode(list(op.zones) or [0] * ZONES, op.mtime, now)
        elif op.kind == "times":
            inode = self.mem.file(op.path)
            if inode is None:
                return False
            inode.mtime, inode.ctime = op.mtime, now
        elif op.kind == "remove":
            done = self.mem.names.pop(op.path, None) is not None
        elif op.kind == "rename":
            if op.path not in self.mem.names:
                return False
            self.mem.names[op.other] = self.mem.names.pop(op.path)
            self.mem.inodes[self.mem.names[op.other]].ctime = now
        if durable_names:
            self.flush()
        else:
            self.past.append(self.mem.copy())
        return done

    def drain(self, count: int = 1 << 30) -> bool:
        """Apply what was acknowledged; False: something could not be."""
        taken, self.queue = self.queue[:count], self.queue[count:]
        done = [self.apply(op, now, durable_names=False) for op, now in taken]
        return all(done)

    def lose_box(self) -> None:
        """nfsbox is killed and started again: what it had applied stays, what it had not is gone."""
        self.queue.clear()
        self.activity = {}
        self.state = opened(self.state, recorded=True, boot_ns=0)
        self.role = "standby"

    def crash(self) -> None:
        self.queue.clear()
        kept = self.rng.choice([self.disk, *self.past, self.mem]).copy()
        for number, inode in kept.inodes.items():
            latest, durable = self.mem.inodes.get(number), self.disk.inodes.get(number)
            if latest is None:
                continue
            old = durable or Inode([0] * ZONES, inode.mtime, inode.ctime)
            zones = [
                latest.zones[z] if (number, z) not in self.volatile or self.rng.random() < 0.5 else old.zones[z]
                for z in range(ZONES)
            ]
            times = latest if zones != old.zones or self.rng.random() < 0.5 else old
            kept.inodes[number] = Inode(zones, times.mtime, times.ctime)
        self.mem = kept
        self.flush()
        self.role, self.crashed = "stopped", True

    # -- the records of nfsbox
    def note(self, record: Record, op: Operation) -> None:
        if op.kind == "rename":
            record.pop(op.path, None)
            record[op.other] = ALL
        elif op.kind == "remove":
            record.pop(op.path, None)
        elif op.kind == "create":
            record[op.path] = ALL
        elif op.kind in ("write", "zone"):
            record[op.path] = record.get(op.path, frozenset()) | {op.zone}

    def start(self, boot: int, journal_lost: bool) -> None:
        if journal_lost:
            self.dirty, self.activity = {}, {}
        for path, zones in self.activity.items():
            self.dirty[path] = self.dirty.get(path, frozenset()) | zones
        self.activity = {}
        self.state = opened(self.state, recorded=not journal_lost, boot_ns=boot if self.crashed else 0)
        self.crashed = False
        self.role = "standby"


Rule = Callable[[DataState, DataState], Verdict]


class Lost(AssertionError):
    """Data that was promised is not there, or the two servers differ."""


@dataclass
class Session:
    """A reintegration under way: what reintegre knows, and the stream that is not applied yet."""

    verdict: Verdict
    trust: Trust
    recorded: Record
    todo: list[str]
    stream: list[Operation] = field(default_factory=list)
    revisit: set[str] = field(default_factory=set)
    pairs: set[tuple[int, int]] = field(default_factory=set)
    again: set[str] = field(default_factory=set)
    step: list[tuple[str, int, int]] = field(default_factory=list)


class World:
    """Both servers, the application, and what it was promised."""

    def __init__(self, seed: int, rule: Rule = verdict, broken: str = "") -> None:
        self.rng = random.Random(seed)
        self.rule, self.broken = rule, broken
        self.servers = [Server(1, self.rng), Server(2, self.rng)]
        self.now = 1000
        self.session: Session | None = None
        self.promised: dict[str, list[set[int]]] = {}
        self.generation = 100
        self.verdicts: dict[str, int] = {}
        self.trace: list[str] = []

    def tick(self) -> int:
        self.now += 1
        return self.now

    def new(self) -> int:
        self.generation += 1
        return self.generation

    def say(self, text: str) -> None:
        self.trace.append(f"{self.now} {text}")

    # -- roles: what heart and nfsadmin do
    def primary(self) -> Server | None:
        return next((s for s in self.servers if s.role in ("alone", "prim")), None)

    def other(self, server: Server) -> Server:
        return self.servers[0] if server is self.servers[1] else self.servers[1]

    def go_alone(self, server: Server) -> None:
        for path, zones in server.activity.items():
            server.dirty[path] = server.dirty.get(path, frozenset()) | zones
        server.activity = {}
        if not server.drain():
            raise Lost("the secondary differs")
        server.state = left_peer(server.state, self.new(), self.now)
        server.role, server.uptodate = "alone", True
        server.flush()
        self.check_promises(server)

    def begin(self, source: Server, target: Server) -> None:
        found = self.rule(source.state, target.state)
        self.say(f"verdict {found.rule} {found.kind.value}")
        self.verdicts[found.rule] = self.verdicts.get(found.rule, 0) + 1
        if found.kind is Kind.REFUSED:
            raise Lost(f"refused: {found.sentence}")
        target.state = receiving(target.state, found, source.state, self.now * 10**9)
        recorded: Record = dict(source.dirty)
        for path, zones in target.dirty.items() if self.broken != "activity" else ():
            recorded[path] = recorded.get(path, frozenset()) | zones
        trust = Trust(found, *(0, 0) if self.broken == "watch" else (source.state.idle_ns, target.state.idle_ns))
        names = sorted(set(source.mem.names) | set(target.mem.names))
        self.rng.shuffle(names)
        target.role = "reintegrating"
        self.session = Session(found, trust, recorded, names)

    def interrupt(self) -> None:
        self.session = None

    # -- the application
    def operate(self, server: Server) -> None:
        """One operation of the application on the primary."""
        now = self.tick()
        path, other = self.rng.choice(NAMES), self.rng.choice(NAMES)
        exists = path in server.mem.names
        mtime = now if self.rng.random() < 0.9 else 500  # utimes: times that prove nothing
        kinds = ("write", "write", "write", "write", "remove", "rename", "times") if exists else ("create",)
        kind = self.rng.choice(kinds)
        if kind == "rename" and path == other:
            kind = "write"
        op = Operation(kind, path, self.rng.randrange(ZONES), self.rng.randrange(VALUES), mtime, other)
        self.say(f"op on {server.state.server}: {op}")
        server.note(server.activity if server.role == "prim" else server.dirty, op)
        server.apply(op, now, durable_names=True)
        self.promise(server, op)
        peer = self.other(server)
        if server.role == "prim":
            peer.queue.append((op, now))
            if op.kind != "write" and not peer.drain():  # only writes are acknowledged before they are applied
                raise Lost(f"the secondary differs: {op}")
        elif self.session:
            self.session.stream.append(op)

    def promise(self, server: Server, op: Operation) -> None:
        if op.kind == "write":
            self.promised[op.path][op.zone].add(op.value)
        else:
            self.settle(server)

    def settle(self, server: Server) -> None:
        self.promised = {name: [{value} for value in zones] for name, (zones, _) in server.mem.tree().items()}

    def fsync(self, server: Server) -> None:
        server.flush()
        self.settle(server)

    def checkpoint(self, server: Server) -> None:
        """A moment at which everything acknowledged is on both disks."""
        peer = self.other(server)
        if server.role == "prim" and peer.role == "second":
            peer.drain()
            server.flush()
            peer.flush()
            self.settle(server)
            server.activity = {}
            server.state, peer.state = in_step(server.state, self.now), in_step(peer.state, self.now)

    def check_promises(self, server: Server) -> None:
        tree = server.mem.tree()
        if set(tree) != set(self.promised):
            raise Lost(f"names {sorted(tree)} instead of {sorted(self.promised)}")
        for name, allowed in self.promised.items():
            for zone, (value, values) in enumerate(zip(tree[name][0], allowed, strict=True)):
                if value not in values:
                    raise Lost(f"zone {zone} of {name} is {value}, promised {values}")
        self.settle(server)

    # -- the reintegration
    def deliver(self, count: int) -> None:
        """The target applies the next operations of the stream."""
        session = self.session
        source = self.primary()
        assert session is not None and source is not None
        target = self.other(source)
        for _ in range(min(count, len(session.stream))):
            op = session.stream.pop(0)
            if not target.apply(op, self.now, durable_names=False):
                session.revisit.add(op.path)
            if op.kind == "rename" and self.broken != "renames":
                session.revisit.update((op.path, op.other))

    def work(self) -> None:
        """One step of reintegre: an entry, or a zone of one."""
        session, source = self.session, self.primary()
        assert session is not None and source is not None
        target = self.other(source)
        if session.step:
            path, zone, number = session.step.pop()
            self.zone(session, source, target, path, zone, number)
        elif session.todo:
            self.entry(session, source, target, session.todo.pop())
        elif session.stream:
            self.deliver(1)
        elif session.revisit:
            session.again |= session.revisit
            session.todo.extend(sorted(session.revisit))
            session.revisit.clear()
        else:
            self.end(session, source, target)

    def entry(self, session: Session, source: Server, target: Server, path: str) -> None:
        there, here = source.mem.file(path), target.mem.file(path)
        if there is None:
            if here is not None:
                session.stream.append(Operation("remove", path))
            return
        number = source.mem.names[path]
        remote, local = entry(path, number, there), entry(path, target.mem.names.get(path, 0), here) if here else None
        if path in session.again:
            decision = Content.SKIP if (number, target.mem.names.get(path, 0)) in session.pairs else Content.COMPARE
        else:
            decision = content(session.trust, remote, local, session.recorded.get(path), path in session.recorded)
        if here is None:
            session.stream.append(Operation("create", path, mtime=there.mtime))
            decision = Content.COPY
        zones = (
            sorted(session.recorded[path])
            if decision is Content.ZONES
            else []
            if decision is Content.SKIP
            else list(range(ZONES))
        )
        if decision is Content.COPY:
            for zone in zones:
                session.stream.append(Operation("zone", path, zone, there.zones[zone], there.mtime))
        else:
            session.step = [(path, zone, number) for zone in zones]
        if here is None or here.mtime != there.mtime:
            session.step.insert(0, (path, -1, number))

    def zone(self, session: Session, source: Server, target: Server, path: str, zone: int, number: int) -> None:
        there, here = source.mem.file(path), target.mem.file(path)
        if there is None or source.mem.names[path] != number:
            session.revisit.add(path)
        elif zone < 0:
            session.stream.append(Operation("times", path, mtime=there.mtime))
        elif here is None or here.zones[zone] != there.zones[zone]:
            session.stream.append(Operation("zone", path, zone, there.zones[zone], there.mtime))

    def end(self, session: Session, source: Server, target: Server) -> None:
        if source.mem.tree() != target.mem.tree():
            raise Lost(f"after {session.verdict.rule}: source {source.mem.tree()} target {target.mem.tree()}")
        if self.broken != "unflushed":
            source.flush()
        target.flush()
        target.state = received(target.state, source.state, self.now, ahead=True)
        target.dirty, target.activity = {}, {}
        target.uptodate = True
        if self.rng.random() < 0.1:  # the connection breaks before the primary learns that it is done
            self.session = None
            self.say("end lost")
            source.uptodate = True
            self.split(source, target)
            return
        source.state = delivered(source.state, target.state.server, self.now)
        source.dirty, source.activity = {}, {}
        source.role, target.role = "prim", "second"
        self.session = None
        self.say("pair")

    def split(self, source: Server, target: Server) -> None:
        self.go_alone(source)
        target.drain()
        target.state = applied(target.state)
        target.role, target.uptodate = "standby", False


def entry(name: str, number: int, inode: Inode) -> Entry:
    return Entry(name.encode(), 0o100644, 0, 0, ZONES, 0, inode.mtime * 10**9, number, ctime=inode.ctime * 10**9)


def close(server: Server, now: int) -> None:
    server.drain()
    server.flush()
    if server.role in ("second", "prim"):
        server.state = applied(server.state)
    server.state = closed(server.state, now * 10**9)
    server.role = "stopped"

"""A simulated pair of servers around two real mirror automata: clock, network, disks, data, application.

Everything random comes from one seed, so a schedule replays exactly.  The
model of replication is the promise of the product, not its code: a write is
acknowledged when it is applied on both, or on the primary alone after it has
recorded that the peer is out of date.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heart.core import machine
from heart.core.actions import (
    Abort,
    Effect,
    Exit,
    Forget,
    Log,
    Marker,
    Processes,
    Remember,
    Reply,
    Rfs,
    Run,
    Scripts,
    Send,
    Vip,
)
from heart.core.decide import Decision, beat, decide, new_state
from heart.core.events import Born, Done, Heard, Ordered, PairAsked, Replication, Tick
from heart.core.state import State
from heart.core.values import Beat, Color, Command, Link, Role, Setup
from safekit.rules.ast import Rule
from safekit.rules.evaluator import Verdict, View, evaluate
from safekit.rules.order import module_rules
from safekit.rules.source import default_text

DEFAULT_RULES = default_text(Path(__file__).parents[2] / "private/conf/include/failover.xml")
RULES = module_rules("", DEFAULT_RULES)
_VERDICTS: dict[tuple[Any, ...], Any] = {}


def _remembered(rules: tuple[Rule, ...], view: View) -> Verdict:
    """`evaluate` is pure, and the servers of all schedules look at the same few values again and again."""
    remote = None if view.remote is None else tuple(view.remote.items())
    rest = (view.hostname, view.is_default_prim, view.cluster)
    key = (id(rules), tuple((k, v) for k, v in view.local.items() if k != "state.term"), remote, rest)
    found: Verdict
    known, found = _VERDICTS.get(key, (None, None))
    if known is not rules:
        if len(_VERDICTS) > 20_000:
            _VERDICTS.clear()
        found = evaluate(rules, view)
        _VERDICTS[key] = (rules, found)
    return found


machine.evaluate = _remembered  # type: ignore[attr-defined,assignment]
DURABLE = frozenset(
    {"rfs.uptodate", "rfs.lastprimstate", "rfs.paired", "rfs.swapping", "rfs.inconsistent", "state.local",
     "state.term", "state.former", "state.held", "state.lastprimstate"}
)  # fmt: skip
PULSE, TIMEOUT = 1.0, 4.0
PAIR_TIMEOUT = 10.0
"""Seconds that nfsadmin waits for the answer of its heart, which may have died with the question."""
MAX_EVENTS = 60_000


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Wire:
    """One direction of one link."""

    cut: bool = False
    loss: float = 0.0
    duplicate: float = 0.0
    slow: float = 0.05


@dataclass
class Stream:
    """A replication connection: it breaks for good as soon as something sent on it cannot arrive."""

    secondary: str
    attempt: str = ""
    live: bool = True
    synced: bool = False
    carried: set[int] = field(default_factory=set)


@dataclass
class Server:
    """One server: what a power failure keeps, and what it takes."""

    name: str
    peer: str
    disk: dict[str, str] = field(default_factory=dict)
    mark: bool = False
    orphaned: bool = False
    """heart was killed and is about to be restarted by its supervisor; everything else of the module runs."""
    data: list[int] = field(default_factory=list)
    inconsistent: bool = False

    powered: bool = False
    heart: State | None = None
    shown: dict[str, str] = field(default_factory=dict)
    life: int = 0
    frozen_until: float = 0.0
    deaf: bool = False
    awake: float = 0.0
    thawed_at: float = -1e9
    sequence: int = 0
    app: bool = False
    rfs: str = "none"
    alone: bool = False
    stream: Stream | None = None
    held: list[int] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)
    backlog: list[tuple[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """What a schedule may contain."""

    rfs: bool = True
    links: int = 1
    faults: bool = True
    commands: bool = True
    prims: bool = False
    partitions: bool = True
    chaos_seconds: float = 45.0
    settle_seconds: float = 70.0
    defaultprim: str = "alone"
    failover: bool = True
    flow: bool = False
    """The first heartbeat is ident="flow"."""
    rules: str = ""


class World:
    """Two servers A and B; see the module's docstring."""

    def __init__(self, seed: int, options: Options, trace: Callable[[str], None] | None = None) -> None:
        self.random = random.Random(seed)
        self.options = options
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.counter = 0
        self.events = 0
        self.trace = trace
        self.incarnations = 0
        self.servers = {"A": Server("A", "B"), "B": Server("B", "A")}
        self.wires = {(x, i): Wire() for x in "AB" for i in range(options.links)}
        self.next_write = 0
        self.acked: set[int] = set()
        self.alone_takers: set[str] = set()
        self.split = False
        self.forced = False
        self.links = tuple(
            Link("flow" if options.flow and i == 0 else f"l{i}", PULSE, TIMEOUT) for i in range(options.links)
        )
        self.impaired_until = 0.0
        self.parted_until = 0.0
        self.chaos = True
        self.log: list[tuple[float, str, str]] = []
        self.pair_replies: dict[int, Callable[[bool], None]] = {}

    # -- time

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self.counter += 1
        heapq.heappush(self.queue, (self.now + delay, self.counter, action))

    def run_until(self, end: float) -> None:
        while self.queue and self.queue[0][0] <= end:
            self.events += 1
            if self.events > MAX_EVENTS:
                raise Violation("too many events: something spins")
            self.now, _, action = heapq.heappop(self.queue)
            action()
        self.now = end

    def say(self, who: str, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.now:8.2f} {who} {text}")

    # -- power and processes

    def setup(self, name: str) -> Setup:
        return Setup(
            node=name,
            peer="B" if name == "A" else "A",
            hostname=name,
            links=self.links,
            rfs=self.options.rfs,
            rules=module_rules(self.options.rules, DEFAULT_RULES) if self.options.rules else RULES,
            defaultprim=self.options.defaultprim,
            failover=self.options.failover,
            period=2.0,
            handle_time=4.0,
        )

    def power_on(self, name: str) -> None:
        server = self.servers[name]
        if not server.powered:
            server.powered = True
            server.shown = dict(server.disk)
            self.say(name, "== power on")

    def power_off(self, name: str) -> None:
        server = self.servers[name]
        if not server.powered:
            return
        self.say(name, "== power off")
        server.powered, server.app, server.alone = False, False, False
        self._end_heart(server)
        self._break_stream(server)
        server.rfs, server.held, server.frozen_until, server.backlog = "none", [], 0.0, []
        server.shown = {}
        self._stream_loses(name)

    def start_heart(self, name: str, *, adopt: bool = False) -> None:
        """The process heart begins (module start, or after a kill)."""
        server = self.servers[name]
        if not server.powered or server.heart is not None:
            return
        server.orphaned = False
        self.incarnations += 1
        server.life += 1
        server.sequence = 0
        server.heart = new_state(self.setup(name), self.incarnations)
        self.say(name, f"== heart {self.incarnations} starts, adopt={adopt}")
        known = server.shown if adopt else {**server.shown, **server.disk}
        gap = self.now - server.awake
        self.feed(name, Born(tuple(known.items()), server.mark, adopt and server.mark, self.now, gap))
        life = server.life
        if server.heart is not None:
            self._pulse(name, life)

    def kill_heart(self, name: str) -> None:
        """kill -9 of heart alone; its supervisor starts it again."""
        server = self.servers[name]
        if server.heart is None:
            return
        self.say(name, "== heart killed")
        self._end_heart(server)
        server.orphaned = True
        life = server.life

        def restart() -> None:
            if server.life == life:
                self.start_heart(name, adopt=True)

        self.at(self.random.uniform(0.05, 1.2), restart)

    def part(self, seconds: float) -> None:
        """The servers may not hear each other for so long, although both go on."""
        until = self.now + seconds + 2 * TIMEOUT
        self.impaired_until, self.parted_until = max(self.impaired_until, until), max(self.parted_until, until)

    def freeze(self, name: str, seconds: float, *, deaf: bool = False) -> None:
        """SIGSTOP of heart for a while; what arrives meanwhile waits in its sockets, unless they are full (`deaf`)."""
        server = self.servers[name]
        if server.heart is not None and self.now >= server.frozen_until:
            self.say(name, f"== heart frozen for {seconds:.1f} s")
            server.frozen_until, server.deaf = self.now + seconds, deaf
            self.impaired_until = max(self.impaired_until, self.now + seconds + 2 * TIMEOUT)
            life = server.life
            self.at(seconds + 1e-6, lambda: self._thaw(name, life))

    def _thaw(self, name: str, life: int) -> None:
        server = self.servers[name]
        if server.life != life or server.heart is None or self.now < server.frozen_until:
            return
        server.thawed_at = self.now
        backlog, server.backlog = server.backlog, []
        # what waited in the sockets is read after the timers: the worst order
        self.feed(name, Tick())
        for target, event in backlog:
            if server.life == life:
                self.feed(target, event)

    def _end_heart(self, server: Server) -> None:
        server.heart, server.orphaned = None, False
        server.life += 1
        server.tokens = {}
        server.backlog = []
        server.frozen_until = 0.0

    def _pulse(self, name: str, life: int) -> None:
        server = self.servers[name]
        if server.life != life or server.heart is None:
            return
        self.at(PULSE * self.random.uniform(0.97, 1.0), lambda: self._pulse(name, life))
        if self.now < server.frozen_until:
            return
        server.awake = self.now
        self.feed(name, Tick())
        if server.life == life:
            self.send(name)

    # -- heartbeats

    def send(self, name: str) -> None:
        server = self.servers[name]
        if server.heart is None:
            return
        server.sequence += 1
        said = beat(server.heart, server.sequence)
        for index in range(self.options.links):
            wire = self.wires[name, index]
            if wire.cut or self.random.random() < wire.loss:
                continue
            for _ in range(2 if self.random.random() < wire.duplicate else 1):
                delay = self.random.uniform(0.001, wire.slow)
                ident = self.links[index].ident
                self.at(delay, lambda beat=said, ident=ident: self._deliver(name, ident, beat))  # type: ignore[misc]

    def _deliver(self, sender: str, ident: str, beat: Beat) -> None:
        target = self.servers[sender].peer
        server = self.servers[target]
        if server.heart is None:
            return
        event = Heard(ident, beat)
        if self.now < server.frozen_until:
            if not server.deaf:
                server.backlog.append((target, event))
            return
        self.feed(target, event)

    # -- the automaton

    def feed(self, name: str, event: Any) -> None:
        server = self.servers[name]
        if server.heart is None:
            return
        if self.now < server.frozen_until:
            server.backlog.append((name, event))
            return
        before = server.heart
        decision = decide(before, event, self.now)
        server.heart = decision.state
        if self.trace is not None:
            for reason in decision.reasons:
                self.say(name, f"   because {reason}")
        if not isinstance(event, Born):
            self._check_told(name, before, decision)
        life = server.life
        for action in decision.actions:
            if self.chaos and self.options.faults and self.random.random() < 0.0004:
                self.power_off(name)
                return
            self._perform(name, action)
            if server.life != life or server.heart is None:
                return
        if before.role is not decision.state.role:
            self._check_role(name, before.role, decision.state)

    def _perform(self, name: str, action: Any) -> None:
        server = self.servers[name]
        match action:
            case Log(code, fields):
                if self.trace is not None:
                    self.say(name, f"LOG {code} {dict(fields)}")
                self.log.append((self.now, name, f"{code} {' '.join(v for _, v in fields)}"))
            case Remember(values):
                for key, value in values:
                    server.shown[key] = value
                    if key in DURABLE:
                        server.disk[key] = value
            case Forget(names):
                for key in names:
                    server.shown.pop(key, None)
            case Send():
                self.send(name)
            case Run(token, effect):
                self._start_effect(name, token, effect)
            case Abort(token):
                server.tokens.pop(token, None)
            case Marker(present):
                server.mark = present
            case Reply(token, ok, code, _):
                self._replied(name, token, ok)
            case Exit():
                self.say(name, "== module ended")
                self._end_heart(server)

    # -- effects

    def _start_effect(self, name: str, token: int, effect: Effect) -> None:
        server = self.servers[name]
        life = server.life
        server.tokens[token] = life
        slow = self.chaos and self.random.random() < 0.1
        duration = self.random.uniform(0.5, 6.0) if slow else self.random.uniform(0.01, 0.3)
        if self.trace is not None:
            self.say(name, f"RUN {token} {_describe(effect)} ({duration:.2f} s)")
        if isinstance(effect, Scripts) and any(call.name == "start_prim" for call in effect.calls):
            self._app(server, True)
        power = self._power_id(server)
        self.at(duration, lambda: self._effect_done(name, life, power, token, effect))

    def _power_id(self, server: Server) -> tuple[bool, int]:
        return (server.powered, id(server.disk))

    def _effect_done(self, name: str, life: int, power: object, token: int, effect: Effect) -> None:
        server = self.servers[name]
        if not server.powered:
            return
        alive = server.life == life and server.tokens.pop(token, None) is not None
        ok = True
        # a script outlives a killed heart, until the next heart ends what is left of it
        if alive or (isinstance(effect, Scripts) and server.heart is None and server.mark):
            ok = self._carry_out(name, effect)
        if alive:
            extra: dict[str, Any] = {"consistent": not server.inconsistent} if _operation(effect) == "prepare" else {}
            self.feed(name, Done(token, ok, "" if ok else "model", **extra))

    def _carry_out(self, name: str, effect: Effect) -> bool:
        server = self.servers[name]
        match effect:
            case Scripts(calls):
                if any(call.name == "stop_prim" for call in calls):
                    self._app(server, False)
                return True
            case Rfs(operation, options):
                return self._rfs(server, operation, dict(options))
            case Vip() | Processes():
                return True
        return True

    def _app(self, server: Server, on: bool) -> None:
        server.app = on
        if on:
            self._check_application(server)
            self._write_later(server)

    # -- replicated data

    def _write_later(self, server: Server) -> None:
        life = server.life

        def write() -> None:
            if server.app and server.powered:
                self._write(server)
                self.at(self.random.uniform(0.3, 1.5), write)

        del life
        self.at(self.random.uniform(0.05, 0.5), write)

    def _write(self, server: Server) -> None:
        if server.rfs != "primary" or server.held:
            return
        self.next_write += 1
        number = self.next_write
        server.data.append(number)
        stream = server.stream
        if server.alone:
            self._ack(number)
            return
        server.held.append(number)
        if stream is None or not stream.live or not self._tcp(server.name):
            self._break_stream(server)
            return
        other = self.servers[server.peer]

        def arrive() -> None:
            if not stream.live or other.stream is not stream or other.rfs != "secondary":
                self._break_stream(server)
                return
            other.data.append(number)
            stream.carried.add(number)
            if not self._tcp(other.name):
                self._break_stream(server)
                return
            self.at(self.random.uniform(0.001, 0.05), back)

        def back() -> None:
            if stream.live and server.stream is stream and number in server.held:
                server.held.remove(number)
                self._ack(number)

        self.at(self.random.uniform(0.001, 0.05), arrive)

    def _ack(self, number: int) -> None:
        self.acked.add(number)

    def _tcp(self, sender: str) -> bool:
        """Whether what `sender` sends on the replication link arrives."""
        peer = self.servers[self.servers[sender].peer]
        return peer.powered and not self.wires[sender, 0].cut

    def _break_stream(self, server: Server) -> None:
        """Both ends notice, each in its own time."""
        stream, server.stream = server.stream, None
        if server.rfs == "primary" and not server.alone and server.powered:
            self._tell(server.name, "replication_lost", self.random.uniform(0.05, 1.5))
        elif server.rfs == "secondary" and server.powered:
            kind = "rfs_failed" if server.inconsistent else "secondary_lost"
            self._tell(server.name, kind, self.random.uniform(0.05, 1.5))
        if stream is not None and stream.live:
            stream.live = False
            other = self.servers[server.peer]
            self.at(self.random.uniform(0.05, 1.5), lambda: self._stream_loses(other.name))

    def _stream_loses(self, name: str) -> None:
        """The other end is gone: this one finds out when it uses the stream."""
        server = self.servers[name]
        other = self.servers[server.peer]
        for end in (server, other):
            if end.stream is not None and not end.stream.live:
                end.stream = None
                if end.rfs == "primary" and not end.alone:
                    self._tell(end.name, "replication_lost", self.random.uniform(0.05, 1.5))
                elif end.rfs == "secondary":
                    kind = "secondary_lost" if not end.inconsistent else "rfs_failed"
                    self._tell(end.name, kind, self.random.uniform(0.05, 1.5))

    def _tell(self, name: str, kind: str, delay: float) -> None:
        """nfsadmin tells heart, and tells it again until heart acts on it."""
        server = self.servers[name]

        def tell(tries: int) -> None:
            wanted = (
                kind == "replication_lost" and server.rfs == "primary" and not server.alone and server.stream is None
            ) or (kind in ("secondary_lost", "rfs_failed") and server.rfs == "secondary" and server.stream is None)
            if server.powered and wanted and tries:
                self.feed(name, Replication(kind, kind))
                self.at(1.0, lambda: tell(tries - 1))

        self.at(delay, lambda: tell(8))

    def _rfs(self, server: Server, operation: str, options: dict[str, bool | str]) -> bool:
        if operation == "prepare":
            server.rfs = "standby" if server.rfs == "none" else server.rfs
        elif operation == "primary":
            if options.get("swap"):
                server.rfs, server.alone = "primary", False
                if server.stream is None or not server.stream.live:
                    self._tell(server.name, "replication_lost", 0.2)
                return True
            if server.inconsistent and not options.get("force"):
                raise Violation(f"{server.name} becomes primary on inconsistent data (M2)")
            server.inconsistent = False
            self._authority(server)
            server.rfs, server.alone = "primary", True
            self._drop_stream(server)
        elif operation == "alone":
            if server.rfs != "primary":
                return False
            self._authority(server)
            server.alone = True
            self._drop_stream(server)
            for number in server.held:
                self._ack(number)
            server.held = []
        elif operation == "secondary":
            return self._secondary(server, swap=bool(options.get("swap")), attempt=str(options.get("attempt", "")))
        elif operation == "demote":
            if server.stream is None or server.held or server.alone or not server.stream.live:
                return False
            server.rfs = "standby"
        elif operation in ("standby", "release"):
            self._drop_stream(server)
            # writes that nobody acknowledged fail
            server.data = [n for n in server.data if n not in server.held]
            server.held = []
            server.rfs = "standby" if operation == "standby" else "none"
            server.alone = False
        return True

    def _drop_stream(self, server: Server) -> None:
        stream, server.stream = server.stream, None
        if stream is not None and stream.live:
            stream.live = False
            self.at(0.05, lambda: self._stream_loses(server.peer))

    def _secondary(self, server: Server, *, swap: bool, attempt: str) -> bool:
        other = self.servers[server.peer]
        if not self._tcp(server.name) or not self._tcp(other.name) or other.rfs != "primary":
            return False
        if swap:
            if server.stream is None or not server.stream.live:
                return False
            server.rfs = "secondary"
            return True
        server.rfs = "secondary"
        server.inconsistent = True
        server.alone = False
        stream = Stream(server.name, attempt)
        server.stream = stream
        self.at(self.random.uniform(0.2, 4.0), lambda: self._end_of_reintegration(server, other, stream))
        return True

    def _end_of_reintegration(self, server: Server, other: Server, stream: Stream) -> None:
        """The secondary asks to be paired; the primary's heart remembers, then the copy is complete."""
        if server.stream is not stream or not stream.live or server.rfs != "secondary":
            return
        if not self._tcp(server.name) or not self._tcp(other.name) or other.rfs != "primary" or other.heart is None:
            stream.live = False
            server.stream = None
            self._tell(server.name, "rfs_failed", 0.3)
            return
        token = 1_000_000 + self.counter

        def paired(ok: bool) -> None:
            if not ok or not stream.live or server.stream is not stream or other.rfs != "primary":
                stream.live = False
                if server.stream is stream:
                    server.stream = None
                    self._tell(server.name, "rfs_failed", 0.3)
                if other.rfs == "primary" and ok:
                    other.alone, other.stream = False, None
                    self._tell(other.name, "replication_lost", 0.3)
                return
            other.alone = False
            other.stream = stream
            snapshot = list(other.data)
            self.at(self.random.uniform(0.001, 0.1), lambda: apply(snapshot))

        def apply(snapshot: list[int]) -> None:
            if not stream.live or server.stream is not stream or server.rfs != "secondary":
                return
            if not self._tcp(other.name):
                self._break_stream(other)
                return
            known = set(snapshot)
            final = snapshot + [n for n in server.data if n in stream.carried and n not in known]
            self._replaced(server, final)
            server.data = final
            server.inconsistent = False
            stream.synced = True
            self.alone_takers = set()
            self.split = self.forced = False
            news = Replication("rfs_synced", attempt=stream.attempt)
            self.at(self.random.uniform(0.001, 0.2), lambda: self._tell_synced(server, news, server.life))

        def expire() -> None:
            if self.pair_replies.pop(token, None) is not None:
                paired(False)

        self.pair_replies[token] = paired
        self.at(PAIR_TIMEOUT, expire)
        self.feed(other.name, PairAsked(token))

    def _tell_synced(self, server: Server, news: Replication, life: int) -> None:
        """Told until heart answers: one that was frozen finds it several times in its socket."""
        self.feed(server.name, news)
        if server.life == life and self.now < server.frozen_until:
            self.at(2.5, lambda: self._tell_synced(server, news, life))

    def _replied(self, name: str, token: int, ok: bool) -> None:
        paired = self.pair_replies.pop(token, None)
        if paired is not None:
            paired(ok)

    # -- invariants

    def _authority(self, server: Server) -> None:
        """`server` acknowledges writes that its peer lacks from now on: nothing acknowledged may be missing."""
        other = self.servers[server.peer]
        heart = server.heart
        if self._claims(other) and not self.forced:
            # a partition without a witness: both may go on
            silent = heart is None or heart.peer is None or self.now >= heart.break_deadline
            apart = self.now <= self.parted_until  # it may have come back into hearing while this was done
            if not silent and not apart and other.heart is not None and other.heart.role is Role.SECOND:
                raise Violation(f"{server.name} goes on alone and hears {other.name}, which it did not tell (M3)")
            if self.now <= self.parted_until:
                self.split = True
        missing = self.acked - set(server.data)
        if missing:
            if self.forced or (self.split and self.options.partitions):
                self.acked -= missing
            else:
                raise Violation(f"{server.name} goes on without acknowledged writes {sorted(missing)[:5]}")
        self.alone_takers.add(server.name)

    def _claims(self, server: Server) -> bool:
        """The server calls its data up to date, or will when it is started."""
        if server.disk.get("rfs.uptodate") != "up" or (server.heart is not None and server.heart.doubted):
            return False
        running = server.heart is not None or server.orphaned
        return running or server.disk.get("rfs.paired") != "up" or not server.mark

    def _replaced(self, server: Server, snapshot: list[int]) -> None:
        """A secondary's data is replaced: what only it had is lost for good."""
        lost = (self.acked & set(server.data)) - set(snapshot)
        if lost:
            if not (self.forced or self.split):
                raise Violation(f"{server.name} gives up acknowledged writes {sorted(lost)[:5]}")
            self.acked -= lost

    def _check_told(self, name: str, before: State, decision: Decision) -> None:
        """Every change of a state is in the log, the last one as it is now."""
        after, told = decision.state, [a for a in decision.actions if isinstance(a, Log)]
        for code, was, now in (
            ("local_state", (before.role, before.color), (after.role, after.color)),
            ("remote_state", before.remote, after.remote),
        ):
            lines = [tuple(value for _, value in line.fields) for line in told if line.code == code]
            if was != now and after.role is not Role.STOP and (not lines or lines[-1] != now):
                raise Violation(f"{name}: {code} {now} is not told, but {lines}")

    def _check_role(self, name: str, before: Role, state: State) -> None:
        if not state.role.primary or before.primary:
            return
        other = self.servers[self.servers[name].peer]
        if other.heart is None or not other.heart.role.primary:
            return
        if self._hear_each_other(state, other.heart):
            raise Violation(f"{name} becomes {state.role} while it hears {other.name} {other.heart.role} (M1)")

    def _check_application(self, server: Server) -> None:
        """The application starts: it has ended on the other server, if that one is heard."""
        other = self.servers[server.peer]
        if not other.app or server.heart is None or other.heart is None:
            return
        if self._hear_each_other(server.heart, other.heart):
            raise Violation(f"{server.name} starts the application while it runs on {other.name} (M1)")

    def _hear_each_other(self, a: State, b: State) -> bool:
        recent = self.now - 2.5 * PULSE
        return (
            all(
                s.peer is not None and any(v == "up" and s.heard_at[i] > recent for i, v in s.links.items())
                for s in (a, b)
            )
            and self.now > self.impaired_until
        )

    def check_settled(self) -> None:
        """After the faults: one primary, one secondary, every acknowledged write on both."""
        states = {n: s.heart for n, s in self.servers.items()}
        shown = {n: (f"{s.role} {s.color}" if s is not None else "no heart") for n, s in states.items()}
        roles = sorted(s.role.value if s is not None else "none" for s in states.values())
        green = all(s is not None and s.color is Color.GREEN for s in states.values())
        if roles != ["PRIM", "SECOND"] or not green:
            raise Violation(f"not PRIM and SECOND green after the faults: {shown}")
        for server in self.servers.values():
            assert server.heart is not None
            if server.heart.role is Role.PRIM and not server.app:
                raise Violation(f"{server.name} is PRIM without its application")
            if server.heart.role is Role.SECOND and server.app:
                raise Violation(f"{server.name} is SECOND and runs the application (M1)")
            missing = self.acked - set(server.data)
            if self.options.rfs and missing:
                raise Violation(f"{server.name} lacks acknowledged writes {sorted(missing)[:5]}")
            if not server.heart.uptodate:
                raise Violation(f"{server.name} {server.heart.role} is not up to date")

    # -- commands

    def order(self, name: str, action: str, option: str = "") -> None:
        """An administrator's command; start spawns the processes of a stopped module."""
        server = self.servers[name]
        if not server.powered:
            return
        self.say(name, f"== command {action} {option}")
        if server.heart is None:
            if server.orphaned or action not in ("start", "prim", "primforce", "second"):
                # safeadmin spawns nothing while the supervisor of the module runs
                return
            self.start_heart(name)
        if action in ("prim", "primforce"):
            self.forced = True
        self.feed(name, Ordered(Command(action, option=option)))


def _operation(effect: Effect) -> str:
    return effect.operation if isinstance(effect, Rfs) else ""


def _describe(effect: Effect) -> str:
    if isinstance(effect, Scripts):
        return "scripts " + ", ".join(" ".join((c.name, *c.args)) for c in effect.calls)
    if isinstance(effect, Processes):
        return f"{'start' if effect.start else 'stop'} processes of {effect.phase}"
    return f"{type(effect).__name__.lower()} {effect.operation}" if isinstance(effect, Rfs | Vip) else str(effect)

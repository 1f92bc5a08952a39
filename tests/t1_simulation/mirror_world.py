"""A simulated pair of servers around two real mirror automata: clock, power, network, processes, application.

Everything random comes from one seed, so a schedule replays exactly.  The data is in mirror_data, what must hold in
mirror_judge, what may happen in mirror_schedules.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from heart.core import lineage, machine, syncat
from heart.core.actions import (
    Abort,
    Action,
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
    Witness,
)
from heart.core.decide import beat, decide, new_state
from heart.core.events import Born, Done, Heard, Ordered, Proved, Replication, ResourceSet, Tick
from heart.core.hearing import OVERSLEPT_SLACK
from heart.core.values import Beat, Command, Link, Role, Setup
from heart.shell.telling import Sent
from safekit.rules.ast import And, Compare, Expression, Not, Or, Resource, Rule
from safekit.rules.evaluator import Verdict, View, evaluate
from safekit.rules.order import module_rules
from safekit.rules.source import default_text
from tests.t1_simulation.mirror_data import Data
from tests.t1_simulation.mirror_judge import Judge
from tests.t1_simulation.mirror_parts import DURABLE, PULSE, TIMEOUT, Options, Server, Snapshot, Violation, Wire

DEFAULT_RULES = default_text(Path(__file__).parents[2] / "private/conf/include/failover.xml")


@lru_cache
def _rules_of(text: str, syncat: bool) -> tuple[Rule, ...]:
    return module_rules(text, DEFAULT_RULES, syncat=syncat)


class Remembered:
    """`evaluate` for one set of rules. It is pure, and the servers of all schedules have the same few values again and
    again in what rules look at."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        read = [node for rule in rules for node in _resources(rule.condition)]
        self._patterns = [node for node in read if node.is_pattern]
        self._looked_at = dict.fromkeys((node.name for node in read if not node.is_pattern), True)
        self._verdicts: dict[tuple[Any, ...], Verdict] = {}

    def _reads(self, name: str) -> bool:
        found = self._looked_at.get(name)
        if found is None:
            cls, _, ident = name.partition(".")
            found = any(p.cls in ("?", "*", cls) and p.ident in ("?", "*", ident) for p in self._patterns)
            self._looked_at[name] = found
        return found

    def evaluate(self, view: View) -> Verdict:
        """The verdict, of the rules or of memory."""
        reads = self._reads
        local = tuple([item for item in view.local.items() if reads(item[0])])
        remote = None if view.remote is None else tuple([item for item in view.remote.items() if reads(item[0])])
        key = (local, remote, view.hostname, view.is_default_prim, view.cluster)
        found = self._verdicts.get(key)
        if found is None:
            found = self._verdicts[key] = evaluate(self._rules, view)
        return found


def _resources(node: Expression) -> list[Resource]:
    """The operands of a condition that are resources."""
    match node:
        case And(left, right) | Or(left, right) | Compare(_, left, right):
            return [*_resources(left), *_resources(right)]
        case Not(operand):
            return _resources(operand)
        case Resource():
            return [node]
        case _:
            return []


_REMEMBERED: dict[int, tuple[tuple[Rule, ...], Remembered]] = {}
"""By the identity of the rules, which live as long as their entry."""


def _evaluate(rules: tuple[Rule, ...], view: View) -> Verdict:
    known = _REMEMBERED.get(id(rules))
    if known is None:
        known = _REMEMBERED[id(rules)] = (rules, Remembered(rules))
    return known[1].evaluate(view)


machine.evaluate = _evaluate  # type: ignore[attr-defined,assignment]
MAX_EVENTS = 60_000
HURRY = 2.0
PROBE = 3.0
"""Seconds that a witness is asked before it counts as one that does not answer."""
INTERFACE = "intf.eth0"


def _in_wait(action: Action) -> bool:
    return isinstance(action, Log) and action.code == "local_state" and ("state", "WAIT") in action.fields


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
        self.data = Data(self)
        self.judge = Judge(self)
        self.links = tuple(
            Link("flow" if options.flow and i == 0 else f"l{i}", PULSE, TIMEOUT) for i in range(options.links)
        )
        self.impaired_until = 0.0
        self.parted_until = 0.0
        self.witness_side = ""
        """While it is not empty, only this server sees the witness."""
        self.chaos = True
        self.addresses = {"A": "one", "B": "one"}
        """What both must have in common, as it is configured."""
        self.deciding_until = 0.0
        """Until then an administrator decides, and nobody starts a module besides."""
        self.log: list[tuple[float, str, str]] = []
        if options.syncat:
            self.at(options.syncat, self._cron)

    # -- time

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self.counter += 1
        heapq.heappush(self.queue, (self.now + delay, self.counter, action))

    def run_until(self, end: float) -> None:
        queue = self.queue
        while queue and queue[0][0] <= end:
            self.events += 1
            if self.events > MAX_EVENTS:
                raise Violation("too many events: something spins")
            self.now, _, action = heapq.heappop(queue)
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
            rules=_rules_of(self.options.rules, self.options.syncat > 0),
            syncat="* * * * *" if self.options.syncat else "",
            defaultprim=self.options.defaultprim,
            failover=self.options.failover,
            period=2.0,
            handle_time=self.options.handle_time,
            checks=(("pre", (INTERFACE,)),) if self.options.interface else (),
            witness="w" if self.options.witness else "",
            hurry=HURRY,
            mark=self.options.mark,
            agrees=(("addresses", self.addresses[name]),),
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
        server.powered, server.app, server.alone, server.looks = False, False, False, False
        self._end_heart(server)
        self.data.break_stream(server)
        server.rfs, server.held, server.frozen_until, server.backlog = "none", [], 0.0, []
        server.shown = {}
        self.data.stream_loses(name)

    def start_heart(self, name: str, *, adopt: bool = False) -> None:
        """The process heart begins (module start, or after a kill)."""
        server = self.servers[name]
        if not server.powered or server.heart is not None:
            return
        server.orphaned = False
        self.incarnations += 1
        server.life += 1
        server.distracted = self.now
        server.sent = Sent(self.incarnations)
        server.heart = new_state(self.setup(name), self.incarnations)
        self.say(name, f"== heart {self.incarnations} starts, adopt={adopt}")
        known = server.shown if adopt else {**server.shown, **server.disk}
        gap = self.now - server.awake
        born = Born(
            tuple(known.items()),
            server.mark,
            adopt and server.mark,
            self.now,
            gap,
            unconfirmed=self.now - server.confirmed,
            unproved=adopt and server.mark,
        )
        self.feed(name, born)
        life = server.life
        if born.unproved:
            self.at(self.random.uniform(0.2, 1.5), lambda: self._prove(name, life))
        if server.heart is not None:
            self._pulse(name, life)
            self.at(0.5, lambda: self._look_at_interface(name))

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

    def kill_module(self, name: str) -> None:
        """All processes of the module killed at once, as a memory killer does; the application lives on, without its
        file system.  heart's successor hears from nfsadmin that nfsbox died."""
        server = self.servers[name]
        if server.heart is None:
            return
        self.kill_heart(name)
        if server.rfs in ("none", "dead"):
            return
        self.say(name, "== nfsbox killed")
        primary = server.rfs == "primary"
        self.data.lose_box(server)
        server.silent_box = self.random.random() < 0.5
        if server.silent_box:
            # nfsadmin is gone too: nobody but the proof of the new heart tells of it
            return
        self.at(1.3, lambda: self._tell_box_died(name, primary, server.life))

    def _prove(self, name: str, life: int) -> None:
        """The new heart has looked at the parts of the role that it took over."""
        server = self.servers[name]
        if server.life != life or server.heart is None:
            return
        lost = server.silent_box and server.rfs == "dead" and server.heart.role.running
        self.feed(name, Proved(("nfsbox", "nfsadmin"), (), True) if lost else Proved())

    def _tell_box_died(self, name: str, primary: bool, life: int) -> None:
        server = self.servers[name]
        if server.rfs == "dead" and server.powered:
            self.feed(name, Replication("nfsbox_died"))
            if server.rfs == "dead" and not primary:
                server.rfs = "standby"
            self.at(2.0, lambda: self._tell_box_died(name, primary, life))

    def snapshot(self, name: str) -> None:
        """Keep what a server has on its disks."""
        server = self.servers[name]
        self.say(name, "== snapshot")
        server.kept = kept = Snapshot(dict(server.disk), list(server.data), server.inconsistent, server.mark)

        def over() -> None:
            kept.until = self.data.next_write if kept.until is None else kept.until

        self.at(4 * self.options.mark, over)

    def restore(self, name: str) -> None:
        """Put a snapshot back: the server, without power, has its older disks again."""
        server = self.servers[name]
        if server.powered or server.kept is None:
            return
        self.say(name, "== restored from its snapshot")
        kept = server.kept
        kept.until = self.data.next_write if kept.until is None else kept.until
        self.judge.set_back(server, kept.data, kept.until)
        server.disk, server.data = dict(kept.disk), list(kept.data)
        server.inconsistent, server.mark, server.old = kept.inconsistent, kept.mark, True

    def clone(self, name: str, other: str) -> None:
        """The disks of a server become a copy of those of the other one, which runs on."""
        source, server = self.servers[name], self.servers[other]
        if not server.powered:
            self.say(other, f"== is a clone of {name}")
            self.judge.set_back(server, source.data, 0)
            server.disk, server.data = dict(source.disk), list(source.data)
            server.inconsistent, server.mark, server.old = source.inconsistent, source.mark, True

    def unplug(self, name: str, seconds: float) -> None:
        """The only interface of a server loses its carrier: heartbeats, replication, and its checker sees it."""
        server = self.servers[name]
        if not server.carrier:
            return
        self.say(name, f"== interface lost for {seconds:.1f} s")
        server.carrier = False
        self.part(seconds)
        self._look_at_interface(name)

        self.at(seconds, lambda: self.plug(name))

    def plug(self, name: str) -> None:
        """The carrier is back."""
        server = self.servers[name]
        if not server.carrier:
            self.say(name, "== interface back")
            server.carrier = True
            self._look_at_interface(name)

    def _cron(self) -> None:
        """It is time to synchronise; cron says it to both servers, whatever they are."""
        for name, server in self.servers.items():
            if server.heart is not None:
                self.feed(name, ResourceSet(syncat.NAME, "up", "cron"))
        self.at(self.options.syncat, self._cron)

    def _look_at_interface(self, name: str) -> None:
        server = self.servers[name]
        if self.options.interface and server.looks and server.powered:
            self.feed(name, ResourceSet(INTERFACE, "up" if server.carrier else "down", "intfcheck"))

    def passes(self, sender: str, index: int) -> bool:
        """Whether what `sender` sends on a link may arrive."""
        if self.wires[sender, index].cut:
            return False
        return self.servers["A"].carrier and self.servers["B"].carrier

    def part(self, seconds: float) -> None:
        """The servers may not hear each other for so long, although both go on."""
        until = self.now + seconds + 2 * TIMEOUT
        self.impaired_until, self.parted_until = max(self.impaired_until, until), max(self.parted_until, until)
        if not self.witness_side:
            self.judge.excused_until = max(self.judge.excused_until, until + self.setup("A").holds)

    def freeze(self, name: str, seconds: float, *, deaf: bool = False) -> None:
        """SIGSTOP of heart for a while; what arrives meanwhile waits in its sockets, unless they are full (`deaf`)."""
        server = self.servers[name]
        if server.heart is not None and self.now >= server.frozen_until:
            self.say(name, f"== heart frozen for {seconds:.1f} s")
            server.froze_at = self.now
            server.frozen_until, server.deaf = self.now + seconds, deaf
            self.impaired_until = max(self.impaired_until, self.now + seconds + 2 * TIMEOUT)
            excuse = self.impaired_until + self.setup("A").holds
            self.judge.excused_until = max(self.judge.excused_until, excuse)
            life = server.life
            self.at(seconds + 1e-6, lambda: self._thaw(name, life))

    def _thaw(self, name: str, life: int) -> None:
        server = self.servers[name]
        if server.life != life or server.heart is None or self.now < server.frozen_until:
            return
        server.thawed_at = self.now
        if self.now - server.froze_at > 2 * PULSE + OVERSLEPT_SLACK:
            server.distracted = self.now
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
        server.awake, server.confirmed = self.now, server.heart.confirmed_at
        self.feed(name, Tick())
        if server.life == life:
            self.send(name)

    # -- heartbeats

    def send(self, name: str) -> None:
        server = self.servers[name]
        if server.heart is None:
            return
        server.sent.another(self.now)
        said = beat(server.heart, server.sent.sequence)
        for index in range(self.options.links):
            wire = self.wires[name, index]
            if not self.passes(name, index) or self.random.random() < wire.loss:
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
        event = Heard(ident, beat, server.sent.when(beat.echo))
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
        if before.blocked:
            server.distracted = self.now
        if self.trace is not None:
            for reason in decision.reasons:
                self.say(name, f"   because {reason}")
        if not isinstance(event, Born):
            self.judge.check_told(name, before, decision)
        life = server.life
        for action in decision.actions:
            if self.chaos and self.options.faults and self.random.random() < 0.0004:
                self.power_off(name)
                return
            self._perform(name, action)
            if server.life != life or server.heart is None:
                return
        if before.role is not decision.state.role:
            self.judge.check_role(name, before.role, decision.state)
        elif before.role is Role.ALONE and any(_in_wait(action) for action in decision.actions):
            self.judge.left_and_came_back(server)

    def _perform(self, name: str, action: Any) -> None:
        server = self.servers[name]
        match action:
            case Log(code, fields):
                if self.trace is not None:
                    self.say(name, f"LOG {code} {dict(fields)}")
                if code == "splitbrain_exiting":
                    self.judge.check_exit(server)
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
                self.data.replied(token, ok)
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
        if slow and self.options.witness and isinstance(effect, Scripts) and any(c.stops for c in effect.calls):
            duration = self.random.uniform(0.5, 25.0)
        within = getattr(effect, "within", 0.0)
        if within:
            duration = min(duration, within)
        if isinstance(effect, Witness):
            duration = self.random.uniform(0.01, 1.0) if self.sees_witness(name) else PROBE
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
                return self.data.operate(server, operation, dict(options))
            case Witness():
                return self.sees_witness(name)
            case Processes(start, "pre"):
                server.looks = start
                if start:
                    self.at(0.02, lambda: self._look_at_interface(name))
                return True
        return True

    def sees_witness(self, name: str) -> bool:
        """The witness answers a server that has its interface, and is on its side."""
        return self.servers[name].carrier and self.witness_side in ("", name)

    def _app(self, server: Server, on: bool) -> None:
        server.app = on
        if on:
            self.judge.check_application(server)
            self.data.write_later(server)

    # -- commands

    def order(self, name: str, action: str, option: str = "", *, decided: bool = False) -> None:
        """An administrator's command; start spawns the processes of a stopped module.  `decided`: it costs no data that
        counts."""
        server = self.servers[name]
        if not server.powered:
            return
        self.say(name, f"== command {action} {option}")
        if server.heart is None:
            if server.orphaned or action not in ("start", "prim", "primforce", "second"):
                # safeadmin spawns nothing while the supervisor of the module runs
                return
            self.start_heart(name)
        asked = server.heart is not None and server.heart.resources.get(lineage.FOUND, lineage.NONE) != lineage.NONE
        if not decided and (action in ("prim", "primforce") or (action == "second" and asked)):
            self.judge.forced = True
        self.feed(name, Ordered(Command(action, option=option)))


def _operation(effect: Effect) -> str:
    return effect.operation if isinstance(effect, Rfs) else ""


def _describe(effect: Effect) -> str:
    if isinstance(effect, Scripts):
        return "scripts " + ", ".join(" ".join((c.name, *c.args)) for c in effect.calls)
    if isinstance(effect, Processes):
        return f"{'start' if effect.start else 'stop'} processes of {effect.phase}"
    return f"{type(effect).__name__.lower()} {effect.operation}" if isinstance(effect, Rfs | Vip) else str(effect)

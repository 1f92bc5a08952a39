"""What a module would do: the production core of one or two servers on a virtual clock.

Nothing real is touched. The network is perfect until it is cut, every script and operation succeeds at once, and
a checker finds everything in order unless the scenario says otherwise. Used by `safekit simulate` and by the
golden scenarios.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from heart.core import plans
from heart.core.actions import (
    Abort,
    Action,
    Announce,
    Effect,
    Exit,
    Forget,
    Log,
    Marker,
    Processes,
    Reboot,
    Remember,
    Reply,
    Rfs,
    Run,
    Scripts,
    Send,
    Vip,
    Witness,
)
from heart.core.decide import beat, deadline, decide, new_state
from heart.core.events import (
    Born,
    ClusterView,
    Done,
    Event,
    Heard,
    Ordered,
    PairAsked,
    Replication,
    ResourceSet,
    Tick,
)
from heart.core.state import State
from heart.core.values import Beat, Command, Reason, Role, Setup
from heart.shell.telling import Sent
from safekit.log.messages import MESSAGES, render

EFFECT_SECONDS = 0.01
WIRE_SECONDS = 0.001
SYNC_SECONDS = 0.5
LONGEST = 1800.0
MAX_EVENTS = 200_000
_DATA = ("rfs.uptodate", "rfs.paired")


@dataclass(frozen=True, slots=True)
class Told:
    """Something that happened: seconds since the beginning, node ("" for the scenario itself), kind (fact,
    message, reason, effect) and text. `code` is that of a message, the rule of a reason; `level` of a message."""

    at: float
    node: str
    kind: str
    text: str
    code: str = ""
    level: str = "E"


class Runaway(Exception):
    """The scenario does not come to rest; a defect, or rules that undo each other."""


class Server:
    """One simulated server."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.heart: State | None = None
        self.sent = Sent(0)
        self.tokens: set[int] = set()
        self.overrides: dict[str, str] = {}
        self.scripts: list[str] = []

    @property
    def shown(self) -> str:
        """`PRIM green`; `off` without a heart."""
        return f"{self.heart.role} {self.heart.color}" if self.heart is not None else "off"


class Scenario:
    """One or two servers; see the module's docstring.

    `heals`: a restart of the application repairs what its checkers (not those of phase pre) see.
    """

    def __init__(self, setups: Iterable[Setup], *, heals: bool = True) -> None:
        self.servers = {setup.node: Server(setup) for setup in setups}
        self.heals = heals
        self.now = 0.0
        self.told: list[Told] = []
        self.cut = False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.begun: dict[str, Role] = {}
        self._events = 0
        self._born = 0

    # ------------------------------------------------------------------ setting

    def begin(self, states: Mapping[str, Role], resources: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Put the servers into these states, let them hear each other, and begin the account at 0 s.

        A server in STOP has no heart. WAIT decides by itself, as it would when it is started.
        """
        self.begun = dict(states)
        for node, role in states.items():
            if role is not Role.STOP and role is not Role.UNKNOWN:
                self._put(node, role, dict((resources or {}).get(node, {})))
        self.run(until=3 * max(s.setup.pulse for s in self.servers.values()))
        offset = self.now
        self.told.clear()
        self._offset = offset

    _offset = 0.0

    def _put(self, node: str, role: Role, extra: dict[str, str]) -> None:
        server, setup = self.servers[node], self.servers[node].setup
        self._born += 1
        server.heart, server.sent = new_state(setup, self._born), Sent(self._born)
        paired = role in (Role.PRIM, Role.SECOND)
        values = {
            "state.local": role.value,
            "state.color": "green",
            "state.term": "1",
            "state.command": "start",
            "usersetting.checker": "on",
            "usersetting.errd": "on",
        }
        if setup.rfs:
            uptodate = role.primary or role is Role.SECOND
            values |= {"rfs.uptodate": "up" if uptodate else "down", "rfs.paired": "up" if paired else "down"}
            values |= {"rfs.swapping": "down", "rfs.degraded": "down"}
        values["rfs.lastprimstate" if setup.rfs else "state.lastprimstate"] = "up" if role.primary else "down"
        if setup.mirror:
            values["usersetting.failover"] = "on" if setup.failover else "off"
        if setup.witness:
            values |= {"splitbrain.uptodate": "up"}
        for phase in ("pre", *plans.phases(role)):
            values |= {name: server.overrides.get(name, "up") for name in setup.checks_of(phase)}
        values |= extra
        self.feed(node, Born(tuple(values.items()), halted=False, adopt=True))
        self._pulse(node, self._born)

    # --------------------------------------------------------------------- facts

    def fact(self, text: str) -> None:
        """Write down what the scenario does."""
        self.told.append(Told(self.now - self._offset, "", "fact", text))

    def set(self, node: str, name: str, value: str) -> None:
        """A resource gets a value, and its checker finds it so from now on."""
        self.fact(f"{name} becomes {value} on {node}")
        server = self.servers[node]
        server.overrides[name] = value
        if server.heart is not None:
            checker = f"{name.partition('.')[0]}check"
            if name in _DATA:
                server.heart.resources = {**server.heart.resources, name: value}
                self.feed(node, Tick())
            else:
                self.feed(node, ResourceSet(name, value, checker))

    def power_off(self, node: str) -> None:
        """A power failure."""
        self.fact(f"{node} loses its power")
        self.servers[node].heart = None
        self.servers[node].tokens.clear()

    def cut_heartbeats(self) -> None:
        """All networks between the servers fail, heartbeats and replication alike."""
        self.fact("all heartbeats are cut")
        self.cut = True

    def join_heartbeats(self) -> None:
        """The networks are repaired."""
        self.fact("all heartbeats are back")
        self.cut = False

    def order(self, node: str, action: str) -> None:
        """An administrator's command; on a server without a heart it starts one."""
        self.fact(f"safekit {action} on {node}")
        server = self.servers[node]
        if server.heart is None:
            self._born += 1
            server.heart, server.sent = new_state(server.setup, self._born), Sent(self._born)
            self.feed(node, Born())
            self._pulse(node, self._born)
        self.feed(node, Ordered(Command(action)))

    def cluster(self, node: str, value: str) -> None:
        """What safeadmin sees of the other servers."""
        self.feed(node, ClusterView(value))

    # ---------------------------------------------------------------------- time

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, action))

    def run(self, until: float) -> None:
        """Let the clock run to `until`. Raises Runaway."""
        while self._queue and self._queue[0][0] <= until:
            self._events += 1
            if self._events > MAX_EVENTS:
                raise Runaway(f"more than {MAX_EVENTS} events within {self.now:.0f} s")
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until

    def settle(self, longest: float = LONGEST) -> None:
        """Let the clock run until nothing happens any more."""
        setups = [server.setup for server in self.servers.values()]
        quiet = max(max(2 * s.handle_time, 2 * s.timeout, 4 * s.pulse, 2 * s.period) for s in setups) + 5.0
        end = self.now + longest
        while self.now < end:
            before = len(self.told)
            self.run(until=min(self.now + quiet, end))
            if len(self.told) == before:
                return

    # ----------------------------------------------------------------- the core

    def feed(self, node: str, event: Event) -> None:
        """One event of a server."""
        server = self.servers[node]
        if server.heart is None:
            return
        decision = decide(server.heart, event, self.now)
        server.heart = decision.state
        for reason in decision.reasons:
            self._tell_reason(node, reason)
        for action in decision.actions:
            self._perform(node, server, action)
            if self.servers[node].heart is None:
                return
        heart = server.heart
        due = deadline(heart)
        self.at(max(due - self.now, WIRE_SECONDS), lambda: self._due(node, heart))

    def _due(self, node: str, heart: State) -> None:
        if self.servers[node].heart is heart:
            self.feed(node, Tick())

    def _pulse(self, node: str, life: int) -> None:
        server = self.servers[node]
        if server.heart is None or server.heart.incarnation != life:
            return
        self.at(server.setup.pulse, lambda: self._pulse(node, life))
        self.feed(node, Tick())
        self._send(node)

    def _send(self, node: str) -> None:
        server = self.servers[node]
        if server.heart is None or self.cut or server.setup.peer not in self.servers:
            return
        server.sent.another(self.now)
        said = beat(server.heart, server.sent.sequence)
        peer = server.setup.peer
        for link in server.setup.links:
            self.at(WIRE_SECONDS, lambda ident=link.ident: self._arrive(peer, ident, said))  # type: ignore[misc]

    def _arrive(self, node: str, ident: str, said: Beat) -> None:
        if not self.cut:
            self.feed(node, Heard(ident, said, self.servers[node].sent.when(said.echo)))

    def _tell_reason(self, node: str, reason: Reason) -> None:
        self.told.append(Told(self.now - self._offset, node, "reason", str(reason), reason.rule))

    def _perform(self, node: str, server: Server, action: Action) -> None:
        match action:
            case Log(code, fields):
                message = MESSAGES.get(code)
                level = message.level if message is not None else "E"
                text = render(code, dict(fields))
                self.told.append(Told(self.now - self._offset, node, "message", text, code, level))
            case Send():
                self._send(node)
            case Run(token, effect):
                server.tokens.add(token)
                self._effect(node, server, token, effect)
            case Abort(token):
                server.tokens.discard(token)
            case Announce():
                self.told.append(Told(self.now - self._offset, node, "effect", "tells the network the addresses again"))
            case Reboot():
                self.told.append(Told(self.now - self._offset, node, "effect", "reboots"))
            case Exit():
                server.heart = None
                server.tokens.clear()
            case Remember() | Forget() | Marker() | Reply():
                return

    # ------------------------------------------------------------------- effects

    def _effect(self, node: str, server: Server, token: int, effect: Effect) -> None:
        text = describe(effect)
        if text:
            self.told.append(Told(self.now - self._offset, node, "effect", text))
        ok = True
        match effect:
            case Scripts(calls):
                server.scripts += [" ".join((call.name, *call.args)) for call in calls]
            case Processes(start=True):
                self.at(2 * EFFECT_SECONDS, lambda: self._checkers_speak(node, effect))
            case Witness(ident):
                ok = server.overrides.get(f"splitbrain.{ident}", "up") == "up"
            case Rfs("secondary", options) if not dict(options).get("swap"):
                attempt = str(dict(options).get("attempt", ""))
                self.at(SYNC_SECONDS, lambda: self._synchronised(node, attempt))
            case Rfs("alone" | "demote" | "primary" | "standby") | Vip():
                pass
        self.at(EFFECT_SECONDS, lambda: self._done(node, token, ok))

    def _done(self, node: str, token: int, ok: bool) -> None:
        server = self.servers[node]
        if token in server.tokens:
            server.tokens.discard(token)
            self.feed(node, Done(token, ok, "" if ok else "no answer"))

    def _checkers_speak(self, node: str, step: Processes) -> None:
        server = self.servers[node]
        if not step.checkers or server.heart is None:
            return
        for name in server.setup.checks_of(step.phase):
            if self.heals and step.phase != "pre":
                server.overrides.pop(name, None)
            checker = f"{name.partition('.')[0]}check"
            self.feed(node, ResourceSet(name, server.overrides.get(name, "up"), checker))

    def _synchronised(self, node: str, attempt: str) -> None:
        """End of a reintegration: the primary remembers the pair, then the secondary is up to date."""
        server = self.servers[node]
        peer = self.servers.get(server.setup.peer)
        if server.heart is None or peer is None:
            return
        if self.cut or peer.heart is None or not peer.heart.role.primary:
            self.feed(node, Replication("rfs_failed", "the primary is not reached"))
            return
        self.feed(server.setup.peer, PairAsked(0))
        self.feed(node, Replication("rfs_synced", attempt=attempt))

    # -------------------------------------------------------------------- results

    def states(self) -> dict[str, str]:
        """State of each server, in their order."""
        return {node: server.shown for node, server in self.servers.items()}

    def messages(self, node: str) -> list[str]:
        """The event messages of a node, in order."""
        return [told.text for told in self.told if told.node == node and told.kind == "message" and told.level == "E"]


def describe(effect: Effect) -> str:
    """What an effect does to the outside, "" for what only prepares."""
    match effect:
        case Scripts(calls):
            return "runs " + ", ".join(call.name + (" force" if call.args[:1] == ("force",) else "") for call in calls)
        case Vip(operation) if operation in ("set", "unset"):
            return f"{operation}s the virtual addresses"
        case Rfs("primary"):
            return "makes the replicated directories writable"
        case Rfs("secondary"):
            return "synchronises the replicated directories"
        case Witness(ident):
            return f"asks the witness {ident}"
        case _:
            return ""


def partner(role: Role) -> Role:
    """The usual state of the other server of a mirror."""
    return {Role.PRIM: Role.SECOND, Role.SECOND: Role.PRIM}.get(role, Role.STOP)

"""The shell around the automaton: it feeds events in, carries actions out, and owns every clock and socket.

Order that must hold: the actions of one decision are carried out in their
order, durable memory included, before the next event is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heart.core import plans
from heart.core.actions import Abort, Action, Announce, Exit, Forget, Log, Marker, Reboot, Remember, Reply, Run, Send
from heart.core.decide import beat, deadline, decide, new_state
from heart.core.events import (
    ClusterView,
    Done,
    Event,
    Heard,
    Overslept,
    Proved,
    ResourceSet,
    SupervisorDied,
    Tick,
)
from heart.core.state import State
from heart.core.values import Beat, Reason, Role
from heart.shell import configured, proof
from heart.shell.complaints import Complaints
from heart.shell.effects import Effects
from heart.shell.figures import TakeOvers
from heart.shell.heartbeats import Heartbeats
from heart.shell.publish import History, LifeSign, Published, RunningMark
from heart.shell.telling import PEER_FILE, Telling
from heart.shell.watching import PeerNeighbours, deaths_of_supervisor, views_of_cluster
from safekit.bus.endpoint import BusError
from safekit.bus.requests import errd, vipd
from safekit.bus.requests.safeadmin.processes import Ended, Respawn
from safekit.disk.stats import forget
from safekit.process.frame import Context
from safekit.process.scripts import ScriptRunner
from safekit.wire.keys import encrypted
from safekit.wire.rotation import follow_keys
from safekit.wire.seal import next_epoch

RECENT = 200
"""Decisions kept in memory for `status`."""
LINGER_PULSES = 3
"""At the end of a stop the peer is told STOP again for so many pulses, or until it has heard it."""
LINGER_SECONDS = 2.0
DIFFERENT_SECONDS = 5.0
"""The servers are configured one after the other: a difference that passes is none."""
FORGOTTEN_SECONDS = 60.0
"""Figures of a process that has published none for so long, at the start of heart."""
FIRST_COMMAND_SECONDS = 60.0
"""A heart that nobody orders anything ends after this long."""


class Shell:
    """One per heart."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.plan = configured.read(context.config, context.cluster, context.node)
        paths = context.paths
        paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
        incarnation = next_epoch(paths.var / "heart.epoch")
        self.state: State = new_state(self.plan.setup, incarnation)
        self.published = Published(paths)
        self.history = History(paths.why, context.node)
        self.peer_history = History(paths.why, self.plan.setup.peer, PEER_FILE)
        self.telling = Telling(paths.why)
        self.mark = RunningMark(paths.marker)
        self.life = LifeSign(paths.var / "heart.alive")
        self.scripts = ScriptRunner(paths, context.config.user, context.log)
        self.scripts.end_leftover()
        self.effects = Effects(context, self.scripts, self._on_done)
        self.effects.processes.checkers = self.plan.checkers
        self.effects.processes.silenced = self._silenced
        self.recent: deque[tuple[float, Reason]] = deque(maxlen=RECENT)
        self.ended = asyncio.Event()
        self.exit: Exit | None = None
        self.complaints = Complaints(context.log)
        self.reloading = asyncio.Lock()
        self.heartbeats = Heartbeats(context, incarnation, self)
        self._replies: dict[int, asyncio.Future[Reply]] = {}
        self._reply_token = 0
        self._setters: dict[str, str] = {"splitbrain.uptodate": "splitbraincheck"}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._beside = context.beside()
        self.neighbours = PeerNeighbours(self.complaints)
        self._take_overs = TakeOvers()
        self._differs_since = 0.0
        self.die: Callable[[int], object] = os._exit

    # -- events in, actions out

    def feed(self, event: Event) -> None:
        """One event, carried out completely.

        When that fails (a memory that cannot be put on disk, a defect), heart ends at once: its successor
        takes up what is on disk, which is always a state that may be acted on.
        """
        try:
            self._feed(event)
        except Exception as error:
            with contextlib.suppress(OSError):
                self.context.log.event("internal", text=f"heart ends: {type(event).__name__}: {error!r}")
            self.die(1)
            raise

    def _feed(self, event: Event) -> None:
        decision = decide(self.state, event, time.monotonic())
        peer_before = self.state.peer
        self.state = decision.state
        for action in decision.actions:
            self._perform(action)
        if self.state.peer is not peer_before:
            self._look_at_peer(self.state.peer)
        self.published.flush()
        self._record(decision.reasons)
        heard = self.heartbeats.last_heard
        self._take_overs.note(self.state.role, self.state.color, heard, time.monotonic(), time.time())
        self._schedule()

    def _perform(self, action: Action) -> None:
        match action:
            case Log(code, fields):
                self.context.log.event(code, **dict(fields))
            case Remember(values):
                self.published.remember(values, self._setters)
                if any(name == "usersetting.errd" for name, _ in values) and self.context.config.errd is not None:
                    self.context.bus.tell(self.context.module, errd.Look())
            case Forget(names):
                self.published.forget(names)
            case Send():
                self.heartbeats.send()
            case Run(token, effect):
                self.effects.start(token, effect)
            case Abort(token):
                self.effects.abort(token)
            case Announce():
                if self.context.config.vip is not None:
                    self.context.bus.tell(self.context.module, vipd.AnnounceAgain())
            case Marker(present):
                if present:
                    self.scripts.trim_userlog()
                self.mark.set(present)
            case Reply():
                future = self._replies.pop(action.token, None)
                if future is not None and not future.done():
                    future.set_result(action)
            case Reboot():
                self.start_task(self._reboot())
            case Exit():
                self.exit = action
                self.start_task(self._end())

    def _on_done(self, done: Done) -> None:
        self.feed(done)

    def _record(self, reasons: tuple[Reason, ...]) -> None:
        now = time.time()
        self.recent.extend((now, reason) for reason in reasons)
        try:
            self.history.record(self.telling.add(reasons, self.published.detail))
        except OSError as error:
            self.complaints.say(("why", ""), f"the decision history cannot be written: {error}")

    def _schedule(self) -> None:
        """Tick when the automaton needs one.  A timer that is already right stays."""
        due = deadline(self.state)
        if self._timer is not None:
            if abs(due - self._due) < 0.001:
                return
            self._timer.cancel()
        self._due = due
        delay = max(due - time.monotonic(), 0.001)
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.feed(Tick())

    # -- heartbeats

    def give_sign(self) -> None:
        """For a successor: how long ago the other server was sure to have heard this heart."""
        try:
            self.life.give(time.monotonic() - self.state.confirmed_at)
        except OSError as error:
            self.complaints.say(("alive", ""), f"heart.alive cannot be written: {error}")

    def says(self, sequence: int) -> Beat:
        """What the heartbeat of that number says."""
        return beat(self.state)._replace(
            sequence=sequence,
            decided=self.telling.pending() if self.state.peer is not None else (),
            decided_seen=self.telling.seen,
        )

    def hears(self, ident: str, heard: Beat, echoed: float | None) -> None:
        """A heartbeat of the other server; see the event Heard."""
        self.telling.acknowledged(heard.decided_seen)
        fresh = self.telling.fresh(heard.decided)
        if fresh:
            try:
                self.peer_history.record(fresh)
            except OSError as error:
                self.complaints.say(("why", ""), f"the decision history cannot be written: {error}")
        self.feed(Heard(ident, heard, echoed))

    def _look_at_peer(self, peer: Beat | None) -> None:
        self.published.remote(peer)
        if peer is None or not peer.signature or not self.state.setup.signature:
            return
        if peer.signature == self.state.setup.signature:
            self._differs_since = 0.0
            self.complaints.over(("signature", peer.node))
            return
        self._differs_since = self._differs_since or time.monotonic()
        if time.monotonic() - self._differs_since >= DIFFERENT_SECONDS:
            self.complaints.say(("signature", peer.node), peer.signature, code="config_differs", peer=peer.node)

    def _figures(self) -> dict[str, Any]:
        """For monitoring; see safekit.disk.stats."""
        return {"heartbeats": self.heartbeats.figures(), **self._take_overs.told()}

    def publish_encryption(self) -> None:
        """Whether the module has a key of its own (guide 10.4); without one the cluster's key protects it."""
        value = "on" if encrypted(self.context.module) else "off"
        self.published.remember([("encryption.module", value)], {})

    # -- requests

    async def ask(self, make: Any) -> Reply:
        """Feed the event `make(token)` and wait for its answer."""
        self._reply_token += 1
        token = self._reply_token
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._replies[token] = future
        self.feed(make(token))
        try:
            return await asyncio.wait_for(future, 5.0)
        finally:
            self._replies.pop(token, None)

    def set_resource(self, name: str, value: str, who: str) -> bool:
        """A resource set from outside; True when its value changed."""
        before = self.state.resources.get(name)
        self._setters[name] = who
        self.feed(ResourceSet(name, value, who))
        return self.state.resources.get(name) != before

    def _silenced(self, name: str) -> None:
        if name in self.state.resources:
            self.set_resource(name, "init", "heart")

    # -- watching

    def start_watching(self) -> None:
        """What goes on beside the events."""
        self.start_task(self._watch_supervisor())
        self.start_task(self.effects.processes.adopt())
        self.start_task(self._watch_cluster())
        forget(self.context.paths, FORGOTTEN_SECONDS)
        self.context.figures = self._figures
        self.start_task(follow_keys(self.context.module, self.heartbeats.rotation, self.heartbeats.rekey))
        if self.plan.setup.mirror:
            self.start_task(self.neighbours.keep(lambda: self.heartbeats.peers(self.plan.permanent_arp)))

    async def prove(self) -> None:
        """Whether the parts of the role that was adopted are there; those that are not are made again."""
        found = proof.Lost()
        try:
            found = await self._look()
        finally:
            self.feed(Proved(found.names, found.resources, found.data))

    async def _look(self) -> proof.Lost:
        s, rfs = self.state, self.context.config.rfs
        if not s.role.running:
            return proof.Lost()
        return await proof.lost(
            self.effects.processes,
            plans.phases(s.role),
            [replicated.dir for replicated in rfs.replicated] if rfs is not None else [],
            checkers=s.resource("usersetting.checker", "on") != "off",
        )

    async def _watch_supervisor(self) -> None:
        """supervisord runs the others: its end is an event (M5)."""
        async for _ in deaths_of_supervisor(Path(self.context.paths.supervisor_sock)):
            if self.exit is None and self.state.role is not Role.STOP:
                self.feed(SupervisorDied())

    async def _watch_cluster(self) -> None:
        """cluster() of the rules is safeadmin's view; who runs the module stays as it was while nobody answers."""
        context = self.context

        def servers() -> set[str]:
            return {context.node, self.plan.setup.peer, *self.plan.members}

        async for value, told in views_of_cluster(context.bus, context.module, servers):
            siblings = self.state.siblings if told is None else told
            if (value, siblings) != (self.state.cluster, self.state.siblings):
                self.feed(ClusterView(value, siblings))

    def on_late(self, seconds: float) -> None:
        """The frame measured that the loop woke late."""
        self.feed(Overslept(seconds))

    # -- the end

    async def _reboot(self) -> None:
        self.context.log.event("rebooting")
        process = await asyncio.create_subprocess_exec("systemctl", "reboot")
        status = await process.wait()
        if status != 0:
            self.context.log.event("internal", text=f"systemctl reboot failed (status {status}): reboot by hand")

    async def _end(self) -> None:
        """The module has stopped: make sure that the peer heard it, then have our supervisor end."""
        limit = time.monotonic() + min(LINGER_PULSES * self.state.setup.pulse, LINGER_SECONDS)
        said = self.heartbeats.sequence
        while time.monotonic() < limit:
            peer = self.state.peer
            if peer is None or peer.role is Role.STOP:
                break
            if peer.echo[0] == self.state.incarnation and peer.echo[1] >= said:
                break
            await asyncio.sleep(0.02)
        assert self.exit is not None
        module = self.context.module
        told = Respawn(module) if self.exit.respawn else Ended(module)
        try:
            await self.context.bus.ask(module, told)
        except BusError as error:
            self.context.log.debug(f"safeadmin was not told {told.op}: {error.text}")
            with contextlib.suppress(Exception):
                await self.effects.supervisor.shutdown()
        self.ended.set()

    def start_task(self, work: Any) -> None:
        """Run it beside the decisions; its defects go to the log."""
        self._beside.start(work)

    async def close(self) -> None:
        """Leave: sockets, timers, tasks.  Scripts that run are left to run: their module goes on."""
        if self._timer is not None:
            self._timer.cancel()
        self._beside.cancel()
        self.heartbeats.close()
        self.effects.processes.close()
        self.life.close()

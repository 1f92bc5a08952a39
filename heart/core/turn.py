"""One event's worth of work: a private copy of the state, and the actions and reasons so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from heart.core.actions import (
    Abort,
    Action,
    Do,
    Forget,
    Hold,
    Log,
    Processes,
    Remember,
    Reply,
    Rfs,
    Run,
    Scripts,
    Step,
    Vip,
)
from heart.core.state import State
from heart.core.values import Color, Reason, Role

LISTEN_PULSES = 5
"""A server that waits listens for so many pulses, even when the other one is known to be stopped."""
SYNC = "trouble.sync"
"""See `heart.core.trouble`."""
MAX_STEPS = 300
"""Inline steps of one event, at most: more means that two rules undo each other."""


class Turn:
    """Helpers that the decision functions share; see the module's docstring."""

    __slots__ = ("_own", "actions", "now", "reasons", "s")

    def __init__(self, state: State, now: float) -> None:
        self.s = state
        self.now = now
        self.actions: list[Action] = []
        self.reasons: list[Reason] = []
        self._own = False

    # -- what is said

    def log(self, code: str, **fields: str) -> None:
        """A line of the module log."""
        self.actions.append(Log(code, tuple(fields.items())))

    def because(self, rule: str, outcome: str, **inputs: object) -> None:
        """Record a decision and what made it."""
        self.reasons.append(Reason(rule, outcome, tuple((k, str(v)) for k, v in inputs.items())))

    # -- what is remembered

    def remember(self, values: Mapping[str, str]) -> bool:
        """Set resources in one durable write; False when all had these values already."""
        s = self.s
        known = s.resources.get
        changed = tuple([(name, value) for name, value in values.items() if known(name) != value])
        if not changed:
            return False
        self._own_resources().update(changed)
        last = self.actions[-1] if self.actions else None
        if isinstance(last, Remember):
            self.actions[-1] = Remember(last.values + changed)
        else:
            self.actions.append(Remember(changed))
        return True

    def forget(self, names: Iterable[str]) -> None:
        """Remove resources that nobody maintains any more."""
        gone = tuple(name for name in names if name in self.s.resources)
        if gone:
            resources = self._own_resources()
            for name in gone:
                del resources[name]
            self.actions.append(Forget(gone))

    def _own_resources(self) -> dict[str, str]:
        if not self._own:
            self.s.resources = dict(self.s.resources)
            self._own = True
        return self.s.resources

    def memory(self, **values: Any) -> None:
        """Set facts by short names: uptodate, paired, lastprim, swapping, degraded, held (bool), term, former, rival.

        The replication facts do not exist in a module without <rfs>.
        """
        s = self.s
        out: dict[str, str] = {}
        for name, value in values.items():
            if name in ("uptodate", "paired", "swapping", "degraded"):
                if s.setup.rfs:
                    out["rfs." + name] = "up" if value else "down"
            elif name == "lastprim":
                out[s.lastprim_name] = "up" if value else "down"
            elif name == "held":
                out["state.held"] = "up" if value else "down"
            else:
                out["state." + name] = str(value)
        self.remember(out)

    def become(self, role: Role, color: Color, **facts: Any) -> None:
        """Change role and colour (with `facts` in the same durable write) and say so, once.  ALONE is entered through
        `heart.core.alone.enter` only."""
        assert role is not Role.ALONE or self.s.role is Role.ALONE, f"{self.s.role} -> ALONE past its guard"
        self.take_role(role, color, **facts)

    def take_role(self, role: Role, color: Color, **facts: Any) -> None:
        """For `become` and `heart.core.alone`."""
        s = self.s
        changed = (s.role, s.color) != (role, color)
        s.role, s.color = role, color
        if facts:
            self.memory(**facts)
        self.remember({"state.local": role.value, "state.color": color.value})
        if role.primary:
            self.forget((SYNC,))
        if changed:
            self.log("local_state", state=role.value, color=color.value)
            if color in (Color.GREEN, Color.RED):
                self.because("settled", f"{role} {color}")

    # -- the peer

    def quiet(self) -> bool:
        """No heartbeat is heard, and each has had its time-out."""
        values = self.s.links.values()
        return "up" not in values and "init" not in values

    def listened(self) -> bool:
        """This server has listened for a whole time-out since it began to, or woke (M0)."""
        return self.now >= self.s.listening_since + self.s.setup.timeout

    def stopped_elsewhere(self) -> bool:
        """safeadmin of the other server says that it does not run the module, and has said so since this server
        listens: a server that waits need not listen for the whole time-out."""
        s = self.s
        window = min(LISTEN_PULSES * s.setup.pulse, s.setup.timeout)
        said = s.stopped_elsewhere_at >= s.listening_since
        return s.role is Role.WAIT and said and self.now >= s.listening_since + window

    def silent(self) -> bool:
        """Every heartbeat has been silent for its time-out, while this server listened."""
        return self.quiet() and (self.listened() or self.stopped_elsewhere())

    def cut_off(self) -> bool:
        """A primary with a witness: for a time-out the peer has confirmed none of this server's heartbeats, so that it
        may take this server for dead, even if its own ones still arrive here."""
        s = self.s
        if not s.setup.witness or not s.role.primary:
            return False
        return self.now >= s.confirmed_at + s.setup.timeout

    def lost(self) -> bool:
        """The peer is silent, and this server may act on that: with a witness, only after its word."""
        return self.silent() and not self.undecided()

    def undecided(self) -> bool:
        """The peer is silent, and the witness has not said that this server may go on."""
        s = self.s
        unheard = self.quiet() or self.cut_off()
        return unheard and (s.verdict != "up" or self.now < s.verdict_from) and self.contested()

    def contested(self) -> bool:
        """Both servers could go on after a loss of all heartbeats, so that the witness has to decide.

        A primary with a secondary that is known to be out of date, and such a
        secondary, need no verdict: their memory has settled it.
        """
        s = self.s
        if not s.setup.witness:
            return False
        if s.role is Role.WAIT:
            forced = s.intent in ("prim", "primforce")
            return not s.setup.rfs and not forced and s.resources.get("splitbrain.uptodate") != "down"
        if s.role is Role.SECOND and s.setup.rfs and (not s.uptodate or s.syncing):
            return False
        return s.role.running and (not s.setup.rfs or s.paired)

    def heard(self) -> bool:
        """The peer speaks on some link."""
        return self.s.peer is not None

    @property
    def peer_role(self) -> Role:
        """Role of the peer, UNKNOWN while nothing is heard."""
        return self.s.peer.role if self.s.peer is not None else Role.UNKNOWN

    # -- the plan

    def follow(self, *steps: Step) -> None:
        """Replace the plan.  The effect in progress is killed when it is a start script, else it ends
        first, its result being ignored."""
        s = self.s
        if s.busy and self.interruptible(self.s.busy_step):
            self.actions.append(Abort(s.busy))
            s.busy, s.busy_step = 0, None
        elif s.busy and isinstance(s.busy_step, Rfs):
            s.busy_step = Rfs(s.busy_step.operation, s.busy_step.options)
        s.plan = steps

    def drop_effect(self) -> None:
        """Kill the effect in progress, whatever it is (forcestop)."""
        s = self.s
        if s.busy:
            self.actions.append(Abort(s.busy))
            s.busy, s.busy_step = 0, None

    @staticmethod
    def interruptible(step: Step | None) -> bool:
        """The effect may be cut short, or left out: start scripts have no time-out of their own."""
        return isinstance(step, Scripts) and not any(call.stops for call in step.calls)

    def idle(self) -> bool:
        """Nothing of the plan is left."""
        return not self.s.plan and not self.s.busy

    def reply(self, token: int, ok: bool = True, code: str = "", text: str = "") -> None:
        """Answer a request; token 0 means that nobody waits."""
        if token:
            self.actions.append(Reply(token, ok, code, text))

    def new_token(self) -> int:
        """A number for an effect, never used before in this incarnation."""
        self.s.token += 1
        return self.s.token

    def advance(self) -> bool:
        """Take the next step of the plan if it can be taken now; True when something was done."""
        s = self.s
        if s.busy or not s.plan:
            return False
        step = s.plan[0]
        if isinstance(step, Hold):
            if not CONDITIONS[step.condition](self):
                return False
            s.plan = s.plan[1:]
            return True
        if isinstance(step, Do):
            s.plan = s.plan[1:]
            STEPS[step.function](self, step.argument)
            return True
        if isinstance(step, Rfs):
            if s.alone_by_primary():
                # data that was given up for a swap cannot be told `alone`: primary without a peer is all of it
                s.breaking = ""
                step = Rfs("primary", on_failure=step.on_failure)
            if s.breaking and step.operation not in ("release", "prepare"):
                # one operation at a time on the file system: the broken pair is settled first
                return False
            if not s.setup.rfs:
                s.plan = s.plan[1:]
                return True
        if isinstance(step, Vip) and step.operation in ("join", "leave") and s.setup.mode != "farm":
            s.plan = s.plan[1:]
            return True
        if isinstance(step, Processes):
            if not s.setup.watched(step.phase):
                s.plan = s.plan[1:]
                return True
            step = self._checks(step)
        s.plan = s.plan[1:]
        s.busy, s.busy_step = self.new_token(), step
        self.actions.append(Run(s.busy, step))
        return True

    def checkers_on(self) -> bool:
        """`safekit checker off` has not switched them off."""
        return self.s.resources.get("usersetting.checker") != "off"

    def _checks(self, step: Processes) -> Processes:
        """Resources of checkers are init when their phase starts.  When it stops they become so at the end
        of the stop (`reset_checks`): a last word of a checker may still arrive."""
        if not step.start:
            return step
        if not step.keep:
            self.reset_checks(step.phase)
        return replace(step, checkers=self.checkers_on())

    def reset_checks(self, phase: str) -> None:
        """Nothing is known of what the checkers of a phase look at."""
        self.remember(dict.fromkeys(self.s.setup.checks_of(phase), "init"))


STEPS: dict[str, Callable[[Turn, str], None]] = {}
CONDITIONS: dict[str, Callable[[Turn], bool]] = {}


def step(function: Callable[[Turn, str], None]) -> Callable[[Turn, str], None]:
    """Make a function usable as `Do(name)`."""
    STEPS[function.__name__] = function
    return function


def condition(function: Callable[[Turn], bool]) -> Callable[[Turn], bool]:
    """Make a function usable as `Hold(name)`."""
    CONDITIONS[function.__name__] = function
    return function

"""The whole memory of the automaton between two events.

A State is never changed by its holder: `heart.core.decide` works on a copy.
The containers inside are replaced, not modified (`resources` is copied by the
turn before its first change).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from heart.core.actions import Do, Rfs, Step
from heart.core.values import Beat, Color, Command, Role, Setup, Sibling, SwapNotice


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap in progress on this server.  ``giver``: it was primary when the swap began."""

    issuer: str
    number: int
    giver: bool
    phase: str
    nosync: bool
    deadline: float


@dataclass
class State:
    """See the module's docstring.  Times are those of the caller's monotonic clock, in seconds."""

    setup: Setup
    incarnation: int = 1
    seen_at: float = 0.0
    role: Role = Role.STOP
    color: Color = Color.RED
    resources: dict[str, str] = field(default_factory=dict)
    cluster: str = "unknown"
    siblings: tuple[Sibling, ...] = ()
    """The servers of the module that answer to safeadmin, this one included."""
    compared: tuple[object, ...] = field(default=(), repr=False, compare=False)
    """What `heart.core.fitting` looked at last."""

    told: tuple[dict[str, str], tuple[tuple[str, str], ...]] | None = field(default=None, repr=False, compare=False)
    """What heartbeats say of `resources`, kept between two heartbeats (see `beat`)."""

    # the peer, as last heard
    peer: Beat | None = None
    """Its last heartbeat; None while nothing is heard."""
    remote: tuple[Role, Color] = (Role.UNKNOWN, Color.GREY)
    links: dict[str, str] = field(default_factory=dict)
    """up, down or init (not heard since the start) by ident."""
    heard_at: dict[str, float] = field(default_factory=dict)
    link_marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    peer_mark: tuple[int, int] = (0, 0)
    listening_since: float = 0.0
    """Since when this server could hear the peer without a gap: silence before that proves nothing (M0)."""
    stopped_elsewhere_at: float = -math.inf
    """When safeadmin of the other server last said that the module does not run there."""
    confirmed_at: float = 0.0
    """When the newest of our heartbeats was sent that the peer says it has heard."""
    yield_until: float = 0.0
    """With a witness: as long may the peer run the application that heard us last when we heard it last."""

    # the plan: exactly one effect of it runs at a time
    plan: tuple[Step, ...] = ()
    busy: int = 0
    busy_step: Step | None = None
    token: int = 0
    pending: tuple[Command, ...] = ()
    leaving: bool = False
    stopping: str = ""
    """"" or stop, forcestop, stopstart, respawn: how the stop in progress ends."""

    # WAIT
    intent: str = ""
    """start, prim, primforce, second or fullsync; "" when no start was asked."""
    action: str = "start"
    listening: bool = False
    listen_until: float = 0.0
    retry_at: float = 0.0
    blocked: str = ""
    consistent: bool = True
    eligible: bool = False
    claim: int = 0
    claims: int = 0
    grant: tuple[int, int] = (0, 0)

    # the pair
    serving: bool = False
    syncing: bool = False
    breaking: str = ""
    """"" or fence (the peer must acknowledge that it is out of date) or alone (nfsadmin is told)."""
    break_asked: str = ""
    unproved: bool = False
    """The role was adopted, and whether its parts are there is not known yet."""
    boxless: bool = False
    """The file system of this primary died, and nothing was acknowledged since: a secondary that is up to date has
    everything."""
    degraded_since: float = 0.0
    """Since when the other server waits for the replication of this primary, which is degraded; 0: it does not."""
    break_deadline: float = 0.0
    break_token: int = 0
    break_retry: float = 0.0
    fence: int = 0
    fences: int = 0
    fenced: tuple[int, int] = (0, 0)
    stream_lost_at: float = 0.0
    doubted: float = 0.0
    """Since when this server has to hear the peer before it may trust its data; 0: it may."""
    stood_still: float = 0.0
    """Seconds without this heart that made the doubt."""
    attempts: int = 0
    attempt: str = ""
    """Names the synchronisation that was asked for last: news of an earlier one may come late."""
    synced_in_doubt: str = ""
    """The attempt that ended while there was a doubt, or before the primary said that this server is in the pair."""
    heard_in_doubt: bool = False
    split: bool = False
    """A split brain that this server survives has been logged."""
    split_since: float = 0.0
    entries: int = 0
    """Entries of the history of the data that this heart has begun (see heart.core.lineage)."""
    marked_at: float = 0.0
    rival: str = ""
    """While this server is primary, the other one may be so too: unheard, or beside (it says so)."""
    sacrificed: bool = False
    """This server leaves after a split brain: its data is given up."""
    swap_back: bool = False
    """defaultprim wants the application here as soon as this server is a complete secondary."""

    # the witness (see heart.core.witness)
    verdict: str = ""
    """"" (not asked), up or down: what the witness said since nothing is heard any more."""
    verdict_token: int = 0
    verdict_from: float = 0.0
    """The verdict counts from then on, if nothing is heard until then."""
    verdict_retry: float = 0.0
    verdict_deadline: float = 0.0
    """No answer until then is the answer: this server is cut off."""
    hurried: bool = False
    """The application is being stopped within `Setup.hurry`, because the other server counts on it."""

    # swap
    swap: Swap | None = None
    swaps: int = 0
    swap_seen: tuple[int, int] = (0, 0)
    swap_refused: int = 0

    # failover machine
    failover: bool = True
    rules_seen: tuple[object, ...] = ()
    """What the rules looked at last; they are evaluated again when it changes."""
    candidate: str = ""
    candidate_since: float = 0.0
    candidate_of: tuple[str, tuple[str, ...]] | None = None
    """The rule that asks for it, and the resources that made it true."""
    put_off: tuple[str, ...] = ()
    """The action of a rule that is not possible now, as it was told."""
    loop_count: int = 0
    loop_since: float = 0.0
    """The count and its begin are remembered in state.loop and state.loopsince (Unix time)."""
    clock: float = 0.0
    """Unix time minus the monotonic one, as it was when this heart was born."""
    rebooting: bool = False

    def copy(self) -> State:
        """A copy whose attributes can be replaced freely."""
        twin = object.__new__(State)
        twin.__dict__.update(self.__dict__)
        return twin

    def alone_by_primary(self) -> bool:
        """The pair is broken, nfsadmin does not know it yet, and is about to be told to be primary."""
        step = self.plan[0] if self.plan else None
        ahead = isinstance(step, Rfs) and step.operation == "primary"
        return ahead and self.breaking == "alone" and not self.break_token

    def alone_due(self) -> bool:
        """The pair is broken, and nothing prevents that nfsadmin is told: one operation at a time on the file
        system, and what was just demoted is either released or primary next."""
        if self.breaking != "alone" or self.break_token or isinstance(self.busy_step, Rfs):
            return False
        return not self.alone_by_primary() and not (self.plan and self.plan[0] == Do("swap_release"))

    def resource(self, name: str, default: str = "unknown") -> str:
        """Value of a local resource."""
        return self.resources.get(name, default)

    @property
    def term(self) -> int:
        """How many times the primary role was taken, as far as this server knows."""
        value = self.resources.get("state.term", "0")
        return int(value) if value.isdigit() else 0

    @property
    def uptodate(self) -> bool:
        """The data may be used by a primary; a module without replication always says yes."""
        return not self.setup.rfs or self.resources.get("rfs.uptodate") == "up"

    @property
    def paired(self) -> bool:
        """Durably: the peer has, or may have, everything that this server acknowledged."""
        return self.resources.get("rfs.paired") == "up"

    @property
    def lastprim(self) -> bool:
        """This server was the last primary that it knows of."""
        return self.resources.get(self.lastprim_name) == "up"

    @property
    def lastprim_name(self) -> str:
        """Resource that holds `lastprim`."""
        return "rfs.lastprimstate" if self.setup.rfs else "state.lastprimstate"

    @property
    def former(self) -> str:
        """SECOND when this server became ALONE because it heard nothing any more, else PRIM."""
        return self.resources.get("state.former", "PRIM")

    @property
    def held(self) -> bool:
        """failover="off" kept this server from taking over (module without replication)."""
        return self.resources.get("state.held") == "up"


_HEARTBEAT_EXCLUDED = ("state.", "usersetting.", "heartbeat.", "config.")
MAX_SHARED = 200
"""Resources sent in a heartbeat, at most."""


def beat(s: State, sequence: int = 0) -> Beat:
    """What the heartbeats of this state say; `sequence` counts them within an incarnation."""
    swap: SwapNotice | None = None
    if s.swap is not None:
        swap = SwapNotice(s.swap.issuer, s.swap.number, s.swap.phase, s.swap.nosync)
    elif s.swap_refused:
        swap = SwapNotice(s.setup.peer, s.swap_refused, "refused")
    get = s.resources.get
    return Beat(
        node=s.setup.node,
        incarnation=s.incarnation,
        sequence=sequence,
        echo=s.peer_mark,
        role=s.role,
        color=s.color,
        sees=s.peer.role if s.peer is not None else Role.UNKNOWN,
        uptodate=get("rfs.uptodate", "unknown"),
        paired=s.paired,
        lastprim=s.lastprim,
        degraded=get("rfs.degraded") == "up",
        term=s.term,
        former=s.former,
        eligible=s.eligible,
        forced=s.intent in ("prim", "primforce"),
        default_prim=s.setup.is_default_prim,
        serving=s.serving,
        stream_lost=s.stream_lost_at > 0,
        claim=s.claim,
        grant=s.grant,
        swap=swap,
        fence=s.fence,
        fenced=s.fenced,
        action=s.action,
        resources=_shared_of(s),
        signature=s.setup.signature,
        agrees=s.setup.agrees,
        holds=s.setup.holds,
        rival=s.resources.get("state.rival", "none"),
        lineage=s.resources.get("state.lineage", "none"),
        leaving=s.leaving,
    )


def _shared_of(s: State) -> tuple[tuple[str, str], ...]:
    """`shared`, computed once for each set of resources: a turn replaces the container before it changes it."""
    if s.told is None or s.told[0] is not s.resources:
        s.told = (s.resources, shared(s.resources))
    return s.told[1]


def shared(resources: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The resources that the peer's rules may look at, bounded."""
    names = sorted([name for name in resources if not name.startswith(_HEARTBEAT_EXCLUDED)])
    return tuple([(name, resources[name]) for name in names[:MAX_SHARED]])

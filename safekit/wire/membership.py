"""Which servers answer each other, and who leads them: of the cluster (guide 12.1.3), of a farm (13.4).

Every server tells, once a period, whom it hears; the others pass on what the members told.
A link counts only when both ends hear each other, so a cut in one direction is a cut. The view
of a server is the connected component it stands in. All members of a component work on the same
rows, so they reach the same view and the same leader without voting: the leader is the member
that has been up the longest, which keeps the leadership where it is when a server comes back.

The core has no socket, file or clock: time comes in as `now` (seconds, monotonic), pulses come
in and go out as values. Nodes are numbers: positions in a list of names that all of them have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

MAX_NODES = 32
"""Size of the bit masks on the wire."""

URGENT_FRACTION = 8
"""News leaves at once, but never more often than this many times a period."""


class Row(NamedTuple):
    """What one node last told of itself: its life (incarnation), the counter of its pulses,
    the mask of nodes it hears, the version of its facts (see facts.py)."""

    node: int
    incarnation: int
    sequence: int
    hears: int
    facts: int


class Pulse(NamedTuple):
    """One period's message. The first row is the sender's own."""

    rows: tuple[Row, ...]

    @property
    def sender(self) -> int:
        return self.rows[0].node


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of <lans> or <farm>, and who I am.

    nodes: how many, 1 to 32. me: my number. pulse: seconds between two messages.
    mlost_count: periods of silence of the leader before another one leads.
    slost_count: periods of silence of a follower before it is offline.
    """

    nodes: int
    me: int
    pulse: float
    mlost_count: int
    slost_count: int

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MAX_NODES:
            raise ValueError(f"a cluster has 1 to {MAX_NODES} nodes, not {self.nodes}")
        if not 0 <= self.me < self.nodes:
            raise ValueError(f"node number {self.me} is not one of {self.nodes}")
        if self.pulse <= 0 or self.mlost_count < 1 or self.slost_count < 1:
            raise ValueError("pulse, mlost_count and slost_count must be positive")


@dataclass(frozen=True, slots=True)
class View:
    """The servers that can reach each other, seen from here. number counts the views of this
    process's life; it is not shared between servers."""

    number: int
    members: int
    leader: int

    def __contains__(self, node: int) -> bool:
        return bool(self.members >> node & 1)

    def nodes(self) -> tuple[int, ...]:
        return bits(self.members)


class Cause(Enum):
    """Why a view changed. The value is the rule id which is logged."""

    HEARD = "heard"
    LEADER_SILENT = "leader_silent"
    FOLLOWER_SILENT = "follower_silent"
    RESTARTED = "restarted"
    LEFT = "left"
    LINK_TOLD = "link_told"


@dataclass(frozen=True, slots=True)
class Reason:
    """A rule that fired, the node it is about, when, and the silence (seconds) where that is its input."""

    cause: Cause
    node: int
    at: float
    silence: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A new view, the one before, and the reasons in the order in which they became true."""

    before: View
    after: View
    reasons: tuple[Reason, ...]


@lru_cache(maxsize=1024)
def bits(mask: int) -> tuple[int, ...]:
    """The positions of the ones of a mask, lowest first. The masks of a cluster are the same few, pulse after pulse."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return tuple(found)


def component(start: int, hears: list[int]) -> int:
    """The mask of nodes reachable from start over links whose two ends hear each other."""
    reached = frontier = 1 << start
    while frontier:
        grown = 0
        for node in bits(frontier):
            for neighbour in bits(hears[node] & ~(reached | grown)):
                if hears[neighbour] >> node & 1:
                    grown |= 1 << neighbour
        reached |= grown
        frontier = grown
    return reached


class Membership:
    """The membership automaton of one server.

    Call tick() whenever next_wakeup() has come, receive() for each authentic pulse, and
    take_changes() after either. incarnation: grows with every life of the process. resumed: what the life
    before, which ended a moment ago, had last heard of the others; their silence counts from now.
    """

    def __init__(
        self, rules: Rules, incarnation: int, now: float, facts: int = 0, resumed: tuple[Row, ...] = ()
    ) -> None:
        self.rules = rules
        self.incarnation = incarnation
        self._sequence = 0
        self._facts = facts
        self._rows: list[Row | None] = [None] * rules.nodes
        self._hears = [0] * rules.nodes
        self._heard_at = [0.0] * rules.nodes
        self._last_sent = float("-inf")
        self._due = now
        self._urgent = False
        self._expected = now
        self._started = now
        self._reasons: dict[tuple[Cause, int], Reason] = {}
        self._judge_again = False
        self._changes: list[Change] = []
        self.view = View(0, 1 << rules.me, rules.me)
        for row in resumed:
            if row.node != rules.me:
                self._rows[row.node] = row
                self._hears[row.node] = row.hears
                self._heard_at[row.node] = now
                self._hears[rules.me] |= 1 << row.node
                self._note(Reason(Cause.HEARD, row.node, now))
        self._adopt_view(now)

    # What the shell asks

    @property
    def heard(self) -> int:
        """The mask of the other nodes whose messages arrive here."""
        return self._hears[self.rules.me]

    @property
    def responding(self) -> int:
        """The mask of the other nodes that answer: members, or heard in one direction only.
        Wider than the view on purpose: a restarted server is not "down" while its link forms."""
        return (self.view.members | self.heard) & ~(1 << self.rules.me)

    def settled(self, now: float) -> bool:
        """Whether this process has listened long enough for silence to mean anything."""
        return now - self._started > self.rules.pulse * (max(self.rules.mlost_count, self.rules.slost_count) + 1)

    @property
    def rows(self) -> Sequence[Row | None]:
        """What each node last told of itself, None if it is neither a member nor heard."""
        return self._rows

    def row(self, node: int) -> Row | None:
        """That of one node."""
        return self._rows[node]

    def last_heard(self, node: int) -> float | None:
        """When (monotonic) a message of the node last arrived; None if it is not heard now."""
        return self._heard_at[node] if self.heard >> node & 1 else None

    def set_facts(self, version: int) -> None:
        """Announces a new version of this server's facts with the next pulse."""
        if version != self._facts:
            self._facts = version
            self._urgent = True

    def take_changes(self) -> list[Change]:
        """The views adopted since the last call, oldest first."""
        changes, self._changes = self._changes, []
        return changes

    def next_wakeup(self) -> float:
        """When tick() wants to be called, at the latest."""
        if self._urgent:
            return min(self._due, self._last_sent + self.rules.pulse / URGENT_FRACTION)
        return self._due

    # What happens

    def tick(self, now: float) -> Pulse | None:
        """Judges silences; returns the pulse to send on every link when one is due."""
        self._forgive_own_lateness(now)
        self._judge_silences(now)
        self._adopt_view(now)
        if now < self.next_wakeup():
            self._expected = self.next_wakeup()
            return None
        if now >= self._due:
            # The schedule is kept, not the distance to a late tick; after a long sleep it restarts.
            self._due = self._due + self.rules.pulse
            if self._due <= now:
                self._due = now + self.rules.pulse
        self._urgent = False
        self._last_sent = now
        self._expected = self._due
        return self._pulse()

    def receive(self, pulse: Pulse, now: float) -> None:
        """Takes one authentic pulse of another node of the same configuration."""
        sender, me = pulse.sender, self.rules.me
        if sender == me:
            return
        if not self.heard >> sender & 1:
            # Told by others until now; what it says itself wins, even in a life with an older clock.
            self._rows[sender] = None
        rows = self._rows
        for row in pulse.rows:
            known = rows[row.node]
            # Nearly all that 32 servers pass on is known already.
            if row.node == me or known is row:
                continue
            if known is None or (known.incarnation, known.sequence) < (row.incarnation, row.sequence):
                self._learn(known, row, now)
        self._heard_at[sender] = now
        if not self.heard >> sender & 1:
            self._hears[me] |= 1 << sender
            self._note(Reason(Cause.HEARD, sender, now))
            self._urgent = True
        self._adopt_view(now)

    def pulse_now(self, now: float) -> Pulse:
        """One more pulse, at once: for what the others wait for and may not wait for the next period.

        The schedule stays. The caller bounds how often.
        """
        self._urgent = False
        self._last_sent = now
        return self._pulse()

    def depart(self, node: int, incarnation: int, now: float) -> None:
        """A node said, authentically, that this life of it ends: no silence is waited for."""
        row = self._rows[node]
        if node == self.rules.me or row is None or row.incarnation != incarnation:
            return
        self._hears[self.rules.me] &= ~(1 << node)
        self._hears[node] = 0
        self._note(Reason(Cause.LEFT, node, now))
        self._urgent = True
        self._adopt_view(now)

    # Rules

    def _note(self, reason: Reason) -> None:
        """Keeps a reason until a view follows from it: a link may break now, and the view change only
        when the others tell that theirs broke too."""
        for cause in (Cause.HEARD, Cause.LEADER_SILENT, Cause.FOLLOWER_SILENT, Cause.LEFT):
            if reason.cause is not Cause.LINK_TOLD:
                self._reasons.pop((cause, reason.node), None)
        self._reasons.pop((reason.cause, reason.node), None)
        self._reasons[reason.cause, reason.node] = reason
        self._judge_again = True

    def _learn(self, known: Row | None, row: Row, now: float) -> None:
        """A row that is newer than the one that is known, by life and pulse."""
        self._rows[row.node] = row
        if known is not None and known.incarnation != row.incarnation:
            self._note(Reason(Cause.RESTARTED, row.node, now))
            self._urgent = True
        if self._hears[row.node] != row.hears:
            self._hears[row.node] = row.hears
            self._note(Reason(Cause.LINK_TOLD, row.node, now))

    def _forgive_own_lateness(self, now: float) -> None:
        """I was late is not the peer is dead: the time I slept through does not count as silence.

        Only the time beyond the wake-up that was asked for is given back, so a server that is
        always late still finds a dead peer, after the same number of its own wake-ups.
        """
        late = now - self._expected
        if late <= self.rules.pulse / 4:
            return
        for node in bits(self.heard):
            self._heard_at[node] = min(now, self._heard_at[node] + late)

    def _judge_silences(self, now: float) -> None:
        me = self.rules.me
        for node in bits(self.heard):
            leads = node == self.view.leader
            count = self.rules.mlost_count if leads else self.rules.slost_count
            silence = now - self._heard_at[node]
            if silence > count * self.rules.pulse:
                self._hears[me] &= ~(1 << node)
                cause = Cause.LEADER_SILENT if leads else Cause.FOLLOWER_SILENT
                self._note(Reason(cause, node, now, silence))
                self._urgent = True

    def _adopt_view(self, now: float) -> None:
        if not self._judge_again:
            return
        self._judge_again = False
        me = self.rules.me
        members = component(me, self._hears)
        leader = min(bits(members), key=lambda node: (self._incarnation_of(node), node))
        # A node that is gone is forgotten whole: its next life may come with an older clock.
        for node in bits(~(members | self.heard) & (1 << self.rules.nodes) - 1):
            self._rows[node] = None
            self._hears[node] = 0
        if (members, leader) == (self.view.members, self.view.leader):
            return
        oldest = now - self.rules.pulse * (max(self.rules.mlost_count, self.rules.slost_count) + self.rules.nodes)
        reasons = tuple(reason for reason in self._reasons.values() if reason.at >= oldest)
        self._reasons.clear()
        before, self.view = self.view, View(self.view.number + 1, members, leader)
        self._changes.append(Change(before, self.view, reasons))
        self._urgent = True

    def _incarnation_of(self, node: int) -> int:
        if node == self.rules.me:
            return self.incarnation
        row = self._rows[node]
        assert row is not None, "a member has told of itself"
        return row.incarnation

    def _pulse(self) -> Pulse:
        me = self.rules.me
        self._sequence += 1
        rows = [Row(me, self.incarnation, self._sequence, self.heard, self._facts)]
        # Heard nodes that are no members too: a link that broke in one direction is known to its deaf
        # end only, and the others must learn it from the end that still hears.
        for node in bits((self.view.members | self.heard) & ~(1 << me)):
            row = self._rows[node]
            assert row is not None, "who is heard or a member has told of itself"
            rows.append(row)
        return Pulse(tuple(rows))

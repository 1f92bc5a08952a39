"""Who takes part in the load balancing of a farm, and what this server accepts now. Pure.

On top of the membership (safekit.wire.membership), whose facts carry two things: whether a server takes part, and
the assignment that it has put into its packet filters. The rules:

- Owners are a function of those who take part and hear each other (buckets.py).
- A bucket moves between living servers in two steps: who loses it lets go and says so; only then does the new
  owner accept it. From a dead server it is taken at once. So no packet is accepted twice (F1), and what is
  lost is a SYN in the few milliseconds between, which TCP repeats.
- Open connections stay (F3): a server tells in which buckets it holds connections that it does not plainly
  own; there, the new owner accepts new connections only. When the holder dies, so does its claim, and its
  clients get a reset from the new owner.
- A server that hears one which does not hear it, and which serves without it, gives way: exactly one of the
  two ends of a cut in one direction knows of it.
- Two halves of a farm that could not hear each other each have all the buckets. When they meet, neither knows of
  the other's connections. A server that meets one with another assignment treats every bucket as shared until
  both have the same. For the moment before, in which it has not heard the other one yet: while a server is missing
  that did not say goodbye, an unknown connection is reset only when its client repeats itself (`doubt`). Not
  at once after the loss: then it is a dead server's clients that speak, who are to be told at once.
- A server that slept so long that the others may have taken over lets go first and takes part again later.

Time is `now`, monotonic seconds; nodes are numbers in the order of their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b

from safekit.net.jhash import BUCKETS
from safekit.wire.membership import Membership, Pulse, Row, Rules, bits
from vipd.farm.buckets import NOBODY, Shares, bitmap_of

_TAKES_PART = 1
SETTLE_PULSES = 1.5
SETTLE_SECONDS = 0.2
PATIENCE_PULSES = 2.0
PATIENCE_SECONDS = 0.3
EXCLUDED_PULSES = 1.25
TELL_PULSES = 3.0
TELL_SECONDS = 1.5
LINGER_SECONDS = 0.5
ORPHAN_SECONDS = 1.0
"""After a takeover, and the time that it took, the clients of a dead server have repeated themselves."""
LOST_SECONDS = 2.0
"""How long a server claims all connections in the buckets that it has lost, until it has counted them again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the packet filters of this server have to do.

    participants: who takes part. owners: for each group the final owner of each bucket. mine: for each group
    the bitmap accepted here now. shared: for each group the buckets in which another living server may hold
    open connections, whoever owns them. final: every bucket of ours is accepted. doubt: a server is missing that may
    live and have clients: reset only who repeats itself.
    """

    number: int
    participants: tuple[int, ...]
    owners: tuple[tuple[int, ...], ...]
    mine: tuple[int, ...]
    shared: tuple[int, ...]
    final: bool
    doubt: bool = False


class Event(Enum):
    """What the log has to tell beside the plans."""

    FROZEN = "frozen"
    GAVE_WAY = "gave_way"
    BACK = "back"
    IMPATIENT = "impatient"


@dataclass(frozen=True, slots=True)
class News:
    """An event, the node it is about, and seconds where it has some."""

    event: Event
    node: int
    seconds: float = 0.0


def assignment_key(participants: Iterable[int]) -> int:
    """63 bits which stand for an assignment. Groups are the same everywhere, so the participants suffice."""
    text = ",".join(map(str, participants)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


def repeat_seconds(pulse: float) -> float:
    """How long an unknown connection must go on asking when in doubt: until a pulse of another server has come and
    has had its effect."""
    return SETTLE_PULSES * pulse + SETTLE_SECONDS


_NOBODYS_KEY = assignment_key(())


class FarmCore:
    """The decisions of one server. After each call look at `plan()`; apply it, then `confirm()` it."""

    def __init__(
        self,
        rules: Rules,
        groups: Sequence[Shares],
        incarnation: int,
        now: float,
        *,
        joined: bool = False,
        resumed: tuple[Row, ...] = (),
    ) -> None:
        """joined, resumed: the life before took part until a moment ago, and its filters still work."""
        self.rules = rules
        self._groups = tuple(groups)
        self._joined = joined
        self._expected = now
        self._not_before = now if resumed else now + max(SETTLE_PULSES * rules.pulse, SETTLE_SECONDS)
        self._forced_wait = False
        self._taking_part = joined and bool(resumed)
        self.membership = Membership(rules, incarnation, now, int(self._taking_part), resumed)
        self._participants: tuple[int, ...] = ()
        self._key = assignment_key(())
        self._applied = 0
        self._owners = tuple((NOBODY,) * BUCKETS for _ in self._groups)
        self._former = self._owners
        self._mine = (0,) * len(self._groups)
        self._awaited: frozenset[int] = frozenset()
        self._pending = False
        self._deadline = now
        self._lost: list[tuple[float, tuple[int, ...]]] = []
        self._claims = (0,) * len(self._groups)
        self._lingering: list[tuple[float, tuple[int, ...]]] = []
        self._kept_here = (0,) * len(self._groups)
        self._kept: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._told_of_claims = False
        self._together: dict[int, int] = {}
        self._excluded: dict[int, float] = {}
        self._gave_way_to: int | None = None
        self._gave_way_at: float | None = None
        self._gave_way_told: int | None = None
        self._silent: dict[int, float] = {}
        self._said_goodbye: set[int] = set()
        self._members = 0
        self._met: set[int] = set()
        self._meeting = False
        self._doubt = False
        self._news: list[News] = []
        self._issued = Plan(0, (), self._owners, self._mine, self._claims, False)
        self._wanted: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, bool] | None = None
        if resumed:
            # The filters have this assignment already: nothing is to be waited for.
            self._participants = self._present()
            self._key = assignment_key(self._participants)
            self._owners = tuple(group.owners(self._participants) for group in self._groups)
            self._former = self._owners
            self._mine = tuple(bitmap_of(owners, rules.me) for owners in self._owners)
            self._applied = self._key
            self._publish()
        self._decide(now)

    # --------------------------------------------------------------------------- questions

    @property
    def taking_part(self) -> bool:
        """Whether clients may be served here: joined, settled, and not given way to another server."""
        return self._taking_part

    @property
    def wants_part(self) -> bool:
        """Whether heart wants this server to take part."""
        return self._joined

    @property
    def lease(self) -> float | None:
        """Seconds for which the filters may go on without us: until the others take over. None when there are
        no others, who could."""
        if not self.membership.responding:
            return None
        return min(self.rules.mlost_count, self.rules.slost_count) * self.rules.pulse

    @property
    def kept_here(self) -> tuple[int, ...]:
        """For each group the buckets in which this server holds connections that it does not plainly own."""
        return self._kept_here

    @property
    def claims_here(self) -> tuple[int, ...]:
        """What the others are told: the buckets in which this server holds or may hold connections of its own."""
        if not self._lost:
            return self._kept_here
        return either((self._kept_here, *(bitmaps for _, bitmaps in self._lost)), len(self._groups))

    def plan(self) -> Plan:
        """What the filters have to do now. A new number means a change."""
        # The owners follow from the participants.
        wanted = (self._participants, self._mine, self._shared(), not self._pending, self._doubt)
        if wanted != self._wanted:
            self._wanted = wanted
            participants, mine, shared, final, doubt = wanted
            self._issued = Plan(self._issued.number + 1, participants, self._owners, mine, shared, final, doubt)
        return self._issued

    def take_news(self) -> list[News]:
        """What happened since the last call."""
        news, self._news = self._news, []
        return news

    def take_meeting(self) -> bool:
        """Whether servers were met since the last call that had taken part without us."""
        meeting, self._meeting = self._meeting, False
        return meeting

    def next_wakeup(self) -> float:
        """When tick() wants to be called, at the latest."""
        at = self.membership.next_wakeup()
        if self._pending and self._applied == self._key:
            at = min(at, self._deadline)
        for until, _ in (*self._lost, *self._lingering):
            at = min(at, until)
        if self._silent and not self._doubt:
            at = min(at, *map(self._doubtful_from, self._silent.values()))
        if self._joined and not self._taking_part and self._gave_way_to is None:
            at = min(at, self._not_before)
        return at

    # ------------------------------------------------------------------------------ orders

    def join(self, now: float) -> None:
        """Take part as soon as it is known who else does."""
        self._joined = True
        self._decide(now)

    def leave(self, now: float) -> None:
        """Let go of everything; open connections stay, and we stay a member that serves nobody new."""
        self._joined = False
        self._decide(now)

    def confirm(self, number: int, kept: tuple[int, ...], now: float) -> Pulse | None:
        """The plan is in the filters, and `kept` are the buckets with connections that stay here although the
        bucket is not plainly ours. The pulse which must leave at once, if the others wait for it."""
        changed = kept != self._kept_here
        self._kept_here = kept
        if number == self._issued.number and self._issued.participants == self._participants:
            changed |= self._applied != self._key
            self._applied = self._key
            self._publish()
            self._decide(now)
        return self.membership.pulse_now(now) if changed else None

    # ------------------------------------------------------------------------------ events

    def tick(self, now: float) -> Pulse | None:
        """The pulse to send, when one is due."""
        self._notice_sleep(now)
        pulse = self.membership.tick(now)
        self._decide(now)
        return pulse

    def receive(self, pulse: Pulse, kept: tuple[int, ...], now: float) -> None:
        """An authentic pulse of another server, with the buckets in which it claims connections."""
        self._notice_sleep(now)
        row = pulse.rows[0]
        if len(kept) == len(self._groups) and self._kept.get(row.node) != (row.incarnation, kept):
            self._kept[row.node] = (row.incarnation, kept)
            self._told_of_claims = True
        self.membership.receive(pulse, now)
        self._decide(now)

    def depart(self, node: int, incarnation: int, now: float) -> None:
        """A server said that it ends."""
        row = self.membership.row(node)
        if row is not None and row.incarnation == incarnation:
            self._said_goodbye.add(node)
        self.membership.depart(node, incarnation, now)
        self._decide(now)

    # ------------------------------------------------------------------------------- rules

    def _notice_sleep(self, now: float) -> None:
        """Find that this process stood still, by the wake-up that it missed, before anything else is judged."""
        late = now - self._expected
        lease = self.lease
        if lease is not None and late >= 0.8 * lease and self._taking_part:
            self._news.append(News(Event.FROZEN, self.rules.me, late))
            self._not_before = now + max(SETTLE_PULSES * self.rules.pulse, SETTLE_SECONDS)
            self._forced_wait = True

    def _alive(self) -> int:
        return self.membership.view.members | self.membership.heard

    def _present(self) -> tuple[int, ...]:
        """Who takes part, as far as we and those we are connected to have told."""
        found = []
        me, rows = self.rules.me, self.membership.rows
        for node in bits(self.membership.view.members):
            row = rows[node]
            if self._taking_part if node == me else (row is not None and row.facts & _TAKES_PART):
                found.append(node)
        return tuple(found)

    def _publish(self) -> None:
        self.membership.set_facts(self._applied << 1 | int(self._taking_part))

    def _decide(self, now: float) -> None:
        # Before anybody counts as together with us.
        self._meet()
        self._watch_excluders(now)
        self._watch_the_silent(now)
        self._enter_or_leave(now)
        self._forget_the_dead()
        participants = self._present()
        if participants != self._participants:
            self._assign(participants, now)
        if self._pending:
            self._finish_if_told(now)
        self._share(now)
        self._expected = max(now, self.next_wakeup())

    def _enter_or_leave(self, now: float) -> None:
        others = self.membership.view.members != 1 << self.rules.me
        settled = now >= self._not_before or (others and not self._forced_wait)
        takes_part = self._joined and settled and self._gave_way_to is None
        if settled:
            self._forced_wait = False
        if takes_part != self._taking_part:
            self._taking_part = takes_part
            self._publish()

    def _watch_excluders(self, now: float) -> None:
        """Find a server which we hear, which takes part, and which does not count us in.

        If we were together in this life of it, it has lost us. Otherwise the link may be forming.
        """
        view = self.membership.view.members
        suspects = bits(self.membership.heard & ~view)
        giving = None
        for node in suspects:
            row = self.membership.row(node)
            if row is None or not row.facts & _TAKES_PART:
                self._excluded.pop(node, None)
                continue
            since = self._excluded.setdefault(node, now)
            if self._together.get(node) == row.incarnation or now - since >= EXCLUDED_PULSES * self.rules.pulse:
                giving = node if giving is None else min(giving, node)
        for node in [node for node in self._excluded if node not in suspects]:
            del self._excluded[node]
        together = {node: life for node, life in self._together.items() if node in suspects} if suspects else {}
        rows = self.membership.rows
        for node in bits(view):
            row = rows[node]
            if row is not None:
                together[node] = row.incarnation
        self._together = together
        self._gave_way_to = giving if self._joined else None
        self._tell_of_giving_way(now)

    def _tell_of_giving_way(self, now: float) -> None:
        """One line when it lasts, and one when it has ended: while a link forms, one end hears before the other."""
        if self._gave_way_to is None:
            self._gave_way_at = None
            told = self._gave_way_told
            if told is not None and self._joined and self.membership.view.members >> told & 1:
                self._news.append(News(Event.BACK, told))
            self._gave_way_told = None
            return
        self._gave_way_at = now if self._gave_way_at is None else self._gave_way_at
        lasted = now - self._gave_way_at >= max(TELL_PULSES * self.rules.pulse, TELL_SECONDS)
        if lasted and self._gave_way_told is None and not self._forced_wait:
            self._gave_way_told = self._gave_way_to
            self._news.append(News(Event.GAVE_WAY, self._gave_way_to))

    def _watch_the_silent(self, now: float) -> None:
        """Who is missing without a goodbye may be dead, or serve clients where we do not hear it."""
        members = self.membership.view.members
        for node in bits(self._members & ~members):
            if node not in self._said_goodbye:
                self._silent[node] = now
        self._members = members
        if self._silent or self._said_goodbye:
            for node in bits(members):
                self._silent.pop(node, None)
                self._said_goodbye.discard(node)
            for node in self._said_goodbye:
                self._silent.pop(node, None)
        self._doubt = any(now >= self._doubtful_from(at) for at in self._silent.values())

    def _doubtful_from(self, lost: float) -> float:
        rules = self.rules
        return lost + max(rules.mlost_count, rules.slost_count) * rules.pulse + ORPHAN_SECONDS

    def _meet(self) -> None:
        """Find servers which took part without us: there may be connections of theirs in any bucket."""
        known = (self._key, _NOBODYS_KEY, 0)
        rows = self.membership.rows
        for node in bits(self._alive()):
            row = rows[node]
            if row is None or node == self.rules.me:
                continue
            served = row.facts & _TAKES_PART and row.facts >> 1 not in known
            if served and self._together.get(node) != row.incarnation:
                self._meeting |= node not in self._met
                self._met.add(node)
        for node in list(self._met):
            row = self.membership.row(node)
            if row is None or not self._alive() >> node & 1 or row.facts >> 1 == self._applied == self._key:
                self._met.discard(node)

    def _forget_the_dead(self) -> None:
        """What a dead server kept, or the one before its restart, is kept no more: its clients are to be told."""
        alive, rows = self._alive(), self.membership.rows
        dead = []
        for node, (incarnation, _) in self._kept.items():
            row = rows[node]
            if row is None or row.incarnation != incarnation or not alive >> node & 1:
                dead.append(node)
        for node in dead:
            del self._kept[node]
            self._told_of_claims = True

    def _assign(self, participants: tuple[int, ...], now: float) -> None:
        """A new assignment: let go at once, take from the dead at once, wait for the living."""
        me, alive = self.rules.me, self._alive()
        earlier = set(self._participants) | (set(self._awaited) if self._pending else set())
        before = self._owners
        former = self._former if self._pending else before
        self._participants, self._key = participants, assignment_key(participants)
        self._owners = tuple(group.owners(participants) for group in self._groups)
        mine, lost = [], []
        for owners, last, older, held in zip(self._owners, before, former, self._mine, strict=True):
            accepted = 0
            for bucket, owner in enumerate(owners):
                holders = {last[bucket], older[bucket]} - {NOBODY}
                living = any(holder != me and alive >> holder & 1 for holder in holders)
                if owner == me and (held >> bucket & 1 or (holders - {me} and not living)):
                    accepted |= 1 << bucket
            mine.append(accepted)
            lost.append(held & ~accepted)
        self._former = before
        self._mine = tuple(mine)
        if any(lost):
            self._lost.append((now + LOST_SECONDS, tuple(lost)))
        # Of those who take no part, one may be about to: neither may take everything before it has heard of the other.
        members = set(bits(self.membership.view.members))
        self._awaited = frozenset(node for node in earlier | set(participants) | members if node != me)
        self._deadline = now + max(PATIENCE_PULSES * self.rules.pulse, PATIENCE_SECONDS)
        self._pending = True

    def _finish_if_told(self, now: float) -> None:
        if self._applied != self._key:
            # Whoever sees our announcement must be right about us: let go and say so before taking more.
            return
        alive = self._alive()
        open_ = [node for node in self._awaited if alive >> node & 1 and not self._told(node)]
        if open_ and now < self._deadline:
            return
        if open_ and me_gains(self._owners, self._mine, self.rules.me):
            self._news.append(News(Event.IMPATIENT, min(open_)))
        self._pending = False
        self._awaited = frozenset()
        self._former = self._owners
        self._mine = tuple(bitmap_of(owners, self.rules.me) for owners in self._owners)

    def _told(self, node: int) -> bool:
        row = self.membership.row(node)
        return row is not None and row.facts >> 1 == self._key

    def _share(self, now: float) -> None:
        """What the others claim. Everybody hears the same claims, so that whoever passes packets on and whoever
        owns the bucket treat it alike; a few milliseconds apart, therefore a claim on our own buckets lingers:
        as long as another server may still ask around for the holder of a connection, we must know ours by
        name."""
        if self._lost:
            self._lost = [(until, bitmaps) for until, bitmaps in self._lost if now < until]
        if self._lingering:
            self._lingering = [(until, bitmaps) for until, bitmaps in self._lingering if now < until]
        if not self._told_of_claims:
            return
        self._told_of_claims = False
        claims = either([claimed for _, claimed in self._kept.values()], len(self._groups))
        ended = tuple(
            bitmap_of(owners, self.rules.me) & before & ~after if before & ~after else 0
            for before, after, owners in zip(self._claims, claims, self._owners, strict=True)
        )
        if any(ended):
            self._lingering.append((now + LINGER_SECONDS, ended))
        self._claims = claims

    def _shared(self) -> tuple[int, ...]:
        if self._met:
            return ((1 << BUCKETS) - 1,) * len(self._groups)
        if not self._lingering:
            return self._claims
        return either((self._claims, *(bitmaps for _, bitmaps in self._lingering)), len(self._groups))


def either(bitmaps: Iterable[Sequence[int]], groups: int) -> tuple[int, ...]:
    """For each group the buckets that are in one of the bitmaps."""
    found = [0] * groups
    for each in bitmaps:
        for group, bitmap in enumerate(each):
            found[group] |= bitmap
    return tuple(found)


def me_gains(owners: Sequence[Sequence[int]], mine: Sequence[int], me: int) -> bool:
    """Whether buckets of `me` are not accepted yet."""
    return any(bitmap_of(owner, me) & ~held for owner, held in zip(owners, mine, strict=True))

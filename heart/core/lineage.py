"""Whose data is the newer one when a server was set back to an older state (a restored snapshot) or is a copy.

Each way into ALONE begins an *entry* in the history of a server's data, and both servers of a pair have the same
history: the secondary takes over that of its primary in the write that makes it up to date. An entry has a name that
never comes again, and tells how it began:

G  the server was in a pair, and went on without the other one
S  it was in no pair, and started
W  the word of an administrator (prim, primforce), or of a rule that vouches for the data

Its *mark* counts the minutes in which the pair was whole; the secondary notes each one on its disk.

A server in no pair has broken its last one with an entry G, in the write that says so. So of two servers that meet:

- the one that starts (S), or wants to, from an entry in which the other one was its secondary or primary has forgotten
  that pair: it was set back;
- so has the primary that does not know the entry of its secondary;
- so has the one that knows fewer marks of their last common entry, by more than the one that may be on its way;
- so has the one that does not know a later entry of the other one that has a mark: it had noted that entry;
- when both started from one entry, or both were the primary or the secondary of one pair, one is a copy of the other;
- so it is when one of them is up to date and in no pair, so that it has begun its last entry by itself, and the other
  one has, too, or has started (S) from there.

Such a server does not start the application, and none becomes its secondary, before an administrator says which data
counts. What was set back by less than two marks cannot be told from a power failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from hashlib import blake2b

from heart.core.state import State
from heart.core.turn import Turn
from heart.core.values import Beat, Role

NAME = "state.lineage"
FOUND = "state.setback"
"""Resource: none, here, there (the other server was set back) or both (one is a copy of the other)."""
VOUCHED = "state.vouched"
"""Resource: up while the data counts as up to date by the word of a rule."""
PLACE = "state.place"
"""Resource: the machine on which this memory was made."""
ENTRIES = 11
"""Older entries are forgotten; all of them fit a resource and a text of a heartbeat."""
TOLERATED = 1
"""Marks by which a whole pair may differ when it breaks."""
NONE = "none"


@dataclass(frozen=True, slots=True)
class Entry:
    """How it began (G, S or W), its name, the marks of the pair since then."""

    kind: str
    name: str
    mark: int

    def __str__(self) -> str:
        return f"{self.kind}{self.name}:{self.mark}"


class SetBack(Enum):
    """Whose data was set back, as one of two servers sees it."""

    NOBODY = "none"
    HERE = "here"
    THERE = "there"
    COPIES = "both"


@lru_cache(maxsize=256)
def parse(text: str) -> tuple[Entry, ...]:
    """The entries, newest first; none of a text that is not understood: it proves nothing."""
    found = []
    for word in text.split(","):
        name, _, mark = word.partition(":")
        if len(name) < 2 or name[0] not in "GSW" or not mark.isdecimal():
            return ()
        found.append(Entry(name[0], name[1:], int(mark)))
    return tuple(found[:ENTRIES])


def write(entries: tuple[Entry, ...]) -> str:
    """The text of a resource; the inverse of `parse`."""
    return ",".join(map(str, entries[:ENTRIES])) or NONE


def own(s: State) -> tuple[Entry, ...]:
    """The history of this server's data, newest first."""
    return parse(s.resources.get(NAME, NONE))


def longer(s: State) -> str:
    """The history with the entry that this server begins now."""
    s.entries += 1
    named = f"{s.setup.node} {s.incarnation} {s.entries}"
    word = s.intent in ("prim", "primforce") or s.resources.get(VOUCHED) == "up"
    kind = "W" if word else "G" if s.paired else "S"
    return write((Entry(kind, blake2b(named.encode(), digest_size=6).hexdigest(), 0), *own(s)))


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two histories at their last common entry: its marks, the entry of each after it (None: there is none), whether
    each has the word of an administrator since, and whether each has an entry since that the other one had noted."""

    marks: tuple[int, int]
    mine: Entry | None
    theirs: Entry | None
    words: tuple[bool, bool]
    noted: tuple[bool, bool]


def meeting(mine: tuple[Entry, ...], theirs: tuple[Entry, ...]) -> Meeting | None:
    """None when they have nothing in common."""
    places = {entry.name: number for number, entry in enumerate(theirs)}
    for number, entry in enumerate(mine):
        if (place := places.get(entry.name)) is not None:
            return Meeting(
                (entry.mark, theirs[place].mark),
                mine[number - 1] if number else None,
                theirs[place - 1] if place else None,
                (_has_word(mine[:number]), _has_word(theirs[:place])),
                (_has_mark(mine[:number]), _has_mark(theirs[:place])),
            )
    return None


def _has_word(after: tuple[Entry, ...]) -> bool:
    return any(entry.kind == "W" for entry in after)


def _has_mark(after: tuple[Entry, ...]) -> bool:
    """A primary counts only when its secondary has noted the entry (`mark`)."""
    return any(entry.mark > 0 for entry in after)


def set_back(s: State, peer: Beat) -> SetBack:
    """What the two servers find does not contradict. Where an administrator has said since which data counts, nobody
    has to wait for it."""
    met = _met(s, peer)
    found = _proved(s, peer, met) if met is not None else SetBack.NOBODY
    if met is None or found is SetBack.NOBODY:
        return found
    decided = {
        SetBack.THERE: met.words == (False, True),
        SetBack.HERE: met.words == (True, False),
        # of two copies the one that is primary need not be the one that was decided for
        SetBack.COPIES: met.words == (False, True) or (met.words == (True, False) and not peer.role.primary),
    }
    return SetBack.NOBODY if decided[found] else found


def _met(s: State, peer: Beat) -> Meeting | None:
    return _meeting_of(s.resources.get(NAME, NONE), peer.lineage) if s.setup.rfs else None


@lru_cache(maxsize=256)
def _meeting_of(mine: str, theirs: str) -> Meeting | None:
    """Asked for with every heartbeat, of histories that change with the role or once in a minute."""
    return meeting(parse(mine), parse(theirs))


def _proved(s: State, peer: Beat, met: Meeting) -> SetBack:
    gap = met.marks[0] - met.marks[1]
    mine, theirs = _broke(met.mine, paired=s.paired), _broke(met.theirs, paired=peer.paired)
    both_started = mine == theirs == "S" and met.mine is not None and met.theirs is not None
    both_one = mine == theirs == "pair" and s.lastprim == peer.lastprim and s.term == peer.term
    if met.noted[0] != met.noted[1]:
        return SetBack.THERE if met.noted[0] else SetBack.HERE
    began = (
        met.mine is None and s.uptodate and not s.paired,
        met.theirs is None and peer.uptodate == "up" and not peer.paired,
    )
    both_began = (began[0] and (began[1] or _started(met.theirs))) or (began[1] and _started(met.mine))
    if both_started or both_began or all(met.noted):
        return SetBack.COPIES
    if gap > TOLERATED or (mine in ("G", "pair") and theirs == "S"):
        return SetBack.THERE
    if -gap > TOLERATED or (theirs in ("G", "pair") and mine == "S"):
        return SetBack.HERE
    if both_one:
        # after the marks: a server that was set back forgets that it was the primary, as soon as it knows
        return SetBack.COPIES
    if s.paired and not s.lastprim and met.mine is not None:
        # this secondary has its last entry from a primary, which has forgotten it
        return SetBack.THERE
    if peer.paired and not peer.lastprim and met.theirs is not None:
        return SetBack.HERE
    return SetBack.NOBODY


def _started(after: Entry | None) -> bool:
    return after is not None and after.kind == "S"


def _broke(after: Entry | None, *, paired: bool) -> str:
    """How a server went on from the common entry; without an entry of its own "pair" when it is in the pair still, else
    S: it has forgotten the pair, or never was in one."""
    return after.kind if after is not None else "pair" if paired else "S"


def newer(s: State, peer: Beat) -> int:
    """1 when this server's data counts before that of the other one, by proof or word, or because its history only goes
    on where the other one's ends; -1 the other way; 0 when none of them says anything."""
    met = _met(s, peer)
    if met is None:
        return 0
    found = _proved(s, peer, met)
    if found is not SetBack.NOBODY and met.words[0] != met.words[1]:
        return 1 if met.words[0] else -1
    if found is not SetBack.NOBODY:
        return {SetBack.THERE: 1, SetBack.HERE: -1}.get(found, 0)
    return int(met.theirs is None) - int(met.mine is None)


def unsure(s: State, peer: Beat) -> bool:
    """The records of changes may know nothing of what makes the data of both differ: everything is compared."""
    met = _met(s, peer)
    return met is not None and _proved(s, peer, met) is not SetBack.NOBODY


def settle(t: Turn) -> None:
    """Count the marks of a whole pair, note those of the primary, and tell who was set back."""
    s, peer = t.s, t.s.peer
    if not (s.setup.mirror and s.setup.rfs):
        return
    if peer is not None and s.role is Role.SECOND and s.uptodate and s.paired and not s.syncing:
        _note_mark(t, peer)
    before = s.resources.get(FOUND)
    found = before or NONE
    if s.role in (Role.STOP, Role.SECOND):
        found = NONE
    elif peer is not None and s.role in (Role.WAIT, Role.ALONE):
        found = set_back(s, peer).value
    if found != before and t.remember({FOUND: found}) and found != NONE:
        if found == "here":
            t.log("set_back_here", peer=s.setup.peer)
        elif found == "there":
            t.log("set_back_there", peer=s.setup.peer)
        else:
            t.log("copies", peer=s.setup.peer)
        t.log("advice_data")
        t.because("set_back", found, mine=s.resources.get(NAME, NONE), theirs=peer.lineage if peer else NONE)
    if s.role is Role.WAIT and here(s) and s.resources.get("state.rival") != "served":
        # the other one may fall silent: what it has proved holds
        t.memory(rival="served")


def mark(t: Turn, peer: Beat) -> None:
    """On a primary whose secondary has everything, the mark before included: another minute, on disk before the other
    one hears of it. A secondary that was the primary until now may be ahead, by a mark that this server never noted."""
    s = t.s
    if t.now < s.marked_at + s.setup.mark:
        return
    mine, theirs = own(s), parse(peer.lineage)
    if not mine or not theirs:
        return
    head, noted = mine[0], theirs[0]
    if noted.name != head.name or noted.mark < head.mark:
        return
    s.marked_at = t.now
    t.memory(lineage=write((Entry(head.kind, head.name, noted.mark + 1), *mine[1:])))


def _note_mark(t: Turn, peer: Beat) -> None:
    if peer.lineage == t.s.resources.get(NAME):
        return
    mine, theirs = own(t.s), parse(peer.lineage)
    known = bool(mine and theirs) and mine[0].name == theirs[0].name
    if known and peer.role.primary and peer.paired and theirs[0].mark > mine[0].mark:
        t.memory(lineage=write(theirs))


def here(s: State) -> bool:
    """The other server has proved that this one was set back, or that one of both is a copy."""
    return s.resources.get(FOUND, NONE) in ("here", "both")


def look_where(t: Turn, place: str) -> None:
    """A memory that was made on another machine came here with a copy of its disks: the original may have served since
    then, so that this server is in doubt (see heart.core.alone)."""
    s = t.s
    before = s.resources.get(PLACE, "")
    if not (s.setup.mirror and s.setup.rfs and place) or place == before:
        return
    if before and s.uptodate:
        t.log("copied_memory")
        t.because("copied_memory", "in doubt until the other server is heard", place=place, made_on=before)
        t.memory(rival="served")
    t.remember({PLACE: place})

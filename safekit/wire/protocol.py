"""Versions of what servers say to each other, the same number for every wire (docs/installation.md).

The rule: a server understands the versions OLDEST to NEWEST, tells each peer the newest that it speaks, and
speaks the smaller of both newest ones to it; to a peer that it has not heard yet, OLDEST. So servers of two
successive releases work together while a cluster is upgraded one server after the other, and neither sends what
the other cannot read.

How a server tells its newest version stands with each wire: datagrams (heartbeat, farm, safeadmin) in their epoch
(safekit.wire.seal), replication in the preamble of a connection (safekit.rfs.wire). Web requests have the version
in their path (/api/v1); a server answers those of both releases. A version may change what is in a message when
both sides speak it, never how a message of OLDEST looks.
"""

from __future__ import annotations

import re

from safekit.disk import paths

OLDEST = 1
NEWEST = 2
"""2: tells its versions. 1 (the first releases) says only which one a message has."""

_PINNED = re.compile(rb"""<safeini\b[^<>]*\sprotocol\s*=\s*["'](\d{1,5})["']""")


class VersionError(ValueError):
    """A peer whose newest version is older than OLDEST; the text names both and the next step."""


def newest() -> int:
    """The newest version that this server speaks: NEWEST, or less where the attribute `protocol` of
    /etc/safeini.xml says so, as long as an upgrade may have to be undone. Read when a process starts to speak."""
    found = _PINNED.search(paths.safeini())
    return min(NEWEST, max(OLDEST, int(found[1]))) if found else NEWEST


def agreed(theirs: int, mine: int) -> int:
    """The version to speak to a peer whose newest one is `theirs`. Raises VersionError."""
    if theirs < OLDEST:
        raise VersionError(refusal(theirs, mine))
    return min(theirs, mine)


def refusal(theirs: int, mine: int) -> str:
    """Why a peer of that version cannot be understood."""
    ours = str(mine) if mine == OLDEST else f"{OLDEST} to {mine}"
    return f"protocol version {theirs}, ours is {ours}: upgrade {'that' if theirs < OLDEST else 'this'} server"


# A number that every datagram carries anyway tells the newest version of its sender: an epoch is a time in
# nanoseconds, whose last bits version 1 leaves to chance. The mark is below the version, so that an older release
# that counts a stored epoch up by one does not seem to speak a newer version.
_MARK, _MARK_BITS = 0xA5C3E7, 24
_BITS = _MARK_BITS + 4


def mark_epoch(epoch: int, version: int) -> int:
    """The smallest number from `epoch` on that tells `version`; at most a quarter of a second later."""
    if version == 1:
        return epoch  # as it always was
    marked = epoch >> _BITS << _BITS | version << _MARK_BITS | _MARK
    return marked if marked >= epoch else marked + (1 << _BITS)


def version_of_epoch(epoch: int) -> int:
    """The newest version of a process with that epoch."""
    if epoch & (1 << _MARK_BITS) - 1 != _MARK:
        return 1
    return max(1, epoch >> _MARK_BITS & 15)

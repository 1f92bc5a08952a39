"""The content of one file: which zones are compared, which are sent.

Why a zone whose digests match needs nothing, although the application writes meanwhile.  Every change of the
primary since the session began reaches this server through one ordered stream.  Take one byte, read here at
position k of the stream and on the primary at position n.  If no operation between the two touches it, the two
reads show what both servers hold at the later position: equal now, and every later operation changes both alike.
If one does, the last such operation set the byte on the server that was read later, and sets it on the other when
that one gets there: equal again.  The argument needs no atomic read and no lock, but that both reads were of one
file.  So a pair (file there, file here) is noted as equal, each by its inode with its generation, not a name, and every
name that a rename gave away meanwhile is looked at again (`revisit`): if its two files are no noted pair, its content
is compared.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final

from reintegre.local import LocalTree
from reintegre.plan import Content, every_zone, ranges
from reintegre.primary import Primary
from reintegre.progress import Meter, Share
from safekit.rfs.identity import Identity
from safekit.rfs.wire import SMALL, WireError

#: Bytes compared by one request: long enough to hide the round trip, short enough for `reitimeout`.
BATCH = 64 << 20
#: Errors that say that a name is gone, or is something else now, on either server.
MOVED = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE, errno.ENOTEMPTY, errno.EEXIST}
)
#: Errors that concern one entry alone: it stays as it is, and the rest is made equal all the same.
OF_ONE: Final = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.EIO, errno.ENAMETOOLONG, errno.EOPNOTSUPP, errno.E2BIG),
        *(errno.ERANGE, errno.ETXTBSY, errno.EFBIG, errno.EOVERFLOW, errno.EBUSY, errno.EMLINK, errno.EXDEV),
    }
)
#: Characters of a name that a message tells.
_NAME: Final = 300


def about(path: bytes, error: OSError) -> OSError:
    """The same fault, telling which name it concerns; a lost connection concerns none."""
    if isinstance(error, WireError) or error.errno is None:
        return error
    name = path.decode("utf-8", "replace")
    text = f"{name if len(name) < _NAME else '...' + name[-_NAME:]}: {error.strerror or error}"
    if error.errno == errno.ENAMETOOLONG:
        text += ": it lies too deep to be replicated, move it up or remove it"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        text += ": make room there, it is tried again"
    return OSError(error.errno, text)


def of_one(path: bytes, error: OSError) -> OSError:
    """The same fault, telling which name it concerns. Raises it when it concerns more than one."""
    told = about(path, error)
    if isinstance(error, WireError) or error.errno not in OF_ONE:
        raise told from None
    return told


class Stopped(Exception):
    """The reintegration is being ended from outside."""


@dataclass(frozen=True, slots=True)
class FileWork:
    """A regular file and what is to be done with its content. size: the larger of both sides; weight: bytes of data to
    look at, see `plan.weight`."""

    root: int
    path: bytes
    file: Identity
    size: int
    content: Content
    zones: frozenset[int] | None = None
    attributes: bool = False
    weight: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """copied: bytes of data sent. written: the file was written to, if only with holes. again: the file became another
    one meanwhile. fault: it cannot be made equal, for a reason of its own."""

    copied: int
    again: bool = False
    written: bool = False
    fault: OSError | None = None


class Pairs:
    """Files known equal: (root, which file there) -> which file here. Safe from any thread."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, Identity], Identity] = {}
        self._lock = threading.Lock()

    def note(self, root: int, there: Identity, here: Identity) -> None:
        """The contents of the two are equal from now on."""
        with self._lock:
            self._pairs[root, there] = here

    def forget(self, root: int, there: Identity) -> None:
        """The content must be compared again; of all files, when it is not known which one."""
        with self._lock:
            if there.generation:
                self._pairs.pop((root, there), None)
            else:
                self._pairs.clear()

    def equal(self, root: int, there: Identity, here: Identity) -> bool:
        """Whether the two were noted. Of a file whose generation nobody tells, nothing is known: another one may have
        the number of its inode by now."""
        return bool(there.generation and here.generation) and self._pairs.get((root, there)) == here


class Copier:
    """Makes files equal. One per thread, with its own connection."""

    def __init__(
        self,
        primary: Primary,
        trees: Sequence[LocalTree],
        zone_size: int,
        packet: int,
        commit: int,
        meter: Meter,
        pairs: Pairs,
        executor: Executor,
        check: Callable[[], None],
    ) -> None:
        self._primary = primary
        self._trees = trees
        self._zone = zone_size
        self._packet = packet
        self._commit = commit * packet
        self._meter = meter
        self._pairs = pairs
        self._executor = executor
        self._check = check
        self._uncommitted = 0
        self._share = Share(meter, 0)
        self.batches = True

    def file(self, work: FileWork) -> Outcome:
        """Make one file equal. Raises OSError when the primary is lost, Stopped."""
        self._share = Share(self._meter, work.weight)
        try:
            return self._file(work)
        except OSError as error:
            if error.errno not in MOVED:
                return Outcome(0, fault=of_one(work.path, error))
            # The name is gone, or names something else now: it is looked at again.
            return Outcome(0, again=True)
        finally:
            self._share.end()

    def batched(self, work: FileWork) -> bool:
        """Whether a file may go together with others."""
        return (
            self.batches and not self._commit and work.content is Content.COPY and work.size <= min(SMALL, self._packet)
        )

    def files(self, works: Sequence[FileWork]) -> list[Outcome]:
        """Copy small files of one directory tree, all on their way at once. Raises as `file` does."""
        self._check()
        root = works[0].root
        try:
            answers = self._primary.push_files(root, [work.path for work in works])
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self.batches = False  # a primary of the release before
            return [self.file(work) for work in works]
        return [self._copied(work, *answer) for work, answer in zip(works, answers, strict=True)]

    def _copied(self, work: FileWork, kind: str, file: Identity, size: int, code: int) -> Outcome:
        if kind == "single":
            return self.file(work)
        if code and code not in MOVED:
            where = "primary" if kind == "gone" else "secondary"
            return Outcome(0, fault=of_one(work.path, OSError(code, f"{os.strerror(code)} on the {where}")))
        self._meter.compared(work.weight)
        if code or kind != "file" or not file.same(work.file):
            return Outcome(0, again=bool(code) or kind != "gone")
        self._meter.copied(size)
        here = self._trees[work.root].identity(work.path)
        if here is not None:
            self._pairs.note(work.root, file, here)
        return Outcome(size, written=True)

    def _file(self, work: FileWork) -> Outcome:
        if work.attributes or work.content is Content.COPY:
            kind, now, fresh, size = self._primary.push_entry(work.root, work.path)
            if kind != "file" or not now.same(work.file):
                return Outcome(0, again=kind != "gone")
            if fresh:
                work = replace(work, content=Content.COPY)
            # From this point of the stream on both have the same size. What came between the listing and this point had
            # no file here to go to, or made it longer over what was cut off there before the session and is still here.
            work = replace(work, size=max(work.size, size))
        if work.content is Content.SKIP:
            return Outcome(0)
        zones = (
            every_zone(self._zone, work.size)
            if work.zones is None or work.content is not Content.ZONES
            else sorted(z for z in work.zones if z * self._zone < work.size)
        )
        self._uncommitted = 0
        if work.content is Content.COPY:
            here = self._trees[work.root].identity(work.path)
            outcome = self._push(work, zones)
        else:
            outcome, here = self._compare(work, list(zones))
        if outcome.written:  # which set a time of its own
            _, now, fresh, _ = self._primary.push_entry(work.root, work.path)
            if fresh or not now.same(work.file):
                # Here it had another name, which it has not there: it was made anew, without what was just written.
                return replace(outcome, again=True)
        if not outcome.again and here is not None and work.content is not Content.ZONES:
            self._pairs.note(work.root, work.file, here)
        return outcome

    def _compare(self, work: FileWork, zones: list[int]) -> tuple[Outcome, Identity | None]:
        tree = self._trees[work.root]
        file: Identity | None = None
        copied, written = 0, False
        per_batch = max(1, BATCH // self._zone)
        for begin in range(0, len(zones), per_batch):
            batch = zones[begin : begin + per_batch]
            pieces = [(zone * self._zone, self._zone) for zone in batch]
            here = self._executor.submit(tree.hash, work.path, pieces)
            there, _, theirs = self._primary.hash(work.root, work.path, pieces)
            mine = here.result()
            if not there.same(work.file) or mine is None or file not in (None, mine.file):
                return Outcome(copied, again=True, written=written), None
            file = mine.file
            different = [zone for zone, a, b in zip(batch, theirs, mine.digests, strict=True) if a != b]
            sent = self._push(work, different)
            self._share.done(work.weight * len(batch) // len(zones))
            copied += sent.copied
            written = written or sent.written
            if sent.again:
                return Outcome(copied, again=True, written=written), None
        return Outcome(copied, written=written), file

    def _push(self, work: FileWork, zones: Iterable[int]) -> Outcome:
        copied, written = 0, False
        for offset, length in ranges(zones, self._zone, work.size, self._packet):
            self._check()
            sent, there = self._primary.push_zone(work.root, work.path, offset, length)
            if not there.same(work.file):
                return Outcome(copied, again=True, written=written)
            copied += sent
            written = True
            if work.content is Content.COPY:
                self._share.done(sent)
            self._meter.copied(sent)
            self._uncommitted += length
            if self._commit and self._uncommitted >= self._commit:
                self._uncommitted = 0
                self._primary.flush()
        return Outcome(copied, written=written)

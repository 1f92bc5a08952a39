"""The record of changes (nfsbox/pair/tracking.py) under random schedules: an application changes files and names, the
disk of the record refuses any step of it, epochs begin and are forgotten, journals are written shorter, the clock is
set back, and the server dies. Whatever the peer may lack by then must be recorded: in memory before, on disk after.

The record is the product's own, on a disk in memory that keeps what was synced. What is needed is told by a model.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from nfsbox.pair import tracking
from nfsbox.pair.tracking import Tracker
from safekit.disk import steps
from safekit.rfs import journal
from safekit.rfs.changes import Changes, Kind, Mode, Record, moved
from safekit.rfs.exclusions import parent
from safekit.rfs.identity import NOBODY, Identity

ZONES: Final = 12
SECOND: Final = 1_000_000_000
NAMES: Final = (b"a", b"b", b"c", b"d/a", b"d/b", b"e/a", b"e/b")
DIRECTORIES: Final = (b"d", b"e")
Real = Callable[..., Any]


class Refused(OSError):
    """The disk of the record is full."""


class Dead(Exception):
    """The server died inside a step of the record."""


class Disk:
    """What the record's system calls do, and what of it outlives a power failure. Files are looked at by name: the
    record's directory is small."""

    def __init__(self, directory: Path, rnd: random.Random) -> None:
        self.directory = directory
        self.rnd = rnd
        self.full = 0.0  # how often a step is refused
        self.dies = 0.0
        self.synced: dict[int, bytes] = {}  # inode -> content
        self.entries: dict[str, int] = {}  # name -> inode, as the directory was synced
        self.real: dict[str, Real] = {}

    def _step(self) -> None:
        if self.rnd.random() < self.dies:
            raise Dead
        if self.rnd.random() < self.full:
            raise Refused(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wrap(self, name: str, real: Real) -> Real:
        """The same call, refused at times, with its effect on what is durable."""
        self.real[name] = real

        def call(*arguments: Any) -> Any:
            self._step()
            result = real(*arguments)
            if name in ("commit", "settle"):
                status = os.fstat(arguments[0])
                self.synced[status.st_ino] = os.pread(arguments[0], status.st_size, 0)
            elif name == "sync_directory":
                self.entries = {path.name: path.stat().st_ino for path in self.directory.iterdir()}
            return result

        return call

    def power_off(self) -> None:
        """Names and contents as they were synced; of what was done since, names may be there or not."""
        now = {path.name: path.stat().st_ino for path in self.directory.iterdir()}
        kept = {ino: path.read_bytes() for path in self.directory.iterdir() for ino in [path.stat().st_ino]}
        after = dict(self.entries)
        for name in now.keys() | self.entries.keys():
            if now.get(name) != self.entries.get(name) and self.rnd.random() < 0.5:
                after.pop(name, None)
                if name in now:
                    after[name] = now[name]
        for path in list(self.directory.iterdir()):
            path.unlink()
        for name, ino in after.items():
            content = self.synced.get(ino, b"")
            if ino in kept and self.rnd.random() < 0.3:
                content = kept[ino]
            (self.directory / name).write_bytes(content)


@dataclass
class File:
    """A regular file; `known`, `era`: what nfsbox remembers of its being recorded (see nfsbox.pair.files)."""

    identity: Identity
    path: bytes
    born: int
    known: set[int] | None = field(default_factory=set)
    era: int = -1


@dataclass(frozen=True)
class Need:
    """What the peer may lack: a zone of a file (`zone`), all that stands at a name (`path`), all of a new file."""

    stamp: int
    file: Identity = NOBODY
    zone: int = -1
    path: bytes | None = None


class World:
    """One server while it is primary."""

    def __init__(self, seed: int, directory: Path, patch: pytest.MonkeyPatch, broken: str = "") -> None:
        self.rnd = random.Random(seed)
        self.broken = broken
        self.directory = directory
        self.disk = Disk(directory, self.rnd)
        self.now = 1_000_000 * SECOND
        self.stamp = 0
        self.generation = 0
        self.files: dict[bytes, File] = {}
        self.born = dict.fromkeys(DIRECTORIES, 0)
        self.needs: list[Need] = []
        self.due: list[Callable[[], None]] = []
        self.checkpoints: list[tuple[int, int]] = []  # begun: its epoch, and when
        for name in ("create", "allocate", "write", "commit", "settle", "install", "remove"):
            label = f"record_{name}"
            patch.setattr(steps, label, self.disk.wrap(name, getattr(steps, label)))
        patch.setattr(tracking, "sync_directory", self.disk.wrap("sync_directory", tracking.sync_directory))
        patch.setattr(tracking, "CHUNK", 2048)
        patch.setattr(tracking, "COMPACT_AT", 400)
        patch.setattr(tracking, "COPIED", 20)
        patch.setattr(tracking, "time", self)
        patch.setattr(tracking, "threading", SimpleNamespace(Thread=self._thread, Lock=threading.Lock))
        self._break(patch)
        self.tracker = Tracker(directory, 1)

    # --- what the record takes from its surroundings ----------------------------------------------------------

    def time_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.stamp * SECOND

    def _thread(self, *, target: Callable[..., None], args: tuple[Any, ...], **_: object) -> Any:
        world = self

        class Later:
            alive = False

            def start(self) -> None:
                self.alive = True
                world.due.append(self.run)

            def run(self) -> None:
                try:
                    target(*args)
                finally:
                    self.alive = False

            def is_alive(self) -> bool:
                return self.alive

            def join(self) -> None:
                if self.alive:
                    world.due.remove(self.run)
                    self.run()

        return Later()

    def _break(self, patch: pytest.MonkeyPatch) -> None:
        """A rule of the record, broken on purpose."""
        real: Any
        match self.broken:
            case "record is not on disk":
                real = tracking.Journal.append
                patch.setattr(
                    tracking.Journal, "append", lambda kept, record, durable: real(kept, record, durable=False)
                )
            case "a failed record counts":
                real = Tracker._add

                def add(tracker: Tracker, record: Any, *, durable: bool) -> None:
                    tracker._epochs[-1].apply(record)
                    real(tracker, record, durable=durable)

                patch.setattr(Tracker, "_add", add)
            case "alone forgets":
                real = Tracker.checkpointed
                patch.setattr(Tracker, "checkpointed", lambda tracker, number: tracker._forget(number))
            case "a checkpoint forgets what came after it began":
                patch.setattr(Tracker, "checkpointed", lambda tracker, number: tracker._forget(number + 1))
            case "an epoch does not void what files remember":
                patch.setattr(Tracker, "_void", lambda tracker: None)
            case "a full disk empties the record":
                real = Tracker._write_shorter

                def shorter(tracker: Tracker, groups: list[list[Any]]) -> None:
                    before = self.disk.full
                    self.disk.full = 1.0
                    real(tracker, groups)
                    self.disk.full = before
                    for group in groups:
                        for epoch in group:
                            epoch.changes = Changes()

                patch.setattr(Tracker, "_write_shorter", shorter)
            case "written shorter without renames":
                patch.setattr(tracking, "_merged", _without_moves)
            case "a number is a file":
                patch.setattr(Tracker, "touch", _by_number(Tracker.touch))
            case "a clock set back is not noticed":
                patch.setattr(Tracker, "created", lambda tracker, root, file, path, ctime: True)

    # --- changes, as nfsbox makes them ------------------------------------------------------------------------

    def tick(self) -> None:
        self.stamp += 1
        self.now += self.rnd.randrange(SECOND)

    def _recorded(self, record: Callable[[], None]) -> bool:
        """Before a change; again when an epoch began in between. False when the disk refuses: it is not made then."""
        try:
            era = self.tracker.era
            record()
            if self.rnd.random() < 0.1:
                self._begin_checkpoint()
            if era != self.tracker.era and self.broken != "recorded before the epoch":
                record()
        except Refused:
            return False
        self.tick()
        return True

    def create(self) -> None:
        path = self.rnd.choice(NAMES)
        if path in self.files:
            return
        if not self._recorded(lambda: self.tracker.touch_directory(0, parent(path))):
            return
        self.generation += 1
        inode = self.rnd.randrange(1, 5)
        while any(file.identity.inode == inode for file in self.files.values()):
            inode += 1
        file = File(Identity(inode, self.generation), path, self.now)
        self.files[path] = file
        try:
            era = self.tracker.era
            if self.tracker.created(0, file.identity, path, file.born):
                file.known, file.era = None, era
        except Refused:
            del self.files[path]  # nothing of it stays, see Operations.create
            return
        # Only from here on it may have content: an empty file has all that its size tells.
        self.needs.append(Need(self.stamp, file.identity))

    def write(self) -> None:
        file = self._any()
        if file is None:
            return
        zone = self.rnd.randrange(ZONES)

        def record() -> None:
            if file.era == self.tracker.era and (file.known is None or zone in file.known):
                return
            era = self.tracker.era
            file.known = self.tracker.touch(0, file.identity, file.path, zone, zone)
            file.era = era

        if self._recorded(record):
            self.needs.append(Need(self.stamp, file.identity, zone))

    def rename(self) -> None:
        file = self._any()
        new = self.rnd.choice(NAMES)
        if file is None or new == file.path:
            return
        old = file.path

        def record() -> None:
            self.tracker.touch_directory(0, parent(old))
            self.tracker.touch_directory(0, parent(new))
            self.tracker.renamed(0, file.identity, old, new)

        if self._recorded(record):
            self.files.pop(new, None)
            self.files[new] = self.files.pop(old)
            file.path = new
            self.needs.append(Need(self.stamp, path=new))

    def rename_directory(self) -> None:
        """Both change places, by a third name: what nfsbox records of an exchange."""
        moves = ((b"d", b"aside"), (b"e", b"d"), (b"aside", b"e"))

        def record() -> None:
            self.tracker.touch_directory(0, b"")
            for old, new in moves:
                self.tracker.renamed(0, None, old, new)

        if self._recorded(record):
            place = {b"d": b"e", b"e": b"d", b"": b""}
            for file in self.files.values():
                above, _, name = file.path.rpartition(b"/")
                file.path = place[above] + b"/" + name if above else name
            self.files = {file.path: file for file in self.files.values()}
            self.needs += [Need(self.stamp, path=b"d"), Need(self.stamp, path=b"e")]

    def unlink(self) -> None:
        file = self._any()
        if file is not None and self._recorded(lambda: self.tracker.touch_directory(0, parent(file.path))):
            del self.files[file.path]

    def _any(self) -> File | None:
        return self.rnd.choice(list(self.files.values())) if self.files else None

    # --- the life of the record -------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Both servers have on disk what was changed before; more is changed meanwhile."""
        with contextlib.suppress(Refused):
            self._begin_checkpoint()
        for _ in range(self.rnd.randrange(4)):
            self.change()
        if self.checkpoints:
            number, began = self.checkpoints.pop(0)
            if self.tracker.mode is Mode.PAIRED:
                self.needs = [need for need in self.needs if need.stamp > began]
            with contextlib.suppress(Refused):
                self.tracker.checkpointed(number)

    def _begin_checkpoint(self) -> None:
        """Raises Refused."""
        if not self.checkpoints:  # one after the other
            self.checkpoints.append((self.tracker.epoch(), self.stamp))

    def alone(self) -> None:
        with contextlib.suppress(Refused):
            self.tracker.alone()

    def paired(self) -> None:
        try:
            number = self.tracker.epoch()
        except Refused:
            return
        began = self.stamp
        for _ in range(self.rnd.randrange(3)):
            self.change()
        self.needs = [need for need in self.needs if need.stamp > began]  # the peer has all of it
        with contextlib.suppress(Refused):
            self.tracker.paired(number)

    def shorten(self) -> None:
        while self.due:
            self.due.pop(0)()

    def clock(self) -> None:
        """Set back, and noticed a while later."""
        self.now -= self.rnd.choice((SECOND // 2, 5 * SECOND, 3600 * SECOND))
        for _ in range(self.rnd.randrange(3)):
            self.change()
        with contextlib.suppress(Refused):
            self.tracker.watch_clock()

    def change(self) -> None:
        self.rnd.choices((self.create, self.write, self.rename, self.rename_directory, self.unlink), (4, 8, 3, 1, 2))[
            0
        ]()

    def restart(self) -> None:
        """The server dies and comes back as primary without its peer."""
        power = self.rnd.random() < 0.5
        self.due.clear()
        self.checkpoints.clear()
        if power:
            self.disk.power_off()
        self.disk.full = self.disk.dies = 0.0
        loaded = journal.load(self.directory)
        assert loaded.reliable, loaded.why
        self.judge(loaded.changes, "after a power failure" if power else "after a kill")
        self.tracker = Tracker(self.directory, 1)
        self.tracker.start(Mode.ALONE, loaded)
        self.judge(self.tracker.snapshot(), "by its successor")
        for file in self.files.values():
            file.known, file.era = set(), -1

    # --- what must hold ---------------------------------------------------------------------------------------

    def judge(self, changes: Changes, when: str) -> None:
        """Everything that is needed is recorded."""
        by_identity = {file.identity: file for file in self.files.values()}
        for need in self.needs:
            if need.path is not None:
                below = need.path + b"/"
                for file in self.files.values():
                    if file.path == need.path or file.path.startswith(below):
                        assert self._whole(changes, file), f"{when}: {file.path!r} stands for something else"
            elif need.file in by_identity:
                file = by_identity[need.file]
                change = changes.files.get((0, *file.identity))
                zones = change.zones if change is not None else set()
                wanted = range(ZONES) if need.zone < 0 else (need.zone,)
                assert self._whole(changes, file) or all(zone in zones for zone in wanted), f"{when}: {need}, {file}"

    def _whole(self, changes: Changes, file: File) -> bool:
        """Whether a file is compared whole: its name is a new one, or it is new in a directory that is marked."""
        since = changes.directories.get((0, parent(file.path)))
        return moved(changes.moved, 0, file.path) or (since is not None and file.born >= since)

    def live(self, steps: int) -> None:
        self.tracker.start(self.rnd.choice((Mode.PAIRED, Mode.ALONE)), None)
        self.disk.entries = {path.name: path.stat().st_ino for path in self.directory.iterdir()}
        actions = (self.change, self.checkpoint, self.alone, self.paired, self.shorten, self.clock)
        for _ in range(steps):
            self.disk.full = self.rnd.choice((0.0, 0.0, 0.0, 0.3))
            self.disk.dies = self.rnd.choice((0.0, 0.0, 0.02))
            try:
                self.rnd.choices(actions, (20, 2, 1, 1, 1, 1))[0]()
                self.judge(self.tracker.snapshot(), "in memory")
                if self.rnd.random() < 0.03:
                    raise Dead
            except Dead:
                self.restart()


def _without_moves(epochs: Any, mode: Mode) -> Changes:
    merged = Changes()
    for epoch in epochs:
        merged.merge(epoch.changes)
        merged.moved.clear()
    merged.mode = mode
    return merged


def _by_number(real: Any) -> Any:
    def touch(tracker: Tracker, root: int, file: Identity, path: bytes, first: int, last: int) -> Any:
        for epoch in tracker._epochs:
            for known_root, inode, _ in list(epoch.changes.files):
                if (known_root, inode) == (root, file.inode):
                    return epoch.changes.files[known_root, inode, _].zones
        return real(tracker, root, file, path, first, last)

    return touch


@pytest.fixture
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="record.", dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


def replay(seed: int, place: Path, broken: str = "") -> None:
    """One schedule. Raises AssertionError when something is missing."""
    directory = place / f"{seed}"
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        try:
            World(seed, directory, patch, broken).live(60)
        finally:
            shutil.rmtree(directory)


SCHEDULES: Final = 150
BROKEN: Final = (
    "record is not on disk",
    "a failed record counts",
    "alone forgets",
    "a checkpoint forgets what came after it began",
    "an epoch does not void what files remember",
    "recorded before the epoch",
    "a full disk empties the record",
    "written shorter without renames",
    "a number is a file",
    "a clock set back is not noticed",
)


def test_what_the_peer_may_lack_is_always_recorded(place: Path) -> None:
    for seed in range(SCHEDULES):
        try:
            replay(seed, place)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_rule_is_caught(place: Path, broken: str) -> None:
    for seed in range(SCHEDULES):
        try:
            replay(seed, place, broken)
        except AssertionError:
            return
    raise AssertionError("the simulation cannot see this mistake")


def test_an_epoch_begins_when_the_one_before_is_on_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that a later one was to make durable stayed off the disk when an epoch began between the two."""
    tracker = Tracker(place, 1)
    tracker.start(Mode.ALONE, None)
    done: list[str] = []
    for name in ("commit", "install"):
        real = getattr(steps, f"record_{name}")
        monkeypatch.setattr(
            steps, f"record_{name}", lambda *given, name=name, real=real: (done.append(name), real(*given))[1]
        )
    tracker._add(Record(Kind.DIRECTORY, 0, a=1, path=b"d"), durable=False)
    assert done == []
    tracker.epoch()
    assert done == ["commit", "install"]
    tracker.stop(clean=False)

"""The journal of changes on real files: what survives a crash, and what it means on a tree (R4)."""

from __future__ import annotations

import errno
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from nfsbox.box import Box
from nfsbox.pair import tracking
from nfsbox.pair.engine import Engine, Settings
from nfsbox.pair.revisit import Revisit
from nfsbox.pair.tracking import Tracker
from nfsbox.place import Place
from safekit.disk import steps
from safekit.model.types import Replicated, Rfs
from safekit.rfs.changes import FRAME, RECORD_1, Changes, Kind, Mode
from safekit.rfs.identity import Identity
from safekit.rfs.journal import PREFIX, Loaded, expand, load, moved_directories
from safekit.rfs.tree import Tree
from tests.t2_process.identities import real


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    (tmp_path / "rfs").mkdir()
    made = Tracker(tmp_path / "rfs", 65536)
    made.start(Mode.PAIRED, None)
    return made


def file(inode: int, generation: int = 1) -> Identity:
    return Identity(inode, generation)


def again(tracker: Tracker) -> Loaded:
    return load(tracker.directory)


def test_nothing_recorded_nothing_lost(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert not loaded.present and loaded.reliable and not loaded.changes


def test_records_survive_a_crash(tracker: Tracker) -> None:
    zones = tracker.touch(0, file(10), b"f", 3, 4)
    assert zones == {3, 4}
    tracker.touch_directory(1, b"d", now_ns=77)
    loaded = again(tracker)
    assert loaded.present and loaded.reliable and not loaded.closed and loaded.zone_size == 65536
    assert loaded.changes.files[0, 10, 1].zones == {3, 4} and loaded.changes.directories == {(1, b"d"): 77}
    tracker.stop(clean=True)
    assert again(tracker).closed


def test_one_record_per_zone_not_per_write(tracker: Tracker) -> None:
    tracker.touch(0, file(1), b"f", 0, 0)
    (path,) = tracker.directory.glob(PREFIX + "*")
    before = path.read_bytes()
    for _ in range(100):
        tracker.touch(0, file(1), b"f", 0, 0)
        tracker.touch_directory(0, b"")
        before = before if before == path.read_bytes() else path.read_bytes()
    assert path.read_bytes() == before


def test_new_files_need_no_record_of_their_own(tracker: Tracker) -> None:
    now = time.time_ns()
    tracker.touch_directory(0, b"", now_ns=now)
    assert tracker.created(0, file(5), b"new", now + 1)
    assert tracker.touch(0, file(5), b"new", 0, 100) is None
    assert not tracker.created(0, file(6), b"unmarked/new", now)
    # The clock was set back: the mark follows.
    assert tracker.created(0, file(7), b"older", now - 10**12)
    assert again(tracker).changes.directories[0, b""] == now - 10**12


def test_epochs(tracker: Tracker) -> None:
    tracker.touch(0, file(1), b"f", 0, 0)
    era = tracker.era
    number = tracker.epoch()
    assert tracker.waiting and tracker.era > era
    tracker.touch(0, file(2), b"g", 0, 0)
    assert set(again(tracker).changes.files) == {(0, 1, 1), (0, 2, 1)}
    tracker.checkpointed(number)
    assert set(again(tracker).changes.files) == {(0, 2, 1)}


def test_an_older_epoch_follows_renames(tracker: Tracker) -> None:
    tracker.touch(0, file(1), b"d/f", 0, 0)
    tracker.epoch()
    tracker.renamed(0, None, b"d", b"e")
    assert again(tracker).changes.files[0, 1, 1].path == b"e/f"
    assert tracker.snapshot().files[0, 1, 1].path == b"e/f"


def test_alone_keeps_everything(tracker: Tracker) -> None:
    tracker.touch(0, file(1), b"f", 0, 0)
    number = tracker.epoch()
    tracker.alone()
    tracker.checkpointed(number)
    tracker.touch(0, file(2), b"g", 0, 0)
    assert set(again(tracker).changes.files) == {(0, 1, 1), (0, 2, 1)} and again(tracker).changes.mode is Mode.ALONE
    tracker.paired(tracker.epoch())
    assert not again(tracker).changes


def test_a_later_life_inherits(tracker: Tracker) -> None:
    tracker.touch(0, file(1), b"f", 7, 7)
    later = Tracker(tracker.directory, 65536)
    later.start(Mode.ALONE, again(tracker))
    later.touch(0, file(1), b"f", 9, 9)
    assert again(later).changes.files[0, 1, 1].zones == {7, 9}
    assert len(list(tracker.directory.glob(PREFIX + "*"))) == 1


def test_damage_is_not_trusted(tracker: Tracker) -> None:
    tracker.touch(0, file(1), b"f", 0, 0)
    (path,) = tracker.directory.glob(PREFIX + "*")
    data = bytearray(path.read_bytes())
    data[3] ^= 0xFF
    path.write_bytes(data)
    loaded = again(tracker)
    assert not loaded.reliable and "damaged" in loaded.why
    path.write_bytes(b"")
    assert not again(tracker).reliable


def test_a_torn_last_record_is_not_a_record(tracker: Tracker) -> None:
    tracker.touch(0, file(1), b"f", 0, 0)
    (path,) = tracker.directory.glob(PREFIX + "*")
    kept = len(path.read_bytes().rstrip(b"\0"))
    tracker.touch(0, file(2), b"g", 0, 0)
    data = bytearray(path.read_bytes())
    data[kept + 20] ^= 0xFF
    path.write_bytes(data)
    loaded = again(tracker)
    assert loaded.reliable and set(loaded.changes.files) == {(0, 1, 1)}


def test_another_zone_size_is_noticed(tracker: Tracker) -> None:
    tracker.touch(0, file(1), b"f", 0, 0)
    tracker.epoch()
    other = Tracker(tracker.directory, 131072)
    other.start(Mode.ALONE, None)
    assert again(other).reliable and again(other).zone_size == 131072


def test_a_set_is_found_on_the_tree_as_it_is_now(tracker: Tracker, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "d").mkdir(parents=True)
    (root / "d" / "old").write_text("x")
    (root / "moved").write_text("x")
    old, moved = os.stat(root / "d" / "old").st_ino, os.stat(root / "moved").st_ino
    time.sleep(0.05)
    since = time.time_ns()
    time.sleep(0.05)
    tracker.touch(0, real(root / "moved"), b"where it was", 1, 1)
    tracker.touch(0, file(1 << 40), b"removed", 0, 0)
    tracker.touch_directory(0, b"d", now_ns=since)
    (root / "d" / "old").write_text("written again")
    (root / "d" / "new").mkdir()
    (root / "d" / "new" / "inside").write_text("y")
    (root / "d" / "fresh").write_text("y")
    found = {path: (inode, zones) for _, path, inode, zones, _ in expand(tracker.snapshot(), [Tree(os.fsencode(root))])}
    assert found.pop(b"moved") == (moved, [1])
    assert {path: zones for path, (_, zones) in found.items()} == {b"d/new/inside": None, b"d/fresh": None}
    assert old not in {inode for inode, _ in found.values()}


def test_what_a_new_name_stands_for_is_compared_whole(tracker: Tracker, tmp_path: Path) -> None:
    """Zones tell what was written, not that the peer has another file of that name."""
    root = tmp_path / "data"
    for name in ("d/f", "renamed", "other/linked", "other/fresh", "plain"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    inode = {path.name: real(path) for path in root.rglob("*")}
    early = time.time_ns() - 10**9
    tracker.touch_directory(0, b"new", now_ns=early)
    assert tracker.created(0, inode["fresh"], b"new/fresh", time.time_ns())
    for name in (b"d/f", b"renamed", b"other/linked", b"plain"):
        tracker.touch(0, inode[os.path.basename(os.fsdecode(name))], name, 1, 1)
    tracker.touch_directory(0, b"other", now_ns=time.time_ns() + 10**9)
    tracker.renamed(0, None, b"c", b"d")
    tracker.renamed(0, inode["renamed"], b"before", b"renamed")
    tracker.linked(0, inode["linked"], b"plain", b"other/linked")
    tracker.renamed(0, inode["fresh"], b"new/fresh", b"other/fresh")
    for changes in (tracker.snapshot(), again(tracker).changes):
        found = {path: zones for _, path, _, zones, _ in expand(changes, [Tree(os.fsencode(root))])}
        assert found.pop(b"plain") == [1]
        assert found == dict.fromkeys((b"d/f", b"renamed", b"other/linked", b"other/fresh"))
        assert set(moved_directories(changes, [Tree(os.fsencode(root))])) == {(0, b"d")}


def test_a_removed_file_that_a_power_failure_brings_back_is_still_recorded(tracker: Tracker) -> None:
    tracker.touch(0, file(5), b"f", 2, 2)
    tracker.touch(0, file(6), b"g", 0, 0)  # puts all before it on disk
    assert again(tracker).changes.files[0, 5, 1].zones == {2}


def test_a_journal_damaged_in_the_middle_is_not_trusted(tracker: Tracker) -> None:
    """What stands behind the damage cannot be read: zones that nobody would compare."""
    for inode in range(20):
        tracker.touch(0, file(inode), b"name", 0, 0)
    (path,) = tracker.directory.glob(PREFIX + "*")
    data = bytearray(path.read_bytes())
    data[data.index(b"name") + 1] ^= 0xFF
    path.write_bytes(data)
    assert not again(tracker).reliable and "middle" in again(tracker).why
    path.write_bytes(bytes(data[:30]).ljust(4096, b"\0") + b"a later page")
    assert not again(tracker).reliable


def test_the_notes_of_hidden_files_do_not_grow_without_end(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfsbox.pair.hidden.MAX_NOTES", 1000)
    engine = Engine((), tracker, Settings(), lambda _: None)
    engine.place_holders.note(0, b".fuse_hidden_kept")
    for number in range(500):
        engine.place_holders.note(0, b".fuse_hidden%d" % number)
        engine.place_holders.forget(0, b".fuse_hidden%d" % number)
    notes = (tracker.directory / "hidden").read_bytes()
    assert b"0 .fuse_hidden_kept\0" in notes and len(notes) < 2500


def test_new_files_without_end_need_no_records_of_their_own(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is alone for weeks makes millions of them: a record of each would fill its memory."""
    monkeypatch.setattr("nfsbox.pair.tracking.MAX_FRESH", 10)
    now = time.time_ns()
    tracker.touch_directory(0, b"", now_ns=now)
    for inode in range(100):
        assert tracker.created(0, file(inode), b"new%d" % inode, now + 1)
        assert tracker.touch(0, file(inode), b"new%d" % inode, 0, 3) is None
    assert not tracker.snapshot().files
    assert tracker.touch(0, file(5), b"new5", 2, 2) == {2}, "an old one is recorded when it is written again"


def test_a_number_that_is_used_again_is_another_file(tracker: Tracker) -> None:
    assert tracker.touch(0, file(5, 1), b"old", 0, 0) == {0}
    assert tracker.touch(0, file(5, 2), b"new", 0, 0) == {0}
    tracker.touch_directory(0, b"", now_ns=1)
    assert tracker.created(0, file(6, 1), b"made", 2)
    assert tracker.touch(0, file(6, 1), b"made", 3, 3) is None
    assert tracker.touch(0, file(6, 2), b"another", 3, 3) == {3}
    for changes in (tracker.snapshot(), again(tracker).changes):
        assert {key: change.path for key, change in changes.files.items()} == {
            (0, 5, 1): b"old",
            (0, 5, 2): b"new",
            (0, 6, 2): b"another",
        }


def test_a_file_that_tells_no_generation_is_never_taken_for_new(tracker: Tracker) -> None:
    tracker.touch_directory(0, b"", now_ns=1)
    assert not tracker.created(0, file(6, 0), b"made", 2)
    assert tracker.touch(0, file(6, 0), b"made", 3, 3) == {3}


def test_the_journal_of_the_release_before_is_read(tracker: Tracker) -> None:
    """It knows no generations: whoever has the number of an inode may be the file."""
    payload = RECORD_1.pack(Kind.ZONES, 0, 1, 5, 2, 1) + b"f"
    record = FRAME.pack(len(payload), zlib.crc32(payload)) + payload
    (tracker.directory / "changes.1").write_bytes(b"SafeKit changes 1\n65536\n" + record + bytes(4096))
    loaded = again(tracker)
    assert loaded.reliable and loaded.changes.files[0, 5, 0].zones == {2}


def fill(tracker: Tracker, count: int, first: int = 1000) -> None:
    for inode in range(first, first + count):
        tracker.touch(0, file(inode), b"directory/file-%d" % inode, 0, 0)


def recorded(changes: Changes) -> set[int]:
    return {inode for _, inode, _ in changes.files}


def test_a_journal_is_written_shorter_beside_whoever_records(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it, nothing is forgotten, and it is done again only when it pays."""
    monkeypatch.setattr(tracking, "COMPACT_AT", 4096)
    writing, free = threading.Event(), threading.Event()
    install = steps.record_install

    def slow(source: Path, target: Path) -> None:
        if threading.current_thread().name == "shorten":
            writing.set()
            assert free.wait(20)
        install(source, target)

    monkeypatch.setattr(steps, "record_install", slow)
    tracker.alone()
    tracker.touch_directory(0, b"known", now_ns=7)
    era = tracker.era
    fill(tracker, 100)
    assert writing.wait(10)
    tracker.touch(0, file(5), b"meanwhile", 1, 1)
    tracker.renamed(0, None, b"directory", b"elsewhere")
    assert recorded(tracker.snapshot()) == recorded(again(tracker).changes) == {5, *range(1000, 1100)}
    free.set()
    assert tracker._shortening is not None
    tracker._shortening.join(10)
    assert tracker.era == era and tracker.touch(0, file(1050), b"elsewhere/file-1050", 0, 0) == {0}
    for changes in (tracker.snapshot(), again(tracker).changes):
        assert recorded(changes) == {5, *range(1000, 1100)} and changes.directories[0, b"known"] == 7
        assert (0, b"elsewhere") in changes.moved
    assert tracker.snapshot().files[0, 1001, 1].path == b"elsewhere/file-1001"
    files = len(list(tracker.directory.glob(PREFIX + "*")))
    last = tracker._shortening
    fill(tracker, 10, 5000)
    assert tracker._shortening is last, "what is needed has not doubled"
    assert len(list(tracker.directory.glob(PREFIX + "*"))) == files


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, *, only: str = "") -> list[int]:
    """Have one system call of the record fail, in threads of that name; how often it did."""
    call, seen = getattr(steps, name), []

    def fail(*arguments: Any, **fields: Any) -> Any:
        if only in threading.current_thread().name and not (seen and seen[-1] < 0):
            seen.append(code)
            raise OSError(code, os.strerror(code))
        return call(*arguments, **fields)

    monkeypatch.setattr(steps, name, fail)
    return seen


@pytest.mark.parametrize(
    "step", ["record_create", "record_allocate", "record_write", "record_settle", "record_install", "directory_settle"]
)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_record_that_cannot_be_written_shorter_is_not_forgotten(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    monkeypatch.setattr(tracking, "COMPACT_AT", 4096)
    tracker.alone()
    seen = failing(monkeypatch, step, code, only="shorten")
    fill(tracker, 100)
    if tracker._shortening is not None:
        tracker._shortening.join(10)
    assert seen
    assert recorded(tracker.snapshot()) == recorded(again(tracker).changes) == set(range(1000, 1100))
    seen.append(-1)
    fill(tracker, 300, 3000)
    tracker._shortening.join(10)
    expected = {*range(1000, 1100), *range(3000, 3300)}
    assert recorded(tracker.snapshot()) == recorded(again(tracker).changes) == expected
    assert again(tracker).reliable


@pytest.mark.parametrize("step", ["record_allocate", "record_write", "record_commit"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR])
def test_a_record_that_fails_is_told_and_the_next_one_takes_its_place(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    tracker.touch(0, file(1), b"before", 0, 0)
    monkeypatch.setattr(tracker._epochs[-1].journal, "_allocated", tracker._epochs[-1].journal.length)
    seen = failing(monkeypatch, step, code)
    with pytest.raises(OSError) as told:
        tracker.touch(0, file(2), b"a long name that fails", 0, 0)
    assert told.value.errno == code and seen
    assert recorded(tracker.snapshot()) == recorded(again(tracker).changes) == {1}
    seen.append(-1)
    assert tracker.touch(0, file(3), b"x", 4, 4) == {4}
    loaded = again(tracker)
    assert loaded.reliable, loaded.why
    assert recorded(tracker.snapshot()) == recorded(loaded.changes) == {1, 3}


def test_a_record_is_written_whole_by_short_writes(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "record_write", lambda fd, data, at: os.pwrite(fd, data[:7], at))
    monkeypatch.setattr(steps, "record_allocate", lambda fd, data, at: os.pwrite(fd, data[:100_000], at))
    fill(tracker, 10)
    assert recorded(again(tracker).changes) == set(range(1000, 1010)) and again(tracker).reliable


@pytest.mark.parametrize(
    "step", ["record_create", "record_settle", "record_install", "directory_settle", "record_remove"]
)
def test_an_epoch_that_cannot_begin_or_end_forgets_nothing(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    tracker.touch(0, file(1), b"f", 0, 0)
    seen = failing(monkeypatch, step, errno.EIO)
    with pytest.raises(OSError):
        tracker.checkpointed(tracker.epoch())
    assert seen and recorded(tracker.snapshot()) == recorded(again(tracker).changes) == {1}
    seen.append(-1)
    tracker.touch(0, file(2), b"g", 0, 0)
    assert recorded(again(tracker).changes) == {1, 2} and again(tracker).reliable
    tracker.checkpointed(tracker.epoch())
    assert not recorded(again(tracker).changes)


def set_back(tracker: Tracker, seconds: int) -> None:
    tracker._clock += seconds * 1_000_000_000


def test_a_clock_that_is_set_back_makes_directories_new_for_longer(tracker: Tracker) -> None:
    """What is made from now on has times before those at which its directory was recorded."""
    for name in (b"a", b"b"):
        tracker.touch_directory(0, name, 100 * 10**9)
    tracker.watch_clock()
    assert again(tracker).changes.directories == {(0, b"a"): 100 * 10**9, (0, b"b"): 100 * 10**9}
    set_back(tracker, 60)
    tracker.watch_clock()
    kept = again(tracker).changes.directories
    assert kept == tracker.snapshot().directories and all(abs(since - 40 * 10**9) < 10**9 for since in kept.values())


@pytest.mark.parametrize("step", ["record_write", "record_commit"])
def test_a_disk_that_refuses_what_the_clock_wants_recorded_ends_no_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The ticks send times, make checkpoints, and give up a peer that does not come back."""
    rfs = Rfs((Replicated(str(tmp_path / "data")),), flow="default", port=5600)
    box = Box(Place("AM", "A", tmp_path, lambda: (), None), rfs, lambda _: None, lambda *_: {})
    box._tracker.start(Mode.ALONE, None)
    box.engine.become_primary(paired=False)
    box._tracker.touch_directory(0, b"a", 100 * 10**9)
    set_back(box._tracker, 60)
    box.engine.times.directories.add((0, b"a"))
    seen = failing(monkeypatch, step, errno.EIO)
    box.tick()
    assert seen and not box.engine.times.directories
    seen.append(-1)
    box.tick()
    assert abs(again(box._tracker).changes.directories[0, b"a"] - 40 * 10**9) < 10**9
    box._tracker.stop(clean=True)


def test_status_does_not_wait_for_the_disk_of_the_record(tracker: Tracker) -> None:
    tracker.touch_directory(0, b"known")
    with tracker._lock:  # a disk that hangs
        found: list[tuple[int, int]] = []
        asked = threading.Thread(target=lambda: found.append(tracker.counts()), daemon=True)
        asked.start()
        asked.join(5)
        assert found == [(0, 1)]


def test_who_revisits_an_entry_keeps_what_is_below_it() -> None:
    """Another thread asks for everything below an entry while one adds the entry alone."""

    class Meanwhile(dict[tuple[int, bytes], bool]):
        def get(self, key: tuple[int, bytes], default: bool = False) -> bool:  # type: ignore[override]
            found = super().get(key, default)
            if not other.ident:
                other.start()
                other.join(0.2)
            return found

    revisit = Revisit(Meanwhile())
    other = threading.Thread(target=lambda: revisit.add(0, b"d", recursive=True))
    revisit.add(0, b"d")
    other.join()
    assert revisit.take(10) == {(0, b"d"): True}
    assert not revisit.entries

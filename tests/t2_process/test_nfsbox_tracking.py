"""The journal of changes on real files: what survives a crash, and what it means on a tree (R4)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from nfsbox.pair import tracking
from nfsbox.pair.engine import Engine, Revisit, Settings
from nfsbox.pair.tracking import Journal, Tracker
from safekit.rfs.changes import Mode
from safekit.rfs.journal import PREFIX, Loaded, expand, load, moved_directories
from safekit.rfs.tree import Tree


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    (tmp_path / "rfs").mkdir()
    made = Tracker(tmp_path / "rfs", 65536)
    made.start(Mode.PAIRED, None)
    return made


def again(tracker: Tracker) -> Loaded:
    return load(tracker.directory)


def test_nothing_recorded_nothing_lost(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert not loaded.present and loaded.reliable and not loaded.changes


def test_records_survive_a_crash(tracker: Tracker) -> None:
    zones = tracker.touch(0, 10, b"f", 3, 4)
    assert zones == {3, 4}
    tracker.touch_directory(1, b"d", now_ns=77)
    loaded = again(tracker)
    assert loaded.present and loaded.reliable and not loaded.closed and loaded.zone_size == 65536
    assert loaded.changes.files[0, 10].zones == {3, 4} and loaded.changes.directories == {(1, b"d"): 77}
    tracker.stop(clean=True)
    assert again(tracker).closed


def test_one_record_per_zone_not_per_write(tracker: Tracker) -> None:
    tracker.touch(0, 1, b"f", 0, 0)
    (path,) = tracker.directory.glob(PREFIX + "*")
    before = path.read_bytes()
    for _ in range(100):
        tracker.touch(0, 1, b"f", 0, 0)
        tracker.touch_directory(0, b"")
        before = before if before == path.read_bytes() else path.read_bytes()
    assert path.read_bytes() == before


def test_new_files_need_no_record_of_their_own(tracker: Tracker) -> None:
    now = time.time_ns()
    tracker.touch_directory(0, b"", now_ns=now)
    assert tracker.created(0, 5, b"new", now + 1)
    assert tracker.touch(0, 5, b"new", 0, 100) is None
    assert not tracker.created(0, 6, b"unmarked/new", now)
    # The clock was set back: the mark follows.
    assert tracker.created(0, 7, b"older", now - 10**12)
    assert again(tracker).changes.directories[0, b""] == now - 10**12


def test_epochs(tracker: Tracker) -> None:
    tracker.touch(0, 1, b"f", 0, 0)
    era = tracker.era
    assert tracker.epoch() == 1 and tracker.era > era
    tracker.touch(0, 2, b"g", 0, 0)
    assert set(again(tracker).changes.files) == {(0, 1), (0, 2)}
    tracker.checkpointed(1)
    assert set(again(tracker).changes.files) == {(0, 2)}


def test_an_older_epoch_follows_renames(tracker: Tracker) -> None:
    tracker.touch(0, 1, b"d/f", 0, 0)
    tracker.epoch()
    tracker.renamed(0, 99, b"d", b"e", directory=True)
    assert again(tracker).changes.files[0, 1].path == b"e/f"
    assert tracker.snapshot().files[0, 1].path == b"e/f"


def test_alone_keeps_everything(tracker: Tracker) -> None:
    tracker.touch(0, 1, b"f", 0, 0)
    tracker.epoch()
    tracker.alone()
    tracker.checkpointed(1)
    tracker.touch(0, 2, b"g", 0, 0)
    assert set(again(tracker).changes.files) == {(0, 1), (0, 2)} and again(tracker).changes.mode is Mode.ALONE
    tracker.epoch()
    tracker.paired()
    assert not again(tracker).changes


def test_a_later_life_inherits(tracker: Tracker) -> None:
    tracker.touch(0, 1, b"f", 7, 7)
    later = Tracker(tracker.directory, 65536)
    later.start(Mode.ALONE, again(tracker))
    later.touch(0, 1, b"f", 9, 9)
    assert again(later).changes.files[0, 1].zones == {7, 9}
    assert len(list(tracker.directory.glob(PREFIX + "*"))) == 1


def test_damage_is_not_trusted(tracker: Tracker) -> None:
    tracker.touch(0, 1, b"f", 0, 0)
    (path,) = tracker.directory.glob(PREFIX + "*")
    data = bytearray(path.read_bytes())
    data[3] ^= 0xFF
    path.write_bytes(data)
    loaded = again(tracker)
    assert not loaded.reliable and "damaged" in loaded.why
    path.write_bytes(b"")
    assert not again(tracker).reliable


def test_a_torn_last_record_is_not_a_record(tracker: Tracker) -> None:
    tracker.touch(0, 1, b"f", 0, 0)
    (path,) = tracker.directory.glob(PREFIX + "*")
    kept = len(path.read_bytes().rstrip(b"\0"))
    tracker.touch(0, 2, b"g", 0, 0)
    data = bytearray(path.read_bytes())
    data[kept + 20] ^= 0xFF
    path.write_bytes(data)
    loaded = again(tracker)
    assert loaded.reliable and set(loaded.changes.files) == {(0, 1)}


def test_another_zone_size_is_noticed(tracker: Tracker) -> None:
    tracker.touch(0, 1, b"f", 0, 0)
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
    tracker.touch(0, moved, b"where it was", 1, 1)
    tracker.touch(0, 1 << 40, b"removed", 0, 0)
    tracker.touch_directory(0, b"d", now_ns=since)
    (root / "d" / "old").write_text("written again")
    (root / "d" / "new").mkdir()
    (root / "d" / "new" / "inside").write_text("y")
    (root / "d" / "fresh").write_text("y")
    found = {path: (inode, zones) for _, path, inode, zones in expand(tracker.snapshot(), [Tree(os.fsencode(root))])}
    assert found.pop(b"moved") == (moved, [1])
    assert {path: zones for path, (_, zones) in found.items()} == {b"d/new/inside": None, b"d/fresh": None}
    assert old not in {inode for inode, _ in found.values()}


def test_what_a_new_name_stands_for_is_compared_whole(tracker: Tracker, tmp_path: Path) -> None:
    """Zones tell what was written, not that the peer has another file of that name."""
    root = tmp_path / "data"
    for name in ("d/f", "renamed", "other/linked", "other/fresh", "plain"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    inode = {path.name: path.stat().st_ino for path in root.rglob("*")}
    early = time.time_ns() - 10**9
    tracker.touch_directory(0, b"new", now_ns=early)
    assert tracker.created(0, inode["fresh"], b"new/fresh", time.time_ns())
    for name in (b"d/f", b"renamed", b"other/linked", b"plain"):
        tracker.touch(0, inode[os.path.basename(os.fsdecode(name))], name, 1, 1)
    tracker.touch_directory(0, b"other", now_ns=time.time_ns() + 10**9)
    tracker.renamed(0, inode["d"], b"c", b"d", directory=True)
    tracker.renamed(0, inode["renamed"], b"before", b"renamed", directory=False)
    tracker.linked(0, inode["linked"], b"plain", b"other/linked")
    tracker.renamed(0, inode["fresh"], b"new/fresh", b"other/fresh", directory=False)
    for changes in (tracker.snapshot(), again(tracker).changes):
        found = {path: zones for _, path, _, zones in expand(changes, [Tree(os.fsencode(root))])}
        assert found.pop(b"plain") == [1]
        assert found == dict.fromkeys((b"d/f", b"renamed", b"other/linked", b"other/fresh"))
        assert set(moved_directories(changes, [Tree(os.fsencode(root))])) == {(0, b"d")}


def test_a_removed_file_that_a_power_failure_brings_back_is_still_recorded(tracker: Tracker) -> None:
    tracker.touch(0, 5, b"f", 2, 2)
    tracker.gone(0, 5)
    tracker.touch(0, 6, b"g", 0, 0)  # puts all before it on disk
    assert again(tracker).changes.files[0, 5].zones == {2}


def test_a_journal_damaged_in_the_middle_is_not_trusted(tracker: Tracker) -> None:
    """What stands behind the damage cannot be read: zones that nobody would compare."""
    for inode in range(20):
        tracker.touch(0, inode, b"name", 0, 0)
    (path,) = tracker.directory.glob(PREFIX + "*")
    data = bytearray(path.read_bytes())
    data[data.index(b"name") + 1] ^= 0xFF
    path.write_bytes(data)
    assert not again(tracker).reliable and "middle" in again(tracker).why
    path.write_bytes(bytes(data[:30]).ljust(4096, b"\0") + b"a later page")
    assert not again(tracker).reliable


def test_the_notes_of_hidden_files_do_not_grow_without_end(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfsbox.pair.engine.MAX_NOTES", 1000)
    engine = Engine((), tracker, Settings(), lambda what, fields: None)
    engine.note_hidden(0, b".fuse_hidden_kept")
    for number in range(500):
        engine.note_hidden(0, b".fuse_hidden%d" % number)
        engine.forget_hidden(0, b".fuse_hidden%d" % number)
    notes = (tracker.directory / "hidden").read_bytes()
    assert b"0 .fuse_hidden_kept\0" in notes and len(notes) < 2500


def test_new_files_without_end_need_no_records_of_their_own(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is alone for weeks makes millions of them: a record of each would fill its memory."""
    monkeypatch.setattr("nfsbox.pair.tracking.MAX_FRESH", 10)
    now = time.time_ns()
    tracker.touch_directory(0, b"", now_ns=now)
    for inode in range(100):
        assert tracker.created(0, inode, b"new%d" % inode, now + 1)
        assert tracker.touch(0, inode, b"new%d" % inode, 0, 3) is None
    assert not tracker.snapshot().files
    assert tracker.touch(0, 5, b"new5", 2, 2) == {2}, "an old one is recorded when it is written again"


def test_a_journal_that_is_written_anew_disturbs_nobody_who_looks_without_the_lock(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mount makes a name, and opens a file, while the disk writes the new journal."""
    tracker.alone()
    tracker.touch_directory(0, b"known")
    eras: list[int] = []

    class Slow(Journal):
        def __init__(self, path: Path, zone_size: int) -> None:
            super().__init__(path, zone_size)
            eras.append(tracker.era)
            other = threading.Thread(target=lambda: (tracker.touch_directory(0, b"known"), eras.append(tracker.era)))
            other.start()
            other.join(10)
            assert not other.is_alive()

        def sync(self) -> None:
            super().sync()
            eras.append(tracker.era)

    monkeypatch.setattr(tracking, "Journal", Slow)
    monkeypatch.setattr(tracking, "COMPACT_AT", 1)
    before = tracker.era
    tracker.touch_directory(0, b"new")
    assert eras == [before] * 3, "a file would take its zones for recorded in an era that begins later"
    assert set(again(tracker).changes.directories) == {(0, b"known"), (0, b"new")}


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

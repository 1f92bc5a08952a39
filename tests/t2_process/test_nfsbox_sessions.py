"""The life of a pair: loss of the peer, hand-over, resynchronisation under load, crashes, timeouts (R1, R4, R6, R8)."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import mmap
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from lab.waiting import wait_until
from safekit.rfs import generations, journal, wire
from safekit.rfs.changes import Mode
from safekit.rfs.tree import Tree
from tests.ports import free_port
from tests.t2_process.nfsbox_pair import DriverError, Node, Pair, assert_equal_soon, copy_all, finish

MakePair = Callable[..., Pair]


class Writer(threading.Thread):
    """Writes numbered blocks with fsync; `done` is what was acknowledged."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.done = 0
        self.stopping = False
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            with open(self.path, "wb", buffering=0) as handle:
                while not self.stopping:
                    handle.write(b"%09d\n" % self.done)
                    self.done += 1
        except OSError as error:
            self.error = error

    def stop(self) -> None:
        self.stopping = True
        self.join(20)
        assert not self.is_alive()


def noted(node: Node, what: str, seen: list[object]) -> bool:
    seen += node("notes")
    return any(item[0] == what for item in seen)  # type: ignore[index]


def swap(first: Node, second: Node) -> None:
    first("demote")
    second("primary", peer=first.name, paired=True)
    first("secondary", peer=second.name, address="127.0.0.1", port=second.port, paired=True)


def acknowledged(path: Path, count: int) -> None:
    assert path.read_bytes()[: count * 10] == b"".join(b"%09d\n" % i for i in range(count))


def test_kill_of_the_secondary_holds_until_alone(make: MakePair) -> None:
    pair = make().up()
    writer = Writer(pair.a.mount / "log")
    writer.start()
    wait_until(lambda: writer.done > 200)
    pair.b.kill()
    seen: list[object] = []
    wait_until(lambda: noted(pair.a, "replication_lost", seen))
    held = writer.done
    time.sleep(0.3)
    assert writer.done == held, "a write was acknowledged that the peer lacks"
    assert pair.a("status")["held"] == 1
    acknowledged(pair.b.backing / "log", held - 1)  # a kill, unlike a loss of power, may cut one it had received
    pair.a("alone")
    wait_until(lambda: writer.done > held + 100)
    writer.stop()
    assert writer.error is None
    acknowledged(pair.a.backing / "log", writer.done)
    status = pair.a("status")
    assert status["session"] == "none" and status["dirty_dirs"] + status["dirty_files"] > 0


def test_primary_killed_loses_nothing_acknowledged(make: MakePair) -> None:
    pair = make().up()
    writer = Writer(pair.a.mount / "log")
    writer.start()
    wait_until(lambda: writer.done > 300)
    pair.a.kill()
    writer.stop()
    assert writer.error is not None
    seen: list[object] = []
    wait_until(lambda: noted(pair.b, "session_lost", seen))
    pair.b("primary")
    acknowledged(pair.b.mount / "log", writer.done)
    (pair.b.mount / "after").write_text("failover")
    # The killed one: a dead mount is repaired, its record tells of what was in flight.
    pair.a.close()
    pair.a.start()
    prepared = pair.a("prepare")
    assert prepared["journal"] == "crash"
    assert os.path.ismount(pair.a.mount)
    pair.a("secondary", peer="B", address="127.0.0.1", port=pair.b.port)


def test_frozen_secondary_costs_locktimeout_once(make: MakePair) -> None:
    pair = make(rfs={"locktimeout": 2}).up()
    (pair.a.mount / "f").write_text("x")
    pair.b.process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        writer = Writer(pair.a.mount / "log")
        writer.start()
        seen: list[object] = []
        wait_until(lambda: noted(pair.a, "replication_lost", seen), 8)
        assert 1.5 < time.monotonic() - begun < 5
        assert "locktimeout" in str(seen)
        pair.a("alone")
        wait_until(lambda: writer.done > 100)
        writer.stop()
    finally:
        pair.b.process.send_signal(signal.SIGCONT)
    lost: list[object] = []
    wait_until(lambda: noted(pair.b, "session_lost", lost))


def test_divergence_breaks_the_pair(make: MakePair) -> None:
    pair = make().up()
    (pair.a.mount / "f").write_text("x")
    (pair.b.backing / "f").unlink()  # what nobody may do
    thread = threading.Thread(target=lambda: os.rename(pair.a.mount / "f", pair.a.mount / "g"), daemon=True)
    thread.start()
    seen: list[object] = []
    wait_until(lambda: noted(pair.a, "replication_lost", seen))
    assert "could not apply" in str(seen)
    assert thread.is_alive()
    pair.a("alone")
    thread.join(5)
    assert not thread.is_alive()


def test_swap_and_back_without_resynchronisation(make: MakePair) -> None:
    pair = make().up()
    a, b = pair.a, pair.b
    (a.mount / "one").write_text("1")
    for first, second in ((a, b), (b, a), (a, b)):
        handle = os.open(first.mount / "one", os.O_RDONLY)
        first("demote")
        with pytest.raises(OSError, match="Read-only"):
            (first.mount / "refused").write_text("x")
        second("primary", peer=first.name, paired=True)
        first("secondary", peer=second.name, address="127.0.0.1", port=second.port, paired=True)
        (second.mount / f"by {second.name}").write_text("x" * 5000)
        copy = first.backing / f"by {second.name}"
        wait_until(lambda copy=copy: copy.read_text() == "x" * 5000, 2)
        assert second("status")["session"] == "paired"
        assert os.pread(handle, 1, 0) == b"1"
        os.close(handle)
    assert_equal_soon(a.backing, b.backing)


def test_what_stays_open_over_a_swap_and_back_is_not_what_it_was(make: MakePair) -> None:
    """Else a page of before, changed in one byte, takes back what the other primary had acknowledged."""
    pair = make().up()
    a, b = pair.a, pair.b
    (a.mount / "f").write_bytes(b"." * 8192)

    with open(a.mount / "f", "r+b") as handle, mmap.mmap(handle.fileno(), 8192) as memory:
        assert memory[10:15] == b"....." == os.pread(handle.fileno(), 5, 5000)
        swap(a, b)
        with open(b.mount / "f", "r+b") as other:
            os.pwrite(other.fileno(), b"newer", 10)
            os.pwrite(other.fileno(), b"newer", 5000)
            os.pwrite(other.fileno(), b"newest", 10)
        swap(b, a)
        memory[0:1] = b"x"
        memory.flush()
        os.pwrite(handle.fileno(), b"y", 4999)
    assert_equal_soon(a.backing, b.backing)
    found = (b.backing / "f").read_bytes()
    assert (found[0:1], found[10:16], found[4999:5005]) == (b"x", b"newest", b"ynewer")


def test_an_append_by_who_has_a_file_open_over_a_swap_and_back_goes_to_its_end(make: MakePair) -> None:
    """As a daemon does that nobody stops: its lines went over those that the other server had acknowledged."""
    pair = make().up()
    a, b = pair.a, pair.b
    (a.mount / "d").mkdir()
    (a.mount / "d" / "log").write_bytes(b"1 by A\n")
    (a.mount / "d" / "shorter").write_bytes(b"x" * 9000)
    (a.mount / "d" / "turned").write_bytes(b"old")
    names = [a.mount / "d" / name for name in ("log", "shorter", "turned")]
    log, shorter, turned = (os.open(name, os.O_RDWR | os.O_APPEND) for name in names)
    try:
        for first, second in ((a, b), (b, a)):
            first("demote")
            with pytest.raises(OSError, match="Read-only"):
                os.write(log, b"lost, and told so\n")
            second("primary", peer=first.name, paired=True)
            first("secondary", peer=second.name, address="127.0.0.1", port=second.port, paired=True)
            if second is b:
                with open(b.mount / "d" / "log", "ab") as handle:
                    handle.write(b"2 by B\n")
                os.truncate(b.mount / "d" / "shorter", 10)
                os.rename(b.mount / "d" / "turned", b.mount / "d" / "turned.1")
                (b.mount / "d" / "turned").write_bytes(b"new by B")
        os.write(log, b"3 by A\n")
        os.write(shorter, b"y")
        with open(a.mount / "d" / "turned", "r+b", buffering=0) as handle:
            assert handle.read() == b"new by B"
            with pytest.raises(OSError, match="Input/output"):
                os.write(turned, b"in which file?")
            handle.seek(0)
            assert handle.read() == b"new by B"
    finally:
        for descriptor in (log, shorter, turned):
            os.close(descriptor)
    assert (a.mount / "d" / "turned.1").read_bytes() == b"old"
    assert (a.mount / "d" / "log").read_bytes() == b"1 by A\n2 by B\n3 by A\n"
    assert (a.mount / "d" / "shorter").read_bytes() == b"x" * 10 + b"y"
    assert_equal_soon(a.backing, b.backing)


def test_who_has_a_file_open_over_a_swap_reads_what_the_other_server_writes(make: MakePair) -> None:
    """The kernel keeps pages of a file as long as it is open, and on a primary it may."""
    pair = make().up()
    a, b = pair.a, pair.b
    (a.mount / "f").write_bytes(b"by A".ljust(20000))
    with open(a.mount / "f", "rb", buffering=0) as handle, mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert handle.read(4) == memory[:4] == b"by A"
        swap(a, b)
        with open(b.mount / "f", "r+b", buffering=0) as other:
            for text in (b"once", b"more", b"last"):
                other.seek(0)
                other.write(text)
                wait_until(partial(shows, handle, memory, text), 5)
        os.truncate(b.mount / "f", 10)
        wait_until(lambda: os.pread(handle.fileno(), 20000, 0) == b"last".ljust(10), 5)
        swap(b, a)
        with open(a.mount / "f", "r+b", buffering=0) as mine:
            mine.write(b"by A")
        assert os.pread(handle.fileno(), 4, 0) == b"by A"


def shows(handle: BinaryIO, memory: mmap.mmap, text: bytes) -> bool:
    return os.pread(handle.fileno(), 4, 0) == memory[:4] == text


def test_new_primary_waits_for_the_old_one(make: MakePair) -> None:
    pair = make(rfs={"locktimeout": 2}).up()
    pair.a("demote")
    pair.b("primary", peer="A", paired=True)
    writer = Writer(pair.b.mount / "log")
    writer.start()
    time.sleep(0.3)
    assert writer.done == 0
    seen: list[object] = []
    wait_until(lambda: noted(pair.b, "replication_lost", seen), 10)
    assert writer.done == 0
    pair.b("alone")
    wait_until(lambda: writer.done > 10)
    writer.stop()


def test_handover_token_is_needed(make: MakePair) -> None:
    pair = make().up()
    pair.a("demote")
    pair.b("primary", peer="A", paired=True)
    with pytest.raises(wire.WireRefused):
        wire.connect(
            ("127.0.0.1", pair.b.port),
            "test",
            wire.Kind.STREAM,
            [b"k" * 32],
            {"node": "X", "paired": True, "token": b"0" * 16},
        )
    with pytest.raises(wire.WireError):
        wire.connect(("127.0.0.1", pair.b.port), "test", wire.Kind.STREAM, [b"j" * 32], {"node": "X"}, timeout=2)


def test_resynchronisation_while_the_application_writes(make: MakePair) -> None:
    pair = make()
    a, b = pair.a, pair.b
    rng = random.Random(3)
    a("prepare")
    a("primary")
    for i in range(40):
        directory = a.mount / f"d{i % 5}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{i}").write_bytes(rng.randbytes(rng.randrange(300_000)))
    # What the secondary holds is different, and partly of another kind.
    (b.backing / "d0").mkdir()
    (b.backing / "d0" / "f0").mkdir()
    (b.backing / "d0" / "stale").write_text("x")
    (b.backing / "d1").write_text("a file where a directory is")
    os.symlink("/etc", b.backing / "d2")
    (b.backing / "d3").mkdir()
    (b.backing / "d3" / "f3").write_bytes(b"z" * 500_000)
    os.link(b.backing / "d3" / "f3", b.backing / "d3" / "f8")
    b("prepare")
    stop = threading.Event()
    errors: list[BaseException] = []

    def application() -> None:
        mine = random.Random(5)
        count = 0
        handles = [os.open(a.mount / "d4" / f"f{i}", os.O_RDWR) for i in (4, 9)]
        try:
            while not stop.is_set():
                count += 1
                d = a.mount / f"d{mine.randrange(5)}"
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, FileExistsError):
                    match mine.randrange(9):
                        case 0:
                            (d / f"new{count}").write_bytes(mine.randbytes(5000))
                        case 1:
                            names = os.listdir(d)
                            os.rename(d / mine.choice(names), a.mount / f"d{mine.randrange(5)}" / f"moved{count}")
                        case 2:
                            names = os.listdir(d)
                            (d / mine.choice(names)).unlink()
                        case 3 | 4 | 5:
                            names = os.listdir(d)
                            with open(d / mine.choice(names), "r+b", buffering=0) as handle:
                                handle.seek(mine.randrange(300_000))
                                handle.write(mine.randbytes(3000))
                        case 6:
                            os.pwrite(mine.choice(handles), mine.randbytes(2000), mine.randrange(200_000))
                        case 7:
                            names = os.listdir(d)
                            os.link(d / mine.choice(names), d / f"link{count}")
                        case 8:
                            os.rename(a.mount / "d4", a.mount / "d5")
                            os.rename(a.mount / "d5", a.mount / "d4")
        except BaseException as error:
            errors.append(error)
        finally:
            for descriptor in handles:
                os.close(descriptor)

    thread = threading.Thread(target=application, daemon=True)
    thread.start()
    service = pair.connect()
    copy_all(service, b)
    stop.set()
    thread.join(20)
    assert not thread.is_alive() and not errors
    finish(service, b)
    assert a("status")["session"] == "paired"
    (a.mount / "strict").write_text("now")
    wait_until(lambda: (b.backing / "strict").read_text() == "now", 2)
    assert not os.path.exists("/etc/f2")
    # A file that was written by another name after this plain copier had made two of it differs, as it must: to restore
    # all hard links is reintegre's work. Names, and the content of every other file, are ours.
    mine, theirs = _contents(a.backing), _contents(b.backing)
    assert mine.keys() == theirs.keys()
    whole = {path for path in mine if mine[path][5] == theirs[path][5]}
    assert len(whole) > len(mine) / 2
    assert {path: mine[path][7] for path in whole} == {path: theirs[path][7] for path in whole}


def _contents(directory: Path) -> dict[bytes, tuple[object, ...]]:
    from tests.t2_process.nfsbox_pair import tree

    return tree(directory)


def test_interrupted_resynchronisation_disturbs_nobody(make: MakePair) -> None:
    pair = make()
    pair.a("prepare")
    pair.a("primary")
    for i in range(20):
        (pair.a.mount / f"f{i}").write_bytes(b"x" * 100_000)
    pair.b("prepare")
    writer = Writer(pair.a.mount / "log")
    writer.start()
    service = pair.connect()
    wait_until(lambda: pair.a("status")["session"] == "resync")
    service("push_entry", root=0, path=b"f1")
    pair.b.kill()
    before = writer.done
    wait_until(lambda: writer.done > before + 200, what="the application goes on by itself")
    assert pair.a("status")["session"] == "none"
    with pytest.raises(OSError, match="not connected"):
        service("push_entry", root=0, path=b"f2")
    service.close()
    writer.stop()


def test_end_waits_for_the_pair_to_be_recorded(make: MakePair) -> None:
    pair = make()
    pair.a.close()
    options = pair.a
    options._rfs = {}
    pair.a = Node(options.base.parent, "A", {}, {})
    pair.a("prepare")
    pair.a("primary")
    pair.b("prepare")
    service = pair.connect()
    assert service("end", server=2)["done"]
    notes = pair.a("notes")
    assert [note[0] for note in notes] == ["session_open", "pair"]
    assert pair.a("status")["dirty_files"] == 0


def test_changes_of_one_who_is_alone_are_recorded(make: MakePair) -> None:
    pair = make(rfs={"ruzone_blocksize": 65536, "reipacketsize": 65536}).up()
    big = pair.a.mount / "big"
    big.write_bytes(bytes(64 * 65536))
    (pair.a.mount / "dir").mkdir()
    (pair.a.mount / "dir" / "inside").write_bytes(bytes(4 * 65536))
    time.sleep(2.1)  # a directory mark reaches two seconds back
    pair.a("checkpoint")
    pair.b.kill()
    with open(big, "r+b", buffering=0) as handle:
        thread = threading.Thread(target=lambda: os.pwrite(handle.fileno(), b"x", 10 * 65536), daemon=True)
        thread.start()
        wait_until(lambda: pair.a("status")["held"] == 1)
        pair.a("alone")
        thread.join(5)
        os.pwrite(handle.fileno(), b"y", 20 * 65536)
    with open(pair.a.mount / "dir" / "inside", "r+b", buffering=0) as handle:
        os.rename(pair.a.mount / "dir", pair.a.mount / "renamed")
        os.pwrite(handle.fileno(), b"z", 2 * 65536 + 5)
    (pair.a.mount / "created").write_text("new")
    pair.a.kill()  # not closed in order
    loaded = journal.load(pair.a.rfs_dir)
    assert loaded.present and loaded.reliable and not loaded.closed
    found = {
        path: zones for _, path, _, zones, _ in journal.expand(loaded.changes, [Tree(os.fsencode(pair.a.backing))])
    }
    assert found[b"created"] is None
    assert found[b"renamed/inside"] is None or 2 in found[b"renamed/inside"]
    zones = found[b"big"]
    assert zones is not None and {10, 20} <= set(zones) and len(zones) < 16


def test_checkpoint_forgets_what_both_have_on_disk(make: MakePair) -> None:
    pair = make().up()
    for i in range(5):
        (pair.a.mount / f"f{i}").write_text("x")
    assert pair.a("status")["dirty_dirs"] == 1
    pair.a("checkpoint")
    assert pair.a("status")["dirty_dirs"] == 0
    with open(pair.a.mount / "f1", "r+b", buffering=0) as handle:
        handle.write(b"again")
        assert pair.a("status")["dirty_files"] == 1
        pair.a("checkpoint")
        assert pair.a("status")["dirty_files"] == 0
        handle.write(b"and again, by the same handle")
        assert pair.a("status")["dirty_files"] == 1


def test_async_none(make: MakePair) -> None:
    pair = make(rfs={"async_mode": "none"}).up()
    m = pair.a.mount
    (m / "d").mkdir()
    for i in range(20):
        (m / "d" / f"f{i}").write_bytes(b"x" * 10_000 * (i % 3))
    os.rename(m / "d" / "f3", m / "moved")
    os.truncate(m / "moved", 5)
    assert_equal_soon(pair.a.backing, pair.b.backing)
    assert pair.a("status")["session"] == "paired"


def test_write_back_cache(make: MakePair) -> None:
    pair = make(rfs={"cache": "writeback"}).up()
    with open(pair.a.mount / "f", "wb") as handle:
        for i in range(200):
            handle.write(b"%05d" % i * 100)
        handle.flush()
        os.fsync(handle.fileno())
        assert (pair.b.backing / "f").stat().st_size == 100_000
    with open(pair.a.mount / "f", "ab") as handle:
        handle.write(b"end")
    pair.a("demote")
    assert_equal_soon(pair.a.backing, pair.b.backing)


def test_write_back_cache_over_a_swap_and_back(make: MakePair) -> None:
    """The kernel believes its own size of a file: it wrote behind an end of before, over what was acknowledged."""
    pair = make(rfs={"cache": "writeback"}, replicated={"notreplicated_paths": ["local"]}).up()
    a, b = pair.a, pair.b

    def append(node: Node, name: str, data: bytes) -> None:
        with open(node.mount / name, "ab") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())

    (a.mount / "f").write_bytes(b"one ")
    (a.mount / "shorter").write_bytes(b"x" * 9000)
    with open(a.mount / "local", "ab") as local, open(a.mount / "f", "ab") as former:
        assert (b.mount / "f").stat().st_size == 4  # a backup looks at it
        append(a, "f", b"two ")
        swap(a, b)
        assert (b.mount / "f").stat().st_size == 8
        append(b, "f", b"three ")
        os.truncate(b.mount / "shorter", 10)
        swap(b, a)
        former.write(b"who opened it before is refused, and told so")
        with pytest.raises(OSError, match="Input/output"):
            former.flush()
            os.fsync(former.fileno())
        append(a, "f", b"four")
        append(a, "shorter", b"y")
        for _ in range(2):  # what stays local stays open
            assert (a.mount / "local").exists()
            local.write(b"line")
            local.flush()
            os.fsync(local.fileno())
        os.rename(a.mount / "local", a.mount / "crossed")
        assert (a.mount / "crossed").stat().st_size == 8
        local.write(b"line")
        with contextlib.suppress(OSError):
            former.close()
    assert (a.mount / "f").read_bytes() == b"one two three four"
    assert (a.mount / "shorter").read_bytes() == b"x" * 10 + b"y"
    assert (a.mount / "crossed").read_bytes() == b"line" * 3
    a("demote")  # although something could not be written back
    assert_equal_soon(a.backing, b.backing)


def test_release_restores_the_link(make: MakePair) -> None:
    pair = make().up()
    (pair.a.mount / "f").write_text("x")
    pair.a("release")
    assert pair.a.mount.is_symlink() and (pair.a.mount / "f").read_text() == "x"
    assert journal.load(pair.a.rfs_dir).closed
    pair.b("release")
    assert pair.b.mount.is_symlink() and (pair.b.mount / "f").read_text() == "x"
    assert pair.a("prepare")["journal"] == "clean"


def test_release_with_a_file_still_open(make: MakePair) -> None:
    pair = make()
    pair.a("prepare")
    pair.a("primary")
    handle = os.open(pair.a.mount / "f", os.O_WRONLY | os.O_CREAT)
    os.write(handle, b"x")
    pair.a("release")
    assert pair.a.mount.is_symlink()
    with pytest.raises(OSError, match="not connected"):
        os.write(handle, b"y")
    with contextlib.suppress(OSError):
        os.close(handle)
    assert (pair.a.mount / "f").read_bytes() == b"x"


def test_release_removes_what_was_unlinked_and_is_still_open(make: MakePair) -> None:
    """Nobody sees it, so nobody else could; its directory could not be removed, and keeps its time."""
    pair = make()
    pair.a("prepare")
    pair.a("primary")
    place = pair.a.mount / "d"
    place.mkdir()
    handle = os.open(place / "f", os.O_WRONLY | os.O_CREAT)
    os.write(handle, b"x")
    os.unlink(place / "f")
    os.utime(place, ns=(1, 123456789_987654321))
    assert os.listdir(pair.a.backing / "d")
    pair.a("release")
    with contextlib.suppress(OSError):
        os.close(handle)
    assert os.listdir(pair.a.backing / "d") == []
    assert (pair.a.backing / "d").stat().st_mtime_ns == 123456789_987654321


@pytest.mark.parametrize("left", ["place holder", "file", "link", "nothing"])
def test_what_a_crash_left_of_unlinked_files_goes_at_the_next_start(make: MakePair, left: str) -> None:
    """Notes outlive what they name: the directory of a place holder may be anything by then."""
    pair = make()
    pair.a("prepare")
    pair.a("primary")
    place, kept = pair.a.mount / "d", pair.a.backing / "d"
    place.mkdir()
    handle = os.open(place / "f", os.O_WRONLY | os.O_CREAT)
    os.unlink(place / "f")
    if left == "place holder":
        os.utime(place, ns=(1, 123456789_987654321))
        pair.a.kill()
        assert os.listdir(kept)
    with contextlib.suppress(OSError):
        os.close(handle)
    if left != "place holder":
        wait_until(lambda: not os.listdir(kept))
        place.rmdir()
        if left == "file":
            place.write_text("x")
        elif left == "link":
            place.symlink_to("elsewhere")
        pair.a.kill()
    pair.a.close()
    pair.a.start()
    pair.a("prepare")
    if left == "place holder":
        assert os.listdir(kept) == [] and kept.stat().st_mtime_ns == 123456789_987654321
    assert not (pair.a.rfs_dir / "hidden").exists()


@pytest.mark.parametrize("moved", ["renamed", "exchanged", "by the other server", "local"])
def test_what_a_crash_left_goes_although_its_directory_has_another_name(make: MakePair, moved: str) -> None:
    pair = make(replicated={"notreplicated_paths": ["local"]}).up()
    a, b = pair.a, pair.b
    place = a.mount / ("local" if moved == "local" else "d")
    for directory in (place, a.mount / "other"):
        (directory / "sub").mkdir(parents=True)
    handle = os.open(place / "sub" / "f", os.O_RDWR | os.O_CREAT)
    os.unlink(place / "sub" / "f")
    assert list(a.backing.rglob(".fuse_hidden*"))
    if moved == "by the other server":
        swap(a, b)
        os.rename(b.mount / "d", b.mount / "e")
        wait_until((a.backing / "e").exists)
    elif moved == "exchanged":
        exchange(place, a.mount / "other")
    else:
        os.rename(place / "sub", place / "e")
        if moved == "renamed":
            os.rename(place, a.mount / "e")
    assert len(list(a.backing.rglob(".fuse_hidden*"))) == 1
    a.kill()
    with contextlib.suppress(OSError):
        os.close(handle)
    a.close()
    a.start()
    a("prepare")
    assert not list(a.backing.rglob(".fuse_hidden*"))


def exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0, os.strerror(ctypes.get_errno())


def test_prepare_refuses(make: MakePair) -> None:
    pair = make(replicated={"tocheck": ["PG_VERSION"]})
    with pytest.raises(DriverError) as caught:
        pair.a("prepare")
    assert caught.value.code == "tocheck"
    assert pair.a.mount.is_symlink()
    (pair.a.backing / "PG_VERSION").write_text("15")
    pair.a("prepare")
    pair.a("release")
    pair.a.mount.unlink()
    pair.a.mount.mkdir()
    (pair.a.mount / "stray").write_text("x")
    with pytest.raises(DriverError) as caught:
        pair.a("prepare")
    assert caught.value.code == "mount" and "stray" not in str(caught.value) and "beside" in str(caught.value)
    assert (pair.a.mount / "stray").read_text() == "x"


def test_the_empty_directory_below_a_missing_file_system_is_not_the_data(make: MakePair) -> None:
    """A disk that was not mounted after a reboot: the other server would be made as empty."""
    pair = make()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(pair.a.backing)], check=True)
    try:
        (pair.a.backing / "f").write_text("data")
        pair.a("prepare")
        pair.a("release")
    finally:
        subprocess.run(["umount", str(pair.a.backing)], check=True)
    for _ in range(2):
        with pytest.raises(DriverError) as caught:
            pair.a("prepare")
        assert caught.value.code == "tocheck" and f"mounted on {pair.a.backing}, is not" in str(caught.value)
        assert pair.a.mount.is_symlink()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(pair.a.backing)], check=True)
    try:
        pair.a("prepare")  # another disk in the same place
        pair.a("release")
    finally:
        subprocess.run(["umount", str(pair.a.backing)], check=True)
    (pair.a.backing / "on purpose").touch()
    pair.a("prepare")


def test_a_second_nfsbox_leaves_the_directories_to_the_first(make: MakePair) -> None:
    """A former life that did not end: its mount is not taken from under the application."""
    pair = make().up()
    second = copy.copy(pair.a)
    second.port = free_port()
    second.start()
    try:
        with pytest.raises(DriverError) as caught:
            second("prepare")
        assert caught.value.code == "mount" and f"process {pair.a.process.pid}" in str(caught.value)
        assert os.path.ismount(pair.a.mount)
        (pair.a.mount / "f").write_text("replicated still")
        wait_until(lambda: (pair.b.backing / "f").read_text() == "replicated still")
        pair.a.kill()
        second("prepare")
    finally:
        second.kill()
        second.close()


def test_degraded_after_a_kill(make: MakePair) -> None:
    pair = make().up()
    pair.a.kill()
    pair.a.close()
    pair.a.start()
    assert pair.a("prepare", degraded=True)["journal"] == "crash"
    pair.a("primary")
    (pair.a.mount / "f").write_text("tracked only")
    status = pair.a("status")
    assert status["degraded"] and status["dirty_dirs"] >= 1
    with pytest.raises(DriverError) as caught:
        pair.b("secondary", peer="A", address="127.0.0.1", port=pair.a.port)
    assert caught.value.code == "connect"


def test_a_full_disk_of_the_records_holds_nobody(make: MakePair) -> None:
    """Others have filled SAFEVAR when the peer is lost: that this server is alone still reaches the disk."""
    pair = make()
    pair.a.rfs_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "none", str(pair.a.rfs_dir)], check=True)
    try:
        pair.up()
        (pair.a.mount / "f").write_bytes(b"x" * 100)
        with open(pair.a.rfs_dir / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        pair.b.kill()
        wait_until(lambda: any(note[0] == "replication_lost" for note in pair.a("notes")))
        pair.a("alone")
        (pair.a.mount / "g").write_bytes(b"alone")
        assert generations.decode((pair.a.rfs_dir / "state").read_bytes()).server == 1
        assert journal.load(pair.a.rfs_dir).changes.mode is Mode.ALONE
        # there is an end to what was put by: then it is told to the application and to the log, and nothing is made
        with pytest.raises(OSError, match="No space"):
            for number in range(20000):
                (pair.a.mount / f"d{number}").mkdir()
                (pair.a.mount / f"d{number}" / "f").write_bytes(b"")
        assert not (pair.a.mount / f"d{number}" / "f").exists()
        assert pair.a.log().count("make room there") == 1
    finally:
        pair.close()
        subprocess.run(["umount", "-l", str(pair.a.rfs_dir)], check=True)


def test_full_disk_of_the_primary(make: MakePair, tmp_path: Path) -> None:
    """A write that fails here after it was sent does not stay at the peer."""
    pair = make()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "none", str(pair.a.backing)], check=True)
    try:
        pair.a("prepare")
        pair.a("primary")
        pair.b("prepare")
        pair.resynchronise()
        with open(pair.a.mount / "f", "wb", buffering=0) as handle, pytest.raises(OSError, match="No space"):
            for _ in range(100):
                handle.write(b"z" * 100_000)
        assert pair.a("status")["session"] == "paired"
        assert_equal_soon(pair.a.backing, pair.b.backing)
        pair.a("release")
    finally:
        pair.a.close()
        subprocess.run(["umount", str(pair.a.backing)], check=True)

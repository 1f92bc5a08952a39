"""async="none": what is acknowledged is on the secondary's disk (R1), and one commit serves all that has arrived."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfsbox.pair import secondary
from nfsbox.pair.commit import Disks, Due
from safekit import syscalls
from safekit.disk import steps
from safekit.rfs.tree import Tree
from safekit.rfs.wire import Op, Set, pack_attr
from tests.t2_process.applier_bench import Bench, create, frame, write
from tests.t2_process.nfsbox_pair import Pair, assert_equal_soon


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path / "data")
    made.backing.mkdir()

    def recording(real: Any) -> Any:
        def sync(descriptor: int) -> None:
            real(descriptor)
            name = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), made.backing)
            made.events.append(("sync", name))

        return sync

    for name in ("commit_data", "commit_inode", "commit_name", "apply_commit", "apply_settle", "tree_settle"):
        monkeypatch.setattr(steps, name, recording(getattr(steps, name)))
    yield made


def test_each_alone_is_on_disk_before_it_is_acknowledged(bench: Bench) -> None:
    events = bench.run([create(1, b"f")], [write(1, 0, b"one")], [write(1, 3, b"two")])
    assert sorted(events[:2]) == [("sync", "."), ("sync", "f")]
    assert events[2:] == [("ack", 1), ("sync", "f"), ("ack", 2), ("sync", "f"), ("ack", 3)]
    assert (bench.backing / "f").read_bytes() == b"onetwo"


def test_one_commit_for_all_that_arrived_together(bench: Bench) -> None:
    bench.run(
        [create(1, b"f"), create(2, b"g")],
        [write(1, 0, b"a"), write(2, 0, b"b"), write(1, 1, b"c"), write(1, 2, b"d", ack=False), write(2, 1, b"e")],
    )
    first = bench.events.index(("ack", 2))
    assert sorted(bench.events[:first]) == [("sync", "."), ("sync", "f"), ("sync", "g")]
    assert sorted(bench.events[first + 1 : -1]) == [("sync", "f"), ("sync", "g")]
    assert bench.events[-1] == ("ack", 7)


@pytest.mark.parametrize("op", ["rename", "unlink", "mkdir", "truncate", "chmod", "setxattr", "removexattr", "link"])
def test_names_and_attributes_are_on_disk_too(bench: Bench, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.backing / "d").mkdir()
    (bench.backing / "d" / "old").write_bytes(b"data")
    os.setxattr(bench.backing / "d" / "old", b"user.a", b"1")
    os.symlink("old", bench.backing / "d" / "link")
    monkeypatch.setattr(syscalls, "sync_filesystem", lambda _: bench.events.append(("sync", "all")))
    frames = {
        "rename": (frame(Op.RENAME, body=b"d/old" + b"new", extra=5), {"d", "."}),
        "unlink": (frame(Op.UNLINK, body=b"d/old"), {"d"}),
        "mkdir": (frame(Op.MKDIR, b=0o755, body=pack_attr(Set.MODE, 0o40755) + b"d/x"), {"d"}),
        "truncate": (frame(Op.PTRUNCATE, a=1, body=b"d/old"), {"d/old"}),
        "chmod": (frame(Op.PSETATTR, body=pack_attr(Set.MODE, 0o600) + b"d/old"), {"d/old"}),
        "link": (frame(Op.PSETATTR, body=pack_attr(Set.MTIME, mtime=7) + b"d/link"), {"all"}),
        "setxattr": (frame(Op.PSETXATTR, b=6, body=b"d/old" + b"user.b" + b"2", extra=5), {"d/old"}),
        "removexattr": (frame(Op.PREMOVEXATTR, body=b"d/old" + b"user.a", extra=5), {"d/old"}),
    }
    request, wanted = frames[op]
    events = bench.run([request])
    assert {name for kind, name in events[:-1] if kind == "sync"} == wanted
    assert events[-1] == ("ack", 1)


def test_a_file_that_is_closed_is_on_disk_first(bench: Bench) -> None:
    """Its descriptor is gone when the group is committed."""
    bench.run([create(1, b"f")], [write(1, 0, b"x", ack=False), frame(Op.CLOSE, 1, ack=False), frame(Op.PING)])
    rest = bench.events[bench.events.index(("ack", 1)) + 1 :]
    assert rest == [("sync", "f"), ("ack", 4)]


def test_a_directory_that_is_renamed_meanwhile_is_on_disk(bench: Bench) -> None:
    (bench.backing / "d").mkdir()
    events = bench.run([create(1, b"d/f"), frame(Op.RENAME, body=b"d" + b"e", extra=1), create(2, b"e/g")])
    assert sorted(events[:-1]) == [("sync", name) for name in (".", "e", "e/f", "e/g")]
    assert events[-1] == ("ack", 3)


def test_what_the_disk_refuses_is_not_acknowledged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.backing / "f").write_bytes(b"")

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(steps, "commit_data", refuse)
    together = [frame(Op.OPEN, 1, body=b"f", ack=False), write(1, 0, b"a"), write(1, 1, b"b")]
    events = bench.run(together, [write(1, 2, b"c")])
    assert [kind for kind, _ in events] == ["error"]
    number, code, late, _ = events[0][1]
    assert (number, code, late) == (3, errno.EIO, 0)
    assert "must resynchronise" in bench.reason and bench.refused


@pytest.mark.parametrize("strict", [True, False])
def test_what_the_disk_refuses_is_remembered_whoever_asked_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    """At a close, before the descriptor goes, and after each operation of a resynchronisation: the system tells it
    once, and from then on memory shows what the disk lacks."""
    (bench.backing / "f").write_bytes(b"")

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(steps, "commit_data", refuse)
    bench.run([frame(Op.OPEN, 1, body=b"f", ack=False), write(1, 0, b"a"), frame(Op.CLOSE, 1)], strict=strict)
    assert bench.refused


def test_an_operation_that_fails_says_nothing_of_the_disk(bench: Bench) -> None:
    bench.run([create(1, b"f"), frame(Op.UNLINK, body=b"missing")])
    assert not bench.refused


def test_an_operation_that_fails_takes_the_group_with_it(bench: Bench) -> None:
    """The one before it has no acknowledgement: it may be repeated, or be lost with this server's copy."""
    events = bench.run([create(1, b"f"), frame(Op.UNLINK, body=b"missing")])
    assert [kind for kind, _ in events if kind != "sync"] == ["error"]
    assert events[-1][1][:2] == (2, errno.ENOENT)


def test_a_group_has_an_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that never cease to arrive do not keep the first one waiting."""
    monkeypatch.setattr(secondary, "GROUP", 10)
    (bench.backing / "f").write_bytes(b"")
    events = bench.run([frame(Op.OPEN, 1, body=b"f", ack=False), *(write(1, n, b"x") for n in range(100))])
    acknowledged = [number for kind, number in events if kind == "ack"]
    assert acknowledged[-1] == 101
    assert len(acknowledged) >= 10
    synced = 0
    for kind, _ in events:
        synced += kind == "sync"
        assert kind == "sync" or synced
    assert synced == len(acknowledged)


def test_nothing_is_put_on_disk_where_nothing_is_promised(bench: Bench) -> None:
    """async="second"."""
    events = bench.run([create(1, b"f"), write(1, 0, b"a"), write(1, 1, b"b")], durable=False)
    assert [kind for kind, _ in events] == ["ack", "ack", "ack"]


def test_a_resynchronisation_knows_what_failed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation for itself, until the end of the resynchronisation."""
    monkeypatch.setattr(syscalls, "sync_filesystem", lambda _: bench.events.append(("syncfs", None)))
    together = [create(1, b"f"), write(1, 0, b"a"), frame(Op.UNLINK, body=b"no/f"), frame(Op.STRICT, body=b"\x80")]
    events = bench.run([*together, write(1, 1, b"b"), write(1, 2, b"c")], strict=False)
    kinds = [kind for kind, _ in events]
    assert kinds == ["sync", "sync", "ack", "sync", "ack", "error", "syncfs", "sync", "ack"]
    assert events[-1] == ("ack", 6)


def test_due_is_due_until_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(())
    due = Due(disks)
    due.path(Tree(os.fsencode(tmp_path)), b"")
    due.path(Tree(os.fsencode(tmp_path)), b"")
    real = steps.commit_name

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(steps, "commit_name", refuse)
    with pytest.raises(OSError):
        due.commit()
    assert due and disks.refused
    monkeypatch.setattr(steps, "commit_name", real)
    due.commit()
    assert not due


def test_two_servers_with_async_none(tmp_path: Path) -> None:
    pair = Pair(tmp_path, rfs={"async_mode": "none"})
    try:
        pair.up()
        (pair.a.mount / "d").mkdir()
        for number in range(20):
            with open(pair.a.mount / "d" / str(number), "wb", buffering=0) as handle:
                handle.write(os.urandom(3 << 20))
                handle.truncate(1 << 20)
            (pair.a.mount / "d" / str(number)).rename(pair.a.mount / str(number))
        assert_equal_soon(pair.a.backing, pair.b.backing)
    finally:
        pair.close()


def test_an_error_of_writing_back_is_told_to_what_was_open_when_it_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program that syncs first takes the news; a descriptor that is opened afterwards hears nothing of it."""
    before: list[int] = []
    failed: set[int] = set()

    def system(descriptor: int) -> None:
        before.append(descriptor)
        if descriptor in failed:
            failed.discard(descriptor)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("safekit.syscalls.sync_filesystem", system)
    disks = Disks((os.fsencode(tmp_path),))
    disks.open()
    disks.sync()
    failed.update(before)  # the error: from now on those that are open will be told
    with pytest.raises(OSError, match="Input/output"):
        disks.sync()
    disks.sync()
    disks.close()
    assert len(set(before)) == 1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(before[0])

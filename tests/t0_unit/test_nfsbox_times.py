"""Times that the peer lacks: which are sent, and of whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nfsbox.pair.files import File
from nfsbox.pair.times import Times
from safekit.rfs.wire import Op, Set, pack_attr


class Stream:
    """Notes what is sent."""

    identity = 3

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def send(self, op: Op, root: int, fid: int = 0, *, body: bytes, flags: int) -> int:
        assert flags == 0, "nobody waits for it"
        self.sent.append((op, root, fid, body))
        return len(self.sent)


class Tree:
    """Names, with inode and time."""

    def __init__(self, **names: tuple[int, int]) -> None:
        self._names = names

    def status(self, path: bytes) -> Any:
        found = self._names.get(path.decode())
        return None if found is None else SimpleNamespace(st_ino=found[0], st_mtime_ns=found[1])

    def lstat(self, path: bytes) -> Any:
        found = self.status(path)
        if found is None:
            raise FileNotFoundError(path)
        return found


def times_of(tree: Tree) -> Times:
    return Times(lambda root: tree)  # type: ignore[arg-type, return-value]


def file(inode: int, path: bytes, *, session: int = Stream.identity) -> File:
    made = File(0, inode, path, local=False)
    made.fid, made.session = inode * 10, session
    return made


def send(times: Times, stream: Stream | None, most: int = 100) -> list[tuple[Any, ...]]:
    times.send(stream, most)  # type: ignore[arg-type]
    return [] if stream is None else stream.sent


def test_a_file_that_changes_often_is_told_once() -> None:
    times, one = times_of(Tree(f=(1, 77))), file(1, b"f")
    times.changed(one)
    times.changed(one)
    assert times and send(times, Stream()) == [(Op.SETATTR, 0, 10, pack_attr(Set.MTIME, mtime=77))]
    assert not times and not one.times_due
    times.changed(one)
    assert one in times.files, "and again when it changes again"


def test_the_name_that_leads_to_the_file_is_asked() -> None:
    moved, gone = file(1, b"other"), file(2, b"nowhere")
    moved.named = b"f"
    times = times_of(Tree(other=(9, 1), f=(1, 77)))
    for one in (moved, gone):
        times.changed(one)
    assert [frame[2] for frame in send(times, Stream())] == [10]
    assert not moved.times_due and gone.times_due, "its end tells it"


def test_who_does_not_know_a_file_gets_its_time_with_its_content() -> None:
    orphan, unknown = file(1, b"f"), file(2, b"g", session=2)
    orphan.orphan = True
    times = times_of(Tree(f=(1, 7), g=(2, 7)))
    for one in (orphan, unknown):
        times.changed(one)
    assert send(times, Stream()) == [] and not times
    assert not orphan.times_due and not unknown.times_due


def test_directories_come_first_and_those_that_are_gone_are_left_out() -> None:
    times = times_of(Tree(d=(5, 42), f=(1, 7)))
    times.directories |= {(0, b"d"), (0, b"gone")}
    times.changed(file(1, b"f"))
    assert [frame[0] for frame in send(times, Stream())] == [Op.PSETATTR, Op.SETATTR]


def test_no_more_than_told_are_sent_at_once_others_must_have_their_turn() -> None:
    times = times_of(Tree(**{f"d{number}": (number, 1) for number in range(9)}))
    times.directories |= {(0, b"d%d" % number) for number in range(9)}
    assert len(send(times, Stream(), 4)) == 4 and len(times.directories) == 5


def test_without_a_peer_nothing_is_left_due() -> None:
    times, one = times_of(Tree(d=(5, 42), f=(1, 7))), file(1, b"f")
    times.directories.add((0, b"d"))
    times.changed(one)
    send(times, None)
    assert not times and not one.times_due

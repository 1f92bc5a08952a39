"""Pure parts of nfsbox: what stays local, the set of changes, the kernel's replies, paths of the wire."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfsbox.fs import kernel
from safekit.rfs.changes import Changes, Kind, Mode, Record, unpack
from safekit.rfs.exclusions import Exclusions, is_hidden, parent
from safekit.rfs.identity import Identity
from safekit.rfs.wire import valid_path


def test_expressions_match_whole_relative_paths() -> None:
    local = Exclusions(["logs", "a/b"], [r".*\.tmp"])
    assert local.match(b"conf/config.tmp") and local.match(b"log.tmp")
    assert not local.match(b"conf/config.tmp.bak")
    assert local.match(b"logs") and local.match(b"logs/deep/er") and not local.match(b"logs2")
    assert local.match(b"a/b/c") and not local.match(b"a") and not local.match(b"")
    assert local.match(b"x.tmp/inside")


def test_place_holders_of_libfuse_stay_local() -> None:
    for local in (Exclusions(), Exclusions(["x"])):
        assert local.match(b"d/.fuse_hidden0001") and not local.match(b"d/fuse_hidden")
    assert is_hidden(b".fuse_hidden1") and not is_hidden(b".fuse_hidden1/x")
    assert parent(b"a/b") == b"a" and parent(b"a") == b""


def test_a_wrong_expression_names_itself() -> None:
    with pytest.raises(ValueError, match=r"\(unclosed"):
        Exclusions([], ["(unclosed"])


@pytest.mark.parametrize("path", [b"..", b"a/../b", b"/etc", b"a//b", b"a/", b"a\0b", b".", b"x" * 65536])
def test_paths_that_leave_the_directory_are_refused(path: bytes) -> None:
    assert not valid_path(path)


def test_ordinary_paths_are_valid() -> None:
    assert all(valid_path(path) for path in (b"", b"a", b"a/b", b"\xff", b"..a", b"a/...", b"a b"))


paths = st.binary(min_size=1, max_size=20).filter(lambda path: b"/" not in path)
records = st.builds(
    Record,
    kind=st.sampled_from(Kind),
    root=st.integers(0, 3),
    inode=st.integers(0, 5),
    a=st.integers(0, 1),
    b=st.integers(0, 20),
    path=paths,
    path2=paths,
)


@given(st.lists(records, max_size=20), st.data())
def test_a_journal_cut_anywhere_gives_its_beginning(items: list[Record], data: st.DataObject) -> None:
    packed = [item.pack() for item in items]
    whole = b"".join(packed)
    cut = data.draw(st.integers(0, len(whole)))
    torn = whole[:cut] + bytes(64)
    found = [record for record, _ in unpack(torn)]
    complete = 0
    # a record whose rest is zeros is whole in a file that is preallocated with zeros
    while complete < len(packed) and torn.startswith(b"".join(packed[: complete + 1])):
        complete += 1
    assert found == items[:complete]


@given(st.binary(max_size=300))
def test_noise_is_no_record(noise: bytes) -> None:
    for record, offset in unpack(noise):
        assert isinstance(record, Record) and 0 < offset <= len(noise)


@given(st.lists(records, max_size=30))
def test_a_snapshot_says_the_same(items: list[Record]) -> None:
    first, second = Changes(), Changes()
    for item in items:
        first.apply(item)
    for item in first.snapshot():
        second.apply(Record(**{name: getattr(item, name) for name in item.__slots__}))
    zones = {key: change.zones for key, change in first.files.items() if change.zones}
    assert {key: change.zones for key, change in second.files.items()} == zones
    assert second.directories == first.directories
    assert second.mode is first.mode


def test_a_rename_never_loses_a_file() -> None:
    changes = Changes()
    changes.apply(Record(Kind.ZONES, 0, 10, 3, 1, b"a/b/f"))
    changes.apply(Record(Kind.DIRECTORY, 0, a=5, path=b"a/b"))
    changes.apply(Record(Kind.RENAME, 0, path=b"a", path2=b"z"))
    changes.apply(Record(Kind.RENAME, 0, path=b"z/b/f", path2=b"g"))
    assert changes.files[0, 10, 0].path == b"g"
    assert changes.directories[0, b"z/b"] == 5 and changes.directories[0, b"a/b"] == 5
    changes.apply(Record(Kind.RENAME, 1, path=b"g", path2=b"other root"))
    assert changes.files[0, 10, 0].path == b"g"


def test_records_of_a_random_writer_grow() -> None:
    changes = Changes()
    written = 0
    for zone in range(0, 4096, 7):
        needed = changes.zones_to_record(0, Identity(1), zone, zone)
        if needed is not None:
            assert needed[0] <= zone < needed[0] + needed[1]
            changes.apply(Record(Kind.ZONES, 0, 1, needed[0], needed[1], b"f"))
            written += 1
    assert written < 150
    assert changes.zones_to_record(0, Identity(1), 0, 0) is None


def test_merge_keeps_the_older_mark() -> None:
    one, two = Changes(), Changes()
    one.apply(Record(Kind.DIRECTORY, 0, a=9, path=b"d"))
    two.apply(Record(Kind.DIRECTORY, 0, a=4, path=b"d"))
    two.apply(Record(Kind.ZONES, 0, 1, 2, 2, b"f"))
    one.merge(two)
    assert one.directories[0, b"d"] == 4 and one.files[0, 1, 0].zones == {2, 3}
    assert one.mode is Mode.PAIRED and not Changes() and one


def _init(major: int, minor: int, flags: int, flags2: int = 0) -> bytes:
    return kernel.IN.pack(104, kernel.INIT, 1, 0, 0, 0, 0, 0, 0) + kernel.INIT_IN.pack(
        major, minor, 131072, flags, flags2
    )


def test_init_takes_only_what_is_offered() -> None:
    reply = kernel.init_reply(_init(7, 45, 0xFFFFFFFF, 0xFFFFFFFF), 1, writeback=False)
    assert len(reply) == 16 + 64
    _, _, _, flags, _, _, max_write, _, pages, _, _, _ = kernel.INIT_OUT.unpack_from(reply, 16)
    assert max_write == kernel.MAX_WRITE and pages == 256
    assert not flags & (1 << 16) and not flags & (1 << 12)
    assert kernel.INIT_OUT.unpack_from(kernel.init_reply(_init(7, 45, 0xFFFFFFFF), 1, writeback=True), 16)[3] & 1 << 16
    old = kernel.INIT_OUT.unpack_from(kernel.init_reply(_init(7, 23, 0), 1, writeback=True), 16)
    assert old[3] == 0 and old[6] == 128 << 10 and old[8] == 0
    with pytest.raises(kernel.InitError) as caught:
        kernel.init_reply(_init(8, 0, 0), 1, writeback=False)
    assert caught.value.errno == errno.EPROTO


def _entry(mode: int, names: int) -> bytes:
    attr = struct.pack("<QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, mode, names, 0, 0, 0, 0, 0)
    return kernel.OUT.pack(144, 0, 9) + struct.pack("<QQQQII", 5, 0, 1, 1, 7, 7) + attr


def test_replies_are_kept_only_where_nothing_changes_underneath() -> None:
    plain, linked = _entry(0o100644, 1), _entry(0o100644, 2)
    assert kernel.adjusted(kernel.LOOKUP, plain, caching=True) == plain
    assert kernel.adjusted(kernel.LOOKUP, plain, caching=False)[32:56] == bytes(24)
    once = kernel.adjusted(kernel.LOOKUP, linked, caching=True)
    assert once[40:48] == bytes(8) and once[32:40] != bytes(8) and len(once) == len(linked)
    failed = kernel.OUT.pack(16, -2, 9)
    assert kernel.adjusted(kernel.LOOKUP, failed, caching=False) == failed
    assert kernel.adjusted(kernel.OPEN, plain, caching=False) == plain

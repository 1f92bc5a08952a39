"""What decides beside the content of files: zones of a change, pages that the kernel may keep, handles of before."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfsbox.fs import pages, zones
from nfsbox.fs.former import Former
from nfsbox.fs.pages import Pages
from nfsbox.pair.files import File

sizes = st.integers(0, 40)
zone_sizes = st.integers(1, 16)


def changed(before: bytes, after: bytes) -> set[int]:
    """Offsets at which both are and differ: a size that differs is compared anyway."""
    return {at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other}


def covered(span: zones.Span, zone: int) -> range:
    return range(span[0] * zone, (span[1] + 1) * zone)


@given(st.integers(0, 100), st.integers(1, 100), zone_sizes)
def test_a_write_has_the_zones_of_its_first_and_its_last_byte(offset: int, size: int, zone: int) -> None:
    span = covered(zones.written(offset, size, zone), zone)
    assert offset in span and offset + size - 1 in span
    assert offset - zone not in span and offset + size - 1 + zone not in span, "no more are compared than must be"


@given(sizes, sizes, sizes, zone_sizes)
def test_what_is_cut_off_and_comes_back_as_a_hole_is_covered(size: int, length: int, back: int, zone: int) -> None:
    """The peer may miss both."""
    before = b"x" * size
    cut = before[:length].ljust(length, b"\0")
    after = cut[:back].ljust(back, b"\0")
    told = [zones.truncated(size, length, zone), zones.truncated(length, back, zone)]
    found = {at for span in told if span is not None for at in covered(span, zone)}
    assert changed(before, after) <= found
    assert (told[0] is None) == (size == length)


@given(sizes, st.integers(1, 40), sizes, zone_sizes)
def test_a_hole_is_covered_as_far_as_there_was_something(offset: int, length: int, size: int, zone: int) -> None:
    before = b"x" * size
    after = before[:offset] + bytes(max(0, min(offset + length, size) - offset)) + before[offset + length :]
    first, last = zones.allocated(offset, length, size, zone)
    assert first <= last, "there is something to record, whatever is asked for"
    assert changed(before, after) <= set(covered((first, last), zone))
    assert last <= max(size - 1, offset) // zone


def test_pages_are_good_when_the_file_was_open_before_in_this_role() -> None:
    kept = Pages()
    assert not kept.good(7, 1) and kept.good(7, 1) and not kept.good(8, 1)
    assert not kept.good(7, 2), "another server was primary meanwhile"
    assert kept.good(7, 2)
    kept.void(7)
    assert not kept.good(7, 2)


def test_pages_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_KEPT", 10)
    kept = Pages()
    for inode in range(50):
        kept.good(inode, 1)
    assert not kept.good(0, 1) and kept.good(49, 1)


class Names:
    """A tree in which these paths lead to these inodes."""

    def __init__(self, **inodes: int) -> None:
        self._inodes = inodes

    def status(self, path: bytes) -> Any:
        inode = self._inodes.get(path.decode())
        return None if inode is None else SimpleNamespace(st_ino=inode)


def opened(handles: dict[int, File], path: Path, *, local: bool = False) -> int:
    """A handle of a file that is named as its last part."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    handles[handle] = File(0, os.fstat(handle).st_ino, path.name.encode(), local=local)
    return handle


@pytest.mark.parametrize("writeback", [False, True])
def test_a_handle_of_before_is_written_to_while_its_name_leads_to_its_file(tmp_path: Path, writeback: bool) -> None:
    handles: dict[int, File] = {}
    same, other, gone, local = (
        opened(handles, tmp_path / name, local=name == "local") for name in ("same", "other", "gone", "local")
    )
    former = Former(handles, Names(same=handles[same].inode, other=0), writeback=writeback)  # type: ignore[arg-type]
    assert not former.usable and set(former.replicated()) == {same, other, gone}
    assert former.forget() == {same: b"same", other: None, gone: None}
    assert local not in former.usable
    for handle in (same, other, gone):
        if handle == same and not writeback:
            former.check(handle, 0, appends=True)
            continue
        with pytest.raises(OSError) as refused:
            former.check(handle, 0, appends=False)
        assert refused.value.errno == errno.EIO
    former.closed(other)
    assert other not in former.usable, "its number may be that of another handle"
    for handle in handles:
        os.close(handle)


def test_an_append_goes_to_the_end_that_there_is_or_nowhere(tmp_path: Path) -> None:
    """The other server has appended meanwhile, and the kernel here does not know."""
    handles: dict[int, File] = {}
    handle = opened(handles, tmp_path / "log")
    former = Former(handles, Names(log=handles[handle].inode), writeback=False)  # type: ignore[arg-type]
    former.forget()
    os.write(handle, b"of the other server")
    with pytest.raises(OSError):
        former.check(handle, 0, appends=True)
    former.check(handle, 0, appends=False)
    former.check(handle, 19, appends=True)
    os.link(tmp_path / "log", tmp_path / "second name")
    former.check(handle, 0, appends=True)  # of such a file the end is asked for each time
    os.close(handle)

"""Parts of a box, alone: the bandwidth that is shown, the file of the state."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfsbox.pair.latency import AVERAGE, Bandwidth
from nfsbox.place import BoxError
from nfsbox.state import StateFile
from safekit.rfs.generations import DataState, to_fields

KB = 1024


def test_the_bandwidth_is_an_average_of_the_last_seconds() -> None:
    bandwidth = Bandwidth()
    assert not bandwidth.add(0, 0), "nothing was shown, and nothing is"
    assert bandwidth.add(300 * KB, 0) and bandwidth.shown == (300, 0)
    assert bandwidth.add(300 * KB, 60 * KB) and bandwidth.shown == (150, 30)
    for _ in range(AVERAGE):
        bandwidth.add(300 * KB, 60 * KB)
    assert bandwidth.shown == (0, 0) and not bandwidth.add(300 * KB, 60 * KB)


def test_a_stream_that_begins_anew_shows_nothing_below_zero() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(900 * KB, 900 * KB)
    assert not bandwidth.add(0, 0) and bandwidth.shown == (0, 0)


def test_what_was_shown_stays_until_there_is_something_else_to_show() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(0, 0)
    bandwidth.add(10 * KB, 0)
    bandwidth.stop()
    assert bandwidth.shown == (10, 0)
    assert bandwidth.add(500 * KB, 0) and bandwidth.shown == (0, 0), "the first second of a stream is none"


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    assert file.read() is None
    state = DataState(3, peer=4, current=5)
    assert file.write(to_fields(state)) == state
    assert file.read() == to_fields(state)


def test_a_damaged_state_is_none_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"noise")
    found = StateFile(tmp_path / "state").read()
    assert found is not None and set(found) == {"damaged"} and found["damaged"]


def test_a_state_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "missing" / "state")
    with pytest.raises(BoxError, match=r"missing/state cannot be written: No such file") as refused:
        file.write(to_fields(DataState(3)))
    assert refused.value.code == "state"
    with pytest.raises(BoxError) as wrong:
        file.write({"server": "no number"})
    assert wrong.value.code == "state"

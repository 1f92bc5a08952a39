"""The oracle waits as long as anything moves, tells who waits for what when nothing does, and answers the loss of a
pair as heart does."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.t2_process.copies import pair as copies_pair
from tests.t2_process.copies.nursery import Nursery
from tests.t2_process.copies.pair import Broken, Copies, Stuck

CHANGES = [("make", number, number, number) for number in range(1, 9)]


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Copies]:
    nursery = Nursery(tmp_path)
    try:
        with Copies(tmp_path / "servers", nursery) as found:
            for number in range(4):
                (found.servers[0].backing / f"t{number}").mkdir()
            found.start_primary(found.servers[0])
            found.follow(found.servers[1])
            yield found
    finally:
        nursery.close()


def test_a_wait_without_end_tells_who_waits_for_what(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_pair, "PATIENCE", 3.0)
    primary, secondary = copies.servers
    secondary.signal(signal.SIGSTOP)
    copies.begin(primary, CHANGES)
    try:
        with pytest.raises(Stuck, match="the application has made its changes") as caught:
            copies.settled()
    finally:
        secondary.signal(signal.SIGCONT)
    told = str(caught.value)
    assert "the application is at ('make', 1, 1, 1), 0 are done" in told
    assert "'session': 'paired'" in told and "in settle" in told and "'fuse AM:0'" in told
    copies.settled()
    copies.equal("it only stood still")


def test_a_pair_that_breaks_by_itself_is_named(copies: Copies) -> None:
    primary, secondary = copies.servers
    secondary.kill("nfsbox")
    copies.begin(primary, CHANGES)
    with pytest.raises(Broken, match="n1 lost its secondary: ") as caught:
        copies.settled()
    assert "in fate" in str(caught.value)
    copies.settled()  # it goes on alone


def test_a_pair_that_breaks_because_the_secondary_is_full_goes_on(copies: Copies) -> None:
    primary, secondary = copies.servers
    with open(secondary.base / "filler", "wb", buffering=0) as filler:
        with pytest.raises(OSError, match="No space") as caught:
            while True:
                filler.write(bytes(1 << 12))
        assert caught.value.errno == errno.ENOSPC
        os.fsync(filler.fileno())
    copies.begin(primary, [("make", number, number, 5) for number in range(28)])
    copies.settled()
    assert copies.full and primary.figures()["session"] == "none"
    (secondary.base / "filler").unlink()
    copies.follow(secondary)
    copies.equal("after there was room again")

"""The durable record as nfsadmin reads it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nfsbox.admin.record import boot_identity, boot_time_ns, read, unwatched_since_boot
from safekit.rfs.generations import DataState, to_fields


def test_boot_time_is_in_the_past() -> None:
    assert 0 < boot_time_ns() < time.time_ns()


def test_nobody_watched_since_a_boot_after_the_last_record(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_bytes(b"x")
    now = time.time_ns()
    os.utime(state, ns=(now, now))
    assert boot_identity() == boot_identity() != 0
    known, before = DataState(1, boot=7), DataState(1)
    assert unwatched_since_boot(known, state, 7, now + 10**9) == 0, "the clock was set back meanwhile"
    assert unwatched_since_boot(known, state, 8, now - 10**9) == now - 10**9
    assert unwatched_since_boot(before, state, 8, now - 10**9) == 0, "of a release that did not note the boot"
    assert unwatched_since_boot(before, state, 8, now + 10**9) == now + 10**9


def test_a_power_failure_is_known_by_another_boot(tmp_path: Path) -> None:
    state = DataState(2, peer=1, current=100, open=True, consistent=False, receiving_ns=2**62)
    same = read(to_fields(replace(state, boot=boot_identity())), "crash", tmp_path / "state").state
    other = read(to_fields(replace(state, boot=3)), "crash", tmp_path / "state").state
    assert (same.idle_ns, same.boot) == (0, boot_identity())
    assert 0 < other.idle_ns < 2**62 and other.boot == boot_identity()


@pytest.mark.parametrize(
    ("journal", "base", "tracked"),
    [("clean", 7, True), ("crash", 7, True), ("none", 0, True), ("none", 7, False), ("bad", 0, False)],
)
def test_which_journals_are_trusted(journal: str, base: int, tracked: bool) -> None:
    state = DataState(2, peer=1, current=100, base=base, open=True)
    found = read(to_fields(state), journal)
    assert not found.fault
    assert (found.state.tracked, found.state.clean) == (tracked, False)


def test_a_damaged_state_begins_anew_and_says_why() -> None:
    found = read({"damaged": "checksum"}, "clean")
    assert found.fault and found.state.current == 0 and found.state.server

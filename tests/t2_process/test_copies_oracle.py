"""Two copies never differ in silence: random changes and interruptions against real processes on small disks, with
power failures that forget what was not synced, compared after each pairing (tests/t2_process/copies)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def oracle(seeds: str, seconds: int) -> int:
    """Cycles that were run without a difference."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.t2_process.copies", "--seeds", seeds, "--cycles", "6", "--seconds", str(seconds)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=seconds + 300,
        check=False,
    )
    assert not done.returncode, done.stdout[-6000:] + done.stderr[-2000:]
    found = re.search(r"^(\d+) cycles in", done.stdout, re.MULTILINE)
    assert found, done.stdout[-2000:]
    return int(found[1])


def test_no_difference_after_a_hundred_cycles() -> None:
    assert oracle("0:20", 240) >= 6


@pytest.mark.slow
def test_no_difference_after_thousands_of_cycles() -> None:
    assert oracle("1000:1900", 5400) >= 1000

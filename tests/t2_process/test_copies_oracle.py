"""Two copies never differ in silence: random changes and interruptions against real processes on small disks, with
power failures that forget what was not synced, compared after each pairing (tests/t2_process/copies)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


#: Faults that are known and not mended. Whatever else differs (names, content, links, attributes) fails the test.
OPEN = "open: times alone differ after a power failure of the primary (seed 8), or a pair does not come about in time"
_ENTRY = re.compile(r"(?:^|; )[^;]*?: (\w+) ")


def content_differs(output: str) -> bool:
    """Whether a seed found more than times that differ."""
    for line in output.splitlines():
        if not re.match(r"seed \d+: Different: ", line):
            continue
        listed = line.partition(" entries differ: ")[2]
        kinds = set(_ENTRY.findall(listed))
        if kinds != {"time"}:
            return True
    return False


def test_only_times_are_excused() -> None:
    differ = "seed 8: Different: after cycle 3: prim_power, undisturbed: 2 entries differ: "
    assert not content_differs(differ + "t0: time 17 / 18; t1: time 3 / 4")
    assert content_differs(differ + "t0: time 17 / 18; f: content abc / abd")
    assert content_differs("seed 8: Different: after cycle 3: a takeover lost f")
    assert not content_differs("seed 9: Traceback (most recent call last):")


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
    if done.returncode:
        output = done.stdout[-6000:] + done.stderr[-2000:]
        assert not content_differs(done.stdout), output
        pytest.xfail(f"{OPEN}\n{output}")
    found = re.search(r"^(\d+) cycles in", done.stdout, re.MULTILINE)
    assert found, done.stdout[-2000:]
    return int(found[1])


def test_no_difference_after_a_hundred_cycles() -> None:
    assert oracle("0:20", 240) >= 6


@pytest.mark.slow
def test_no_difference_after_thousands_of_cycles() -> None:
    assert oracle("1000:1900", 5400) >= 1000

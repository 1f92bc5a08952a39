"""Campaign: a mirror under random faults and orders loses nothing that it acknowledged (see stress.py).

SAFE_STRESS_SEED chooses the schedule, SAFE_STRESS_MINUTES its length.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import WITNESS, Pair
from stress import Stress

from lab.cluster import Lab

SEED = int(os.environ.get("SAFE_STRESS_SEED") or random.randrange(1 << 30))
MINUTES = float(os.environ.get("SAFE_STRESS_MINUTES") or 15)


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab.up(disks=True, binds=[WITNESS])
    yield made
    made.down()


@pytest.mark.slow
def test_nothing_acknowledged_is_lost(lab: Lab, tmp_path: Path) -> None:
    pair = Pair(lab)
    Stress.install(pair)
    stress = Stress(pair, SEED, tmp_path)
    end = time.monotonic() + MINUTES * 60
    while time.monotonic() < end or stress.cycles < 2:
        stress.cycle()
    print(stress.summary())
    assert stress.records > 100 * stress.cycles

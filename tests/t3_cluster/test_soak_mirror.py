"""Campaign: with a heartbeat time-out of a second, a pair stays what it is while every core is busy.

SAFE_SOAK_MINUTES chooses its length.
"""

from __future__ import annotations

import os
import time

import pytest
from burners import saturated
from pair import Pair, userconfig

from lab.cluster import Lab

MINUTES = float(os.environ.get("SAFE_SOAK_MINUTES") or 10)


@pytest.mark.slow
def test_no_false_failover_while_every_core_is_busy(lab: Lab) -> None:
    pair = Pair(lab)
    pair.install(userconfig(heart='pulse="100" timeout="1000"'))
    pair.first_start(pair.one)
    pair.begin_test()
    mark, end = pair.mark(), time.monotonic() + MINUTES * 60
    records = len(pair.acknowledged(pair.one))
    with saturated():
        while time.monotonic() < end:
            time.sleep(min(5.0, max(end - time.monotonic(), 0.1)))
            assert (pair.state(pair.one), pair.state(pair.two)) == ("PRIM green", "SECOND green"), pair.tail()
    for node in pair.nodes:
        lines = pair.log(node, mark, "EI")
        late = sum(line.code == "late" for line in lines)
        lost = [line.english for line in lines if line.code == "resource_set" and "heartbeat." in line.english]
        print(f"{node.name}: {late} warnings of lateness, {len(lost)} changes of a heartbeat")
        told = [line.english for line in lines if line.code in ("local_state", "remote_state", "failover_no_heartbeat")]
        assert told == [] and lost == [], f"{told} {lost}\n{pair.tail()}"
    assert len(pair.acknowledged(pair.one)) - records > 60 * MINUTES, "the application hardly ran"
    pair.verify(pair.one)
    pair.check_logs()

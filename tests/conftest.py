"""What tests of several levels share: the option for long campaigns, and labs that never outlive their test."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import Lab
from tests.retried import reason_to_try_again

_numbers = count(1)
#: What a test says of acknowledged data that is gone: never tried again.
LOST = r"AssertionError: \d+ .* are lost"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign", action="store_true", help="run the long campaigns too (marker: slow)")
    parser.addoption("--failures-to", metavar="FILE", help="write the tests that failed to FILE, one a line")
    parser.addoption(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="run the files, and the tests of each file, in an order made from SEED",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if config.getoption("reruns") is None and reason_to_try_again(item.nodeid) is not None:
            item.add_marker(pytest.mark.flaky(reruns=2, rerun_except=[LOST]))
    seed = config.getoption("--shuffle")
    if seed is not None:
        _shuffle(items, random.Random(seed))
    if config.getoption("--campaign"):
        return
    chosen = [item for item in items if item.get_closest_marker("slow") is None]
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow") is not None])
    items[:] = chosen


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """For `bin/test --again`: a line for each test that failed, with `lost` before one that lost acknowledged data."""
    file = config.getoption("--failures-to")
    if file is None:
        return
    failed: dict[str, bool] = {}
    for report in (*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")):
        lost = re.search(LOST, report.longreprtext, re.MULTILINE) is not None
        failed[report.nodeid] = failed.get(report.nodeid, False) or lost
    Path(file).write_text("".join(f"{'lost ' * lost}{nodeid}\n" for nodeid, lost in failed.items()))


def _shuffle(items: list[pytest.Item], source: random.Random) -> None:
    """In place. The tests of a file stay together: some share what took long to make. All workers of a run have the
    same seed, as xdist wants the same order of all of them."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.split("::", 1)[0], []).append(item)
    shuffled = list(files.values())
    source.shuffle(shuffled)
    for tests in shuffled:
        source.shuffle(tests)
    items[:] = [item for tests in shuffled for item in tests]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a cluster file share its cluster: one worker runs them, in their order; those of a t0 file share
    what they have read and are too short to be shared out one by one. All others go anywhere. (Not by xdist's
    groups: they have no effect, and nothing says so, where pytest keeps node ids its own way.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByCluster(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if "t4_console" in nodeid:
                return "t4_console"  # all of its files share one cluster
            whole = "t3_cluster" in nodeid or "t0_unit" in nodeid
            return nodeid.split("::", 1)[0] if whole else nodeid

    return ByCluster(config, log)


def unique_lab_name() -> str:
    """Says whose lab it is, so that test runs side by side do not meet."""
    return f"test{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """`Lab.up` with a name of its own; the labs are removed after the test."""
    labs: list[Lab] = []

    def make(**options: object) -> Lab:
        lab = Lab.up(unique_lab_name(), **options)  # type: ignore[arg-type]
        labs.append(lab)
        return lab

    yield make
    for lab in labs:
        lab.down()

"""What tests of several levels share: the option for long campaigns, and labs that never outlive their test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from lab.cluster import Lab

_numbers = count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign", action="store_true", help="run the long campaigns too (marker: slow)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # Processes and clusters share the machine with whatever else runs on it: a failure counts when it
        # comes back. Every second attempt is shown in the summary. Pure tests and simulations get none, lost data
        # ("... are lost") neither, and `--reruns 0` gives none to any.
        if config.getoption("reruns") is None and ("t2_process" in item.nodeid or "t3_cluster" in item.nodeid):
            item.add_marker(pytest.mark.flaky(reruns=2, rerun_except=[r"^AssertionError: \d+ .* are lost"]))
    if config.getoption("--campaign"):
        return
    chosen = [item for item in items if item.get_closest_marker("slow") is None]
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow") is not None])
    items[:] = chosen


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a cluster file share its cluster: one worker runs them, in their order. All others go anywhere.
    (Not by xdist's groups: they have no effect, and nothing says so, where pytest keeps node ids its own way.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByCluster(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.split("::", 1)[0] if "t3_cluster" in nodeid else nodeid

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

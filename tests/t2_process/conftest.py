"""The machines of a test file, cleaned after each of its tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from tests.t2_process.vip_network import Network, network


class Machines(Protocol):
    def clean(self) -> None: ...


@pytest.fixture(scope="module")
def wires() -> Iterator[Machines]:
    """Two servers, a client and a stranger on a bridge. Files about farms have a farm instead."""
    made: Network
    with network() as made:
        yield made


@pytest.fixture
def net(wires: Machines) -> Iterator[Machines]:
    """The machines of the file, for one test."""
    yield wires
    wires.clean()

"""The machines of a test file, cleaned after each of its tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from safekit.model.types import Replicated, Rfs
from tests.t2_process import rfs_pair
from tests.t2_process.cli_server import NotedAdmin, Server, install_mirror, make_server
from tests.t2_process.nfsbox_pair import Pair
from tests.t2_process.vip_network import Network, network
from tests.t2_process.web_server import GREEN, WebServer


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


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Where commands run, without a safeadmin. Files with other servers have a fixture of that name of their own."""
    return make_server(tmp_path, monkeypatch)


@pytest.fixture
def admin(server: Server) -> Iterator[NotedAdmin]:
    """The safeadmin of `server`."""
    with NotedAdmin(server.port) as noted:
        yield noted


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """Makes pairs of engines; they are closed after the test."""
    made: list[Pair] = []

    def build(**options: object) -> Pair:
        pair = Pair(tmp_path / str(len(made)), **options)  # type: ignore[arg-type]
        made.append(pair)
        return pair

    yield build
    for pair in made:
        pair.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[rfs_pair.Pair]:
    """Two servers with the real processes of a replicated directory, in small zones. Files with other pairs have a
    fixture of that name of their own."""
    rfs = Rfs((Replicated("/replicated"),), ruzone_blocksize=rfs_pair.ZONE, reipacketsize=rfs_pair.ZONE)
    with rfs_pair.Pair(tmp_path, rfs) as found:
        yield found


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A web service beside one module, for a file; others have a fixture of that name of their own."""
    server = WebServer(tmp_path_factory.mktemp("web"))
    server.module("mirror", GREEN)
    server.start()
    yield server
    said = server.stop()
    assert "Traceback" not in said and "defect" not in said, said


@pytest.fixture
def environment() -> Iterator[None]:
    """What a test does to the environment of this process ends with it."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def data(server: Server, admin: NotedAdmin, tmp_path: Path) -> Path:
    """A replicated directory with a file, and a module `mirror` that is installed and not yet configured."""
    return install_mirror(server, tmp_path)

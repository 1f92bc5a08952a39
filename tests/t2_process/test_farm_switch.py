"""A switch that does not carry the virtual MAC to every server is found and named (guide 4.3.7)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.waiting import wait_until
from tests.t2_process.farm_network import VMAC4, FarmNetwork, farm_network, farm_vip
from tests.t2_process.vip_network import sh


@pytest.fixture(scope="module")
def wires() -> Iterator[FarmNetwork]:
    with farm_network(3) as made:
        yield made


@pytest.fixture
def net(wires: FarmNetwork) -> Iterator[FarmNetwork]:
    yield wires
    for server in wires.servers:
        flood(wires, server.name, True)
    wires.clean()


def flood(net: FarmNetwork, port: str, on: bool) -> None:
    """Whether the switch sends frames for unknown stations to a port."""
    sh("bridge", "-n", net.bridge, "link", "set", "dev", f"p-{port}", "flood", "on" if on else "off")


def said(net: FarmNetwork, code: str) -> list[str]:
    """Names of the servers with this message in their log."""
    return [server.name for server in net.servers if server.log(code)]


def test_a_switch_that_floods_is_no_news(net: FarmNetwork, tmp_path: Path) -> None:
    net.install(tmp_path, farm_vip())
    net.start()
    # Every server judges by the burst that the last one has begun: then, silence means that all is well.
    flood(net, "n2", False)
    wait_until(lambda: net.servers[1].log("farm_learned"), 60, "n2 is reached no more")
    assert said(net, "farm_learned") == ["n2"] and not said(net, "farm_not_flooded")
    (found,) = net.servers[1].status()["flooding"]
    assert found["interface"] == "eth0" and found["problem"] == "learned" and found["missing"], found
    flood(net, "n2", True)
    wait_until(lambda: net.servers[1].log("farm_flooded"), 30, "n2 is reached again")
    assert net.servers[1].status()["flooding"] == []


def test_a_switch_that_does_not_flood_is_named_at_start(net: FarmNetwork, tmp_path: Path) -> None:
    for server in net.servers:
        flood(net, server.name, False)
    net.install(tmp_path, farm_vip())
    net.start()
    wait_until(lambda: said(net, "farm_not_flooded") == ["n1", "n2", "n3"], 10, "all say it")
    assert not said(net, "farm_learned")
    (text,) = net.servers[0].log("farm_not_flooded")
    assert VMAC4 in text and "n2" in text and "n3" in text


def test_a_switch_that_has_learned_the_virtual_mac_is_named_at_start(net: FarmNetwork, tmp_path: Path) -> None:
    sh("bridge", "-n", net.bridge, "fdb", "add", VMAC4, "dev", "p-n1", "master", "static")
    try:
        net.install(tmp_path, farm_vip())
        net.start()
        wait_until(lambda: said(net, "farm_learned") == ["n2", "n3"], 15, "those that get nothing say it")
        assert "reach n1" in net.servers[1].log("farm_learned")[-1]
        assert net.servers[0].status()["flooding"] == []
    finally:
        sh("bridge", "-n", net.bridge, "fdb", "del", VMAC4, "dev", "p-n1", "master")

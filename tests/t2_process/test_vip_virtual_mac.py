"""A virtual MAC for the addresses of a mirror (guide 13.5.5): it moves with them, and the clients learn nothing new."""

from __future__ import annotations

from pathlib import Path

from lab.waiting import wait_until
from safekit.model.types import Interface, InterfaceKind, Vip, VirtualAddr
from tests.t2_process.vip_network import VIP4, VIP6, Network, Server

VMAC = "5a:fe:0a:4d:00:32"


def vip(kind: InterfaceKind = "vmac_invisible", mac: str | None = None) -> Vip:
    return Vip(True, (Interface((VirtualAddr(VIP4), VirtualAddr(VIP6)), kind, arpreroute=True, mac=mac),))


def served_by(net: Network, server: Server) -> None:
    """The server answers the client at the virtual addresses, and the other one hears the frames in vain."""
    for address in (VIP4, VIP6):
        assert net.client.ping(address), address
    other = net.n2 if server is net.n1 else net.n1
    assert "safekit_" in server.run("nft", "list", "ruleset")
    assert "safekit_" not in other.run("nft", "list", "ruleset")
    assert VIP4 in server.addresses() and VIP4 not in other.addresses()


def test_it_moves_with_the_address_and_clients_learn_nothing(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, vip())
    for server in (net.n1, net.n2):
        server.start()
    assert net.n1.order("vip_set")["ok"]
    served_by(net, net.n1)
    for address in (VIP4, VIP6):
        assert net.client.neighbour(address) == VMAC
    # From now on the client believes nothing new.
    for address in (VIP4, VIP6):
        net.client.run("ip", "neigh", "replace", address, "lladdr", VMAC, "dev", "eth0", "nud", "permanent")
    for old, new in ((net.n1, net.n2), (net.n2, net.n1)):
        assert old.order("vip_unset")["ok"]
        assert not net.client.ping(VIP4)
        assert new.order("vip_set")["ok"]
        served_by(net, new)
    assert net.n1.order("vip_unset")["ok"]
    assert net.n1.run("nft", "list", "ruleset") == ""


def test_a_peer_that_still_answers_with_it_is_overridden(net: Network, tmp_path: Path) -> None:
    """Both have the same virtual MAC: it tells nothing of another machine."""
    net.install(tmp_path, vip())
    for server in (net.n1, net.n2):
        server.start()
        assert server.order("vip_set")["ok"]
    assert not net.n2.log("vip_duplicate")
    assert len(net.n2.log("vip_taken_over")) == 2
    assert VIP4 in net.n2.addresses()


def test_a_killed_vipd_keeps_it_and_a_flush_is_repaired(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, vip(mac="5a:fe:00:00:00:02"), net.n1)
    process = net.n1.start()
    assert net.n1.order("vip_set")["ok"]
    assert net.client.ping(VIP4) and net.client.neighbour(VIP4) == "5a:fe:00:00:00:02"
    net.n1.state("ALONE")
    process.kill()
    process.wait(5)
    assert net.client.ping(VIP4)
    net.n1.start()
    assert net.client.ping(VIP4)
    net.n1.run("nft", "flush", "ruleset")
    wait_until(lambda: net.n1.log("farm_filter"), 1.0, "the change was noticed")
    wait_until(lambda: net.client.ping(VIP4), 2.0, "the filter is back")
    assert net.client.neighbour(VIP4) == "5a:fe:00:00:00:02"
    assert net.n1.order("vip_unset")["ok"]
    assert net.n1.run("nft", "list", "ruleset") == ""


def test_what_a_crash_left_is_removed_at_start(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, vip(), net.n1)
    process = net.n1.start()
    assert net.n1.order("vip_set")["ok"]
    process.kill()
    process.wait(5)
    assert "safekit_" in net.n1.run("nft", "list", "ruleset")
    net.n1.start()
    wait_until(lambda: net.n1.run("nft", "list", "ruleset") == "", 5.0, "the filters are gone")
    assert VIP4 not in net.n1.addresses()


def test_directed_is_the_mac_of_the_server(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, vip("vmac_directed"), net.n1)
    net.n1.start()
    assert net.n1.order("vip_set")["ok"]
    assert net.client.ping(VIP4) and net.client.neighbour(VIP4) == net.n1.mac
    assert net.n1.run("nft", "list", "ruleset") == ""
    assert net.n1.order("vip_unset")["ok"]

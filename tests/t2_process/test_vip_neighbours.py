"""Addresses and neighbours of the kernel, and the permanent entries of heartbeat peers (guide 13.3.3)."""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address
from typing import Any

from safekit.net.addresses import local_addresses
from tests.t2_process.vip_network import ROOT, Host, Network

PROGRAM = """
import asyncio, dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
from safekit.net import addresses as net
from safekit.net.neighbours import PermanentNeighbours
from safekit.net.packets import mac_text
"""


def inside(host: Host, code: str, *arguments: str) -> Any:
    """What a program prints as JSON, run in a host's namespace."""
    return json.loads(host.run(sys.executable, "-c", PROGRAM + code, str(ROOT), *arguments))


def permanent(host: Host) -> dict[str, str]:
    """The permanent entries of a host: address -> MAC."""
    listed = json.loads(host.run("ip", "-j", "neigh", "show", "nud", "permanent") or "[]")
    return {entry["dst"]: entry["lladdr"] for entry in listed}


REFRESH = """
keeper = PermanentNeighbours()
async def main():
    for address in [a for a in sys.argv[2:] if a.startswith("02:")]:
        net.set_permanent_neighbour("eth0", sys.argv[2], address)
    peers = [a for a in sys.argv[2:] if not a.startswith("02:")]
    first = await keeper.refresh(peers)
    second = await keeper.refresh(peers)
    print(json.dumps([[dataclasses.asdict(c) for c in changes] for changes in (first, second)]))
asyncio.run(main())
"""


def test_local_addresses_are_those_of_this_machine(net: Network) -> None:
    assert ip_address("127.0.0.1") in local_addresses()
    found = set(inside(net.n1, "print(json.dumps([str(a) for a in net.local_addresses()]))"))
    assert {net.n1.ip, net.n1.ip6, "127.0.0.1", "::1"} <= found
    assert net.n2.ip not in found


def test_a_permanent_entry_is_set_read_and_deleted(net: Network) -> None:
    code = """
net.set_permanent_neighbour("eth0", sys.argv[2], "02-00-00-00-00-42")
name, mac = net.learned_mac(sys.argv[2])
net.forget_neighbour("eth0", sys.argv[2]); net.forget_neighbour("eth0", sys.argv[2])
print(json.dumps([name, mac_text(mac), net.learned_mac(sys.argv[2])]))
"""
    for address in ("10.77.0.42", "fd77::42"):
        assert inside(net.n1, code, address) == ["eth0", "02:00:00:00:00:42", None]


def test_peers_get_permanent_entries_once(net: Network) -> None:
    first, second = inside(net.n1, REFRESH, net.n2.ip, net.n2.ip6)
    assert first == [
        {"interface": "eth0", "address": address, "old": None, "new": net.n2.mac} for address in (net.n2.ip, net.n2.ip6)
    ]
    assert second == []
    assert permanent(net.n1) == {net.n2.ip: net.n2.mac, net.n2.ip6: net.n2.mac}


def test_a_replaced_network_card_is_followed(net: Network) -> None:
    inside(net.n1, REFRESH, net.n2.ip, "02:00:00:00:00:77")
    assert permanent(net.n1) == {net.n2.ip: net.n2.mac}


def test_a_silent_peer_keeps_its_entry_and_a_distant_one_gets_none(net: Network) -> None:
    silent, distant = "10.77.0.200", "192.0.2.1"
    net.n1.run("ip", "neigh", "replace", silent, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "stale")
    first, second = inside(net.n1, REFRESH, silent, distant)
    assert [change["address"] for change in first] == [silent]
    assert second == []
    assert permanent(net.n1) == {silent: "02:00:00:00:00:99"}


RELEASE = """
keeper = PermanentNeighbours()
made = asyncio.run(keeper.refresh(sys.argv[2:]))
keeper.release()
print(len(made))
"""


def test_entries_are_released(net: Network) -> None:
    assert inside(net.n1, RELEASE, net.n2.ip) == 1
    assert permanent(net.n1) == {}

"""How the kernels of 2 to 16 servers share clients, against what the bitmaps promise and `farm who` says (13.5.6)."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.farm import who
from lab.waiting import wait_until
from tests.t2_process.farm_network import VIP4, VIP6, FarmHost, FarmNetwork, farm_network, figures
from vipd.farm import ruleset
from vipd.farm.buckets import Shares, bitmap_of
from vipd.farm.layout import Balance, Filter, Layout, Verdicts, Wire, default_vmac, gather_mac

COUNT = 10_000
PORT = 9
MEMBERS = 16

# Datagrams to the virtual MAC: `ports` of one client, of many `addresses` with one port, or `random` clients.
RAW = r"""
import json, random, socket, struct, sys, time
version, what, count, target = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
mac, own = (bytes.fromhex(text.replace(":", "")) for text in sys.argv[5:7])
draw, family = random.Random(7), socket.AF_INET if version == 4 else socket.AF_INET6
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.bind(("eth0", 0))
destination = socket.inet_pton(family, target)
print("ready", flush=True)
clients = []
for n in range(count):
    if what == "ports": tail, port = (7).to_bytes(15, "big"), 1024 + n
    elif what == "addresses": tail, port = (n + 256).to_bytes(15, "big"), 40000
    else: tail, port = draw.randbytes(15), draw.randrange(1, 65536)
    source = b"\x0a" + tail[-3:] if version == 4 else b"\xfd" + tail
    udp = struct.pack("!HHHH", port, 9, 8, 0)
    if version == 6:  # where a datagram without a checksum is an error
        total = sum(struct.unpack("!16H", source + destination)) + 8 + 17 + port + 9 + 8
        while total >> 16: total = (total & 0xffff) + (total >> 16)
        udp = struct.pack("!HHHH", port, 9, 8, ~total & 0xffff or 0xffff)
    if version == 4:
        packet = struct.pack("!BBHHHBBH4s4s", 69, 0, 28, n & 65535, 0, 64, 17, 0, source, destination) + udp
        total = sum(struct.unpack("!10H", packet[:20])); total = (total >> 16) + (total & 0xffff)
        packet = packet[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xffff) + packet[12:]
    else:
        packet = struct.pack("!IHBB16s16s", 6 << 28, 8, 17, 64, source, destination) + udp
    s.send(mac + own + (b"\x08\x00" if version == 4 else b"\x86\xdd") + packet)
    clients.append((socket.inet_ntop(family, source), port))
    # The queue of a virtual wire holds a thousand packets of each of the servers.
    if n % 100 == 99: time.sleep(0.01)
print(json.dumps(clients), flush=True)
"""


@pytest.fixture(scope="module")
def net() -> Iterator[FarmNetwork]:
    with farm_network(MEMBERS) as made:
        for server in made.servers:
            # Clients of any address are to be counted, and none of them is to be answered.
            server.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
            server.run("ip", "addr", "add", f"{VIP4}/24", "dev", "eth0")
            server.run("ip", "addr", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
        yield made


def powers(count: int) -> dict[int, int]:
    return {number: 1 + number % 3 for number in range(count)}


def filters(net: FarmNetwork, count: int, kind: Filter, tmp_path: Path) -> tuple[int, ...]:
    """Put the filters of a farm of the first `count` servers into their kernels; the owner of each bucket."""
    owners = Shares(powers(count)).owners(tuple(range(count)))
    vips = (ipaddress.ip_address(VIP4), ipaddress.ip_address(VIP6))
    for number, server in enumerate(net.servers[:count]):
        mac = bytes.fromhex(server.mac.replace(":", ""))
        wire = Wire(0, "eth0", 0, mac, "invisible", default_vmac(vips[0]), gather_mac(vips[0]), vips)
        layout = Layout("shares", number, count, ("g",), (wire,), (Balance("udp", kind, 0, None, PORT),))
        verdicts = Verdicts(True, (owners,), (bitmap_of(owners, number),), (0,), {})
        path = tmp_path / "rules.nft"
        path.write_text(
            ruleset.table(layout) + ruleset.state(layout, verdicts) + ruleset.lease(layout, None), encoding="ascii"
        )
        server.run("nft", "-f", str(path))
    return owners


def accepted(server: FarmHost, version: int) -> int:
    """Datagrams that reached the transport layer: nobody listens, so each is counted as one without a port."""
    if version == 6:
        lines = dict(line.split() for line in server.run("cat", "/proc/net/snmp6").splitlines())
        return int(lines["Udp6NoPorts"])
    names, values = (line.split() for line in server.run("cat", "/proc/net/snmp").splitlines() if line[:4] == "Udp:")
    return int(values[names.index("NoPorts")])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("count", [2, 3, 5, 16])
@pytest.mark.parametrize(("what", "kind"), [("ports", "on_port"), ("addresses", "on_addr"), ("random", "on_port")])
def test_kernels_share_as_promised_and_who_agrees(
    net: FarmNetwork, tmp_path: Path, what: str, kind: Filter, count: int, version: int
) -> None:
    if what == "random" and count != MEMBERS:
        pytest.skip("random clients are shown for the largest farm")
    owners = filters(net, count, kind, tmp_path)
    members = net.servers[:count]
    before = [accepted(server, version) for server in members]
    target = VIP4 if version == 4 else VIP6
    vmac = default_vmac(ipaddress.ip_address(VIP4)).hex(":")
    clients = figures(net.client.python(RAW, str(version), what, str(COUNT), target, vmac, net.client.mac))
    seen: list[int] = []

    def all_arrived() -> bool:
        seen[:] = [accepted(server, version) - was for server, was in zip(members, before, strict=True)]
        return sum(seen) >= COUNT

    wait_until(all_arrived, 10, "every datagram is accepted once")
    view: dict[str, Any] = {
        "nodes": [server.name for server in members],
        "groups": [
            {
                "name": "g",
                "owners": list(owners),
                "rules": [{"label": "rule", "proto": "udp", "filter": kind, "addr": None, "port": PORT}],
            }
        ],
    }
    expected = dict.fromkeys(view["nodes"], 0)
    for address, port in clients:
        expected[who(view, ipaddress.ip_address(address), port)[0]["server"]] += 1
    assert seen == list(expected.values()), "the kernels and `farm who`"
    for number, received in enumerate(seen):
        promised = owners.count(number) / 256
        assert abs(received / COUNT - promised) <= 0.02, (
            f"{members[number].name}: {received} of {COUNT}, {promised:.1%}"
        )
    print(json.dumps({"members": count, "what": what, "version": version, "seen": seen}))

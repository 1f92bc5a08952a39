"""The packet filters of a farm against packets: hash, shares, protocols, fragments, resolution (guide 13.5.6)."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from cli.farm import bitmaps, client, status, table, who
from lab.waiting import wait_until
from safekit.disk.paths import ModulePaths
from safekit.model.types import Group, Host, Rule
from safekit.net.jhash import client_bucket
from tests.t2_process.farm_network import VIP4, VIP6, VMAC4, FarmNetwork, farm_network, farm_vip, figures
from vipd.farm.buckets import FULL
from vipd.farm.layout import Balance
from vipd.farm.ruleset import hash_of

# Sends `count` UDP datagrams of `size` bytes; prints who answered, and how many bytes they got.
DATAGRAMS = r"""
import collections, json, socket, sys
address, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fixed = int(sys.argv[4])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
print("ready", flush=True)
found = collections.Counter()
s = None
for n in range(count):
    if s is None or not fixed:
        s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(0.5)
        if fixed: s.bind(("", fixed))
        # A new identification in every packet, as clients that do not set DF send it.
        if family == socket.AF_INET: s.setsockopt(socket.IPPROTO_IP, 10, 0)
    s.sendto(b"x" * size, (address, 5001))
    try: found[s.recv(64).decode()] += 1
    except TimeoutError: found["!lost"] += 1
print(json.dumps(found), flush=True)
"""

# The kernel's own bucket of many tuples: a chain with a counter for each bucket, raw packets with chosen sources.
RAW = r"""
import json, random, socket, struct, sys
version, count, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
draw = random.Random(5)
mac, own = bytes.fromhex(sys.argv[4].replace(":", "")), bytes.fromhex(sys.argv[5].replace(":", ""))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.bind(("eth0", 0))
family = socket.AF_INET if version == 4 else socket.AF_INET6
destination = socket.inet_pton(family, target)
print("ready", flush=True)
tuples = []
for n in range(count):
    source = draw.randbytes(4 if version == 4 else 16)
    source = (b"\x0a" if version == 4 else b"\xfd") + source[1:]
    port, ident = draw.randrange(1, 65536), draw.randrange(1, 65536)
    udp = struct.pack("!HHHH", port, 9, 8, 0)
    if version == 4:
        packet = struct.pack("!BBHHHBBH4s4s", 69, 0, 28, ident, 0, 64, 17, 0, source, destination) + udp
        total = sum(struct.unpack("!10H", packet[:20])); total = (total >> 16) + (total & 0xffff)
        packet = packet[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xffff) + packet[12:]
    else:
        packet = struct.pack("!IHBB16s16s", 6 << 28, 8, 17, 64, source, destination) + udp
    s.send(mac + own + (b"\x08\x00" if version == 4 else b"\x86\xdd") + packet)
    tuples.append((socket.inet_ntop(family, source), port, ident))
    if n % 200 == 199:
        import time; time.sleep(0.005)
print(json.dumps(tuples), flush=True)
"""


Engine = Literal["nftables", "nfqueue"]
ENGINES: tuple[Engine, ...] = ("nftables", "nfqueue")


@pytest.fixture(scope="module")
def wires() -> Iterator[FarmNetwork]:
    with farm_network(3) as made:
        yield made


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["on_addr", "on_port", "on_ipid"])
def test_the_kernel_agrees_on_ten_thousand_tuples(net: FarmNetwork, version: int, kind: str) -> None:
    server = net.servers[0]
    expression = hash_of(Balance("udp", kind, 0, None, 9), version)  # type: ignore[arg-type]
    target, word = (server.ip, "ip") if version == 4 else (server.ip6, "ip6")
    chains = "".join(f"chain c{b} {{ counter drop; }}\n" for b in range(256))
    elements = ", ".join(f"{b} : goto c{b}" for b in range(256))
    text = (
        f"table netdev probe {{ {chains} map m {{ typeof meta length : verdict; elements = {{ {elements} }}; }}\n"
        'chain in { type filter hook ingress device "eth0" priority -10; policy accept;\n'
        f" {word} daddr {target} udp dport 9 {expression} vmap @m\n }}\n}}\n"
    )
    path = Path("/tmp") / f"farm-probe-{os.getpid()}.nft"
    path.write_text(text)
    try:
        server.run("nft", "-f", str(path))
    finally:
        path.unlink()
    sender = net.client.python(RAW, str(version), "10000", target, server.mac, net.client.mac)
    expected = [0] * 256
    tuples: Any = figures(sender)
    for source, port, ident in tuples:
        expected[client_bucket(kind, ipaddress.ip_address(source), port, ident)] += 1
    seen = [0] * 256
    listed = server.run("nft", "list", "table", "netdev", "probe")
    for bucket, packets in re.findall(r"chain c(\d+) \{\s+counter packets (\d+)", listed):
        seen[int(bucket)] = int(packets)
    assert seen == expected and sum(seen) == 10000


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["vmac_invisible", "vmac_directed"])
def test_who_names_the_server_that_answers(net: FarmNetwork, tmp_path: Path, kind: str, engine: Engine) -> None:
    net.install(tmp_path, farm_vip(kind, engine=engine))  # type: ignore[arg-type]
    net.start()
    view = net.servers[1].status()
    for address in (VIP4, VIP6):
        source = net.client.ip if address == VIP4 else net.client.ip6
        answered = figures(net.client.short(address, 80, 300))["ports"]
        for port, server in answered.items():
            answers = who(view, ipaddress.ip_address(source), int(port))
            answer = next(a for a in answers if a["rule"] == "* tcp port 80 on_port")
            assert answer["server"] == server
        by_address = net.client.count(address, 81, 20)
        affinity = next(a for a in who(view, ipaddress.ip_address(source), None) if "81" in a["rule"])
        assert by_address == {affinity["server"]: 20}
    assert client("10.0.0.1:5") == (ipaddress.ip_address("10.0.0.1"), 5)
    assert client("[fd00::1]:5") == (ipaddress.ip_address("fd00::1"), 5)
    assert client("fd00::1") == (ipaddress.ip_address("fd00::1"), None)
    lines = list(table(view, net.servers[1].order("counters")["rules"], True))
    assert any(line.startswith("  n2 ") and "33%" in line and "takes part" in line for line in lines), lines
    shown = list(bitmaps(view, long=False))
    assert re.fullmatch(r"Bitmap 2:([0-9a-f]{8}:){7}[0-9a-f]{8}", shown[1]), shown


def test_what_was_written_down_is_shown_when_vipd_is_dead(
    net: FarmNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.install(tmp_path, farm_vip())
    net.start()
    server = net.servers[0]
    expected = server.status()
    server.vipd.kill()
    server.vipd.wait(5)
    monkeypatch.setenv("SAFEVAR", server.environment["SAFEVAR"])
    monkeypatch.setenv("SAFE", server.environment["SAFE"])
    monkeypatch.setenv("SAFEMAPPER", "1")
    view, live = status(ModulePaths("farm"))
    assert not live and view["groups"] == expected["groups"]


@pytest.mark.parametrize("powers", [(1, 1, 1), (3, 1, 1), (0, 1, 1)])
def test_shares_follow_the_powers(net: FarmNetwork, tmp_path: Path, powers: tuple[int, int, int]) -> None:
    hosts = tuple(Host(f"n{n}", power) for n, power in enumerate(powers, 1))
    net.install(
        tmp_path, farm_vip("vmac_invisible", groups=(Group("web", hosts, (Rule("tcp", "on_port", None, 80),)),))
    )
    net.start()
    # Every 16th source port, so that the sample is spread over the whole range.
    bits = [server.bits().bit_count() for server in net.servers]
    assert sum(bits) == 256
    view = net.servers[0].status()
    # 10,000 source ports by the hash that the test above compares with the kernel's.
    owners = view["groups"][0]["owners"]
    shares = [0, 0, 0]
    for port in range(20000, 30000):
        shares[owners[client_bucket("on_port", ipaddress.ip_address(net.client.ip), port)]] += 1
    for n in range(3):
        assert abs(shares[n] / 10000 - bits[n] / 256) < 0.02
    answered = figures(net.client.short(VIP4, 80, 600, first=20000))["ports"]
    for port, name in answered.items():
        bucket = client_bucket("on_port", ipaddress.ip_address(net.client.ip), int(port))
        assert f"n{owners[bucket] + 1}" == name
    assert len(answered) == 600
    for server in net.servers:
        told = server.resources()
        members = {f"member.{other.name}" for other in net.servers if other is not server}
        assert set(told) == {"farm.web", *members} and {told[name] for name in members} == {"up"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["vmac_invisible", "vmac_directed"])
def test_datagrams_and_fragments(net: FarmNetwork, tmp_path: Path, kind: str, engine: Engine) -> None:
    groups = (Group("udp", (), (Rule("udp", "on_port", None, 5001),)),)
    net.install(tmp_path, farm_vip(kind, groups=groups, engine=engine))  # type: ignore[arg-type]
    net.start()
    for address in (VIP4, VIP6):
        small = figures(net.client.python(DATAGRAMS, address, "64", "90", "0"))
        assert {name.split()[0] for name in small} == {"n1", "n2", "n3"}, small
        # Fragments are together on one server, whole: the client's by its address (nftables sees them before
        # they are put together) or the datagram's by its port.
        large = figures(net.client.python(DATAGRAMS, address, "3500", "30", "0"))
        assert all(name.endswith(" 3500") for name in large), large
        assert len(large) == (1 if engine == "nftables" else 3), large


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["vmac_invisible", "vmac_directed"])
def test_one_server_answers_who_asks_for_the_address(
    net: FarmNetwork, tmp_path: Path, kind: str, engine: Engine
) -> None:
    groups = (Group("arp", (), (Rule("arp", "on_addr"),)),)
    net.install(tmp_path, farm_vip(kind, groups=groups, engine=engine))  # type: ignore[arg-type]
    net.start()
    answered: set[str] = set()
    for number in range(150, 170):
        net.client.run("ip", "addr", "add", f"10.78.0.{number}/24", "dev", "eth0")
        text = net.client.run("arping", "-c1", "-w1", "-I", "eth0", "-s", f"10.78.0.{number}", VIP4, check=False)
        net.client.run("ip", "addr", "del", f"10.78.0.{number}/24", "dev", "eth0")
        replies = re.findall(r"\[([0-9A-F:]{17})\]", text)
        assert len(replies) == 1, text
        answered.add(replies[0].lower())
    assert answered == ({VMAC4} if kind == "vmac_invisible" else {server.mac for server in net.servers})


@pytest.mark.parametrize("engine", ENGINES)
def test_on_ipid_spreads_one_client_port(net: FarmNetwork, tmp_path: Path, engine: Engine) -> None:
    group = Group("udp", (), (Rule("udp", "on_ipid", None, 5001),))
    net.install(tmp_path, farm_vip("vmac_invisible", VIP4, groups=(group,), engine=engine))
    net.start()
    found = figures(net.client.python(DATAGRAMS, VIP4, "64", "120", "4444"))
    assert {name.split()[0] for name in found} == {"n1", "n2", "n3"}, found


@pytest.mark.parametrize("engine", ENGINES)
def test_rules_for_one_address_and_for_all_ports(net: FarmNetwork, tmp_path: Path, engine: Engine) -> None:
    """Three groups, each with its own weights: the more specific rule decides."""
    other = "10.78.0.51"
    groups = (
        Group("rest", (Host("n1", 1),), (Rule("tcp", "on_port"),)),
        Group("http", (Host("n2", 1), Host("n3", 0)), (Rule("tcp", "on_port", None, 80),)),
        Group("other", (Host("n3", 1),), (Rule("tcp", "on_addr", other, 80),)),
    )
    net.install(tmp_path, farm_vip("vmac_invisible", VIP4, other, groups=groups, engine=engine))
    net.start()
    assert net.client.count(VIP4, 80, 20) == {"n2": 20}
    assert net.client.count(VIP4, 81, 20) == {"n1": 20}
    assert net.client.count(other, 80, 20) == {"n3": 20}
    assert net.client.count(other, 81, 20) == {"n1": 20}
    assert net.servers[1].log("farm_membership")[-2:] == [
        "farm membership: n2 n3 (group http)",
        "farm membership: n3 (group other)",
    ]
    counters = {rule["label"]: rule["packets"] for rule in net.servers[0].order("counters")["rules"]}
    assert counters["* tcp port 80 on_port"] >= 60
    # the same for monitoring, without a question
    published = net.servers[0].var / "stats/vipd.json"

    def told() -> dict[str, int]:
        found: dict[str, int] = json.loads(published.read_text())["packets"] if published.exists() else {}
        return found

    wait_until(lambda: told() == counters, 25, "the figures are published")


def test_the_invisible_mac_is_never_a_source_and_every_server_answers_a_ping(net: FarmNetwork, tmp_path: Path) -> None:
    net.install(tmp_path, farm_vip("vmac_invisible", mac="5a:fe:00:00:aa:02"))
    net.start()
    capture = net.stranger.popen(
        "tcpdump", "-i", "eth0", "-c", "1", "ether src 5a:fe:00:00:aa:02", stdout=-3, stderr=-3
    )
    for address in (VIP4, VIP6):
        assert net.client.run("ping", "-n", "-c2", "-i0.3", "-W1", address).count("DUP!") >= 2
        assert net.client.neighbour(address) == "5a:fe:00:00:aa:02"
        net.client.count(address, 80, 50)
    for server in net.servers:
        # Also what a server says on its own with the virtual address, and what arpreroute repeats.
        server.run("ip", "neigh", "flush", "all")
        server.run("ping", "-c1", "-W1", "-I", VIP4, net.client.ip, check=False)
        server.run("ping", "-c1", "-W1", "-I", VIP6, net.client.ip6, check=False)
    assert capture.poll() is None, "a frame came from the virtual MAC"
    forwarding = json.loads(_bridge(net))
    assert not [entry for entry in forwarding if entry["mac"] == "5a:fe:00:00:aa:02"]
    assert net.client.neighbour(VIP4) == "5a:fe:00:00:aa:02"


def _bridge(net: FarmNetwork) -> str:
    from tests.t2_process.vip_network import sh

    return sh("ip", "netns", "exec", net.bridge, "bridge", "-j", "fdb", "show", "br", "br0")


def test_another_machine_with_the_address_is_found_and_the_farm_is_not(net: FarmNetwork, tmp_path: Path) -> None:
    net.install(tmp_path, farm_vip("vmac_directed", VIP4), application=False)
    first, second, _ = net.servers
    net.stranger.run("ip", "addr", "add", f"{VIP4}/24", "dev", "eth0")
    first.start()
    first.order("vip_init")
    reply = first.order("vip_set")
    assert reply["code"] == "vip_duplicate" and net.stranger.mac in reply["text"], reply
    net.stranger.run("ip", "addr", "del", f"{VIP4}/24", "dev", "eth0")
    wait_until(lambda: VIP4 in first.addresses(), 10, "the address is taken when it is free")
    assert first.order("farm_join")["ok"]
    second.start()
    second.up()
    wait_until(lambda: net.agreed(first, second), 5, "two of the farm")
    assert first.bits() | second.bits() == FULL
    assert not first.log("vip_conflict") and not second.log("vip_conflict") and not second.log("vip_taken_over")


def test_a_server_with_another_configuration_is_told(net: FarmNetwork, tmp_path: Path) -> None:
    net.install(tmp_path, farm_vip("vmac_invisible", VIP4), application=False)
    first, second, _ = net.servers
    conf = tmp_path / "n2" / "safe" / "private" / "modules" / "farm" / "conf" / "active.json"
    conf.write_text(conf.read_text().replace('"on_addr"', '"on_port"', 1))
    for server in (first, second):
        server.start()
        server.up()
    wait_until(lambda: first.log("peer_rejected") and second.log("peer_rejected"), 5, "both say it")
    assert "apply the same one on every server" in first.log("peer_rejected")[0]
    assert len(first.log("peer_rejected")) == 1

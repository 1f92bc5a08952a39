"""The pure parts of a farm: datagrams, layout, rules as text, fragments, the second engine's decision, templates."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.farm import bitmaps
from safekit.model.module import load_module
from safekit.model.types import (
    ClusterConfig,
    Farm,
    FarmLan,
    Group,
    Interface,
    Lan,
    LanNode,
    ModuleConfig,
    Vip,
    VirtualAddr,
)
from safekit.model.types import Rule as ConfiguredRule
from safekit.net.addresses import Address, Link
from safekit.net.jhash import BUCKETS, client_bucket, jhash
from safekit.net.packets import checksum
from safekit.wire.membership import Pulse, Row
from vipd.farm import memory, place, queuerules, ruleset
from vipd.farm.buckets import FULL, Shares, bitmap_of
from vipd.farm.fragment import fragments
from vipd.farm.layout import Balance, Layout, Verdicts, Wire, balances, closed, default_vmac, gather_mac, virtual_mac
from vipd.farm.nfqueue import Action, decide
from vipd.farm.wire import (
    Bye,
    OtherConfiguration,
    Told,
    WireError,
    configuration_id,
    configuration_of,
    decode,
    encode,
)

CONFIGURATION = b"12345678"
ROOT = Path(__file__).resolve().parents[2]
LANS = (Lan("default", nodes=(LanNode("n1", "10.0.0.1"), LanNode("n2", "10.0.0.2"), LanNode("n3", "10.0.0.3"))),)
VIP4, VIP6 = ip_address("10.0.0.50"), ip_address("fd00::50")


def test_the_hash_of_known_keys() -> None:
    # From the kernel's own jhash(), by packets through a chain with a counter for each bucket.
    assert jhash(b"", 0) == 0xDEADBEEF
    assert jhash(bytes(4), 0x5AFE0001) == jhash(bytes(4), 0x5AFE0001) != jhash(bytes(4), 0x5AFE0002)
    for kind in ("on_addr", "on_port", "on_ipid"):
        for address in (VIP4, VIP6):
            assert 0 <= client_bucket(kind, address, 80, 7) < BUCKETS
    assert client_bucket("on_ipid", VIP6, 80, 7) == client_bucket("on_port", VIP6, 80, 8)


# ------------------------------------------------------------------------------------- wire


def told() -> Told:
    pulse = Pulse((Row(1, 5, 6, 0b101, 9), Row(0, 3, 4, 0b10, 8)))
    return Told(pulse, (FULL, 1 << 200), {1: (b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"), 0: ()})


@pytest.mark.parametrize("message", [told(), replace(told(), kept=(0, 0), macs={}), Bye(2, 77)])
def test_messages_survive_the_wire(message: Told | Bye) -> None:
    assert decode(encode(message, CONFIGURATION), CONFIGURATION, 3, 2) == message


def test_another_configuration_is_told_apart() -> None:
    with pytest.raises(OtherConfiguration):
        decode(encode(told(), b"87654321"), CONFIGURATION, 3, 2)
    config = ModuleConfig("farm", 1, vip=Vip(groups=(Group("g", (), (ConfiguredRule("tcp", "on_port"),)),)))
    first = configuration_id(config, ("n1", "n2"))
    assert first == configuration_id(replace(config, configured_at=5.0, id=1), ("n1", "n2"))
    changed = replace(config, vip=Vip(groups=(Group("g", (), (ConfiguredRule("tcp", "on_addr"),)),)))
    assert configuration_id(changed, ("n1", "n2")) != first
    assert configuration_id(config, ("n1", "n2", "n3")) != first
    one, other = (configuration_id(config, ("n1", "n2"), ClusterConfig(LANS, signature=text)) for text in "ab")
    assert len({first, one, other}) == 3, "servers of protocol version 1 compare all of cluster.xml"
    assert configuration_of(encode(told(), one)) == one and configuration_of(b"") == b""


@given(st.binary(max_size=200), st.booleans())
def test_hostile_bytes_raise_nothing_but_a_wire_error(data: bytes, valid_head: bool) -> None:
    try:
        decode((b"\x01" + CONFIGURATION if valid_head else b"") + data, CONFIGURATION, 3, 2)
    except WireError:
        pass


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_short_message_is_refused(cut: int) -> None:
    with pytest.raises(WireError):
        decode(encode(told(), CONFIGURATION)[:-cut], CONFIGURATION, 3, 2)
    with pytest.raises(WireError):
        decode(encode(told(), CONFIGURATION) + bytes(cut), CONFIGURATION, 3, 2)


# ----------------------------------------------------------------------------------- layout


def layout(mode: str = "invisible", *rules: Balance) -> Layout:
    vmac = default_vmac(VIP4) if mode == "invisible" else None
    wire = Wire(0, "eth0", 2, b"\2\0\0\0\0\1", mode, vmac, gather_mac(VIP4), (VIP4, VIP6))  # type: ignore[arg-type]
    return Layout("my.farm-1", 0, 3, ("g",), (wire,), rules or (Balance("tcp", "on_port", 0, None, 80),))


def test_the_virtual_mac_of_the_guide() -> None:
    assert default_vmac(ip_address("192.168.56.20")).hex("-") == "5a-fe-c0-a8-38-14"
    assert virtual_mac(None, VIP6).hex(":") == "5a:fe:00:00:00:50"
    assert virtual_mac("02:00:00:00:00:01", VIP4) == b"\2\0\0\0\0\1"
    for wrong in ("03:00:00:00:00:01", "00:00:00:00:00:00", "nonsense"):
        with pytest.raises(ValueError):
            virtual_mac(wrong, VIP4)


def test_the_more_specific_rule_comes_first() -> None:
    vip = Vip(
        groups=(
            Group("all", (), (ConfiguredRule("tcp", "on_addr"),)),
            Group("port", (), (ConfiguredRule("tcp", "on_port", None, 80),)),
            Group("one", (), (ConfiguredRule("tcp", "on_port", "10.0.0.50", 80), ConfiguredRule("udp", "on_ipid"))),
            Group("lost", (), (ConfiguredRule("tcp", "on_port", "unresolved", 80),)),
        )
    )
    made = replace(layout(), groups=("all", "port", "one", "lost"), rules=balances(vip, {"10.0.0.50": VIP4}))
    chosen = {
        (address, port): rule.group
        for address in (VIP4, VIP6)
        for port in (80, 81)
        if (rule := made.rule_for(address, "tcp", port)) is not None
    }
    assert chosen == {(VIP4, 80): 2, (VIP4, 81): 0, (VIP6, 80): 1, (VIP6, 81): 0}
    assert made.rule_for(VIP4, "arp", None) is None


def test_places_follow_the_addresses_of_the_server() -> None:
    vip = Vip(
        interfaces=(
            Interface((VirtualAddr("10.0.0.50", "alias"), VirtualAddr("fd00::50", "alias")), "vmac_invisible"),
            Interface((VirtualAddr("10.1.0.50", "alias"),), "vmac_directed"),
        )
    )
    config = ModuleConfig("farm", 1, vip=vip, farm=Farm(4803, (FarmLan("default"),)))
    links = (
        Link(2, "eth0", b"\2\0\0\0\0\1", 0x11043),
        Link(3, "eth1", b"\2\0\0\0\0\2", 0x11043),
        Link(1, "lo", b"", 9),
    )
    addresses = (Address(2, ip_address("10.0.0.1"), 24), Address(3, ip_address("10.1.0.1"), 24))
    resolved = {text: ip_address(text) for text in ("10.0.0.50", "fd00::50", "10.1.0.50")}
    made = place.layout(config, ("n1", "n2"), "n2", resolved, links, addresses)
    assert [(w.device, w.mode, w.vmac) for w in made.wires] == [
        ("eth0", "invisible", b"\x5a\xfe\x0a\0\0\x32"),
        ("eth1", "directed", None),
    ]
    assert made.me == 1 and made.table == "safekit_farm"
    with pytest.raises(ValueError, match="no interface"):
        place.layout(config, ("n1", "n2"), "n2", resolved, links[:1], addresses[:1])


# ------------------------------------------------------------------------------------ rules


def verdicts(me: int = 0, shared: int = 0) -> Verdicts:
    owners = Shares({0: 1, 1: 1, 2: 1}).owners({0, 1, 2})
    macs = {1: (b"\2\0\0\0\0\2",), 2: (b"\2\0\0\0\0\3",)}
    return Verdicts(True, (owners,), (bitmap_of(owners, me),), (shared,), macs)


def _elements(text: str, name: str) -> dict[int, str]:
    line = next(
        line for line in text.splitlines() if line.startswith(f"add element netdev safekit_my_2e_farm_2d_1 {name} ")
    )
    pairs = (pair.split(" : ") for pair in line[line.index("{") + 1 : line.rindex("}")].split(", "))
    return {int(bucket): verdict.strip() for bucket, verdict in pairs}


def test_every_bucket_has_a_verdict_and_only_ours_are_accepted() -> None:
    text = ruleset.state(layout(), verdicts(shared=1 | 1 << 255))
    for name in ("t4_0_0", "t6_0_0"):
        found = _elements(text, name)
        assert len(found) == 256
        assert [b for b, v in found.items() if v != "drop"] == list(range(86))
        assert found[0] == f"goto grace{name[1]}" and found[1] == "accept" and found[255] == "drop"
    directed = _elements(ruleset.state(layout("directed"), verdicts(shared=1 | 1 << 255)), "t4_0_0")
    assert directed[0] == "goto grace4_0" and directed[100] == "goto fwd_0_1" and directed[255] == "goto share4_0_2"
    peers = _elements(ruleset.state(layout("directed"), verdicts(shared=1 | 1 << 255)), "m4_0_0")
    assert (peers[0], peers[1], peers[255]) == ("goto grace4", "accept", "goto foreign4_0")
    nothing = _elements(ruleset.state(layout("directed"), closed(layout("directed"))), "t4_0_0")
    assert set(nothing.values()) == {"drop"}


def test_only_where_connections_are_held_they_are_looked_for() -> None:
    held = replace(verdicts(), held=(1 | 1 << 100,))
    assert "flush set netdev safekit_my_2e_farm_2d_1 fresh4" in ruleset.state(layout(), verdicts())
    invisible, directed = (ruleset.state(layout(mode), held) for mode in ("invisible", "directed"))
    assert "fresh4" not in invisible, "those accepted a moment ago are known by this set alone"
    found = _elements(invisible, "t6_0_0")
    assert (found[0], found[100], found[101]) == ("accept", "goto stray6", "drop")
    found = _elements(directed, "t4_0_0")
    assert (found[0], found[100], found[101]) == ("accept", "goto held4_0_1", "goto fwd_0_1")


def test_resets_are_held_back_in_doubt_where_the_packets_of_others_come() -> None:
    text = ruleset.doubt(layout(), 0.35)
    assert text.count("timeout 350ms") == 2 and "hook egress" in text
    # Only what the kernel says of its own: what an application aborts has the ACK flag.
    assert text.count("tcp flags & (rst | ack) == rst") == 6
    assert "delete chain netdev safekit_my_2e_farm_2d_1 reset_0" in ruleset.doubt(layout(), 0)
    assert ruleset.doubt(layout("directed"), 0.35) == ruleset.doubt(layout("directed"), 0) == ""


def test_a_lease_of_nothing_closes_and_none_is_for_ever() -> None:
    assert "timeout 500ms" in ruleset.lease(layout(), 0.5)
    assert "timeout" not in ruleset.lease(layout(), None) and "add element" in ruleset.lease(layout(), None)
    assert "add element" not in ruleset.lease(layout(), 0)


def test_kept_connections_are_elements() -> None:
    connections = {(VIP4.packed, 7, VIP4.packed, 80), (VIP6.packed, 8, VIP6.packed, 80)}
    text = ruleset.keep(layout(), connections)
    assert "keep4 { 10.0.0.50 . 7 . 10.0.0.50 . 80 }" in text and "keep6 { fd00::50 . 8 . fd00::50 . 80 }" in text
    assert ruleset.keep(layout(), ()) == ""


def test_the_second_engine_has_no_hash_in_its_rules() -> None:
    rules = (Balance("tcp", "on_port", 0, None, 80), Balance("udp", "on_ipid", 0, None, None))
    for mode in ("invisible", "directed"):
        text = queuerules.table(layout(mode, *rules))
        assert "jhash" not in text and text.count("goto ask") == 4
        assert ("@orphan drop" in text) == (mode == "invisible")


@pytest.mark.parametrize(
    "directed, from_peer, ours, shared, later, action",
    [
        (False, False, True, False, False, Action.ACCEPT),
        (False, False, True, True, False, Action.ACCEPT),
        (False, False, True, True, True, Action.DROP),
        (False, False, True, False, True, Action.ACCEPT),
        (False, False, False, False, False, Action.DROP),
        (True, False, True, True, True, Action.GATHER),
        (True, False, True, False, True, Action.ACCEPT),
        (True, False, False, False, True, Action.FORWARD),
        (True, False, False, True, False, Action.FORWARD),
        (True, False, False, True, True, Action.GATHER),
        (True, True, False, False, False, Action.ACCEPT),
        (True, True, True, True, True, Action.DROP),
        (True, True, False, False, True, Action.DROP),
        (True, True, True, False, True, Action.ACCEPT),
    ],
)
def test_decisions_of_the_second_engine(
    directed: bool, from_peer: bool, ours: bool, shared: bool, later: bool, action: Action
) -> None:
    assert decide(directed=directed, from_peer=from_peer, ours=ours, shared=shared, later=later) is action


# -------------------------------------------------------------------------------- fragments


@given(st.integers(1, 9000), st.integers(600, 1500))
def test_fragments_put_together_are_the_packet(size: int, mtu: int) -> None:
    body = bytes(n % 251 for n in range(size))
    four = struct.pack("!BBHHHBBH4s4s", 69, 0, 20 + size, 9, 0, 64, 17, 0, VIP4.packed, VIP4.packed) + body
    six = struct.pack("!IHBB16s16s", 6 << 28, size, 17, 64, VIP6.packed, VIP6.packed) + body
    for packet, start in ((four, 20), (six, 40)):
        pieces = list(fragments(packet, mtu, 5))
        assert all(len(piece) <= mtu for piece in pieces)
        if len(pieces) == 1:
            assert pieces[0] == packet
            continue
        found = b""
        for number, piece in enumerate(pieces):
            if start == 20:
                (word,) = struct.unpack_from("!H", piece, 6)
                offset, more, content = (word & 0x1FFF) * 8, bool(word & 0x2000), piece[20:]
                assert checksum(piece[:20]) == 0
            else:
                _, _, word, ident = struct.unpack_from("!BBHI", piece, 40)
                offset, more, content = word & ~7, bool(word & 1), piece[48:]
                assert ident == 5 and piece[6] == 44
            assert offset == len(found) and more == (number < len(pieces) - 1)
            found += content
        assert found == body


# ------------------------------------------------------------------------ memory, templates


def test_memory_survives_a_restart_of_vipd_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "farm.json"
    assert memory.load(path) == memory.Memory()
    kept = memory.Memory(True, True, (Row(1, 2, 3, 4, 5),), {"groups": []}, ("n1", "n2", "n3"))
    memory.save(path, kept)
    assert memory.load(path) == kept
    path.write_text(path.read_text().replace('"boot": "', '"boot": "x'))
    assert memory.load(path) == memory.Memory()
    path.write_text("{")
    assert memory.load(path) == memory.Memory()


def test_what_was_heard_is_known_by_the_names_of_the_servers() -> None:
    rows = (Row(0, 7, 70, 0b111, 1), Row(2, 8, 80, 0b101, 0))
    kept = memory.Memory(True, True, rows, {}, ("n1", "n2", "n4"))
    assert kept.rows_of(("n1", "n2", "n4")) == rows
    # n3 came, and n1 left: who hears whom keeps its meaning.
    assert kept.rows_of(("n2", "n3", "n4")) == (Row(2, 8, 80, 0b100, 0),)
    assert kept.rows_of(("n1", "n2", "n3", "n4")) == (Row(0, 7, 70, 0b1011, 1), Row(3, 8, 80, 0b1001, 0))


@pytest.mark.parametrize("name", ["generic/farm", "demo/apache_farm"])
def test_farm_templates_are_farms_of_the_guide(name: str) -> None:
    path = ROOT / "Application_Modules" / name / "conf" / "userconfig.xml"
    loaded = load_module(path, "farm", 1, ClusterConfig(LANS), environment={}, refuse_unsupported=False)
    config = loaded.config
    assert loaded.warnings == () and config.service.mode == "farm" and config.farm is not None
    assert (config.farm.port, config.farm.pulse_ms) == (4803, 1000)
    assert config.vip is not None and config.vip.interfaces[0].kind == "vmac_directed"
    assert [group.name for group in config.vip.groups] == ["FarmProto"] and config.vip.engine == "nftables"


def test_vip_if_ctrl_in_both_forms() -> None:
    """The bitmap of this server as the guide prints it; with -L those of all and the interfaces."""
    owners = [0] * 128 + [1] * 128
    low = ":".join(["00000000"] * 4 + ["ffffffff"] * 4)
    high = ":".join(["ffffffff"] * 4 + ["00000000"] * 4)
    view = {
        "nodes": ["node1", "node2"],
        "number": 1,
        "groups": [
            {
                "name": "FarmProto",
                "owners": owners,
                "bits": [128, 128],
                "bitmap": high,
                "rules": [{"label": "*:80 tcp"}],
            }
        ],
        "interfaces": [{"name": "eth0", "mode": "directed", "mac": "02:00:00:00:00:02", "addresses": ["10.0.0.9"]}],
    }
    short = ["*:80 tcp (group FarmProto)", f"Bitmap 2:{high}"]
    assert list(bitmaps(view, long=False)) == short
    assert list(bitmaps(view, long=True)) == [
        *short,
        f"  1 {'node1':<16} 128/256 {low}",
        f"  2 {'node2':<16} 128/256 {high}",
        "eth0 vmac_directed 02:00:00:00:00:02 10.0.0.9",
    ]

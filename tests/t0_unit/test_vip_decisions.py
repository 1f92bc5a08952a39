"""Where a virtual address goes, who may keep it, and when it is announced."""

from __future__ import annotations

import itertools
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekit.model.types import ClusterConfig, Interface, Lan, LanNode, Vip, VirtualAddr
from safekit.net.addresses import Address, Link, PlaceError, netmask_prefix, place
from safekit.net.netlink import attribute, attributes, messages
from safekit.net.packets import Heard, Sort, parse
from vipd import ledger
from vipd.announce import Announcement, moments, next_moment, take_over_frames
from vipd.plan import Verdict, judge, peer_addresses, requests

UP = 0x11043
LO = Link(1, "lo", bytes(6), UP | 0x8)
ETH0 = Link(2, "eth0", b"\x02\0\0\0\0\x01", UP)
ETH1 = Link(3, "eth1", b"\x02\0\0\0\0\x02", UP)
DOWN = Link(4, "eth2", b"\x02\0\0\0\0\x03", 0x1002)
LINKS = (LO, ETH0, ETH1, DOWN)
ADDRESSES = (
    Address(1, ip_address("127.0.0.1"), 8),
    Address(2, ip_address("10.0.0.1"), 16),
    Address(3, ip_address("10.0.5.1"), 24),
    Address(2, ip_address("fd00::1"), 64),
    Address(2, ip_address("fe80::1"), 64),
)


def test_the_smallest_network_around_the_address_wins() -> None:
    assert place(ip_address("10.0.9.9"), LINKS, ADDRESSES).link == ETH0
    inner = place(ip_address("10.0.5.9"), LINKS, ADDRESSES)
    assert (inner.link, inner.prefix, inner.in_network) == (ETH1, 24, True)
    six = place(ip_address("fd00::99"), LINKS, ADDRESSES)
    assert (six.link, six.prefix) == (ETH0, 64)


def test_an_interface_that_is_up_is_preferred() -> None:
    addresses = (Address(4, ip_address("10.1.0.1"), 24), Address(2, ip_address("10.1.0.2"), 24))
    assert place(ip_address("10.1.0.9"), LINKS, addresses).link == ETH0
    assert place(ip_address("10.1.0.9"), LINKS, addresses[:1]).link == DOWN


def test_virtual_addresses_make_no_network() -> None:
    virtual = Address(2, ip_address("192.168.7.1"), 24)
    with pytest.raises(PlaceError):
        place(ip_address("192.168.7.2"), LINKS, (*ADDRESSES, virtual), ignore=(virtual.ip,))


def test_netmask() -> None:
    assert netmask_prefix("255.255.255.0") == netmask_prefix("24") == 24
    asked = place(ip_address("10.0.5.9"), LINKS, ADDRESSES, netmask="255.255.0.0")
    assert (asked.link, asked.prefix, asked.in_network) == (ETH1, 16, False)
    assert place(ip_address("fd00::9"), LINKS, ADDRESSES, netmask="255.255.0.0").prefix == 64


def test_a_named_interface() -> None:
    named = place(ip_address("172.16.0.1"), LINKS, ADDRESSES, name="eth1")
    assert (named.link, named.prefix, named.in_network) == (ETH1, 24, False)
    assert place(ip_address("172.16.0.1"), LINKS, ADDRESSES, name="eth2").prefix == 32
    assert place(ip_address("fd77::1"), LINKS, ADDRESSES, name="eth0").prefix == 64
    assert place(ip_address("fd77::1"), LINKS, ADDRESSES, name="eth1").prefix == 128


@pytest.mark.parametrize(
    ("name", "words"), [(None, "no interface is in its network"), ("bond0", "there is no interface bond0")]
)
def test_refusals_name_the_cause_and_the_next_step(name: str | None, words: str) -> None:
    with pytest.raises(PlaceError, match=words) as refused:
        place(ip_address("172.16.0.1"), LINKS, ADDRESSES, name=name)
    assert "<interface>" in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)


def test_link_flags() -> None:
    assert ETH0.carrier and ETH0.resolves and not DOWN.up and not LO.resolves
    assert not Link(5, "tun0", b"", UP).resolves
    assert not Link(5, "noarp0", b"\x02\0\0\0\0\x05", UP | 0x80).resolves


# ----------------------------------------------------------------------------- who has it

VIP_IP = ip_address("10.0.0.50")
OWN, PEER, FOREIGN = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x09"
PEERS = {PEER: "n2"}


@pytest.mark.parametrize(
    ("heard", "verdict"),
    [
        ([], Verdict.FREE),
        ([Heard(Sort.CLAIM, VIP_IP, OWN)], Verdict.FREE),
        ([Heard(Sort.CLAIM, ip_address("10.0.0.51"), FOREIGN)], Verdict.FREE),
        ([Heard(Sort.QUESTION, VIP_IP, FOREIGN)], Verdict.FREE),
        ([Heard(Sort.PROBE, VIP_IP, PEER)], Verdict.FREE),
        ([Heard(Sort.CLAIM, VIP_IP, PEER)], Verdict.PEER),
        ([Heard(Sort.PROBE, VIP_IP, FOREIGN)], Verdict.FOREIGN),
        ([Heard(Sort.CLAIM, VIP_IP, PEER), Heard(Sort.CLAIM, VIP_IP, FOREIGN)], Verdict.FOREIGN),
        ([Heard(Sort.CLAIM, VIP_IP, FOREIGN), Heard(Sort.CLAIM, VIP_IP, PEER)], Verdict.FOREIGN),
    ],
)
def test_who_uses_an_address(heard: list[Heard], verdict: Verdict) -> None:
    finding = judge(VIP_IP, heard, {OWN}, PEERS)
    assert finding.verdict is verdict
    assert finding.who == {Verdict.FREE: "", Verdict.PEER: "n2", Verdict.FOREIGN: "another machine"}[verdict]


def test_addresses_of_the_peers() -> None:
    nodes = (LanNode("n1", "10.0.0.1"), LanNode("n2", "192.0.2.2", "10.0.0.2"), LanNode("n3", "name.example"))
    cluster = ClusterConfig(lans=(Lan("default", nodes=nodes),))
    assert peer_addresses(cluster, "n1") == {ip_address("192.0.2.2"): "n2", ip_address("10.0.0.2"): "n2"}


def test_only_addresses_of_the_primary_on_real_interfaces_are_requested() -> None:
    vip = Vip(
        interfaces=(
            Interface((VirtualAddr("10.0.0.50"), VirtualAddr("10.0.0.51", where="alias")), arpreroute=True),
            Interface((VirtualAddr("10.0.0.52", where="alias"),), kind="vmac_directed"),
        )
    )
    found = requests(vip)
    assert [request.text for request in found] == ["10.0.0.50"]
    assert (found[0].arpreroute, found[0].arpinterval, found[0].arpelapse) == (True, 60, 1200)


# -------------------------------------------------------------------------- announcements


@pytest.mark.parametrize(
    ("interval", "elapse", "expected"),
    [(60, 10, [0]), (10, 30, [0, 10, 20, 30]), (60, 1200, [60 * n for n in range(21)]), (1, 0, [0])],
)
def test_moments_of_announcements(interval: float, elapse: float, expected: list[float]) -> None:
    assert list(moments(interval, elapse)) == expected


@given(st.integers(1, 100), st.integers(0, 1000), st.floats(0, 1100))
def test_a_restarted_arpreroute_keeps_the_rhythm(interval: int, elapse: int, elapsed: float) -> None:
    announcement = Announcement("10.0.0.50", "eth0", interval, elapse)
    expected = next(itertools.dropwhile(lambda moment: moment < elapsed, moments(interval, elapse)), None)
    assert next_moment(announcement, elapsed) == expected


def test_announcements_cross_the_bus_and_nonsense_is_refused() -> None:
    announcement = Announcement("10.0.0.50", "eth0", 60.0, 1200.0, 3.5)
    assert Announcement.from_fields(announcement.to_fields()) == announcement
    for wrong in (None, {}, {**announcement.to_fields(), "interval": 0}, {**announcement.to_fields(), "elapse": "x"}):
        with pytest.raises(ValueError):
            Announcement.from_fields(wrong)


def test_without_arpreroute_nothing_gratuitous_is_sent_but_neighbours_learn() -> None:
    own = [ip_address("10.0.0.50"), ip_address("fe80::1"), ip_address("10.0.0.1")]
    (frame,) = take_over_frames(OWN, VIP_IP, own, gratuitous=False)
    assert parse(frame) == (Heard(Sort.CLAIM, VIP_IP, OWN), Heard(Sort.QUESTION, ip_address("10.0.0.1"), OWN))
    assert take_over_frames(OWN, VIP_IP, own[:2], gratuitous=False) == ()
    assert len(take_over_frames(OWN, VIP_IP, own, gratuitous=True)) == 2
    for gratuitous in (False, True):
        assert len(take_over_frames(OWN, ip_address("fd00::50"), own, gratuitous)) == 1


# ------------------------------------------------------------------------ ledger, netlink


def test_the_ledger_is_of_this_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vip.json"
    entry = ledger.Entry(VIP_IP, "eth0", 24, 12.5)
    assert ledger.load(path) == {}
    ledger.save(path, [entry])
    assert ledger.load(path) == {VIP_IP: entry}
    monkeypatch.setattr(ledger, "boot_identity", lambda: "another boot")
    assert ledger.load(path) == {}
    for damaged in ("", "{", "[]", '{"boot": "another boot", "held": [{"ip": "x"}]}', '{"boot": "another boot"}'):
        path.write_text(damaged)
        assert ledger.load(path) == {}


@given(st.binary(max_size=300))
def test_any_bytes_are_split_into_messages_and_attributes(data: bytes) -> None:
    assert sum(16 + len(message.body) for _, _, message in messages(data)) <= len(data)
    attributes(data)


def test_attributes_are_padded() -> None:
    data = attribute(1, b"abcde") + attribute(3 | 0x8000, b"x")
    assert len(data) == 20
    assert attributes(data) == {1: b"abcde", 3: b"x"}

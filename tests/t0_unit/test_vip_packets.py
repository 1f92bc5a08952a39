"""ARP and neighbour discovery frames, and the kernel filter that selects them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekit.net.frames import Instruction, listening_filter
from safekit.net.packets import (
    ETH_P_ARP,
    ETH_P_IPV6,
    IP,
    Heard,
    Sort,
    arp_probe,
    arp_request,
    checksum,
    gratuitous_arp,
    mac_bytes,
    mac_text,
    neighbour_probe,
    neighbour_solicitation,
    parse,
    solicited_node,
    unsolicited_advertisement,
)

MAC = mac_bytes("52:54:00:aa:bb:cc")
VIP, OTHER = IPv4Address("10.9.0.60"), IPv4Address("10.9.0.1")
VIP6, OTHER6 = IPv6Address("fd09::60"), IPv6Address("fd09::1")


def test_mac_text_and_bytes() -> None:
    assert mac_text(MAC) == "52:54:00:aa:bb:cc"
    assert mac_bytes("52-54-00-aa-bb-cc") == MAC
    for wrong in ("52:54:00:aa:bb", "52:54:00:aa:bb:cc:dd", "nonsense"):
        with pytest.raises(ValueError):
            mac_bytes(wrong)


def test_checksum_of_the_example_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    assert checksum(b"\xff") == 0x00FF


def test_a_probe_claims_nothing() -> None:
    assert parse(arp_probe(MAC, VIP)) == (Heard(Sort.PROBE, VIP, MAC),)
    assert parse(neighbour_probe(MAC, VIP6)) == (Heard(Sort.PROBE, VIP6, MAC),)


def test_announcements_claim_the_address_and_go_to_everybody() -> None:
    for frame in gratuitous_arp(MAC, VIP):
        assert frame[:6] == b"\xff" * 6 and len(frame) == 42
        assert parse(frame) == (Heard(Sort.CLAIM, VIP, MAC),)
    frame = unsolicited_advertisement(MAC, VIP6)
    assert frame[:6] == bytes.fromhex("333300000001")
    assert parse(frame) == (Heard(Sort.CLAIM, VIP6, MAC),)
    assert frame[58] == 0x20, "override, neither solicited nor router"


def test_questions_claim_the_sender() -> None:
    assert parse(arp_request(MAC, VIP, OTHER)) == (Heard(Sort.CLAIM, VIP, MAC), Heard(Sort.QUESTION, OTHER, MAC))
    assert parse(neighbour_solicitation(MAC, VIP6, OTHER6)) == (
        Heard(Sort.CLAIM, VIP6, MAC),
        Heard(Sort.QUESTION, OTHER6, MAC),
    )


@pytest.mark.parametrize(
    "frame",
    [neighbour_probe(MAC, VIP6), unsolicited_advertisement(MAC, VIP6), neighbour_solicitation(MAC, VIP6, OTHER6)],
)
def test_icmpv6_checksums_are_right(frame: bytes) -> None:
    header, body = frame[14:54], frame[54:]
    pseudo = header[8:40] + len(body).to_bytes(4, "big") + (58).to_bytes(4, "big")
    assert checksum(pseudo + body) == 0


def test_solicited_node_group() -> None:
    assert solicited_node(IPv6Address("fd00::1:2345:6789")) == IPv6Address("ff02::1:ff45:6789")


def test_forged_discovery_is_not_heard() -> None:
    routed = bytearray(unsolicited_advertisement(MAC, VIP6))
    routed[21] = 254
    assert parse(bytes(routed)) == ()


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_without_an_error(frame: bytes) -> None:
    parse(frame)


@given(st.sampled_from([0, 1, 2, 3]), st.integers(0, 120), st.integers(0, 255))
def test_damaged_frames_are_parsed_without_an_error(which: int, place: int, value: int) -> None:
    frames = (
        gratuitous_arp(MAC, VIP)[0],
        neighbour_probe(MAC, VIP6),
        unsolicited_advertisement(MAC, VIP6),
        neighbour_solicitation(MAC, VIP6, OTHER6),
    )
    frame = bytearray(frames[which])
    if place < len(frame):
        frame[place] = value
    for said in parse(bytes(frame)):
        assert len(said.mac) == 6
    parse(bytes(frame[:place]))


def run_filter(program: list[Instruction], frame: bytes) -> int:
    """The kernel's machine, as far as the program uses it. A load beyond the frame rejects."""
    accumulator = counter = 0
    for _ in range(len(program) + 1):
        code, jt, jf, k = program[counter]
        counter += 1
        if code in (0x20, 0x30):
            size = 4 if code == 0x20 else 1
            if k + size > len(frame):
                return 0
            accumulator = int.from_bytes(frame[k : k + size], "big")
        elif code == 0x15:
            counter += jt if accumulator == k else jf
        else:
            return k
    raise AssertionError("the program does not end")


@pytest.mark.parametrize("count", [1, 3, 60, 61])
def test_the_kernel_filter_passes_what_concerns_us(count: int) -> None:
    four: list[IP] = [VIP, *(ip_address(f"10.8.0.{n}") for n in range(count - 1))]
    six: list[IP] = [VIP6, *(ip_address(f"fd08::{0x1000 + n:x}") for n in range(1, count))]
    arp, nd = listening_filter(ETH_P_ARP, four + six), listening_filter(ETH_P_IPV6, four + six)
    for frame in (arp_probe(MAC, VIP), *gratuitous_arp(MAC, VIP), arp_request(MAC, VIP, OTHER)):
        assert run_filter(arp, frame)
    for frame in (neighbour_probe(MAC, VIP6), unsolicited_advertisement(MAC, VIP6)):
        assert run_filter(nd, frame)
    assert run_filter(nd, neighbour_solicitation(MAC, VIP6, OTHER6))
    strangers = count > 60
    assert bool(run_filter(arp, arp_request(MAC, OTHER, IPv4Address("10.9.0.2")))) is strangers
    assert bool(run_filter(nd, unsolicited_advertisement(MAC, OTHER6))) is strangers
    tcp = bytearray(unsolicited_advertisement(MAC, VIP6))
    tcp[20] = 6
    assert not run_filter(nd, bytes(tcp))

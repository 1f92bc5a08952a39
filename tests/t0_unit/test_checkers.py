"""Pure parts of the checkers: packets, which checkers a module has."""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkers.customcheck import command
from checkers.icmp import echo_request, is_reply
from checkers.syncedcheck import synced
from safekit.model.checkers import checkers, in_phase
from safekit.model.types import (
    Check,
    Interface,
    IntfCheck,
    IpCheck,
    ModuleConfig,
    PingCheck,
    TcpCheck,
    Vip,
    VirtualAddr,
)
from safekit.net.packets import checksum

COOKIE = bytes(range(16))


def ipv4(icmp: bytes) -> bytes:
    return bytes([0x45]) + bytes(19) + icmp


def answer(request: bytes, kind: int) -> bytes:
    return bytes([kind]) + request[1:]


def test_a_request_has_a_right_checksum() -> None:
    assert checksum(echo_request(socket.AF_INET, 7, 1, COOKIE)) == 0


def test_only_the_reply_to_our_request_counts() -> None:
    request = echo_request(socket.AF_INET, 7, 1, COOKIE)
    assert is_reply(socket.AF_INET, ipv4(answer(request, 0)), 7, COOKIE)
    assert not is_reply(socket.AF_INET, ipv4(request), 7, COOKIE), "our own request on the loopback"
    assert not is_reply(socket.AF_INET, ipv4(answer(request, 0)), 8, COOKIE)
    assert not is_reply(socket.AF_INET, ipv4(answer(request, 0)), 7, bytes(16))
    assert not is_reply(socket.AF_INET, ipv4(struct.pack(">BBHHH", 3, 1, 0, 7, 1) + COOKIE), 7, COOKIE)
    six = echo_request(socket.AF_INET6, 7, 1, COOKIE)
    assert is_reply(socket.AF_INET6, answer(six, 129), 7, COOKIE)


@given(st.binary(max_size=80), st.sampled_from([socket.AF_INET, socket.AF_INET6]))
def test_garbage_is_no_reply(data: bytes, family: int) -> None:
    assert not is_reply(family, data, 7, COOKIE)


def module(*addresses: VirtualAddr, check: bool = True, checks: Check | None = None) -> ModuleConfig:
    return ModuleConfig("AM", 1, vip=Vip(interfaces=(Interface(addresses, check=check),)), check=checks or Check())


LOCAL = [ipaddress.ip_interface("192.168.4.1/24"), ipaddress.ip_interface("10.0.0.1/8")]


def test_automatic_checkers_are_named_after_the_network_and_the_address() -> None:
    found = checkers(module(VirtualAddr("192.168.4.10")), LOCAL)
    assert [(c.resource, c.when) for c in found] == [("intf.192.168.4.0", "pre"), ("ip.192.168.4.10", "prim")]


def test_the_virtual_address_is_not_taken_for_our_own() -> None:
    local = [ipaddress.ip_interface("192.168.4.10/24"), *LOCAL]
    (intf, _) = checkers(module(VirtualAddr("192.168.4.10")), local)
    assert intf.resource == "intf.192.168.4.0"


def test_check_off_makes_none() -> None:
    assert checkers(module(VirtualAddr("192.168.4.10", check=False), check=False), LOCAL) == ()


def test_explicit_checkers_win_and_run_in_their_phase() -> None:
    checks = Check(
        tcp=(TcpCheck("web", "prim", "127.0.0.1", 80),),
        ping=(PingCheck("gw", "192.168.4.254"),),
        intf=(IntfCheck("192.168.4.0", "192.168.4.1", "pre"),),
        ip=(IpCheck("192.168.4.10", "192.168.4.10"),),
    )
    found = checkers(module(VirtualAddr("192.168.4.10"), checks=checks), LOCAL)
    assert len(found) == 4
    assert {c.program for c in in_phase(found, "pre")} == {"pingcheck", "intfcheck"}
    assert {c.program for c in in_phase(found, "prim")} == {"tcpcheck", "ipcheck"}


def test_process_names_suit_the_supervisor() -> None:
    (_, ip) = checkers(module(VirtualAddr("fd00::10")), [ipaddress.ip_interface("fd00::1/64")])
    assert ":" not in ip.process and ip.ident == "fd00::10"


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [("check", "", ["/bin-dir/check"]), ("/opt/c", "-a 'b c'", ["/opt/c", "-a", "b c"])],
)
def test_custom_commands(program: str, arguments: str, expected: list[str]) -> None:
    wanted = [expected[0], "AM", "custom.x", *expected[1:]]
    assert command(Path("/bin-dir"), program, "AM", "custom.x", arguments) == wanted


@pytest.mark.parametrize(
    ("values", "noted", "expected"),
    [
        ({"rfs.uptodate": "up"}, 0.0, True),
        ({"rfs.uptodate": "up", "rfs.inconsistent": "up"}, 0.0, False),
        ({"rfs.uptodate": "down"}, 1000.0 - 119, True),
        ({"rfs.uptodate": "down"}, 1000.0 - 120, False),
        ({"rfs.uptodate": "down"}, 0.0, False),
        ({"rfs.uptodate": "down"}, 1001.0, False),
        ({"rfs.uptodate": "down", "rfs.inconsistent": "up"}, 999.0, False),
        ({}, 999.0, True),
    ],
)
def test_data_is_young_enough(values: dict[str, str], noted: float, expected: bool) -> None:
    assert synced(values, noted, 1000.0, 2) is expected

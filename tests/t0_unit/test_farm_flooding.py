"""Whether the switch carries the virtual MAC to every server: judgement and frames (guide 4.3.7)."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipd.farm.flooding import FORGET_SECONDS, MISSES, Flooding, Frame, Reach, Verdict, parse
from vipd.farm.layout import Wire

VIP = ipaddress.ip_address("10.0.0.50")
WIRE = Wire(0, "eth0", 2, b"\x02\0\0\0\0\1", "invisible", b"\x5a\xfe\x0a\0\0\x32", b"\x03\xfe\0\0\0\1", (VIP,))
FARM = b"12345678"


def pairs(flooding: Flooding, node: int, count: int, *, arrive: bool, reached: int = 0, first: int = 1) -> None:
    for number in range(first, first + count):
        if arrive:
            flooding.virtual(node, number, 0.0)
        flooding.everybody(node, number, reached, 0.0)


def test_frames_that_come_are_flooded() -> None:
    flooding = Flooding(0)
    pairs(flooding, 1, 20, arrive=True)
    assert flooding.verdict(0.0) == Verdict(Reach.FLOODED) and flooding.reached_from == 0b10


def test_nobody_is_reached() -> None:
    flooding = Flooding(0)
    pairs(flooding, 1, MISSES, arrive=False)
    assert flooding.verdict(0.0).reach is Reach.FLOODED, "the last one may still come"
    pairs(flooding, 1, 1, arrive=False, first=MISSES + 1)
    assert flooding.verdict(0.0) == Verdict(Reach.NOT_FLOODED, (1,))
    assert flooding.reached_from == 0


def test_another_one_is_reached() -> None:
    flooding = Flooding(0)
    pairs(flooding, 1, MISSES + 1, arrive=False)
    pairs(flooding, 2, MISSES + 1, arrive=False, reached=0b10)
    assert flooding.verdict(0.0) == Verdict(Reach.LEARNED, (1, 2), (2,))


def test_this_one_is_reached_by_some() -> None:
    flooding = Flooding(0)
    pairs(flooding, 1, MISSES + 1, arrive=True)
    pairs(flooding, 2, MISSES + 1, arrive=False)
    assert flooding.verdict(0.0) == Verdict(Reach.LEARNED, (2,), (0,))


def test_single_losses_overtaking_and_restarts_are_no_news() -> None:
    flooding = Flooding(0)
    for number in range(1, 100):
        if number % 2:
            flooding.everybody(1, number, 0, 0.0)
            flooding.virtual(1, number, 0.0)
        else:
            flooding.everybody(1, number, 0, 0.0)
        assert flooding.verdict(0.0).reach is Reach.FLOODED
    pairs(flooding, 1, 1, arrive=True, first=77)
    assert flooding.verdict(0.0).reach is Reach.FLOODED


def test_it_recovers_and_the_dead_are_forgotten() -> None:
    flooding = Flooding(0)
    pairs(flooding, 1, MISSES + 1, arrive=False)
    flooding.virtual(1, 50, 0.0)
    assert flooding.verdict(0.0).reach is Reach.FLOODED
    pairs(flooding, 1, MISSES + 2, arrive=False, first=60)
    assert flooding.verdict(FORGET_SECONDS).reach is Reach.NOT_FLOODED
    assert flooding.verdict(FORGET_SECONDS + 1).reach is Reach.FLOODED


@pytest.mark.parametrize("frame", [Frame(True, 1, 7), Frame(False, 2, 0x7FFFFFFF, 0b11)])
def test_frames_survive_the_wire(frame: Frame) -> None:
    assert parse(frame.pack(WIRE, FARM), WIRE, FARM, 3, 0) == frame


def test_frames_of_others_are_nothing() -> None:
    data = Frame(True, 1, 7).pack(WIRE, FARM)
    assert parse(data, WIRE, b"87654321", 3, 0) is None
    assert parse(data, WIRE, FARM, 1, 0) is None
    assert parse(data, WIRE, FARM, 3, 1) is None, "our own"
    assert parse(data, replace(WIRE, vmac=b"\x5a\xfe\0\0\0\1"), FARM, 3, 0) is None
    assert parse(data[:-1], WIRE, FARM, 3, 0) is None


@given(st.binary(max_size=80))
def test_hostile_bytes_are_nothing(data: bytes) -> None:
    assert parse(data, WIRE, FARM, 3, 0) is None

"""Heartbeats on the wire: what is sent is what is heard, and hostile bytes are refused."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heart.core.values import Beat, Color, Role, SwapNotice
from heart.shell.heartbeats import beat_after
from heart.shell.wire import MAX_PAYLOAD, BadBeat, pack, unpack

BEAT = Beat(
    node="node1", incarnation=1 << 60, sequence=7, echo=(1 << 60, 3), role=Role.PRIM, color=Color.GREEN,
    sees=Role.SECOND, uptodate="up", paired=True, lastprim=True, term=4, claim=2, grant=(5, 6),
    swap=SwapNotice("node2", 9, "begun", True), fence=1, fenced=(2, 3), action="stop",
    resources=(("ping.gw", "up"), ("rfs.uptodate", "up")), signature="abc",
)  # fmt: skip


def test_what_is_sent_is_heard() -> None:
    assert unpack(pack(BEAT, "AM"), "AM") == BEAT
    plain = Beat("node1", 1)
    assert unpack(pack(plain, "AM"), "AM") == plain


def changed(**fields: object) -> bytes:
    message = msgpack.unpackb(pack(BEAT, "AM"))
    for name, value in fields.items():
        if value is KeyError:
            del message[name]
        else:
            message[name] = value
    return bytes(msgpack.packb(message))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"v": 3}, "protocol version '3'"),
        ({"module": "other"}, "of module 'other'"),
        ({"term": -1}, "term: out of range"),
        ({"term": True}, "term: int expected"),
        ({"term": KeyError}, "term: int expected"),
        ({"paired": 1}, "paired: bool expected"),
        ({"node": "x" * 300}, "longer"),
        ({"echo": [1]}, "two numbers"),
        ({"role": "KING"}, "KING"),
        ({"resources": {str(i): "up" for i in range(300)}}, "more than"),
        ({"resources": {"a.b": 1}}, "str expected"),
        ({"swap": [1, 2]}, "four fields"),
        ({"swap": ["n", "9", "begun", False]}, "int expected"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], why: str) -> None:
    with pytest.raises(BadBeat, match=why):
        unpack(changed(**fields), "AM")


def test_too_long() -> None:
    with pytest.raises(BadBeat, match="bytes"):
        unpack(b"\x00" * (MAX_PAYLOAD + 1), "AM")


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(BadBeat):
        unpack(data, "AM")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_any_flipped_byte_gives_a_beat_or_a_reason(at: int, value: int) -> None:
    data = bytearray(pack(BEAT, "AM"))
    data[at % len(data)] = value
    try:
        assert isinstance(unpack(bytes(data), "AM"), Beat)
    except BadBeat as error:
        assert str(error)


@given(st.floats(0, 1e6), st.sampled_from([0.1, 0.5, 0.7, 3.0]))
def test_links_of_the_same_pulse_beat_together(now: float, pulse: float) -> None:
    due = beat_after(now, pulse)
    assert 0.09 * pulse < due - now < 1.11 * pulse
    assert beat_after(due + pulse / 50, pulse) - due == pytest.approx(pulse, rel=1e-3)
    assert beat_after(due - pulse / 5, pulse) == pytest.approx(due, abs=pulse / 100)

"""Sealed datagrams and streams take hostile bytes and never a datagram twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safekit.wire import protocol, seal

KEY = bytes(range(32))


def pair(context: str = "heart", sender: str = "n1", epoch: int = 5) -> tuple[seal.Sealer, seal.Opener]:
    return seal.Sealer(KEY, context, sender, epoch), seal.Opener(KEY, context, ["n1", "n2"])


def kind_of(opener: seal.Opener, datagram: bytes) -> str:
    with pytest.raises(seal.SealError) as caught:
        opener.open(datagram)
    return caught.value.kind


def test_round_trip_names_the_sender() -> None:
    sealer, opener = pair()
    assert opener.open(sealer.seal(b"hello")) == seal.Opened("n1", 5, b"hello")


def test_the_version_of_those_that_were_heard() -> None:
    opener = seal.Opener(KEY, "w", ["a", "b", "c"])
    assert opener.version_heard() == protocol.OLDEST
    new = protocol.mark_epoch(1 << 60, protocol.newest())
    opener.open(seal.Sealer(KEY, "w", "a", new).seal(b"x"))
    assert opener.version_heard() == protocol.newest() and opener.version_for("a", "b") == protocol.OLDEST
    opener.open(seal.Sealer(KEY, "w", "b", 7).seal(b"x"))
    assert opener.version_heard() == protocol.OLDEST, "a server of the former release is there"


def test_nothing_readable_on_the_wire() -> None:
    sealer, _ = pair(sender="n1")
    datagram = sealer.seal(b"a very secret state")
    assert b"n1" not in datagram[3:] and b"secret" not in datagram


def test_a_datagram_is_accepted_once() -> None:
    sealer, opener = pair()
    first, second, third = (sealer.seal(bytes([n])) for n in range(3))
    assert opener.open(third).payload == b"\2"
    assert opener.open(first).payload == b"\0"
    assert kind_of(opener, first) == "replay"
    assert opener.open(second).payload == b"\1"
    assert kind_of(opener, third) == "replay"


def test_older_than_the_window_is_refused() -> None:
    sealer, opener = pair()
    old = sealer.seal(b"old")
    for _ in range(70):
        opener.open(sealer.seal(b"x"))
    assert kind_of(opener, old) == "replay"


def test_an_older_epoch_is_refused_and_a_newer_one_starts_again() -> None:
    _, opener = pair()
    before = seal.Sealer(KEY, "heart", "n1", 5)
    after = seal.Sealer(KEY, "heart", "n1", 6)
    late = before.seal(b"late")
    assert opener.open(after.seal(b"new")).epoch == 6
    assert kind_of(opener, late) == "replay"


def test_another_wire_another_key_another_version() -> None:
    sealer, _ = pair(context="farm")
    _, opener = pair(context="heart")
    assert kind_of(opener, sealer.seal(b"x")) == "key"
    assert kind_of(opener, seal.Sealer(bytes(32), "heart", "n1", 1).seal(b"x")) == "key"
    datagram = bytearray(seal.Sealer(KEY, "heart", "n1", 1).seal(b"x"))
    datagram[2] = 9
    assert kind_of(opener, bytes(datagram)) == "version"
    assert kind_of(opener, seal.Sealer(KEY, "heart", "stranger", 1).seal(b"x")) == "key"


def test_rotation_accepts_both_keys() -> None:
    new = bytes(reversed(KEY))
    opener = seal.Opener([new, KEY], "heart", ["n1"])
    assert opener.open(seal.Sealer(KEY, "heart", "n1", 1).seal(b"old")).payload == b"old"
    assert opener.open(seal.Sealer(new, "heart", "n1", 2).seal(b"new")).payload == b"new"


@given(st.binary(max_size=200))
def test_garbage_is_an_ignored_datagram(data: bytes) -> None:
    _, opener = pair()
    with pytest.raises(seal.SealError):
        opener.open(data)


@settings(max_examples=200)
@given(st.data())
def test_every_altered_byte_is_noticed(data: st.DataObject) -> None:
    sealer, opener = pair()
    datagram = bytearray(sealer.seal(b"payload"))
    position = data.draw(st.integers(0, len(datagram) - 1))
    datagram[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(seal.SealError):
        opener.open(bytes(datagram))


def test_an_altered_datagram_does_not_use_up_the_real_one() -> None:
    sealer, opener = pair()
    datagram = sealer.seal(b"payload")
    assert kind_of(opener, datagram[:-1] + bytes([datagram[-1] ^ 1])) == "key"
    assert opener.open(datagram).payload == b"payload"


def test_epochs_only_grow(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    first = seal.next_epoch(path)
    path.write_text(str(first + 10**18))
    assert 0 < seal.next_epoch(path) - (first + 10**18) <= 1 << 28
    path.write_text("not a number")
    assert seal.next_epoch(path) > first


def test_stream_frames_keep_their_order() -> None:
    hello = seal.stream_hello(), seal.stream_hello()
    send, _ = seal.stream_ciphers(KEY, "rfs", *hello, client=True)
    _, receive = seal.stream_ciphers(KEY, "rfs", *hello, client=False)
    one, two = send.seal(b"one", b"h1"), send.seal(b"two", b"h2")
    assert receive.open(one, b"h1") == b"one"
    with pytest.raises(seal.SealError):
        receive.open(one, b"h1")
    del two


def test_stream_directions_and_sessions_differ() -> None:
    hello = seal.stream_hello(), seal.stream_hello()
    send, receive = seal.stream_ciphers(KEY, "rfs", *hello, client=True)
    with pytest.raises(seal.SealError):
        receive.open(send.seal(b"reflected"))
    other, _ = seal.stream_ciphers(KEY, "rfs", seal.stream_hello(), hello[1], client=True)
    _, server = seal.stream_ciphers(KEY, "rfs", *hello, client=False)
    with pytest.raises(seal.SealError):
        server.open(other.seal(b"recorded"))


def test_local_datagrams_need_the_key() -> None:
    assert seal.mac_open(KEY, seal.mac_seal(KEY, b"set")) == b"set"
    for bad in (b"", b"short", seal.mac_seal(bytes(32), b"set")):
        with pytest.raises(seal.SealError):
            seal.mac_open(KEY, bad)


@pytest.mark.parametrize("text", ["", "zz" * 32, "00" * 31, "00" * 33])
def test_a_damaged_key_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cluster.key"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cluster\.key"):
        seal.load_key(path)

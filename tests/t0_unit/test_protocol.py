"""Two releases on one wire: each speaks the newest version that both know (safekit.wire.protocol)."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekit.disk import paths
from safekit.rfs import wire
from safekit.wire import protocol, seal

KEY = bytes(range(32))
VERSIONS = (1, 2)


@given(st.integers(0, 1 << 63), st.integers(2, 15))
def test_an_epoch_tells_the_version_and_stays_an_epoch(epoch: int, version: int) -> None:
    marked = protocol.mark_epoch(epoch, version)
    assert epoch <= marked < epoch + (1 << 28) and protocol.version_of_epoch(marked) == version
    assert protocol.version_of_epoch(marked + 1) == 1, "an older release counts on"


def test_version_1_leaves_the_epoch_alone() -> None:
    assert protocol.mark_epoch(12345, 1) == 12345 and protocol.version_of_epoch(12345) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", protocol.NEWEST),
        ('<safeini mapper="6259"/>', protocol.NEWEST),
        ('<safeini mapper="6259" protocol="1"/>', 1),
        ('<safeini protocol="0"/>', protocol.OLDEST),
        ('<safeini protocol="99"/>', protocol.NEWEST),
        ('<!-- <safeini protocol="1"/> --><safeini/>', protocol.NEWEST),
    ],
)
def test_the_version_can_be_held_back(
    text: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "safeini.xml"
    file.write_text(text)
    monkeypatch.setattr(paths, "SAFEINI", str(file))
    assert protocol.newest() == expected


def test_a_stored_epoch_offers_what_is_spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offers = []
    for version in (1, 2, 1, 2):
        monkeypatch.setattr(protocol, "newest", lambda version=version: version)
        epoch = seal.next_epoch(tmp_path / "epoch")
        offers.append((epoch, protocol.version_of_epoch(epoch)))
    assert [version for _, version in offers] == [1, 2, 1, 2]
    assert offers == sorted(offers), "an epoch never goes back, whatever the release"


class Node:
    """A server on a wire of datagrams."""

    def __init__(self, name: str, peer: str, newest: int, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocol, "newest", lambda: newest)
        self.peer = peer
        self.sealer = seal.Sealer(KEY, "wire", name, protocol.mark_epoch(epoch, newest))
        self.opener = seal.Opener(KEY, "wire", [peer])

    def says(self) -> bytes:
        return self.sealer.seal(b"pulse", self.opener.version_for(self.peer))


@pytest.mark.parametrize("mine", VERSIONS)
@pytest.mark.parametrize("theirs", VERSIONS)
def test_datagrams_settle_on_what_both_speak(mine: int, theirs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Node("a", "b", mine, 5, monkeypatch), Node("b", "a", theirs, 6, monkeypatch)
    first = a.says()
    assert first[2] == protocol.OLDEST, "to a peer that was not heard yet"
    assert b.opener.open(first).payload == b"pulse"
    for sender, receiver in ((b, a), (a, b), (b, a)):
        datagram = sender.says()
        assert datagram[2] == min(mine, theirs)
        assert receiver.opener.open(datagram).payload == b"pulse"


def test_a_peer_that_comes_back_with_an_older_release_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Node("a", "b", 2, 5, monkeypatch), Node("b", "a", 2, 6, monkeypatch)
    b.opener.open(a.says())
    a.opener.open(b.says())
    assert a.says()[2] == 2
    older = Node("b", "a", 1, 1 << 40, monkeypatch)
    with pytest.raises(seal.SealError, match="protocol version 2, ours is 1"):
        older.opener.open(a.says())
    a.opener.open(older.says())
    assert older.opener.open(a.says()).payload == b"pulse"


def test_a_version_that_nobody_agreed_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Node("a", "b", 2, 5, monkeypatch), Node("b", "a", 2, 6, monkeypatch)
    for version in (0, 3, 255):
        with pytest.raises(seal.SealError) as caught:
            b.opener.open(a.sealer.seal(b"pulse", version))
        assert caught.value.kind == "version" and "upgrade" in caught.value.detail


# Replication: the connection says it


@pytest.fixture
def newest_of_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, int]]:
    """Newest version of each thread: both ends of a connection are in this process."""
    versions: dict[int, int] = {}
    monkeypatch.setattr(protocol, "newest", lambda: versions.get(threading.get_ident(), protocol.NEWEST))
    yield versions


def serving(newest: int, versions: dict[int, int], outcome: list[Any]) -> tuple[tuple[str, int], threading.Thread]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def run() -> None:
        versions[threading.get_ident()] = newest
        with listener:
            sock, _ = listener.accept()
        with sock:
            try:
                channel, kind, hello = wire.accept(sock, "AM", [KEY], timeout=5)
                outcome.append((kind, hello["node"]))
                wire.welcome(channel, session="s")
            except wire.WireError as error:
                outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return listener.getsockname(), thread


@pytest.mark.parametrize("mine", VERSIONS)
@pytest.mark.parametrize("theirs", VERSIONS)
def test_a_connection_is_in_the_version_of_both(mine: int, theirs: int, newest_of_thread: dict[int, int]) -> None:
    outcome: list[Any] = []
    address, thread = serving(theirs, newest_of_thread, outcome)
    newest_of_thread[threading.get_ident()] = mine
    channel, welcome = wire.connect(address, "AM", wire.Kind.STREAM, [KEY], {"node": "n"}, timeout=5)
    thread.join(10)
    channel.close()
    assert outcome == [(wire.Kind.STREAM, "n")] and welcome["session"] == "s"


def test_a_client_of_version_1_gets_version_1(newest_of_thread: dict[int, int]) -> None:
    outcome: list[Any] = []
    address, thread = serving(2, newest_of_thread, outcome)
    mine = seal.stream_hello()
    with socket.create_connection(address, 5) as sock:
        sock.settimeout(5)
        sock.sendall(wire.PREAMBLE.pack(wire.MAGIC, 1, wire.Kind.STREAM, 0, mine))
        magic, version, kind, refusal, theirs = wire.PREAMBLE.unpack(sock.recv(wire.PREAMBLE.size, socket.MSG_WAITALL))
        assert (magic, version, kind, refusal) == (wire.MAGIC, 1, wire.Kind.STREAM, 0)
        send, _ = seal.stream_ciphers(KEY, "rfs/AM/stream", mine, theirs, client=True)
        frame = wire.HEADER.pack(wire.Op.HELLO, 0, 0, 0, 0, 0, 0) + msgpack.packb({"node": "old"})
        length = struct.pack("<I", len(frame) + send.overhead)
        sock.sendall(length + send.seal(frame, length))
        thread.join(10)
    assert outcome == [(wire.Kind.STREAM, "old")]


def test_nobody_on_the_way_talks_a_connection_down(newest_of_thread: dict[int, int]) -> None:
    outcome: list[Any] = []
    address, thread = serving(2, newest_of_thread, outcome)
    middle = socket.create_server(("127.0.0.1", 0))

    def relay() -> None:
        with middle, middle.accept()[0] as client, socket.create_connection(address, 5) as server:
            client.settimeout(5)
            server.settimeout(5)
            preamble = bytearray(client.recv(wire.PREAMBLE.size, socket.MSG_WAITALL))
            assert preamble[7] == 2, "the offer"
            preamble[7] = 0
            server.sendall(preamble)
            client.sendall(server.recv(wire.PREAMBLE.size, socket.MSG_WAITALL))
            server.sendall(client.recv(65536))
            thread.join(10)

    helper = threading.Thread(target=relay, daemon=True)
    helper.start()
    with pytest.raises(wire.WireError):
        wire.connect(middle.getsockname(), "AM", wire.Kind.STREAM, [KEY], {"node": "n"}, timeout=5)
    helper.join(10)
    assert "altered on its way" in str(outcome[0])


@pytest.mark.parametrize(("oldest", "offer"), [(3, 0), (3, 4), (9, 9), (0, 0)])
def test_a_connection_of_a_distant_release_is_refused(
    oldest: int, offer: int, newest_of_thread: dict[int, int]
) -> None:
    outcome: list[Any] = []
    address, thread = serving(2, newest_of_thread, outcome)
    with socket.create_connection(address, 5) as sock:
        sock.settimeout(5)
        sock.sendall(wire.PREAMBLE.pack(wire.MAGIC, oldest, wire.Kind.STREAM, offer, bytes(16)))
        answer = wire.PREAMBLE.unpack(sock.recv(wire.PREAMBLE.size, socket.MSG_WAITALL))
        assert answer[1] == 2 and answer[3] == wire.Refusal.VERSION
    thread.join(10)
    assert isinstance(outcome[0], wire.WireError) and "upgrade" in str(outcome[0])

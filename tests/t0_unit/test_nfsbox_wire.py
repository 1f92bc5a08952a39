"""The wire: frames whole, in order, from the right peer, or not at all."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from safekit.rfs import wire
from safekit.wire import protocol

KEY = b"k" * 32


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[socket.socket], None]], tuple[str, int]]]:
    listening = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(handler: Callable[[socket.socket], None]) -> tuple[str, int]:
        def run() -> None:
            sock, _ = listening.accept()
            with sock:
                handler(sock)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        threads.append(thread)
        return listening.getsockname()[:2]

    yield serve
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    listening.close()


def wait_for_one(items: list[wire.WireError]) -> bool:
    end = time.monotonic() + 5
    while not items and time.monotonic() < end:
        time.sleep(0.01)
    return len(items) == 1


def test_frames_of_every_size(server: Any) -> None:
    sizes = [0, 1, 31, 4096, 262_100, 262_144, 1 << 20, 5]
    seen: list[int] = []

    def serve(sock: socket.socket) -> None:
        channel, kind, hello = wire.accept(sock, "AM", [KEY])
        assert kind is wire.Kind.STREAM and hello == {"node": "n"}
        wire.welcome(channel, session=7)
        for number, size in enumerate(sizes, 2):
            frame = channel.receive_within(5)
            op, flags, root, extra, fid, a, b = wire.HEADER.unpack_from(frame)
            assert (op, flags, root, extra, fid, a, b) == (wire.Op.WRITE, 1, 3, 4, 5, 6, 7)
            assert frame[wire.HEADER_SIZE :] == bytes([size % 251]) * size
            assert channel.received == number
            seen.append(size)
            channel.send_ack(number)

    channel, welcome = wire.connect(server(serve), "AM", wire.Kind.STREAM, [KEY], {"node": "n"})
    assert welcome["session"] == 7
    for size in sizes:
        number = channel.send(
            wire.Op.WRITE, 3, 5, 6, 7, bytes([size % 251]) * size, extra=4, flags=wire.Flag.ACK, timeout=5
        )
        answer = channel.receive_within(5)
        assert wire.HEADER.unpack_from(answer)[0] == wire.Op.ACK and wire.HEADER.unpack_from(answer)[5] == number
    channel.close()
    assert seen == sizes


@pytest.mark.parametrize("what", ["key", "module", "kind"])
def test_a_stranger_is_refused_at_its_first_frame(server: Any, what: str) -> None:
    failures: list[wire.WireError] = []

    def serve(sock: socket.socket) -> None:
        try:
            wire.accept(sock, "AM", [KEY], timeout=3)
        except wire.WireError as error:
            failures.append(error)

    address = server(serve)
    with pytest.raises(wire.WireError):
        wire.connect(
            address,
            "other" if what == "module" else "AM",
            wire.Kind.STREAM,
            [b"j" * 32 if what != "module" else KEY],
            {"node": "n"},
            timeout=3,
        )
    assert wait_for_one(failures)


def test_hostile_bytes_end_in_an_error(server: Any) -> None:
    random = os.urandom(16)
    preamble = wire.PREAMBLE.pack(wire.MAGIC, protocol.OLDEST, 1, 0, random)
    for attack in (
        b"GET / HTTP/1.0\r\n\r\n" + bytes(100),
        wire.PREAMBLE.pack(wire.MAGIC, 99, 1, 0, random),
        wire.PREAMBLE.pack(wire.MAGIC, protocol.OLDEST, 77, 0, random),
        preamble + struct.pack("<I", 0xFFFFFFFF),
        preamble + struct.pack("<I", 0),
        preamble + struct.pack("<I", 60_000) + os.urandom(60_000),
        preamble[:10],
    ):
        failures: list[wire.WireError] = []

        def serve(sock: socket.socket, failures: list[wire.WireError] = failures) -> None:
            try:
                wire.accept(sock, "AM", [KEY], timeout=2)
            except wire.WireError as error:
                failures.append(error)

        with socket.create_connection(server(serve)) as sock:
            sock.settimeout(5)
            with contextlib.suppress(ConnectionError, OSError):  # the server may have gone before we end
                sock.sendall(attack)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1000):
                    pass
        assert wait_for_one(failures)


def test_altered_and_repeated_frames_end_the_connection(server: Any) -> None:
    for attack in ("flip", "repeat"):
        failures: list[wire.WireError] = []

        def serve(sock: socket.socket, failures: list[wire.WireError] = failures) -> None:
            channel, _, _ = wire.accept(sock, "AM", [KEY])
            wire.welcome(channel)
            try:
                while True:
                    channel.receive_within(3)
            except wire.WireError as error:
                failures.append(error)

        channel, _ = wire.connect(server(serve), "AM", wire.Kind.STREAM, [KEY], {})
        sent: list[bytes] = []
        real = channel.sock

        class Tap:
            def send(self, data: bytes, _flags: int, sent: list[bytes] = sent) -> int:
                sent.append(data)
                return len(data)

        channel.sock = Tap()  # type: ignore[assignment]
        channel.send(wire.Op.PING)
        channel.sock = real
        data = bytearray(sent[0])
        if attack == "flip":
            data[20] ^= 1
            real.sendall(data)
        else:
            real.sendall(data + data)
        real.settimeout(5)
        assert real.recv(1) == b""
        channel.close()
        assert wait_for_one(failures)


def test_a_peer_that_reads_nothing_times_out(server: Any) -> None:
    release = threading.Event()

    def serve(sock: socket.socket) -> None:
        channel, _, _ = wire.accept(sock, "AM", [KEY])
        wire.welcome(channel)
        release.wait(20)

    channel, _ = wire.connect(server(serve), "AM", wire.Kind.STREAM, [KEY], {})
    try:
        with pytest.raises(wire.WireTimeout, match="nothing could be sent for 1 seconds"):
            for _ in range(200):
                channel.send(wire.Op.WRITE, body=bytes(1 << 20), timeout=1.0)
    finally:
        release.set()
        channel.close()


def test_maps_only() -> None:
    import msgpack

    for value in ([1], 5, {1: 2}, b"x"):
        with pytest.raises(wire.WireError):
            wire.decode_map(msgpack.packb(value))
    with pytest.raises(wire.WireError):
        wire.decode_map(b"\xc1")
    assert wire.decode_map(msgpack.packb({"a": b"\xff"})) == {"a": b"\xff"}


def test_connections_are_made_while_only_one_side_knows_the_new_key() -> None:
    new = b"n" * 32
    listening = socket.create_server(("127.0.0.1", 0))
    known = {"old": [KEY], "both": [new, KEY], "new": [new]}

    def serve(keys: list[bytes]) -> None:
        while True:
            try:
                sock, _ = listening.accept()
                channel, _, _ = wire.accept(sock, "AM", keys)
            except wire.WireError:
                sock.close()
                continue
            except OSError:
                return
            wire.welcome(channel)
            return

    for ours, theirs in (("old", "both"), ("both", "old"), ("both", "both"), ("both", "new"), ("new", "both")):
        thread = threading.Thread(target=serve, args=(known[theirs],))
        thread.start()
        channel, _ = wire.connect(listening.getsockname()[:2], "AM", wire.Kind.RESYNC, known[ours], {"node": "n"})
        channel.close()
        thread.join(5)
        assert not thread.is_alive(), (ours, theirs)
    thread = threading.Thread(target=serve, args=(known["new"],))
    thread.start()
    with pytest.raises(wire.WireError):
        wire.connect(listening.getsockname()[:2], "AM", wire.Kind.RESYNC, known["old"], {"node": "n"})
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)
    assert not thread.is_alive()

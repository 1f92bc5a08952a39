"""Whatever comes in on a port: no exception but the refusal that is meant, no growth of memory, and the next good
message is understood. 20,000 of each kind; a million with --campaign.

Three kinds of bytes: any; a sealed message that was changed on its way; an authentic message with changed contents,
as a server with a defect or another release would send it.
"""

from __future__ import annotations

import gc
import random
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest

import heart.shell.wire
import safeadmin.wire
import safekit.rfs.wire
import vipd.farm.wire
from heart.core.values import Beat, Color, Role, SwapNotice
from safeadmin.adminlog import AdminLog, Complaints
from safekit.bus import message as buswire
from safekit.wire import protocol, seal
from safekit.wire.membership import Pulse, Row

COUNT, CAMPAIGN = 20_000, 1_000_000
KEY = bytes(range(32))
CONFIGURATION = b"12345678"
ROWS = (Row(1, 5, 6, 0b101, 9), Row(0, 3, 4, 0b10, 8))
BEAT = Beat(
    node="peer", incarnation=1 << 60, sequence=7, echo=(1 << 60, 3), role=Role.PRIM, color=Color.GREEN,
    sees=Role.SECOND, uptodate="up", paired=True, term=4, grant=(5, 6), swap=SwapNotice("node2", 9, "begun", True),
    resources=(("ping.gw", "up"), ("rfs.uptodate", "up")), signature="abc",
)  # fmt: skip
REQUEST = {"id": 7, "op": "set", "from": "cli", "resource": "custom.x", "value": "up", "list": [1, 2.5, None, b"x"]}

Take = Callable[[bytes], None]


@dataclass(frozen=True)
class Wire:
    """A port: good messages, how they are sealed, and the parser, which raises nothing."""

    messages: tuple[bytes, ...]
    seal: Callable[[bytes], bytes]
    take: Take
    taken: list[object]


def refusing(parse: Callable[[bytes], object], refusals: tuple[type[Exception], ...], taken: list[object]) -> Take:
    def take(datagram: bytes) -> None:
        try:
            taken[:] = [parse(datagram)]
        except refusals as error:
            assert str(error), "a refusal says why"

    return take


def sealed(
    context: str, messages: tuple[bytes, ...], unpack: Callable[[bytes], object], refusal: type[Exception]
) -> Wire:
    sealer = seal.Sealer(KEY, context, "peer", protocol.mark_epoch(5, protocol.NEWEST))
    opener, taken = seal.Opener(KEY, context, ["peer", "other"]), list[object]()
    return Wire(
        messages, lambda payload: sealer.seal(payload, protocol.NEWEST),
        refusing(lambda data: unpack(opener.open(data).payload), (seal.SealError, refusal), taken), taken,
    )  # fmt: skip


def heartbeat() -> Wire:
    """The real receiver, which must not be made to fill the log either."""
    taken, complaints = list[object](), set[str]()
    sealer = seal.Sealer(KEY, heart.shell.wire.CONTEXT, "peer", protocol.mark_epoch(5, protocol.NEWEST))
    opener = seal.Opener(KEY, heart.shell.wire.CONTEXT, ["peer"])
    link = heart.shell.wire.LinkSocket(
        heart.shell.wire.Route("default", "127.0.0.1", "127.0.0.1", 1, 1.0), "AM", sealer, opener,
        lambda ident, beat: taken.__setitem__(slice(None), [beat]),
        lambda peer, ident, reason: complaints.add(reason) if len(complaints) < 5000 else None,
    )  # fmt: skip
    messages = (heart.shell.wire.pack(BEAT, "AM", protocol.NEWEST), heart.shell.wire.pack(Beat("peer", 1), "AM"))
    return Wire(
        messages, lambda payload: sealer.seal(payload, protocol.NEWEST),
        lambda data: link.datagram_received(data, ("10.0.0.2", 1)), taken,
    )  # fmt: skip


def farm() -> Wire:
    told = vipd.farm.wire.Told(Pulse(ROWS), (1, 1 << 200), {1: (b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"), 0: ()})
    messages = tuple(vipd.farm.wire.encode(m, CONFIGURATION) for m in (told, vipd.farm.wire.Bye(2, 77)))
    return sealed(
        "farm", messages, lambda data: vipd.farm.wire.decode(data, CONFIGURATION, 3, 2), vipd.farm.wire.WireError
    )


def admin() -> Wire:
    of = safeadmin.wire
    messages = tuple(
        of.encode(message, CONFIGURATION)
        for message in (Pulse(ROWS), of.Want(0, 1, 1), of.Facts(1, 2, 3, b'{"modules": []}'))
    )
    return sealed("safeadmin", messages, lambda data: of.decode(data, CONFIGURATION, 3), of.WireError)


def bus() -> Wire:
    """The port mapper's port and those of all processes of a server."""
    taken = list[object]()
    messages = (msgpack.packb(REQUEST), msgpack.packb({"re": 7, "ok": True}))
    return Wire(
        messages, lambda payload: seal.mac_seal(KEY, payload),
        refusing(lambda data: buswire.decode(data, KEY), (seal.SealError,), taken), taken,
    )  # fmt: skip


def changed(draw: random.Random, data: bytes) -> bytes:
    """`data` with one to four changes."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(found) + 1)
        match draw.randrange(6):
            case 0 if at < len(found):
                found[at] = draw.randrange(256)
            case 1 if at < len(found):
                found[at] ^= 1 << draw.randrange(8)
            case 2:
                del found[at : at + draw.randint(1, 20)]
            case 3:
                found[at:at] = draw.randbytes(draw.randint(1, 20))
            case 4:  # the numbers at which lengths and counts break
                size = draw.choice((1, 2, 4, 8))
                found[at : at + size] = draw.choice((0, 1, 127, 128, 255)).to_bytes(1, "big") * size
            case 5:
                found[at:at] = found[: draw.randint(0, 100)] * draw.randint(1, 3)
    return bytes(found[:65507])


def hostile(draw: random.Random, wire: Wire) -> bytes:
    message = draw.choice(wire.messages)
    match draw.randrange(8):
        case 0:
            return draw.randbytes(draw.choice((0, 1, 40, 41, 42, 200, 1500)))
        case 1 | 2:
            return changed(draw, wire.seal(message))
        case _:
            return wire.seal(changed(draw, message))


def attack(wire: Wire, count: int, seed: int) -> None:
    draw = random.Random(seed)
    blocks, half = 0, count // 2
    for number in range(count):
        if number == half:
            gc.collect()
            blocks = sys.getallocatedblocks()
        wire.take(hostile(draw, wire))
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 2000, "memory grows with what comes in"
    for message in wire.messages:
        wire.taken.clear()
        wire.take(wire.seal(message))
        assert wire.taken, "the next good message is understood"


WIRES = (heartbeat, farm, admin, bus)


@pytest.mark.parametrize("make", WIRES)
def test_datagrams(make: Callable[[], Wire]) -> None:
    attack(make(), COUNT, 1)


@pytest.mark.slow
@pytest.mark.parametrize("make", WIRES)
def test_a_million_datagrams(make: Callable[[], Wire]) -> None:
    attack(make(), CAMPAIGN, 2)


# Replication: frames on a connection


def frames(count: int, seed: int) -> None:
    """Connections of a peer that holds the key and sends nonsense, or does not and sends anything."""
    draw = random.Random(seed)
    blocks = done = 0
    while done < count:
        if done >= count // 2 and not blocks:
            gc.collect()
            blocks = sys.getallocatedblocks()
        hello = seal.stream_hello()
        up, _ = seal.stream_ciphers(KEY, "c", hello, hello, client=True)
        back, away = seal.stream_ciphers(KEY, "c", hello, hello, client=False)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(10)
            channel = safekit.rfs.wire.Channel(ours, back, away)
            channel.limit = safekit.rfs.wire.MAX_FRAME
            sent = []
            for _ in range(draw.randint(1, 12)):
                header = safekit.rfs.wire.HEADER.pack(draw.randrange(40), 0, 0, 0, 1, 2, 3)
                frame = header + draw.randbytes(draw.randrange(90))
                length = struct.pack("<I", len(frame) + 16)
                sent.append(length + up.seal(frame, length))
            data = b"".join(sent)
            if draw.random() < 0.9:
                data = changed(draw, data)
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            before = len(channel._buffer)
            with pytest.raises(safekit.rfs.wire.WireError) as caught:
                while True:
                    frame_received = channel.receive()
                    assert frame_received is None or len(frame_received) >= safekit.rfs.wire.HEADER_SIZE
                    try:
                        safekit.rfs.wire.decode_map((frame_received or b"")[safekit.rfs.wire.HEADER_SIZE :])
                    except safekit.rfs.wire.WireError as error:
                        assert error.strerror
            assert caught.value.strerror
            most = max(before, safekit.rfs.wire.MAX_FRAME + 4)
            assert len(channel._buffer) <= most, "a length is no promise of memory"
            done += len(sent)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 2000, "memory grows with what comes in"


def test_frames_of_replication() -> None:
    frames(COUNT, 3)


@pytest.mark.slow
def test_a_million_frames_of_replication() -> None:
    frames(CAMPAIGN, 4)


def test_senders_that_are_made_up_do_not_fill_the_log(tmp_path: Path) -> None:
    """One line for each subject, and no more subjects in an hour than are kept."""
    path = tmp_path / "safeadmin.log"
    complaints = Complaints(AdminLog(path, "n1"))
    draw = random.Random(5)
    for _ in range(COUNT):
        complaints.say(f"10.{draw.randrange(256)}.{draw.randrange(256)}.1", "malformed", "x", 1.0, stranger=True)
    assert len(path.read_text().splitlines()) <= 64
    assert complaints.say("10.9.9.1", "malformed", "a server of the cluster", 1.0), "strangers take no room from it"

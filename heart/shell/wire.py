"""Heartbeats on the wire: one datagram format, one socket per link.

A datagram is a sealed msgpack map.  What arrives is checked field by field
before it becomes a Beat: length, types, ranges.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import msgpack

from heart.core.values import Beat, Color, Decided, Role, SwapNotice
from heart.shell.figures import Arrivals
from safekit.model.agreement import MAX_NAMES, Agreement
from safekit.wire import protocol
from safekit.wire.seal import Opener, Sealer, SealError

CONTEXT = "heartbeat"
MAX_PAYLOAD = 32 * 1024
MAX_TEXT = 256
MAX_RESOURCES = 256
MAX_DECIDED, MAX_INPUTS, MAX_INPUT = 16, 12, 128


class BadBeat(ValueError):
    """A datagram that is authentic and still not a heartbeat; the text says what is wrong."""


_INTS = ("incarnation", "sequence", "term", "claim", "fence")
_BOOLS = ("paired", "lastprim", "degraded", "eligible", "forced", "default_prim", "serving", "stream_lost")
_TEXTS = ("node", "uptodate", "former", "action", "signature")
_RIVALS = ("none", "possible", "served")
MAX_HOLDS = 1e6
_PAIRS = ("echo", "grant", "fenced")
_KNOWN = frozenset(Beat._fields)


def pack(beat: Beat, module: str, version: int = protocol.OLDEST) -> bytes:
    """Bytes of a heartbeat of a module, in that protocol version."""
    message: dict[str, Any] = {"v": version, "module": module}
    for name in (*_INTS, *_BOOLS, *_TEXTS, *_PAIRS):
        message[name] = getattr(beat, name)
    message["role"], message["color"], message["sees"] = beat.role.value, beat.color.value, beat.sees.value
    message["resources"] = dict(beat.resources)
    if beat.decided:
        message["decided"] = [
            (d.number, d.time, d.rule[:MAX_TEXT], d.outcome[:MAX_TEXT], _bounded(d.inputs)) for d in beat.decided
        ]
    message["decided_seen"] = beat.decided_seen
    message["agrees"] = dict(beat.agrees)
    if beat.holds:
        message["holds"] = beat.holds
    if beat.rival != "none":
        message["rival"] = beat.rival
    if beat.lineage != "none":
        message["lineage"] = beat.lineage
    if beat.leaving:
        message["leaving"] = True
    if beat.swap is not None:
        swap = beat.swap
        message["swap"] = (swap.issuer, swap.number, swap.phase, swap.nosync)
    return cast(bytes, msgpack.packb(message))


def unpack(payload: bytes, module: str) -> Beat:
    """The heartbeat in `payload`.  Raises BadBeat, and nothing else, whatever the bytes are."""
    if len(payload) > MAX_PAYLOAD:
        raise BadBeat(f"{len(payload)} bytes, at most {MAX_PAYLOAD}")
    try:
        message = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise BadBeat(f"not msgpack: {error}") from None
    if not isinstance(message, dict):
        raise BadBeat("not a map")
    if message.get("v") not in range(protocol.OLDEST, protocol.NEWEST + 1):
        raise BadBeat(f"heartbeat of protocol version {str(message.get('v'))[:16]!r}")
    if message.get("module") != module:
        raise BadBeat(f"of module {str(message.get('module'))[:64]!r}, not {module!r}")
    values: dict[str, Any] = {}
    for name in _INTS:
        values[name] = _integer(message.get(name), name)
    for name in _BOOLS:
        values[name] = _typed(message.get(name), bool, name)
    for name in _TEXTS:
        values[name] = _text(message.get(name), name)
    for name in _PAIRS:
        pair = _typed(message.get(name), list, name)
        if len(pair) != 2:
            raise BadBeat(f"{name}: two numbers expected")
        values[name] = (_integer(pair[0], name), _integer(pair[1], name))
    try:
        values["role"], values["sees"] = Role(str(message.get("role"))), Role(str(message.get("sees")))
        values["color"] = Color(str(message.get("color")))
    except ValueError as error:
        raise BadBeat(str(error)) from None
    return Beat(
        **values,
        resources=_resources(message.get("resources")),
        agrees=_agrees(message.get("agrees", {})),
        swap=_swap(message.get("swap")),
        decided=_decided(message.get("decided", [])),
        decided_seen=_integer(message.get("decided_seen", 0), "decided_seen"),
        holds=_seconds(message.get("holds", 0.0), "holds"),
        rival=_one_of(message.get("rival", "none"), _RIVALS, "rival"),
        lineage=_text(message.get("lineage", "none"), "lineage"),
        leaving=_typed(message.get("leaving", False), bool, "leaving"),
    )


def _bounded(inputs: tuple[tuple[str, str, str, float], ...]) -> list[tuple[str, str, str, float]]:
    return [(n[:MAX_INPUT], v[:MAX_INPUT], s[:MAX_INPUT], at) for n, v, s, at in inputs[:MAX_INPUTS]]


def _decided(value: object) -> tuple[Decided, ...]:
    items = _typed(value, list, "decided")
    if len(items) > MAX_DECIDED:
        raise BadBeat(f"decided: more than {MAX_DECIDED}")
    return tuple(_decision(item) for item in items)


def _decision(value: object) -> Decided:
    parts = _typed(value, list, "decided")
    if len(parts) != 5:
        raise BadBeat("decided: five fields expected")
    number, at, rule, outcome, given = parts
    inputs = _typed(given, list, "decided")
    if len(inputs) > MAX_INPUTS:
        raise BadBeat(f"decided: more than {MAX_INPUTS} inputs")
    found: list[tuple[str, str, str, float]] = []
    for item in inputs:
        words = _typed(item, list, "decided")
        if len(words) != 4:
            raise BadBeat("decided: four fields of an input expected")
        texts = [_text(word, "decided") for word in words[:3]]
        found.append((texts[0], texts[1], texts[2], _typed(words[3], float, "decided")))
    return Decided(
        _integer(number, "decided"), _typed(at, float, "decided"), _text(rule, "decided"), _text(outcome, "decided"),
        tuple(found),
    )  # fmt: skip


def _typed(value: object, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise BadBeat(f"{name}: {kind.__name__} expected")
    return value


def _integer(value: object, name: str) -> int:
    number = cast(int, _typed(value, int, name))
    if not 0 <= number < 1 << 63:
        raise BadBeat(f"{name}: out of range")
    return number


def _seconds(value: object, name: str) -> float:
    number = cast(float, _typed(value, float, name))
    if not 0 <= number <= MAX_HOLDS:
        raise BadBeat(f"{name}: out of range")
    return number


def _one_of(value: object, known: tuple[str, ...], name: str) -> str:
    text = _text(value, name)
    if text not in known:
        raise BadBeat(f"{name}: {' or '.join(known)} expected")
    return text


def _text(value: object, name: str) -> str:
    text = cast(str, _typed(value, str, name))
    if len(text) > MAX_TEXT:
        raise BadBeat(f"{name}: longer than {MAX_TEXT}")
    return text


def _resources(value: object) -> tuple[tuple[str, str], ...]:
    table = _typed(value, dict, "resources")
    if len(table) > MAX_RESOURCES:
        raise BadBeat(f"resources: more than {MAX_RESOURCES}")
    return tuple(sorted((_text(k, "resource name"), _text(v, "resource value")) for k, v in table.items()))


def _agrees(value: object) -> Agreement:
    """Nothing of an older release; its order is the sender's."""
    table = _typed(value, dict, "agrees")
    if len(table) > MAX_NAMES:
        raise BadBeat(f"agrees: more than {MAX_NAMES}")
    return tuple((_text(name, "agrees"), _text(told, "agrees")) for name, told in table.items())


def _swap(value: object) -> SwapNotice | None:
    if value is None:
        return None
    parts = _typed(value, list, "swap")
    if len(parts) != 4:
        raise BadBeat("swap: four fields expected")
    issuer, number, phase, nosync = parts
    return SwapNotice(
        _text(issuer, "swap"), _integer(number, "swap"), _text(phase, "swap"), bool(_typed(nosync, bool, "swap"))
    )


@dataclass(frozen=True, slots=True)
class Route:
    """Addresses of a link: where this server binds, where the peer is reached."""

    ident: str
    own: str
    peer: str
    port: int
    pulse: float


class Places(NamedTuple):
    """Where a link goes: socket addresses, names looked up."""

    family: int
    own: Any
    peer: Any


class LinkSocket(asyncio.DatagramProtocol):
    """One heartbeat link.

    The socket is bound to this server's address on the lan; while that address
    does not exist (interface down) `open` is tried at every pulse.
    """

    def __init__(
        self,
        route: Route,
        module: str,
        sealer: Sealer,
        opener: Opener,
        heard: Callable[[str, Beat], None],
        rejected: Callable[[str, str, str], None],
    ) -> None:
        self.route = route
        self.places: Places | None = None
        self._module = module
        self._sealer = sealer
        self.opener = opener
        self._heard = heard
        self._rejected = rejected
        self._transport: asyncio.DatagramTransport | None = None
        self._opening = False
        self.problem = ""
        self.sent = self.accepted = self.refused = 0
        self.sent_bytes = self.received_bytes = 0
        self.arrivals = Arrivals(route.pulse)

    @property
    def usable(self) -> bool:
        """Whether it is bound and knows where its peer is."""
        return self._transport is not None and self.places is not None

    @property
    def peer_address(self) -> str:
        """Where the peer is; "" before it was looked up."""
        return str(self.places.peer[0]) if self.places is not None else ""

    async def look_up(self) -> Places:
        """The addresses of both ends now. Raises OSError for a name that has none."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.route.own, self.route.port, type=socket.SOCK_DGRAM)
        family = int(found[0][0])
        peers = await loop.getaddrinfo(self.route.peer, self.route.port, family=family, type=socket.SOCK_DGRAM)
        return Places(family, found[0][4], peers[0][4])

    async def open(self) -> None:
        """Look the addresses up and bind; `problem` tells why not."""
        if self._transport is not None or self._opening:
            return
        self._opening = True
        try:
            self.places = await self.look_up()
            await self._bind(self.places)
            self.problem = ""
        except OSError as error:
            self.problem = f"{self.route.own} port {self.route.port}: {error.strerror or error}"
        finally:
            self._opening = False

    async def _bind(self, places: Places) -> None:
        sock = socket.socket(places.family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(places.own)
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=sock)
        except OSError:
            sock.close()
            raise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def error_received(self, exc: Exception) -> None:
        """Port unreachable, no route: the silence that follows is what counts."""

    def send(self, beat: Beat) -> None:
        """Send a heartbeat, if the link can."""
        if self._transport is None or self._transport.is_closing() or self.places is None:
            return
        try:
            version = self.opener.version_for(*self.opener.senders)
            datagram = self._sealer.seal(pack(beat, self._module, version), version)
            self._transport.sendto(datagram, self.places.peer)
            self.sent += 1
            self.sent_bytes += len(datagram)
            self.problem = ""
        except OSError as error:
            self.problem = str(error.strerror)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        try:
            opened = self.opener.open(data)
            beat = unpack(opened.payload, self._module)
        except SealError as error:
            if error.kind != "replay":
                self.refused += 1
                self._rejected(str(addr[0]), self.route.ident, error.detail)
            return
        except BadBeat as error:
            self.refused += 1
            self._rejected(str(addr[0]), self.route.ident, str(error))
            return
        if beat.node == opened.sender:
            self.accepted += 1
            self.received_bytes += len(data)
            self.arrivals.note(time.monotonic())
            self._heard(self.route.ident, beat)

    def told(self) -> dict[str, Any]:
        """For monitoring."""
        counts = {"sent": self.sent, "sent_bytes": self.sent_bytes, "received_bytes": self.received_bytes}
        return {**self.arrivals.told(time.monotonic(), self.refused), **counts}

    def close(self) -> None:
        """Stop using the link."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

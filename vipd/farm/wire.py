"""What the servers of a farm say to each other on UDP 4803 and up (guide 13.4), inside the seal.

    kind 1 | configuration 8 | body

PULSE: the membership's rows, the buckets in which the sender keeps connections, and the MACs of the
interfaces of every server it knows of. BYE: the sender's life ends. `configuration` stands for what makes the
assignments comparable: servers that would compute other owners must not listen to each other.

The sender is authentic, yet every length and number is checked first.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from safekit.model.codec import to_json
from safekit.model.types import ClusterConfig, ModuleConfig
from safekit.wire import pulse as pulsewire
from safekit.wire.membership import Pulse

CONFIGURATION_SIZE = 8
_PULSE, _BYE = 1, 2
_BITMAP = 32
_MAC = 6
MAX_WIRES = 64


class WireError(ValueError):
    """An authentic datagram that says nothing we can use; the text is for a log line."""


class OtherConfiguration(WireError):
    """The sender runs the module with another configuration."""


@dataclass(frozen=True, slots=True)
class Told:
    """A pulse with what goes along. kept: a bitmap for each group. macs: for each node its interfaces' MACs."""

    pulse: Pulse
    kept: tuple[int, ...]
    macs: Mapping[int, Sequence[bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bye:
    """The end of a life."""

    node: int
    incarnation: int


def configuration_id(config: ModuleConfig, names: Sequence[str], cluster: ClusterConfig | None = None) -> bytes:
    """Equal on servers that compute the same owners and the same rules. Of cluster.xml only the servers count: after
    any other change of it, a vipd that was restarted still understands one that was not. With `cluster`: as protocol
    version 1 has it, where all of cluster.xml counts."""
    groups = to_json(ModuleConfig("", 0, vip=config.vip, farm=config.farm))
    text = "\0".join((*((cluster.signature,) if cluster is not None else ()), config.name, *names, groups))
    return blake2b(text.encode(), digest_size=CONFIGURATION_SIZE).digest()


def configuration_of(payload: bytes) -> bytes:
    """The configuration of a message that may be anything."""
    return payload[1 : 1 + CONFIGURATION_SIZE]


def encode(message: Told | Bye, configuration: bytes) -> bytes:
    """The payload of a datagram."""
    if isinstance(message, Bye):
        return bytes([_BYE]) + configuration + struct.pack("!BQ", message.node, message.incarnation)
    parts = [bytes([_PULSE]), configuration, bytes([len(message.pulse.rows)]), pulsewire.pack(message.pulse)]
    kept = message.kept if any(message.kept) else ()
    parts.append(bytes([len(kept)]) + b"".join(bitmap.to_bytes(_BITMAP, "big") for bitmap in kept))
    parts.append(bytes([len(message.macs)]))
    for node, macs in message.macs.items():
        parts.append(bytes([node, len(macs)]) + b"".join(macs))
    return b"".join(parts)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._offset = data, 0

    def take(self, count: int) -> bytes:
        part = self._data[self._offset : self._offset + count]
        if len(part) != count:
            raise WireError(f"a message of {len(self._data)} bytes ends too early")
        self._offset += count
        return part

    def byte(self) -> int:
        return self.take(1)[0]

    def end(self) -> None:
        if self._offset != len(self._data):
            raise WireError(f"{len(self._data) - self._offset} bytes too many")


def decode(payload: bytes, configuration: bytes, nodes: int, groups: int) -> Told | Bye:
    """The message in a payload. Raises WireError, nothing else."""
    reader = _Reader(payload)
    kind = reader.byte()
    if reader.take(CONFIGURATION_SIZE) != configuration:
        raise OtherConfiguration("another configuration of the module or of the cluster")
    if kind == _BYE:
        node, incarnation = struct.unpack("!BQ", reader.take(9))
        reader.end()
        if node >= nodes:
            raise WireError(f"node number {node} of {nodes}")
        return Bye(node, incarnation)
    if kind != _PULSE:
        raise WireError(f"unknown kind of message {kind}")
    try:
        pulse = pulsewire.unpack(reader.take(reader.byte() * pulsewire.ROW_SIZE), nodes)
    except pulsewire.PulseError as error:
        raise WireError(str(error)) from None
    count = reader.byte()
    if count not in (0, groups):
        raise WireError(f"connections kept in {count} groups of {groups}")
    kept = tuple(int.from_bytes(reader.take(_BITMAP), "big") for _ in range(count)) or (0,) * groups
    macs: dict[int, tuple[bytes, ...]] = {}
    for _ in range(reader.byte()):
        node, wires = reader.byte(), reader.byte()
        if node >= nodes or wires > MAX_WIRES:
            raise WireError(f"{wires} interfaces of node number {node} of {nodes}")
        macs[node] = tuple(reader.take(_MAC) for _ in range(wires))
    reader.end()
    return Told(pulse, kept, macs)

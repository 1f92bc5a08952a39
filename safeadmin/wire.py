"""What safeadmin says to the other servers on UDP 4800 (guide 10.2.3.2, 12.1.3), inside the seal.

    kind 1 | configuration 8 | body

PULSE: rows of safekit.wire.membership. WANT: a node's facts are missing here. FACTS: the facts of a node, told by
itself or passed on. `configuration` are the first bytes of the signature of cluster.xml: servers with
different configurations number their nodes differently, so they must not listen to each other.

The sender is authentic, yet nothing here trusts it: every length and number is checked first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from safekit.wire import pulse
from safekit.wire.membership import Pulse

CONFIGURATION_SIZE = 8
MAX_FACTS = 60_000
_WANT = struct.Struct(">BQQ")
_PULSE, _WANT_KIND, _FACTS_KIND = 1, 2, 3


class WireError(ValueError):
    """An authentic datagram that says nothing we can use; the text is for a log line."""


class OtherConfiguration(WireError):
    """The sender applies another cluster.xml."""


@dataclass(frozen=True, slots=True)
class Want:
    """Asks for the facts of a node, in the version its row announced."""

    node: int
    incarnation: int
    facts: int


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a node: a version (the hash of data) and the data, see facts.py."""

    node: int
    incarnation: int
    facts: int
    data: bytes


Message = Pulse | Want | Facts


def configuration_id(signature: str) -> bytes:
    """The bytes that stand for a configuration, from its signature (hexadecimal)."""
    try:
        digest = bytes.fromhex(signature)
    except ValueError:
        digest = b""
    if len(digest) < CONFIGURATION_SIZE:
        raise ValueError(f"{signature!r} is not a signature of cluster.xml: apply the configuration again")
    return digest[:CONFIGURATION_SIZE]


def encode(message: Message, configuration: bytes) -> bytes:
    """The payload of a datagram."""
    if isinstance(message, Pulse):
        return bytes([_PULSE]) + configuration + pulse.pack(message)
    if isinstance(message, Want):
        body = _WANT.pack(message.node, message.incarnation, message.facts)
        return bytes([_WANT_KIND]) + configuration + body
    if len(message.data) > MAX_FACTS:
        raise ValueError(f"facts of {len(message.data)} bytes, at most {MAX_FACTS}")
    head = _WANT.pack(message.node, message.incarnation, message.facts)
    return bytes([_FACTS_KIND]) + configuration + head + message.data


def decode(payload: bytes, configuration: bytes, nodes: int) -> Message:
    """The message in a payload, for a cluster of that many nodes. Raises WireError, nothing else."""
    start = 1 + CONFIGURATION_SIZE
    if len(payload) < start:
        raise WireError(f"{len(payload)} bytes are no message")
    kind, body = payload[0], payload[start:]
    if payload[1:start] != configuration:
        raise OtherConfiguration("another cluster configuration: apply the same cluster.xml on every server")
    if kind == _PULSE:
        try:
            return pulse.unpack(body, nodes)
        except pulse.PulseError as error:
            raise WireError(str(error)) from None
    if kind not in (_WANT_KIND, _FACTS_KIND):
        raise WireError(f"unknown kind of message {kind}")
    if len(body) < _WANT.size or len(body) - _WANT.size > MAX_FACTS:
        raise WireError(f"message of kind {kind} with {len(body)} bytes")
    node, incarnation, facts = _WANT.unpack_from(body)
    if node >= nodes:
        raise WireError(f"node number {node} of {nodes}")
    if kind == _FACTS_KIND:
        return Facts(node, incarnation, facts, body[_WANT.size :])
    if len(body) != _WANT.size:
        raise WireError(f"message of kind {kind} with {len(body)} bytes")
    return Want(node, incarnation, facts)

"""A membership pulse as bytes: the same on the wire of the cluster (UDP 4800) and of a farm (UDP 4803 and up).

What comes in is authentic, yet every length and number is checked first.
"""

from __future__ import annotations

import struct

from safekit.wire.membership import MAX_NODES, Pulse, Row

_ROW = struct.Struct(">BQQIQ")
ROW_SIZE = _ROW.size


class PulseError(ValueError):
    """Bytes that are no pulse; the text is for a log line."""


def pack(pulse: Pulse) -> bytes:
    """The rows one after the other, ROW_SIZE bytes each."""
    return b"".join(_ROW.pack(*row) for row in pulse.rows)


def unpack(body: bytes, nodes: int) -> Pulse:
    """The pulse in `body`, among that many nodes. Raises PulseError."""
    if not body or len(body) % _ROW.size or len(body) > _ROW.size * MAX_NODES:
        raise PulseError(f"pulse of {len(body)} bytes")
    rows = tuple(Row(*fields) for fields in _ROW.iter_unpack(body))
    seen = 0
    for row in rows:
        if row.node >= nodes or row.hears >> nodes or row.hears >> row.node & 1:
            raise PulseError(f"row of node {row.node} hearing {row.hears:#x} among {nodes} nodes")
        if seen >> row.node & 1:
            raise PulseError(f"two rows of node {row.node}")
        seen |= 1 << row.node
    return Pulse(rows)

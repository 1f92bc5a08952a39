"""The kernel's jhash and the way nftables makes a bucket of it: which server a client's packet belongs to.

The packet filters decide in the kernel; this is the same function, for whoever must know the decision
without sending a packet (`safekit farm who`, the second engine, kept connections).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

BUCKETS = 256
"""Size of the hash table of a group (guide 13.5.7.4)."""

SEED = 0x5AFE0001
"""Seed of the hash: the same on every server of every farm."""

_MASK = 0xFFFFFFFF
_WORDS = struct.Struct("<III")


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK


def jhash(key: bytes, seed: int) -> int:
    """Jenkins' hash (lookup3) of bytes as the kernel's jhash(): 32 bits."""
    a = b = c = (0xDEADBEEF + len(key) + seed) & _MASK
    offset, left = 0, len(key)
    while left > 12:
        x, y, z = _WORDS.unpack_from(key, offset)
        a, b, c = a + x & _MASK, b + y & _MASK, c + z & _MASK
        a = (a - c & _MASK) ^ _rotate(c, 4)
        c = c + b & _MASK
        b = (b - a & _MASK) ^ _rotate(a, 6)
        a = a + c & _MASK
        c = (c - b & _MASK) ^ _rotate(b, 8)
        b = b + a & _MASK
        a = (a - c & _MASK) ^ _rotate(c, 16)
        c = c + b & _MASK
        b = (b - a & _MASK) ^ _rotate(a, 19)
        a = a + c & _MASK
        c = (c - b & _MASK) ^ _rotate(b, 4)
        b = b + a & _MASK
        offset, left = offset + 12, left - 12
    if left:
        x, y, z = _WORDS.unpack(key[offset:].ljust(12, b"\0"))
        a, b, c = a + x & _MASK, b + y & _MASK, c + z & _MASK
        c = ((c ^ b) - _rotate(b, 14)) & _MASK
        a = ((a ^ c) - _rotate(c, 11)) & _MASK
        b = ((b ^ a) - _rotate(a, 25)) & _MASK
        c = ((c ^ b) - _rotate(b, 16)) & _MASK
        a = ((a ^ c) - _rotate(c, 4)) & _MASK
        b = ((b ^ a) - _rotate(a, 14)) & _MASK
        c = ((c ^ b) - _rotate(b, 24)) & _MASK
    return c


def bucket(key: bytes, seed: int) -> int:
    """0 to 255: `jhash ... mod 256 seed` of nftables, which scales instead of dividing."""
    return jhash(key, seed) * BUCKETS >> 32


@lru_cache(maxsize=1 << 16)
def address_bucket(packed: bytes, seed: int) -> int:
    """on_addr, from the client's address in network order (4 or 16 bytes)."""
    return bucket(packed, seed)


def port_bucket(packed: bytes, port: int, seed: int) -> int:
    """on_port, from the client's address and port; nftables pads the port to four bytes."""
    return bucket(packed + struct.pack("!Hxx", port), seed)


def ipid_bucket(identification: int, seed: int) -> int:
    """on_ipid, from the identification field of the IPv4 header."""
    return bucket(struct.pack("!H", identification), seed)


def client_bucket(kind: str, client: IPv4Address | IPv6Address, port: int, identification: int = 0) -> int:
    """The bucket of a client's packet under a rule with filter `kind`: on_addr, on_port or on_ipid (13.5.6).

    IPv6 has no identification in every packet: there, on_ipid counts as on_port.
    """
    if kind == "on_addr":
        return address_bucket(client.packed, SEED)
    if kind == "on_ipid" and client.version == 4:
        return ipid_bucket(identification, SEED)
    return port_bucket(client.packed, port, SEED)

"""Proving to each other that both know a password, without sending it (SPAKE2).

Who asks knows the password, the server knows its bcrypt hash; with the salt of the hash both can compute it. From it
both derive a key that nobody else can know: the request is signed with it and sealed, and so is the answer signed.
Somebody in between, or a stranger on the port of a server, learns nothing, and may guess one password for each try.

    POST /api/v1/proof {"user"}             -> {"node", "salt"}
    POST /api/v1/proof {"user", "message"}  -> {"message"}       then a signed request, within PROOF_SECONDS
"""

from __future__ import annotations

import ipaddress
import re

import bcrypt
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

PROOF_PATH = "/api/v1/proof"
PROOF_SECONDS = 30.0
MAX_BYTES = 72
"""Of a password: bcrypt looks at no more."""
MAX_ROUNDS = 14
"""A server that asks for more only wants our time: about a second."""
MESSAGE_BYTES = 33
_SALT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{22}", re.ASCII)


class ProofError(Exception):
    """A message of the other side that is none."""


def guesser(address: str) -> str:
    """Against whom a guess of a password counts: the address, or the network of which one owner of IPv6 addresses can
    choose any."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    mapped = found.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((found, 64), strict=False))


def salt_of(hashed: bytes) -> str:
    """The part of a bcrypt hash that tells how it was made."""
    return hashed[:29].decode("ascii")


def hash_with(password: str, salt: str) -> bytes:
    """The hash of a password. Raises ProofError for a salt that is none, or a password that bcrypt would cut."""
    found = _SALT.fullmatch(salt)
    if found is None or int(found[1]) > MAX_ROUNDS:
        raise ProofError("the server gave no salt of a password")
    data = password.encode()
    if len(data) > MAX_BYTES or b"\0" in data:
        raise ProofError(f"a password has at most {MAX_BYTES} bytes and no NUL")
    try:
        return bcrypt.hashpw(data, salt.encode())
    except ValueError:
        raise ProofError("the server gave no salt of a password") from None


class Asking:
    """The side that has the password."""

    def __init__(self, user: str, node: str, hashed: bytes) -> None:
        self._side = SPAKE2_A(_secret(hashed), idA=user.encode(), idB=node.encode())
        self.message: bytes = self._side.start()

    def key(self, message: bytes) -> bytes:
        """The common key, if the other side knows the hash. Raises ProofError."""
        return _finish(self._side, message)


def answer(user: str, node: str, hashed: bytes, message: bytes) -> tuple[bytes, bytes]:
    """The side that has the hash: its message and the common key, if the other one knows the password.
    Raises ProofError."""
    side = SPAKE2_B(_secret(hashed), idA=user.encode(), idB=node.encode())
    own: bytes = side.start()
    return own, _finish(side, message)


def _secret(hashed: bytes) -> bytes:
    """Rounds, salt and hash; the prefix before them has several spellings."""
    return hashed[4:]


def _finish(side: SPAKE2_A | SPAKE2_B, message: bytes) -> bytes:
    if len(message) != MESSAGE_BYTES:
        raise ProofError("a message of the wrong length")
    try:
        key: bytes = side.finish(message)
    except (SPAKEError, NotOnCurve, ValueError):
        raise ProofError("a message that is no point of the curve") from None
    return key

"""How both sides of `initssl req` show each other that they know the password of CA_admin, without sending it.

The certificate of the CA service is nobody's yet, so it proves nothing: whoever stands between could have the password
of who asks, and give him an authority of its own. Here the password makes a key (scrypt), and each side signs, with
that key, a number that the service has just drawn, the certificate that it sees on its end of the connection, and what
is asked or answered. Somebody in between has another certificate: his signatures, and ours to him, are worth nothing.

    Authorization: SafeKit-CA nonce=HEX,mac=HEX
    X-SafeKit-CA-Proof: HEX
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Literal

SCHEME = "SafeKit-CA"
PROOF = "X-SafeKit-CA-Proof"
NONCE_BYTES = SALT_BYTES = 16
_HEADER = re.compile(rf"{SCHEME} nonce=([0-9a-f]{{{2 * NONCE_BYTES}}}),mac=([0-9a-f]{{64}})")


def password_key(password: str, salt: bytes) -> bytes:
    """32 MB and a tenth of a second for each guess; the figures are part of the scheme, not of the message."""
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << 15, r=8, p=1, maxmem=64 << 20, dklen=32)


def _mac(key: bytes, side: Literal["client", "server"], nonce: str, certificate: bytes, *parts: bytes) -> str:
    digest = hmac.new(key, f"safekit-ca 1 {side} {nonce} ".encode() + hashlib.sha256(certificate).digest(), "sha256")
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def authorization(key: bytes, nonce: str, certificate: bytes, method: str, path: str, body: bytes) -> str:
    """The header of a request. `certificate`: of the service, DER."""
    mac = _mac(key, "client", nonce, certificate, method.encode(), path.encode(), body)
    return f"{SCHEME} nonce={nonce},mac={mac}"


def parse_authorization(header: str) -> tuple[str, str] | None:
    """Nonce and signature; None for something else."""
    found = _HEADER.fullmatch(header)
    return (found[1], found[2]) if found else None


def is_right(key: bytes, nonce: str, mac: str, certificate: bytes, method: str, path: str, body: bytes) -> bool:
    """Whether who asks has the password, and sees our certificate."""
    wanted = _mac(key, "client", nonce, certificate, method.encode(), path.encode(), body)
    return hmac.compare_digest(wanted, mac)


def answer_proof(key: bytes, nonce: str, certificate: bytes, status: int, body: bytes) -> str:
    """What shows who answers."""
    return _mac(key, "server", nonce, certificate, str(status).encode(), body)


def answer_is_right(key: bytes, nonce: str, certificate: bytes, status: int, body: bytes, mac: str) -> bool:
    """Whether the answer is of somebody who has the password and our connection."""
    return hmac.compare_digest(answer_proof(key, nonce, certificate, status, body), mac)

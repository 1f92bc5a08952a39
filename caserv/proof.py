"""How both sides of `initssl req` show each other that they know the password of CA_admin, without sending it.

The certificate of the CA service is nobody's yet, so it proves nothing: whoever stands between could have the password
of who asks, and give him an authority of its own. Both sides agree on a key that only those who know the password can
make (SPAKE2), with the certificate that each sees on its end of the connection as the name of the service: somebody in
between has another one, and gets another key; he may guess one password for each try. One request and its answer are
signed with the key, which is used up then.

    GET  /caserv/challenge                  -> {"salt"}
    POST /caserv/proof {"message"}          -> {"message", "session"}
    Authorization: SafeKit-CA session=HEX,mac=HEX          X-SafeKit-CA-Proof: HEX
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Literal

SCHEME = "SafeKit-CA"
PROOF = "X-SafeKit-CA-Proof"
SESSION_BYTES = 16
_HEADER = re.compile(rf"{SCHEME} session=([0-9a-f]{{{2 * SESSION_BYTES}}}),mac=([0-9a-f]{{64}})")


def name_of(certificate: bytes) -> str:
    """The service by its certificate (DER): the fingerprint that startcaserv prints."""
    return hashlib.sha256(certificate).hexdigest()


def _mac(key: bytes, side: Literal["client", "server"], *parts: bytes) -> str:
    digest = hmac.new(key, f"safekit-ca 1 {side}".encode(), "sha256")
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def authorization(key: bytes, session: str, method: str, path: str, body: bytes) -> str:
    """The header of a request."""
    return f"{SCHEME} session={session},mac={_mac(key, 'client', method.encode(), path.encode(), body)}"


def parse_authorization(header: str) -> tuple[str, str] | None:
    """Session and signature; None for something else."""
    found = _HEADER.fullmatch(header)
    return (found[1], found[2]) if found else None


def is_right(key: bytes, mac: str, method: str, path: str, body: bytes) -> bool:
    """Whether who asks has the password, and sees our certificate."""
    return hmac.compare_digest(_mac(key, "client", method.encode(), path.encode(), body), mac)


def answer_proof(key: bytes, status: int, body: bytes) -> str:
    """What shows who answers."""
    return _mac(key, "server", str(status).encode(), body)


def answer_is_right(key: bytes, status: int, body: bytes, mac: str) -> bool:
    """Whether the answer is of somebody who has the password and our connection."""
    return hmac.compare_digest(answer_proof(key, status, body), mac)

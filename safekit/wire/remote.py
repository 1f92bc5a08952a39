"""Requests between the servers of one cluster (guide 9.1): signed with the cluster key, no password in the way.

The header of a signed request:

    Authorization: SafeKit from=NODE,to=NODE,time=MS,nonce=HEX,body=HEX,key=HEX,sealed=0|1,mac=HEX

`body` is the hash of the body as sent, so the signature is checked before a byte of the body is read. `to` is
in it because each server remembers only the nonces that it saw itself. A body with secrets in it is sealed.
The answer to a signed request ends with a line of its own: the signature of status and content under the same
nonce. Only the standard library is imported: the command line pays for this module.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from safekit.wire.seal import derive

SCHEME = "SafeKit"
SIGNED_ANSWER = "X-SafeKit-Signed"
MAX_SKEW = 120.0
"""Seconds by which the clocks of two servers may differ."""
_NONCE = 16
_FIELDS = ("from", "to", "time", "nonce", "body", "key", "sealed", "mac")
_SEAL_NONCE = 12

Problem = Literal["malformed", "key", "altered", "target", "clock", "replay", "busy"]


class SignatureError(Exception):
    """A signed request or answer that must be refused. `kind` for programs, the text for people, `skew` in
    seconds (positive: the sender's clock is ahead) when the clock is the reason."""

    def __init__(self, kind: Problem, text: str, skew: float = 0.0) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.skew = skew


@dataclass(frozen=True)
class Signed:
    """An authentic request: who sent it, and what is needed to answer it."""

    sender: str
    nonce: str
    key: bytes
    body_hash: str
    sealed: bool


def body_hash(body: bytes) -> str:
    """Hash of a body as it is sent."""
    return hashlib.blake2b(body, digest_size=32).hexdigest()


def _key_id(key: bytes) -> str:
    return derive(key, "web", "id", size=6).hex()


def _request_mac(key: bytes, method: str, path: str, fields: dict[str, str]) -> str:
    text = "\n".join([method.upper(), path, *(fields[name] for name in _FIELDS[:-1])])
    return hashlib.blake2b(text.encode(), key=derive(key, "web", "request"), digest_size=32).hexdigest()


def sign(
    key: bytes,
    sender: str,
    target: str,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    sealed: bool = False,
    now: float | None = None,
) -> tuple[str, str]:
    """The Authorization header of a request for `path` (with its query), and the nonce of the answer."""
    fields = {
        "from": sender,
        "to": target,
        "time": str(round((time.time() if now is None else now) * 1000)),
        "nonce": os.urandom(_NONCE).hex(),
        "body": body_hash(body),
        "key": _key_id(key),
        "sealed": str(int(sealed)),
    }
    fields["mac"] = _request_mac(key, method, path, fields)
    return f"{SCHEME} " + ",".join(f"{name}={fields[name]}" for name in _FIELDS), fields["nonce"]


class Nonces:
    """What was seen lately. `limit` bounds the memory: beyond it requests are refused, never forgotten early.
    `note` is called with each new entry, so that a restart does not open the door to old requests."""

    def __init__(self, limit: int = 100_000, note: Callable[[str, float], None] = lambda nonce, until: None) -> None:
        self._seen: dict[str, float] = {}
        self._limit = limit
        self._note = note

    def remember(self, nonce: str, until: float) -> None:
        """Take over an entry of an earlier life."""
        self._seen[nonce] = until

    def entries(self, now: float) -> tuple[tuple[str, float], ...]:
        """The entries that still count."""
        return tuple((nonce, until) for nonce, until in self._seen.items() if until >= now)

    def use(self, nonce: str, until: float, now: float) -> None:
        """Raises SignatureError when the nonce was used before."""
        if nonce in self._seen:
            raise SignatureError("replay", "this request was received before: it is a copy")
        if len(self._seen) >= self._limit:
            self._seen = dict(self.entries(now))
            if len(self._seen) >= self._limit:
                raise SignatureError("busy", "too many requests in a short time; try again in a minute")
        self._seen[nonce] = until
        self._note(nonce, until)


def verify(
    header: str,
    keys: Sequence[bytes],
    me: str,
    method: str,
    path: str,
    nonces: Nonces,
    *,
    now: float | None = None,
    not_before: float = 0.0,
) -> Signed:
    """Check the Authorization header of a request; the caller then checks the body against `body_hash`.

    The clock and the nonce are looked at only when the signature is right: a stranger learns nothing. `not_before`:
    what was sent earlier may have been seen and forgotten (Unix time). Raises SignatureError.
    """
    fields = _parse(header)
    key = next((k for k in keys if hmac.compare_digest(_key_id(k), fields["key"])), None)
    if key is None:
        raise SignatureError(
            "key",
            f"{me} has another cluster key than {fields['from']}"
            if keys
            else f"{me} has no cluster key: its cluster is not configured",
        )
    if not hmac.compare_digest(_request_mac(key, method, path, fields), fields["mac"]):
        raise SignatureError("altered", "the signature does not fit the request: it was altered on its way")
    if fields["to"] != me:
        raise SignatureError("target", f"the request is for {fields['to']}, but this server is {me}")
    current = time.time() if now is None else now
    skew = int(fields["time"]) / 1000 - current
    if abs(skew) > MAX_SKEW:
        raise SignatureError(
            "clock",
            f"the clock of {fields['from']} is {_span(abs(skew))} {'ahead of' if skew > 0 else 'behind'}"
            f" the clock of {me}; at most {MAX_SKEW:.0f} s are accepted",
            skew,
        )
    if int(fields["time"]) / 1000 < not_before:
        raise SignatureError("replay", f"this request was sent before {me} was started; send it again")
    nonces.use(fields["nonce"], current + 2 * MAX_SKEW, current)
    return Signed(fields["from"], fields["nonce"], key, fields["body"], fields["sealed"] == "1")


def _parse(header: str) -> dict[str, str]:
    scheme, _, rest = header.partition(" ")
    parts = [part.partition("=") for part in rest.split(",")] if len(rest) < 2000 else []
    fields = {name.strip(): value.strip() for name, _, value in parts}
    if scheme != SCHEME or tuple(fields) != _FIELDS or len(parts) != len(_FIELDS):
        raise SignatureError("malformed", "the Authorization header is not a SafeKit signature")
    ascii_only = all(value.isascii() for value in fields.values())
    if not (ascii_only and fields["time"].isdecimal() and len(fields["time"]) < 20 and fields["sealed"] in ("0", "1")):
        raise SignatureError("malformed", "the Authorization header is not a SafeKit signature")
    if len(fields["nonce"]) != 2 * _NONCE or not set(fields["nonce"]) <= set("0123456789abcdef"):
        raise SignatureError("malformed", "the nonce is not a hexadecimal number of the right size")
    return fields


def _span(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def check_body(signed: Signed, body: bytes) -> bytes:
    """The content of the body, opened when it was sealed. Raises SignatureError."""
    if not hmac.compare_digest(body_hash(body), signed.body_hash):
        raise SignatureError("altered", "the body of the request was altered on its way")
    if not signed.sealed:
        return body
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(derive(signed.key, "web", "body")).decrypt(body[:_SEAL_NONCE], body[_SEAL_NONCE:], b"")
    except (InvalidTag, ValueError):
        raise SignatureError("altered", "the sealed body of the request cannot be opened") from None


def seal_body(key: bytes, content: bytes) -> bytes:
    """A body that only a holder of the key can read."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_SEAL_NONCE)
    return nonce + AESGCM(derive(key, "web", "body")).encrypt(nonce, content, b"")


def answer_mac(key: bytes, nonce: str, status: int, content: bytes) -> str:
    """Signature of an answer."""
    digest = hashlib.blake2b(f"{nonce} {status}\n".encode(), key=derive(key, "web", "answer"), digest_size=32)
    digest.update(content.strip())
    return digest.hexdigest()


def check_answer(key: bytes, nonce: str, status: int, data: bytes) -> bytes:
    """The content of a signed answer. Raises SignatureError."""
    content, _, mac = data.rstrip(b"\n").rpartition(b"\n")
    if not hmac.compare_digest(answer_mac(key, nonce, status, content).encode(), mac):
        raise SignatureError("altered", "the answer was altered on its way, or another server gave it")
    return content

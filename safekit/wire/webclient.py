"""Asking the web service of another server, within a bounded time. Standard library only."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import json
import select
import socket
import ssl
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safekit.disk.paths import node_name, safe
from safekit.wire.remote import SIGNED_ANSWER, SignatureError, check_answer, seal_body, sign
from safekit.wire.targets import Credentials, Target

CONNECT_SECONDS = 3.0
IDLE_SECONDS = 10.0
"""A service that runs a command sends something every second."""
MAX_ANSWER = 16 << 20
BLOCK = 64 << 10


class Upload:
    """A body that is sent in blocks: each has IDLE_SECONDS, however long the whole takes. `sent` is told the bytes."""

    def __init__(self, data: bytes, sent: Callable[[int], None] | None) -> None:
        self._data = data
        self._at = 0
        self._sent = sent

    def read(self, count: int = BLOCK) -> bytes:
        """The next block; empty at the end."""
        block = self._data[self._at : self._at + max(count, BLOCK)]
        if self._sent is not None:
            self._sent(self._at)
        self._at += len(block)
        return block


class CallError(Exception):
    """A server that did not do what it was asked: `kind` is connect, silent, slow, credentials, the code of a
    refusal, or a kind of SignatureError. The text does not repeat the server's name."""

    def __init__(self, kind: str, text: str, next_step: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.next_step = next_step


@dataclass(frozen=True)
class Ask:
    """A request. `secret`: its body is sealed with the cluster key where the server has it. `only_sealed`: never in
    clear, nor over HTTP with a former key even when it is `insecure`, because that server is known to have the present
    one. `sent` is told, by the thread that asks, how many bytes of the body are under way."""

    method: str
    path: str
    body: bytes = b""
    content_type: str = "application/json"
    secret: bool = False
    only_sealed: bool = False
    seconds: float = 120.0
    sent: Callable[[int], None] | None = None


@dataclass(frozen=True)
class _Attempt:
    """With a key of the cluster; with credentials; or with neither."""

    key: bytes | None = None
    credentials: Credentials | None = None


SEND_IT = "use https (guide 11.3); or, where nobody can stand in between, safekit -H ... --insecure"


def call(
    target: Target,
    ask: Ask,
    keys: Sequence[bytes],
    credentials: Credentials | None = None,
    *,
    insecure: bool = False,
) -> tuple[dict[str, Any], bool]:
    """The answer, and whether secrets went in clear. Tries the keys, then the credentials, then nothing at all
    (a service may be open).

    Over HTTP a password is proved, not sent, and a key is sealed: neither reaches a server that has not shown that it
    knows the same, unless it is `insecure`. Raises CallError.
    """
    refusal: CallError | None = None
    other_key = ""
    for attempt in _attempts(target, keys, target.credentials or credentials):
        open_wire = target.protocol == "http" and (insecure or attempt.credentials is None)
        in_clear = ask.secret and attempt.key is None and open_wire
        former = attempt.key not in (None, *keys[:1])
        if former and ask.secret and target.protocol == "http" and (ask.only_sealed or not insecure):
            # A key was changed because somebody has the former one, perhaps. He may stand in between, keep heartbeats
            # away, say that the key is another one, and would open what is sealed with the one that he has.
            continue
        if in_clear and ask.only_sealed and target.credentials is None and refusal is not None:
            raise CallError(
                "downgrade",
                f"safeadmin there has the key of the cluster, but {target.url} says {refusal.text!r}: another machine"
                " may stand in between; no key was sent",
                "if its cluster configuration or key was changed there just now, try again in a minute; otherwise see"
                " who has this address (ip neighbour), or carry it by hand: safekit cluster export",
            )
        if in_clear and not insecure:
            said = f"{refusal.text}; " if refusal is not None else ""
            if len(keys) > 1 and ask.secret and target.node:
                said += "it may have a former one, and so may whoever it was changed for; "
            text = f"{said}keys would go in clear to {target.url}, which has not shown who it is; none was sent"
            raise CallError("credentials", text, f"give the password of a user there, or {SEND_IT}")
        try:
            if attempt.credentials is not None and target.protocol == "http" and not insecure:
                return proved(target, ask, attempt.credentials), False
            return _once(target, ask, attempt), in_clear
        except CallError as error:
            # `altered` from a server that has just changed its key is worth another key too.
            if error.kind not in ("key", "credentials"):
                raise
            if error.kind == "key":
                other_key = other_key or error.text
            if refusal is None or error.kind == "credentials":
                refusal = error
    assert refusal is not None
    if other_key and refusal.kind == "credentials":
        # Why a server of the cluster asks for a password at all is what has to be known first.
        raise CallError("credentials", f"{other_key}; {refusal.text}", refusal.next_step)
    raise refusal


def _attempts(target: Target, keys: Sequence[bytes], credentials: Credentials | None) -> Iterator[_Attempt]:
    if target.credentials is not None:
        yield _Attempt(credentials=target.credentials)
        return
    if target.node:
        for key in keys:
            yield _Attempt(key=key)
    yield _Attempt(credentials=credentials)


def proved(target: Target, ask: Ask, who: Credentials) -> dict[str, Any]:
    """The answer to a request that is signed and sealed with a key which only those two can make that know the
    password. Raises CallError."""
    from safekit.wire.proof import Asking, ProofError, hash_with

    try:
        first = _step(target, {"user": who.user})
        node, salt = str(first.get("node")), str(first.get("salt"))
        if node in target.others:
            # One that is not in the cluster yet may have any name, but not that of another server.
            text = f"{target.url} is {node}, and not {target.node}: nothing was asked there"
            raise CallError("target", text, "see who answers at this address (ip neighbour), and cluster.xml")
        asking = Asking(who.user, node, hash_with(who.password, salt))
        second = _step(target, {"user": who.user, "message": asking.message.hex()})
        key = asking.key(bytes.fromhex(str(second.get("message"))))
    except (ProofError, ValueError) as error:
        text = f"{target.url} gave no proof of the password ({error}); it was not sent"
        raise CallError("altered", text, "see who answers at this address (ip neighbour)") from None
    try:
        return _once(replace(target, node=node), replace(ask, secret=True), _Attempt(key=key))
    except CallError as error:
        if error.kind not in ("key", "credentials"):
            raise
        raise CallError("credentials", "wrong name or password, or not that server", "it was not sent") from None


def _step(target: Target, data: dict[str, str]) -> dict[str, Any]:
    """One step of a proof. Raises CallError."""
    from safekit.wire.proof import PROOF_PATH

    try:
        return _once(target, Ask("POST", PROOF_PATH, json.dumps(data).encode(), seconds=IDLE_SECONDS), _Attempt())
    except CallError as error:
        if error.kind in ("connect", "silent", "slow", "wait", "busy"):
            raise
        text = f"{target.url} cannot prove that it knows the password ({error.text}); it was not sent"
        raise CallError("unproved", text, SEND_IT) from None


def _connection(target: Target) -> http.client.HTTPConnection:
    if target.protocol == "https":
        from safekit.wire.tls import TlsError, client_context

        try:
            context = client_context(safe() / "web" / "conf")
        except TlsError as error:
            raise CallError("certificate", error.text, error.next_step) from None
        return http.client.HTTPSConnection(target.host, target.port, timeout=CONNECT_SECONDS, context=context)
    return http.client.HTTPConnection(target.host, target.port, timeout=CONNECT_SECONDS)


def _once(target: Target, ask: Ask, attempt: _Attempt) -> dict[str, Any]:
    headers, body, nonce = {"Content-Type": ask.content_type, "Connection": "close"}, ask.body, ""
    if attempt.key is not None:
        if ask.secret:
            body = seal_body(attempt.key, body)
        headers["Authorization"], nonce = sign(
            attempt.key, node_name(), target.node, ask.method, ask.path, body, sealed=ask.secret
        )
    elif attempt.credentials is not None:
        pair = f"{attempt.credentials.user}:{attempt.credentials.password}".encode()
        headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
    connection = _connection(target)
    try:
        status, signed, data = _exchange(connection, ask, body, headers)
    except (TimeoutError, socket.gaierror, ConnectionError, ssl.SSLError, OSError, http.client.HTTPException) as error:
        raise _failed(target, error) from None
    finally:
        connection.close()
    if attempt.key is not None and (signed or status != 401):
        try:
            data = check_answer(attempt.key, nonce, status, data)
        except SignatureError as error:
            raise CallError("altered", error.text, "see who answers at this address; use HTTPS") from None
    return _judge(status, data)


def _exchange(
    connection: http.client.HTTPConnection, ask: Ask, body: bytes, headers: dict[str, str]
) -> tuple[int, bool, bytes]:
    connection.connect()
    try:
        return _talk(connection, ask, body, headers)
    except TimeoutError:
        raise _Silent from None


def _talk(
    connection: http.client.HTTPConnection, ask: Ask, body: bytes, headers: dict[str, str]
) -> tuple[int, bool, bytes]:
    assert connection.sock is not None
    connection.sock.settimeout(IDLE_SECONDS)
    if body:
        headers = {**headers, "Content-Length": str(len(body))}
        # A service that refuses a request does not take its body to the end: why is in the answer.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(ask.method, ask.path, body=Upload(body, ask.sent), headers=headers)
            if len(body) > BLOCK:
                _until_arrived(connection.sock, len(body), ask.sent)
    else:
        connection.request(ask.method, ask.path, headers=headers)
    deadline = time.monotonic() + ask.seconds + IDLE_SECONDS
    response = connection.getresponse()
    kept = bytearray()
    while data := response.read1(65536):
        kept += data
        if len(kept) > MAX_ANSWER:
            raise http.client.HTTPException(f"an answer of more than {MAX_ANSWER >> 20} MB")
        if time.monotonic() > deadline:
            raise _Slow(f"no end after {ask.seconds:.0f} s")
    return response.status, response.getheader(SIGNED_ANSWER) == "1", bytes(kept)


def _until_arrived(connection: socket.socket, total: int, sent: Callable[[int], None] | None) -> None:
    """Until the other side has what the kernel still holds, megabytes on a slow line: only then is it silent when it
    says nothing. Raises TimeoutError when nothing moves for IDLE_SECONDS."""
    last, since = -1, time.monotonic()
    while left := int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder):
        if left != last:
            last, since = left, time.monotonic()
            if sent is not None:
                sent(max(total - left, 0))
        elif time.monotonic() - since > IDLE_SECONDS:
            raise TimeoutError
        if select.select([connection], [], [], 0.05)[0]:
            return  # the web service answers already
    if sent is not None:
        sent(total)


class _Silent(OSError):
    """A server that took the connection and then said nothing more."""


class _Slow(OSError):
    """The answer goes on and on."""


def _failed(target: Target, error: Exception) -> CallError:
    web = "is its web service running? there: safekit webserver start"
    if isinstance(error, _Slow):
        return CallError("slow", str(error), "it may still end: safekit log there shows it")
    if isinstance(error, socket.gaierror):
        return CallError(
            "connect", f"{target.host} has no address: {error.strerror}", "correct the name, or use the IP"
        )
    if isinstance(error, _Silent):
        return CallError("silent", f"{target.url} said nothing for {IDLE_SECONDS:.0f} s", web)
    if isinstance(error, TimeoutError):
        return CallError(
            "connect",
            f"no connection to {target.url} within {CONNECT_SECONDS:.0f} s",
            "is the server up, and the port open in its firewall?",
        )
    if isinstance(error, ssl.SSLError):
        from safekit.wire.tls import refusal_of

        text, step = refusal_of(error, target.host)
        return CallError("certificate", f"{target.url}: {text}", step)
    own = safe() / "web" / "conf" / "admin.crt"
    if target.protocol == "https" and isinstance(error, ConnectionResetError) and own.exists():
        # With TLS 1.3 a client hears of the refusal of its certificate when it reads the answer, if at all.
        step = "here: SAFE/web/bin/checkcert -t client; there the reason is in journalctl -u safewebserver"
        return CallError("certificate", f"{target.url} closed the connection: it may refuse {own}", step)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return CallError("connect", f"{target.url}: {reason}", web)


def _judge(status: int, data: bytes) -> dict[str, Any]:
    """The JSON object of an answer. Raises CallError for a refusal."""
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise CallError(
            "http", f"an answer that is not of SafeKit (HTTP status {status})", "what listens on this port?"
        )
    if status >= 400:
        raise CallError(
            str(answer.get("error", "http")),
            str(answer.get("text", f"HTTP status {status}")),
            str(answer.get("next_step", "")),
        )
    return answer

"""What a message on the local bus looks like, and one request without an event loop.

Apart from the endpoints of `safekit.bus.endpoint` so that a command does not pay for importing asyncio.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import msgpack

from safekit.disk.paths import bus_key_file, mapper_port
from safekit.wire.seal import SealError, load_key, mac_open, mac_seal

LOOPBACK = "127.0.0.1"
MAX_MESSAGE = 60_000
RESEND_INTERVAL = 0.25
ADMIN = "safeadmin"

Fields = dict[str, Any]


class BusError(Exception):
    """A refusal by the process that was asked: a stable code, and a text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class BusTimeout(BusError):
    """No answer in time: the process is dead, stopped or overloaded."""

    def __init__(self, target: str, op: str, timeout: float) -> None:
        super().__init__("timeout", f"{target} did not answer {op!r} within {timeout:g} s")


class UnknownTarget(BusError):
    """No process of that name has registered."""

    def __init__(self, target: str) -> None:
        super().__init__("unknown_target", f"{target} is not running")


def bus_key() -> bytes:
    """The key of the local bus. Raises BusError with the reason: usually a user outside group safekit."""
    path = bus_key_file()
    try:
        return load_key(path)
    except PermissionError:
        raise BusError(
            "permission", "only root and members of group safekit may command SafeKit (adduser USER safekit)"
        ) from None
    except (OSError, ValueError) as error:
        raise BusError("no_key", f"{path}: {error}; run safekitinstall again to create it") from None


def encode(message: Fields, key: bytes) -> bytes:
    """A datagram. Raises BusError('too_long')."""
    payload = msgpack.packb(message, use_bin_type=True)
    if len(payload) > MAX_MESSAGE:
        raise BusError("too_long", f"message of {len(payload)} bytes, at most {MAX_MESSAGE}")
    return mac_seal(key, payload)


def decode(datagram: bytes, key: bytes) -> Fields:
    """The message of a datagram. Raises SealError for anything that is not an authentic map."""
    payload = mac_open(key, datagram)
    try:
        message = msgpack.unpackb(payload, raw=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise SealError("malformed", f"not a message: {error}") from None
    if not isinstance(message, dict):
        raise SealError("malformed", "not a map")
    return message


def request_sync(target: str, op: str, timeout: float = 2.0, sender: str = "cli", **fields: Any) -> Fields:
    """One request without an event loop, for commands. Raises as `Endpoint.request`."""
    key = bus_key()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOOPBACK, 0))
        port = mapper_port()
        if target != ADMIN:
            reply = _exchange_sync(sock, key, ADMIN, port, "map_lookup", {"name": target}, timeout, sender)
            port = int(reply.get("port", 0))
            if not port:
                raise UnknownTarget(target)
        return _exchange_sync(sock, key, target, port, op, fields, timeout, sender)


def _exchange_sync(
    sock: socket.socket, key: bytes, target: str, port: int, op: str, fields: Fields, timeout: float, sender: str
) -> Fields:
    identity = int.from_bytes(os.urandom(7), "big") + 1
    data = encode({**fields, "id": identity, "op": op, "from": sender}, key)
    deadline = time.monotonic() + timeout
    sock.connect((LOOPBACK, port))
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise BusTimeout(target, op, timeout)
        try:
            sock.send(data)
            sock.settimeout(min(RESEND_INTERVAL, remaining))
            reply = decode(sock.recv(65536), key)
        except (TimeoutError, SealError):
            continue
        except ConnectionRefusedError:
            # Nobody listens (yet): a command started while safeadmin restarts waits for it.
            time.sleep(min(0.05, remaining))
            continue
        if reply.get("re") != identity:
            continue
        if not reply.get("ok"):
            raise BusError(str(reply.get("code", "error")), str(reply.get("text", "refused")))
        return reply

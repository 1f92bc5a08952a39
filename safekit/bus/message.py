"""What a message on the local bus looks like, and one request without an event loop.

Apart from the endpoints of `safekit.bus.endpoint` so that a command does not pay for importing asyncio.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import msgpack

from safekit.disk.paths import bus_key_file, mapper_port
from safekit.wire.seal import SealError, load_key, mac_open, mac_seal

LOOPBACK = "127.0.0.1"
MAX_MESSAGE = 60_000
RESEND_INTERVAL = 0.25
LOOKUP_INTERVAL = 0.02
ADMIN = "safeadmin"

NOT_MINE = "not_mine"
"""Code of a refusal: the request is for another process, or for another life of this one."""
RESTARTED = "restarted"
"""Code of a failure: the process that was asked is gone, and what it has done is not known."""

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a process is reached, and which life of it: `incarnation` is empty where the sender need not know it.

    A port alone does not name a process: the kernel gives it to another one as soon as it is free.
    """

    port: int
    incarnation: str = ""


def addressed(message: Fields, address: Address, target: str) -> Fields:
    """The message with its addressee."""
    return {**message, "to": target, "incarnation": address.incarnation}


def is_for(message: Fields, name: str, incarnation: str) -> bool:
    """Whether a message is for this process, in this life: the one place where that is judged."""
    return message.get("to") == name and message.get("incarnation") in ("", incarnation)


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


class Restarted(BusError):
    """The process died, or was replaced, while it was asked for something that must not be done twice."""

    def __init__(self, target: str, op: str) -> None:
        super().__init__(
            RESTARTED,
            f"{target} was started again while it was asked for {op!r}: whether it did it is not known; "
            "look at safekit state, then ask again if it did not",
        )


class UnknownTarget(BusError):
    """No process of that name has registered."""

    def __init__(self, target: str) -> None:
        super().__init__("unknown_target", f"{target} is not running")


@dataclass(frozen=True)
class Request:
    """What a handler gets: the operation, the name of the sender, the fields."""

    op: str
    sender: str
    fields: Fields = field(default_factory=dict)

    def text(self, name: str, default: str | None = None) -> str:
        """A string field. Raises BusError('bad_request') when it is missing or not a string."""
        value = self.fields.get(name, default)
        if not isinstance(value, str):
            raise BusError("bad_request", f"{self.op}: field {name!r} must be a string")
        return value


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


def by_word_sync(
    target: str, op: str, timeout: float = 2.0, sender: str = "cli", repeatable: bool = True, **fields: Any
) -> Fields:
    """One request without an event loop, for commands. Raises as `Endpoint.by_word`."""
    key = bus_key()
    deadline = time.monotonic() + timeout
    message = {**fields, "id": _identity(), "op": op, "from": sender}
    asked = ""
    while True:
        address = _lookup_sync(key, target, timeout, sender, repeatable)
        if asked not in ("", address.incarnation) and not repeatable:
            raise Restarted(target, op)
        try:
            return _exchange_sync(key, target, address, message, deadline, timeout)
        except _Elsewhere as elsewhere:
            asked = address.incarnation if elsewhere.gone else asked
            time.sleep(LOOKUP_INTERVAL)


def _identity() -> int:
    return int.from_bytes(os.urandom(7), "big") + 1


class _Elsewhere(Exception):
    """The process is not at that address. gone: it may have been there when it was asked first, and have done it."""

    def __init__(self, *, gone: bool) -> None:
        super().__init__()
        self.gone = gone


def _lookup_sync(key: bytes, target: str, timeout: float, sender: str, repeatable: bool) -> Address:
    """Where a process is now. Of safeadmin, which has a port of its own, only what must not be done twice has to know
    which life it asks."""
    admin = Address(mapper_port())
    if target == ADMIN and repeatable:
        return admin
    message = {"id": _identity(), "op": "map_lookup", "from": sender, "name": target}
    reply = _exchange_sync(key, ADMIN, admin, message, time.monotonic() + timeout, timeout)
    if not reply.get("port"):
        if target == ADMIN:
            return admin  # one of the release before, which does not tell: this command may be the upgrade's
        raise UnknownTarget(target)
    return Address(int(reply["port"]), str(reply.get("incarnation") or ""))


def _exchange_sync(
    key: bytes, target: str, address: Address, message: Fields, deadline: float, timeout: float
) -> Fields:
    """Send until an answer comes. Raises BusError, and _Elsewhere when the process must be looked for again."""
    data = encode(addressed(message, address, target), key)
    moves = target != ADMIN or bool(address.incarnation)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOOPBACK, 0))
        sock.connect((LOOPBACK, address.port))
        for attempt in itertools.count():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise BusTimeout(target, str(message["op"]), timeout)
            try:
                sock.send(data)
                sock.settimeout(min(RESEND_INTERVAL, remaining))
                reply = decode(sock.recv(65536), key)
            except (TimeoutError, SealError):
                continue
            except ConnectionRefusedError:
                # Nobody listens (yet): a command started while safeadmin restarts waits for it.
                if moves:
                    # Of the first attempt nobody has heard; of an earlier one somebody may have.
                    raise _Elsewhere(gone=attempt > 0) from None
                time.sleep(min(0.05, remaining))
                continue
            if reply.get("re") != message["id"]:
                continue
            if not reply.get("ok"):
                if reply.get("code") == NOT_MINE and moves:
                    # Who refused has done nothing. Whoever was here when an earlier attempt came may have.
                    raise _Elsewhere(gone=attempt > 0)
                raise BusError(str(reply.get("code", "error")), str(reply.get("text", "refused")))
            return reply
        raise AssertionError("unreachable")

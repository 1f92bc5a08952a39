"""The local bus: sealed UDP datagrams on the loopback between the processes of one server.

Every process has an endpoint with a name ("safeadmin", "AM/heart"). safeadmin's mapper, on a fixed port,
knows the port of each name. A restarted safeadmin asks the ports that it knew before to register again;
besides, endpoints do so by themselves from time to time. Requests have ids and time-outs; a request that is
repeated because its reply was lost is answered again from memory, not executed twice.

Every message names the process that it is for, and which life of it. A port that has become another's since it was
looked up does not make that one obey: it refuses, and the sender looks the process up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, cast

from safekit.bus.asking import Answer, Ask, answered, name_of, request_fields
from safekit.bus.message import (
    ADMIN,
    LOOKUP_INTERVAL,
    LOOPBACK,
    MAX_MESSAGE,
    NOT_MINE,
    RESEND_INTERVAL,
    Address,
    BusError,
    BusTimeout,
    Fields,
    Request,
    Restarted,
    UnknownTarget,
    addressed,
    bus_key,
    by_word_sync,
    decode,
    encode,
    is_for,
)
from safekit.disk.paths import mapper_port
from safekit.process.tasks import Beside
from safekit.wire.seal import SealError

__all__ = [
    "ADMIN",
    "LOOPBACK",
    "MAX_MESSAGE",
    "BusError",
    "BusTimeout",
    "Endpoint",
    "Fields",
    "Handler",
    "Request",
    "UnknownTarget",
    "bus_key",
    "decode",
    "encode",
    "by_word_sync",
]

FIRST_REGISTRATIONS = 3
"""One a second: the mapper may be starting too."""
REGISTER_INTERVAL = 5.0
"""The later ones."""
REGISTER_AGAIN = "register_again"
TOLD_SECONDS = 2.0
_REMEMBERED_REPLIES = 256
_ENVELOPE = frozenset(("id", "op", "from", "to", "incarnation"))


Handler = Callable[[Request], Awaitable[Fields | None]]


class Endpoint(asyncio.DatagramProtocol):
    """One process on the bus."""

    def __init__(self, name: str, handler: Handler, key: bytes, admin_port: int | None) -> None:
        self.name = name
        self._handler = handler
        self._key = key
        self._fixed_admin_port = admin_port
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: dict[int, asyncio.Future[Fields]] = {}
        self._ids = itertools.count(int.from_bytes(os.urandom(5), "big") << 20)
        self.incarnation = os.urandom(8).hex()
        self._addresses: dict[str, Address] = {}
        self._replies: OrderedDict[tuple[int, int], bytes | None] = OrderedDict()
        self._beside = Beside()
        self._registration: asyncio.Task[None] | None = None
        self.rejected = 0

    @classmethod
    async def open(cls, name: str, handler: Handler, *, admin_port: int | None = None, port: int = 0) -> Endpoint:
        """Bind to the loopback (a free port unless given) and register with the mapper.

        Raises BusError when the key cannot be read, OSError when the port is taken.
        """
        endpoint = cls(name, handler, bus_key(), admin_port)
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((LOOPBACK, port))
        await loop.create_datagram_endpoint(lambda: endpoint, sock=sock)
        if name != ADMIN:
            endpoint._registration = loop.create_task(endpoint._keep_registered())
        return endpoint

    @property
    def port(self) -> int:
        """Our UDP port."""
        assert self._transport is not None
        return int(self._transport.get_extra_info("sockname")[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def error_received(self, exc: Exception) -> None:
        # ICMP port unreachable: the target's process is gone; the request's own time-out tells its caller.
        pass

    async def close(self) -> None:
        """Leave the bus."""
        if self._registration is not None:
            self._registration.cancel()
        self._beside.cancel()
        if self._transport is not None:
            self._transport.close()

    def _send(self, message: Fields, port: int) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(encode(message, self._key), (LOOPBACK, port))

    async def _keep_registered(self) -> None:
        for _ in range(FIRST_REGISTRATIONS):
            self._register()
            await asyncio.sleep(1.0)
        while True:
            self._register()
            await asyncio.sleep(REGISTER_INTERVAL)

    def _register(self) -> None:
        fields = {"name": self.name, "pid": os.getpid(), "port": self.port, "life": self.incarnation}
        message = {**fields, "id": 0, "op": "map_register", "from": self.name}
        admin = self._admin
        self._send(addressed(message, admin, ADMIN), admin.port)

    @property
    def _admin(self) -> Address:
        """safeadmin is whoever holds its port and its name, in any life. Another life may have another port."""
        return Address(self._fixed_admin_port or mapper_port())

    def ask_to_register(self, port: int) -> None:
        """Have the endpoint of that port, whosever it is, register with the mapper now."""
        self._send({"id": 0, "op": REGISTER_AGAIN, "from": self.name}, port)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        try:
            message = decode(data, self._key)
        except SealError:
            self.rejected += 1
            return
        identity = message.get("id")
        if "re" in message:
            future = self._waiting.get(message["re"]) if isinstance(message["re"], int) else None
            if future is not None and not future.done():
                future.set_result(message)
            return
        op, sender = message.get("op"), message.get("from")
        if not isinstance(op, str) or not isinstance(sender, str) or not isinstance(identity, int):
            self.rejected += 1
            return
        port = int(addr[1])
        if op == REGISTER_AGAIN:
            if self.name != ADMIN:
                self._register()
            return
        if not is_for(message, self.name, self.incarnation):
            self.rejected += 1
            if identity:
                text = f"{self.name} has this port; the request is for {message.get('to')!r}"
                self._send({"re": identity, "ok": False, "code": NOT_MINE, "text": text}, port)
            return
        if identity:
            known = (port, identity)
            if known in self._replies:
                reply = self._replies[known]
                if reply is not None and self._transport is not None:
                    self._transport.sendto(reply, (LOOPBACK, port))
                return
            self._replies[known] = None
            while len(self._replies) > _REMEMBERED_REPLIES:
                self._replies.popitem(last=False)
        fields = {k: v for k, v in message.items() if k not in _ENVELOPE}
        fields["_port"] = port
        self._beside.start(self._serve(Request(op, sender, fields), identity, port))

    async def _serve(self, request: Request, identity: int, port: int) -> None:
        try:
            answer: Fields = {"re": identity, "ok": True, **(await self._handler(request) or {})}
        except BusError as error:
            answer = {"re": identity, "ok": False, "code": error.code, "text": error.text}
        except Exception as error:
            # The asker must not wait for its time-out; the defect itself goes to this process's error log.
            answer = {"re": identity, "ok": False, "code": "internal", "text": f"{type(error).__name__}: {error}"}
            if identity:
                self._reply(answer, identity, port)
            raise
        if identity:
            self._reply(answer, identity, port)

    def _reply(self, answer: Fields, identity: int, port: int) -> None:
        try:
            data = encode(answer, self._key)
        except BusError as error:
            data = encode({"re": identity, "ok": False, "code": error.code, "text": error.text}, self._key)
        if (port, identity) in self._replies:
            self._replies[port, identity] = data
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, (LOOPBACK, port))

    async def lookup(self, target: str, timeout: float = 2.0) -> Address:
        """Where a process is now. Raises UnknownTarget, BusTimeout when safeadmin is down."""
        if target == ADMIN:
            return self._admin
        reply = await self._exchange(ADMIN, self._admin, "map_lookup", {"name": target}, timeout)
        if not reply.get("port"):
            raise UnknownTarget(target)
        found = Address(int(reply["port"]), str(reply.get("incarnation") or ""))
        self._addresses[target] = found
        return found

    async def _found(self, target: str, deadline: float) -> Address:
        """The address of a process, which may be about to start. Raises UnknownTarget at the deadline."""
        while (known := self._admin if target == ADMIN else self._addresses.get(target)) is None:
            try:
                return await self.lookup(target, max(deadline - time.monotonic(), 0.05))
            except UnknownTarget:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(LOOKUP_INTERVAL)
        return known

    async def _exchange(
        self, target: str, address: Address, op: str, fields: Fields, timeout: float, repeatable: bool = True
    ) -> Fields:
        """Send until an answer comes, wherever the process is meanwhile."""
        identity = next(self._ids)
        message = {**fields, "id": identity, "op": op, "from": self.name}
        deadline, attempts = time.monotonic() + timeout, 0
        try:
            while True:
                future: asyncio.Future[Fields] = asyncio.get_running_loop().create_future()
                self._waiting[identity] = future
                self._send(addressed(message, address, target), address.port)
                attempts += 1
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise BusTimeout(target, op, timeout)
                try:
                    reply = await asyncio.wait_for(future, min(RESEND_INTERVAL, remaining))
                except TimeoutError:
                    reply = None
                if reply is not None and reply.get("code") != NOT_MINE:
                    break
                if reply is not None:
                    # Who refused has done nothing, and it is not whom we want. Whoever had the port when an earlier
                    # attempt went there may have.
                    if attempts > 1 and not repeatable:
                        raise Restarted(target, op)
                    if self._addresses.get(target) == address:
                        del self._addresses[target]
                    await asyncio.sleep(LOOKUP_INTERVAL)
                    address, attempts = await self._found(target, deadline), 0
                elif target != ADMIN:
                    # It may have been started again: the next attempt goes where it is then.
                    self._beside.start(self._refresh(target))
                    current = self._addresses.get(target, address)
                    if current.incarnation != address.incarnation and not repeatable:
                        raise Restarted(target, op)
                    address = current
        finally:
            self._waiting.pop(identity, None)
        if not reply.get("ok"):
            raise BusError(str(reply.get("code", "error")), str(reply.get("text", "refused")))
        return reply

    async def by_word(
        self, target: str, op: str, timeout: float = 2.0, *, repeatable: bool = True, **fields: Any
    ) -> Fields:
        """Ask and wait for the answer. Everybody but the tests of this room asks by a declared request (`ask`).

        A target that has just been started is waited for, one that was restarted on another port is found
        again, within `timeout` seconds; what is not `repeatable` is not asked of a successor. Raises BusError (a
        refusal), BusTimeout, UnknownTarget, Restarted.
        """
        deadline = time.monotonic() + timeout
        if not repeatable:
            # What was known may be a life that has ended; asked there, nobody could tell whether it was heard.
            self._addresses.pop(target, None)
        address = await self._found(target, deadline)
        try:
            left = max(deadline - time.monotonic(), 0.05)
            return await self._exchange(target, address, op, fields, left, repeatable)
        except BusTimeout:
            self._addresses.pop(target, None)
            raise

    async def ask(self, module: str, ask: Ask[Answer], timeout: float = 2.0, instance: str = "") -> Answer:
        """Ask a process of a module, or safeadmin, and wait for its typed answer. Raises as `by_word`."""
        fields = request_fields(ask)
        reply = await self.by_word(name_of(module, ask, instance), ask.op, timeout, repeatable=ask.repeatable, **fields)
        return answered(ask, reply)

    def tell(self, module: str, ask: Ask[Any]) -> None:
        """Ask without waiting for the answer; what is told to a process that is not there is lost."""
        self._beside.start(self._tell(name_of(module, ask), ask))

    async def _refresh(self, target: str) -> None:
        with contextlib.suppress(BusError):
            await self.lookup(target, 1.0)

    async def _tell(self, target: str, ask: Ask[Any]) -> None:
        with contextlib.suppress(BusError):
            if target not in self._addresses:
                await self.lookup(target)
            await self.by_word(target, ask.op, TOLD_SECONDS, **request_fields(ask))

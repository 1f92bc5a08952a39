"""Client of the primary's resynchronisation service: one sealed TCP connection, one request at a time."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from typing import Any

import msgpack

from safekit.rfs.wire import Kind, Op, WireError, connect, decode_map, expect
from safekit.wire.keys import wire_keys


@dataclass(frozen=True, slots=True)
class Address:
    """Where the primary's nfsbox listens, and from which of our addresses."""

    host: str
    port: int
    source: str | None
    module: str
    node: str
    session: int


class Connection:
    """`timeout` (reitimeout, seconds) bounds every request."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Raises OSError when the primary cannot be reached or refuses, ValueError for a damaged key file."""
        keys = wire_keys(address.module)
        self._timeout = timeout
        self._channel, self.welcome = connect(
            (address.host, address.port),
            address.module,
            Kind.RESYNC,
            keys,
            {"node": address.node, "session": address.session},
            source=address.source,
            timeout=min(timeout, 30.0),
        )
        self._busy = threading.Lock()

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """The fields of the answer. Raises OSError: the connection is lost, the answer is late, or a refusal."""
        with self._busy:
            self._channel.send(Op.REQUEST, body=msgpack.packb({"op": op, **fields}), timeout=self._timeout)
            answer = decode_map(expect(self._channel.receive_within(self._timeout), Op.REPLY))
        if not answer.get("ok"):
            code = answer.get("errno")
            code = code if isinstance(code, int) and code else errno.EPROTO
            raise OSError(code, str(answer.get("text") or os.strerror(code)))
        return answer

    def close(self) -> None:
        """Cut the connection; a thread waiting in `call` gets a WireError."""
        self._channel.shutdown()


__all__ = ["Address", "Connection", "WireError"]

"""Messages of the modules to SNMP managers (guide 10.8.2, skTrapLogMesg): one notification per I or E message.

A module that loops writes thousands of lines; its manager gets a bounded number of them, and a count of those that it
did not get. Nothing here waits for a manager: a dead one costs a datagram.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pyasn1.codec.ber import decoder, encoder
from pyasn1.error import PyAsn1Error
from pysnmp.error import PySnmpError
from pysnmp.proto import api, rfc1902
from pysnmp.proto.proxy import rfc2576

from safeagent.engine import encoded
from safeagent.inventory import Module
from safeagent.tree import (
    LOG,
    MODULE_ENTRY,
    SYS_UPTIME,
    TRAP_LOG_MESSAGE,
    TRAP_OID,
    Counters,
    Type,
    Value,
    counter,
    date,
    integer,
    module_columns,
    text,
)
from safekit.log.module import Line
from safekit.model.snmpd import Oid, Sink, SinkKind
from safekit.process.tasks import Beside

BURST = 40
"""Messages of one module at once: a failover writes about twenty."""
PER_SECOND = 2.0
MAX_MESSAGE = 1000
"""Bytes of a message in a notification, so that it stays one datagram on the wire."""
INFORM_SECONDS = 1.0
INFORM_TRIES = 6
MAX_INFORMS = 50
"""That wait for their answer; more are dropped."""
LOOKUP_SECONDS = 5.0
LEVELS = {"E": 1, "I": 2}

Pairs = list[tuple[Oid, Value]]


@dataclass
class Bucket:
    """Lets BURST pass at once and PER_SECOND in the long run. Times are monotonic seconds."""

    left: float = BURST
    at: float = 0.0

    def take(self, now: float) -> bool:
        """Whether one more may pass now."""
        self.left = min(BURST, self.left + (now - self.at) * PER_SECOND)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass
class Limit:
    """A bucket per module."""

    buckets: dict[str, Bucket] = field(default_factory=dict)

    def take(self, module: str, now: float) -> bool:
        return self.buckets.setdefault(module, Bucket(at=now)).take(now)


def when(line: Line) -> float:
    """Unix time of a line; 0 when its date is damaged."""
    try:
        return datetime.fromisoformat(line.date).timestamp()
    except ValueError:
        return 0.0


def pairs_of(module: Module, line: Line, uptime: Value, counters: Counters) -> Pairs:
    """What a notification holds, in the order of skTrapLogMesg."""
    columns = module_columns(module)
    objects = [
        ((*MODULE_ENTRY, 3, module.id), columns[3]),
        ((*MODULE_ENTRY, 2, module.id), columns[2]),
        ((*MODULE_ENTRY, 7, module.id), columns[7]),
        ((*LOG, 1, 0), integer(LEVELS.get(line.level, 2))),
        ((*LOG, 2, 0), text(line.code)),
        ((*LOG, 3, 0), text(line.english, MAX_MESSAGE)),
        ((*LOG, 4, 0), text(line.node)),
        ((*LOG, 5, 0), date(when(line))),
        ((*LOG, 6, 0), counter(counters.traps_dropped)),
    ]
    return [(SYS_UPTIME, uptime), (TRAP_OID, Value(Type.OID, TRAP_LOG_MESSAGE)), *objects]


def pdu_of(kind: SinkKind, pairs: Pairs, number: int) -> Any:
    """What a notification or an inform is, before it is a message of a version."""
    made = [(rfc1902.ObjectName(oid), encoded(value)) for oid, value in pairs]
    two = api.PROTOCOL_MODULES[api.SNMP_VERSION_2C]
    pdu = two.InformRequestPDU() if kind is SinkKind.INFORM else two.SNMPv2TrapPDU()
    two.apiPDU.set_defaults(pdu)
    two.apiPDU.set_request_id(pdu, number)
    two.apiPDU.set_varbinds(pdu, made)
    return pdu


def packet(kind: SinkKind, community: str, pairs: Pairs, number: int) -> bytes:
    """A whole message of SNMPv1 or v2c."""
    pdu = pdu_of(kind, pairs, number)
    two = api.PROTOCOL_MODULES[api.SNMP_VERSION_2C]
    version = two
    if kind is SinkKind.TRAP1:
        version = api.PROTOCOL_MODULES[api.SNMP_VERSION_1]
        pdu = rfc2576.v2_to_v1(pdu)
    message = version.Message()
    version.apiMessage.set_defaults(message)
    version.apiMessage.set_community(message, rfc1902.OctetString(community.encode()))
    version.apiMessage.set_pdu(message, pdu)
    return bytes(encoder.encode(message))


def answered(data: bytes) -> int | None:
    """The number of the inform that a manager acknowledges; None for anything else."""
    two = api.PROTOCOL_MODULES[api.SNMP_VERSION_2C]
    try:
        message, _ = decoder.decode(data, asn1Spec=two.Message())
        pdu = two.apiMessage.get_pdu(message)
        return int(two.apiPDU.get_request_id(pdu)) if pdu.isSameTypeWith(two.GetResponsePDU()) else None
    except (PyAsn1Error, TypeError, ValueError, KeyError, IndexError):
        return None


async def _found(sink: Sink) -> tuple[int, Any]:
    """Family and address of a sink. Raises OSError, TimeoutError."""
    flags = 0 if any(c not in "0123456789abcdefABCDEF.:%" for c in sink.host) else socket.AI_NUMERICHOST
    if flags:  # at once, so that messages keep their order
        found = socket.getaddrinfo(sink.host, sink.port, type=socket.SOCK_DGRAM, flags=flags)
    else:
        async with asyncio.timeout(LOOKUP_SECONDS):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(sink.host, sink.port, type=socket.SOCK_DGRAM)
    return found[0][0], found[0][4]


class _Socket(asyncio.DatagramProtocol):
    """Takes acknowledgements."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard = heard

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        number = answered(data)
        if number is not None:
            self._heard(number)

    def error_received(self, exc: Exception) -> None:
        pass  # nobody listens there (yet): a notification is an attempt, an inform is repeated


class Sender:
    """Sends to all sinks."""

    def __init__(self, sinks: Sequence[Sink], counters: Counters) -> None:
        self._sinks = tuple(sinks)
        self._counters = counters
        self._limit = Limit()
        self._transports: dict[int, asyncio.DatagramTransport] = {}
        self._numbers = itertools.count(int.from_bytes(os.urandom(3), "big") + 1)
        self._waiting: dict[int, asyncio.Event] = {}
        self._beside = Beside()
        self._complained: set[str] = set()
        self._opening = asyncio.Lock()
        self.secure: Callable[[Sink, int, Any, Any, Callable[[str], None]], None] | None = None
        """How a message is sent by SNMPv3: see engine.Agent.notify."""

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._sinks)

    def tell(self, module: Module, line: Line, uptime: Value) -> None:
        """Send one message, or count it as dropped. Returns at once."""
        if not self._limit.take(module.name, time.monotonic()) or len(self._waiting) >= MAX_INFORMS:
            self._counters.traps_dropped += 1
            return
        pairs = pairs_of(module, line, uptime, self._counters)
        self._counters.traps_sent += 1
        for sink in self._sinks:
            number = next(self._numbers) & 0x7FFFFFFF
            if sink.user:
                work = self._send_secure(sink, pdu_of(sink.kind, pairs, number), number)
            else:
                work = self._send(sink, packet(sink.kind, sink.community, pairs, number), number)
            self._beside.start(work)

    async def _send(self, sink: Sink, data: bytes, number: int) -> None:
        try:
            family, address = await _found(sink)
            async with self._opening:
                transport = await self._transport(family)
        except (OSError, TimeoutError) as error:
            self._failed(sink, str(error))
            return
        self._complained.discard(sink.host)
        if sink.kind is not SinkKind.INFORM:
            transport.sendto(data, address)
            return
        done = self._waiting[number] = asyncio.Event()
        try:
            for _ in range(INFORM_TRIES):
                transport.sendto(data, address)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INFORM_SECONDS):
                        await done.wait()
                        return
        finally:
            del self._waiting[number]

    def _failed(self, sink: Sink, why: str) -> None:
        self._counters.traps_dropped += 1
        if sink.host not in self._complained:
            self._complained.add(sink.host)
            print(f"safeagent: {sink.kind.value} {sink.host}: {why or 'no answer'}", file=sys.stderr, flush=True)

    async def _send_secure(self, sink: Sink, pdu: Any, number: int) -> None:
        """By the engine, which repeats an inform by itself."""
        done = asyncio.Event()
        answers: list[str] = []

        def told(error: str) -> None:
            answers.append(error)
            done.set()

        try:
            assert self.secure is not None, "the engine is there before anything is told"
            family, address = await _found(sink)
            self.secure(sink, family, address, pdu, told)
            if sink.kind is SinkKind.INFORM:
                self._waiting[number] = done
                await done.wait()
        except (OSError, TimeoutError, PySnmpError) as error:
            answers.append(str(error) or "no answer")
        finally:
            self._waiting.pop(number, None)
        if any(answers):
            self._failed(sink, answers[-1])
        else:
            self._complained.discard(sink.host)

    async def _transport(self, family: int) -> asyncio.DatagramTransport:
        known = self._transports.get(family)
        if known is None or known.is_closing():
            loop = asyncio.get_running_loop()
            known, _ = await loop.create_datagram_endpoint(lambda: _Socket(self._heard), family=family)
            self._transports[family] = known
        return known

    def _heard(self, number: int) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None:
            waiting.set()

    async def close(self) -> None:
        """Send no more."""
        self._beside.cancel()
        for transport in self._transports.values():
            transport.close()

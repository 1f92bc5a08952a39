"""SNMP by pysnmp: its engine speaks the protocol, this file gives it sockets and objects.

Only our own objects are reachable through it: the library's controller, which holds its communities and keys, is not
registered. What is read and written is judged in `access`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pysnmp import error as pysnmp_error
from pysnmp.carrier.asyncio.dgram.base import DgramAsyncioProtocol
from pysnmp.carrier.asyncio.dgram.udp import SNMP_UDP_DOMAIN, UdpTransportAddress
from pysnmp.carrier.asyncio.dgram.udp6 import SNMP_UDP6_DOMAIN, Udp6TransportAddress
from pysnmp.carrier.asyncio.dispatch import AsyncioDispatcher
from pysnmp.entity import config
from pysnmp.entity.engine import SnmpEngine
from pysnmp.entity.rfc3413 import cmdrsp, ntforg
from pysnmp.entity.rfc3413.context import SnmpContext
from pysnmp.proto import rfc1902, rfc1905
from pysnmp.smi import error as smi
from pysnmp.smi.instrum import AbstractMibInstrumController

from safeagent.access import Requester, known, may, plain
from safeagent.inventory import Action
from safeagent.tree import Tree, Type, Value, action_of
from safekit.disk.files import write_atomic
from safekit.disk.paths import safevar
from safekit.model.snmpd import AgentSettings, Family, Level, Listen, Oid, Sink, User

TICK_SECONDS = 5.0
"""How often the library forgets what nobody has answered."""
MAX_DATAGRAM = 65507
OUTGOING = 1000
"""Ends the name of the sockets for notifications; those that listen are numbered from 0."""
INFORM_RETRIES = 4
"""One at each tick."""
ENTERPRISE = 107
_AUTH = {
    "": config.USM_AUTH_NONE,
    "MD5": config.USM_AUTH_HMAC96_MD5,
    "SHA": config.USM_AUTH_HMAC96_SHA,
    "SHA-224": config.USM_AUTH_HMAC128_SHA224,
    "SHA-256": config.USM_AUTH_HMAC192_SHA256,
    "SHA-384": config.USM_AUTH_HMAC256_SHA384,
    "SHA-512": config.USM_AUTH_HMAC384_SHA512,
}
_PRIV = {"": config.USM_PRIV_NONE, "DES": config.USM_PRIV_CBC56_DES, "AES": config.USM_PRIV_CFB128_AES}
_TYPES = {
    Type.INTEGER: rfc1902.Integer32,
    Type.STRING: rfc1902.OctetString,
    Type.OID: rfc1902.ObjectIdentifier,
    Type.TICKS: rfc1902.TimeTicks,
    Type.COUNTER: rfc1902.Counter32,
}
_LEVELS = {1: Level.NOAUTH, 2: Level.AUTH, 3: Level.PRIV}
IP_PKTINFO = 8
"""Of Linux; the module socket does not name it before Python 3.14."""
_PKTINFO4 = struct.Struct("=I4s4s")
_PKTINFO6 = struct.Struct("=16sI")


def encoded(value: Value) -> Any:
    """A value as the library encodes it."""
    return _TYPES[value.type](value.value)


class Transport(DgramAsyncioProtocol):  # type: ignore[misc]
    """One socket. An answer leaves from the address that was asked, whichever of the server's addresses that is: a
    manager ignores one that comes from another (a virtual address is one of several)."""

    def __init__(self, listen: Listen) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        six = listen.family is Family.IPV6
        self.ADDRESS_TYPE = Udp6TransportAddress if six else UdpTransportAddress
        self._six = six
        self._socket = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            if six:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                self._socket.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            self._socket.bind((listen.address, listen.port))
        except OSError:
            self._socket.close()
            raise
        self.loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        for _ in range(32):
            try:
                data, ancillary, _, address = self._socket.recvmsg(MAX_DATAGRAM, 256)
            except OSError:  # nothing more, or an error that an earlier answer met
                return
            asked = self.ADDRESS_TYPE(address[:2])
            for level, kind, content in ancillary:
                if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                    _, _, destination = _PKTINFO4.unpack(content[: _PKTINFO4.size])
                    asked.set_local_address(_PKTINFO4.pack(0, destination, destination))
                elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                    asked.set_local_address(content)
            asked.scope = address
            # A datagram that the library cannot bear must not end the reading of the others.
            with contextlib.suppress(Exception):
                self._callback_function(self, asked, data)

    def send_message(self, outgoing: bytes, address: Any) -> None:
        """Never raises: whoever asks again is answered again."""
        info = address.get_local_address()
        level, kind = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) if self._six else (socket.IPPROTO_IP, IP_PKTINFO)
        ancillary = [(level, kind, info)] if info else []
        with contextlib.suppress(OSError):
            self._socket.sendmsg([bytes(outgoing)], ancillary, 0, getattr(address, "scope", tuple(address)))

    def close_transport(self) -> None:
        self.loop.remove_reader(self._socket)
        self._socket.close()


class Outgoing(Transport):
    """The socket of one family from which notifications of SNMPv3 leave, and to which informs are acknowledged."""

    def send_message(self, outgoing: bytes, address: Any) -> None:
        """Never raises: a notification is an attempt, an inform is repeated."""
        with contextlib.suppress(OSError):
            self._socket.sendto(bytes(outgoing), tuple(address)[:2])


Ask = Callable[[int, Action, str], str]
"""Begin an action on a module, in the name of somebody; '' when it has begun, else why not. Returns at once."""


class Objects(AbstractMibInstrumController):  # type: ignore[misc]
    """What the engine reads and writes."""

    def __init__(
        self, tree: Tree, settings: AgentSettings, names: dict[str, str], ask: Ask, look: Callable[[], None]
    ) -> None:
        self._tree = tree
        self._settings = settings
        self._names = names
        self._ask = ask
        self._look = look

    def _who(self, context: dict[str, Any]) -> Requester:
        """Raises PySnmpError, which the engine answers with silence, for a community that may ask nothing."""
        seen = context["snmpEngine"].observer.get_execution_context("rfc3412.receiveMessage:request")
        model, name = int(seen["securityModel"]), str(seen["securityName"])
        who = Requester(
            model,
            name if model == 3 else self._names.get(name, ""),
            _LEVELS[int(seen["securityLevel"])],
            plain(str(seen["transportAddress"][0])),
        )
        if not known(self._settings, who):
            raise pysnmp_error.PySnmpError(f"{who.address} may not ask")
        self._look()
        return who

    def read_variables(self, *pairs: Any, **context: Any) -> list[Any]:
        """GET."""
        who = self._who(context)
        found = []
        for name, _ in pairs:
            oid = tuple(name)
            value = self._tree.get(oid) if may(self._settings, who, oid, write=False) else None
            if value is not None:
                found.append((name, encoded(value)))
            else:
                found.append((name, rfc1905.noSuchInstance if self._tree.has_object(oid) else rfc1905.noSuchObject))
        return found

    def read_next_variables(self, *pairs: Any, **context: Any) -> list[Any]:
        """GETNEXT, and each step of GETBULK."""
        who = self._who(context)
        return [self._after(name, who) for name, _ in pairs]

    def _after(self, name: Any, who: Requester) -> tuple[Any, Any]:
        found = self._tree.next(tuple(name))
        while found is not None and not may(self._settings, who, found[0], write=False):
            found = self._tree.next(found[0])
        return (name, rfc1905.endOfMibView) if found is None else (rfc1902.ObjectName(found[0]), encoded(found[1]))

    def write_variables(self, *pairs: Any, **context: Any) -> list[Any]:
        """SET: all of its objects or none (RFC 3416, 4.2.5). It is answered at once; what becomes of an action is in
        skModuleOutcome."""
        who = self._who(context)
        wanted = [self._judged(index, tuple(name), value, who) for index, (name, value) in enumerate(pairs)]
        modules = [number for number, _ in wanted]
        for index, number in enumerate(modules):
            if number in modules[:index]:
                raise smi.InconsistentValueError(name=pairs[index][0], idx=index)
        for index, (number, action) in enumerate(wanted):
            if action is Action.NONE:
                continue
            if self._ask(number, action, who.text()):
                raise smi.InconsistentValueError(name=pairs[index][0], idx=index)
        return list(pairs)

    def _judged(self, index: int, oid: Oid, value: Any, who: Requester) -> tuple[int, Action]:
        """The module and the action of one object. Raises an error of RFC 3416."""
        if not may(self._settings, who, oid, write=True):
            raise smi.NoAccessError(name=oid, idx=index)
        number = action_of(oid)
        if number is None:
            raise smi.NotWritableError(name=oid, idx=index)
        if self._tree.get(oid) is None:
            raise smi.NoCreationError(name=oid, idx=index)
        if not isinstance(value, rfc1902.Integer):
            raise smi.WrongTypeError(name=oid, idx=index)
        try:
            return number, Action(int(value))
        except ValueError:
            raise smi.WrongValueError(name=oid, idx=index) from None


class Bulk(cmdrsp.BulkCommandResponder):  # type: ignore[misc]
    """GETBULK that says once that the end is reached, as net-snmp's agent does, not in every repetition left."""

    def send_varbinds(self, engine: Any, reference: Any, status: int, index: int, pairs: list[Any]) -> None:
        """Also for errors, which have no such end."""
        end = rfc1905.endOfMibView
        while len(pairs) > 1 and pairs[-1][1] is end and pairs[-2][1] is end and pairs[-1][0] == pairs[-2][0]:
            pairs.pop()
        super().send_varbinds(engine, reference, status, index, pairs)


def engine_file() -> Path:
    """Identity of the SNMPv3 engine, and how often it has started: both must never go back."""
    return safevar() / "snmp" / "engine"


def identity() -> tuple[bytes, int]:
    """The engine's identity and the number of this start, durably counted. Raises OSError."""
    path = engine_file()
    path.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
    name, boots = b"", 0
    with contextlib.suppress(FileNotFoundError, ValueError):
        words = path.read_text(encoding="ascii").split()
        name, boots = bytes.fromhex(words[0]), int(words[1])
    if not 5 <= len(name) <= 32:
        name, boots = (0x80000000 | ENTERPRISE).to_bytes(4, "big") + b"\x05" + os.urandom(12), 0
    boots += 1
    write_atomic(path, f"{name.hex()} {boots}\n".encode(), mode=0o600)
    return name, boots


class Agent:
    """The engine with its sockets."""

    def __init__(self, settings: AgentSettings, tree: Tree, ask: Ask, look: Callable[[], None]) -> None:
        name, boots = identity()
        self._engine = SnmpEngine()
        self._identify(name, boots)
        names = self._communities(settings)
        for user in settings.users:
            self._user(user)
        context = SnmpContext(self._engine)
        context.unregister_context_name(b"")
        context.register_context_name(b"", Objects(tree, settings, names, ask, look))
        for responder in (cmdrsp.GetCommandResponder, cmdrsp.NextCommandResponder, Bulk, cmdrsp.SetCommandResponder):
            responder(self._engine, context)
        self._originator = ntforg.NotificationOriginator()
        self._targets: dict[Sink, tuple[str, Any]] = {}
        dispatcher = AsyncioDispatcher(loop=asyncio.get_running_loop())
        dispatcher.set_timer_resolution(TICK_SECONDS)
        self._engine.register_transport_dispatcher(dispatcher)

    def _identify(self, name: bytes, boots: int) -> None:
        """As the constructor would, which keeps the count in a directory that everybody may write to."""
        builder = self._engine.get_mib_builder()
        own, count = builder.import_symbols("__SNMP-FRAMEWORK-MIB", "snmpEngineID", "snmpEngineBoots")
        own.syntax = own.syntax.clone(name)
        count.syntax = count.syntax.clone(boots)
        self._engine.snmpEngineID = own.syntax

    def _communities(self, settings: AgentSettings) -> dict[str, str]:
        """Give the engine the communities; the names that it will tell for them."""
        names = {}
        for number, community in enumerate(dict.fromkeys(line.name for line in settings.communities)):
            index = f"community{number}"
            config.add_v1_system(self._engine, index, community)
            names[index] = community
        return names

    def _user(self, user: User) -> None:
        config.add_v3_user(
            self._engine,
            user.name,
            _AUTH[user.auth],
            user.auth_key or None,
            _PRIV[user.priv],
            user.priv_key or None,
        )

    def open(self, listen: Iterable[Listen]) -> list[Listen]:
        """Take the sockets; those that are open. One of IPv6 is left out on a system without it. Raises OSError."""
        opened: list[Listen] = []
        for number, place in enumerate(listen):
            try:
                transport = Transport(place)
            except OSError as error:
                if place.family is Family.IPV6 and not place.address and opened:
                    print(f"safeagent: no IPv6 ({error.strerror})", file=sys.stderr, flush=True)
                    continue
                raise OSError(error.errno, f"{place.address or '*'} UDP port {place.port}: {error.strerror}") from None
            domain = SNMP_UDP6_DOMAIN if place.family is Family.IPV6 else SNMP_UDP_DOMAIN
            self._engine.transport_dispatcher.register_transport((*domain, number), transport)
            opened.append(place)
        return opened

    def notify(self, sink: Sink, family: int, address: Any, pdu: Any, told: Callable[[str], None]) -> None:
        """Send by SNMPv3, in the name of the sink's user, to where it is now. `told` is called when an inform is
        acknowledged (''), or with what speaks against it. Raises OSError, PySnmpError."""
        name = self._target(sink, family, address)

        def answered(_engine: Any, _handle: Any, error: Any, *_: Any) -> None:
            told(str(error) if error else "")

        self._originator.send_pdu(self._engine, name, None, "", pdu, answered, None)

    def _target(self, sink: Sink, family: int, address: Any) -> str:
        """The engine's name for a sink: its rows are made when it is used first, and anew when it has moved."""
        domain = (*(SNMP_UDP6_DOMAIN if family == socket.AF_INET6 else SNMP_UDP_DOMAIN), OUTGOING)
        dispatcher = self._engine.transport_dispatcher
        try:
            dispatcher.get_transport(domain)
        except pysnmp_error.PySnmpError:
            kind = Family.IPV6 if family == socket.AF_INET6 else Family.IPV4
            dispatcher.register_transport(domain, Outgoing(Listen(kind, "", 0)))
        name, known = self._targets.get(sink, (f"sink{len(self._targets)}", None))
        if known != address:
            config.add_target_parameters(self._engine, name, sink.user, sink.level.value)
            config.add_target_address(
                self._engine, name, domain, tuple(address)[:2], name, timeout=100, retryCount=INFORM_RETRIES
            )
            self._targets[sink] = (name, address)
        return name

    def close(self) -> None:
        self._engine.close_dispatcher()

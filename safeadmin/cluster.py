"""The membership on the wire: one UDP socket a framework lan, everything sealed with the cluster key
(guide 12, 12.1.3). The decisions are in safekit.wire.membership; here are sockets, timers and complaints."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safeadmin.adminlog import AdminLog, Complaints
from safeadmin.clusterstatus import ClusterStatus, cluster_status
from safeadmin.facts import FactsTable, NodeFacts
from safeadmin.wire import Facts, Message, OtherConfiguration, Want, WireError, configuration_id, decode, encode
from safekit.disk.files import write_atomic
from safekit.model.codec import to_data
from safekit.model.types import ClusterConfig, Lan
from safekit.wire import protocol
from safekit.wire.membership import Membership, Pulse, Reason, Rules, bits
from safekit.wire.seal import Opener, Sealer, SealError, next_epoch

CONTEXT = "safeadmin"
DRAIN = 512
"""Datagrams taken in one wake-up: enough that a burst never looks like silence, and bounded."""
RESOLVE_SECONDS = 10.0
REPLAYS_UNTIL_COMPLAINT = 20
HEARD_SECONDS = 30.0
PATIENCE_SECONDS = 3.0
"""Servers learn of a new key or configuration one after the other: what differs for a moment is no complaint."""
MAX_SOURCES = 64
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78

Address = tuple[str, int]


@dataclass(slots=True)
class Link:
    """A framework lan, seen from this server."""

    lan: Lan
    sock: socket.socket
    family: int
    peers: dict[int, Address] = field(default_factory=dict)
    heard_at: dict[int, float] = field(default_factory=dict)


class Cluster:
    """This server in its cluster; lives from one configuration to the next."""

    def __init__(
        self,
        config: ClusterConfig,
        key: bytes,
        node: str,
        state_dir: Path,
        log: AdminLog,
        facts: NodeFacts,
    ) -> None:
        """Raises ValueError when the node is not in the configuration, OSError when its epoch cannot be
        stored."""
        self.config, self.node = config, node
        self.names = config.node_names
        if node not in self.names:
            raise ValueError(
                f"this server is {node}, which is not a node of cluster.xml ({', '.join(self.names)}): "
                "correct the addresses in cluster.xml or the host name, and apply it again"
            )
        self.me = self.names.index(node)
        self._log, self._state_dir = log, state_dir
        self._complaints = Complaints(log)
        self._configuration = configuration_id(config.signature)
        epoch = next_epoch(state_dir / "safeadmin.epoch")
        self._sealer = Sealer(key, CONTEXT, node, epoch)
        self._opener = Opener(key, CONTEXT, self.names)
        rules = Rules(len(self.names), self.me, config.pulse_ms / 1000, config.mlost_count, config.slost_count)
        self.facts = FactsTable(len(self.names), self.me)
        with contextlib.suppress(FileNotFoundError):
            self.facts.load((state_dir / "cluster.facts").read_text(errors="replace"), self.names)
        self.membership = Membership(rules, epoch, time.monotonic(), self.facts.set_own(facts))
        self._links: list[Link] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._replays: dict[str, int] = {}
        self._differs_since: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        self.on_change: Callable[[], None] = lambda: None

    # Life

    async def start(self) -> None:
        """Bind, resolve the peers' addresses and take part. A lan that cannot be bound yet is retried."""
        for lan in self.config.framework_lans:
            if lan.node(self.node) is not None:
                await self._open(lan)
        self._arm()
        self._tasks.append(self._loop.create_task(self._keep_resolved()))

    async def close(self) -> None:
        """Leave: sockets and timers end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        for link in self._links:
            self._loop.remove_reader(link.sock.fileno())
            link.sock.close()
        self._links.clear()

    async def _open(self, lan: Lan) -> bool:
        own = lan.node(self.node)
        assert own is not None
        subject = f"lan {lan.name}"
        try:
            family, address = await self._resolve(own.bind_address)
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            self._complaints.say(subject, "open", f"lan {lan.name}: address {own.bind_address}: {error}")
            return False
        try:
            sock.setblocking(False)
            # At boot the address may come after us.
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            sock.bind((address, self.config.port))
        except OSError as error:
            sock.close()
            self._complaints.say(
                subject,
                "open",
                f"lan {lan.name}: UDP port {self.config.port} of {address} cannot be used: {error.strerror}; "
                f"see who has it: ss -lunp 'sport = {self.config.port}'",
            )
            return False
        self._complaints.settle(subject, f"lan {lan.name}: UDP port {self.config.port} of {address} is open")
        link = Link(lan, sock, family)
        self._links.append(link)
        await self._resolve_peers(link)
        self._loop.add_reader(sock.fileno(), self._readable, link)
        return True

    async def _resolve(self, name: str, family: int = 0) -> tuple[int, str]:
        found = await self._loop.getaddrinfo(name, None, family=family, type=socket.SOCK_DGRAM)
        return int(found[0][0]), str(found[0][4][0])

    async def _resolve_peers(self, link: Link) -> bool:
        complete = True
        for entry in link.lan.nodes:
            if entry.name == self.node:
                continue
            number, subject = self.names.index(entry.name), f"{entry.name} on lan {link.lan.name}"
            try:
                _, address = await self._resolve(entry.addr, link.family)
            except OSError as error:
                complete = False
                self._complaints.say(
                    subject, "resolve", f"{subject}: {entry.addr} has no address: {error.strerror or error}"
                )
                continue
            link.peers[number] = (address, self.config.port)
        return complete

    async def _keep_resolved(self) -> None:
        """Until every lan is open and every peer has an address."""
        while True:
            await asyncio.sleep(RESOLVE_SECONDS)
            opened = {link.lan.name for link in self._links}
            complete = True
            for lan in self.config.framework_lans:
                if lan.node(self.node) is not None and lan.name not in opened:
                    complete &= await self._open(lan)
            for link in self._links:
                if len(link.peers) < len(link.lan.nodes) - 1:
                    complete &= await self._resolve_peers(link)
            if complete:
                return

    async def resolve_again(self) -> None:
        """Ask the name service again (guide 9.3: -G redoes the name resolution). What has no address now keeps the one
        it had."""
        for link in list(self._links):
            own = link.lan.node(self.node)
            assert own is not None, "a link is opened only for a lan of this server"
            with contextlib.suppress(OSError):
                elsewhere = (await self._resolve(own.bind_address))[1] != link.sock.getsockname()[0]
                if elsewhere and await self._open(link.lan):
                    self._links.remove(link)
                    self._loop.remove_reader(link.sock.fileno())
                    link.sock.close()
                    continue
            await self._resolve_peers(link)

    # Traffic

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self.membership.next_wakeup(), self._tick)

    def _tick(self) -> None:
        pulse = self.membership.tick(time.monotonic())
        if pulse is not None:
            for link in self._links:
                for number in link.peers:
                    self._send(link, number, pulse)
        self._after()

    def _after(self) -> None:
        for change in self.membership.take_changes():
            members = " ".join(self.names[n] for n in change.after.nodes())
            why = ", ".join(self._explain(reason) for reason in change.reasons)
            self._log.info(
                f"cluster membership: {members} (leader {self.names[change.after.leader]}), because {why or 'start'}"
            )
            self.on_change()
        self._arm()

    def _explain(self, reason: Reason) -> str:
        silence = f" for {reason.silence:.1f} s" if reason.silence else ""
        return f"{reason.cause.value} {self.names[reason.node]}{silence}"

    def _send(self, link: Link, number: int, message: Message) -> None:
        # Sealed for each peer and lan: a datagram that arrives on two lans would look replayed on the second.
        version = self._opener.version_for(self.names[number])
        datagram = self._sealer.seal(encode(message, self._configuration), version)
        subject = f"{self.names[number]} on lan {link.lan.name}"
        try:
            link.sock.sendto(datagram, link.peers[number])
            self._complaints.settle(subject, f"{subject}: can be sent to again")
        except (BlockingIOError, ConnectionRefusedError):
            # A full buffer costs one period; a refusal is the silence that the membership judges.
            return
        except OSError as error:
            self._complaints.say(
                subject, "send", f"{subject}: cannot send to {link.peers[number][0]}: {error.strerror}"
            )

    def _readable(self, link: Link) -> None:
        for _ in range(DRAIN):
            try:
                datagram, source = link.sock.recvfrom(65535)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # An ICMP error of an earlier datagram: its peer is silent, which the membership judges.
                continue
            self._receive(link, datagram, str(source[0]))
        self._after()

    def _receive(self, link: Link, datagram: bytes, source: str) -> None:
        try:
            opened = self._opener.open(datagram)
        except SealError as error:
            self._reject(source, error)
            return
        sender = self.names.index(opened.sender)
        try:
            message = decode(opened.payload, self._configuration, len(self.names))
        except OtherConfiguration as error:
            if self._lasts(source):
                self._problems[opened.sender] = str(error)
                self._complaints.say(source, "configuration", f"{opened.sender} ({source}) has {error}")
            return
        except WireError as error:
            self._complaints.say(source, "wire", f"{opened.sender} ({source}) sent nonsense: {error}")
            return
        self._replays.pop(source, None)
        self._differs_since.pop(source, None)
        self._problems.pop(opened.sender, None)
        self._complaints.settle(source, f"{opened.sender} ({source}) is understood again")
        now = time.monotonic()
        if isinstance(message, Pulse):
            if message.sender != sender or sender == self.me:
                return
            link.heard_at[sender] = now
            self.membership.receive(message, now)
            for want in self.facts.missing(self.membership, sender, now):
                self._send_to(sender, link, want)
        elif isinstance(message, Want):
            answer = self.facts.answer(message)
            if answer is not None:
                self._send_to(sender, link, answer)
        elif isinstance(message, Facts) and self.facts.learn(message, self.membership):
            self._remember()
            self.on_change()

    def _send_to(self, number: int, link: Link, message: Message) -> None:
        if number in link.peers:
            self._send(link, number, message)

    def _reject(self, source: str, error: SealError) -> None:
        peers = {address[0]: self.names[number] for link in self._links for number, address in link.peers.items()}
        stranger = source not in peers
        if error.kind == "replay":
            # Who recorded datagrams can send them again, and reordering gives a few. Only where the server itself is
            # heard no more may its clock and memory have gone back.
            if stranger or self._heard_lately(error.sender):
                return
            self._replays[source] = self._replays.get(source, 0) + 1
            if self._replays[source] < REPLAYS_UNTIL_COMPLAINT:
                return
        if error.kind == "key" and not self._lasts(source):
            return
        advice = {
            "key": "it has another cluster key: apply the same cluster configuration on every server (safekit -G)",
            "version": "the servers of a cluster may differ by one release only",
            "malformed": "another program sends to this port",
            "replay": "its datagrams are older than what it sent before: restart safeadmin here if its disk was "
            "replaced",
        }[error.kind]
        node = peers.get(source, "")
        if node:
            self._problems[node] = f"its datagrams are rejected: {error.detail}"
        name = f"{node} ({source})" if node else source
        text = f"datagrams of {name} are rejected: {error.detail}; {advice}"
        self._complaints.say(source, error.kind, text, stranger=stranger)

    def _heard_lately(self, name: str) -> bool:
        """Whether a server was understood on some lan within the last seconds."""
        now, number = time.monotonic(), self.names.index(name)
        return any(now - link.heard_at.get(number, -HEARD_SECONDS) < HEARD_SECONDS for link in self._links)

    def _lasts(self, source: str) -> bool:
        """Whether this source has not been understood for a while."""
        now = time.monotonic()
        if source not in self._differs_since and len(self._differs_since) >= MAX_SOURCES:
            self._differs_since.pop(next(iter(self._differs_since)))
        return now - self._differs_since.setdefault(source, now) >= PATIENCE_SECONDS

    # Facts

    def set_facts(self, facts: NodeFacts) -> None:
        """Tell the cluster what changed here."""
        self.membership.set_facts(self.facts.set_own(facts))
        self._arm()

    def _remember(self) -> None:
        try:
            write_atomic(self._state_dir / "cluster.facts", self.facts.dump(self.names).encode(), durable=False)
        except OSError as error:
            self._complaints.say("cluster.facts", "write", f"{self._state_dir}/cluster.facts: {error.strerror}")

    # Questions

    def status(self, module: str, module_nodes: tuple[str, ...] | None) -> ClusterStatus:
        """cluster() for a module; module_nodes: the nodes on its lans, None when it is not configured."""
        remote = None if module_nodes is None else frozenset(module_nodes) - {self.node}
        responding = frozenset(self.names[n] for n in bits(self.membership.responding))
        told: dict[str, bool] = {}
        for number, name in enumerate(self.names):
            facts = self.facts.get(number)
            row = self.membership.row(number)
            current = row is None or row.facts == self.facts.version(number)
            if facts is not None and (current or name not in responding):
                told[name] = facts.has_configured(module)
        return cluster_status(remote, responding, told, self.membership.settled(time.monotonic()))

    def servers_of(self, module: str) -> list[dict[str, Any]]:
        """What each server that answers, this one included, tells of a module that is configured on it."""
        found = []
        for number, name in enumerate(self.names):
            facts = self.facts.get(number)
            known = facts.module(module) if facts is not None else None
            answers = number == self.me or bool(self.membership.responding >> number & 1)
            if known is not None and known.configured and answers:
                found.append({"node": name, **to_data(known)})
        return found

    def members(self) -> dict[str, Any]:
        """The cluster as this server sees it, for `cluster confinfo`, `cluster state` and the console."""
        view, now = self.membership.view, time.monotonic()
        nodes: dict[str, Any] = {}
        for number, name in enumerate(self.names):
            facts = self.facts.get(number)
            nodes[name] = {
                "member": number in view,
                "protocol": protocol.newest() if number == self.me else self._opener.version_for(name),
                "answers": number == self.me or bool(self.membership.responding >> number & 1),
                "problem": self._problems.get(name, ""),
                "facts": None if facts is None else _facts_fields(facts),
                "lans": {
                    link.lan.name: round(now - link.heard_at[number], 3)
                    for link in self._links
                    if number in link.heard_at
                },
            }
        return {"node": self.node, "leader": self.names[view.leader], "view": view.number, "nodes": nodes}


def _facts_fields(facts: NodeFacts) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = to_data(facts)
    return fields

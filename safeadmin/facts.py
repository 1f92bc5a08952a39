"""What a server tells of itself to the cluster: its configuration and its modules (guide 9.3:
`cluster confinfo`, `cluster state`; guide 13.18: who is configured for a module).

Facts change rarely, so a pulse only carries their version, the hash of their bytes. A server that meets a
version it does not have asks for it. Facts of a server that is gone are remembered: that it had the module
configured still counts when it is silent.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from safeadmin.wire import MAX_FACTS, Facts, Want
from safekit.model.agreement import Agreement
from safekit.model.codec import CodecError, from_json, to_json
from safekit.wire.membership import Membership, bits


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """A module installed on a server. `signature` and `date` are of its last configuration, "" when it was
    never configured. `mode` is mirror, farm or light, "" when unknown. `running`: the server runs it. `agrees`: what
    the servers of the module must have in common (safekit.model.agreement). `state`: its state while it runs, and
    `since` when it has it, Unix time in whole seconds."""

    name: str
    id: int
    mode: str
    signature: str
    date: str
    running: bool
    agrees: Agreement = ()
    state: str = ""
    since: int = 0

    @property
    def configured(self) -> bool:
        return self.signature != ""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What `cluster confinfo` and `cluster state` show of a server. `date` is the ISO date of the last
    cluster configuration. `locked`: `cluster config lock` is in force."""

    signature: str = ""
    date: str = ""
    locked: bool = False
    modules: tuple[ModuleFacts, ...] = field(default=())

    def module(self, name: str) -> ModuleFacts | None:
        """What is told of a module, None when it is not installed there."""
        return next((module for module in self.modules if module.name == name), None)

    def has_configured(self, module: str) -> bool:
        """Whether the server can run the module."""
        known = self.module(module)
        return known is not None and known.configured


def pack(facts: NodeFacts) -> bytes:
    """The bytes of facts. Modules that do not fit into a datagram are left out, the last first."""
    data = to_json(facts).encode()
    while len(data) > MAX_FACTS:
        kept = facts.modules[: len(facts.modules) * MAX_FACTS // (len(data) + 1)]
        facts = NodeFacts(facts.signature, facts.date, facts.locked, kept)
        data = to_json(facts).encode()
    return data


def version(data: bytes) -> int:
    """The number that stands for these bytes in a pulse."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


class FactsTable:
    """The facts of every node, by number. me: this server's number."""

    def __init__(self, nodes: int, me: int) -> None:
        self.me = me
        self._data: list[bytes | None] = [None] * nodes
        self._versions: list[int] = [0] * nodes
        self._facts: list[NodeFacts | None] = [None] * nodes
        self._asked: dict[int, tuple[int, float]] = {}

    def get(self, node: int) -> NodeFacts | None:
        """The last facts of a node, None if it never told any."""
        return self._facts[node]

    def version(self, node: int) -> int:
        """The version of the facts that get() returns."""
        return self._versions[node]

    def set_own(self, facts: NodeFacts) -> int:
        """Replaces this server's facts; returns their version."""
        data = pack(facts)
        self._data[self.me], self._versions[self.me], self._facts[self.me] = data, version(data), facts
        return self._versions[self.me]

    def missing(self, membership: Membership, sender: int, now: float) -> list[Want]:
        """What to ask the sender of a pulse that just came, at most once a period for each version.

        The sender has what it announces for itself; for a node that is not heard here it is asked too."""
        wants = []
        for node in bits((1 << sender) | (membership.view.members & ~membership.heard & ~(1 << self.me))):
            row = membership.row(node)
            if row is None or row.facts == self._versions[node]:
                continue
            asked, when = self._asked.get(node, (None, 0.0))
            if asked == row.facts and now - when < membership.rules.pulse:
                continue
            self._asked[node] = (row.facts, now)
            wants.append(Want(node, row.incarnation, row.facts))
        return wants

    def answer(self, want: Want) -> Facts | None:
        """The reply to a request, None when this server does not have that version either."""
        data = self._data[want.node]
        if data is None or self._versions[want.node] != want.facts:
            return None
        return Facts(want.node, want.incarnation, want.facts, data)

    def learn(self, told: Facts, membership: Membership) -> bool:
        """Takes facts if they are the announced version and understandable; True when they are new."""
        row = membership.row(told.node)
        if told.node == self.me or row is None or row.facts != told.facts or version(told.data) != told.facts:
            return False
        if self._versions[told.node] == told.facts:
            return False
        try:
            facts = from_json(NodeFacts, told.data, lenient=True)
        except (CodecError, UnicodeDecodeError):
            # A server of a distant release: nothing is known of its modules, and asking again is useless.
            facts = None
        self._data[told.node], self._versions[told.node], self._facts[told.node] = told.data, told.facts, facts
        return facts is not None

    def dump(self, names: tuple[str, ...]) -> str:
        """What must be remembered over a restart, as JSON: the facts of the other nodes by name."""
        known = {names[n]: data.decode() for n, data in enumerate(self._data) if data and n != self.me}
        return json.dumps(known)

    def load(self, text: str, names: tuple[str, ...]) -> None:
        """Takes back what dump() wrote; names that left the cluster and damaged entries are passed over."""
        try:
            known = json.loads(text)
        except ValueError:
            return
        for number, name in enumerate(names):
            data = known.get(name) if isinstance(known, dict) else None
            if not isinstance(data, str) or number == self.me:
                continue
            try:
                facts = from_json(NodeFacts, data, lenient=True)
            except CodecError:
                continue
            raw = data.encode()
            self._data[number], self._versions[number], self._facts[number] = raw, version(raw), facts

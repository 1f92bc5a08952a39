"""Does the switch carry frames for the virtual MAC to every server? (vmac_invisible, guide 4.3.7)

Every server sends pairs of frames from its own MAC: one to the virtual MAC, then one to everybody. Who gets the
second without the first, several times in a row, is not reached. The frame to everybody also tells whose frames reach
its sender: if some server is reached, the switch has learned the virtual MAC on a port or filters it; if none is, it
does not flood.

Frames come from whoever is on the network: what they can do is to make or withhold a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from safekit.log.module import ModuleLog
from safekit.net.packets import BROADCAST, mac_text
from vipd.farm.layout import Layout, Wire

ETHERTYPE = 0x88B5  # IEEE 802: local experiments
MISSES = 3
BURST, BURST_SECONDS = MISSES + 2, 0.3
PERIOD_SECONDS = 10.0
TELL_SECONDS = 1.0
FORGET_SECONDS = 3 * PERIOD_SECONDS
_FRAME = struct.Struct("!6s6sH4sB8sBIQ")
_MAGIC = b"SKF\x01"
_TO_ALL, _TO_VIRTUAL = 0, 1
_DRAIN = 64


class Reach(Enum):
    """What a server can say of the frames of the others."""

    FLOODED = "flooded"
    NOT_FLOODED = "not flooded"
    LEARNED = "learned"


@dataclass(frozen=True, slots=True)
class Verdict:
    """missing: servers whose frames for the virtual MAC do not come here. reached: servers that get some."""

    reach: Reach
    missing: tuple[int, ...] = ()
    reached: tuple[int, ...] = ()


@dataclass
class _Sender:
    arrived: int = -1
    awaited: int = -1
    misses: int = 0
    reached: int = 0
    heard: float = 0.0


@dataclass
class Flooding:
    """The judgement of server `me` about one virtual MAC. Pure; `now` is monotonic seconds."""

    me: int
    _senders: dict[int, _Sender] = field(default_factory=dict)

    @property
    def reached_from(self) -> int:
        """Bits of the servers whose frames for the virtual MAC come here."""
        return sum(1 << node for node, s in self._senders.items() if s.arrived >= 0 and s.misses == 0)

    def virtual(self, node: int, number: int, now: float) -> None:
        """A frame to the virtual MAC came here."""
        sender = self._senders.setdefault(node, _Sender())
        sender.arrived, sender.misses, sender.heard = number, 0, now

    def everybody(self, node: int, number: int, reached: int, now: float) -> bool:
        """The frame to everybody that follows it came. Whether this server was not known until now."""
        sender = self._senders.setdefault(node, _Sender())
        new = sender.awaited < 0
        # Judged when the next one is here: the first may have been overtaken.
        if sender.awaited >= 0 and sender.arrived not in (sender.awaited, number):
            sender.misses += 1
        sender.awaited, sender.reached, sender.heard = number, reached, now
        return new

    def verdict(self, now: float) -> Verdict:
        """What is known now. A server that is silent altogether is gone."""
        for node in [node for node, s in self._senders.items() if now - s.heard > FORGET_SECONDS]:
            del self._senders[node]
        missing = tuple(sorted(node for node, s in self._senders.items() if s.misses >= MISSES))
        if not missing:
            return Verdict(Reach.FLOODED)
        reached = {node for node, s in self._senders.items() if s.reached}
        if self.reached_from:
            reached.add(self.me)
        return Verdict(Reach.LEARNED if reached else Reach.NOT_FLOODED, missing, tuple(sorted(reached)))


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of this check. virtual: sent to the virtual MAC."""

    virtual: bool
    node: int
    number: int
    reached: int = 0

    def pack(self, wire: Wire, farm: bytes) -> bytes:
        """As it goes onto the wire; farm: 8 bytes that equal servers of the farm share."""
        assert wire.vmac is not None
        kind, target = (_TO_VIRTUAL, wire.vmac) if self.virtual else (_TO_ALL, BROADCAST)
        return _FRAME.pack(target, wire.mac, ETHERTYPE, _MAGIC, kind, farm, self.node, self.number, self.reached)


def parse(data: bytes, wire: Wire, farm: bytes, nodes: int, me: int) -> Frame | None:
    """The frame of another server of this farm; None for anything else."""
    if len(data) < _FRAME.size:
        return None
    target, _, _, magic, kind, whose, node, number, reached = _FRAME.unpack_from(data)
    if magic != _MAGIC or whose != farm or node >= nodes or node == me or kind not in (_TO_ALL, _TO_VIRTUAL):
        return None
    if target != (wire.vmac if kind == _TO_VIRTUAL else BROADCAST):
        return None
    return Frame(kind == _TO_VIRTUAL, node, number, reached & ((1 << nodes) - 1))


class FloodCheck:
    """The check on all interfaces of a layout with a virtual MAC, from `watch` to `close`."""

    def __init__(self, log: ModuleLog, names: Sequence[str], farm: bytes) -> None:
        self._log, self._names, self._farm = log, tuple(names), farm[:8]
        self._me = 0
        self._watched: dict[Wire, tuple[socket.socket, Flooding]] = {}
        self._told: dict[Wire, Reach] = {}
        self._timers: dict[Wire, asyncio.TimerHandle] = {}
        self._number = random.getrandbits(31)
        self._burst = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def watch(self, layout: Layout) -> None:
        """Check the interfaces of this layout; the same ones again: nothing changes."""
        wires = {wire for wire in layout.wires if wire.vmac is not None}
        if wires == self._watched.keys() or layout.nodes < 2:
            return
        self.close()
        self._me = layout.me
        for wire in wires:
            try:
                opened = self._open(wire)
            except OSError as error:
                # The interface has gone meanwhile; the filters are made anew when it is back.
                self._log.debug(f"{wire.device}: flooding is not checked: {error.strerror}")
                continue
            self._watched[wire] = (opened, Flooding(layout.me))
        if self._watched:
            self._begin_burst()
            self._task = asyncio.get_running_loop().create_task(self._send())

    def close(self) -> None:
        """End the check. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for opened, _ in self._watched.values():
            asyncio.get_running_loop().remove_reader(opened.fileno())
            opened.close()
        self._watched.clear()
        self._told.clear()

    def problems(self) -> list[dict[str, object]]:
        """What the tools show: interfaces on which frames for the virtual MAC do not come here."""
        return [
            {
                "interface": wire.device,
                "problem": verdict.reach.value,
                "missing": [self._names[n] for n in verdict.missing],
                "reached": [self._names[n] for n in verdict.reached],
            }
            for wire, (_, flooding) in self._watched.items()
            if (verdict := flooding.verdict(time.monotonic())).reach is not Reach.FLOODED
        ]

    def _open(self, wire: Wire) -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            opened.bind((wire.device, ETHERTYPE))
        except OSError:
            opened.close()
            raise
        asyncio.get_running_loop().add_reader(opened.fileno(), self._read, wire, opened)
        return opened

    def _begin_burst(self) -> None:
        if self._burst == 0:
            self._burst = BURST
            self._wake.set()

    async def _send(self) -> None:
        while True:
            self._burst = max(0, self._burst - 1)
            self._number = (self._number + 1) & 0x7FFFFFFF
            for wire, (opened, flooding) in self._watched.items():
                # A link that is down has no switch behind it.
                with contextlib.suppress(OSError):
                    opened.send(Frame(True, self._me, self._number).pack(wire, self._farm))
                    told = Frame(False, self._me, self._number, flooding.reached_from)
                    opened.send(told.pack(wire, self._farm))
            self._wake.clear()
            if self._burst:
                await asyncio.sleep(BURST_SECONDS)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._wake.wait()

    def _read(self, wire: Wire, opened: socket.socket) -> None:
        flooding = self._watched[wire][1]
        for _ in range(_DRAIN):
            try:
                data, origin = opened.recvfrom(256)
            except OSError:
                # Nothing more, or ENETDOWN, which the watcher of the interfaces reports.
                return
            frame = None if origin[2] == socket.PACKET_OUTGOING else self._parse(data, wire)
            if frame is None:
                continue
            now = time.monotonic()
            if frame.virtual:
                flooding.virtual(frame.node, frame.number, now)
            elif flooding.everybody(frame.node, frame.number, frame.reached, now):
                # It has just started: it needs several of our pairs to judge.
                self._begin_burst()
            self._notice(wire, flooding, now)

    def _parse(self, data: bytes, wire: Wire) -> Frame | None:
        return parse(data, wire, self._farm, len(self._names), self._me)

    def _notice(self, wire: Wire, flooding: Flooding, now: float) -> None:
        if flooding.verdict(now).reach is not self._told.get(wire, Reach.FLOODED) and wire not in self._timers:
            # A little later: the frames of the other servers say the same, or who is reached.
            timer = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell, wire, flooding)
            self._timers[wire] = timer

    def _tell(self, wire: Wire, flooding: Flooding) -> None:
        del self._timers[wire]
        verdict = flooding.verdict(time.monotonic())
        if verdict.reach is self._told.get(wire, Reach.FLOODED):
            return
        self._told[wire] = verdict.reach
        assert wire.vmac is not None
        fields = {"mac": mac_text(wire.vmac), "interface": wire.device}
        missing, reached = (" ".join(self._names[n] for n in nodes) for nodes in (verdict.missing, verdict.reached))
        match verdict.reach:
            case Reach.FLOODED:
                self._log.event("farm_flooded", **fields)
            case Reach.LEARNED:
                self._log.event("farm_learned", **fields, missing=missing, reached=reached)
            case Reach.NOT_FLOODED:
                self._log.event("farm_not_flooded", **fields, missing=missing)

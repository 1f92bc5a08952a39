"""The replicated data of the simulated pair: the promise of the product, not its code.

A write is acknowledged when it is applied on both servers, or on the primary alone after it has recorded that the
peer is out of date.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from heart.core.events import PairAsked, Replication
from tests.t1_simulation.mirror_parts import PAIR_TIMEOUT, Server, Stream, Violation

if TYPE_CHECKING:
    from tests.t1_simulation.mirror_world import World


class Data:
    """Part of a World."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.next_write = 0
        self.pair_replies: dict[int, Callable[[bool], None]] = {}

    def write_later(self, server: Server) -> None:
        def write() -> None:
            if server.app and server.powered:
                self.write(server)
                self.world.at(self.world.random.uniform(0.3, 1.5), write)

        self.world.at(self.world.random.uniform(0.05, 0.5), write)

    def write(self, server: Server) -> None:
        if server.rfs != "primary" or server.held:
            return
        self.next_write += 1
        number = self.next_write
        server.data.append(number)
        stream = server.stream
        if server.alone:
            self.ack(number)
            return
        server.held.append(number)
        if stream is None or not stream.live or not self.arrives(server.name):
            self.break_stream(server)
            return
        other = self.world.servers[server.peer]

        def arrive() -> None:
            if not stream.live or other.stream is not stream or other.rfs != "secondary":
                self.break_stream(server)
                return
            other.data.append(number)
            stream.carried.add(number)
            if not self.arrives(other.name):
                self.break_stream(server)
                return
            self.world.at(self.world.random.uniform(0.001, 0.05), back)

        def back() -> None:
            if stream.live and server.stream is stream and number in server.held:
                server.held.remove(number)
                self.ack(number)

        self.world.at(self.world.random.uniform(0.001, 0.05), arrive)

    def ack(self, number: int) -> None:
        self.world.judge.acked.add(number)

    def arrives(self, sender: str) -> bool:
        """Whether what `sender` sends on the replication link arrives."""
        peer = self.world.servers[self.world.servers[sender].peer]
        return peer.powered and self.world.passes(sender, 0)

    def break_stream(self, server: Server) -> None:
        """Both ends notice, each in its own time."""
        stream, server.stream = server.stream, None
        if server.rfs == "primary" and not server.alone and server.powered:
            self.tell(server.name, "replication_lost", self.world.random.uniform(0.05, 1.5))
        elif server.rfs == "secondary" and server.powered:
            kind = "rfs_failed" if server.inconsistent else "secondary_lost"
            self.tell(server.name, kind, self.world.random.uniform(0.05, 1.5))
        if stream is not None and stream.live:
            stream.live = False
            other = self.world.servers[server.peer]
            self.world.at(self.world.random.uniform(0.05, 1.5), lambda: self.stream_loses(other.name))

    def stream_loses(self, name: str) -> None:
        """The other end is gone: this one finds out when it uses the stream."""
        server = self.world.servers[name]
        other = self.world.servers[server.peer]
        for end in (server, other):
            if end.stream is not None and not end.stream.live:
                end.stream = None
                if end.rfs == "primary" and not end.alone:
                    self.tell(end.name, "replication_lost", self.world.random.uniform(0.05, 1.5))
                elif end.rfs == "secondary":
                    kind = "secondary_lost" if not end.inconsistent else "rfs_failed"
                    self.tell(end.name, kind, self.world.random.uniform(0.05, 1.5))

    def tell(self, name: str, kind: str, delay: float) -> None:
        """nfsadmin tells heart, and tells it again until heart acts on it."""
        server = self.world.servers[name]

        def tell(tries: int) -> None:
            wanted = (
                kind == "replication_lost" and server.rfs == "primary" and not server.alone and server.stream is None
            ) or (kind in ("secondary_lost", "rfs_failed") and server.rfs == "secondary" and server.stream is None)
            if server.powered and wanted and tries:
                self.world.feed(name, Replication(kind, kind))
                self.world.at(1.0, lambda: tell(tries - 1))

        self.world.at(delay, lambda: tell(8))

    def operate(self, server: Server, operation: str, options: dict[str, bool | str]) -> bool:
        if operation == "prepare":
            server.rfs = "standby" if server.rfs in ("none", "dead") else server.rfs
        elif operation == "primary":
            if options.get("swap"):
                server.rfs, server.alone = "primary", False
                if server.stream is None or not server.stream.live:
                    self.tell(server.name, "replication_lost", 0.2)
                return True
            if server.inconsistent and not options.get("force"):
                raise Violation(f"{server.name} becomes primary on inconsistent data (M2)")
            server.inconsistent = False
            self.world.judge.authority(server)
            server.rfs, server.alone = "primary", True
            self._drop_stream(server)
        elif operation == "alone":
            if server.rfs not in ("primary", "dead") or (server.rfs == "dead" and server.silent_box):
                return False
            server.rfs = "primary"
            self.world.judge.authority(server)
            server.alone = True
            self._drop_stream(server)
            for number in server.held:
                self.ack(number)
            server.held = []
        elif operation == "secondary":
            return self._secondary(server, swap=bool(options.get("swap")), attempt=str(options.get("attempt", "")))
        elif operation == "demote":
            if server.stream is None or server.held or server.alone or not server.stream.live:
                return False
            server.rfs = "standby"
        elif operation in ("standby", "release"):
            self._drop_stream(server)
            # writes that nobody acknowledged fail
            server.data = [n for n in server.data if n not in server.held]
            server.held = []
            server.rfs = "standby" if operation == "standby" else "none"
            server.alone = False
        return True

    def lose_box(self, server: Server) -> None:
        """nfsbox died: writes that nobody acknowledged fail, and so does the stream."""
        self._drop_stream(server)
        server.data = [n for n in server.data if n not in server.held]
        server.held, server.alone = [], False
        server.rfs = "dead"

    def _drop_stream(self, server: Server) -> None:
        stream, server.stream = server.stream, None
        if stream is not None and stream.live:
            stream.live = False
            self.world.at(0.05, lambda: self.stream_loses(server.peer))

    def _secondary(self, server: Server, *, swap: bool, attempt: str) -> bool:
        other = self.world.servers[server.peer]
        if not self.arrives(server.name) or not self.arrives(other.name) or other.rfs != "primary":
            return False
        if swap:
            if server.stream is None or not server.stream.live:
                return False
            server.rfs = "secondary"
            return True
        server.rfs = "secondary"
        server.inconsistent = True
        server.alone = False
        stream = Stream(server.name, attempt)
        server.stream = stream
        self.world.at(self.world.random.uniform(0.2, 4.0), lambda: self._end_of_reintegration(server, other, stream))
        return True

    def _end_of_reintegration(self, server: Server, other: Server, stream: Stream) -> None:
        """The secondary asks to be paired; the primary's heart remembers, then the copy is complete."""
        if server.stream is not stream or not stream.live or server.rfs != "secondary":
            return
        if (
            not (self.arrives(server.name) and self.arrives(other.name))
            or other.rfs != "primary"
            or other.heart is None
        ):
            stream.live = False
            server.stream = None
            self.tell(server.name, "rfs_failed", 0.3)
            return
        token = 1_000_000 + self.world.counter

        def paired(ok: bool) -> None:
            if not ok or not stream.live or server.stream is not stream or other.rfs != "primary":
                stream.live = False
                if server.stream is stream:
                    server.stream = None
                    self.tell(server.name, "rfs_failed", 0.3)
                if other.rfs == "primary" and ok:
                    other.alone, other.stream = False, None
                    self.tell(other.name, "replication_lost", 0.3)
                return
            other.alone = False
            other.stream = stream
            snapshot = list(other.data)
            self.world.at(self.world.random.uniform(0.001, 0.1), lambda: apply(snapshot))

        def apply(snapshot: list[int]) -> None:
            if not stream.live or server.stream is not stream or server.rfs != "secondary":
                return
            if not self.arrives(other.name):
                self.break_stream(other)
                return
            known = set(snapshot)
            final = snapshot + [n for n in server.data if n in stream.carried and n not in known]
            self.world.judge.replaced(server, final)
            server.data = final
            server.inconsistent = False
            stream.synced = True
            self.world.judge.settled_data()
            news = Replication("rfs_synced", attempt=stream.attempt)
            self.world.at(self.world.random.uniform(0.001, 0.2), lambda: self._tell_synced(server, news, server.life))

        def expire() -> None:
            if self.pair_replies.pop(token, None) is not None:
                paired(False)

        self.pair_replies[token] = paired
        self.world.at(PAIR_TIMEOUT, expire)
        self.world.feed(other.name, PairAsked(token))

    def _tell_synced(self, server: Server, news: Replication, life: int) -> None:
        """Told until heart answers: one that was frozen finds it several times in its socket."""
        self.world.feed(server.name, news)
        if server.life == life and self.world.now < server.frozen_until:
            self.world.at(2.5, lambda: self._tell_synced(server, news, life))

    def replied(self, token: int, ok: bool) -> None:
        paired = self.pair_replies.pop(token, None)
        if paired is not None:
            paired(ok)

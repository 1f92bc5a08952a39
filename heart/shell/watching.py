"""What a heart watches beside its events: its supervisor, the cluster, the other server's link addresses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from heart.core.values import Sibling
from heart.shell.complaints import Complaints
from safekit.bus.endpoint import BusError, Endpoint
from safekit.bus.requests.safeadmin.node import GetOtherServer
from safekit.net.neighbours import REFRESH_SECONDS, PermanentNeighbours

SUPERVISOR_SECONDS = 0.5
"""Between two attempts to reach a supervisord that ended the connection."""
CLUSTER_SECONDS = 2.0
"""Between two questions to safeadmin."""


async def deaths_of_supervisor(sock: Path) -> AsyncIterator[None]:
    """Each death of the supervisord behind the socket: a connection that stays open tells it at once, a second
    attempt that fails makes sure of it."""
    failures = 0
    while True:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(str(sock)), 5.0)
            failures = 0
            try:
                while await reader.read(64):
                    pass
            finally:
                writer.close()
        except (OSError, TimeoutError):
            failures += 1
        if failures == 2:
            yield
        await asyncio.sleep(SUPERVISOR_SECONDS)


async def views_of_cluster(
    bus: Endpoint, module: str, servers: Callable[[], Collection[str]]
) -> AsyncIterator[tuple[str, tuple[Sibling, ...] | None]]:
    """What safeadmin says, again and again: the value of cluster() in the rules, and `servers` as they run the module.
    ("unknown", None) when it does not answer."""
    while True:
        try:
            told = await bus.ask("", GetOtherServer(module), 1.0)
        except BusError:
            yield "unknown", None
        else:
            names = servers()
            yield told.value, tuple(_sibling(each) for each in told.servers if each.get("node") in names)
        await asyncio.sleep(CLUSTER_SECONDS)


def _sibling(told: Mapping[str, Any]) -> Sibling:
    """A server of the module, as safeadmin tells it."""
    agrees = tuple((str(name), str(value)) for name, value in told.get("agrees") or ())
    return Sibling(str(told.get("node")), agrees, str(told.get("state") or ""), int(told.get("since") or 0))


class PeerNeighbours:
    """The other server's link addresses, kept for ever where its links want that (permanent_arp, guide 13.3)."""

    def __init__(self, complaints: Complaints) -> None:
        self._complaints = complaints
        self._neighbours = PermanentNeighbours()
        #: Set when the addresses of the other server may have changed.
        self.due = asyncio.Event()

    async def keep(self, peers: Callable[[], tuple[str, ...]]) -> None:
        """Refresh those of `peers`, release all others; again when it is due, and now and then."""
        while True:
            self.due.clear()
            wanted = peers()
            try:
                await self._neighbours.refresh(wanted)
                self._neighbours.release(keep=wanted)
            except (OSError, ValueError) as error:
                addresses = ", ".join(wanted)
                self._complaints.say(("arp", addresses), str(error), code="arp_refused", addr=addresses)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.due.wait(), REFRESH_SECONDS)

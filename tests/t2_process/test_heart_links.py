"""Heartbeat links whose names get other addresses, or none (guide 9.3): a link that works is never given up for one
that does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from heart_pair import ADDRESSES, Two

from heart.core.values import Beat, Role
from heart.shell.links import Links
from heart.shell.wire import CONTEXT, LinkSocket, Route
from safekit.model.codec import from_json, to_json
from safekit.model.types import ClusterConfig, Lan, LanNode
from safekit.wire.seal import Opener, Sealer, new_key
from tests.ports import free_port
from tests.waiting import until

KEY = new_key()


class Side:
    """The links of one server, by names that `names` resolves."""

    def __init__(self, node: str, peer: str) -> None:
        self.node, self.peer = node, peer
        self.heard: list[str] = []
        self.news: list[str] = []
        self.sealer = Sealer(KEY, CONTEXT + "AM", node, 1)
        self.sequence = 0
        self.links = Links(
            self._make,
            lambda link: self.news.append("begun"),
            lambda link: self.news.append(f"moved to {link.places.peer[0] if link.places else None}"),
            lambda link, reason: self.news.append("held"),
        )

    def _make(self, route: Route) -> LinkSocket:
        opener = Opener([KEY], CONTEXT + "AM", [self.peer])
        return LinkSocket(
            route, "AM", self.sealer, opener, lambda ident, beat: self.heard.append(ident), lambda *_: None
        )

    async def use(self, port: int) -> bool:
        return await self.links.use([Route("default", f"{self.node}.lan", f"{self.peer}.lan", port, 0.1)])

    def send(self) -> None:
        self.sequence += 1
        for link in self.links.now:
            link.send(Beat(node=self.node, incarnation=1, sequence=self.sequence, role=Role.WAIT))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the name service knows."""
    known = {"a.lan": "127.0.0.1", "b.lan": "127.0.0.2"}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: object, **more: object) -> object:
        if str(host).endswith(".lan"):
            if host not in known:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            host = known[host]
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


async def passes(sender: Side, receiver: Side) -> None:
    before = len(receiver.heard)
    sender.send()
    await until(lambda: len(receiver.heard) == before + 1, 10, lambda: receiver.heard)


def run(work: Callable[[Side, Side], object]) -> None:
    async def inside() -> None:
        a, b = Side("a", "b"), Side("b", "a")
        try:
            await work(a, b)  # type: ignore[misc]
        finally:
            a.links.close()
            b.links.close()

    asyncio.run(inside())


def test_other_addresses_are_used_and_nothing_that_is_sent_is_lost(names: dict[str, str]) -> None:
    port = free_port()

    async def work(a: Side, b: Side) -> None:
        assert await a.use(port) and await b.use(port)
        await passes(a, b)
        names["a.lan"] = "127.0.0.3"
        first = a.links.now[0]
        assert await a.use(port) and a.links.now[0] is not first and a.news == ["begun", "moved to 127.0.0.2", "begun"]
        # b still sends to the former address, until it looks the name up too; what a sends arrives all the time.
        await passes(a, b)
        kept = b.links.now[0]
        assert await b.use(port) and b.links.now[0] is kept and b.news == ["begun", "moved to 127.0.0.3"]
        await passes(a, b)
        await passes(b, a)
        # Nothing has changed: the same sockets, and not a word.
        assert await a.use(port) and await b.use(port) and len(a.news) == 3 and b.links.now[0] is kept

    run(work)


@pytest.mark.parametrize("lost", ["a.lan", "b.lan"])
def test_a_name_service_that_is_down_costs_no_heartbeat(names: dict[str, str], lost: str) -> None:
    port = free_port()

    async def work(a: Side, b: Side) -> None:
        assert await a.use(port) and await b.use(port)
        kept, address = a.links.now[0], names.pop(lost)
        assert not await a.use(port) and a.links.now == [kept] and a.news[-1] == "held"
        await passes(a, b)
        await passes(b, a)
        names[lost] = address
        assert await a.use(port) and a.links.now == [kept]

    run(work)


def test_an_address_that_is_not_there_yet(names: dict[str, str]) -> None:
    port = free_port()

    async def work(a: Side, b: Side) -> None:
        assert await a.use(port) and await b.use(port)
        kept = a.links.now[0]
        names["a.lan"] = "192.0.2.7"
        assert not await a.use(port) and a.links.now == [kept] and a.news[-1] == "held"
        await passes(a, b)

    run(work)


def test_a_peer_without_an_address_at_the_start_is_found_later(names: dict[str, str]) -> None:
    port = free_port()

    async def work(a: Side, b: Side) -> None:
        address = names.pop("b.lan")
        await a.use(port)
        assert not a.links.now[0].usable and "b.lan" not in a.news
        names["b.lan"] = address
        await b.use(port)
        # As heart does at each pulse.
        await a.links.now[0].open()
        await passes(a, b)

    run(work)


def move(pair: Two, lan: str) -> None:
    """Both servers get another cluster.xml, with a lan of that name instead of `default`."""
    for node in (pair.n1, pair.n2):
        config = ClusterConfig((Lan(lan, nodes=tuple(LanNode(n, a) for n, a in ADDRESSES.items())),))
        (node.root / "var/cluster/cluster.json").write_text(to_json(config))


def test_a_cluster_without_the_lan_of_the_module_stops_it_in_order(tmp_path: Path) -> None:
    async def work() -> None:
        async with Two(tmp_path) as pair:
            await pair.form()
            move(pair, "other")
            await pair.n1.tell("reload")
            await until(lambda: "start_prim SECOND ALONE" in " ".join(pair.n2.trace()), 10, pair.show)
            assert any("The module stops" in text and "replication flow, default," in text for text in pair.n1.events())
            assert "stop_prim" in " ".join(pair.n1.trace()) and "Action stop called by SYSTEM" in pair.n1.events()
            # The other one heard of it on the link as it was: no time-out.
            assert "Reason of failover: remote stop" in pair.n2.events()

    asyncio.run(work())


def test_a_heart_that_is_killed_while_the_cluster_does_not_fit_stops_the_module(tmp_path: Path) -> None:
    async def work() -> None:
        async with Two(tmp_path) as pair:
            await pair.form()
            pair.n1.kill_heart()
            move(pair, "other")
            pair.n1.start_heart()
            await until(lambda: any("The module stops" in text for text in pair.n1.events()), 10, pair.show)
            await until(lambda: "stop_prim" in " ".join(pair.n1.trace()), 10, pair.show)
            await until(lambda: pair.n1.state() == "STOP red", 10, pair.show)
            kept = (pair.n1.file["var"] / "cluster.json").read_bytes()
            assert from_json(ClusterConfig, kept).lan("default") is not None

    asyncio.run(work())


def test_the_other_server_cannot_be_another_one_while_the_module_runs(tmp_path: Path) -> None:
    async def work() -> None:
        async with Two(tmp_path) as pair:
            await pair.form()
            config = ClusterConfig((Lan("default", nodes=(LanNode("n1", "127.0.0.1"), LanNode("n3", "127.0.0.3"))),))
            (pair.n1.root / "var/cluster/cluster.json").write_text(to_json(config))
            await pair.n1.tell("reload")
            await until(lambda: "Reason of failover: remote stop" in pair.n2.events(), 10, pair.show)
            assert any("its other server was n2 and would be n3" in text for text in pair.n1.events())

    asyncio.run(work())

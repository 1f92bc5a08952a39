"""The cluster key changes under running modules: every heartbeat is counted, on both servers (guide 10.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from heart_pair import Node as HeartNode
from heart_pair import Two

from lab.waiting import wait_until
from safekit.model.cluster import write_key
from safekit.wire import keys
from safekit.wire.seal import new_key
from tests.t2_process.farm_network import FarmServer, farm_network, farm_vip
from tests.waiting import until

SWITCH = 3.0
"""Seconds for which a process goes on with the former key, here."""
PROGRAM = "import safekit.wire.rotation as r; r.SWITCH_SECONDS = %g; from %s import main; main()"
Counts = dict[str, int]


def rotate(fresh: bytes) -> None:
    """What `cluster config` of another key does to the files of a server."""
    keys.remember_former(keys.cluster_key())
    write_key(fresh.hex())


async def on_its_way(receiver: Callable[[], Awaitable[Counts]], sender: Callable[[], Awaitable[Counts]]) -> int:
    """The smallest difference of what one sent and the other accepted: what was lost so far."""
    differences = []
    for _ in range(40):
        accepted = (await receiver())["accepted"]
        differences.append((await sender())["sent"] - accepted)
        await asyncio.sleep(0.013)
    return min(differences)


def test_of_a_mirror(tmp_path: Path) -> None:
    async def counts(node: HeartNode) -> Counts:
        found: Counts = (await node.tell("status"))["datagrams"]["flow"]
        return found

    async def work() -> None:
        async with Two(tmp_path) as pair:
            for node in (pair.n1, pair.n2):
                node.program = ("-c", PROGRAM % (SWITCH, "heart.main"))
            await pair.form()
            ways = [(pair.n2, pair.n1), (pair.n1, pair.n2)]
            before = [await on_its_way(lambda r=r: counts(r), lambda s=s: counts(s)) for r, s in ways]  # type: ignore[misc]
            refused = [(await counts(node))["refused"] for node in (pair.n1, pair.n2)]
            # Two changes, the second one before everybody uses the first; node2 hears of both later.
            first, second = new_key(), new_key()
            for node, key in ((pair.n1, first), (pair.n2, first), (pair.n1, second), (pair.n2, second)):
                node.inside(lambda key=key: rotate(key))  # type: ignore[misc]
                await asyncio.sleep(0.8)
            await asyncio.sleep(2 * SWITCH + 3.0)
            for node in (pair.n1, pair.n2):
                node.inside(lambda: (node.root / "var/cluster/cluster.key.former").unlink())  # noqa: B023
            await asyncio.sleep(2.5)
            after = [await on_its_way(lambda r=r: counts(r), lambda s=s: counts(s)) for r, s in ways]  # type: ignore[misc]
            assert after == before, "heartbeats were lost"
            assert [(await counts(node))["refused"] for node in (pair.n1, pair.n2)] == refused, pair.show()
            assert (pair.n1.state(), pair.n2.state()) == ("PRIM green", "SECOND green")
            # And it is the new key that is spoken: who has the first one only is not understood.
            pair.n2.kill_heart()
            pair.n2.inside(lambda: write_key(first.hex()))
            pair.n2.start_heart()
            await until(lambda: any("sealed with another key" in t for t in pair.n1.events()), 10, pair.show)

    asyncio.run(work())


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[FarmServer]]:
    with farm_network(2) as net:
        net.install(tmp_path, farm_vip("vmac_directed"), application=False)
        for server in net.servers:
            server.program = ("-c", PROGRAM % (SWITCH, "vipd.main"))
        net.start()
        yield net.servers


def test_of_a_farm(servers: list[FarmServer], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = servers

    async def counts(server: FarmServer) -> Counts:
        return dict(server.status()["datagrams"])

    async def measure() -> list[int]:
        return [await on_its_way(lambda: counts(two), lambda: counts(one)),
                await on_its_way(lambda: counts(one), lambda: counts(two))]  # fmt: skip

    def change(server: FarmServer, key: bytes) -> None:
        monkeypatch.setenv("SAFEVAR", server.environment["SAFEVAR"])
        rotate(key)

    wait_until(lambda: [server.status()["groups"][0]["bits"] for server in servers] == [[128, 128]] * 2, 20, "shared")
    before = asyncio.run(measure())
    fresh = new_key()
    for server in servers:
        change(server, fresh)
        asyncio.run(asyncio.sleep(1.2))
    asyncio.run(asyncio.sleep(SWITCH + 4.0))
    for server in servers:
        monkeypatch.setenv("SAFEVAR", server.environment["SAFEVAR"])
        (Path(server.environment["SAFEVAR"]) / "cluster/cluster.key.former").unlink()
    asyncio.run(asyncio.sleep(2.5))
    assert asyncio.run(measure()) == before, "heartbeats were lost"
    assert [server.status()["datagrams"]["refused"] for server in servers] == [0, 0]
    assert [server.status()["groups"][0]["bits"] for server in servers] == [[128, 128]] * 2
    for server in servers:
        assert len(server.log("farm_membership")) <= 2, "nobody left and came back"

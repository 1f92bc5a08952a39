"""The local bus over real sockets: answers, refusals, restarts, lost datagrams, strangers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from safekit.bus import endpoint, message
from safekit.bus.asking import Ask, Done
from safekit.bus.message import encode
from safekit.wire import seal
from tests.ports import free_port


@dataclass(frozen=True, slots=True)
class Stop(Ask[Done]):
    """What vipd serves in these tests."""

    process = "vipd"
    op = "stop"


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of our own: key and mapper port."""
    monkeypatch.setenv("SAFEVAR", str(tmp_path))
    monkeypatch.setenv("SAFEMAPPER", str(free_port()))
    (tmp_path / "bus.key").write_text(seal.new_key().hex())


async def mapper() -> endpoint.Endpoint:
    known: dict[str, tuple[int, str]] = {}

    async def handle(request: endpoint.Request) -> dict[str, object] | None:
        if request.op == "map_register":
            known[request.text("name")] = (request.fields["_port"], request.text("life"))
            return None
        port, incarnation = known.get(request.text("name"), (0, ""))
        return {"port": port, "incarnation": incarnation}

    return await endpoint.Endpoint.open("safeadmin", handle, port=int(os.environ["SAFEMAPPER"]))


async def echo(request: endpoint.Request) -> dict[str, object] | None:
    if request.op == "refuse":
        raise endpoint.BusError("no", "not today")
    if request.op == "broken":
        raise RuntimeError("defect")
    if request.op == "big":
        return {"data": "x" * 70_000}
    return {"op": request.op, "from": request.sender, "value": request.fields.get("value")}


def run(scenario: Callable[[endpoint.Endpoint], Awaitable[None]]) -> None:
    async def everything() -> None:
        admin = await mapper()
        client = await endpoint.Endpoint.open("AM/heart", echo)
        try:
            await scenario(client)
        finally:
            await client.close()
            await admin.close()

    asyncio.run(asyncio.wait_for(everything(), 20))


def test_request_and_reply() -> None:
    async def scenario(client: endpoint.Endpoint) -> None:
        server = await endpoint.Endpoint.open("AM/vipd", echo)
        await asyncio.sleep(0.05)
        reply = await client.by_word("AM/vipd", "hello", value=[1, "é", None])
        assert reply["value"] == [1, "é", None] and reply["from"] == "AM/heart"
        await server.close()

    run(scenario)


def test_refusals_and_defects_reach_the_asker() -> None:
    async def scenario(client: endpoint.Endpoint) -> None:
        for op, code in (("refuse", "no"), ("broken", "internal"), ("big", "too_long")):
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            with pytest.raises(endpoint.BusError) as caught:
                await client.by_word("AM/heart", op)
            assert caught.value.code == code

    run(scenario)


def test_unknown_and_dead_targets() -> None:
    async def scenario(client: endpoint.Endpoint) -> None:
        with pytest.raises(endpoint.UnknownTarget):
            await client.by_word("AM/nobody", "hello", timeout=0.3)
        server = await endpoint.Endpoint.open("AM/vipd", echo)
        await client.by_word("AM/vipd", "hello")
        await server.close()
        with pytest.raises(endpoint.BusTimeout):
            await client.by_word("AM/vipd", "hello", timeout=0.3)

    run(scenario)


def test_a_restarted_target_is_found_again() -> None:
    async def scenario(client: endpoint.Endpoint) -> None:
        first = await endpoint.Endpoint.open("AM/vipd", echo)
        await client.by_word("AM/vipd", "hello")
        await first.close()
        second = await endpoint.Endpoint.open("AM/vipd", echo)
        for _ in range(5):
            try:
                await client.by_word("AM/vipd", "hello", timeout=0.5)
                break
            except endpoint.BusTimeout:
                continue
        else:
            pytest.fail("the new port was never used")
        await second.close()

    run(scenario)


def test_a_repeated_request_is_executed_once() -> None:
    async def scenario(client: endpoint.Endpoint) -> None:
        calls: list[int] = []

        async def count(request: endpoint.Request) -> dict[str, object] | None:
            calls.append(1)
            await asyncio.sleep(0.6)
            return {"calls": len(calls)}

        server = await endpoint.Endpoint.open("AM/slow", count)
        await asyncio.sleep(0.05)
        assert (await client.by_word("AM/slow", "hello", timeout=5))["calls"] == 1
        await server.close()

    run(scenario)


async def opened(name: str, port: int, calls: list[str]) -> endpoint.Endpoint:
    """An endpoint that notes what it is asked to do."""

    async def note(request: endpoint.Request) -> dict[str, object] | None:
        calls.append(request.op)
        return {"who": name}

    return await endpoint.Endpoint.open(name, note, port=port)


@pytest.mark.parametrize("other", ["BM/heart", "AM/errd"])
@pytest.mark.parametrize("told", ["request", "notify"])
def test_a_port_that_is_anothers_by_now_does_not_obey(other: str, told: str) -> None:
    """The process that was looked up has gone, and the kernel has given its port to another one: that one refuses, and
    the sender finds whom it meant."""

    async def scenario(client: endpoint.Endpoint) -> None:
        meant, others = list[str](), list[str]()
        first = await opened("AM/vipd", 0, meant)
        await client.by_word("AM/vipd", "hello")
        port = first.port
        await first.close()
        await asyncio.sleep(0.05)
        wrong = await opened(other, port, others)
        second = await opened("AM/vipd", 0, meant)
        await asyncio.sleep(0.1)
        if told == "request":
            assert (await client.by_word("AM/vipd", "stop"))["who"] == "AM/vipd"
        else:
            client.tell("AM", Stop())
            await asyncio.sleep(0.3)
        assert meant == ["hello", "stop"] and others == [] and wrong.rejected > 0
        for each in (wrong, second):
            await each.close()

    run(scenario)


def test_a_port_that_is_anothers_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without an event loop: the mapper's answer was right when it was given."""

    async def scenario(client: endpoint.Endpoint) -> None:
        others = list[str]()
        wrong = await opened("BM/heart", 0, others)
        address = endpoint.Address(wrong.port, "gone")
        real = message._lookup_sync
        stale = [address]
        monkeypatch.setattr(message, "_lookup_sync", lambda *a: stale.pop() if stale else real(*a))
        with pytest.raises(endpoint.UnknownTarget):
            await asyncio.to_thread(endpoint.by_word_sync, "AM/vipd", "stop")
        stale.append(address)
        assert (await asyncio.to_thread(endpoint.by_word_sync, "AM/heart", "hello"))["op"] == "hello"
        assert others == []
        await wrong.close()

    run(scenario)


def test_what_must_not_be_done_twice_is_not_asked_of_a_successor() -> None:
    async def scenario(client: endpoint.Endpoint) -> None:
        asked = list[str]()

        async def silent(request: endpoint.Request) -> dict[str, object] | None:
            await asyncio.sleep(60)
            return None

        for repeatable in (False, True):
            first = await endpoint.Endpoint.open("AM/vipd", silent)
            await asyncio.sleep(0.05)
            client._addresses.pop("AM/vipd", None)
            asking = asyncio.ensure_future(client.by_word("AM/vipd", "swap", 5.0, repeatable=repeatable))
            await asyncio.sleep(0.1)
            await first.close()
            second = await opened("AM/vipd", 0, asked)
            if repeatable:
                assert (await asking)["who"] == "AM/vipd"
            else:
                with pytest.raises(endpoint.Restarted, match="safekit state"):
                    await asking
                assert asked == []
            await second.close()

    run(scenario)


@pytest.mark.parametrize("how", ["loop", "command"])
def test_what_must_not_be_done_twice_is_not_asked_again_because_a_strangers_port_refused_it(how: str) -> None:
    """The process has taken the request and died, and its port is another's already: that one's refusal says nothing
    of what the first has done."""

    async def scenario(client: endpoint.Endpoint) -> None:
        taken, asked = list[str](), list[str]()

        async def silent(request: endpoint.Request) -> dict[str, object] | None:
            taken.append(request.op)
            await asyncio.sleep(60)
            return None

        first = await endpoint.Endpoint.open("AM/vipd", silent)
        await asyncio.sleep(0.05)
        if how == "loop":
            asking = asyncio.ensure_future(client.by_word("AM/vipd", "swap", 5.0, repeatable=False))
        else:
            command = asyncio.to_thread(endpoint.by_word_sync, "AM/vipd", "swap", 5.0, repeatable=False)
            asking = asyncio.ensure_future(command)
        while not taken:
            await asyncio.sleep(0.01)
        port = first.port
        await first.close()
        await asyncio.sleep(0.05)
        wrong = await opened("BM/heart", port, asked)
        second = await opened("AM/vipd", 0, asked)
        with pytest.raises(endpoint.BusError) as caught:
            await asking
        assert caught.value.code == message.RESTARTED and "safekit state" in caught.value.text
        assert asked == [] and wrong.rejected > 0
        for each in (wrong, second):
            await each.close()

    run(scenario)


def test_what_must_not_be_done_twice_is_not_asked_of_another_life_of_safeadmin() -> None:
    """safeadmin has taken the command and was killed before it could say so; its successor has the same port."""

    async def everything() -> None:
        taken = dict[str, list[str]](first=[], second=[])
        port = int(os.environ["SAFEMAPPER"])

        async def admin(life: str) -> endpoint.Endpoint:
            async def handle(request: endpoint.Request) -> dict[str, object] | None:
                if request.op == "map_lookup":
                    return {"port": made.port, "incarnation": made.incarnation}
                taken[life].append(request.op)
                if life == "first":
                    await asyncio.sleep(60)
                return None

            made = await endpoint.Endpoint.open("safeadmin", handle, port=port)
            return made

        for repeatable in (False, True):
            first = await admin("first")
            asking = asyncio.ensure_future(
                asyncio.to_thread(endpoint.by_word_sync, "safeadmin", "control", 5.0, repeatable=repeatable)
            )
            while not taken["first"]:
                await asyncio.sleep(0.01)
            await first.close()
            await asyncio.sleep(0.4)
            second = await admin("second")
            if repeatable:
                await asking
                assert taken["second"] == ["control"]
            else:
                with pytest.raises(message.Restarted, match="safekit state"):
                    await asking
                assert taken["second"] == []
            await second.close()
            await asyncio.sleep(0.05)
            taken["first"].clear()

    asyncio.run(asyncio.wait_for(everything(), 20))


def test_what_must_not_be_done_twice_goes_to_the_life_that_is_there_now() -> None:
    """The address of an earlier life is no reason to doubt."""

    async def scenario(client: endpoint.Endpoint) -> None:
        asked = list[str]()
        first = await opened("AM/vipd", 0, asked)
        await client.by_word("AM/vipd", "hello")
        await first.close()
        second = await opened("AM/vipd", 0, asked)
        await asyncio.sleep(0.1)
        assert (await client.by_word("AM/vipd", "swap", 5.0, repeatable=False))["who"] == "AM/vipd"
        assert asked == ["hello", "swap"]
        await second.close()

    run(scenario)


def test_strangers_are_ignored() -> None:
    async def scenario(client: endpoint.Endpoint) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for data in (b"", b"x" * 16, os.urandom(500), b"x" * 60_000):
                sock.sendto(data, ("127.0.0.1", client.port))
            sock.sendto(encode({"id": 1, "op": "set", "from": "me"}, bytes(32)), ("127.0.0.1", client.port))
            key = endpoint.bus_key()
            nobody = {"id": 1, "op": "hello", "from": "me"}
            for sent in ({}, {"id": "x", "op": 1}, {"re": [], "ok": True}, {"id": 1, "op": "hello"}, nobody):
                sock.sendto(encode(sent, key), ("127.0.0.1", client.port))
        await asyncio.sleep(0.1)
        assert client.rejected >= 7
        assert (await client.by_word("AM/heart", "hello"))["op"] == "hello"

    run(scenario)


def test_commands_without_an_event_loop() -> None:
    async def scenario(client: endpoint.Endpoint) -> None:
        await client.by_word("AM/heart", "hello")  # waits until it is registered, which a command does not
        reply = await asyncio.to_thread(endpoint.by_word_sync, "AM/heart", "hello", value=3)
        assert reply["value"] == 3
        with pytest.raises(endpoint.BusError, match="not today"):
            await asyncio.to_thread(endpoint.by_word_sync, "AM/heart", "refuse")

    run(scenario)


def test_a_missing_key_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "bus.key").unlink()
    with pytest.raises(endpoint.BusError, match="safekitinstall"):
        endpoint.by_word_sync("safeadmin", "state")

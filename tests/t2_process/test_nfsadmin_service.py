"""nfsadmin between a heart and an nfsbox that write down what they are asked: orders, records, deaths."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfsbox.admin.service import Admin
from safekit.bus import endpoint as bus
from safekit.disk.paths import ModulePaths
from safekit.log.module import ModuleLog
from safekit.model.types import ClusterConfig, Lan, LanNode, ModuleConfig, Replicated, Rfs
from safekit.process.frame import Context, Lateness
from safekit.rfs.generations import DataState, from_fields, to_fields
from safekit.wire import seal
from tests.ports import free_port
from tests.waiting import until

Fields = dict[str, Any]


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAPPER", str(free_port()))
    monkeypatch.setenv("SAFEVAR", str(tmp_path))
    (tmp_path / "bus.key").write_text(seal.new_key().hex())
    ModulePaths("AM").rfs.mkdir(parents=True)


class World:
    """A mapper, a heart, an nfsbox whose process is a sleeping child, and the Admin under test."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.heart: list[tuple[str, Fields]] = []
        self.box: list[tuple[str, Fields]] = []
        self.stored: Fields | None = None
        self.journal = "none"
        self.session = "resync"
        self.durable = False
        self.disk_refused = False
        self.role = "secondary"
        self.refuse: dict[str, bus.BusError] = {}
        self.heart_answers = asyncio.Event()
        self.heart_answers.set()
        self.deadly: list[str] = []  # operations in which nfsbox dies, each once
        self.children: list[subprocess.Popen[bytes]] = []
        self.process = self.new_process()
        self.endpoints: list[bus.Endpoint] = []

    def new_process(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(["sleep", "60"])
        self.children.append(child)
        return child

    async def start(self) -> None:
        self.endpoints.append(await bus.Endpoint.open("safeadmin", self.map, port=int(os.environ["SAFEMAPPER"])))
        self.endpoints.append(await bus.Endpoint.open("AM/heart", self.on_heart))
        self.endpoints.append(await bus.Endpoint.open("AM/nfsbox", self.on_box))
        self.client = await bus.Endpoint.open("AM/reintegre", self.nothing)
        self.endpoints.append(self.client)
        lan = Lan("default", nodes=(LanNode("n1", "10.0.0.1"), LanNode("n2", "10.0.0.2")))
        config = ModuleConfig("AM", 1, rfs=Rfs((Replicated("/replicated"),), flow="default", port=5600))
        self.context = Context(
            "nfsadmin",
            "AM",
            "n1",
            ModulePaths("AM"),
            config,
            ClusterConfig((lan,)),
            ModuleLog("AM", "nfsadmin", "n1"),
            await bus.Endpoint.open("AM/nfsadmin", self.serve),
            Lateness(1.0, lambda late: None),
        )
        self.endpoints.append(self.context.bus)
        self.admin = Admin(self.context)

    async def stop(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.close()
        for child in self.children:
            child.kill()
            child.wait()

    async def map(self, request: bus.Request) -> Fields | None:
        if request.op == "map_register":
            self.ports[request.text("name")] = request.fields["_port"]
            return None
        if request.text("name") == "AM/nfsbox" and self.process.poll() is not None:
            return {"port": 0}
        return {"port": self.ports.get(request.text("name"), 0)}

    async def nothing(self, request: bus.Request) -> None:
        return None

    async def serve(self, request: bus.Request) -> Fields | None:
        return await self.admin.requests().handle(request)

    async def on_heart(self, request: bus.Request) -> Fields | None:
        self.heart.append((request.op, request.fields))
        if request.op == "process" and request.fields["name"] == "nfsbox" and request.fields["on"]:
            self.process = self.new_process()
        await self.heart_answers.wait()
        return None

    async def on_box(self, request: bus.Request) -> Fields | None:
        if request.op == "ping":
            if self.process.poll() is not None:
                await asyncio.sleep(5)
            return {"pid": self.process.pid}
        self.box.append((request.op, request.fields))
        if request.op in self.deadly:
            self.deadly.remove(request.op)
            self.process.kill()
            await asyncio.sleep(60)
        if request.op in self.refuse:
            raise self.refuse.pop(request.op)
        if "state" in request.fields:
            self.stored = request.fields["state"]
            (self.context.paths.rfs / "state").write_bytes(b"x")
        if request.op == "prepare":
            return {"state": self.stored, "journal": self.journal}
        if request.op == "status":
            return {"role": self.role, "peer": "n2", "session": self.session}
        answer = {"session": 1, "held": 0, "state": self.stored, "durable": self.durable}
        return answer | ({"refused": True} if request.op == "secondary" and self.disk_refused else {})

    async def killed(self) -> None:
        """nfsadmin dies and is started again."""
        self.heart.clear()
        self.admin = Admin(self.context, adopting=True)
        await self.admin.adopt()

    async def both_killed(self, state: str) -> None:
        """nfsadmin and nfsbox die; nfsadmin is started again."""
        self.context.paths.resources.write_text(f"state.local {state} 1.000 heart\n")
        self.context.bus._addresses.clear()  # those of a new process
        self.admin.asking.unwatch()  # the dead one sees nothing
        self.process.kill()
        self.process.wait()
        self.box.clear()
        await self.killed()

    async def ask(self, op: str, **fields: Any) -> Fields:
        return await self.client.by_word("AM/nfsadmin", op, 10.0, **fields)

    async def until(self, condition: Callable[[], object]) -> None:
        await until(condition, 10, lambda: f"heart was told {self.heart[-8:]}")

    def events(self) -> list[str]:
        return [fields["kind"] for op, fields in self.heart if op == "event"]

    @property
    def state(self) -> DataState:
        return from_fields(self.stored)


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def everything() -> None:
        world = World()
        await world.start()
        try:
            await scenario(world)
        finally:
            await world.stop()

    asyncio.run(asyncio.wait_for(everything(), 30))


def asked(world: World) -> list[tuple[str, Fields]]:
    """What heart was asked to start and stop."""
    return [(op, {n: fields[n] for n in ("name", "on")}) for op, fields in world.heart if op == "process"]


PEER = DataState(77, peer=0, current=500)


def test_first_start_as_primary_and_orderly_stop() -> None:
    async def scenario(world: World) -> None:
        answer = await world.ask("prepare")
        assert answer["consistent"] is True and answer["generation"] == 0
        generation = (await world.ask("primary"))["generation"]
        assert world.state.open and world.state.current == generation != 0
        await world.ask("release")
        assert [op for op, _ in world.box] == ["prepare", "primary", "release", "state_set"]
        assert not world.state.open and world.state.closed_ns

    run(scenario)


def test_reintegration_marks_before_it_begins_and_records_before_it_tells() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("secondary", peer="n2", fullsync=False)
        secondary = next(f for op, f in world.box if op == "secondary")
        assert (secondary["address"], secondary["port"], secondary["source"]) == ("10.0.0.2", 5600, "10.0.0.1")
        await world.until(lambda: ("process", "reintegre") in [(o, f.get("name")) for o, f in world.heart])
        answer = await world.ask("rei_begin", source=to_fields(PEER), pid=os.getpid())
        assert (answer["kind"], answer["rule"]) == ("full", "first_synchronisation")
        assert world.state.consistent is False and world.state.copying
        assert "rfs_synced" not in world.events()
        await world.ask("rei_end", source=to_fields(PEER))
        assert world.state.consistent and (world.state.current, world.state.peer) == (500, 77)
        await world.until(lambda: "rfs_synced" in world.events())
        assert (await world.ask("status"))["paired"] is True

    run(scenario)


@pytest.mark.parametrize("begun", [False, True])
def test_killed_in_a_reintegration_it_has_it_begun_again(begun: bool) -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("secondary", peer="n2")
        on = ("process", {"name": "reintegre", "on": True})
        await world.until(lambda: on in asked(world))
        if begun:
            await world.ask("rei_begin", source=to_fields(PEER), pid=os.getpid())
        await world.killed()
        await world.until(lambda: on in asked(world))
        assert asked(world)[0] == ("process", {"name": "reintegre", "on": False}), "the one before is ended first"
        rule = (await world.ask("rei_begin", source=to_fields(PEER), pid=os.getpid()))["rule"]
        assert rule == ("full_resumed" if begun else "first_synchronisation")
        await world.ask("rei_end", source=to_fields(PEER))
        await world.until(lambda: "rfs_synced" in world.events())

    run(scenario)


@pytest.mark.parametrize(
    ("session", "recorded", "told"),
    [
        ("paired", True, ["rfs_synced"]),
        ("paired", False, ["rfs_failed", "secondary_lost"]),
        ("lost", True, ["rfs_failed", "secondary_lost"]),
        ("lost", False, ["rfs_failed", "secondary_lost"]),
        ("handed_over", True, []),
    ],
)
def test_killed_it_tells_heart_what_nobody_heard_meanwhile(session: str, recorded: bool, told: list[str]) -> None:
    async def scenario(world: World) -> None:
        world.stored = to_fields(DataState(5, peer=77, current=400, consistent=recorded))
        await world.ask("prepare")
        world.session = session
        await world.killed()
        assert (await world.ask("status"))["paired"] is (session in ("paired", "handed_over") and recorded)
        await world.until(lambda: sorted(world.events()) == told)
        assert not asked(world), "no reintegration is started"

    run(scenario)


def test_a_death_of_nfsbox_after_the_hand_over_degrades_nobody() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("primary")
        await world.ask("demote")
        world.heart.clear()
        world.process.kill()
        await world.until(lambda: world.box[-1][0] == "standby")
        assert ("process", {"name": "nfsbox", "on": True}) in asked(world)
        assert "rfs.degraded" not in [fields.get("resource") for op, fields in world.heart if op == "set"]
        prepared = [fields for op, fields in world.box if op == "prepare"]
        assert prepared[-1]["degraded"] is False

    run(scenario)


def test_data_of_a_nfsbox_that_died_before_it_applied_what_it_had_acknowledged_is_not_taken_over() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("secondary", peer="n2")
        await world.until(lambda: ("process", {"name": "reintegre", "on": True}) in asked(world))
        await world.ask("rei_begin", source=to_fields(PEER), pid=os.getpid())
        await world.ask("rei_end", source=to_fields(PEER))
        world.process.kill()
        await world.until(lambda: "nfsbox_died" in world.events())
        with pytest.raises(bus.BusError) as caught:
            await world.ask("primary")
        assert caught.value.code == "unapplied"
        await world.ask("standby")  # heart knows now that the data is out of date
        await world.ask("primary")

    run(scenario)


async def become_equal(world: World) -> None:
    await world.ask("prepare")
    await world.ask("secondary", peer="n2")
    await world.until(lambda: ("process", {"name": "reintegre", "on": True}) in asked(world))
    await world.ask("rei_begin", source=to_fields(PEER), pid=os.getpid())
    await world.ask("rei_end", source=to_fields(PEER))


def test_what_was_acknowledged_and_not_applied_is_known_although_nfsadmin_died_too() -> None:
    async def scenario(world: World) -> None:
        await become_equal(world)
        assert world.state.unapplied, "durable before heart knows that the pair is equal"
        world.admin = Admin(world.context)
        assert (await world.ask("prepare"))["unapplied"] is True
        await world.ask("release")
        assert (await world.ask("prepare"))["unapplied"] is True, "a stop afterwards proves nothing"
        await world.ask("primary")  # heart knows, and an administrator decided
        await world.ask("release")
        assert (await world.ask("prepare"))["unapplied"] is False

    run(scenario)


def test_a_nfsadmin_that_finds_a_remade_nfsbox_remembers_what_may_be_missing() -> None:
    async def scenario(world: World) -> None:
        await become_equal(world)
        world.role = "standby"
        await world.killed()
        with pytest.raises(bus.BusError) as caught:
            await world.ask("primary")
        assert caught.value.code == "unapplied"

    run(scenario)


@pytest.mark.parametrize("op", ["release", "standby", "primary"])
def test_an_orderly_end_of_the_session_leaves_nothing_unapplied(op: str) -> None:
    async def scenario(world: World) -> None:
        await become_equal(world)
        await world.ask(op)
        world.admin = Admin(world.context)
        assert (await world.ask("prepare"))["unapplied"] is False

    run(scenario)


def test_both_roles_of_a_swap() -> None:
    async def scenario(world: World) -> None:
        await become_equal(world)
        await world.ask("primary", swap=True)
        assert not world.state.unapplied
        await world.ask("demote")
        await world.ask("secondary", peer="n2", swap=True)
        assert world.state.unapplied
        world.durable = True
        await world.ask("primary", swap=True)
        await world.ask("demote")
        await world.ask("secondary", peer="n2", swap=True)
        assert not world.state.unapplied, 'async="none" acknowledges nothing that is not on disk'

    run(scenario)


def test_a_disk_that_has_refused_makes_no_secondary_before_everything_was_compared() -> None:
    async def scenario(world: World) -> None:
        await become_equal(world)
        await world.ask("primary", swap=True)
        await world.ask("demote")
        world.disk_refused = True
        await world.ask("secondary", peer="n2", swap=True)
        await world.until(lambda: "secondary_lost" in world.events())
        assert world.box[-1][0] == "standby", "the changes of the new primary wait for nobody"
        assert (await world.ask("status"))["paired"] is False and not world.state.unapplied
        await world.ask("secondary", peer="n2")
        same = replace(PEER, peer=world.state.server)
        answer = await world.ask("rei_begin", source=to_fields(same), pid=os.getpid())
        assert (answer["kind"], answer["rule"], answer["uncached"]) == ("resume", "disk_refused", True)

    run(scenario)


def test_with_async_none_nothing_is_acknowledged_before_it_is_applied() -> None:
    async def scenario(world: World) -> None:
        world.durable = True
        await become_equal(world)
        assert not world.state.unapplied
        world.process.kill()
        await world.until(lambda: "nfsbox_died" in world.events())
        await world.ask("primary")

    run(scenario)


def test_an_operation_waits_until_a_restarted_nfsadmin_knows_what_runs() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        world.admin = Admin(world.context, adopting=True)
        asked = asyncio.ensure_future(world.ask("secondary", peer="n2"))
        await asyncio.sleep(0.1)
        assert not asked.done()
        await world.admin.adopt()
        assert (await asked)["session"] == 1

    run(scenario)


def test_a_connection_that_is_not_ready_yet_is_tried_again() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        world.refuse["secondary"] = bus.BusError("connect", "connection refused")
        await world.ask("secondary", peer="n2")
        assert [op for op, _ in world.box].count("secondary") == 2

    run(scenario)


def test_fullsync_is_asked_once_and_then_resumed() -> None:
    async def scenario(world: World) -> None:
        world.stored = to_fields(DataState(5, peer=77, current=400))
        source = DataState(77, peer=5, current=500, base=400)
        await world.ask("prepare")
        await world.ask("secondary", peer="n2", fullsync=True)
        assert (await world.ask("rei_begin", source=to_fields(source), pid=0))["rule"] == "full_demanded"
        await world.ask("rei_failed", reason="cable")
        await world.until(lambda: "rfs_failed" in world.events())
        await world.ask("standby")
        await world.ask("secondary", peer="n2")
        assert (await world.ask("rei_begin", source=to_fields(source), pid=0))["rule"] == "full_resumed"

    run(scenario)


@pytest.mark.parametrize("dies", ["after the connection", "before the connection", "after a power failure"])
def test_fullsync_is_remembered_by_whoever_comes_after(dies: str) -> None:
    """The wish is on disk before anything else, and is fulfilled when the copy has begun."""

    async def scenario(world: World) -> None:
        world.stored = to_fields(DataState(5, peer=77, current=400))
        source = DataState(77, peer=5, current=500, base=400)
        await world.ask("prepare")
        if dies == "before the connection":
            world.refuse["secondary"] = bus.BusError("session", "the key is wrong")
            with pytest.raises(bus.BusError):
                await world.ask("secondary", peer="n2", fullsync=True)
        else:
            await world.ask("secondary", peer="n2", fullsync=True)
        if dies == "after the connection":
            world.role, world.session = "secondary", "resync"
            await world.killed()
        else:
            world.role = "none"
            await world.killed()
            await world.ask("prepare")
            await world.ask("secondary", peer="n2")
        await world.until(lambda: ("process", {"name": "reintegre", "on": True}) in asked(world))
        answer = await world.ask("rei_begin", source=to_fields(source), pid=0)
        assert (answer["kind"], answer["rule"]) == ("full", "full_demanded")
        assert "second fullsync" in answer["sentence"]

    run(scenario)


def test_a_server_that_waits_still_knows_of_the_power_failure_when_its_nfsadmin_is_killed() -> None:
    async def scenario(world: World) -> None:
        world.stored = to_fields(DataState(5, peer=77, current=400, base=300, open=True, boot=3))
        world.journal = "bad"
        await world.ask("prepare")
        before = world.admin.standing.known_state()
        world.role = "standby"
        await world.killed()
        after = world.admin.standing.known_state()
        assert not after.tracked and before.idle_ns and abs(after.idle_ns - before.idle_ns) < 10**9

    run(scenario)


def test_an_incomplete_primary_is_refused_as_source_and_as_primary() -> None:
    async def scenario(world: World) -> None:
        world.stored = to_fields(DataState(5, peer=77, current=400, consistent=False))
        assert (await world.ask("prepare"))["consistent"] is False
        with pytest.raises(bus.BusError) as caught:
            await world.ask("primary")
        assert caught.value.code == "inconsistent"
        await world.ask("secondary", peer="n2")
        with pytest.raises(bus.BusError) as caught:
            await world.ask("rei_begin", source=to_fields(DataState(77, current=3, consistent=False)), pid=0)
        assert caught.value.code == "refused"

    run(scenario)


def test_primforce_declares_the_data_valid_and_demands_everything() -> None:
    async def scenario(world: World) -> None:
        world.stored = to_fields(DataState(5, peer=77, current=400, consistent=False))
        await world.ask("prepare")
        await world.ask("primary", force=True)
        assert world.state.consistent and world.state.full_serial

    run(scenario)


def test_the_note_of_config_demands_everything_once() -> None:
    async def scenario(world: World) -> None:
        note = ModulePaths("AM").full_required
        note.touch()
        await world.ask("prepare")
        assert not note.exists()
        assert world.stored is not None and from_fields(world.stored).full_serial != 0
        demanded = from_fields(world.stored).full_serial
        await world.ask("prepare")
        assert from_fields(world.stored).full_serial == demanded

    run(scenario)


def test_pair_asks_heart_before_it_answers() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("primary")
        answer = await world.ask("pair", peer="n2", server=77)
        assert [op for op, _ in world.heart if op == "pair"] == ["pair"]
        assert from_fields(answer["state"]).peer == 77
        before = world.state.current
        await world.ask("alone")
        assert (world.state.base, world.state.peer) == (before, 77) and world.state.current != before

    run(scenario)


def test_nfsbox_dies_on_a_prim_and_comes_back_without_replication() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("primary")
        world.stored = (await world.ask("pair", peer="n2", server=77))["state"]  # nfsbox records it
        world.box.clear()
        world.process.kill()
        await world.until(
            lambda: (
                ("set", "rfs.degraded", "up", "nfsadmin")
                in [(o, f.get("resource"), f.get("value"), f.get("who")) for o, f in world.heart]
            )
        )
        await world.ask("alone")
        assert [op for op, _ in world.box] == ["prepare", "primary"]
        assert world.box[0][1]["degraded"] is True
        await world.until(lambda: "nfsbox_died" in world.events())  # the application may be restarted now
        assert world.state.base, "the peer lacks what is written from now on"

    run(scenario)


@pytest.mark.parametrize("role", ["first start", "alone", "prim", "second"])
def test_nfsbox_that_dies_again_while_it_is_prepared_is_started_again(role: str) -> None:
    async def scenario(world: World) -> None:
        if role == "first start":
            world.deadly = ["prepare", "prepare"]
            await world.ask("prepare")
            assert [op for op, _ in world.box] == ["prepare"] * 3
            return
        await world.ask("prepare")
        await world.ask("secondary" if role == "second" else "primary", peer="n2")
        if role == "prim":
            world.stored = (await world.ask("pair", peer="n2", server=77))["state"]
        world.box.clear()
        world.deadly = ["prepare", "standby" if role == "second" else "primary"]
        world.process.kill()
        if role == "prim":
            await world.until(lambda: not world.deadly or "prepare" not in world.deadly)
            await world.until(lambda: [op for op, _ in world.box] == ["prepare", "prepare"])
            await asyncio.sleep(0.3)
            assert not world.admin.recovery.active, "it waits for heart, which does not know yet"
            world.deadly.clear()
            world.process.kill()
            await world.until(lambda: len(world.box) == 3)
            await asyncio.sleep(0.3)
            assert [op for op, _ in world.box] == ["prepare"] * 3, "still"
            await world.ask("alone")
            assert world.state.base and world.box[-1][0] == "primary"
        elif role == "alone":
            await world.until(lambda: "nfsbox_died" in world.events())
            assert [op for op, _ in world.box] == ["prepare", "prepare", "primary", "prepare", "primary"]
        else:
            await world.ask("standby")
            await world.ask("secondary", peer="n2")
            assert [op for op, _ in world.box][-2:] == ["standby", "secondary"]
        assert not world.deadly

    run(scenario)


def test_killed_with_its_nfsbox_on_a_primary_it_has_the_application_go_on() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("primary")
        await world.both_killed("ALONE")
        await world.until(lambda: "nfsbox_died" in world.events())
        assert [(op, fields.get("degraded")) for op, fields in world.box] == [("prepare", True), ("primary", None)]
        assert ("rfs.degraded", "up") in [(f.get("resource"), f.get("value")) for _, f in world.heart]
        world.stored = (await world.ask("pair", peer="n2", server=77))["state"]
        await world.both_killed("PRIM")
        await world.until(lambda: world.box)
        await asyncio.sleep(0.3)
        assert [op for op, _ in world.box] == ["prepare"], "it waits for heart, which does not know yet"
        await world.ask("alone")
        assert world.state.base and [op for op, _ in world.box] == ["prepare", "primary"]

    run(scenario)


@pytest.mark.parametrize("state", ["SECOND", "WAIT"])
def test_killed_with_its_nfsbox_on_a_secondary_it_knows_what_may_be_missing(state: str) -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("secondary", peer="n2")
        await world.ask("rei_begin", source=to_fields(PEER), pid=0)
        await world.ask("rei_end", source=to_fields(PEER))
        await world.both_killed(state)
        if state == "SECOND":
            await world.until(lambda: "nfsbox_died" in world.events())
        with pytest.raises(bus.BusError) as caught:
            await world.ask("primary")
        assert caught.value.code == "unapplied"
        await world.ask("standby")
        await world.ask("secondary", peer="n2")
        assert [op for op, _ in world.box][-1] == "secondary"

    run(scenario)


def test_nfsbox_dies_on_an_alone() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("primary")
        world.box.clear()
        world.process.kill()
        await world.until(lambda: [op for op, _ in world.box] == ["prepare", "primary"])
        await world.until(lambda: "nfsbox_died" in world.events())

    run(scenario)


def test_nfsbox_dies_on_a_second() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("secondary", peer="n2")
        await world.ask("rei_begin", source=to_fields(PEER), pid=0)
        await world.ask("rei_end", source=to_fields(PEER))
        world.process.kill()
        await world.until(lambda: "nfsbox_died" in world.events())
        await world.ask("standby")
        await world.ask("secondary", peer="n2")
        assert world.state.clean is False, "it crashed, so what was in flight is compared"

    run(scenario)


def test_reintegre_that_dies_is_started_again_a_few_times() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("secondary", peer="n2")
        for number in range(4):
            await world.until(
                lambda n=number: (
                    [
                        f.get("on")
                        for o, f in world.heart  # type: ignore[misc]
                        if f.get("name") == "reintegre"
                    ].count(True)
                    == n + 1
                )
            )
            child = world.new_process()
            await world.ask("rei_begin", source=to_fields(PEER), pid=child.pid)
            child.kill()
        await world.until(lambda: "rfs_failed" in world.events())

    run(scenario)


def test_the_stream_breaks_during_the_reintegration() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("secondary", peer="n2")
        await world.ask("rei_begin", source=to_fields(PEER), pid=0)
        await world.ask("session_lost", reason="the primary is gone", peer="n1", role="secondary")
        await world.until(lambda: "rfs_failed" in world.events())
        assert world.state.consistent is False

    run(scenario)


def test_bandwidth_is_told_on_change_only() -> None:
    async def scenario(world: World) -> None:
        await world.ask("prepare")
        await world.ask("primary")
        for value in (10, 10, 20):
            await world.ask("rfs_bandwidth", replication=value, reintegration=0)
        await world.until(
            lambda: (
                [f["value"] for o, f in world.heart if f.get("resource") == "rfs_bandwidth.replication"] == ["10", "20"]
            )
        )

    run(scenario)


def test_a_damaged_record_is_told_and_costs_a_full_reintegration() -> None:
    async def scenario(world: World) -> None:
        world.stored = {"server": "nonsense"}
        assert (await world.ask("prepare"))["generation"] == 0
        assert "copies everything" in world.context.log.path.read_text()

    run(scenario)


def test_a_pair_that_heart_confirms_late_does_not_undo_that_this_server_went_on_alone() -> None:
    """heart's answer was lost and asked for again; what it decided afterwards came first."""

    async def scenario(world: World) -> None:
        world.stored = to_fields(DataState(5, peer=77, current=400))
        await world.ask("prepare")
        await world.ask("primary")
        world.heart_answers.clear()
        paired = asyncio.ensure_future(world.ask("pair", peer="n2", server=77))
        await world.until(lambda: [op for op, _ in world.heart if op == "pair"])
        await world.ask("alone")
        world.heart_answers.set()
        with pytest.raises(bus.BusError, match="gone on without"):
            await paired
        assert world.admin.standing.state == world.state and world.state.base and not world.admin.standing.paired

    run(scenario)

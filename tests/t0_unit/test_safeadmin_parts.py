"""The pure parts of safeadmin: which commands are taken, cluster(), facts, what the wire carries, the mapper."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from safeadmin import wire
from safeadmin.actions import ACTIONS, MIRROR_ONLY, Refusal, Way, plan
from safeadmin.adminlog import MAX_BYTES, AdminLog, Complaints
from safeadmin.boot import BootRecord
from safeadmin.clusterstatus import ClusterStatus, cluster_status
from safeadmin.facts import FactsTable, ModuleFacts, NodeFacts, pack, version
from safeadmin.mapper import SERVICES, Mapper
from safekit.model.codec import from_json
from safekit.wire.membership import Membership, Pulse, Row, Rules

UP, DOWN, UNKNOWN = ClusterStatus.UP, ClusterStatus.DOWN, ClusterStatus.UNKNOWN


@pytest.mark.parametrize(
    "remote, responding, told, settled, expected",
    [
        # Error or module not configured.
        (None, {"n2"}, {"n2": True}, True, UNKNOWN),
        # At least one remote node is configured for the module and answers.
        ({"n2"}, {"n2"}, {"n2": True}, True, UP),
        ({"n2", "n3"}, {"n3"}, {"n2": True, "n3": True}, True, UP),
        ({"n2"}, {"n2"}, {"n2": True}, False, UP),
        # All of them are silent.
        ({"n2"}, set(), {"n2": True}, True, DOWN),
        ({"n2"}, set(), {}, True, DOWN),
        ({"n2", "n3"}, {"n3"}, {"n2": True, "n3": False}, True, DOWN),
        # A node that is not on the module's lans does not count.
        ({"n2"}, {"n4"}, {"n2": True, "n4": True}, True, DOWN),
        # Just started: silence means nothing yet.
        ({"n2"}, set(), {}, False, UNKNOWN),
        # It answers and has not told yet whether it has the module.
        ({"n2"}, {"n2"}, {}, True, UNKNOWN),
        # Nobody else has the module.
        ({"n2"}, {"n2"}, {"n2": False}, True, UNKNOWN),
        ({"n2"}, set(), {"n2": False}, True, UNKNOWN),
        (set(), set(), {}, True, UNKNOWN),
    ],
)
def test_cluster_status(
    remote: set[str] | None, responding: set[str], told: dict[str, bool], settled: bool, expected: ClusterStatus
) -> None:
    nodes = None if remote is None else frozenset(remote)
    assert cluster_status(nodes, frozenset(responding), told, settled) is expected


GOOD = {"installed": True, "configured": True, "in_cluster": True, "running": False, "mode": "mirror", "problem": ""}


def test_plan_of_commands() -> None:
    assert plan("start", "am", GOOD) is Way.SPAWN
    assert plan("stopstart", "am", GOOD) is Way.SPAWN
    assert plan("stop", "am", GOOD) is Way.NOTHING
    for action in ACTIONS - {"forcestop"}:
        assert plan(action, "am", {**GOOD, "running": True}) is Way.FORWARD
    for action in MIRROR_ONLY:
        refusal = plan(action, "am", {**GOOD, "mode": "farm"})
        assert isinstance(refusal, Refusal) and refusal.code == "wrong_mode"


def test_a_module_can_be_stopped_whatever_is_broken() -> None:
    broken = {**GOOD, "configured": False, "in_cluster": False, "problem": "active.json: not valid JSON"}
    assert plan("stop", "am", {**broken, "running": True}) is Way.FORWARD
    for running in (True, False):
        assert plan("forcestop", "am", {**broken, "running": running}) is Way.FORCE


def test_every_refusal_names_a_next_step() -> None:
    for change in ({"installed": False}, {"configured": False}, {"in_cluster": False}, {"mode": "light"}):
        for action in ACTIONS:
            found = plan(action, "am", {**GOOD, **change})
            if isinstance(found, Refusal):
                assert "; safekit " in found.text, found


CONFIGURATION = wire.configuration_id("ab" * 32)


def test_messages_survive_the_wire() -> None:
    messages: tuple[wire.Message, ...] = (
        Pulse((Row(1, 1 << 62, 7, 0b101, 99), Row(0, 5, 1 << 40, 0b10, 0))),
        wire.Want(2, 3, 4),
        wire.Facts(2, 3, 4, b"data"),
    )
    for message in messages:
        assert wire.decode(wire.encode(message, CONFIGURATION), CONFIGURATION, 3) == message


def test_a_full_pulse_fits_a_frame() -> None:
    rows = tuple(Row(n, 1 << 62, 1 << 40, (1 << 32) - 1 & ~(1 << n), 1 << 63) for n in range(32))
    data = wire.encode(Pulse(rows), CONFIGURATION)
    assert wire.decode(data, CONFIGURATION, 32) == Pulse(rows)
    assert len(data) + 41 <= 1400


@pytest.mark.parametrize(
    "row", [Row(3, 1, 1, 0, 0), Row(0, 1, 1, 0b1000, 0), Row(1, 1, 1, 0b010, 0), Row(200, 1, 1, 0, 0)]
)
def test_rows_that_cannot_be_are_refused(row: Row) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(wire.encode(Pulse((row,)), CONFIGURATION), CONFIGURATION, 3)


def test_two_rows_of_one_node_and_empty_pulses_are_refused() -> None:
    row = Row(0, 1, 1, 0, 0)
    for rows in ((row, row), ()):
        with pytest.raises(wire.WireError):
            wire.decode(wire.encode(Pulse(rows), CONFIGURATION), CONFIGURATION, 3)


def test_hostile_payloads_raise_nothing_else() -> None:
    draw = random.Random(3)
    for _ in range(5000):
        payload = bytes([draw.randrange(5)]) + (CONFIGURATION if draw.random() < 0.9 else b"x" * 8)
        payload = (payload + draw.randbytes(draw.randrange(120)))[: draw.randrange(130)]
        try:
            wire.decode(payload, CONFIGURATION, draw.randint(1, 32))
        except wire.WireError:
            continue


def test_another_configuration_is_told_apart() -> None:
    data = wire.encode(wire.Want(0, 1, 1), wire.configuration_id("cd" * 32))
    with pytest.raises(wire.OtherConfiguration):
        wire.decode(data, CONFIGURATION, 3)
    for bad in ("", "xy", "abcd"):
        with pytest.raises(ValueError, match="apply the configuration again"):
            wire.configuration_id(bad)


FACTS = NodeFacts("ab", "2026-01-01T00:00:00", True, (ModuleFacts("am", 1, "mirror", "cd", "2026", True),))


def hearing(facts: int) -> Membership:
    membership = Membership(Rules(3, 0, 1.0, 5, 5), 1, 0.0)
    membership.receive(Pulse((Row(1, 1, 1, 1, facts),)), 0.1)
    return membership


def test_facts_are_asked_once_a_period_and_learned_when_they_are_what_was_announced() -> None:
    data = pack(FACTS)
    membership, table = hearing(version(data)), FactsTable(3, 0)
    (want,) = table.missing(membership, 1, 0.1)
    assert table.missing(membership, 1, 0.5) == [] and table.missing(membership, 1, 1.5) == [want]
    other = FactsTable(3, 1)
    other.set_own(FACTS)
    told = other.answer(want)
    assert told is not None and told.data == data
    assert not table.learn(wire.Facts(1, 1, told.facts, b"{}"), membership), "other bytes than announced"
    assert not table.learn(wire.Facts(0, 1, told.facts, data), membership), "facts about this server"
    assert table.learn(told, membership) and table.get(1) == FACTS
    assert not table.learn(told, membership), "known already"
    assert table.missing(membership, 1, 9.0) == []


def test_facts_of_another_release_are_kept_but_not_understood() -> None:
    data = b'{"signature": 1}'
    membership, table = hearing(version(data)), FactsTable(3, 0)
    assert not table.learn(wire.Facts(1, 1, version(data), data), membership)
    assert table.get(1) is None and table.missing(membership, 1, 9.0) == []


def test_facts_survive_a_restart() -> None:
    names = ("n1", "n2", "n3")
    table = FactsTable(3, 0)
    membership = hearing(version(pack(FACTS)))
    table.learn(wire.Facts(1, 1, version(pack(FACTS)), pack(FACTS)), membership)
    later = FactsTable(3, 0)
    later.load(table.dump(names), names)
    assert later.get(1) == FACTS and later.get(0) is None
    for damaged in ("", "[]", '{"n2": 5}', '{"n2": "{}x"}'):
        FactsTable(3, 0).load(damaged, names)


def test_facts_of_very_many_modules_are_cut_to_a_datagram() -> None:
    many = tuple(ModuleFacts(f"module{n:04}", n, "mirror", "ab" * 32, "2026-01-01T00:00:00", True) for n in range(900))
    data = pack(NodeFacts("ab", "", False, many))
    assert len(data) <= wire.MAX_FACTS
    assert len(from_json(NodeFacts, data).modules) > 200


def test_the_mapper_knows_the_processes_of_the_server() -> None:
    mapper = Mapper()
    for name in SERVICES:
        assert mapper.register(name, 4000, os.getpid()) is not None and mapper.lookup(name) is not None
    for name in ("safeadmin", "other", "", "/heart", "safeagent/", "safeagentx"):
        with pytest.raises(ValueError):
            mapper.register(name, 4000, os.getpid())


def test_the_mapper_knows_living_processes_only() -> None:
    mapper = Mapper()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        entry = mapper.register("am/heart", 4000, child.pid)
        assert entry is not None and mapper.lookup("am/heart") == entry
        assert mapper.register("am/heart", 4000, child.pid) is None, "nothing new"
        again = mapper.register("am/heart", 4001, child.pid)
        assert again is not None and again.port == 4001
        child.kill()
    assert mapper.lookup("am/heart") is None and mapper.entries() == []
    assert mapper.register("am/heart", 4000, 2**30) is None


def test_of_two_processes_of_one_name_the_younger_wins() -> None:
    mapper = Mapper()
    assert mapper.register("am/heart", 4000, os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as younger:
        assert mapper.register("am/heart", 4001, younger.pid)
        assert mapper.register("am/heart", 4000, os.getpid()) is None
        found = mapper.lookup("am/heart")
        assert found is not None and found.pid == younger.pid
        younger.kill()
    assert mapper.register("am/heart", 4000, os.getpid()), "the older one is all that is left"


@pytest.mark.parametrize(
    "name", ["", "heart", "am/", "/heart", "am/../x", "a b/heart", "am/heart\n", "x" * 70 + "/heart"]
)
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a process"):
        Mapper().register(name, 4000, os.getpid())
    with pytest.raises(ValueError, match="out of range"):
        Mapper().register("am/heart", 70000, os.getpid())


def test_the_log_of_safeadmin_is_bounded(tmp_path: Path) -> None:
    log = AdminLog(tmp_path / "safeadmin.log", "n1")
    for number in range(1500):
        log.info(f"{number} " + "x" * 1900)
    assert (tmp_path / "safeadmin.log").stat().st_size <= MAX_BYTES
    assert (tmp_path / "safeadmin.log.1").stat().st_size <= MAX_BYTES
    assert "1499 xx" in (tmp_path / "safeadmin.log").read_text()


def test_complaints_are_said_once_an_hour_and_end_with_good_news(tmp_path: Path) -> None:
    path = tmp_path / "safeadmin.log"
    complaints = Complaints(AdminLog(path, "n1"))
    assert [complaints.say("10.0.0.2", "key", "another key", float(t)) for t in range(5)] == [True] + [False] * 4
    assert complaints.say("10.0.0.3", "key", "another key", 1.0)
    assert complaints.say("10.0.0.2", "key", "another key", 3601.0)
    assert "(4 more since it was last said)" in path.read_text()
    complaints.settle("10.0.0.2", "fine again")
    complaints.settle("10.0.0.2", "fine again")
    assert path.read_text().count("fine again") == 1
    assert not complaints.say("10.0.0.2", "key", "another key", 3602.0), "forged between genuine ones: once a minute"
    assert complaints.say("10.0.0.2", "key", "another key", 3662.0)
    for number in range(1000):
        complaints.say(f"10.1.{number >> 8}.{number & 255}", "key", "x", 1.0, stranger=True)
    assert path.read_text().count(" | x\n") <= 64, "made up addresses do not fill the log"
    assert complaints.say("10.0.0.9", "key", "a server", 1.0), "and take room from no server"
    assert complaints.say("10.3.0.1", "key", "x", 9000.0, stranger=True), "an hour later there is room again"


def test_a_boot_is_served_once(tmp_path: Path) -> None:
    record = BootRecord(tmp_path)
    assert record.is_new()
    record.served()
    assert not record.is_new() and not BootRecord(tmp_path).is_new()
    record.path.write_text("another boot")
    assert record.is_new()
    record.served()
    record.forget()
    record.forget()
    assert record.is_new()

"""What the servers of a module must have in common, and what the core does when they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heart.core.events import ClusterView
from heart.core.values import Link, Role, Setup, Sibling
from heart.scenario import Scenario
from safekit.model.agreement import Agreement, Weight, agreement, differences, forbidding, names, text, words
from safekit.model.types import (
    Farm,
    Group,
    Heart,
    Heartbeat,
    Host,
    Interface,
    ModuleConfig,
    Replicated,
    Rfs,
    Rule,
    Service,
    User,
    Vip,
    VirtualAddr,
)

MIRROR = ModuleConfig(
    name="AM",
    id=1,
    heart=Heart((Heartbeat("default", "flow", 8888),)),
    rfs=Rfs((Replicated("/a"), Replicated("/b")), port=5600),
    vip=Vip(interfaces=(Interface((VirtualAddr("10.0.0.9"), VirtualAddr("Shop"))),)),
    signature="a" * 64,
)
GROUP = Group("g", (Host("n1"), Host("n2", 3)), (Rule("tcp", "on_addr", port=80),))
FARM = ModuleConfig(
    name="AM",
    id=1,
    service=Service(mode="farm"),
    farm=Farm(4803),
    vip=Vip(interfaces=(Interface((VirtualAddr("10.0.0.9"),), kind="vmac_directed"),), groups=(GROUP,)),
)


def vip(*addresses: str) -> Vip:
    return Vip(interfaces=(Interface(tuple(map(VirtualAddr, addresses))),))


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (MIRROR, replace(MIRROR, user=User(nicestoptimeout=7), configured_at=5.0), {}),
        (MIRROR, replace(MIRROR, signature="b" * 64), {"files": Weight.NAMED}),
        (MIRROR, replace(MIRROR, id=2), {"id": Weight.NEVER}),
        (MIRROR, replace(MIRROR, vip=vip("shop", "10.0.0.9")), {}),
        (MIRROR, replace(MIRROR, vip=vip("10.0.0.9")), {"addresses": Weight.WORD}),
        (MIRROR, replace(MIRROR, vip=None), {"addresses": Weight.WORD}),
        # the index of a directory is what the replication knows it by
        (
            MIRROR,
            replace(MIRROR, rfs=Rfs((Replicated("/b"), Replicated("/a")), port=5600)),
            {"directories": Weight.NEVER, "exclusions": Weight.NAMED},
        ),
        (
            MIRROR,
            replace(MIRROR, rfs=Rfs((Replicated("/a", notreplicated_paths=("tmp",)), Replicated("/b")), port=5600)),
            {"exclusions": Weight.NAMED},
        ),
        (
            MIRROR,
            replace(MIRROR, rfs=None),
            {"directories": Weight.NEVER, "replication_port": Weight.NEVER, "exclusions": Weight.NAMED},
        ),
        (
            MIRROR,
            replace(MIRROR, heart=Heart((Heartbeat("default", "x", 8888, timeout_ms=3000),))),
            {},
        ),
        (MIRROR, replace(MIRROR, heart=Heart((Heartbeat("default", "flow", 9999),))), {"heartbeats": Weight.NAMED}),
        (
            FARM,
            replace(FARM, farm=Farm(4806), id=2),
            {"farm_port": Weight.NEVER, "id": Weight.NEVER, "balancing": Weight.NEVER},
        ),
        (FARM, replace(FARM, vip=replace(FARM.vip or Vip(), groups=())), {"balancing": Weight.NEVER}),
        (
            FARM,
            replace(FARM, vip=Vip(interfaces=(Interface((VirtualAddr("10.0.0.9"),)),), groups=(GROUP,))),
            {"addresses": Weight.WORD, "balancing": Weight.NEVER},
        ),
    ],
)
def test_what_differs_and_what_it_forbids(one: ModuleConfig, other: ModuleConfig, found: dict[str, Weight]) -> None:
    assert {d.name: d.weight for d in differences(agreement(one), agreement(other))} == found


def test_a_name_that_only_one_release_knows_says_nothing() -> None:
    older, newer = (("mode", "mirror"),), (("mode", "mirror"), ("colour", "red"))
    assert differences(older, newer) == differences(newer, older) == differences(newer, ()) == ()
    (unknown,) = differences((("colour", "red"),), (("colour", "blue"),))
    assert unknown.weight is Weight.NAMED and text([unknown]) == "colour (red here, blue there)"


def test_values_are_words_and_bounded() -> None:
    long = replace(MIRROR, rfs=Rfs(tuple(Replicated(f"/data with blanks/{n}") for n in range(100))))
    other = replace(MIRROR, rfs=Rfs(tuple(Replicated(f"/data with blanks/{n}") for n in range(101))))
    assert all(len(value) <= 120 and value.split() in ([], [value]) for _, value in agreement(long))
    assert differences(agreement(long), agreement(other))[0].name == "directories"


def test_the_words_for_people() -> None:
    found = differences(agreement(MIRROR), agreement(replace(MIRROR, id=2, signature="b")))
    assert text(found, "on n1", "on n2") == "the module id (1 on n1, 2 on n2), the files of the module"
    assert words(names(found)) == "the module id, the files of the module"
    assert names(()) == "none" and forbidding(found[1:]) == ()


# --- the core

AGREES: Agreement = (("mode", "mirror"), ("id", "1"), ("directories", "/a"), ("addresses", "10.0.0.9"), ("files", "x"))
HERE = Setup(node="n1", peer="n2", links=(Link("l0", 0.5, 2.0),), period=1.0, handle_time=1.0, agrees=AGREES)


def unlike(**values: str) -> Agreement:
    return tuple((name, values.get(name, value)) for name, value in AGREES)


def pair(**values: str) -> Scenario:
    """n2 has these values, n1 those of AGREES."""
    return Scenario([HERE, replace(HERE, node="n2", peer="n1", agrees=unlike(**values))])


def started(scenario: Scenario, *commands: str) -> dict[str, str]:
    scenario.begin({"n1": Role.ALONE, "n2": Role.STOP})
    for command in commands:
        scenario.order("n2", command)
        scenario.run(until=scenario.now + 10)
    return scenario.states()


def shown(scenario: Scenario, node: str) -> dict[str, str]:
    heart = scenario.servers[node].heart
    assert heart is not None
    return {name: value for name, value in heart.resources.items() if name.startswith("config.")}


def test_a_mere_difference_of_files_is_told_and_stops_nothing() -> None:
    scenario = pair(files="y")
    assert started(scenario, "start") == {"n1": "PRIM green", "n2": "SECOND green"}
    for node in ("n1", "n2"):
        assert shown(scenario, node).items() >= {("config.same", "down"), ("config.fits", "up")}
        assert shown(scenario, node)["config.differs"] == "files"


@pytest.mark.parametrize("values", [{"directories": "/b"}, {"addresses": "10.0.0.8"}, {"id": "2"}])
def test_a_server_that_does_not_fit_is_refused_and_both_say_why(values: dict[str, str]) -> None:
    scenario = pair(**values)
    assert started(scenario, "start") == {"n1": "ALONE green", "n2": "WAIT red"}
    for node, other in (("n1", "n2"), ("n2", "n1")):
        assert shown(scenario, node)["config.fits"] == "down"
        assert shown(scenario, node)["config.differs"] == ",".join(values)
        (line,) = (m for m in scenario.messages(node) if m.startswith(f"The configuration of {other} does not fit"))
        assert next(iter(values.values())) in line
    # its data is as it was, so it does not take over either
    scenario.power_off("n1")
    scenario.settle()
    assert scenario.states()["n2"] == "WAIT red"


@pytest.mark.parametrize(("values", "state"), [({"addresses": "10.0.0.8"}, "SECOND green"), ({"id": "2"}, "WAIT red")])
def test_second_accepts_other_addresses_once_and_nothing_else(values: dict[str, str], state: str) -> None:
    """So that the addresses can be changed on one server after the other."""
    scenario = pair(**values)
    assert started(scenario, "second")["n2"] == state
    assert shown(scenario, "n2")["config.fits"] == "down", "it is told all the same"
    if state.startswith("SECOND"):
        scenario.order("n2", "stopstart")
        scenario.run(until=scenario.now + 10)
        assert scenario.states() == {"n1": "ALONE green", "n2": "WAIT red"}, "a start accepts nothing"


def test_addresses_change_on_one_server_after_the_other() -> None:
    """n2 has the new ones: it takes the data, then the application; n1 waits until it has them too."""
    scenario = pair(addresses="10.0.0.8")
    started(scenario, "second", "swap")
    assert scenario.states() == {"n1": "WAIT red", "n2": "ALONE green"}
    scenario.order("n1", "stop")
    scenario.run(until=scenario.now + 5)
    scenario.servers["n1"].setup = replace(HERE, agrees=unlike(addresses="10.0.0.8"))
    scenario.order("n1", "start")
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "SECOND green", "n2": "PRIM green"}


def test_a_pair_that_stops_fitting_parts_and_its_primary_goes_on() -> None:
    """A secondary of an earlier release, which compared nothing, is taken up by a new one."""
    scenario = pair(directories="/b")
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "ALONE green", "n2": "WAIT red"}


def test_when_the_configuration_fits_again_the_server_goes_on_by_itself() -> None:
    scenario = pair(directories="/b")
    assert started(scenario, "start")["n2"] == "WAIT red"
    scenario.order("n2", "stop")
    scenario.run(until=scenario.now + 5)
    scenario.servers["n2"].setup = replace(HERE, node="n2", peer="n1")
    scenario.order("n2", "start")
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "PRIM green", "n2": "SECOND green"}


def unheard(scenario: Scenario, *siblings: Sibling) -> None:
    """safeadmin tells both."""
    for node in scenario.servers:
        scenario.feed(node, ClusterView("up", siblings))


@pytest.mark.parametrize("command", ["start", "prim", "primforce", "second"])
def test_nobody_begins_where_one_that_is_not_heard_runs_already_with_another_id(command: str) -> None:
    scenario = pair(id="2")
    scenario.begin({"n1": Role.ALONE, "n2": Role.STOP})
    scenario.cut_heartbeats()
    scenario.order("n2", command)
    unheard(scenario, Sibling("n1", AGREES, "ALONE", 100), Sibling("n2", unlike(id="2"), "WAIT", 200))
    scenario.run(until=scenario.now + 30)
    assert scenario.states() == {"n1": "ALONE green", "n2": "WAIT red"}
    assert any("the module id (2 on n2, 1 on n1)" in message for message in scenario.messages("n2"))
    unheard(scenario, Sibling("n1", AGREES), Sibling("n2", unlike(id="2"), "WAIT", 200))
    scenario.run(until=scenario.now + 30)
    if command in ("prim", "primforce"):
        assert scenario.states()["n2"] == "ALONE green", "it was stopped there"


def test_of_two_that_began_without_knowing_the_later_one_gives_way() -> None:
    scenario = pair(id="2")
    scenario.begin({"n1": Role.ALONE, "n2": Role.ALONE})
    scenario.cut_heartbeats()
    scenario.run(until=scenario.now + 5)
    unheard(scenario, Sibling("n1", AGREES, "ALONE", 200), Sibling("n2", unlike(id="2"), "ALONE", 100))
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "WAIT red", "n2": "ALONE green"}


def test_a_cut_between_servers_that_fit_is_not_their_configurations() -> None:
    scenario = pair()
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.cut_heartbeats()
    scenario.run(until=scenario.now + 5)
    unheard(scenario, Sibling("n1", AGREES, "ALONE", 100), Sibling("n2", AGREES, "ALONE", 200))
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "ALONE green", "n2": "ALONE green"}


def test_a_server_of_a_farm_with_another_id_takes_no_load() -> None:
    farm = replace(HERE, peer="", links=(), mode="farm", rfs=False)
    scenario = Scenario([farm])
    scenario.begin({"n1": Role.STOP})
    scenario.order("n1", "start")
    scenario.feed("n1", ClusterView("up", (Sibling("n1", AGREES, "WAIT", 9), Sibling("n2", unlike(id="2"), "UP", 5))))
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "WAIT red"}
    scenario.feed("n1", ClusterView("up", (Sibling("n1", AGREES, "WAIT", 9), Sibling("n2", AGREES, "UP", 5))))
    scenario.run(until=scenario.now + 10)
    assert scenario.states() == {"n1": "UP green"}

"""What went wrong last is remembered until the same has succeeded, and reaches the other server."""

from __future__ import annotations

import errno
import os

import pytest

from heart.core.decide import beat
from heart.core.events import ClusterView, Done, Ended, Replication
from heart.core.values import Role, Sibling
from heart.scenario import Scenario
from safekit.spelling import as_word, from_word
from tests.t0_unit.scenarios import Block, pair, play


def resources(scenario: Scenario, node: str) -> dict[str, str]:
    heart = scenario.servers[node].heart
    assert heart is not None
    return heart.resources


def restart(scenario: Scenario, node: str, *ended: Ended) -> None:
    """The start scripts of a restart end so."""
    scenario.order(node, "restart")
    heart = scenario.servers[node].heart
    for _ in range(60):
        heart = scenario.servers[node].heart
        assert heart is not None
        if heart.busy and any(call.name == ended[0].name for call in getattr(heart.busy_step, "calls", ())):
            scenario.servers[node].tokens.discard(heart.busy)
            scenario.feed(node, Done(heart.busy, scripts=ended))
            scenario.run(until=scenario.now + 5)
            return
        scenario.run(until=scenario.now + 0.005)
    raise AssertionError("the script was not run")


def test_a_start_script_that_failed_is_told_on_both_servers_until_it_succeeds() -> None:
    scenario = pair()
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    restart(scenario, "n1", Ended("start_prim", "exit status 3", "no such user: db"))
    assert from_word(resources(scenario, "n1")["trouble.script"]) == "start_prim: exit status 3: no such user: db"
    heart = scenario.servers["n2"].heart
    assert heart is not None and heart.peer is not None
    assert "trouble.script" in dict(heart.peer.resources), "the secondary knows that the application may not run"
    assert scenario.states()["n1"] == "PRIM green", "SafeKit goes on (guide 15.1)"
    restart(scenario, "n1", Ended("start_prim"))
    assert "trouble.script" not in resources(scenario, "n1")


def test_what_a_stop_script_says_is_no_trouble_of_the_application() -> None:
    scenario = pair()
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    restart(scenario, "n1", Ended("stop_prim", "killed after 60 s"))
    assert "trouble.script" not in resources(scenario, "n1")
    assert any(told.code == "script_failed" for told in scenario.told), "but why tells it"


def test_a_synchronisation_that_failed_is_remembered_over_the_attempts_until_one_succeeds() -> None:
    full = os.strerror(errno.ENOSPC)
    scenario = pair()
    scenario.begin({"n1": Role.ALONE, "n2": Role.STOP})
    scenario.order("n2", "start")
    for _ in range(200):
        scenario.run(until=scenario.now + 0.05)
        heart = scenario.servers["n2"].heart
        assert heart is not None
        if heart.role is Role.SECOND and heart.syncing:
            break
    scenario.feed("n2", Replication("rfs_failed", f"/data/a: {full}"))
    scenario.run(until=scenario.now + 1)
    seen = set()
    for _ in range(60):
        heart = scenario.servers["n2"].heart
        assert heart is not None
        seen.add(heart.role)
        if heart.role is Role.SECOND and not heart.syncing:
            break
        assert from_word(heart.resources["trouble.sync"]) == f"/data/a: {full}", (heart.role, heart.color)
        assert "trouble.sync" in dict(beat(heart).resources)
        scenario.run(until=scenario.now + 0.2)
    assert {Role.WAIT, Role.SECOND} <= seen
    assert "trouble.sync" not in resources(scenario, "n2")


def test_maxloop_says_who_asked_and_what_it_had_found() -> None:
    block = Block("", ["node1 ALONE and node2 STOP", "the fault stays"], ["tcp.web becomes down on node1"])
    stopped: dict[str, str] = {}

    class Watched(Scenario):
        def _perform(self, node, server, action):  # type: ignore[no-untyped-def]
            stopped.update(server.heart.resources if server.heart is not None else {})
            super()._perform(node, server, action)

    play(block, Watched)
    assert stopped["state.stopcause"] == "maxloop"
    assert from_word(stopped["trouble.stop"]) == "tcp_failure (tcp.web is down) asked for restart for the 4th time"


def test_the_state_of_an_unheard_server_is_what_its_safeadmin_tells() -> None:
    scenario = pair()
    scenario.begin({"n1": Role.PRIM, "n2": Role.SECOND})
    scenario.cut_heartbeats()
    scenario.run(until=scenario.now + 10)
    scenario.feed("n1", ClusterView("up", (Sibling("n1", (), "ALONE", 1), Sibling("n2", (), "ALONE", 77))))
    assert resources(scenario, "n1")["state.elsewhere"] == "ALONE@77"
    scenario.feed("n1", ClusterView("up", (Sibling("n1", (), "ALONE", 1), Sibling("n2"))))
    assert resources(scenario, "n1")["state.elsewhere"] == "STOP@0"
    scenario.feed("n1", ClusterView("down", ()))
    assert resources(scenario, "n1")["state.elsewhere"] == "unknown"


@pytest.mark.parametrize("text", ["a b", " a\n\tb ", "100% of it", "x" * 600, "word " * 100, "", "é" * 10])
def test_a_sentence_fits_a_resource(text: str) -> None:
    word = as_word(text)
    assert word and len(word) <= 250 and not set(word) & set(" \t\n")
    if len(text) < 60 and text:
        assert from_word(word) == " ".join(text.split())


def test_a_name_of_a_file_tells_a_terminal_nothing() -> None:
    """Whoever may write in a replicated directory chooses it, and root looks at the state on both servers."""
    word = as_word("/data/\x1b]0;x\x07\x9b2J: No space left")
    assert word.isprintable() and from_word(word) == "/data/ ]0;x 2J: No space left"

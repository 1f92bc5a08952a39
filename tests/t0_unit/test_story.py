"""`safekit why` in sentences: whole stories of scenarios, and every rule of the core has its words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli import base
from heart.core.values import Reason
from heart.scenario import Scenario
from safekit.view import story
from safekit.view.decisions import Decision
from safekit.view.story import sentence
from tests.t0_unit.scenarios import Block, blocks, play

CORE = Path(__file__).resolve().parents[2] / "heart" / "core"
STORIES = list(blocks("stories.txt"))


class Listened(Scenario):
    """A scenario that keeps its decisions as the history does."""

    def _tell_reason(self, node: str, reason: Reason) -> None:
        super()._tell_reason(node, reason)
        kept = self.__dict__.setdefault("decisions", [])
        at = self.now - self._offset
        kept.append(Decision(at, node, reason.rule, reason.outcome, dict(reason.inputs), str(reason)))


def lines(block: Block) -> list[str]:
    scenario = play(block, Listened)
    decisions = [each for each in scenario.__dict__["decisions"] if each.rule != "adopted"]
    found = story.story(decisions)
    return [f"{e.time:.0f} {e.node} {e.text}" + (f" -> {e.outcome}" if e.outcome else "") for e in found]


@pytest.mark.parametrize("block", STORIES, ids=[block.name for block in STORIES])
def test_a_story(block: Block) -> None:
    assert lines(block) == block.then


def decision(rule: str, action: str, **inputs: object) -> Decision:
    return Decision(1.0, "n1", rule, action, inputs)


def test_every_rule_of_the_core_has_a_sentence_or_is_known_to_be_for_servers_only() -> None:
    found = {
        name
        for path in CORE.glob("*.py")
        for name in re.findall(r'because\(\s*"(\w+)"', path.read_text())
    }  # fmt: skip
    assert len(found) > 40
    assert found <= set(story._SENTENCES) | story._QUIET, found - set(story._SENTENCES) - story._QUIET


def test_no_sentence_fails_without_its_values() -> None:
    for rule in story._SENTENCES:
        assert isinstance(sentence(decision(rule, "x")), str)
    assert sentence(decision("claim", "asks the peer for its grant", claim=1)) == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            decision("command", "restart", who="errd", why="0 of process dbd run, at least 1 should"),
            "errd asked for restart, because 0 of process dbd run, at least 1 should",
        ),
        (
            decision("script_failed", "the module goes on", script="start_prim", problem="exit status 3", said="boom"),
            "script start_prim ended badly: exit status 3; it said: boom; the module goes on, but the application may "
            "not run",
        ),
        (decision("farm", "member.node3=down", before="up"), "node3 takes no part in the farm any more"),
        (decision("farm", "member.node3=up", before="down"), "node3 takes part in the farm"),
        (decision("farm", "farm.web=50%", before="34%"), "this server takes 50% of the load of web"),
        (decision("farm", "member.node3=init", before="up"), ""),
        (
            decision("config_differs", "told", peer="n2", directories="/a here, /a/b there"),
            "the replicated directories differ from n2: directories is /a here, /a/b there",
        ),
        (
            decision("tcp_failure", "restart()", **{"tcp.web": {"value": "down", "setter": "tcpcheck", "since": 1.0}}),
            "rule tcp_failure does restart, because tcp.web is down",
        ),
    ],
)
def test_a_sentence(given: Decision, said: str) -> None:
    assert sentence(given) == said


def test_what_came_of_it_is_not_taken_from_the_other_server_or_from_another_day() -> None:
    begun = decision("command", "restart", who="root")
    elsewhere = Decision(3.0, "n2", "settled", "PRIM green")
    later = Decision(begun.time + story.FOLLOWED + 1, "n1", "settled", "PRIM green")
    assert [event.outcome for event in story.story([begun, elsewhere])] == ["", ""]
    assert [event.outcome for event in story.story([begun, later])] == ["", ""]
    near = Decision(3.0, "n1", "settled", "PRIM green")
    assert [event.outcome for event in story.story([begun, near])] == ["PRIM green 2 s later"]


def test_lines_are_wrapped_at_the_width_of_a_terminal_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "10:00:01  node1  rule tcp_failure asks for restart, because tcp.web is down; it is done if that lasts"
    assert base.wrapped(line, "          ") == line
    monkeypatch.setattr(base, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    shown = base.wrapped(line, "          ").splitlines()
    assert len(shown) > 1 and all(len(each) <= 50 for each in shown)
    assert all(each.startswith("          ") for each in shown[1:])
    assert " ".join(each.strip() for each in shown).split() == line.split()

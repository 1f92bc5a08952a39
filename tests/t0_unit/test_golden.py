"""The decisions in tests/golden, as text that a person can review, against the production core."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from heart.scenario import Scenario
from safekit.rules.ast import And, Assign, Compare, Expression, Not, Or, Resource, Rule
from safekit.rules.evaluator import Verdict, View, evaluate
from safekit.rules.order import module_rules
from tests.t0_unit.scenarios import DEFAULT, GOLDEN, Block, blocks, play

INSERTED = module_rules("", DEFAULT, syncdelta=10, syncat=True)


# ------------------------------------------------------------------------------- decisions

_SENTENCE = re.compile(
    r"When (?P<facts>.*?): (?P<action>nothing|\S+|set \S+ to \S+)(?: by (?P<rule>\w+), because (?P<why>.*))?\."
)
_FACT = re.compile(r"(?P<remote>remote )?(?P<name>\S+) is (?P<value>up|down|init|unknown)")

_CLUSTER = {"no server of the cluster answers": "down", "a server of the cluster answers": "up"}


def sentences() -> list[tuple[int, str]]:
    lines = (GOLDEN / "decisions.txt").read_text().splitlines()
    return [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]


def told(verdict: Verdict) -> str:
    """A verdict as the golden sentences say it."""
    fired = verdict.assignments[0] if verdict.assignments else verdict.winner
    if fired is None:
        return "nothing"
    outcome = fired.outcome
    action = f"set {outcome.name} to {outcome.value}" if isinstance(outcome, Assign) else outcome.verb.value
    why = " and ".join(f"{name} is {value}" for name, value in fired.inputs)
    return f"{action} by {fired.label}, because {why}"


def view(number: int, sentence: str) -> View:
    """What the rules see in a sentence."""
    local: dict[str, str] = {}
    remote: dict[str, str] | None = {}
    cluster = "unknown"
    for fact in _parts(number, sentence)["facts"].split(" and "):
        if fact == "the other server is silent":
            remote = None
        elif fact in _CLUSTER:
            cluster = _CLUSTER[fact]
        else:
            found = _FACT.fullmatch(fact)
            assert found is not None, f"line {number}: {fact!r}"
            table = remote if found["remote"] else local
            assert table is not None
            table[found["name"]] = found["value"]
    return View(local, remote, cluster=cluster)


def _parts(number: int, sentence: str) -> re.Match[str]:
    match = _SENTENCE.fullmatch(sentence)
    assert match is not None, f"line {number} is not a sentence: {sentence}"
    return match


@pytest.mark.parametrize(("number", "sentence"), sentences(), ids=[f"line{n}" for n, _ in sentences()])
def test_a_decision_of_the_default_rules(number: int, sentence: str) -> None:
    match = _parts(number, sentence)
    expected = match["action"] + (f" by {match['rule']}, because {match['why']}" if match["rule"] else "")
    assert told(evaluate(INSERTED, view(number, sentence))) == expected


def resources_of(node: Expression) -> Iterator[Resource]:
    """All that a condition names."""
    match node:
        case Resource():
            yield node
        case Not(operand):
            yield from resources_of(operand)
        case And(left, right) | Or(left, right) | Compare(_, left, right):
            yield from resources_of(left)
            yield from resources_of(right)
        case _:
            return


def _values(rule: Rule, seen: View) -> set[str]:
    """Values that a sentence gives to the resources of a rule; a silent server's are unknown."""
    found = set()
    for node in resources_of(rule.condition):
        table = seen.remote if node.remote else seen.local
        if table is None:
            found.add("unknown")
            continue
        pattern = re.compile(re.escape(node.name).replace(r"\?", ".*").replace(r"\*", ".*"))
        found |= {value for name, value in table.items() if pattern.fullmatch(name)}
    return found


@pytest.mark.parametrize("rule", INSERTED, ids=lambda rule: rule.label)
def test_every_default_rule_is_several_times_true_and_false_with_unknown_and_init(rule: Rule) -> None:
    assert len(sentences()) >= 60
    views = [view(number, sentence) for number, sentence in sentences()]
    about = [(seen, _values(rule, seen)) for seen in views]
    true = [seen for seen, values in about if values and evaluate([rule], seen).fired]
    false = [values for seen, values in about if values and not evaluate([rule], seen).fired]
    assert len(true) >= 2 and len(false) >= 3, (len(true), len(false))
    assert any("init" in values for values in false), "a resource that nobody has looked at yet"
    assert any("unknown" in values for values in false), "a resource of which nothing is known"


# ------------------------------------------------------------------------------- scenarios

BLOCKS = list(blocks())


@pytest.mark.parametrize("block", BLOCKS, ids=[block.name for block in BLOCKS])
def test_a_scenario(block: Block) -> None:
    scenario = play(block)
    account = "\n".join(f"{t.at:7.1f} {t.node} {t.kind} {t.text}" for t in scenario.told)
    position: dict[str, int] = {}
    for words in block.then:
        if words.startswith("in the end "):
            expected = dict(re.findall(r"(node\d) (off|[A-Z]+ \w+)", words))
            assert scenario.states() == expected, account
        elif match := re.fullmatch(r"(\w+) says no more", words):
            later = scenario.told[position[match[1]] :]
            assert not any(told.node == match[1] and told.kind in ("message", "reason") for told in later), account
        elif match := re.fullmatch(r"(?:after (\d+) s )?(\w+) (says: |runs )(.*)", words):
            _find(scenario, position, match, account)
        else:
            match = re.fullmatch(r"(\w+) does not (say: |run )(.*)", words)
            assert match is not None, words
            assert not any((t.node == match[1] and match[3] in t.text.replace(",", "").split(" "))
                           or (t.node == match[1] and t.text == match[3]) for t in scenario.told), account  # fmt: skip


def _find(scenario: Scenario, position: dict[str, int], match: re.Match[str], account: str) -> None:
    """The next line of that node that says so, at that time."""
    after, node, verb, text = match.groups()
    for index in range(position.get(node, 0), len(scenario.told)):
        item = scenario.told[index]
        if item.node != node:
            continue
        runs = item.kind == "effect" and text in re.split(r"[ ,]+", item.text)
        said = item.text == text if verb == "says: " else runs
        if said:
            position[node] = index + (verb == "says: ")
            assert after is None or abs(item.at - int(after)) <= 1.5, f"{item} is not after {after} s\n{account}"
            return
    raise AssertionError(f"{node} {verb}{text!r} is missing in\n{account}")


def test_there_are_enough_scenarios() -> None:
    assert len(BLOCKS) >= 25 and all(block.then and block.when for block in BLOCKS)

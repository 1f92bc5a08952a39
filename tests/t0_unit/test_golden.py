"""The decisions in tests/golden, as text that a person can review, against the production core."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from heart.core.values import Role, Setup
from heart.scenario import Scenario
from safekit.rules.ast import And, Assign, Compare, Expression, Not, Or, Resource, Rule
from safekit.rules.evaluator import Verdict, View, evaluate
from safekit.rules.order import module_rules
from safekit.rules.source import default_rules, default_text

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DEFAULT = default_text(default_rules())
RULES = module_rules("", DEFAULT)
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


@dataclass
class Block:
    """One scenario of the file."""

    name: str
    given: list[str] = field(default_factory=list)
    when: list[str] = field(default_factory=list)
    then: list[str] = field(default_factory=list)


def blocks(file: str = "scenarios.txt") -> Iterator[Block]:
    block: Block | None = None
    part: list[str] = []
    for line in (GOLDEN / file).read_text().splitlines():
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        if words.startswith("Scenario: "):
            if block is not None:
                yield block
            block = Block(words.removeprefix("Scenario: "))
            continue
        assert block is not None, line
        first, _, rest = words.partition(" ")
        part = {"Given": block.given, "When": block.when, "Then": block.then, "And": part}[first]
        part.append(rest)
    assert block is not None
    yield block


BLOCKS = list(blocks())


def setups(block: Block, nodes: list[str]) -> list[Setup]:
    mirror = len(nodes) == 2
    phase = "prim" if mirror else "both"
    base = Setup(
        node="",
        peer="",
        rules=RULES,
        checks=(("pre", ("ping.gw", "intf.lan")), (phase, ("tcp.web", "custom.disk"))),
        mode="mirror" if mirror else "light",
        rfs=mirror,
    )
    if not mirror:
        base = replace(base, links=())
    for words in block.given[1:]:
        key, _, value = words.partition(" is ")
        if words.startswith("the rule "):
            base = replace(base, rules=module_rules(words.removeprefix("the rule "), DEFAULT))
        elif words.startswith("only the rules "):
            base = replace(base, rules=module_rules(words.removeprefix("only the rules "), None))
        elif key == "the witness":
            pre = ("ping.gw", "intf.lan", f"splitbrain.{value}")
            base = replace(base, witness=value, checks=(("pre", pre), *base.checks[1:]))
        elif key == "syncdelta":
            pre = ("ping.gw", "intf.lan", "rfs.synced")
            rules = module_rules("", DEFAULT, syncdelta=int(value))
            base = replace(base, rules=rules, checks=(("pre", pre), *base.checks[1:]))
        elif key == "loop_interval":
            base = replace(base, loop_interval=float(value))
        elif key == "automatic_reboot":
            base = replace(base, automatic_reboot=value == "on")
        elif key == "failover":
            base = replace(base, failover=value == "on")
        else:
            assert words == "the fault stays", words
    return [replace(base, node=node, hostname=node, peer=next((n for n in nodes if n != node), "")) for node in nodes]


def play(block: Block, kind: type[Scenario] = Scenario) -> Scenario:
    states = dict(re.findall(r"(node\d) ([A-Z]+)", block.given[0]))
    scenario = kind(setups(block, list(states)), heals="the fault stays" not in block.given)
    scenario.begin({node: Role(state) for node, state in states.items()})
    for words in block.when:
        if match := re.fullmatch(r"(\S+) becomes (\w+) on (\w+)", words):
            scenario.set(match[3], match[1], match[2])
        elif match := re.fullmatch(r"(\d+) seconds pass", words):
            scenario.run(scenario.now + int(match[1]))
        elif match := re.fullmatch(r"(\w+) loses its power", words):
            scenario.power_off(match[1])
        elif match := re.fullmatch(r"safekit (\w+) on (\w+)", words):
            scenario.order(match[2], match[1])
        elif match := re.fullmatch(r"safeadmin of (\w+) hears no other server", words):
            scenario.cluster(match[1], "down")
        elif words == "all heartbeats are cut":
            scenario.cut_heartbeats()
        else:
            assert words == "all heartbeats are back", words
            scenario.join_heartbeats()
    scenario.settle(longest=400)
    return scenario


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

"""Scenarios of the production core: as text (tests/golden), and a pair to try something on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from heart.core.values import Link, Role, Setup
from heart.scenario import Scenario
from safekit.rules.order import module_rules
from safekit.rules.source import default_rules, default_text

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DEFAULT = default_text(default_rules())
RULES = module_rules("", DEFAULT)

PAIR = Setup(node="n1", peer="n2", links=(Link("l0", 0.5, 2.0),), period=1.0, handle_time=1.0)


def pair(setup: Setup = PAIR) -> Scenario:
    """Two servers with this setup."""
    return Scenario([setup, replace(setup, node="n2", peer="n1")])


@dataclass
class Block:
    """One scenario of the file."""

    name: str
    given: list[str] = field(default_factory=list)
    when: list[str] = field(default_factory=list)
    then: list[str] = field(default_factory=list)


def blocks(file: str = "scenarios.txt") -> Iterator[Block]:
    """Those of a file of tests/golden."""
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


def setups(block: Block, nodes: list[str]) -> list[Setup]:
    """What the servers of a scenario are given."""
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
    """The scenario, come to rest."""
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

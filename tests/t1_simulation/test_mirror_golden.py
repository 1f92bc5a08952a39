"""Scenario files: commands and the expected trace, as text that a person can review (tests/golden/mirror/*.txt).

A file begins with lines of the form below, then a line of dashes, then the
trace: what each server logs, and the scripts and operations that it runs.

    options flow=yes rfs=no links=2 defaultprim=A failover=off witness=yes interface=yes handle=6 syncat=30
            rules=<to the end>
    pair                    A prim, B second, until both are green (not traced)
    A stop                  a command (with options: A swap nosync, A stopstart as tcpcheck)
    wait 10                 let 10 seconds pass
    power off A, power on A, kill heart A, freeze A 6, cut, cut A, heal, break stream A
    kill heart A unwatched  it leaves no sign of when it was last awake
    set A tcp.id down tcpcheck
    witness A               the witness answers A alone from now on (witness both: both again)
    unplug A 20             the interface of A has no carrier for so many seconds
    kill module A           all processes of the module at once
    snapshot A, restore A   what A has on its disks; power A off before it is put back
    clone A B               what B has on its disks becomes what A has; power B off before

SAFEKIT_GOLDEN=write rewrites the traces; review the difference before you keep it.
"""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from heart.core.actions import Log, Reply, Rfs, Run, Scripts, Vip
from heart.core.decide import decide, new_state
from heart.core.events import Born, Ordered, PairAsked, Replication, ResourceSet
from heart.core.values import Command
from safekit.log.messages import MESSAGES, render
from tests.t1_simulation.mirror_parts import TIMEOUT, Options
from tests.t1_simulation.mirror_world import World

FILES = sorted((Path(__file__).parents[1] / "golden" / "mirror").glob("*.txt"))
RULE = "-" * 40


class Steady(random.Random):
    """No chance at all: every delay is the middle of its range, nothing is lost."""

    def random(self) -> float:
        return 0.999

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Stage(World):
    """The simulated pair, telling what it does in the words of the log."""

    def __init__(self, options: Options) -> None:
        super().__init__(0, options)
        self.random = Steady()
        self.chaos = False
        self.lines: list[str] = []
        self.telling = False

    def tell(self, name: str, text: str) -> None:
        if self.telling:
            self.lines.append(f"{name}  {text}".rstrip())

    def _perform(self, name: str, action: Any) -> None:
        match action:
            case Log(code, fields) if MESSAGES[code].level == "E":
                self.tell(name, render(code, dict(fields)))
            case Run(_, Scripts(calls)):
                for call in calls:
                    self.tell(name, f"  {call.name} {' '.join(call.args)}")
            case Run(_, Rfs(operation, options)):
                words = " ".join(word for word, on in options if on is True)
                self.tell(name, f"  [replication] {operation} {words}")
            case Run(_, Vip(operation)):
                self.tell(name, f"  [address] {operation}")
        super()._perform(name, action)


def options_of(words: list[str]) -> Options:
    text = " ".join(words)
    rules = ""
    if "rules=" in text:
        text, _, rules = text.partition("rules=")
    values = dict(word.split("=", 1) for word in text.split())
    return Options(
        rfs=values.get("rfs", "yes") == "yes",
        links=int(values.get("links", "1")),
        defaultprim=values.get("defaultprim", "alone"),
        failover=values.get("failover", "on") == "on",
        flow=values.get("flow", "no") == "yes",
        witness=values.get("witness", "no") == "yes",
        interface=values.get("interface", "no") == "yes",
        handle_time=float(values.get("handle", "4")),
        syncat=float(values.get("syncat", "0")),
        rules=rules,
    )


def play(script: str) -> list[str]:
    """The trace of a scenario."""
    lines = [line.split("#")[0].split() for line in script.splitlines()]
    lines = [line for line in lines if line]
    options = Options()
    if lines and lines[0][0] == "options":
        options = options_of(lines.pop(0)[1:])
    stage = Stage(options)
    for name in "AB":
        stage.power_on(name)
    if lines and lines[0] == ["pair"]:
        lines.pop(0)
        stage.order("A", "prim" if options.rfs else "start")
        stage.run_until(10.0)
        stage.order("B", "second" if options.rfs else "start")
        stage.run_until(20.0)
        stage.judge.check_settled()
    stage.telling = True
    for words in lines:
        stage.tell("-", "== " + " ".join(words)) if words[0] != "wait" else None
        step(stage, words)
    return stage.lines


def step(stage: Stage, words: list[str]) -> None:
    match words:
        case ["wait", seconds]:
            stage.run_until(stage.now + float(seconds))
        case ["power", "off", name]:
            stage.power_off(name)
        case ["power", "on", name]:
            stage.power_on(name)
        case ["kill", "module", name]:
            stage.kill_module(name)
        case ["witness", side]:
            stage.witness_side = "" if side == "both" else side
        case ["unplug", name, seconds]:
            stage.unplug(name, float(seconds))
        case ["snapshot", name]:
            stage.snapshot(name)
        case ["restore", name]:
            stage.restore(name)
        case ["clone", name, other]:
            stage.clone(name, other)
        case ["kill", "heart", name, *unwatched]:
            stage.kill_heart(name)
            if unwatched:
                stage.servers[name].awake = -math.inf
        case ["freeze", name, seconds, *deaf]:
            stage.freeze(name, float(seconds), deaf=bool(deaf))
        case ["cut", *names]:
            for key in stage.wires:
                if not names or key[0] in names:
                    stage.wires[key].cut = True
            stage.impaired_until = stage.parted_until = stage.now + 1000
        case ["heal"]:
            for wire in stage.wires.values():
                wire.cut = False
            stage.impaired_until = stage.parted_until = stage.now + 3 * TIMEOUT
        case ["break", "stream", name]:
            stage.data.break_stream(stage.servers[name])
        case ["set", name, resource, value, who]:
            stage.feed(name, ResourceSet(resource, value, who))
        case [name, action, "as", identity]:
            stage.feed(name, Ordered(Command(action, identity, automatic=True)))
        case [name, action, *option]:
            stage.order(name, action, *option)
        case _:
            raise ValueError(f"unknown step {' '.join(words)!r}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    script, _, expected = path.read_text(encoding="utf-8").partition(RULE + "\n")
    trace = "\n".join(play(script)) + "\n"
    if os.environ.get("SAFEKIT_GOLDEN") == "write":
        path.write_text(f"{script}{RULE}\n{trace}", encoding="utf-8")
        return
    assert trace == expected


def test_no_pair_is_completed_while_the_primary_is_about_to_part() -> None:
    """Found by schedule 20286: nfsadmin would break it at once, and the secondary would not know."""
    stage = Stage(Options())
    for name, action in (("A", "prim"), ("B", "second")):
        stage.power_on(name)
        stage.order(name, action)
        stage.run_until(stage.now + 10)
    stage.judge.check_settled()
    primary = stage.servers["A"].heart
    assert primary is not None
    for busy, plan, ok in ((None, (), True), (Rfs("primary"), (), False), (None, (Rfs("alone"),), False)):
        state = primary.copy()
        state.busy, state.busy_step, state.plan = (99, busy, plan) if busy or plan else (0, None, ())
        answers = [a for a in decide(state, PairAsked(7), stage.now).actions if isinstance(a, Reply)]
        assert [answer.ok for answer in answers] == [ok]


@pytest.mark.parametrize("news", ["of this one", "of an earlier one"])
def test_only_news_of_this_synchronisation_make_a_server_up_to_date(news: str) -> None:
    stage = Stage(Options())
    stage.power_on("A")
    stage.order("A", "prim")
    stage.run_until(stage.now + 10)
    stage.power_on("B")
    stage.order("B", "second")
    secondary = stage.servers["B"]
    while secondary.heart is None or not secondary.heart.attempt:
        stage.run_until(stage.now + 0.05)
    state = secondary.heart.copy()
    assert state.peer is not None and state.syncing and not state.uptodate
    state.peer = state.peer._replace(paired=True)
    attempt = state.attempt if news == "of this one" else "0.1"
    after = decide(state, Replication("rfs_synced", attempt=attempt), stage.now).state
    assert (after.uptodate, after.syncing) == ((True, False) if news == "of this one" else (False, True))


@pytest.mark.parametrize("paired", ["up", "down"])
def test_an_adopted_primary_stays_in_its_pair(paired: str) -> None:
    """Its heart was killed while it gave the application to a secondary that is up to date, not told otherwise."""
    stage = Stage(Options())
    resources = {"state.local": "ALONE", "state.color": "magenta", "rfs.uptodate": "up", "rfs.paired": paired}
    born = Born(tuple(resources.items()), halted=True, adopt=True)
    decision = decide(new_state(stage.setup("A"), 7), born, 1.0)
    (effect,) = (action.effect for action in decision.actions if isinstance(action, Run))
    assert effect == Rfs("primary", (("swap", True),) if paired == "up" else (), on_failure="primary_failed")


def test_a_server_that_waits_names_what_it_waits_for() -> None:
    """Of two resources that are down, only the one that the rule asked for."""
    stage = Stage(Options(rules="c: if (custom.b == down) then wait();"))
    stage.power_on("A")
    stage.order("A", "prim")
    stage.run_until(stage.now + 10)
    told = []
    for name, value in (("custom.a", "down"), ("custom.b", "down"), ("custom.b", "up")):
        step(stage, ["set", "A", name, value, "customscript"])
        stage.run_until(stage.now + 12)
        heart = stage.servers["A"].heart
        assert heart is not None
        told.append((heart.role.value, heart.resources["state.waitsfor"]))
    assert told == [("ALONE", "none"), ("WAIT", "custom.b=down"), ("ALONE", "none")]


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 15

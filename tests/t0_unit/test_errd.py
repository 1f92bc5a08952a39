"""When a death is an event, and which processes a <proc> means."""

from __future__ import annotations

import pytest

from errd import processes
from errd.core import Criterion, Watch, disable, enable, judge, resource_value
from errd.processes import Matcher, own
from errd.services import parse_show
from safekit.model.types import Proc
from safekit.process.table import Process

POLL = 30.0


def proc(atleast: int = 1, atmax: int = -1, start_after: int = 0) -> Proc:
    return Proc(name="appli", proc_class="prim", atleast=atleast, atmax=atmax, start_after=start_after)


def run(watch: Watch, *looks: tuple[float, int]) -> list[Criterion | None]:
    events = []
    for now, count in looks:
        watch, event = judge(watch, count, now)
        events.append(event)
    return events


def test_a_death_is_an_event_once_until_it_is_repaired() -> None:
    watch = enable(Watch(proc()), 0.0, POLL)
    assert run(watch, (1, 1), (2, 0), (3, 0), (4, 1), (5, 0)) == [
        None, Criterion.ATLEAST, None, None, Criterion.ATLEAST,
    ]  # fmt: skip


def test_a_disabled_class_dies_in_peace() -> None:
    watch, _ = judge(enable(Watch(proc()), 0.0, POLL), 1, 1.0)
    assert run(disable(watch), (2, 0), (100, 0)) == [None, None]


@pytest.mark.parametrize(("start_after", "first_event"), [(0, 30.0), (1, 30.0), (2, 30.0), (3, 60.0)])
def test_an_application_that_never_starts_is_judged_after_its_delay(start_after: int, first_event: float) -> None:
    watch = enable(Watch(proc(start_after=start_after)), 0.0, POLL)
    assert run(watch, (first_event - 0.1, 0)) == [None]
    assert run(watch, (first_event, 0)) == [Criterion.ATLEAST]


def test_too_many_is_an_event_at_once() -> None:
    watch = enable(Watch(proc(atleast=-1, atmax=0)), 0.0, POLL)
    assert run(watch, (0.1, 0), (0.2, 1)) == [None, Criterion.ATMAX]


def test_minus_one_means_nothing() -> None:
    assert run(enable(Watch(proc(atleast=-1)), 0.0, POLL), (100, 0), (200, 50)) == [None, None]


def test_the_resource_says_what_is_known() -> None:
    watch = Watch(proc())
    assert resource_value(watch) == "init"
    watch = enable(watch, 0.0, POLL)
    assert resource_value(watch) == "init"
    watch, _ = judge(watch, 1, 1.0)
    assert resource_value(watch) == "up"
    watch, _ = judge(watch, 0, 2.0)
    assert resource_value(watch) == "down"


PROCESSES = (
    Process(10, 1, "vi", ("vi", "/myrep/myfile")),
    Process(11, 1, "vim", ("vim", "/myrep/other")),
    Process(12, 1, "oracle_pmon_db1", ("oracle_pmon_db1",)),
    Process(13, 1, "a-very-long-com", ("/usr/bin/a-very-long-command", "-d")),
    Process(14, 1, "a-very-long-com", ("/usr/bin/a-very-long-comparison", "-d")),
    Process(15, 1, "a-script-of-the", ("/usr/bin/python3", "-u", "/opt/a-script-of-the-site", "a-script-of-the-town")),
    Process(16, 1, "a-script-of-the", ("/usr/bin/python3", "/opt/a-script-of-the-town")),
)


@pytest.mark.parametrize(
    ("matcher", "pids"),
    [
        (Matcher("vi"), [10]),
        (Matcher("vi", argregex=".*myfile.*"), [10]),
        (Matcher("vi", argregex="/myrep/myfile"), [10]),
        (Matcher("vi", argregex="/elsewhere/"), []),
        (Matcher("oracle", nameregex="oracle_.*"), [12]),
        (Matcher("editors", nameregex="^vim?$"), [10, 11]),
        (Matcher("a-very-long-command"), [13]),
        (Matcher("a-very-long-comparison"), [14]),
        (Matcher("a-very-long-com"), [13, 14]),
        (Matcher("a-script-of-the-site"), [15]),
        (Matcher("a-script-of-the-town"), [16]),
        (Matcher("v"), []),
    ],
)
def test_which_processes_are_meant(matcher: Matcher, pids: list[int]) -> None:
    assert [p.pid for p in matcher.select(PROCESSES)] == pids


def test_what_a_command_for_a_module_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the module started, what its <proc> count, and what descends from these; neither another module's processes
    nor those of the product."""
    table = (
        Process(20, 1, "app", ("/srv/app",)),
        Process(21, 20, "app", ("/srv/app", "worker")),
        Process(22, 1, "app", ("/srv/app", "of another module")),
        Process(23, 1, "app", ("/srv/app", "of nobody")),
        Process(24, 1, "app", ("/srv/app", "counted")),
        Process(25, 20, "python3", ("/usr/bin/python3", "/opt/safekit/private/env/bin/heart", "-m", "am")),
    )
    owners = {20: "am", 22: "other", 25: "am"}
    monkeypatch.setattr(processes, "module_of", owners.get)
    monkeypatch.setattr(processes, "descendants", lambda roots: [21, 25] if 20 in roots else [])
    monkeypatch.delenv("SAFE", raising=False)
    assert [p.pid for p in own("am", table, [table[4]])] == [20, 21, 24]
    assert [p.pid for p in own("third", table, [table[2]])] == [], "a <proc> does not make another module's its own"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("ActiveState=active\nMainPID=42\n", (True, 42)),
        ("ActiveState=failed\nMainPID=0\n", (False, 0)),
        ("", None),
        ("MainPID=x\nActiveState=reloading", (True, 0)),
    ],
)
def test_systemd_answers(text: str, answer: tuple[bool, int] | None) -> None:
    assert parse_show(text) == answer

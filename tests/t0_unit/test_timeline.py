"""One order for what happened on several servers whose clocks differ."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekit.log import commands as commandlog
from safekit.log.timeline import (
    BadTimeline,
    Clock,
    Entry,
    clock,
    from_answer,
    lines,
    local_entries,
    merge,
    of_commands,
    shown,
    to_fields,
    utc,
)
from safekit.view.words import local_stamp

EXACT = Clock(0.0, 0.0)


def entry(at: float, node: str, text: str = "x") -> Entry:
    return Entry(at, node, "log", "web", "heart", text)


@given(
    ahead=st.floats(-1e6, 1e6),
    there=st.floats(0, 2),
    work=st.floats(0, 2),
    back=st.floats(0, 2),
)
def test_the_true_difference_of_the_clocks_lies_within_the_bound(
    ahead: float, there: float, work: float, back: float
) -> None:
    found = clock(100.0, 100.0 + there + ahead, 100.0 + there + work + ahead, 100.0 + there + work + back)
    assert abs(found.ahead - ahead) <= found.within + 1e-6


def test_the_order_is_the_true_one_whatever_the_clocks_say() -> None:
    source = random.Random(1)
    offsets = {"n1": 0.0, "n2": 3600.0, "n3": -0.25}
    truth = [(float(number), source.choice(list(offsets)), f"event {number}") for number in range(300)]
    told = [
        ([entry(at + ahead, node, text) for at, node, text in truth if node == name], Clock(ahead, 0.01))
        for name, ahead in offsets.items()
        for node in [name]
    ]
    assert [e.text for e in merge(told, None)] == [text for _, _, text in truth]
    assert [e.text for e in merge(told, 3)] == ["event 297", "event 298", "event 299"]


def test_a_difference_within_the_bound_moves_nothing_and_equal_dates_keep_their_order() -> None:
    first = [entry(1.0, "n1", "a"), entry(1.0, "n1", "b")]
    assert merge([(first, Clock(0.004, 0.01))], None) == first


def test_dates() -> None:
    at = utc("2026-11-24T19:39:37.842Z")
    assert at is not None and shown(at) == local_stamp("2026-11-24T19:39:37.842Z"), "as safekit log shows it"
    assert utc("2026-11-24T19:39:37.842") is not None, "the commands log has local time"
    assert utc("yesterday") is None and utc("") is None


def test_what_a_server_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE", str(tmp_path / "safe"))
    monkeypatch.setenv("SAFEVAR", str(tmp_path))
    log = tmp_path / "modules/web/log"
    log.mkdir(parents=True)
    (tmp_path / "safe/modules/web/conf").mkdir(parents=True)
    (log / "module.log").write_text(
        '2026-11-24T10:00:02.000Z|n1|E|heart|local_state|{"state":"ALONE","color":"green"}|Local state ALONE green\n'
        "damaged\n2026-11-24T10:00:03.000Z|n1|I|heart|debug|{}|detail\n"
    )
    (tmp_path / "safeadmin.log").write_text("2026-11-24T10:00:01.000Z | n1 | I | cluster membership: n1 n2\nbad\n")
    commandlog.finished(commandlog.started("prim -m web"), 0)
    commandlog.finished(commandlog.started("start -m other"), 1)
    commandlog.finished(commandlog.started("cluster genkey"), 0)
    found = local_entries("n1", "web", "E", 100, "fr")
    assert [e.text for e in found if e.source != "command"] == ["cluster membership: n1 n2", "État local ALONE green"]
    commands = [e.text for e in found if e.source == "command"]
    assert commands == ["safekit prim -m web", "return 0: safekit prim -m web", "safekit cluster genkey",
                        "return 0: safekit cluster genkey"]  # fmt: skip
    assert len(list(of_commands("n1", None))) == 6
    assert len(local_entries("n1", None, "E", 3, "en")) == 3

    fields = {"received": 1.0, "answered": 2.0, "entries": [to_fields(e) for e in found]}
    back, received, answered = from_answer("n1", fields)
    assert [(e.text, e.source) for e in back] == [(e.text, e.source) for e in found] and (received, answered) == (1, 2)
    text = list(lines(back))
    assert " | n1 | safeadmin       | cluster" in text[0] and "| web/heart" in text[1] and "] safekit prim" in text[2]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["at", "source", "subject", "who", "text", "x"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["entries", "received", "answered"]), JSON))
def test_any_answer_is_entries_or_an_error_of_ours(data: dict[str, object]) -> None:
    try:
        entries, _, _ = from_answer("n1", data)
    except BadTimeline:
        return
    for line in lines(merge([(entries, EXACT)], None)):
        assert "\n" not in line

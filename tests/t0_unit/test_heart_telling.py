"""Decisions told to the other server: each arrives once, in order, also over a cut and over restarts."""

from __future__ import annotations

from pathlib import Path

from heart.core.values import Beat, Decided, Reason
from heart.shell.publish import History
from heart.shell.telling import AT_ONCE, PEER_FILE, Telling
from heart.shell.wire import pack, unpack


def detail(name: str) -> tuple[str, float]:
    return ("tcpcheck", 12.5) if name == "tcp.web" else ("", 0.0)


def reasons(count: int, first: int = 0) -> list[Reason]:
    inputs = (("tcp.web", "down"), ("peer", "PRIM"))
    return [Reason(f"rule{n}", "restart()", inputs) for n in range(first, first + count)]


def exchange(one: Telling, two: Telling) -> list[Decided]:
    """One heartbeat there and one back, over the wire's format."""
    there = unpack(pack(Beat("a", 1, decided=one.pending(), decided_seen=one.seen), "AM"), "AM")
    fresh = two.fresh(there.decided)
    one.acknowledged(unpack(pack(Beat("b", 1, decided_seen=two.seen), "AM"), "AM").decided_seen)
    return list(fresh)


def test_each_decision_arrives_once_in_order(tmp_path: Path) -> None:
    one, two = Telling(tmp_path / "one"), Telling(tmp_path / "two")
    made = one.add(reasons(12), detail)
    heard: list[Decided] = []
    for _ in range(6):
        heard += exchange(one, two)
    assert heard == list(made)
    assert heard[0].inputs == (("tcp.web", "down", "tcpcheck", 12.5), ("peer", "PRIM", "", 0.0))
    assert one.pending() == () and exchange(one, two) == []


def test_what_was_decided_while_nothing_was_heard_arrives_later(tmp_path: Path) -> None:
    one, two = Telling(tmp_path / "one"), Telling(tmp_path / "two")
    one.add(reasons(3), detail)
    assert len(one.pending()) == 3, "told again until it is acknowledged"
    assert len(one.pending()) <= AT_ONCE
    assert [d.rule for d in exchange(one, two)] == ["rule0", "rule1", "rule2"]


def test_a_restarted_receiver_does_not_hear_twice(tmp_path: Path) -> None:
    one, two = Telling(tmp_path), Telling(tmp_path)
    one.add(reasons(2), detail)
    lost_answer = two.fresh(one.pending())
    History(tmp_path, "a", PEER_FILE).record(lost_answer)
    again = Telling(tmp_path)
    assert again.seen == lost_answer[-1].number and again.fresh(one.pending()) == ()


def test_long_decisions_share_a_heartbeat_only_when_they_fit(tmp_path: Path) -> None:
    one = Telling(tmp_path)
    one.add([Reason("r", "x" * 700), Reason("r", "y" * 700)], detail)
    assert len(one.pending()) == 1

"""Columns of `cluster confinfo` and `cluster state`."""

from __future__ import annotations

from cli.cluster import confinfo_lines, state_lines

FACTS = {
    "signature": "6f10",
    "date": "2016-05-20T17:06:45",
    "locked": True,
    "modules": [
        {"name": "db", "id": 1, "mode": "mirror", "signature": "ab", "date": "2016-05-20T17:00:00", "running": True},
        {"name": "web", "id": 2, "mode": "", "signature": "", "date": "", "running": False},
    ],
}
NODES = {"n1": {"answers": True, "facts": FACTS}, "n2": {"answers": False, "facts": FACTS}, "n3": {"answers": True}}


def test_confinfo_lists_the_nodes_that_answer() -> None:
    header, *rows = confinfo_lines(NODES)
    assert header.split() == ["Node", "Signature", "Date", "Lock"]
    assert [row.split() for row in rows] == [["n1", "6f10", "2016-05-20T17:06:45", "1"]]


def test_state_names_every_mode() -> None:
    modules = [{**FACTS["modules"][0], "mode": mode} for mode in ("mirror", "farm", "light")]  # type: ignore[dict-item, index]
    _, *rows = state_lines({"n1": {"answers": True, "facts": {"modules": modules}}})
    assert [row.split()[2] for row in rows] == ["mirror", "farm", "light"]


def test_state_lists_modules_of_silent_nodes_too() -> None:
    _, *rows = state_lines(NODES)
    assert rows[0].split() == ["n1", "db", "mirror", "1", "2016-05-20T17:00:00", "ab"]
    assert "not configured" in rows[1]
    assert [row.split()[0] for row in rows] == ["n1", "n1", "n2", "n2"]

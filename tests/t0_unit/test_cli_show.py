"""What commands show, from values."""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path

import pytest

from cli.ids import free_id
from cli.level import licence, os_name
from cli.module import port_lines
from cli.state import table, verdict_line
from cli.why import explain
from safekit.disk.resources import Resource
from safekit.view.decisions import history, parse
from safekit.view.module import Progress, as_data, progress_of, view_of
from safekit.view.story import sentence
from safekit.view.words import duration, local_stamp, moment, progress_line, size

NOW = time.mktime((2026, 1, 15, 12, 0, 0, 0, 0, -1))


def resources(**values: str) -> dict[str, Resource]:
    return {
        name.replace("__", "."): Resource(name.replace("__", "."), value, NOW - 60, "heart")
        for name, value in values.items()
    }


PAIR = resources(state__local="PRIM", state__color="green", state__remote="SECOND", state__remotecolor="green")
KNOWN = {"id": 1, "mode": "mirror", "running": True, "heart": True}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (356400, "4 d 3 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KB"), (5 << 40, "5.0 TB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_moment_has_the_date_when_it_is_not_today() -> None:
    assert moment(NOW - 60, NOW) == "11:59:00"
    assert moment(NOW - 86400, NOW) == "2026-01-14 12:00:00"
    assert moment(0, NOW) == ""


def test_a_running_module_is_what_its_resource_file_says() -> None:
    view = view_of("db", KNOWN, PAIR)
    assert (view.state, view.color, view.remote_state, view.remote_color) == ("PRIM", "green", "SECOND", "green")
    assert view.since == NOW - 60


def test_a_module_without_processes_is_stopped_whatever_the_file_says() -> None:
    view = view_of("db", {**KNOWN, "running": False}, PAIR)
    assert (view.state, view.color, view.remote_state) == ("STOP", "red", "UNKNOWN")


def test_a_module_that_boots_after_a_power_failure_does_not_show_the_state_before_it() -> None:
    view = view_of("db", {**KNOWN, "past": True}, PAIR)
    assert (view.state, view.color, view.remote_state, view.since) == ("WAIT", "magenta", "UNKNOWN", 0.0)


def test_a_farm_has_no_remote_state() -> None:
    assert view_of("web", {**KNOWN, "mode": "farm"}, PAIR).remote_state == ""


def test_state_table_and_verdict() -> None:
    view = view_of("db", KNOWN, PAIR)
    header, row = table([view], NOW)
    assert header.split() == ["MODULE", "ID", "MODE", "STATE", "REMOTE", "SINCE"]
    assert row.split()[:7] == ["db", "1", "mirror", "PRIM", "green", "SECOND", "green"]
    assert "(1 min)" in row
    assert verdict_line(view, NOW).startswith("db is protected: ")


def test_degraded_replication_is_in_the_table() -> None:
    view = view_of("db", KNOWN, {**PAIR, **resources(state__local="ALONE", rfs__degraded="up")})
    assert "ALONE green degraded" in table([view], NOW)[1]


def test_progress() -> None:
    line = progress_line(Progress(3, 10, 5 << 20, 20 << 20, 1 << 20, 15.0))
    assert line == "reintegration 25%, 15 s left: 5.0 MB of 20.0 MB, 1.0 MB/s, 3/10 files"
    assert "left" not in progress_line(Progress(0, 10, 0, 0, 0, None))
    assert progress_line(Progress(0, 0, 0, 0, 0, None)) == "reintegration: comparing the directory trees"


def test_progress_is_what_nfsadmin_tells() -> None:
    told = {"files": 3, "files_total": 10, "bytes": 5, "bytes_total": 20, "rate": 2.0, "left": 4.5, "kind": "zones"}
    assert progress_of({"reintegration": told}) == Progress(3, 10, 5, 20, 2048.0, 4.5, "zones")
    assert progress_of({"reintegration": {"rule": "r", "kind": ""}}) == Progress(0, 0, 0, 0, 0.0, None)
    assert progress_of({"reintegration": None}) is None


def test_json_has_the_verdict_and_the_progress() -> None:
    data = as_data(view_of("db", KNOWN, PAIR), Progress(1, 2, 3, 4, 5.0, 6.0), resources=True)
    assert data["verdict"]["kind"] == "protected"
    assert data["reintegration"]["seconds_left"] == 6.0
    assert data["resources"]["state.local"]["value"] == "PRIM"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "Demo (No license)"),
        ("", "Invalid Product"),
        ("nonsense", "Invalid Product"),
        ("id: A12\nhost: n1\n", "A12 for n1"),
        ("id: A12\nhost: other\n", "Invalid Host"),
        ("id: A12\nhost: N1\n", "A12 for N1"),
        ("id: A12\nhost: *\nexpires: 2026-02-01\n", "A12 Expiration 2026-02-01"),
        ("id: A12\nexpires: 2025-12-31\n", "Expired license"),
        ("id: A12\nexpires: soon\n", "Invalid Product"),
    ],
)
def test_licence(text: str | None, expected: str) -> None:
    """LIC-001, LIC-002, LIC-004."""
    assert licence(text, "n1.example.org", date(2026, 1, 15)) == expected.replace("for *", "for n1.example.org")


def test_os_name() -> None:
    assert os_name('NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n') == "Debian GNU/Linux 12 (bookworm)"
    assert os_name("NAME=Alpine\nVERSION_ID=3.20\n") == "Alpine 3.20"
    assert os_name("") == "Linux"


def test_ports_of_the_guide() -> None:
    mirror = port_lines(4800, [8888], [5600], [])
    assert [line.split()[-1] for line in mirror[2:]] == [
        "safeadmin", "4800", "webconsole", "9010", "heart", "8888", "rfs", "5600",
    ]  # fmt: skip
    superset = "\n".join(port_lines(4800, [8894], [5624], [4821]))
    for port in ("8894", "5624", "4821"):
        assert port in superset


def test_the_smallest_free_id() -> None:
    assert free_id({}) == 1
    assert free_id({1: "a", 3: "b"}) == 2


def test_why_shows_rule_inputs_and_who_set_them(tmp_path: Path) -> None:
    (tmp_path / "why.jsonl").write_text(
        '{"time": 20.0, "node": "n1", "rule": "notuptodate_server", "action": "wait",'
        ' "inputs": {"rfs.uptodate": "down", "remote.rfs.uptodate": "unknown"}, "text": "data are not up to date"}\n'
        "{damaged\n"
        '{"time": 10.0, "node": "n1", "rule": "start", "action": "start", "inputs": {}}\n'
    )
    first, second = list(history(tmp_path))
    assert (first.rule, second.rule) == ("start", "notuptodate_server")
    lines = explain(second, {"rfs.uptodate": Resource("rfs.uptodate", "down", 5.0, "heart")})
    assert "wait  (rule notuptodate_server)" in lines[0]
    assert lines[1].strip() == "data are not up to date"
    assert lines[2].strip() == "remote.rfs.uptodate = unknown"
    assert lines[3].strip().startswith("rfs.uptodate = down, set by heart at ")


def test_zeros_of_a_power_failure_hide_no_decision() -> None:
    line = '{"time": 20.0, "rule": "r", "action": "wait", "inputs": {}}'
    assert parse("\0" * 999 + line) == parse(line) is not None


def test_why_does_not_blame_a_later_setter() -> None:
    decision = parse('{"time": 20.0, "rule": "r", "action": "wait", "inputs": {"a.b": "down"}}')
    assert decision is not None
    assert explain(decision, {"a.b": Resource("a.b", "down", 30.0, "bob")})[-1].strip() == "a.b = down"


@pytest.mark.parametrize("line", ["", "[]", "1", '{"time": "x", "rule": "r"}', '{"rule": "r"}'])
def test_why_passes_over_damaged_lines(line: str) -> None:
    assert parse(line) is None


def test_why_shows_nothing_that_a_terminal_obeys() -> None:
    inputs = {"text": "/data/\x1b]0;x\x07: full", "a": {"value": "\x9b2J", "since": 1.0}}
    decision = parse(json.dumps({"time": 1, "rule": "secondary_failed", "action": "-> WAIT", "inputs": inputs}))
    assert decision is not None and "/data/ ]0;x : full" in sentence(decision)
    assert all(line.isprintable() for line in explain(decision, {}))


def test_dates_of_logs_are_local_as_those_of_state_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert local_stamp("2026-01-31T20:00:01.250Z") == "2026-02-01 05:00:01.250"
        assert moment(1769889601.25, 1769889700.0) == "05:00:01"
        assert moment(1769889601.25, 1769889700.0 + 86400) == "2026-02-01 05:00:01", "a date when it is not today"
        assert local_stamp("damaged") == "damaged"
    finally:
        monkeypatch.undo()
        time.tzset()

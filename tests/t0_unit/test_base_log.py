"""Log lines survive rotation and damage; messages exist in both languages with the same fields."""

from __future__ import annotations

import os
import socket
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekit.disk.paths import ModulePaths
from safekit.log import messages, module
from safekit.log.journal import Journal


@pytest.fixture(autouse=True)
def safevar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEVAR", str(tmp_path))


def lines() -> list[module.Line]:
    found = [module.parse_line(text) for text in ModulePaths("AM").log.read_text().splitlines()]
    return [line for line in found if line is not None]


@pytest.mark.parametrize("message", messages.MESSAGES.values(), ids=lambda m: m.code)
def test_both_languages_use_the_same_fields(message: messages.Message) -> None:
    def fields(text: str) -> set[str | None]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    assert fields(message.en) == fields(message.fr)
    assert message.level in ("E", "I", "D")


def test_an_event_is_one_line_in_any_language() -> None:
    module.ModuleLog("AM", "heart", "n1").event("action_called", action="start", who="root")
    (line,) = lines()
    assert (line.level, line.node, line.process, line.text()) == ("E", "n1", "heart", "Action start called by root")
    assert line.text("fr") == "Action start demandée par root"


def test_a_rotated_log_is_followed() -> None:
    writer = module.ModuleLog("AM", "heart", "n1")
    writer.info("one")
    path = ModulePaths("AM").log
    path.rename(path.with_suffix(".1"))
    writer.info("two")
    assert [line.text() for line in lines()] == ["two"]


def test_a_full_disk_stops_nothing(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    writer = module.ModuleLog("AM", "heart", "n1")
    writer.info("one")

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    writer.info("two")
    writer.info("three")
    monkeypatch.undo()
    err = capfdbinary.readouterr().err
    assert err.count(b"No space left") == 1 and b"two" in err and b"three" in err


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=50), max_size=4), st.text(max_size=80))
def test_any_text_stays_one_line(fields: dict[str, str], text: str) -> None:
    data = module.format_line(module.Line(module.now(), "n1", "I", "p", "printi", fields, text))
    assert data.count(b"\n") == 1 and data.endswith(b"\n")
    parsed = module.parse_line(data.decode("utf-8"))
    assert parsed is not None and parsed.code == "printi"


def test_zeros_of_a_power_failure_hide_no_line() -> None:
    line = "2026-01-01T00:00:00.000Z|n1|E|heart|end_of_stop|{}|End of stop"
    assert module.parse_line("\0" * 2000 + line) == module.parse_line(line)
    assert module.parse_line("\0" * 2000) is None


def test_the_journal_gets_copies_with_fields(tmp_path: Path) -> None:
    place = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(place))
        receiver.settimeout(5)
        written = module.ModuleLog("AM", "heart", "n1")
        written.journal = Journal(place)
        written.debug("for us")
        written.event("vip_set", addr="10.0.0.9\nPRIORITY=0")
        said = receiver.recv(65536).decode().splitlines()
    assert said[:2] == ["MESSAGE=AM: Virtual IP 10.0.0.9 PRIORITY=0 set", "PRIORITY=5"]
    assert {"SYSLOG_IDENTIFIER=heart", "SAFEKIT_MODULE=AM", "SAFEKIT_CODE=vip_set", "SAFEKIT_NODE=n1"} <= {*said}
    written.event("end_of_stop")  # nobody reads the journal any more
    assert "End of stop" in ModulePaths("AM").log.read_text()


def test_a_full_journal_holds_nobody_up(tmp_path: Path) -> None:
    place = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(place))
        journal = Journal(place)
        begun = time.monotonic()
        for _ in range(10_000):
            journal.send("x" * 1000, 6, {})
        assert time.monotonic() - begun < 5


def test_long_lines_are_cut() -> None:
    line = module.Line(module.now(), "n1", "I", "p", "printi", {"t": "x" * 9000}, "y" * 9000)
    assert len(module.format_line(line)) < 4096


def test_what_a_terminal_obeys_is_not_logged() -> None:
    """Any user names files, and an administrator looks at the log."""
    line = module.Line(module.now(), "n1", "E", "reintegre", "debug", {}, "x\x1b]0;title\x07y\x9b31m\x7f")
    assert module.format_line(line).decode().endswith("|x ]0;title y 31m \n")

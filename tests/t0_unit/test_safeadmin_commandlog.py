"""The commands log: the guide's format, its bound, and what it does when it cannot be written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from safekit.log import commands as commandlog


@pytest.fixture(autouse=True)
def safevar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEVAR", str(tmp_path))
    return tmp_path


GUIDE = [
    "^ 2013-12-02T11:17:22.836104 |  28088 | running     | webserver start sync",
    "^ 2013-12-02T11:17:23.165604 |  28088 | return    0 | webserver start sync",
    "^ 2013-12-02T12:06:13.859945 |  28325 | running     | prim -u web@192.168.1.8 -m mirror",
]


@pytest.mark.parametrize("line", GUIDE)
def test_lines_of_the_guide_are_understood_and_written_the_same(line: str) -> None:
    entry = commandlog.parse_entry(line)
    assert entry is not None
    assert commandlog.format_entry(entry) == line + "\n"


def test_a_command_is_two_lines_of_one_pid(safevar: Path) -> None:
    entry = commandlog.started("config -m mirror")
    commandlog.finished(entry, 1)
    first, second = (safevar / "commandlog").read_text().splitlines()
    assert re.fullmatch(r"\^ [\dT:.-]{26} \| +\d+ \| running     \| config -m mirror", first)
    assert re.fullmatch(r"\^ [\dT:.-]{26} \| +\d+ \| return    1 \| config -m mirror", second)
    one, two = commandlog.read()
    assert one.pid == two.pid and (one.code, two.code) == (None, 1)


def test_arguments_cannot_forge_a_line(safevar: Path) -> None:
    commandlog.started("printe \n^ 2020-01-01T00:00:00.000000 |      1 | return    0 | stop\x1b[2J -m a")
    assert len((safevar / "commandlog").read_text().splitlines()) == 1
    (entry,) = commandlog.read()
    assert "\\n" in entry.arguments and "\x1b" not in entry.arguments


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("http://admin:pass word@10.0.0.1:9010", "http://admin:***@10.0.0.1:9010"),
        ("https://a:b@n1,HTTP://c:,d@[fd00::1],n2", "https://a:***@n1,HTTP://c:***@[fd00::1],n2"),
        ("http://10.0.0.1:9010,http://n2:9010", "http://10.0.0.1:9010,http://n2:9010"),
        ("[http:9011],*", "[http:9011],*"),
    ],
)
def test_a_password_in_a_url_is_not_written(word: str, shown: str) -> None:
    """Every Monitor may read the log, and snapshots have it."""
    commandlog.finished(commandlog.started("-H", word, "-G"), 0)
    assert [entry.arguments for entry in commandlog.read()] == [f"-H {shown} -G"] * 2


def test_the_log_is_bounded_and_keeps_the_newest(safevar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commandlog, "MAX_BYTES", 2000)
    for number in range(100):
        commandlog.started(f"set {number}")
    sizes = [file.stat().st_size for file in safevar.glob("commandlog*")]
    assert len(sizes) == 2 and max(sizes) <= 2000
    entries = list(commandlog.read())
    assert entries[-1].arguments == "set 99" and len(entries) > 20
    assert [e.arguments for e in commandlog.read(2)] == ["set 98", "set 99"]


def test_a_log_that_cannot_be_written_is_said_and_the_command_goes_on(
    safevar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (safevar / "commandlog").mkdir()
    commandlog.finished(commandlog.started("stop -m mirror"), 0)
    assert "commandlog" in capsys.readouterr().err


def test_damaged_lines_are_passed_over(safevar: Path) -> None:
    commandlog.started("start -m mirror")
    with open(safevar / "commandlog", "a") as handle:
        handle.write("^ 2013-12-02T11:17:23.165604 |  28088 | ret\n\nnonsense\n")
    commandlog.started("stop -m mirror")
    assert [entry.arguments for entry in commandlog.read()] == ["start -m mirror", "stop -m mirror"]

"""The way for a module is made on a server, and given back, with a systemctl that notes what it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.base import Failure
from cli.protect import way
from cli.protect.facts import Directory
from safekit.disk.paths import ModulePaths

SYSTEMCTL = """#!/bin/sh
# The states of one unit are files: active, enabled.
cd "${0%/*}"
case $1 in
is-active) [ -e active ] && echo active || { echo inactive; exit 3; } ;;
is-enabled) [ -e enabled ] && echo enabled || { echo disabled; exit 1; } ;;
start) : >active ;;
stop) rm -f active ;;
enable) : >enabled ;;
disable) rm -f enabled ;;
esac
"""


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the states of the unit are; it runs, and starts at boot."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "systemctl").chmod(0o755)
    for state in ("active", "enabled"):
        (programs / state).touch()
    (tmp_path / "var").mkdir()
    monkeypatch.setenv("SAFE", str(tmp_path / "safe"))
    monkeypatch.setenv("SAFEVAR", str(tmp_path / "var"))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def order(data: Path) -> way.Order:
    like = Directory(str(data), mode=0o750, uid=os.getuid(), gid=os.getgid())
    return way.Order("shop", ("shop.service",), ("shop.service",), (like,), ".before-shop")


def states(unit: Path) -> set[str]:
    return {name for name in ("active", "enabled") if (unit / name).exists()}


def test_what_an_interrupted_run_left_is_not_noted_as_what_there_was(unit: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows").write_text("one")
    for _ in range(2):  # the first run is killed after it: nothing is taken back, its note stays
        way.make(order(data))
        assert not states(unit) and not os.listdir(data) and data.stat().st_mode & 0o7777 == 0o750
    way.take_back("shop")
    assert states(unit) == {"active", "enabled"}
    assert (data / "rows").read_text() == "one" and not (tmp_path / "data.before-shop").exists()


def test_whoever_owns_the_data_reaches_it_where_the_directories_above_are_made(unit: Path, tmp_path: Path) -> None:
    """The commands run with an umask that shuts others out."""
    data = tmp_path / "srv" / "shop" / "data"
    former = os.umask(0o007)
    try:
        way.make(order(data))
    finally:
        os.umask(former)
    assert [each.stat().st_mode & 0o7777 for each in (data, *data.parents[:2])] == [0o750, 0o755, 0o755]


def test_nothing_is_given_back_while_the_module_has_the_data(unit: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows").write_text("one")
    way.make(order(data))
    ModulePaths("shop").root.mkdir(parents=True)
    with pytest.raises(Failure, match="still on this server") as refused:
        way.take_back("shop")
    assert "module uninstall -m shop" in refused.value.next_step
    assert not states(unit) and (tmp_path / "data.before-shop").exists()
    ModulePaths("shop").root.rmdir()
    way.take_back("shop")
    assert states(unit) == {"active", "enabled"} and (data / "rows").read_text() == "one"


def test_a_link_in_the_place_of_the_data_gives_nobody_the_directory_behind_it(unit: Path, tmp_path: Path) -> None:
    """Who owns the directory above would have had root give him any that is empty."""
    behind, data = tmp_path / "behind", tmp_path / "data"
    behind.mkdir(mode=0o700)
    data.symlink_to(behind)
    with pytest.raises(Failure, match="no directory of its own"):
        way.make(order(data))
    assert behind.stat().st_mode & 0o7777 == 0o700
    way.take_back("shop")
    assert states(unit) == {"active", "enabled"} and data.is_symlink()

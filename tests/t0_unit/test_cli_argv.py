"""Spellings of the guide become regular options."""

from __future__ import annotations

import pytest

from cli.argv import split, two_dashes
from safekit.spelling import plain_dashes


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("\u2013m", "-m"),
        ("\u2014lq", "-lq"),
        ("\u2013\u2013timeout", "--timeout"),
        ("-m", "-m"),
        ("--json", "--json"),
        ("mirror", "mirror"),
        ("a\u2013b", "a\u2013b"),
        ("-", "-"),
        ("\u2013", "\u2013"),
    ],
)
def test_typographic_dashes(typed: str, meant: str) -> None:
    assert plain_dashes(typed) == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("-timeout=5", "--timeout=5"),
        ("-timeout", "--timeout"),
        ("--timeout", "--timeout"),
        ("-t", "-t"),
        ("-other", "-other"),
        ("timeout", "timeout"),
    ],
)
def test_long_options_with_one_dash(typed: str, meant: str) -> None:
    assert two_dashes(typed, {"--timeout", "--json"}) == meant


def test_special_command_keeps_its_own_options() -> None:
    line = split(["-m", "AM", "-r", "processtree", "list", "all", "\u2013x"])
    assert line.special == ("processtree", "list", "all", "\u2013x")
    assert line.module == "AM"


def test_option_r_after_the_word_is_the_commands_own() -> None:
    assert split(["module", "install", "-r", "x.safe"]).special is None
    assert split(["set", "-r", "custom.x", "-v", "up"]).special is None


@pytest.mark.parametrize("option", ["-H", "-G", "-E", "\u2013H"])
def test_distributed_options(option: str) -> None:
    assert split([option, "*", "state"]).distributed == plain_dashes(option)


def test_distributed_letters_after_the_word_are_not_distributed() -> None:
    assert split(["log", "-H"]).distributed is None


def test_a_value_that_looks_like_an_option_is_a_value() -> None:
    assert split(["-m", "-r", "state"]).special is None

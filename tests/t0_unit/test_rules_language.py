"""The failover rules language: what is read, what is refused, and that printing and reading agree."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safekit.rules.ast import (
    STATES,
    Act,
    And,
    Assign,
    Call,
    Compare,
    Expression,
    Not,
    Or,
    Resource,
    Rule,
    State,
    Text,
    Truth,
    Verb,
)
from safekit.rules.evaluator import View, evaluate
from safekit.rules.lexer import RuleError
from safekit.rules.parser import parse
from safekit.rules.printer import render
from safekit.rules.source import default_rules, default_text

FIREWALL = """
<!--  Rule 1. -->
one_ill:
  if ( (intf.? == DOWN || ping.? == DOWN) && remote.intf.* == UP
      && remote.ping.* == UP)
  then wait();
/* Rule 2 */
both_ill:
  if ( (intf.? == DOWN || ping.? == DOWN) &&
       (remote.intf.? ==  DOWN || remote.ping.? == DOWN) &&
       isdefaultprim() == FALSE )
  then wait();
"""


def test_the_firewall_example_of_the_guide_is_read() -> None:
    rules = parse(FIREWALL)
    assert [rule.label for rule in rules] == ["one_ill", "both_ill"]
    view = View({"intf.10.0.0.0": "down", "ping.gw": "up"}, {"intf.10.0.0.0": "up", "ping.gw": "up"})
    assert evaluate(rules, view).winner is not None
    assert evaluate(rules, View({"intf.a": "up"}, {"intf.a": "up"})).winner is None
    ill = View({"intf.a": "down"}, {"intf.a": "down"}, is_default_prim=True)
    assert evaluate(rules, ill).winner is None, "the default primary works on when both are ill"
    assert evaluate(rules, View({"intf.a": "down"}, {"intf.a": "down"})).winner is not None


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ("r if (a.b == up) then wait();", 1, 3, "':' after the label"),
        ("r: if a.b == up then wait();", 1, 7, "'(' after if"),
        ("r: if (a.b == up) then explode();", 1, 24, "wait()"),
        ("r: if (a.b == up) then wait()", 1, 30, "';'"),
        ("r:\n if (a.b == sideways) then wait();", 2, 13, "a state"),
        ("r: if (frob() == up) then wait();", 1, 8, "hostname()"),
        ("r: if (a.b == up) then remote.a.b=up;", 1, 24, "a local one"),
        ("r: if (a.b == up) then a.?=up;", 1, 24, "one resource"),
        ("r: if (a.b == up) then a.b=green;", 1, 28, "init, down, up, unknown"),
        ("/* never closed", 1, 1, "'*/'"),
        ("r: if (a.b == up) then wait();\nr: if (a.b == up) then stop();", 2, 1, "not used yet"),
        ('r: if (hostname() == "x) then wait();', 1, 22, "same line"),
        ("r: if (" + "(" * 100 + "a.b" + ")" * 100 + ") then wait();", 1, 68, "levels"),
    ],
)
def test_an_error_tells_the_place_and_what_was_expected(text: str, line: int, column: int, expected: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse(text)
    assert (caught.value.position.line, caught.value.position.column) == (line, column)
    assert expected in caught.value.expected
    assert f"line {line}, column {column}" in str(caught.value)


_names = st.sampled_from(["ping", "intf", "custom", "rfs", "x-1"])
_idents = st.sampled_from(["a", "testR2", "10.0.0.0", "?", "*"])
_resources = st.builds(Resource, st.booleans(), st.one_of(_names, st.sampled_from(["?", "*"])), _idents)
_leaves: st.SearchStrategy[Expression] = st.one_of(
    _resources,
    st.builds(State, st.sampled_from(STATES)),
    st.builds(Text, st.text(st.characters(blacklist_characters='"\n', blacklist_categories=("Cs",)), max_size=8)),
    st.builds(Truth, st.booleans()),
    st.builds(Call, st.sampled_from(["hostname", "isdefaultprim", "cluster"])),
)


def _nodes(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    return st.one_of(
        st.builds(And, inner, inner),
        st.builds(Or, inner, inner),
        st.builds(Not, inner),
        st.builds(Compare, st.booleans(), inner, inner),
    )


expressions = st.recursive(_leaves, _nodes, max_leaves=12)
_outcomes = st.one_of(
    st.builds(Act, st.sampled_from(list(Verb))),
    st.builds(Assign, st.sampled_from(["rfs.uptodate", "custom.x"]), st.sampled_from(STATES)),
)
_values = st.sampled_from(STATES)
_tables = st.dictionaries(st.sampled_from(["ping.a", "ping.b", "intf.10.0.0.0", "custom.a", "rfs.a"]), _values)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(expressions, _outcomes), max_size=4))
def test_what_is_printed_is_read_back_equal(parts: list[tuple[Expression, Act | Assign]]) -> None:
    rules = tuple(Rule(f"r{i}", condition, outcome) for i, (condition, outcome) in enumerate(parts))
    assert parse(render(rules)) == rules


@settings(max_examples=300, deadline=None)
@given(expressions, _tables, st.one_of(st.none(), _tables), st.booleans())
def test_evaluation_never_raises(
    condition: Expression, local: dict[str, str], remote: dict[str, str] | None, prim: bool
) -> None:
    verdict = evaluate((Rule("r", condition, Act(Verb.STOP)),), View(local, remote, "host", prim, "up"))
    assert (verdict.winner is None) == (not verdict.fired)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_rules_or_a_rule_error(text: str) -> None:
    try:
        parse(text)
    except RuleError as error:
        assert error.position.line >= 1 and error.position.column >= 1


_WORDS = st.sampled_from(
    """r: label if ( ) then ; wait() restart() stop( ping.gw intf.? *.* remote. local.rfs.uptodate == != = ! && || & |
    down UP init unknown TRUE FALSE hostname() isdefaultprim() cluster() "text" " /* */ <!-- --> - . , 10.0.0.0 \x00 é
    """.split()  # noqa: SIM905 - words to pick from
)


def _damaged(draw: st.DrawFn) -> str:
    """Right rules with words put in, left out and cut: nearer to what people write than any random text."""
    parts = draw(st.lists(st.tuples(expressions, _outcomes), min_size=1, max_size=3))
    rules = tuple(Rule(f"r{i}", condition, outcome) for i, (condition, outcome) in enumerate(parts))
    words = re.split(r"(\W)", render(rules))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(words)))
        kind = draw(st.sampled_from(("put", "drop", "cut", "double")))
        if kind == "put":
            words.insert(place, draw(_WORDS))
        elif kind == "drop":
            del words[place : place + draw(st.integers(1, 3))]
        elif kind == "cut":
            del words[place:]
        else:
            words[place:place] = words[max(place - 6, 0) : place]
    return "".join(words)


def _is_read_or_refused_with_its_place(text: str) -> None:
    """Rules that are read print to rules that are equal; what is refused says where, within the text."""
    try:
        rules = parse(text)
    except RuleError as error:
        lines = text.split("\n")
        assert 1 <= error.position.line <= len(lines)
        assert 1 <= error.position.column <= len(lines[error.position.line - 1]) + 1
        assert error.expected
        return
    assert parse(render(rules)) == rules
    evaluate(rules, View({"ping.gw": "down", "rfs.uptodate": "init"}, None))


@settings(max_examples=500, deadline=None)
@given(st.composite(_damaged)())
def test_damaged_rules_are_read_or_refused_with_their_place(text: str) -> None:
    _is_read_or_refused_with_its_place(text)


@pytest.mark.slow
def test_the_parser_over_a_hundred_thousand_damaged_texts() -> None:
    """The same by a generator that is fast, over the default rules and the firewall example."""
    source = random.Random(20240607)
    seeds = [FIREWALL, default_text(default_rules())]
    alphabet = [*'().;:=!&|"?*/<->\n \t', "/*", "*/", "<!--", "-->", "if", "then", "down", "\x00", "é", "((((", "&&"]
    for _ in range(100_000):
        text = source.choice(seeds)
        begin = source.randrange(len(text))
        text = text[begin : begin + source.randrange(1, 400)] if source.random() < 0.5 else text
        for _ in range(source.randrange(1, 6)):
            place = source.randrange(len(text) + 1)
            text = text[:place] + source.choice([*alphabet, ""]) + text[place + source.randrange(3) :]
        _is_read_or_refused_with_its_place(text)


def fires(condition: str, local: dict[str, str], remote: dict[str, str] | None = None, **view: object) -> bool:
    found = evaluate(parse(f"r: if ({condition}) then wait();"), View(local, remote, **view))  # type: ignore[arg-type]
    return found.winner is not None


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("ping.? == down", True),
        ("ping.* == down", False),
        ("ping.* == up", False),
        ("ping.? == up", True),
        ("ping.? != down", False),
        ("none.? == down", False),
        ("none.* == down", True),
        ("PING.a == down", False),
        ("ping.a == DOWN", True),
        ("local.ping.a == down", True),
        ("remote.ping.a == unknown", True),
        ("remote.ping.? == unknown", False),
        ("missing.x == unknown", True),
        ("!(ping.a == up)", True),
        ("ping.b == TRUE", True),
        ("ping.b && !ping.a", True),
        ('hostname() == "Node1"', True),
        ("isdefaultprim() == FALSE", True),
        ("cluster() == down", True),
        ("TRUE", True),
        ("FALSE || ping.a == down && ping.b == up", True),
        ("ping.a == ping.b", False),
    ],
)
def test_truth(condition: str, expected: bool) -> None:
    view = {"hostname": "node1", "cluster": "down"}
    assert fires(condition, {"ping.a": "down", "ping.b": "up"}, None, **view) is expected


def test_a_rule_that_names_a_resource_in_init_is_not_evaluated() -> None:
    local = {"tcp.a": "init", "tcp.b": "down"}
    assert not fires("tcp.a != up", local)
    assert not fires("tcp.b == down && tcp.a == init", local)
    assert not fires("tcp.b == down || tcp.a == down", local), "also where short-circuit would not look"
    assert fires("tcp.? == down", local), "a checker that has not spoken does not hide another's failure"
    assert not fires("tcp.* == down", local)


def test_the_strongest_action_wins_and_its_label_is_told() -> None:
    rules = parse(
        "a: if (x.x == down) then restart(); b: if (x.x == down) then wait(); c: if (x.x == down) then stopstart();"
        "d: if (x.x == down) then wait(); e: if (x.x == down) then y.y=up;"
    )
    verdict = evaluate(rules, View({"x.x": "down"}))
    assert verdict.verb is Verb.WAIT and verdict.winner is not None and verdict.winner.label == "b"
    assert [hit.label for hit in verdict.assignments] == ["e"]
    assert verdict.winner.inputs == (("x.x", "down"),)
    assert sorted(Verb, key=lambda v: v.strength) == [Verb.RESTART, Verb.SWAP, Verb.STOPSTART, Verb.WAIT, Verb.STOP]

"""Truth of the failover rules over the resources of one instant (guide 13.18.5).

Evaluation is pure, total and never raises: an operand without a meaning makes
its comparison false, and a resource that nobody has set is ``unknown``.

Choices where the guide is silent:

* ``class.?`` is true of at least one matching resource, ``class.*`` of every
  one (so true of none at all); ``!=`` is the negation of ``==``.
* A rule that names a resource in state ``init`` is not evaluated.  With ``?``
  the members still in init are left out instead: a checker that has not
  spoken yet must not hide the failure seen by another.
* Remote resources are ``unknown`` while the peer is not heard.
* Among the actions of all true rules the strongest wins (stop, wait,
  stopstart, swap, restart); between equals the first in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from safekit.rules.ast import (
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

Inputs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class View:
    """What the rules can see: resources of both servers and the three functions.

    ``remote`` is None while the peer is not heard.  ``cluster`` is up, down or
    unknown.
    """

    local: Mapping[str, str]
    remote: Mapping[str, str] | None = None
    hostname: str = ""
    is_default_prim: bool = False
    cluster: str = "unknown"


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule whose condition holds, and the inputs that made it hold."""

    label: str
    outcome: Act | Assign
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class Verdict:
    """All true rules in order; ``winner`` is the one whose action applies."""

    fired: tuple[Fired, ...] = ()
    winner: Fired | None = None
    assignments: tuple[Fired, ...] = field(default=())

    @property
    def verb(self) -> Verb | None:
        """The action to carry out, None when no rule asks for one."""
        return self.winner.outcome.verb if self.winner and isinstance(self.winner.outcome, Act) else None


class _NotReady(Exception):
    """The rule names a resource in init: it is left out, without a verdict."""


def evaluate(rules: Iterable[Rule], view: View) -> Verdict:
    """Evaluate every rule once over `view`."""
    fired: list[Fired] = []
    winner: Fired | None = None
    strength = -1
    for rule in rules:
        try:
            true, inputs = _truth(rule.condition, view)
        except _NotReady:
            continue
        if not true:
            continue
        hit = Fired(rule.label, rule.outcome, tuple(dict.fromkeys(inputs)))
        fired.append(hit)
        if isinstance(rule.outcome, Act) and rule.outcome.verb.strength > strength:
            winner, strength = hit, rule.outcome.verb.strength
    assigned = tuple(hit for hit in fired if isinstance(hit.outcome, Assign))
    return Verdict(tuple(fired), winner, assigned)


Value = str | bool
_NOTHING: Inputs = ()


def _truth(node: Expression, view: View) -> tuple[bool, Inputs]:
    match node:
        case And(left, right):
            true, inputs = _truth(left, view)
            if not true:
                _visit(right, view)
                return False, _NOTHING
            other, more = _truth(right, view)
            return other, inputs + more
        case Or(left, right):
            true, inputs = _truth(left, view)
            if true:
                _visit(right, view)
                return True, inputs
            return _truth(right, view)
        case Not(operand):
            true, inputs = _truth(operand, view)
            return not true, inputs or _mentioned(operand, view)
        case Compare(equal, left, right):
            return _compare(equal, left, right, view)
        case _:
            # a bare operand: TRUE, isdefaultprim(), or a resource meaning "is up"
            return _compare(True, node, Truth(True), view)


def _visit(node: Expression, view: View) -> None:
    """Look at the side that short-circuit skipped: init there also defers the rule."""
    match node:
        case And(left, right) | Or(left, right) | Compare(_, left, right):
            _visit(left, view)
            _visit(right, view)
        case Not(operand):
            _visit(operand, view)
        case Resource():
            _values(node, view)
        case _:
            return


def _compare(equal: bool, left: Expression, right: Expression, view: View) -> tuple[bool, Inputs]:
    hits: list[tuple[str, str]] = []
    same = _quantify(left, view, hits, lambda a: _quantify(right, view, hits, lambda b: _same(a, b)))
    if same == equal:
        return True, tuple(hits) or _mentioned(left, view) + _mentioned(right, view)
    return False, _NOTHING


def _quantify(node: Expression, view: View, hits: list[tuple[str, str]], test: Callable[[Value], bool]) -> bool:
    if not isinstance(node, Resource):
        return bool(test(_value(node, view)))
    members = _values(node, view)
    if not node.is_pattern:
        name, value = members[0]
        true = bool(test(value))
        if true:
            hits.append((name, value))
        return true
    results = [(name, value, bool(test(value))) for name, value in members]
    true = any(r for _, _, r in results) if node.existential else all(r for _, _, r in results)
    if true:
        hits.extend((name, value) for name, value, r in results if r)
    return true


def _values(node: Resource, view: View) -> list[tuple[str, str]]:
    """(scoped name, value) of each resource that `node` names.  Raises _NotReady on init."""
    table = view.remote if node.remote else view.local
    scope = "remote." if node.remote else ""
    if not node.is_pattern:
        value = table.get(node.name, "unknown") if table is not None else "unknown"
        if value == "init" and not node.remote:
            raise _NotReady
        return [(scope + node.name, value)]
    members = []
    for name, value in (table or {}).items():
        cls, _, ident = name.partition(".")
        if node.cls not in ("?", "*", cls) or node.ident not in ("?", "*", ident):
            continue
        if value == "init":
            if node.existential or node.remote:
                continue
            raise _NotReady
        members.append((scope + name, value))
    return members


def _value(node: Expression, view: View) -> Value:
    match node:
        case State(value) | Text(value):
            return value
        case Truth(value):
            return value
        case Call("hostname"):
            return view.hostname
        case Call("isdefaultprim"):
            return view.is_default_prim
        case Call(_):
            return view.cluster
        case _:
            return _truth(node, view)[0]


def _same(a: Value, b: Value) -> bool:
    """Equality of two values; against TRUE or FALSE a state counts as "is up"."""
    if isinstance(a, bool) or isinstance(b, bool):
        return _as_bool(a) == _as_bool(b)
    return a.casefold() == b.casefold()


def _as_bool(value: Value) -> bool:
    return value if isinstance(value, bool) else value.casefold() in ("up", "true")


def _mentioned(node: Expression, view: View) -> Inputs:
    """Names and values of what `node` reads, for the reason of a negation."""
    match node:
        case Resource():
            return tuple(_values(node, view))
        case Call(function):
            return ((f"{function}()", str(_value(node, view))),)
        case And(left, right) | Or(left, right) | Compare(_, left, right):
            return _mentioned(left, view) + _mentioned(right, view)
        case Not(operand):
            return _mentioned(operand, view)
        case _:
            return _NOTHING

"""Rules back to text, in one canonical layout; ``parse(render(rules)) == rules``."""

from __future__ import annotations

from collections.abc import Iterable

from safekit.rules.ast import Act, And, Call, Compare, Expression, Not, Or, Resource, Rule, State, Text, Truth


def render(rules: Iterable[Rule]) -> str:
    """The whole text, one rule a line."""
    return "".join(render_rule(rule) + "\n" for rule in rules)


def render_rule(rule: Rule) -> str:
    """``label: if (condition) then action;``"""
    outcome = rule.outcome
    then = f"{outcome.verb.value}()" if isinstance(outcome, Act) else f"{outcome.name}={outcome.value}"
    return f"{rule.label}: if ({render_expression(rule.condition)}) then {then};"


def render_expression(expression: Expression) -> str:
    """One expression, with the parentheses that its tree needs and no others."""
    return _render(expression, 0)


def _render(node: Expression, context: int) -> str:
    match node:
        case Or(left, right):
            return _bracket(f"{_render(left, 1)} || {_render(right, 2)}", context > 1)
        case And(left, right):
            return _bracket(f"{_render(left, 2)} && {_render(right, 3)}", context > 2)
        case Compare(equal, left, right):
            sign = "==" if equal else "!="
            return _bracket(f"{_render(left, 3)} {sign} {_render(right, 4)}", context > 3)
        case Not(operand):
            return f"!{_render(operand, 4)}"
        case Resource(remote, cls, ident):
            return f"{'remote.' if remote else ''}{cls}.{ident}"
        case State(value):
            return value
        case Text(value):
            return f'"{value}"'
        case Truth(value):
            return "TRUE" if value else "FALSE"
        case Call(function):
            return f"{function}()"


def _bracket(text: str, needed: bool) -> str:
    return f"({text})" if needed else text

"""Text of the failover rules -> tuple of Rule (guide 13.18.5).

Precedence, loosest first: ``||``, ``&&``, ``==`` and ``!=``, ``!``.  Labels
name the rule in the log, so they must be unique within one text.
"""

from __future__ import annotations

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
from safekit.rules.lexer import RuleError, Token, tokens

FUNCTIONS = ("hostname", "isdefaultprim", "cluster")
MAX_DEPTH = 60
"""Deepest nesting of an expression; a bound, so that no text exhausts the stack."""

_VERBS = {verb.value: verb for verb in Verb}
_AN_OPERAND = "a resource, a state, a function, a string, TRUE, FALSE, '!' or '('"


def parse(text: str) -> tuple[Rule, ...]:
    """Parse a whole rules text.  Raises RuleError with the place and what was expected."""
    return _Parser(text).rules()


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = list(tokens(text))
        self._at = 0
        self._depth = 0

    def rules(self) -> tuple[Rule, ...]:
        rules: list[Rule] = []
        seen: set[str] = set()
        while self._peek.kind != "end":
            label = self._take("word", "a rule label")
            if label.text in seen:
                raise RuleError(label.position, f"the label '{label.text}' again", "a label not used yet")
            seen.add(label.text)
            rules.append(self._rule(label))
        return tuple(rules)

    def _rule(self, label: Token) -> Rule:
        self._take(":", "':' after the label")
        self._keyword("if")
        self._take("(", "'(' after if")
        condition = self._or()
        self._take(")", "')', '&&', '||', '==' or '!='")
        self._keyword("then")
        outcome = self._outcome()
        self._take(";", "';' at the end of the rule")
        return Rule(label.text, condition, outcome, label.position)

    def _outcome(self) -> Act | Assign:
        verbs = ", ".join(f"{name}()" for name in sorted(_VERBS))
        word = self._take("word", f"an action ({verbs}) or an assignment")
        if self._peek.kind == "(":
            verb = _VERBS.get(word.text.lower())
            if verb is None:
                raise RuleError(word.position, f"'{word.text}()'", f"one of {verbs}")
            self._next()
            self._take(")", "')': actions take no argument")
            return Act(verb)
        return self._assignment(word, verbs)

    def _assignment(self, first: Token, verbs: str) -> Assign:
        if self._peek.kind != ".":
            raise RuleError(self._peek.position, self._peek.describe(), f"one of {verbs}, or class.id=state")
        self._at -= 1
        resource = self._resource()
        if resource.remote:
            raise RuleError(first.position, "a remote resource", "a local one: only these can be assigned")
        if resource.is_pattern:
            raise RuleError(first.position, f"'{resource.name}'", "the name of one resource to assign")
        self._take("=", "'=' in the assignment")
        value = self._take("word", "one of " + ", ".join(STATES))
        if value.text.lower() not in STATES:
            raise RuleError(value.position, value.describe(), "one of " + ", ".join(STATES))
        return Assign(resource.name, value.text.lower())

    def _or(self) -> Expression:
        left = self._and()
        while self._peek.kind == "||":
            self._next()
            left = Or(left, self._and())
        return left

    def _and(self) -> Expression:
        left = self._compare()
        while self._peek.kind == "&&":
            self._next()
            left = And(left, self._compare())
        return left

    def _compare(self) -> Expression:
        left = self._unary()
        while self._peek.kind in ("==", "!="):
            equal = self._next().kind == "=="
            left = Compare(equal, left, self._unary())
        return left

    def _unary(self) -> Expression:
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                raise RuleError(self._peek.position, "too deep a nesting", f"at most {MAX_DEPTH} levels")
            if self._peek.kind == "!":
                self._next()
                return Not(self._unary())
            if self._peek.kind == "(":
                self._next()
                inner = self._or()
                self._take(")", "')', '&&', '||', '==' or '!='")
                return inner
            return self._operand()
        finally:
            self._depth -= 1

    def _operand(self) -> Expression:
        token = self._peek
        if token.kind == "string":
            self._next()
            return Text(token.text)
        if token.kind in ("?", "*"):
            return self._resource()
        if token.kind != "word":
            raise RuleError(token.position, token.describe(), _AN_OPERAND)
        following = self._tokens[self._at + 1].kind
        if following == ".":
            return self._resource()
        self._next()
        lowered = token.text.lower()
        if following == "(":
            if lowered not in FUNCTIONS:
                expected = ", ".join(f"{name}()" for name in FUNCTIONS)
                raise RuleError(token.position, f"'{token.text}()'", f"one of {expected}")
            self._next()
            self._take(")", "')': functions take no argument")
            return Call(lowered)
        if lowered in STATES:
            return State(lowered)
        if lowered in ("true", "false"):
            return Truth(lowered == "true")
        raise RuleError(token.position, token.describe(), _AN_OPERAND)

    def _resource(self) -> Resource:
        remote = False
        if self._peek.kind == "word" and self._peek.text.lower() in ("local", "remote"):
            remote = self._next().text.lower() == "remote"
            self._take(".", "'.' after local or remote")
        cls = self._part("a resource class, '?' or '*'")
        self._take(".", "'.' between class and id")
        ident = self._part("a resource id, '?' or '*'")
        # ids such as network addresses hold dots themselves
        while self._peek.kind == "." and ident not in ("?", "*"):
            self._next()
            ident += "." + self._take("word", "the rest of the resource id").text
        return Resource(remote, cls, ident)

    def _part(self, expected: str) -> str:
        if self._peek.kind in ("?", "*"):
            return self._next().text
        return self._take("word", expected).text

    @property
    def _peek(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _take(self, kind: str, expected: str) -> Token:
        token = self._peek
        if token.kind != kind:
            raise RuleError(token.position, token.describe(), expected)
        return self._next()

    def _keyword(self, word: str) -> None:
        token = self._peek
        if token.kind != "word" or token.text.lower() != word:
            raise RuleError(token.position, token.describe(), f"'{word}'")
        self._next()

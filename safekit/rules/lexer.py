"""Words of the failover rules language.

Comments are those of C and of XML: the guide's examples use both inside the
CDATA section (13.18.5, 15.15).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from safekit.rules.ast import Position

MAX_TEXT = 256 * 1024
"""Longest rules text accepted, in characters."""


class RuleError(ValueError):
    """A rules text that cannot be used.

    Attributes: ``position`` (line and column, from 1), ``found`` (what stands
    there) and ``expected`` (what could have stood there).
    """

    def __init__(self, position: Position, found: str, expected: str) -> None:
        super().__init__(f"failover rules, {position}: found {found}, expected {expected}")
        self.position = position
        self.found = found
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Token:
    """One word: its kind (word, string, a punctuation mark, or end), text and place."""

    kind: str
    text: str
    position: Position

    def describe(self) -> str:
        """How the token is named in an error message."""
        if self.kind == "end":
            return "the end of the rules"
        return f"the string {self.text!r}" if self.kind == "string" else f"'{self.text}'"


# A word may hold '-' and digits: network resources are named after addresses and idents.
_PATTERN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>/\*.*?\*/|<!--.*?-->)
  | (?P<string>"[^"\n]*")
  | (?P<operator>==|!=|&&|\|\||[!()=:;.?*])
  | (?P<word>[A-Za-z0-9_](?:[A-Za-z0-9_\-])*)
    """,
    re.VERBOSE | re.DOTALL,
)


def tokens(text: str) -> Iterator[Token]:
    """Yield the words of `text`, then one of kind ``end``.  Raises RuleError."""
    if len(text) > MAX_TEXT:
        raise RuleError(Position(1, 1), f"{len(text)} characters", f"at most {MAX_TEXT}")
    offset, line, line_start = 0, 1, 0
    while offset < len(text):
        position = Position(line, offset - line_start + 1)
        match = _PATTERN.match(text, offset)
        if match is None:
            raise _unreadable(text, offset, position)
        kind, word = match.lastgroup, match.group()
        if kind == "string":
            yield Token("string", word[1:-1], position)
        elif kind == "word":
            yield Token("word", word, position)
        elif kind == "operator":
            yield Token(word, word, position)
        breaks = word.count("\n")
        if breaks:
            line += breaks
            line_start = offset + word.rindex("\n") + 1
        offset = match.end()
    yield Token("end", "", Position(line, offset - line_start + 1))


def _unreadable(text: str, offset: int, position: Position) -> RuleError:
    if text.startswith("/*", offset):
        return RuleError(position, "a comment that is never closed", "'*/'")
    if text.startswith("<!--", offset):
        return RuleError(position, "a comment that is never closed", "'-->'")
    if text[offset] == '"':
        return RuleError(position, "a string that is never closed", "'\"' on the same line")
    return RuleError(position, repr(text[offset]), "a label, a resource, an operator or a comment")

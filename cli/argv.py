"""What people type, made regular: the guide's spellings before click sees them (guide chapter 9).

The printed guide has typographic dashes, long options with one dash and the module before or after the
word; all of them are accepted. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from safekit.spelling import plain_dashes

_DISTRIBUTED = frozenset({"-H", "-G", "-E"})
_LEADING_WITH_VALUE = frozenset({"-m", "-u", "-i"})


def two_dashes(word: str, long_options: Collection[str]) -> str:
    """`-timeout=5` becomes `--timeout=5` when that is a long option of the command."""
    if not word.startswith("-") or word.startswith("--") or len(word) < 3:
        return word
    name, equals, value = word[1:].partition("=")
    return f"--{name}{equals}{value}" if f"--{name}" in long_options else word


@dataclass(frozen=True)
class Line:
    """A command line split at what decides who handles it.

    `special` is the tail after a leading -r (a special command with its own options), `distributed` the
    distributed option that was used, `words` everything else for click.
    """

    words: tuple[str, ...]
    special: tuple[str, ...] | None = None
    module: str | None = None
    distributed: str | None = None


def split(argv: Sequence[str]) -> Line:
    """Classify a command line. Never raises: a line that makes no sense reaches click, which explains."""
    words = [plain_dashes(word) for word in argv]
    index, module = 0, None
    while index < len(words) and words[index].startswith("-"):
        word = words[index]
        if word in _DISTRIBUTED:
            return Line(tuple(words), distributed=word)
        if word == "-r":
            return Line(tuple(words), special=tuple(argv[index + 1 :]), module=module)
        if word == "-m" and index + 1 < len(words):
            module = words[index + 1]
        index += 2 if word in _LEADING_WITH_VALUE else 1
    return Line(tuple(words), module=module)

"""How texts are written. The dashes of a printed guide in what people type, made plain: before the command line is
read, and before the web service judges it (what is judged there must be what is run here). Sentences as one word. What
a terminal would obey. Pure."""

from __future__ import annotations

_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ")
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"


def plain_dashes(word: str) -> str:
    """Turn the leading typographic dashes of a word into ASCII ones; other words stay as they are."""
    stripped = word.lstrip(_DASHES + "-")
    lead = len(word) - len(stripped)
    if not lead or not stripped or all(c == "-" for c in word[:lead]):
        return word
    return "-" * min(lead, 2) + stripped


def harmless(text: str) -> str:
    """A text in one line, with nothing in it that a terminal obeys: whoever may make a file may choose its name."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def as_word(text: str, longest: int = 250) -> str:
    """A sentence as the value of a resource, which has no blanks and no controls; what is longer is cut. `from_word`
    reads it."""
    word = ""
    for character in " ".join(harmless(text).split()):
        word += {"%": "%25", " ": "%20"}.get(character, character)
        if len(word) > longest:
            return word[: word.rindex("%20")] if "%20" in word else word[:longest]
    return word or "unknown"


def from_word(value: str) -> str:
    """The sentence that `as_word` made a word of."""
    return value.replace("%20", " ").replace("%25", "%")

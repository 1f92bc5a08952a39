"""Regular expressions of `man regex`, as the guide asks for, in Python's notation."""

from __future__ import annotations

import re

_POSIX_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": r" \t",
    "digit": "0-9",
    "lower": "a-z",
    "upper": "A-Z",
    "space": r"\s",
    "xdigit": "0-9A-Fa-f",
    "punct": r"!-/:-@\[-`{-~",
}


def posix_regex(expression: str) -> str:
    """The expression with the [:class:] names spelled out, which are what Python does not know."""
    return re.sub(r"\[:([a-z]+):\]", lambda m: _POSIX_CLASSES.get(m.group(1), m.group(0)), expression)

"""What is wrong with a configuration file, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to tell the administrator.

    `element` is an element and, after a blank, the attribute: "rfs locktimeout"; `line` is 0 when the
    finding is about the file or the machine as a whole. `message` says what is wrong, then after a
    semicolon what was expected or what to do next.
    """

    file: str
    line: int
    element: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        element = f" <{self.element}>:" if self.element else ""
        mark = " warning:" if self.severity == "warning" else ""
        return f"{place}:{mark}{element} {self.message}"


class ConfigError(Exception):
    """A configuration that cannot be used. `findings` holds everything that was found, warnings too."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(map(str, self.findings)))


def errors(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that forbid the configuration."""
    return tuple(f for f in findings if f.severity == "error")


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By place in the file, each once: the order in which a person repairs them."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda f: (f.file, f.line, f.severity)))


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the file and the name that a finding gives to what stands there."""

    line: int
    element: str


class Places:
    """Where each value of a compiled tree was written: "rfs.replicated[0].dir" -> line 12, "replicated dir".

    A path that was not written (a default) is at the place of the nearest enclosing element that was.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._places: dict[str, Place] = {}

    def note(self, path: str, line: int, element: str) -> None:
        self._places[path] = Place(line, element)

    def written(self, path: str) -> bool:
        """Whether the file itself sets this value."""
        return path in self._places

    def at(self, path: str) -> Place:
        """The place of `path`, or of the nearest enclosing path that is known."""
        while path:
            found = self._places.get(path)
            if found is not None:
                return found
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return self._places.get("", Place(0, ""))

    def finding(self, path: str, message: str, severity: Severity = "error") -> Finding:
        """A finding about the value at `path`."""
        place = self.at(path)
        return Finding(self.file, place.line, place.element, message, severity)

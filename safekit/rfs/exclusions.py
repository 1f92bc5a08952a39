"""What of a replicated directory stays local: <notreplicated path|regexpath> (guide 13.6.3), and libfuse's own
place holders for files that were unlinked while open. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from safekit.model.regex import BadExpression, Expression

#: libfuse renames a file that is unlinked while open; such a name exists on this server only.
HIDDEN = b".fuse_hidden"

#: Expressions that look at nothing but the end of the last part of a path, such as .*\.tmp.
_OF_ENDS: Final = re.compile(r"\.\*(?:[\w-]|\\[.-])+")


def parent(path: bytes) -> bytes:
    """The directory of a path; b"" is the replicated directory itself."""
    return path.rpartition(b"/")[0]


def place_holder(token: str) -> bytes:
    """A name for a file that was made without one; `token` makes it the only one in its directory."""
    return HIDDEN + b"T" + token.encode()


def is_hidden(path: bytes) -> bool:
    """Whether the last part of a path is a place holder of libfuse."""
    return path.rpartition(b"/")[2].startswith(HIDDEN)


class Exclusions:
    """Decides per path; a path below an excluded directory is excluded. Expressions match whole relative paths.

    Raises ValueError with the expression in the text when it cannot be compiled.
    """

    def __init__(self, paths: Sequence[str] = (), expressions: Sequence[str] = ()) -> None:
        self._paths = {path.strip("/").encode() for path in paths}
        self._patterns = []
        for expression in expressions:
            try:
                self._patterns.append(Expression(expression, of_names=True))
            except BadExpression as error:
                raise ValueError(f"notreplicated regexpath {expression!r}: {error}") from None
        self.any = bool(self._paths or self._patterns)
        self._of_ends = all(_OF_ENDS.fullmatch(expression) for expression in expressions)
        self._memory: dict[bytes, bool] = {b"": False}

    def match(self, path: bytes) -> bool:
        """Whether `path` stays local."""
        if not self.any:
            return HIDDEN in path and self._hidden_part(path)
        known = self._memory.get(path)
        if known is None:
            if len(self._memory) > 65536:
                self._memory = {b"": False}
            # From the top, and not by recursion: a path may have two thousand parts.
            known, above = False, b""
            for part in path.split(b"/"):
                above = above + b"/" + part if above else part
                known = known or self._is_meant(above)
            self._memory[path] = known
        return known

    def depends_on_directory(self, *paths: bytes) -> bool:
        """Whether an entry may stay local below one of these directories and not below another."""
        below = tuple(path + b"/" for path in paths)
        return not self._of_ends or any(path.startswith(below) for path in self._paths)

    def _is_meant(self, path: bytes) -> bool:
        return path in self._paths or is_hidden(path) or any(pattern.is_whole(path) for pattern in self._patterns)

    @staticmethod
    def _hidden_part(path: bytes) -> bool:
        return any(part.startswith(HIDDEN) for part in path.split(b"/"))

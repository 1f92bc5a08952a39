"""Regular expressions of configuration and of commands, as the guide asks for: those of `man regex` (13.6.3, 13.9.3).

What they are matched against is chosen by others: any user names files and starts processes. So the engine takes a
time that is linear in the text (RE2), where one that tries again and again takes minutes for a long command line; it
has no back references and no look-around, which the extended expressions of `man regex` have not either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re2


class BadExpression(ValueError):
    """An expression that is none; the text says what is wrong with it."""


class Expression:
    """A compiled expression. On names of files it works on bytes (`of_names`), on commands on text."""

    def __init__(self, text: str, *, of_names: bool = False) -> None:
        """Raises BadExpression."""
        import re2  # only whoever has an expression pays for its engine

        options = re2.Options()
        options.log_errors = False
        options.dot_nl = of_names  # a name may hold a newline
        if of_names:
            options.encoding = re2.Options.Encoding.LATIN1  # a name may be in no encoding at all
        self._of_names = of_names
        try:
            self._compiled: re2._Regexp = re2.compile(text.encode() if of_names else text, options)
        except re2.error as error:
            reason = error.args[0] if error.args else "not understood"
            raise BadExpression(
                reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
            ) from None
        except UnicodeEncodeError:
            raise BadExpression("it is not in UTF-8") from None

    def found_in(self, text: str) -> bool:
        """Whether a part of the text matches."""
        return self._compiled.search(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")) is not None

    def is_whole(self, name: bytes) -> bool:
        """Whether all of a name matches."""
        return self._compiled.fullmatch(name) is not None

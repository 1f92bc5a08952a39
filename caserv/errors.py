"""What goes wrong with certificates, for people."""

from __future__ import annotations


class PkiError(Exception):
    """The cause, which names file and field, and the next step."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.text = text
        self.next_step = next_step

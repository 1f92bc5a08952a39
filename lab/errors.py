"""Errors that a person reads."""

from __future__ import annotations


class LabError(Exception):
    """Something about a lab did not work: the cause, and the next step."""

    def __init__(self, cause: str, next_step: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.next_step = next_step

"""Tests that depend on how loaded the machine is: the only ones that may be tried again, each with its reason.

A second attempt hides races: a failure of one in three passes 96 times of 100 when it has three. So none is given,
but to the tests below, and each second attempt is shown in the summary. The list is for what cannot be waited for
(a time window that the guide or the kernel sets); it shrinks. Lost data is never tried again, whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class LoadDependent:
    """`test`: the beginning of node ids, with their file. `reason`: which window a loaded machine misses."""

    test: str
    reason: str


LOAD_DEPENDENT: Final[tuple[LoadDependent, ...]] = ()
"""At most MOST of them."""
MOST: Final = 12


def reason_to_try_again(nodeid: str) -> str | None:
    """Why a test may be tried again; None for all others."""
    return next((known.reason for known in LOAD_DEPENDENT if nodeid.startswith(known.test)), None)

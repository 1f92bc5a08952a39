"""Which refusals are said: each once, then with their number, and never in a way that a stranger can use.

Datagrams come from whoever can reach a port, with whatever sender's address he writes. So there is room for all the
refusals of subjects that the configuration names, whatever strangers send; strangers together have a few lines; and
what is refused and understood in turn, as when somebody forges between the genuine ones, is said once a minute.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

REPEAT_SECONDS: Final = 3600.0
#: What was over is said again after this time at the earliest.
AGAIN_SECONDS: Final = 60.0
STRANGERS: Final = 64
#: Problems of subjects that the configuration names: their number is bounded by the configuration, this by a defect.
KNOWN: Final = 1024


@dataclass(slots=True)
class _Said:
    at: float
    silent: int = 0
    over: bool = False


class Refusals:
    """Keeps when each problem of each subject was said last. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], _Said] = OrderedDict()
        self._strangers: OrderedDict[tuple[str, str], _Said] = OrderedDict()

    def say(self, subject: str, problem: str, now: float, *, stranger: bool = False) -> int | None:
        """How often this problem of this subject was passed over since it was said last, if it is to be said now;
        None if not. `stranger`: the configuration does not name the subject."""
        kept, most = (self._strangers, STRANGERS) if stranger else (self._known, KNOWN)
        known = kept.get((subject, problem))
        if known is not None and now - known.at < (AGAIN_SECONDS if known.over else REPEAT_SECONDS):
            known.silent += 1
            return None
        if known is None and len(kept) >= most and now - next(iter(kept.values())).at < REPEAT_SECONDS:
            return None
        kept[subject, problem] = _Said(now)
        kept.move_to_end((subject, problem))
        while len(kept) > most:
            kept.popitem(last=False)
        return known.silent if known is not None else 0

    def settle(self, subject: str) -> bool:
        """The subject is understood. True if something was said of it that is over with this."""
        if not self._known:
            return False
        found = [said for (name, _), said in self._known.items() if name == subject and not said.over]
        for said in found:
            said.over = True
        return bool(found)

"""What went wrong last, in words: told by the verdict until the same has succeeded.

The resources trouble.CLASS hold it, so that it outlives this heart, and reaches the other server in heartbeats:

- trouble.sync: the synchronisation of a secondary failed; over when one has succeeded, or the server is primary.
- trouble.script: a start script ended badly; over when it has ended well, or with the next start.
- trouble.stop: why the module stopped by itself; over with the next start.
"""

from __future__ import annotations

from collections.abc import Iterable

from heart.core.events import Ended
from heart.core.turn import SYNC, Turn
from safekit.spelling import as_word, from_word

SCRIPT, STOP = "trouble.script", "trouble.stop"
_START = "start_"


def note(t: Turn, name: str, text: str) -> None:
    """Something failed."""
    t.remember({name: as_word(text)})


def begins(t: Turn) -> None:
    """A start: what was wrong with the one before does not count any more."""
    t.forget((SCRIPT, STOP))


def scripts_ended(t: Turn, ended: Iterable[Ended]) -> None:
    """Scripts ran.  SafeKit goes on whatever their status is (guide 15.1): who looks is to know that the application
    may not run."""
    for script in ended:
        blamed = from_word(t.s.resources.get(SCRIPT, "")).partition(": ")[0]
        if script.problem:
            t.because(
                "script_failed", "the module goes on", script=script.name, problem=script.problem, said=script.said
            )
            if script.name.startswith(_START):
                note(t, SCRIPT, ": ".join(filter(None, (script.name, script.problem, script.said))))
        elif blamed == script.name:
            t.forget((SCRIPT,))


__all__ = ["SCRIPT", "STOP", "SYNC", "begins", "note", "scripts_ended"]

"""The conditions of a program that is not ours: as where it was started by hand, not those of our processes.

safeadmin's unit keeps our processes from being chosen when memory runs out (OOMScoreAdjust) and makes their files
unreadable for others (UMask). An application that inherited this would make the kernel kill everything else first,
and its files could be read by nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

UMASK = 0o022

_SCORE = Path("/proc/self/oom_score_adj")
_depth = 0
_own = 0


@contextlib.contextmanager
def oom_score(score: int = 0) -> Iterator[None]:
    """What this process starts within has this score, where ours is lower.

    The score is inherited; setting it from outside would miss what a fast program has started meanwhile. Blocks may
    overlap, as those of coroutines do.
    """
    global _depth, _own
    if _depth == 0:
        _own = int(_SCORE.read_text())
        if _own < score:
            _SCORE.write_text(str(score))
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0 and _own < score:
            # Without CAP_SYS_RESOURCE there is no way back: we are then as likely to be chosen as anybody.
            with contextlib.suppress(PermissionError):
                _SCORE.write_text(str(_own))

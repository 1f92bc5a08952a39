"""Which file it is, whatever its name."""

from __future__ import annotations

import os
from pathlib import Path

from safekit.rfs.identity import Identity
from safekit.rfs.system import generation


def real(path: Path) -> Identity:
    """Number and generation of a file."""
    above = os.open(path.parent, os.O_RDONLY)
    try:
        return Identity(os.stat(path).st_ino, generation(above, os.fsencode(path.name)))
    finally:
        os.close(above)

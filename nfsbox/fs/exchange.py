"""Two names change places (RENAME2 with EXCHANGE), which libfuse does not know.

It tells us what it takes the two names for, and afterwards its names follow by way of a third one, all with renames
that change nothing but its table.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nfsbox.fs import kernel

if TYPE_CHECKING:
    from nfsbox.fs.callbacks import Asked
    from nfsbox.fs.libfuse import Session
    from nfsbox.fs.operations import Operations

_ASIDE: Final = b"\x01safekit exchange"  # a name inside libfuse, never of a file


class Paths:
    """What libfuse takes names for, of one mount."""

    def __init__(self, session: Session, operations: Operations, asked: Asked) -> None:
        self._session = session
        self._operations = operations
        self._asked = asked
        self.lock = threading.Lock()
        """A request that waits for nobody is answered under it: names are what they stand for meanwhile."""

    def exchange(self, request: bytes) -> None:
        """What that request asks for. Raises OSError."""
        olddir = kernel.IN.unpack_from(request, 0)[3]
        newdir = kernel.RENAME2_IN.unpack_from(request, kernel.HEADER)[0]
        old, new, _ = request[kernel.HEADER + kernel.RENAME2_IN.size :].split(b"\0", 2)

        def told(olddir: int, old: bytes, newdir: int, new: bytes) -> bytes:
            """The path of the former one; libfuse renames if the result says that it worked."""
            self._asked.begin(kernel.OWN, olddir)
            self._session.tell(kernel.rename_request(request, olddir, old, newdir, new))
            if self._asked.told is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return self._asked.told[0]

        self._asked.result = -errno.ECANCELED
        one, other = told(olddir, old, olddir, _ASIDE), told(newdir, new, newdir, _ASIDE)

        def swap(change: Callable[[], None]) -> None:
            change()
            self._asked.result = 0
            for names in ((olddir, old, olddir, _ASIDE), (newdir, new, olddir, old), (olddir, _ASIDE, newdir, new)):
                told(*names)

        self._operations.exchange(one, other, swap, self.lock)

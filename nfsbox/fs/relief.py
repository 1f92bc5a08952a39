"""Who serves a mount while a change waits for the peer (R12).

One thread serves a mount, so that changes of a directory are made one after the other. When the peer keeps one of
them waiting, a second thread takes over: it answers what waits for nobody and puts changes aside for the first, which
makes them in their order, and ends when it has caught up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

#: Bytes of requests put aside while a change waits for the peer; when there are more, everything waits.
MAX_ASIDE: Final = 64 << 20


class Relief:
    """One per mount. `another` starts one more thread that serves; it is called under the lock."""

    def __init__(self, another: Callable[[], None]) -> None:
        self._another = another
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._serving = 0
        self._aside: deque[bytes] = deque()
        self._aside_bytes = 0
        self.busy = False
        """The one thread is with a request that may wait for the peer. Set by that thread alone."""
        self.relieved = False
        """Such a request waits, and another thread reads the next ones."""

    def begin(self) -> None:
        """Start the first thread."""
        with self._turn:
            self._one_more()

    def _one_more(self) -> None:
        self._serving += 1
        self._another()

    def relieve(self) -> None:
        """A change waits for the peer, for long. From any thread."""
        with self._turn:
            if self.busy and not self.relieved:
                self.relieved = True
                self._one_more()

    def leave(self, request: memoryview) -> bool:
        """Leave a change to the relieved thread; False when that has caught up meanwhile."""
        with self._turn:
            self._turn.wait_for(self._room)
            if self.relieved:
                self._aside.append(bytes(request))
                self._aside_bytes += len(request)
            return self.relieved

    def _room(self) -> bool:
        return not self.relieved or self._aside_bytes <= MAX_ASIDE or self._serving < 2

    def done(self) -> bool:
        """The request of the busy thread is answered; whether it was relieved meanwhile: it takes what is aside now."""
        with self._lock:
            self.busy = False
            return self.relieved

    def take(self) -> bytes | None:
        """The next change that was put aside; None when there is none: the other thread makes the next."""
        with self._turn:
            request = self._aside.popleft() if self._aside else None
            if request is None:
                self.busy = self.relieved = False
            else:
                self._aside_bytes -= len(request)
            self._turn.notify_all()
        return request

    def ended(self) -> bool:
        """A thread serves no more; whether it was the last."""
        with self._turn:
            self._serving -= 1
            self._turn.notify_all()
            return not self._serving

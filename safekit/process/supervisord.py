"""The supervisord of a module: the stock program, woken by signals.

The stock one looks at its children once a second; with a poller that a signal wakes, a dead child is noticed
and restarted at once. Nothing else is imported here: the process must stay small.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys

from supervisor import poller, supervisord


class WakingPoller(poller.Poller):  # type: ignore[misc]
    """Returns at once when a signal arrives, and a few times more, because supervisord reaps a child after it
    has looked for what to restart."""

    def initialize(self) -> None:
        super().initialize()
        self._wake, writer = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._again = 0

    def poll(self, timeout: float) -> tuple[list[int], list[int]]:
        self.register_readable(self._wake)
        readable, writable = super().poll(0 if self._again else timeout)
        self._again = max(self._again - 1, 0)
        if self._wake in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._again = 3
        return [fd for fd in readable if fd != self._wake], list(writable)


def main() -> None:
    """Entry point."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # without it, that signal would end the supervisor
    poller.Poller = WakingPoller
    # supervisord insists on being told that it may be root.
    if os.getuid() == 0 and "-u" not in sys.argv:
        sys.argv += ["-u", "root"]
    supervisord.main()


if __name__ == "__main__":
    main()

"""boundcmd SECONDS COMMAND [ARGS]: a command that may not take longer (guide 14.5.2)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from safekit.process import standard

TIMED_OUT = 2
NOT_FOUND = 127
GRACE_SECONDS = 2.0


def run(arguments: Sequence[str]) -> int:
    """The command's exit status (128 + signal when it was killed), 2 when the time is over or the usage is wrong.

    At the end of its time the command and its children get SIGTERM, and SIGKILL two seconds later.
    """
    try:
        seconds = float(arguments[0])
        command = arguments[1:]
        if seconds < 0 or not command:
            raise ValueError
    except (ValueError, IndexError):
        print("usage: boundcmd SECONDS COMMAND [ARGS]", file=sys.stderr)
        return TIMED_OUT
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        print(f"boundcmd: {command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"boundcmd: {command[0]} did not end within {seconds:g} s", file=sys.stderr)
        _end(process)
        return TIMED_OUT
    except KeyboardInterrupt:
        _end(process)
        return 130
    return status if status >= 0 else 128 - status


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
            break
    # Children that outlived the command's own end are of its group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    standard.run(lambda: run(sys.argv[1:]))

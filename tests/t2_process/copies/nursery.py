"""Real processes of the product, forked from one that has imported them: a start costs milliseconds, not half a second.

    python -m tests.t2_process.copies.nursery SOCKET

Each line on the socket is one order {"name": process, "env": {...}, "out": file}; the answer is a line with the number
of the child. The child is the process as the product starts it, but for three things that a test needs: the clock of
its checkpoints, the identity of its boot (SAFEKIT_COPIES_BOOT), and steps at which it dies (SAFEKIT_COPIES_DIE).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

MODULES: Final = {
    "nfsbox": "nfsbox.main",
    "nfsadmin": "nfsbox.admin.main",
    "reintegre": "reintegre.main",
    "nfscheck": "nfsbox.check.main",
}
CHECKOUT: Final = Path(__file__).resolve().parents[3]
#: Seconds between two ticks of a nfsbox, and between two checkpoints of a pair.
TICK: Final = 0.05
CHECKPOINT: Final = 0.4


def _quicker() -> None:
    """Times that are seconds and minutes in the product."""
    from nfsbox import box, main
    from nfsbox.admin import record

    settings_of = box.settings_of

    def settings(rfs: Any) -> Any:
        return dataclasses.replace(settings_of(rfs), checkpoint=CHECKPOINT)

    async def ticks(served: Any, *_: Any) -> None:
        while True:
            await asyncio.sleep(TICK)
            await asyncio.to_thread(served.tick)

    box.settings_of = settings
    main._ticks = ticks
    boot, _, since = os.environ.get("SAFEKIT_COPIES_BOOT", "").partition(" ")
    if boot:
        record.boot_identity = lambda: int(boot)
        record.boot_time_ns = lambda: int(since)


def _child(order: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    try:
        out = os.open(order["out"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o660)
    except OSError:
        os._exit(1)  # the power of this server has failed meanwhile
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, out), (2, out)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["env"])
    name = order["name"]
    sys.argv = [name, "-m", "AM"]
    _quicker()
    try:
        sys.modules[MODULES[name]].main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def serve(path: str) -> None:
    """Until the socket is closed."""
    for module in MODULES.values():
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children here: they are watched by pidfd
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        stream = sock.makefile("rw")
        for line in stream:
            child = os.fork()
            if not child:
                sock.close()
                _child(json.loads(line))
            stream.write(f"{child}\n")
            stream.flush()


class Child:
    """A forked process, with the part of subprocess.Popen that tests use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _ended(self, timeout: float) -> bool:
        return self._fd < 0 or bool(select.select([self._fd], [], [], timeout)[0])

    def poll(self) -> int | None:
        """None while it runs."""
        return 0 if self._ended(0) else None

    def send_signal(self, number: int) -> None:
        """To the process, if it runs."""
        if not self._ended(0):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """Raises subprocess.TimeoutExpired."""
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return 0


class Nursery:
    """The process that forks. A context manager."""

    def __init__(self, directory: Path) -> None:
        path = directory / "nursery"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(1)
            listening.settimeout(60)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(path)],
                cwd=CHECKOUT,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            )
            self._sock, _ = listening.accept()
        self._sock.settimeout(60)
        self._stream = self._sock.makefile("rw")

    def bear(self, name: str, env: dict[str, str], out: Path) -> Child:
        """Start a process of the product."""
        self._stream.write(json.dumps({"name": name, "env": env, "out": str(out)}) + "\n")
        self._stream.flush()
        return Child(int(self._stream.readline()))

    def close(self) -> None:
        """Ends itself, not the children."""
        self._stream.close()
        self._sock.close()
        self._process.wait(10)


def boot_note(number: int) -> str:
    """A start of the system, now."""
    return f"{number} {time.time_ns()}"


if __name__ == "__main__":
    serve(sys.argv[1])

"""customcheck: runs the program of a <custom> checker and keeps it within bounds (guide 13.15).

The program sets its resource itself (`safekit set -r custom.ident -v up|down -i name`). Whatever it does, the
module stays controllable: its output goes to a bounded file, it is started again when it ends, and it ends
with everything that it started when the checker is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from pathlib import Path

from checkers.frame import configured
from safekit import syscalls
from safekit.process import offspring, ordinary
from safekit.process.frame import Context, run
from safekit.process.table import descendants

OUTPUT_LIMIT = 1 << 20
GRACE = 3.0
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0


def command(userbin: Path, program: str, module: str, resource: str, arguments: str) -> list[str]:
    """What to execute: a relative program is under SAFEUSERBIN. It gets the module, its resource, then the words
    of `arguments` (15.13). Raises ValueError for an unclosed quote."""
    return [str(userbin / program), module, resource, *shlex.split(arguments)]


def left(run: tuple[str, str]) -> set[int]:
    """What still runs of the program: below this process, or with its mark."""
    return set(descendants([os.getpid()])) | offspring.carriers(*run)


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _reap(except_pid: int) -> None:
    """Bury orphans; the program itself is waited for by the event loop."""
    for pid in set(descendants([os.getpid()])) - {except_pid}:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


async def end_everything(program: int, run: tuple[str, str]) -> None:
    """SIGTERM, and SIGKILL to what is left after a grace time, also to what forks meanwhile."""
    loop = asyncio.get_running_loop()
    kill_at, give_up_at = loop.time() + GRACE, loop.time() + 2 * GRACE
    _signal_all(left(run), signal.SIGTERM)
    while loop.time() < give_up_at:
        _reap(program)
        found = left(run)
        if not found:
            return
        if loop.time() >= kill_at:
            _signal_all(found, signal.SIGKILL)
        await asyncio.sleep(0.05)


async def _bounded_copy(reader: asyncio.StreamReader, path: Path) -> None:
    """Append the program's output to a file that starts again when it is too large."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        while data := await reader.read(65536):
            if os.fstat(descriptor).st_size + len(data) > OUTPUT_LIMIT:
                os.ftruncate(descriptor, 0)
            # Output that cannot be kept (a full disk) must not stop the checker.
            with contextlib.suppress(OSError):
                os.write(descriptor, data)
    finally:
        os.close(descriptor)


async def check(context: Context) -> None:
    """Run one <custom> checker."""
    custom = configured(context, context.config.check.custom, context.arguments.ident)
    syscalls.adopt_orphans()
    output = context.paths.log_dir / f"custom.{custom.ident}.out"
    run = (context.module, f"custom.{custom.ident}/")
    # a predecessor that was killed could not end its program
    offspring.kill(*run)
    environment = {**os.environ, **context.paths.environment(), **offspring.mark(*run)}
    if context.config.user is not None:
        environment.update(context.config.user.vars)
    delay = FIRST_DELAY
    stopping = asyncio.ensure_future(context.stopping.wait())
    while not stopping.done():
        try:
            with ordinary.oom_score():
                process = await asyncio.create_subprocess_exec(
                    *command(context.paths.userbin, custom.exec, context.module, f"custom.{custom.ident}", custom.arg),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    env=environment,
                    cwd=str(context.paths.userbin),
                    start_new_session=True,
                    umask=ordinary.UMASK,
                )
        except (OSError, ValueError) as error:
            context.log.event("custom_missing", ident=custom.ident, reason=str(error))
            await asyncio.wait([stopping], timeout=LONGEST_DELAY)
            continue
        assert process.stdout is not None
        copying = asyncio.ensure_future(_bounded_copy(process.stdout, output))
        begin = asyncio.get_running_loop().time()
        ended = asyncio.ensure_future(process.wait())
        await asyncio.wait([stopping, ended], return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            await end_everything(process.pid, run)
            copying.cancel()
            return
        # A program that daemonises has left its work to a child; what is left of a dead one must go.
        await end_everything(process.pid, run)
        copying.cancel()
        delay = FIRST_DELAY if asyncio.get_running_loop().time() - begin > 60 else min(delay * 2, LONGEST_DELAY)
        status = process.returncode
        said = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        context.log.event("custom_ended", ident=custom.ident, status=said, seconds=delay)
        await asyncio.wait([stopping], timeout=delay)


def main() -> None:
    """Entry point."""
    run("customcheck", check, instance="ident")


if __name__ == "__main__":
    main()

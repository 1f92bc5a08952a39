"""safeadmin: the administration daemon of a server (guide 10.1). One per server; nothing starts without it,
and what runs goes on without it."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import signal
import sys
import traceback
from typing import Any

from safeadmin.adminlog import AdminLog, Complaints
from safeadmin.service import Service
from safeadmin.systemd import Notifier
from safekit.bus.endpoint import BusError
from safekit.disk.files import locked, write_atomic
from safekit.disk.paths import bus_key_file, mapper_port, node_name, safevar
from safekit.net.firewall import restore
from safekit.process import stacks
from safekit.process.frame import Lateness, lock_memory, run_realtime, set_process_name
from safekit.wire.seal import new_key

GROUP = "safekit"


def make_bus_key() -> None:
    """The first start makes the key of the local bus, for root and group safekit. Raises OSError."""
    path = bus_key_file()
    if path.exists():
        return
    write_atomic(path, new_key().hex().encode() + b"\n", mode=0o640)
    # Without the group only root may command, until safekitinstall creates it.
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, 0, grp.getgrnam(GROUP).gr_gid)


async def serve(log: AdminLog, notifier: Notifier) -> int:
    """Run until SIGTERM or SIGINT; then stop the modules in order."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    stacks.write_on_signal(loop)
    complaints = Complaints(log)
    lateness = Lateness(
        1.0, lambda late: _said(complaints, "late", f"safeadmin was late by {late:.1f} s: the server is overloaded")
    )
    loop.set_exception_handler(lambda _, context: _defect(log, context))
    measuring = loop.create_task(lateness.run())
    service = Service(log)
    try:
        await service.start()
    except OSError as error:
        log.error(
            f"UDP port {mapper_port()} of 127.0.0.1 cannot be used: {error.strerror}; another safeadmin runs, or see "
            f"ss -lunp 'sport = {mapper_port()}' and the attribute mapper of /etc/safeini.xml"
        )
        return 1
    except BusError as error:
        log.error(error.text)
        return 1
    notifier.ready(f"node {service.node}")
    log.info(f"safeadmin started, pid {os.getpid()}")
    starting = loop.create_task(_start_modules(service, log))
    await stopping.wait()
    if not starting.done():
        starting.cancel()
    bound = service.stop_bound()
    notifier.stopping("stopping the modules", bound + 30)
    log.info("safeadmin stops: the modules are stopped first")
    seconds = await service.stop_modules()
    await service.close(orderly=True)
    measuring.cancel()
    stacks.ignore()
    log.info(f"safeadmin stopped; the modules took {seconds:.1f} s")
    return 0


async def _start_modules(service: Service, log: AdminLog) -> None:
    """The firewall first: a module whose ports are closed at its start finds no peer."""
    problem = await asyncio.to_thread(restore)
    if problem:
        log.error(problem)
    await service.start_modules()


def _said(complaints: Complaints, problem: str, text: str) -> None:
    complaints.say("safeadmin", problem, text)


def _defect(log: AdminLog, context: dict[str, Any]) -> None:
    """An exception that nobody caught: the daemon goes on, and says so."""
    error = context.get("exception")
    log.error(f"defect in safeadmin: {context.get('message')}: {error!r}")
    if isinstance(error, BaseException):
        traceback.print_exception(error)


def main() -> None:
    """Entry point. Exit status 1 when the daemon cannot run; the reason is in its log and on standard error."""
    set_process_name("safeadmin")
    stacks.write_on_signal()
    os.umask(0o007)
    notifier = Notifier()
    try:
        safevar().mkdir(mode=0o770, parents=True, exist_ok=True)
        (safevar() / "cluster").mkdir(mode=0o770, exist_ok=True)
        make_bus_key()
    except OSError as error:
        print(f"safeadmin: {error}; run safekitinstall, and safeadmin as root", file=sys.stderr)
        sys.exit(1)
    log = AdminLog(safevar() / "safeadmin.log", node_name())
    for what, reason in (("lock its memory", lock_memory()), ("run with real-time priority", run_realtime())):
        if reason is not None:
            log.info(f"safeadmin cannot {what} ({reason}): it may be late when the server is overloaded")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(safevar() / "safeadmin.lock", wait=False))
        except BlockingIOError:
            log.error(f"another safeadmin runs with {safevar()}; service safeadmin status")
            sys.exit(1)
        status = asyncio.run(serve(log, notifier))
    sys.exit(status)


if __name__ == "__main__":
    main()

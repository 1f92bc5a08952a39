"""The process safewebserver (guide 10.5)."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from safekit.bus.asking import Service
from safekit.bus.endpoint import Endpoint
from safekit.process import stacks
from safekit.process.frame import set_process_name
from safekit.wire.tls import TlsError
from safewebserver import certificates
from safewebserver.api import Api
from safewebserver.app import make_app
from safewebserver.child import Commands
from safewebserver.directory import directory_of
from safewebserver.front import Front
from safewebserver.identity import Gate
from safewebserver.modules import Modules
from safewebserver.settings import SettingsError, load_settings
from safewebserver.workers import NotStarted

NAME = "safewebserver"
DESCRIPTORS = 65536


async def _until(stopping: asyncio.Event, others: list[Coroutine[Any, Any, None]]) -> None:
    """Until the service is told to stop; what goes on beside it ends with it, or ends it with its error."""
    tasks = [asyncio.create_task(stopping.wait()), *(asyncio.create_task(each) for each in others)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for task in done:
        task.result()


async def _serve() -> int:
    settings = load_settings()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    stacks.write_on_signal(loop)
    bus = await Endpoint.open(NAME, Service(NAME, ()).handle)
    commands = Commands()
    directory = directory_of(settings.values)
    app = make_app(Gate(settings, directory), Api(Modules(bus), commands), bus)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    assert runner.server is not None
    front = Front(runner.server)
    try:
        await front.start(secure=settings.secure)
        if settings.secure:
            front.listen(settings.https, secure=True)
            print(f"{NAME}: TCP port {settings.https}, HTTPS", flush=True)
        for port, role in settings.listen:
            front.listen(port)
            what = "health checks only" if settings.secure else f"at most the role {role.label}"
            print(f"{NAME}: TCP port {port}, {what}", flush=True)
        if not settings.secure and not settings.authenticated:
            print(
                f"{NAME}: Warning: no password is asked for: whoever reaches the port commands this server. "
                "To ask for one: uncomment `Define usefile` in SAFE/web/conf/httpd.conf; safekit webserver restart",
                flush=True,
            )
        await commands.start()
        await _until(stopping, [certificates.watch(), *([front.follow()] if settings.secure else [])])
    finally:
        await front.close()
        await runner.cleanup()
        await commands.close()
        if directory is not None:
            await directory.close()
        await bus.close()
        stacks.ignore()
    return 0


def main() -> int:
    """Serve until SIGTERM. 2 when the settings are wrong, 1 when a port cannot be had."""
    set_process_name(NAME)
    stacks.write_on_signal()
    os.umask(0o007)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    try:
        return asyncio.run(_serve())
    except (SettingsError, TlsError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    except NotStarted as error:
        print(f"{NAME}: {error}; see the lines before this one", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{NAME}: {error}; see who has the port: ss -ltnp", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

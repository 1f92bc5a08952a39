"""modulecheck: is another module available? (guide 13.16)

It asks the web service of the server that runs the module. The module is up while its application runs there
and nothing is in transition. When the application was stopped and started again between two looks, this module
is restarted as well (stopstart): what it knew of the other one is gone.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from checkers.frame import Reporter, configured, probe_periodically, until_stopped
from checkers.http import HttpError, get
from safekit.bus.endpoint import BusError
from safekit.bus.requests.heart import Control
from safekit.disk import resources
from safekit.disk.modulestate import MAX_DOCUMENT, PATH, BadDocument, ModuleState, decode
from safekit.disk.paths import safe
from safekit.model.types import ModuleCheck
from safekit.process.frame import Context, run

OK, NOT_FOUND = 200, 404
TRIES = 10
_STARTED = ("ALONE", "PRIM", "SECOND", "UP")


def certificates() -> Path:
    """The certificates of the cluster's web services (chapter 11)."""
    return safe() / "web" / "conf"


def tls_context() -> ssl.SSLContext:
    """Only servers with a certificate of the cluster's own authority are believed; their name may be any of
    the addresses of the server, so it is not compared. This server shows its own certificate, in case it is asked
    for one. Raises HttpError for files that are missing or cannot be used."""
    directory = certificates()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        context.load_verify_locations(directory / "cacert.crt")
        if (directory / "server.key").exists():
            context.load_cert_chain(directory / "server.crt", directory / "server.key")
    except (OSError, ssl.SSLError) as error:
        raise HttpError(f"HTTPS needs cacert.crt, server.crt and server.key in {directory}: {error}") from None
    return context


class Observed:
    """Follows one module on one server."""

    def __init__(self, context: Context, check: ModuleCheck) -> None:
        self.context = context
        self.check = check
        self._run = ""
        self._complaint = ""
        self._asking: asyncio.Task[None] | None = None

    async def look(self) -> bool:
        """True when the module is available now."""
        try:
            found = await self._ask()
            self._complain("")
        except (HttpError, BadDocument, OSError, ssl.SSLError) as error:
            self._complain(str(error))
            return False
        if found is None or not found.serves:
            return False
        if self._run and found.run != self._run and self._started():
            self._asking = asyncio.ensure_future(self._stopstart())
        self._run = found.run
        return True

    async def _ask(self) -> ModuleState | None:
        check = self.check
        tls = tls_context() if check.secure else None
        path = PATH.format(module=check.name)
        status, body = await get(check.addr, check.port, path, check.timeout, limit=MAX_DOCUMENT, tls=tls)
        if status == NOT_FOUND:
            return None
        if status != OK:
            raise HttpError(f"the web service answers {status}")
        return decode(body)

    def _complain(self, reason: str) -> None:
        """Why the web service cannot be asked, once per reason: the resource tells only that it is down."""
        if reason and reason != self._complaint:
            self.context.log.info(
                f"modulecheck {self.check.ident}: {self.check.addr} port {self.check.port}: {reason}; "
                "is its web service started? safekit webserver start"
            )
        self._complaint = reason

    def _started(self) -> bool:
        """This module runs its application, so that a new run of the other one concerns it."""
        state = resources.load(self.context.paths.resources).get("state.local")
        return state is not None and state.value in _STARTED

    async def _stopstart(self) -> None:
        for _ in range(TRIES):
            try:
                why = f"module {self.check.ident} of {self.check.addr} was restarted"
                order = Control("stopstart", who="modulecheck", identity="modulecheck", why=why)
                await self.context.bus.ask(self.context.module, order)
                return
            except BusError as error:
                self.context.log.info(f"modulecheck: stopstart not accepted yet: {error}")
                await asyncio.sleep(1.0)


async def check(context: Context) -> None:
    """Run one <module> checker."""
    module = configured(context, context.config.check.module, context.arguments.ident)
    reporter = Reporter(context, f"module.{module.ident}")
    observed = Observed(context, module)
    await until_stopped(context, reporter.run(), probe_periodically(reporter, observed.look, module.interval))


def main() -> None:
    """Entry point."""
    run("modulecheck", check, instance="ident")


if __name__ == "__main__":
    main()

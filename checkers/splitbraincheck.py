"""splitbraincheck: does the witness answer? (guide 13.17)

The witness stands for "the side of the network that the users are on". Its state is looked at all the time and
shown as splitbrain.<ident>. It decides only when all heartbeats are lost: heart then asks for a verdict, and
gets one that was taken after the question, within VERDICT_SECONDS.

Witnesses: exec="ping" a host that answers ICMP echo, exec="http" an URL that answers 2xx, exec="node" another
server of the cluster, outside this module, whose safeadmin answers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from checkers.frame import Reporter, probe_periodically, until_stopped
from checkers.http import HttpError, get, split_url
from checkers.icmp import Pinger
from safekit.bus.asking import Service
from safekit.bus.endpoint import BusError, Handler
from safekit.bus.requests.safeadmin.node import GetMembers
from safekit.bus.requests.splitbraincheck import SPLITBRAINCHECK, Isolated, Verdict
from safekit.model.types import SplitbrainCheck
from safekit.process.frame import Context, run

INTERVAL = 10.0
TIMEOUT = 5.0
VERDICT_SECONDS = 3.0
"""Longest time that a verdict takes."""
NODE_LOOK = 0.2

Probe = Callable[[float], Awaitable[bool]]


async def _answers_http(url: str, timeout: float) -> bool:
    parts = split_url(url)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        status, _ = await get(parts.hostname or "", parts.port or (443 if tls else 80), path, timeout, tls=tls)
    except HttpError:
        return False
    return 200 <= status < 300


async def node_answers(context: Context, node: str, timeout: float) -> bool:
    """True when safeadmin hears `node` after this call began: what it heard before may be history."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while True:
        try:
            members = await context.bus.ask("", GetMembers(), max(timeout, 0.1))
        except BusError:
            members = {}
        ages = ((members.get("nodes") or {}).get(node) or {}).get("lans") or {}
        elapsed = loop.time() - begin
        if any(isinstance(age, int | float) and age < elapsed for age in ages.values()):
            return True
        if elapsed + NODE_LOOK > timeout:
            return False
        await asyncio.sleep(NODE_LOOK)


class Witness:
    """The witness of a module: probes it, one probe at a time."""

    def __init__(self, context: Context, check: SplitbrainCheck) -> None:
        self.context = context
        self.check = check
        self.reporter = Reporter(context, f"splitbrain.{check.ident}")
        self._pinger = Pinger(check.arg) if check.exec == "ping" else None
        self._turn = asyncio.Lock()

    async def probe(self, timeout: float) -> bool:
        """Ask the witness once."""
        if self._pinger is not None:
            return await self._pinger.ping(timeout)
        if self.check.exec == "http":
            return await _answers_http(self.check.arg, timeout)
        return await node_answers(self.context, self.check.arg, timeout)

    async def look(self) -> bool:
        """The look of every interval."""
        async with self._turn:
            return await self.probe(TIMEOUT)

    async def verdict(self, _: Isolated) -> Verdict:
        """Taken after the question."""
        # beside a look in progress: that one may have begun before the networks failed
        answered = await self.probe(VERDICT_SECONDS)
        self.reporter.set(answered)
        return Verdict("up" if answered else "down")

    def close(self) -> None:
        """Close the sockets."""
        if self._pinger is not None:
            self._pinger.close()


def main() -> None:
    """Entry point."""
    witnesses: list[Witness] = []

    def handler(context: Context) -> Handler:
        found = context.config.check.splitbrain
        if found is None or found.ident != context.arguments.ident:
            raise KeyError(f"splitbraincheck {context.arguments.ident} is not in the configuration")
        witnesses.append(Witness(context, found))
        return Service(SPLITBRAINCHECK, [(Isolated, witnesses[0].verdict)]).handle

    async def check(context: Context) -> None:
        witness = witnesses[0]
        try:
            await until_stopped(
                context, witness.reporter.run(), probe_periodically(witness.reporter, witness.look, INTERVAL)
            )
        finally:
            witness.close()

    run("splitbraincheck", check, handler=handler, instance="ident")


if __name__ == "__main__":
    main()

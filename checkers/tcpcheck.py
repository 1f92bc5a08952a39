"""tcpcheck: is a TCP service accepting connections? (guide 13.11)"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from checkers.frame import Reporter, configured, probe_periodically, resolve, until_stopped
from safekit.process.frame import Context, run


async def accepts(addr: str, port: int, timeout: float) -> bool:
    """True when one of the addresses of `addr` takes a connection on `port` within `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            for family, address in await resolve(addr, port, socket.SOCK_STREAM):
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.setblocking(False)
                    with contextlib.suppress(OSError):
                        await asyncio.get_running_loop().sock_connect(sock, address)
                        return True
    except (TimeoutError, OSError):
        return False
    return False


async def check(context: Context) -> None:
    """Run one <tcp> checker."""
    tcp = configured(context, context.config.check.tcp, context.arguments.ident)
    reporter = Reporter(context, f"tcp.{tcp.ident}")

    async def probe() -> bool:
        return await accepts(tcp.addr, tcp.port, tcp.timeout)

    await until_stopped(context, reporter.run(), probe_periodically(reporter, probe, tcp.interval))


def main() -> None:
    """Entry point."""
    run("tcpcheck", check, instance="ident")


if __name__ == "__main__":
    main()

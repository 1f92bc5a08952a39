"""ipcheck: is an address defined on this server? (guide 13.14)"""

from __future__ import annotations

import ipaddress
import socket

from checkers.frame import Reporter, configured, probe_periodically, resolve, until_stopped
from checkers.kernel import NetworkChanges
from safekit.model.checkers import address_checks
from safekit.net import addresses as net
from safekit.process.frame import Context, run


async def defined(addr: str) -> bool:
    """True when one of the addresses of `addr` is on a local interface."""
    try:
        wanted = {ipaddress.ip_address(literal) for _, (literal, _) in await resolve(addr, 0, socket.SOCK_DGRAM)}
    except OSError:
        return False
    return any(address.ip in wanted for address in net.addresses())


async def check(context: Context) -> None:
    """Run one <ip> checker; kernel events make it look at once, the interval is the safety net."""
    ip = configured(context, address_checks(context.config), context.arguments.ident)
    reporter = Reporter(context, f"ip.{ip.ident}")

    async def probe() -> bool:
        return await defined(ip.addr)

    with NetworkChanges(links=False, addresses=True) as changes:
        await until_stopped(context, reporter.run(), probe_periodically(reporter, probe, ip.interval, changes.wake))


def main() -> None:
    """Entry point."""
    run("ipcheck", check, instance="ident")


if __name__ == "__main__":
    main()

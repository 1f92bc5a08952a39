"""intfcheck: is the network interface of a local address connected? (guide 13.13)"""

from __future__ import annotations

import ipaddress

from checkers.frame import Reporter, configured, probe_periodically, until_stopped
from checkers.kernel import NetworkChanges
from safekit.model.checkers import interface_checks
from safekit.net import addresses as net
from safekit.process.frame import Context, run

SAFETY_NET = 10.0


def connected(local_addr: str) -> bool:
    """True when an interface has the address, is up and has a carrier. Raises OSError, ValueError."""
    wanted = ipaddress.ip_address(local_addr)
    links = {link.index: link for link in net.links()}
    holders = [links[a.index] for a in net.addresses() if a.ip == wanted and a.index in links]
    return any(link.carrier for link in holders)


async def check(context: Context) -> None:
    """Run one <intf> checker; kernel events make it look at once, the interval is the safety net."""
    intf = configured(context, interface_checks(context.config, net.local_interfaces()), context.arguments.ident)
    reporter = Reporter(context, f"intf.{intf.ident}")

    async def probe() -> bool:
        return connected(intf.local_addr)

    with NetworkChanges(links=True, addresses=True) as changes:
        await until_stopped(context, reporter.run(), probe_periodically(reporter, probe, SAFETY_NET, changes.wake))


def main() -> None:
    """Entry point."""
    run("intfcheck", check, instance="ident")


if __name__ == "__main__":
    main()

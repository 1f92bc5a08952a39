"""pingcheck: does a host answer to ICMP echo? (guide 13.12)"""

from __future__ import annotations

from checkers.frame import Reporter, configured, probe_periodically, until_stopped
from checkers.icmp import Pinger
from safekit.process.frame import Context, run


async def check(context: Context) -> None:
    """Run one <ping> checker."""
    ping = configured(context, context.config.check.ping, context.arguments.ident)
    reporter = Reporter(context, f"ping.{ping.ident}")
    pinger = Pinger(ping.addr)

    async def probe() -> bool:
        return await pinger.ping(ping.timeout)

    try:
        await until_stopped(context, reporter.run(), probe_periodically(reporter, probe, ping.interval))
    finally:
        pinger.close()


def main() -> None:
    """Entry point."""
    run("pingcheck", check, instance="ident")


if __name__ == "__main__":
    main()

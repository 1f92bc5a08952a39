#!/usr/bin/env python3
"""How long each checker and errd take to see a fault.

    sudo tests/bench/detection.py [--rounds 5]

A light module in a lab node with one checker of each kind, interval and timeout 1 s. Per kind: from the fault
to the value in the resource file. Intervals are configured, so a poller's bound is interval + timeout; what the
kernel tells (interfaces, addresses, deaths) must not wait for an interval. Figures of one machine: nothing here
is a test.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "t3_cluster")]

from checked import BOTH, EVERY_CHECKER, FAST, Checked, config  # noqa: E402
from pair import wait_for  # noqa: E402

from lab.cluster import Lab, Node  # noqa: E402

EXTRA = "10.123.0.9"
LOOK = 0.002


@dataclass(frozen=True)
class Kind:
    """One row: what is measured, its bound in seconds, how to break and to mend it."""

    name: str
    resource: str
    bound: float
    fail: Callable[[], object]
    mend: Callable[[], object]


def value(module: Checked, node: Node, resource: str) -> str:
    return module.value(node, resource)


def measure(module: Checked, node: Node, kind: Kind) -> float:
    """Seconds from the fault to `down`; the fault is mended and seen `up` again before this returns."""
    wait_for(lambda: value(module, node, kind.resource) == "up", 20, f"{kind.resource} up", LOOK)
    begin = time.monotonic()
    kind.fail()
    wait_for(lambda: value(module, node, kind.resource) == "down", 30, f"{kind.resource} down", LOOK)
    seconds = time.monotonic() - begin
    kind.mend()
    wait_for(lambda: value(module, node, kind.resource) == "up", 30, f"{kind.resource} up again", LOOK)
    return seconds


def kinds(lab: Lab, node: Node, peer: Node) -> tuple[Kind, ...]:
    start_appli = "setsid /var/tmp/appli 100000 </dev/null >/dev/null 2>&1 &"
    web = "setsid /usr/bin/python3 -I -m http.server 8000 --bind 127.0.0.1 </dev/null >/dev/null 2>&1 & "
    address = f"{EXTRA}/32 dev lo"
    return (
        Kind(
            "errd, process death (pidfd)",
            "proc.appli",
            0.2,
            lambda: node.kill("appli"),
            lambda: node.run(start_appli),
        ),
        Kind("intfcheck (netlink)", "intf.i", 0.1, lambda: node.cut("repli"), lambda: node.join("repli")),
        Kind(
            "ipcheck (netlink)",
            "ip.a",
            0.1,
            lambda: node.run(f"ip addr del {address}"),
            lambda: node.run(f"ip addr add {address}"),
        ),
        Kind(
            "tcpcheck, interval 1 s, timeout 1 s",
            "tcp.t",
            2.0,
            lambda: node.run("kill -9 $(cat /run/web.pid)"),
            lambda: node.run(web + "echo $! > /run/web.pid"),
        ),
        Kind(
            "pingcheck, interval 1 s, timeout 1 s",
            "ping.p",
            2.0,
            lambda: lab.block(peer, node, "default"),
            lambda: lab.unblock(peer, node, "default"),
        ),
        Kind(
            "customcheck, script that looks every 0.2 s",
            "custom.c",
            1.0,
            lambda: node.run(["touch", "/var/tmp/bad"]),
            lambda: node.run(["rm", "-f", "/var/tmp/bad"]),
        ),
    )


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lab = Lab.up(f"detect{os.getpid()}")
    try:
        module = Checked(lab)
        node, peer = module.nodes
        node.run(f"ip addr add {EXTRA}/32 dev lo")
        # without rules a fault changes the resource only
        failover = f'{FAST} extends="no"'
        checks = EVERY_CHECKER.format(peer=peer.address(), own=node.address("repli"), extra=EXTRA)
        text = config(checks, mode="light", failover=failover)
        module.reconfigure(text, nodes=[node], **BOTH)
        module.start_up(node)
        print(f"{'fault seen by':45} {'median':>9} {'worst':>9} {'bound':>9} {'ratio':>7}")
        for kind in kinds(lab, node, peer):
            seconds = [measure(module, node, kind) for _ in range(arguments.rounds)]
            median = statistics.median(seconds)
            print(
                f"{kind.name:45} {median * 1000:6.0f} ms {max(seconds) * 1000:6.0f} ms {kind.bound * 1000:6.0f} ms"
                f" {median / kind.bound:7.2f}"
            )
    finally:
        lab.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""How long each checker and errd take to see a fault, and whether load makes them see faults that are not there.

    sudo tests/bench/detection.py [--rounds 5] [--soak MINUTES]

A light module in a lab node with one checker of each kind, interval and timeout 1 s. Per kind: from the fault
to the value in the resource file. Intervals are configured, so a poller's bound is interval + timeout; what the
kernel tells (interfaces, addresses, deaths) must not wait for an interval. --soak keeps all cores busy, and
counts actions; a quiet machine takes none. Figures of one machine: nothing here is a test.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "t3_cluster")]

from checked import BOTH, Checked, config  # noqa: E402
from pair import wait_for  # noqa: E402

from lab.cluster import Lab, Node  # noqa: E402

EXTRA = "10.123.0.9"
CHECKS = """<errd polltimer="30"><proc name="appli" action="noaction" class="both"/></errd>
<check>
 <tcp ident="t" when="both"><to addr="127.0.0.1" port="8000" interval="1" timeout="1"/></tcp>
 <ping ident="p"><to addr="{peer}" interval="1" timeout="1"/></ping>
 <intf ident="i"><to local_addr="{own}"/></intf>
 <ip ident="a"><to addr="{extra}" interval="10"/></ip>
 <custom ident="c" when="both" exec="customscript"/>
</check>"""
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


@contextmanager
def busy() -> Iterator[None]:
    """Every core has two programs that never sleep."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def soak(module: Checked, node: Node, minutes: float) -> None:
    """Count what happens to a module that nothing happens to."""
    mark = module.mark()
    with busy():
        time.sleep(minutes * 60)
    lines = module.log(node, mark, "E")
    actions = [line.english for line in lines if line.code in ("action_rule", "action_called", "errd_event")]
    changes = [line.english for line in lines if line.code == "resource_set"]
    print(f"{minutes:g} minutes with all cores busy: {len(actions)} actions, {len(changes)} changes of resources")
    for text in actions + changes:
        print(f"  {text}")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    arguments = parser.parse_args()
    lab = Lab.up(f"detect{os.getpid()}")
    try:
        module = Checked(lab)
        node, peer = module.nodes
        node.run(f"ip addr add {EXTRA}/32 dev lo")
        # without rules a fault changes the resource only
        failover = 'period="100" handle_time="200"' + ("" if arguments.soak else ' extends="no"')
        checks = CHECKS.format(peer=peer.address(), own=node.address("repli"), extra=EXTRA)
        text = config(checks, mode="light", failover=failover)
        module.reconfigure(text, nodes=[node], **BOTH)
        module.start_up(node)
        if arguments.soak:
            wait_for(lambda: module.value(node, "tcp.t") == "up", 20, "all is up")
            time.sleep(3.0)
            soak(module, node, arguments.soak)
            return 0
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

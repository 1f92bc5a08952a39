#!/usr/bin/env python3
"""How long each checker and errd take to see a fault.

    sudo tests/bench/detection.py [--rounds 5]

A light module in a lab node with one checker of each kind, interval and timeout 1 s, and a mirror with a witness.
Per kind: from the fault to the value in the resource file. Intervals are configured, so a poller's bound is interval +
timeout; what the kernel tells (interfaces, addresses, deaths) must not wait for an interval; the verdict of a witness
may take 3 s after the heartbeats' timeout. Figures of one machine: nothing here is a test.
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

from lab.cluster import Lab, Node  # noqa: E402
from lab.waiting import wait_until  # noqa: E402

EXTRA = "10.123.0.9"
MORE = """<check>
 <tcp ident="far" when="both"><to addr="{peer}" port="8001" interval="1" timeout="1"/></tcp>
 <module name="other"><to addr="{peer}" interval="1" timeout="1"/></module>"""
WITNESS = '<check><splitbrain ident="w" exec="ping" arg="{addr}"/></check>'
HEARTBEAT_TIMEOUT = 1.5
"""Of the mirror in checked.config."""
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
    wait_until(lambda: value(module, node, kind.resource) == "up", 20, f"{kind.resource} up", LOOK)
    begin = time.monotonic()
    kind.fail()
    wait_until(lambda: value(module, node, kind.resource) == "down", 30, f"{kind.resource} down", LOOK)
    seconds = time.monotonic() - begin
    kind.mend()
    wait_until(lambda: value(module, node, kind.resource) == "up", 30, f"{kind.resource} up again", LOOK)
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
            "tcpcheck, a host that is silent",
            "tcp.far",
            2.0,
            lambda: lab.block(peer, node, "default"),
            lambda: lab.unblock(peer, node, "default"),
        ),
        Kind(
            "modulecheck, a host that is silent",
            f"module.other_{peer.address()}",
            2.0,
            lambda: lab.block(peer, node, "default"),
            lambda: lab.unblock(peer, node, "default"),
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


def show(name: str, seconds: list[float], bound: float) -> None:
    """One row of the table."""
    median = statistics.median(seconds)
    print(
        f"{name:45} {median * 1000:6.0f} ms {max(seconds) * 1000:6.0f} ms {bound * 1000:6.0f} ms {median / bound:7.2f}",
        flush=True,
    )


def witness(lab: Lab, rounds: int) -> None:
    """All networks of the primary fail, and the witness with them; the other one is the next primary."""
    module = Checked(lab)
    module.reconfigure(config(WITNESS.format(addr=lab.client.address())))
    node, peer = module.nodes
    module.start(node, peer)
    seconds = []
    for _ in range(rounds):
        seconds.append(cut_off(module, node, peer))
        node, peer = peer, node
    show("splitbraincheck, all networks fail", seconds, HEARTBEAT_TIMEOUT + 3.0)
    for one in module.nodes:
        module.stop(one)


def cut_off(module: Checked, node: Node, peer: Node) -> float:
    """Seconds from the cut to the verdict; the networks are back before this returns."""
    wait_until(lambda: value(module, node, "splitbrain.w") == "up", 20, "the witness answers")
    begin = time.monotonic()
    for lan in ("default", "repli"):
        node.cut(lan)
    wait_until(lambda: value(module, node, "splitbrain.uptodate") == "down", 30, "the verdict", LOOK)
    seconds = time.monotonic() - begin
    module.wait(peer, "ALONE green")
    module.wait(node, "WAIT red")
    for lan in ("default", "repli"):
        node.join(lan)
    module.wait(peer, "PRIM green")
    return seconds


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lab = Lab.up(f"detect{os.getpid()}")
    try:
        module = Checked(lab)
        node, peer = module.nodes
        peer.safekit("webserver", "start")
        peer.run("setsid /usr/bin/python3 -I -m http.server 8001 </dev/null >/dev/null 2>&1 &")
        Checked.beside(peer, "other", config("", mode="light")).start_up(peer)
        node.run(f"ip addr add {EXTRA}/32 dev lo")
        # without rules a fault changes the resource only
        failover = f'{FAST} extends="no"'
        checks = EVERY_CHECKER.format(peer=peer.address(), own=node.address("repli"), extra=EXTRA)
        checks = checks.replace("<check>", MORE.format(peer=peer.address()))
        text = config(checks, mode="light", failover=failover)
        module.reconfigure(text, nodes=[node], **BOTH)
        module.start_up(node)
        print(f"{'fault seen by':45} {'median':>9} {'worst':>9} {'bound':>9} {'ratio':>7}")
        for kind in kinds(lab, node, peer):
            show(kind.name, [measure(module, node, kind) for _ in range(arguments.rounds)], kind.bound)
        module.stop(node)
        witness(lab, arguments.rounds)
    finally:
        lab.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())

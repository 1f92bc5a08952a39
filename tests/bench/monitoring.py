#!/usr/bin/env python3
"""What a quiet server costs with the SNMP agent and scrapes of /metrics, against without.

    sudo tests/bench/monitoring.py [--rounds 4] [--seconds 60]

A mirror and a farm with two checkers on two nodes, nothing to do. Windows with and without take turns: with, the agent
runs, /metrics is read every 15 s and a manager walks the MIB by bulk every 60 s. Told of one node: CPU time of all its
processes, in parts of one core, and their memory (PSS). Figures of one machine: nothing here is a test.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "t3_cluster")]

from pair import Pair, archive, userconfig  # noqa: E402

from lab.cluster import Lab, Node  # noqa: E402

SCRAPE_SECONDS, WALK_SECONDS = 15, 60
FARM = """<safe><service mode="farm"><farm><lan name="default"/></farm><user/></service></safe>"""
CHECKS = """<check><ping ident="c"><to addr="{client}"/></ping>
<tcp ident="t" when="both"><to addr="127.0.0.1" port="9010"/></tcp></check>"""
PREFIX = ".1.3.6.1.4.1.107.175.10"
TICKS = os.sysconf("SC_CLK_TCK")


def of_the_product(node: Node) -> dict[int, str]:
    """Processes of the node that are the product's, by their interpreter."""
    own = {}
    for pid, name in node.processes().items():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if name != "safelab-init" and (b"/opt/safekit/" in command or name.startswith("safe")):
            own[pid] = name
    return own


def cpu(node: Node) -> dict[int, float]:
    """Seconds that each process has had so far, with those of its children that have ended."""
    found = {}
    for pid in of_the_product(node):
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[pid] = sum(int(word) for word in words[11:15]) / TICKS
    return found


def memory(node: Node) -> dict[str, int]:
    """PSS in kB by name."""
    found: dict[str, int] = {}
    for pid, name in of_the_product(node).items():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found[name] = found.get(name, 0) + next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found


def window(lab: Lab, node: Node, seconds: float, *, asked: bool) -> tuple[float, int]:
    """(part of a core, kB) of a window."""
    before, begin = cpu(node), time.monotonic()
    scrape, walk = begin, begin
    while (now := time.monotonic()) < begin + seconds:
        if asked and now >= scrape:
            scrape += SCRAPE_SECONDS
            done = lab.client.run(["curl", "-sf", "-o", "/dev/null", f"http://{node.address()}:9010/metrics"])
            assert done.returncode == 0
        if asked and now >= walk:
            walk += WALK_SECONDS
            lab.client.run(["env", "MIBS=", "snmpbulkwalk", "-v2c", "-c", "public", f"{node.address()}:3600", PREFIX])
        time.sleep(0.25)
    after, took = cpu(node), time.monotonic() - begin
    used = sum(seconds_ - before.get(pid, 0.0) for pid, seconds_ in after.items())
    return used / took, sum(memory(node).values())


def made() -> Iterator[tuple[Lab, Node]]:
    lab = Lab.up()
    try:
        pair = Pair(lab)
        scripts = {"start_prim": "#!/bin/sh\n", "stop_prim": "#!/bin/sh\n"}
        pair.install(userconfig(heart="", more=CHECKS.format(client=lab.client.address())), **scripts)
        for node in lab:
            pair.outside(node, "/root/web.safe").write_bytes(archive(FARM, {}))
            node.safekit("module", "install", "-M", "2", "-m", "web", "/root/web.safe")
            node.safekit("config", "-m", "web")
            node.write("/opt/safekit/web/conf/metrics.conf", "0.0.0.0/0\n")
            node.safekit("start", "-m", "web")
        pair.first_start(pair.one)
        yield lab, pair.one
    finally:
        lab.down()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    for lab, node in made():
        found: dict[bool, list[tuple[float, int]]] = {False: [], True: []}
        time.sleep(15)
        for number in range(options.rounds):
            for asked in (False, True) if number % 2 == 0 else (True, False):
                node.safekit("safeagent", "start" if asked else "stop", check=False)
                time.sleep(8)  # what the start itself costs is not idle cost
                found[asked].append(window(lab, node, options.seconds, asked=asked))
                print(
                    f"{'with   ' if asked else 'without'} {found[asked][-1][0]:.2%} {found[asked][-1][1]} kB",
                    flush=True,
                )
                if asked:
                    print("   " + ", ".join(f"{name} {kb}" for name, kb in sorted(memory(node).items())), flush=True)
        for asked, rows in found.items():
            cpus, sizes = [row[0] for row in rows], [row[1] / 1024 for row in rows]
            print(
                f"{'with' if asked else 'without':8} CPU {statistics.median(cpus):6.2%} of a core "
                f"({min(cpus):.2%} to {max(cpus):.2%})   PSS {statistics.median(sizes):6.1f} MB "
                f"({min(sizes):.1f} to {max(sizes):.1f})"
            )
        ratio = statistics.median(r[0] for r in found[True]) / statistics.median(r[0] for r in found[False])
        print(f"CPU with / without: {ratio:.2f}")


if __name__ == "__main__":
    main()

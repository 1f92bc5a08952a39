#!/usr/bin/env python3
"""Commands as whole processes, and distributed ones on eight servers, against their budgets.

    sudo tests/bench/commands.py [--nodes 8] [--rounds 15] [--megabytes 10]

One lab whose servers all run on this machine, so that a distributed command costs here what eight machines would share:
its figure is an upper bound. Each figure is the median with its range; the rounds of different commands alternate, and
an interpreter that does nothing is measured between them. Figures of one machine: nothing here is a test.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lab.cluster import Lab, Node  # noqa: E402
from lab.waiting import wait_until  # noqa: E402

MODULE = "bench"
XML = """<!DOCTYPE safe><safe><service mode="farm"><farm><lan name="default"/></farm><user/></service></safe>"""
# Runs in the node, so that entering its namespaces is not part of the figure. Prints seconds and processor seconds.
TIMER = """
import resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
if done.returncode:
    sys.exit(done.stdout.decode(errors="replace"))
print(wall, used.ru_utime + used.ru_stime)
"""


@dataclass
class Row:
    """A command, its budget in milliseconds (0: none), and what was measured, in milliseconds."""

    what: str
    command: tuple[str, ...]
    budget: float
    walls: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)

    def measure(self, node: Node) -> None:
        """One run more."""
        done = node.run(["/usr/bin/python3", "-I", "-c", TIMER, *self.command], check=False, timeout=120)
        if done.returncode:
            raise SystemExit(f"{self.what}: {done.stdout}{done.stderr}")
        wall, used = map(float, done.stdout.split())
        self.walls.append(wall * 1000)
        self.used.append(used * 1000)

    def text(self) -> str:
        """A line of the table."""
        median = statistics.median(self.walls)
        ratio = f"{median / self.budget:6.2f}" if self.budget else "     -"
        return (
            f"{self.what:32} {median:7.0f} ms  ({min(self.walls):.0f} to {max(self.walls):.0f})  processor"
            f" {statistics.median(self.used):5.0f} ms  budget {self.budget:5.0f}  ratio {ratio}"
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=10)
    options = parser.parse_args()
    lab = Lab.up(f"cmd{os.getpid()}", nodes=options.nodes)
    try:
        one = lab.nodes["node1"]
        wait_until(lambda: one.safekit("-H", "*", "level", check=False).returncode == 0, 30, "every web service", 0.2)
        one.safekit("module", "install", "-m", MODULE, "farm.safe")
        one.write(f"/opt/safekit/modules/{MODULE}/conf/userconfig.xml", XML)
        # What cannot be compressed: the transfer has the size that was asked for.
        one.run(["dd", "if=/dev/urandom", f"of=/opt/safekit/modules/{MODULE}/bin/blob", "bs=1M",
                 f"count={options.megabytes}"])  # fmt: skip
        one.safekit("config", "-m", MODULE)
        one.safekit("-H", "*", "-E", MODULE, timeout=120)
        one.safekit("start", "-m", MODULE)
        one.safekit("waitstate", "-m", MODULE, "UP", timeout=40)
        python = "/opt/safekit/private/env/bin/python"
        setting = ("safekit", "set", "-m", MODULE, "-r", "custom.bench", "-i", "bench", "-v")
        quick = [
            Row("an interpreter that does nothing", (python, "-I", "-c", "pass"), 0),
            Row("safekit state", ("safekit", "state"), 100),
            Row("safekit set", (*setting, "up"), 80),
        ]
        everywhere = Row(f"-H * state, {options.nodes} servers", ("safekit", "-H", "*", "state"), 500)
        for _ in range(options.rounds):
            for row in (*quick, everywhere):
                row.measure(one)
        one.safekit("stop", "-m", MODULE, timeout=40)
        give = Row(f"-E of {options.megabytes} MB, {options.nodes} servers", ("safekit", "-H", "*", "-E", MODULE), 5000)
        for _ in range(max(options.rounds // 5, 3)):
            give.measure(one)
        print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; {time.strftime('%Y-%m-%d')}")
        for row in (*quick, everywhere, give):
            print(row.text())
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{error}\n{error.stdout}{error.stderr}") from None
    finally:
        lab.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())

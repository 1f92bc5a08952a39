#!/usr/bin/env python3
"""Failover, planned swap, command line and idle cost of a mirror, against their budgets.

    sudo tests/bench/failover.py [--rounds 5] [--soak MINUTES]

Two lab nodes and a client that asks an echo server behind the virtual address every 10 ms. Prints one table
with medians and their ratio to the budget. Figures of one machine: nothing here is a test. --soak keeps both
cores busy and counts false failovers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "t3_cluster")]

from burners import saturated  # noqa: E402
from pair import Pair, userconfig  # noqa: E402

from lab.cluster import Lab, Node  # noqa: E402
from lab.waiting import wait_until  # noqa: E402

PULSE_MS, TIMEOUT_MS = 100, 1000
PROBE = 0.01
PORT = 7007
PRODUCT = ("supervisord", "heart", "nfsbox", "nfsadmin", "vipd", "arpreroute", "circlog", "errd", "reintegre")

ECHO = """#!/bin/sh
exec setsid /usr/bin/python3 -I -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", PORT))
while True:
    data, peer = s.recvfrom(64)
    s.sendto(data, peer)
' </dev/null >/dev/null 2>&1 &
echo $! > /run/writer.pid
""".replace("PORT", str(PORT))
CLIENT = """
import json, select, socket, sys, time
vip, port, interval = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setblocking(False)
due = time.time()
while True:
    now = time.time()
    if now >= due:
        try: s.sendto(repr(now).encode(), (vip, port))
        except OSError: pass
        due = now + interval
    if select.select([s], [], [], max(0.0, due - time.time()))[0]:
        try: sent = s.recv(64)
        except OSError: continue
        print(sent.decode(), time.time(), flush=True)
"""
TIMER = """
import json, subprocess, sys, time
count = int(sys.argv[1]); times = []
for _ in range(count):
    begun = time.monotonic()
    subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, check=True)
    times.append(time.monotonic() - begun)
print(json.dumps(times))
"""


@dataclass(frozen=True)
class Row:
    """A line of the table; milliseconds unless `unit` says otherwise."""

    what: str
    values: tuple[float, ...]
    budget: float
    unit: str = "ms"

    def text(self) -> str:
        """Median, worst, budget and their ratio."""
        middle = statistics.median(self.values)
        return (
            f"{self.what:<58}{middle:>9.1f}{max(self.values):>9.1f}{self.budget:>9.0f} {self.unit:<4}"
            f"{middle / self.budget:>7.2f}"
        )


class Client:
    """Asks the virtual address and remembers when it answered."""

    def __init__(self, lab: Lab) -> None:
        self._process = lab.client.popen(
            ["/usr/bin/python3", "-I", "-u", "-c", CLIENT, lab.vip, str(PORT), str(PROBE)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self.answers: list[float] = []
        self._rest = ""

    def look(self) -> list[float]:
        """Times of all answers until now."""
        assert self._process.stdout is not None
        while True:
            try:
                data = os.read(self._process.stdout.fileno(), 1 << 16).decode()
            except BlockingIOError:
                break
            if not data:
                break
            *whole, self._rest = (self._rest + data).split("\n")
            self.answers += [float(line.split()[1]) for line in whole]
        return self.answers

    def gap(self, since: float) -> tuple[float, float]:
        """The longest silence after `since`: seconds, and when it ended."""
        times = [t for t in self.look() if t >= since - 0.5]
        return max((b - a, b) for a, b in itertools.pairwise(times))

    def close(self) -> None:
        """End the client."""
        self._process.kill()
        self._process.wait(10)


def when(line_date: str) -> float:
    """Unix time of a log line."""
    return datetime.fromisoformat(line_date.replace("Z", "+00:00")).timestamp()


def line_time(pair: Pair, node: Node, mark: object, text: str) -> float:
    """When a message was logged."""
    return next(when(line.date) for line in pair.log(node, mark, "EI") if line.english == text)  # type: ignore[arg-type]


def roles(pair: Pair) -> tuple[Node, Node]:
    """PRIM and SECOND."""
    wait_until(
        lambda: {pair.state(node) for node in pair.nodes} == {"PRIM green", "SECOND green"},
        90,
        lambda: f"a protected pair; {pair.states()}\n{pair.tail()}",
    )
    return (pair.one, pair.two) if pair.state(pair.one).startswith("PRIM") else (pair.two, pair.one)


def power_off(pair: Pair, client: Client, rounds: int) -> Iterator[Row]:
    """Power failures of the primary."""
    detection, started, answering, whole = [], [], [], []
    for _ in range(rounds):
        prim, second = roles(pair)
        time.sleep(1.0)
        mark, begun = pair.mark(), time.time()
        prim.poweroff()
        pair.wait(second, "ALONE green", timeout=60)
        time.sleep(0.5)
        decided = line_time(pair, second, mark, "Reason of failover: no heartbeat")
        script = line_time(pair, second, mark, "Script start_prim")
        gap, end = client.gap(begun)
        detection.append((decided - begun) * 1000)
        started.append((script - decided) * 1000)
        answering.append((end - decided) * 1000)
        whole.append(gap * 1000)
        prim.poweron()
        prim.safekit("start", "-m", pair.module)
    yield Row(f"power-off: detection (timeout {TIMEOUT_MS}, pulse {PULSE_MS})", tuple(detection), TIMEOUT_MS + PULSE_MS)
    yield Row("decision to start script", tuple(started), 200)
    yield Row("decision to virtual address answering", tuple(answering), 200)
    yield Row("power-off: longest gap of the client", tuple(whole), TIMEOUT_MS + PULSE_MS + 200)


def swaps(pair: Pair, client: Client, rounds: int) -> Row:
    """Planned swaps."""
    gaps = []
    for _ in range(rounds):
        prim, second = roles(pair)
        time.sleep(0.5)
        begun = time.time()
        prim.safekit("swap", "-m", pair.module)
        pair.wait_protected(second)
        time.sleep(0.5)
        gaps.append(client.gap(begun)[0] * 1000)
    return Row("planned swap: longest gap of the client", tuple(gaps), 500)


def commands(pair: Pair, count: int) -> Iterator[Row]:
    """Whole processes in a node, beside an empty Python."""
    node = roles(pair)[0]
    python = "/opt/safekit/private/env/bin/python"
    for what, words, budget in (
        ("an empty Python (to compare)", [python, "-c", "pass"], 150),
        ("safekit state", ["/opt/safekit/safekit", "state"], 150),
        (
            "safekit set",
            ["/opt/safekit/safekit", "set", "-m", pair.module, "-r", "custom.bench", "-v", "up", "-i", "b"],
            150,
        ),
    ):
        done = node.run(["/usr/bin/python3", "-I", "-c", TIMER, str(count), *words], timeout=120)
        yield Row(what, tuple(seconds * 1000 for seconds in json.loads(done.stdout)), budget)


def idle(pair: Pair, seconds: float) -> Iterator[Row]:
    """CPU and memory of the module's processes on each node."""
    roles(pair)
    time.sleep(2.0)
    found = {node.name: [p for p, name in node.processes().items() if name in PRODUCT] for node in pair.nodes}

    def ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = {pid: ticks(pid) for pids in found.values() for pid in pids}
    time.sleep(seconds)
    hertz = os.sysconf("SC_CLK_TCK")
    cpu, pss = [], []
    for pids in found.values():
        cpu.append(sum(ticks(pid) - before[pid] for pid in pids) / hertz / seconds * 100)
        pss.append(sum(_pss(pid) for pid in pids) / 1024)
    yield Row("idle module: CPU of one node, % of one core", tuple(cpu), 1, "%")
    yield Row("idle module: memory of one node (PSS)", tuple(pss), 120, "MB")


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def soak(pair: Pair, minutes: float, say: Callable[[str], None]) -> None:
    """Count false failovers while all cores are busy."""
    prim, second = roles(pair)
    mark, end = pair.mark(), time.monotonic() + minutes * 60
    with saturated():
        while time.monotonic() < end:
            time.sleep(min(10.0, max(end - time.monotonic(), 0.1)))
            say(f"  {max(end - time.monotonic(), 0):4.0f} s left: {pair.states()}")
    lost = [
        line.english for node in pair.nodes for line in pair.log(node, mark) if line.code == "failover_no_heartbeat"
    ]
    late = [line.english for node in pair.nodes for line in pair.log(node, mark, "I") if line.code == "late"]
    say(f"saturated for {minutes:g} minutes: {len(lost)} false failovers, {len(late)} warnings of lateness")
    say(f"states: {pair.states()} (began as {prim.name} PRIM, {second.name} SECOND)")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="power-offs and swaps (default 5)")
    parser.add_argument("--idle", type=float, default=20, metavar="SECONDS", help="length of the idle measure")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES", help="count false failovers under load")
    arguments = parser.parse_args()
    lab = Lab.up()
    try:
        pair = Pair(lab)
        vip = (
            '<vip><interface_list><interface check="off" arpreroute="on"><real_interface>'
            f'<virtual_addr addr="{lab.vip}" where="one_side_alias"/>'
            "</real_interface></interface></interface_list></vip>"
        )
        pair.install(userconfig(heart=f'pulse="{PULSE_MS}" timeout="{TIMEOUT_MS}"', vip=vip), start_prim=ECHO)
        pair.first_start(pair.one)
        if arguments.soak:
            soak(pair, arguments.soak, print)
            return 0
        client = Client(lab)
        try:
            print(f"{'':<58}{'median':>9}{'worst':>9}{'budget':>9} {'':<4}{'ratio':>7}")
            for row in power_off(pair, client, arguments.rounds):
                print(row.text(), flush=True)
            print(swaps(pair, client, arguments.rounds).text(), flush=True)
        finally:
            client.close()
        for row in (*commands(pair, 20), *idle(pair, arguments.idle)):
            print(row.text(), flush=True)
    finally:
        lab.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())

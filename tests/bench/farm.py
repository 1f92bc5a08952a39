# ruff: noqa: E501
"""What a farm costs and what its clients notice: `python -m tests.bench.farm [WHAT] [--rounds N]`. Needs root.

Three servers, a client and a learning bridge in network namespaces.

- Planned leave and join with open connections and a new one every 20 ms or 2 ms: failed, broken, slowest.
- Power-off with pulse 100 ms, the same clients with a time-out of 50 ms: when the last connection that failed began.
- Throughput of one server behind its filter, as a ratio to the same flooding without a filter, and the same ratio of
  the work done for a second of CPU, which another load on the machine disturbs less. Medians, and 95% intervals of them.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path

from lab.waiting import wait_until
from safekit.model.types import InterfaceKind
from tests.t2_process.farm_network import LONG, ROOT, VIP4, FarmNetwork, farm_network, farm_vip, figures
from tests.t2_process.vip_network import sh
from vipd.farm.layout import default_vmac

PAUSES = (0.02, 0.002)
SECONDS = 0.02
TURNS = 4
BENCH_VIPS = (VIP4, "10.78.0.51")
MODES: tuple[InterfaceKind, ...] = ("vmac_invisible", "vmac_directed")

# Installs what one server does with frames: a line "flood" (nothing but what makes flooding work), "nftables" or
# "nfqueue", answered when it is done.
FILTERS = r"""
import asyncio, ipaddress, subprocess, sys
from safekit.net import addresses as net
from vipd.farm.buckets import FULL
from vipd.farm.engine import NftablesEngine
from vipd.farm.layout import Balance, Layout, Verdicts, Wire, default_vmac, gather_mac
from vipd.farm.nfqueue import QueueEngine
mode, vip = sys.argv[1], ipaddress.ip_address(sys.argv[2])
link = net.link_named("eth0")
vmac = default_vmac(vip) if mode == "invisible" else None
wire = Wire(0, "eth0", link.index, link.mac, mode, vmac, gather_mac(vip), (vip,))
rules = (Balance("tcp", "on_port", 0, None, 80), Balance("udp", "on_port", 0, None, 5001))
layout = Layout("bench", 0, 3, ("g",), (wire,), rules)
promiscuous = "add table netdev bench; delete table netdev bench; add table netdev bench; "
if vmac is not None:
    promiscuous += "add chain netdev bench in { type filter hook ingress device eth0 priority 0; }; "
    promiscuous += f"add rule netdev bench in ether daddr {vmac.hex(':')} meta pkttype set host"
async def main():
    engine = None
    print("ready", flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if engine is not None: engine.remove()
        engine = None
        subprocess.run(["nft", promiscuous if line == "flood" else "add table netdev bench; delete table netdev bench"], check=True)
        if line != "flood":
            engine = NftablesEngine() if line == "nftables" else QueueEngine(7)
            engine.install(layout, Verdicts(True, ((0,) * 256,), (FULL,), (0,), {}), None)
        print("done", flush=True)
asyncio.run(main())
"""

# Prints the datagrams it has got and the CPU seconds it has used to whoever asks on port 81.
SINK = r"""
import os, socket, sys, threading, time
address = sys.argv[1]
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
def listen(port, serve):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((address, port)); s.listen(512)
    def loop():
        while True: serve(s.accept()[0])
    threading.Thread(target=loop, daemon=True).start()
def short(c): c.close()
def bulk(c):
    def drain():
        buffer = bytearray(1 << 20)
        while c.recv_into(buffer): pass
        c.close()
    threading.Thread(target=drain, daemon=True).start()
listen(80, lambda c: bulk(c) if c.recv(1) == b"B" else short(c))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.setsockopt(socket.SOL_SOCKET, 33, 1 << 24); u.bind((address, 5001))
received = 0
def tell(c): c.sendall(b"%d %r" % (received, time.process_time())); c.close()
listen(81, tell)
print("ready", flush=True)
while True: u.recv(2048); received += 1
"""

# Lines "measure seconds blocks": to both addresses in turn, A B B A a block; answered by a list of blocks, each the
# list of four slices: how many, seconds, CPU seconds of both sides and of the kernel's threads.
LOAD = r"""
import json, os, pathlib, socket, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
kernel = [p.parent / "schedstat" for p in pathlib.Path("/proc").glob("[0-9]*/comm") if p.read_text().startswith("ksoftirqd")]
def sink(address):
    c = socket.create_connection((address, 81), timeout=5); received, used = c.recv(99).split(); c.close()
    return int(received), float(used)
def now(address):
    received, used = sink(address)
    threads = sum(int(path.read_text().split()[0]) for path in kernel) / 1e9
    return received, used + threads + time.process_time(), time.perf_counter()
def connections(address, end, _):
    count = 0
    while time.perf_counter() < end:
        c = socket.create_connection((address, 80), timeout=2); c.sendall(b"x"); c.recv(1); c.close(); count += 1
    return count
def bulk(address, end, _):
    c = socket.create_connection((address, 80), timeout=2); c.sendall(b"B"); block, sent = bytes(1 << 18), 0
    while time.perf_counter() < end: sent += c.send(block)
    c.shutdown(1); c.recv(1); c.close()
    return sent
def datagrams(address, end, before):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect((address, 5001))
    while time.perf_counter() < end:
        for _ in range(50): u.send(b"y" * 64)
    while True:
        received = sink(address)[0]; time.sleep(0.001)
        if received == sink(address)[0]: return received - before
def slice(call, address, seconds):
    received, used, begun = now(address)
    count = call(address, begun + seconds, received)
    took = time.perf_counter() - begun
    return count, took, now(address)[1] - used
print("ready", flush=True)
for line in sys.stdin:
    what, seconds, blocks = line.split()
    call = {"connections": connections, "bulk": bulk, "datagrams": datagrams}[what]
    order = (sys.argv[1], sys.argv[2], sys.argv[2], sys.argv[1])
    print(json.dumps([[slice(call, a, float(seconds)) for a in order] for _ in range(int(blocks))]), flush=True)
"""

MEASURES = ("connections", "bulk", "datagrams")


def started(net: FarmNetwork, kind: InterfaceKind) -> None:
    """All servers of a fresh farm take part."""
    net.install(Path(tempfile.mkdtemp(dir=tempfile.gettempdir())), farm_vip(kind, VIP4))
    net.start()


def planned(net: FarmNetwork, kind: InterfaceKind, pause: float) -> None:
    """One server leaves and comes back, twice, under a client with a new connection every `pause` seconds."""
    started(net, kind)
    open_ = net.client.python(LONG, VIP4, "80", "24")
    count = int(6 / pause)
    shorts = net.client.short(VIP4, 80, count, pause=pause)
    time.sleep(0.5)
    for op in ("farm_leave", "farm_join") * 2:
        begun = time.monotonic()
        net.servers[1].order(op)
        print(f"{kind} {op}: answered after {(time.monotonic() - begun) * 1000:.0f} ms")
        time.sleep(0.7)
    wait_until(net.agreed, 10, "all share again")
    brief, result = figures(shorts), figures(open_)
    print(
        f"{kind} planned, a connection every {pause * 1000:.0f} ms: {len(brief['failed'])} of {count} new ones failed, "
        f"{len(result['broken'])} of 24 open ones broken, slowest new one {brief['slowest']:.2f} s",
        flush=True,
    )
    net.clean()


def power_off(net: FarmNetwork, kind: InterfaceKind, rounds: int) -> None:
    """The cable of a server that is not the one whose MAC the client knows is cut; then, directed, that one's."""
    for whose in ("another", "the known one") if kind == "vmac_directed" else ("any",):
        for pause in PAUSES:
            gaps = []
            for _ in range(rounds):
                started(net, kind)
                net.client.count(VIP4, 80, 5)
                known = net.client.neighbour(VIP4)
                victim = next(s for s in net.servers if (s.mac == known) == (whose == "the known one"))
                shorts = net.client.short(VIP4, 80, int(2.4 / pause), pause=pause, limit=max(0.05, pause))
                time.sleep(0.6)
                cut = time.monotonic()
                net.unplug(victim)
                failed = figures(shorts)["failed"]
                gaps.append(max(failed) - cut if failed else 0.0)
                print(f"  {kind}, round {len(gaps)}: {len(failed)} failed, {gaps[-1] * 1000:.0f} ms", flush=True)
                net.clean()
            print(
                f"{kind} power-off of {whose} (pulse 100 ms x 5), a connection every {pause * 1000:.0f} ms: the last "
                f"failure began {_ms(gaps)} ms after it",
                flush=True,
            )


def _ms(values: list[float]) -> str:
    return f"{statistics.median(values) * 1000:.0f} (worst {max(values) * 1000:.0f})"


def throughput(net: FarmNetwork, mode: str, blocks: int, engines: tuple[str, ...]) -> None:
    """Each engine against the same flooding without a filter, on two servers side by side: slices of some milliseconds
    in turn, so that what a busy machine adds is in both. Then the servers change places. A CPU for each side."""
    client, pair = net.client, net.servers[:2]
    for server, vip in zip(pair, BENCH_VIPS, strict=True):
        server.run("ip", "addr", "add", f"{vip}/24", "dev", "eth0")
        known = default_vmac(ip_address(vip)).hex(":") if mode == "invisible" else server.mac
        client.run("ip", "neigh", "replace", vip, "lladdr", known, "dev", "eth0", "nud", "permanent")
        server.python(SINK, vip)
    filters = [server.python(FILTERS, mode, vip, cwd=str(ROOT)) for server, vip in zip(pair, BENCH_VIPS, strict=True)]
    load = client.python(LOAD, *BENCH_VIPS)
    for engine in engines:
        for measure in MEASURES:
            rates, costs, reached = [], [], []
            for turn in range(2 * TURNS):
                behind = turn % 2
                _ask(filters[behind], engine)
                _ask(filters[1 - behind], "flood")
                for slices in json.loads(_ask(load, f"{measure} {SECONDS} {blocks // (2 * TURNS)}")):
                    per = [(count / took, count / used) for count, took, used in slices]
                    a, b = ([x + y for x, y in zip(per[i], per[j], strict=True)] for i, j in ((0, 3), (1, 2)))
                    with_, without = (a, b) if behind == 0 else (b, a)
                    rates.append(with_[0] / without[0])
                    costs.append(with_[1] / without[1])
                    reached.append(with_[0] / 2)
            print(
                f"vmac_{mode} {engine} {measure}: to flooding without filter {_interval(rates)}; work for a CPU second "
                f"{_interval(costs)}; {len(rates)} blocks, {statistics.median(reached):.3g}/s",
                flush=True,
            )
    net.clean()


def _interval(values: list[float]) -> str:
    """The median, and where 95% of the medians of resampled values are."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2000))
    return f"{statistics.median(values):.3f} ({medians[50]:.3f} to {medians[-51]:.3f})"


def _ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline().strip()
    assert answer, f"{line}: the process ended"
    return answer


def main() -> None:
    """Run everything, or what is named, and print the figures."""
    words = argparse.ArgumentParser(description="What a farm costs, and what its clients notice.")
    words.add_argument("what", nargs="?", choices=("planned", "power-off", "throughput", "all"), default="all")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--blocks", type=int, default=160)
    words.add_argument("--engines", default="nftables,nfqueue")
    words.add_argument("--mode", choices=("invisible", "directed"))
    given = words.parse_args()
    print(sh("nft", "--version").strip(), sh("uname", "-r").strip(), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as directory, farm_network(3) as net:
        tempfile.tempdir = directory
        for kind in MODES:
            if given.mode not in (None, kind.removeprefix("vmac_")):
                continue
            if given.what in ("planned", "all"):
                for pause in PAUSES:
                    planned(net, kind, pause)
            if given.what in ("power-off", "all"):
                power_off(net, kind, given.rounds)
            if given.what in ("throughput", "all"):
                throughput(net, kind.removeprefix("vmac_"), given.blocks, tuple(given.engines.split(",")))


if __name__ == "__main__":
    main()

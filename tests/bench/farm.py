# ruff: noqa: E501
"""What a farm costs and what its clients notice: `python -m tests.bench.farm [WHAT] [--rounds N]`. Needs root.

Three servers, a client and a learning bridge in network namespaces.

- Planned leave and join with open connections and a new one every 20 ms or 2 ms: failed, broken, slowest.
- Power-off with pulse 100 ms, the same clients with a time-out of 50 ms: when the last connection that failed began.
- Throughput of one server behind its filter, as a ratio to the same flooding without a filter; pairs of short
  measurements, so that a busy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path

from safekit.model.types import InterfaceKind
from tests.t2_process.farm_network import LONG, ROOT, VIP4, FarmNetwork, farm_network, farm_vip, figures
from tests.t2_process.vip_network import sh, wait_until
from vipd.farm.layout import default_vmac

PAUSES = (0.02, 0.002)
SECONDS = 0.3
MODES: tuple[InterfaceKind, ...] = ("vmac_invisible", "vmac_directed")

# Installs what one server does with frames: a line "flood" (nothing but what makes flooding work), "nftables" or
# "nfqueue", answered when it is done.
FILTERS = r"""
import asyncio, ipaddress, subprocess, sys
from safekit import net
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

SINK = r"""
import socket, sys, threading
address = sys.argv[1]
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
def tell(c): c.sendall(str(received).encode()); c.close()
listen(81, tell)
print("ready", flush=True)
while True: u.recv(2048); received += 1
"""

# Lines "measure seconds", each answered by a figure.
LOAD = r"""
import json, socket, sys, time
address = sys.argv[1]
def received():
    c = socket.create_connection((address, 81), timeout=5); text = c.recv(99); c.close()
    return int(text)
def connections(seconds):
    count, begun = 0, time.perf_counter()
    while time.perf_counter() < begun + seconds:
        c = socket.create_connection((address, 80), timeout=2); c.sendall(b"x"); c.recv(1); c.close(); count += 1
    return count / (time.perf_counter() - begun)
def bulk(seconds):
    c = socket.create_connection((address, 80), timeout=2); c.sendall(b"B"); block, sent = bytes(1 << 18), 0
    begun = time.perf_counter()
    while time.perf_counter() < begun + seconds: sent += c.send(block)
    c.close()
    return sent / (time.perf_counter() - begun)
def datagrams(seconds, cpu=False):
    # The filter of the receiving side runs within the sender's system call on a virtual wire.
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect((address, 5001)); count = 0
    before, begun, used = received(), time.perf_counter(), time.process_time()
    while time.perf_counter() < begun + seconds:
        for _ in range(50): u.send(b"y" * 64)
        count += 50
    if cpu: return count / (time.process_time() - used)
    time.sleep(0.1)
    return (received() - before) / (time.perf_counter() - begun - 0.1)
print("ready", flush=True)
for line in sys.stdin:
    what, seconds = line.split()
    call = {"connections": connections, "bulk": bulk, "datagrams": datagrams, "datagrams/cpu": lambda s: datagrams(s, True)}
    print(json.dumps(call[what](float(seconds))), flush=True)
"""

MEASURES = ("connections", "bulk", "datagrams", "datagrams/cpu")


def started(net: FarmNetwork, kind: InterfaceKind) -> None:
    """All servers of a fresh farm take part."""
    net.install(Path(tempfile.mkdtemp(prefix="farm-bench-")), farm_vip(kind, VIP4))
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
    wait_until(net.agreed, "all share again", 10)
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
                net.clean()
            print(
                f"{kind} power-off of {whose} (pulse 100 ms x 5), a connection every {pause * 1000:.0f} ms: the last "
                f"failure began {_ms(gaps)} ms after it",
                flush=True,
            )


def _ms(values: list[float]) -> str:
    return f"{statistics.median(values) * 1000:.0f} (worst {max(values) * 1000:.0f})"


def throughput(net: FarmNetwork, mode: str, rounds: int, engines: tuple[str, ...]) -> None:
    """Each engine against the same flooding without a filter: pairs of short measurements, each in both orders."""
    server, client = net.servers[0], net.client
    server.run("ip", "addr", "add", f"{VIP4}/24", "dev", "eth0")
    known = default_vmac(ip_address(VIP4)).hex(":") if mode == "invisible" else server.mac
    client.run("ip", "neigh", "replace", VIP4, "lladdr", known, "dev", "eth0", "nud", "permanent")
    filters = server.python(FILTERS, mode, VIP4, cwd=str(ROOT))
    server.python(SINK, VIP4)
    load = client.python(LOAD, VIP4)
    for engine in engines:
        found: dict[str, list[tuple[float, float]]] = {measure: [] for measure in MEASURES}
        for number in range(rounds):
            for measure in MEASURES:
                figure = {}
                for variant in ("flood", engine) if number % 2 else (engine, "flood"):
                    _ask(filters, variant)
                    figure[variant] = float(_ask(load, f"{measure} {SECONDS}"))
                found[measure].append((figure["flood"], figure[engine]))
        for measure, pairs in found.items():
            ratios = sorted(with_ / without for without, with_ in pairs)
            quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
            print(
                f"vmac_{mode} {engine} {measure}: ratio to flooding without filter {statistics.median(ratios):.3f} "
                f"(middle half {quarters[0]:.3f} to {quarters[2]:.3f}, {len(ratios)} pairs); "
                f"{statistics.median(with_ for _, with_ in pairs):.3g}/s",
                flush=True,
            )
    net.clean()


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
    words.add_argument("--engines", default="nftables,nfqueue")
    words.add_argument("--mode", choices=("invisible", "directed"))
    given = words.parse_args()
    print(sh("nft", "--version").strip(), sh("uname", "-r").strip(), flush=True)
    with farm_network(3) as net:
        for kind in MODES:
            if given.mode not in (None, kind.removeprefix("vmac_")):
                continue
            if given.what in ("planned", "all"):
                for pause in PAUSES:
                    planned(net, kind, pause)
            if given.what in ("power-off", "all"):
                power_off(net, kind, given.rounds)
            if given.what in ("throughput", "all"):
                throughput(net, kind.removeprefix("vmac_"), 4 * given.rounds, tuple(given.engines.split(",")))


if __name__ == "__main__":
    main()

# ruff: noqa: E501
"""What a farm costs and what its clients notice: `python -m tests.bench.farm [rounds]`. Needs root.

Three servers, a client and a learning bridge in network namespaces.

- Planned leave and join with open connections and a new one every 2 ms: failed, broken, slowest.
- Power-off with pulse 100 ms, a new connection every 20 ms with a time-out of 100 ms: longest time without service.
- Throughput of one server behind its filter, as a ratio to the same flooding without load balancing rules; both
  are interleaved in one run, so that a busy machine disturbs them alike.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from safekit.model.types import InterfaceKind
from tests.t2_process.farm_network import LONG, ROOT, VIP4, FarmHost, FarmNetwork, farm_network, farm_vip, figures
from tests.t2_process.vip_network import sh, wait_until

MODES: tuple[InterfaceKind, ...] = ("vmac_invisible", "vmac_directed")

# Installs the filters of one server on demand: a line "rules" or "plain", answered when it is done.
FILTERS = r"""
import ipaddress, sys
from safekit import net
from vipd.farm.buckets import FULL
from vipd.farm.engine import NftablesEngine
from vipd.farm.layout import Balance, Layout, Verdicts, Wire, default_vmac, gather_mac
mode, vip = sys.argv[1], ipaddress.ip_address(sys.argv[2])
link = net.link_named("eth0")
wire = Wire(0, "eth0", link.index, link.mac, mode, default_vmac(vip) if mode == "invisible" else None, gather_mac(vip), (vip,))
rules = (Balance("tcp", "on_port", 0, None, 80), Balance("udp", "on_port", 0, None, 5001))
engine = NftablesEngine()
print("ready", flush=True)
for line in sys.stdin:
    layout = Layout("bench", 0, 3, ("g",), (wire,), rules if line.strip() == "rules" else ())
    engine.install(layout, Verdicts(True, ((0,) * 256,), (FULL,), (0,), {}), None)
    print("done", flush=True)
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
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22); u.bind((address, 5001))
print("ready", flush=True)
while True: u.recv(2048)
"""

LOAD = r"""
import json, socket, sys, time
address, seconds = sys.argv[1], float(sys.argv[2])
print("ready", flush=True)
count, end = 0, time.perf_counter() + seconds
while time.perf_counter() < end:
    c = socket.create_connection((address, 80), timeout=2); c.sendall(b"x"); c.recv(1); c.close(); count += 1
c = socket.create_connection((address, 80), timeout=2); c.sendall(b"B"); block, sent = bytes(1 << 18), 0
begun = time.perf_counter(); end = begun + seconds
while time.perf_counter() < end: sent += c.send(block)
c.close(); took = time.perf_counter() - begun
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect((address, 5001)); packets = 0; cpu = time.process_time()
end = time.perf_counter() + seconds
while time.perf_counter() < end:
    for _ in range(50): u.send(b"y" * 64)
    packets += 50
# The receiving side's filter runs within the sender's system call on a virtual wire: packets per CPU second.
print(json.dumps({"connections": count / seconds, "bulk": sent / took, "datagrams": packets / (time.process_time() - cpu)}), flush=True)
"""


def started(net: FarmNetwork, kind: InterfaceKind) -> None:
    """All servers of a fresh farm take part."""
    net.install(Path(tempfile.mkdtemp(prefix="farm-bench-")), farm_vip(kind, VIP4))
    net.start()


def planned(net: FarmNetwork, kind: InterfaceKind) -> None:
    """One server leaves and comes back."""
    started(net, kind)
    open_ = net.client.python(LONG, VIP4, "80", "24")
    shorts = net.client.short(VIP4, 80, 3000, pause=0.002)
    time.sleep(1.0)
    for op in ("farm_leave", "farm_join"):
        begun = time.monotonic()
        net.servers[1].order(op)
        print(f"{kind} {op}: answered after {(time.monotonic() - begun) * 1000:.0f} ms")
        time.sleep(1.0)
    wait_until(net.agreed, "all share again", 10)
    brief, result = figures(shorts), figures(open_)
    print(
        f"{kind} planned leave and join: {len(brief['failed'])} of 3000 new connections failed, "
        f"{len(result['broken'])} of 24 open ones broken, slowest new one {brief['slowest']:.2f} s"
    )
    net.clean()


def power_off(net: FarmNetwork, kind: InterfaceKind, rounds: int) -> None:
    """The cable of a server that is not the one whose MAC the client knows is cut; then, directed, that one's."""
    for whose in ("another", "the known one") if kind == "vmac_directed" else ("any",):
        gaps = []
        for _ in range(rounds):
            started(net, kind)
            net.client.count(VIP4, 80, 5)
            known = net.client.neighbour(VIP4)
            victim = next(s for s in net.servers if (s.mac == known) == (whose == "the known one"))
            shorts = net.client.short(VIP4, 80, 120, pause=0.02, limit=0.1)
            time.sleep(0.6)
            cut = time.monotonic()
            net.unplug(victim)
            failed = figures(shorts)["failed"]
            gaps.append(max(failed) - cut if failed else 0.0)
            net.clean()
        print(f"{kind} power-off of {whose} (pulse 100 ms x 5): service for all again after {_ms(gaps)} ms")


def _ms(values: list[float]) -> str:
    return f"{statistics.median(values) * 1000:.0f} (worst {max(values) * 1000:.0f})"


def throughput(net: FarmNetwork, mode: str, rounds: int) -> None:
    """With rules against without, interleaved."""
    server, client = net.servers[0], net.client
    server.run("ip", "addr", "add", f"{VIP4}/24", "dev", "eth0")
    filters = server.python(FILTERS, mode, VIP4, cwd=str(ROOT))
    server.python(SINK, VIP4)
    found: dict[str, list[dict[str, float]]] = {"plain": [], "rules": []}
    for _ in range(rounds):
        for variant, results in found.items():
            assert filters.stdin is not None and filters.stdout is not None
            filters.stdin.write(variant + "\n")
            filters.stdin.flush()
            assert filters.stdout.readline() == "done\n"
            results.append(_load(client))
    for measure in ("connections", "bulk", "datagrams"):
        ratios = [b[measure] / a[measure] for a, b in zip(found["plain"], found["rules"], strict=True)]
        print(
            f"vmac_{mode} {measure}: ratio to no rules {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}); {statistics.median(r[measure] for r in found['rules']):.3g}/s"
        )
    net.clean()


def _load(client: FarmHost) -> dict[str, float]:
    process = client.python(LOAD, VIP4, "0.7")
    output, _ = process.communicate(timeout=60)
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    """Run everything and print the figures."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(sh("nft", "--version").strip(), sh("uname", "-r").strip())
    with farm_network(3) as net:
        for kind in MODES:
            planned(net, kind)
            power_off(net, kind, rounds)
            throughput(net, kind.removeprefix("vmac_"), 2 * rounds + 1)


if __name__ == "__main__":
    main()

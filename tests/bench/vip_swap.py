"""What a client feels of the virtual address alone: `python -m tests.bench.vip_swap [--runs N]` (as root).

Two vipd processes, one client that asks every 2 ms, no heart and no application between them. Prints the
median and the worst of the runs, and the worst as a ratio of the budgets of 200 ms (from the decision until the
address answers) and 500 ms (the client's gap in a planned swap).
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from lab.waiting import wait_until
from safekit.model.types import Interface, Vip, VirtualAddr
from tests.t2_process.vip_network import VIP4, VIP6, Network, Server, network, pinging

SWAP_BUDGET, DECISION_BUDGET = 0.5, 0.2
BUDGETS = {
    "planned swap, IPv4 gap": SWAP_BUDGET,
    "planned swap, IPv6 gap": SWAP_BUDGET,
    "planned swap, IPv4 gap, arpreroute off": SWAP_BUDGET,
    "peer cut off, order to answer": DECISION_BUDGET,
    "vip_unset": DECISION_BUDGET,
    "vip_unset, 1000 connections": DECISION_BUDGET,
    "vip_set": DECISION_BUDGET,
}

LISTEN = r"""
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
s = socket.create_server(("0.0.0.0", 80), backlog=1024); keep = []
print("ready", flush=True)
while True: keep.append(s.accept()[0])
"""
CONNECT = r"""
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
keep = [socket.create_connection((sys.argv[1], 80), timeout=5) for _ in range(int(sys.argv[2]))]
print("ready", flush=True); sys.stdin.readline()
"""
Figures = dict[str, list[float]]


def timed(server: Server, op: str) -> float:
    """Seconds that an order takes."""
    start = time.monotonic()
    reply = server.order(op)
    assert reply["ok"], reply
    return time.monotonic() - start


def swaps(net: Network, figures: Figures, label: str, address: str, runs: int) -> None:
    """Planned swaps to and fro."""
    holder, other = net.n1, net.n2
    timed(holder, "vip_set")
    for _ in range(runs):
        with pinging(net.client, address, 1.2, 0.002) as result:
            wait_until(lambda: net.client.neighbour(address), 5, "the client knows the address")
            figures["vip_unset"].append(timed(holder, "vip_unset"))
            figures["vip_set"].append(timed(other, "vip_set"))
            figures[label].append(result()["gap"])
        holder, other = other, holder
    timed(holder, "vip_unset")


def power_off(net: Network, figures: Figures, runs: int) -> None:
    """The holder's cable is cut; from the order to the other server until the client has an answer."""
    holder, other = net.n1, net.n2
    for _ in range(runs):
        timed(holder, "vip_set")
        assert net.client.ping(VIP4)
        port = f"p-{holder.name}"
        subprocess.run(["ip", "-n", net.bridge, "link", "set", port, "down"], check=True)
        with pinging(net.client, VIP4, 1.0, 0.002) as result:
            start = time.monotonic()
            timed(other, "vip_set")
            first = next((at for at in result()["answers"] if at > start), start + 1.0)
        figures["peer cut off, order to answer"].append(first - start)
        timed(holder, "vip_unset")
        subprocess.run(["ip", "-n", net.bridge, "link", "set", port, "up"], check=True)
        timed(other, "vip_unset")
        holder, other = other, holder


def loaded(net: Network, figures: Figures, runs: int) -> None:
    """A release with 1,000 open connections, all of which must be gone."""
    for _ in range(runs):
        timed(net.n1, "vip_set")
        listener = net.n1.python(LISTEN)
        clients = net.client.python(CONNECT, VIP4, "1000")
        figures["vip_unset, 1000 connections"].append(timed(net.n1, "vip_unset"))
        left = net.n1.run("ss", "-Htn", "state", "established", "src", VIP4)
        assert not left, left
        for process in (listener, clients):
            process.kill()
            process.wait(5)


def measure(runs: int) -> Figures:
    """All figures, in seconds."""
    figures: Figures = defaultdict(list)
    addresses = (VirtualAddr(VIP4), VirtualAddr(VIP6))
    with network() as net, tempfile.TemporaryDirectory(prefix="vip-swap-") as directory:
        for reroute in (True, False):
            net.install(Path(directory) / str(reroute), Vip(True, (Interface(addresses, arpreroute=reroute),)))
            for server in (net.n1, net.n2):
                server.start("vipd")
                server.start("arpreroute")
            if reroute:
                swaps(net, figures, "planned swap, IPv4 gap", VIP4, runs)
                swaps(net, figures, "planned swap, IPv6 gap", VIP6, runs)
                power_off(net, figures, runs)
                loaded(net, figures, max(1, runs // 3))
            else:
                swaps(net, figures, "planned swap, IPv4 gap, arpreroute off", VIP4, runs)
            net.clean()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10, help="repetitions of each measure (default: 10)")
    figures = measure(parser.parse_args().runs)
    print(f"{'':42}{'median':>10}{'worst':>10}{'worst/budget':>14}")
    for label, budget in BUDGETS.items():
        values = figures[label]
        print(f"{label:42}{median(values) * 1e3:7.0f} ms{max(values) * 1e3:7.0f} ms{max(values) / budget:14.2f}")


if __name__ == "__main__":
    main()

"""What we read from the kernel is what pyroute2 reads: links, addresses and neighbours, in a network of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

NETWORK = """
ip link add sk0 type veth peer name sk1
ip link set sk0 address 02:00:00:00:00:01
ip link set lo up
ip link set sk0 up
ip link set sk1 up
ip addr add 10.9.0.1/24 dev sk0
ip addr add 10.9.0.2/24 dev sk0
ip addr add 10.9.1.1/32 dev sk0
ip addr add fd09::1/64 dev sk0 nodad
ip addr add 192.0.2.1 peer 192.0.2.2/32 dev sk1
ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev sk0 nud permanent
ip neigh add fd09::9 lladdr 02:00:00:00:00:0a dev sk0 nud permanent
"""

READ = """
import ipaddress, json
from pyroute2 import IPRoute
from safekit.net import addresses as net

ours = {
    "links": sorted((l.index, l.name, l.mac.hex(":"), l.flags) for l in net.links() if l.mac),
    "addresses": sorted((a.index, str(a.ip), a.prefix) for a in net.addresses()),
    "neighbours": sorted((n.index, str(n.ip), n.mac.hex(":")) for n in net.neighbours() if n.permanent),
}
with IPRoute() as kernel:
    theirs = {
        "links": sorted(
            (l["index"], l.get("ifname"), l.get("address"), l["flags"]) for l in kernel.get_links() if l.get("address")
        ),
        "addresses": sorted(
            (a["index"], a.get("local") or a.get("address"), a["prefixlen"]) for a in kernel.get_addr()
        ),
        "neighbours": sorted(
            (n["ifindex"], n.get("dst"), n.get("lladdr")) for n in kernel.get_neighbours() if n["state"] == 128
        ),
    }
print(json.dumps({"ours": ours, "theirs": theirs}))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace is made")
def test_links_addresses_and_neighbours_are_read_as_pyroute2_reads_them() -> None:
    script = f"set -e\n{NETWORK}\nexec {sys.executable} -c '{READ}'"
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", script], cwd=CHECKOUT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert read["ours"] == read["theirs"]
    assert {name for _, name, _, _ in read["ours"]["links"]} >= {"sk0", "sk1"}
    assert {ip for _, ip, _ in read["ours"]["addresses"]} >= {
        "10.9.0.1",
        "10.9.0.2",
        "10.9.1.1",
        "fd09::1",
        "192.0.2.1",
    }
    assert {ip for _, ip, _ in read["ours"]["neighbours"]} == {"10.9.0.9", "fd09::9"}

"""arpreroute as the network hears it (guide 13.5.5, 10.2.3.1)."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.waiting import wait_until
from safekit.model.types import Interface, Vip, VirtualAddr
from tests.t2_process.vip_network import ROOT, VIP4, VIP6, Host, Network

# Records gratuitous ARP and unsolicited advertisements: [seconds, address, MAC].
LISTENER = r"""
import json, select, socket, sys, time
sys.path.insert(0, sys.argv[1])
from safekit.net.packets import Sort, mac_text, parse
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind(("eth0", 3))
print("ready", flush=True)
start, heard = time.monotonic(), []
while True:
    ready = select.select([s, sys.stdin], [], [])[0]
    if s in ready:
        said = parse(s.recvfrom(256)[0])
        if len(said) == 1 and said[0].sort is Sort.CLAIM:
            heard.append([time.monotonic() - start, str(said[0].address), mac_text(said[0].mac)])
    if sys.stdin in ready:
        sys.stdin.readline(); print(json.dumps(heard), flush=True); start, heard = time.monotonic(), []
"""
Heard = list[tuple[float, str, str]]


class Listener:
    """The client's ear."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def take(self, ip: str) -> Heard:
        """What was heard about `ip` since the last call."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return [tuple(said) for said in json.loads(self._process.stdout.readline()) if said[1] == ip]


@contextmanager
def listening(host: Host) -> Iterator[Listener]:
    yield Listener(host.python(LISTENER, str(ROOT)))


def config(*, arpreroute: bool, interval: int = 1, elapse: int = 3) -> Vip:
    addresses = (VirtualAddr(VIP4), VirtualAddr(VIP6))
    return Vip(True, (Interface(addresses, arpreroute=arpreroute, arpinterval=interval, arpelapse=elapse),))


def announcing(net: Network) -> list[str]:
    found: list[str] = net.n1.order("status", target="arpreroute")["announcing"]
    return found


def test_at_once_then_every_arpinterval_during_arpelapse(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, config(arpreroute=True, interval=2, elapse=4), net.n1)
    net.n1.start("vipd")
    net.n1.start("arpreroute")
    with listening(net.client) as ear:
        net.n1.order("vip_set")
        wait_until(lambda: VIP4 in announcing(net), 5, "arpreroute has been told")
        wait_until(lambda: not announcing(net), 8, "arpelapse is over")
        heard = ear.take(VIP4)
        time.sleep(2.2)  # a silence can only be observed
        late = ear.take(VIP4)
    seconds = [at - heard[0][0] for at, _, _ in heard]
    for moment in (2, 4):
        pair = [at for at in seconds if moment - 0.2 <= at < moment + 0.8]
        assert len(pair) == 2, f"a request and a reply at {moment} s: {seconds}"
    assert {mac for _, _, mac in heard} == {net.n1.mac}
    assert net.n1.order("status", target="arpreroute")["sent"] == 6, "two addresses at 0, 2 and 4 s"
    assert late == []


def test_arpreroute_off_broadcasts_nothing_gratuitous_and_clients_follow(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, config(arpreroute=False))
    for server in (net.n1, net.n2):
        server.start("vipd")
        server.start("arpreroute")
    net.n1.order("vip_set")
    assert net.client.ping(VIP4)
    assert net.client.neighbour(VIP4) == net.n1.mac
    with listening(net.client) as ear:
        net.n1.order("vip_unset")
        net.n2.order("vip_set")
        wait_until(lambda: net.client.neighbour(VIP4) == net.n2.mac, 3, "the client has learned the new MAC")
        assert net.client.ping(VIP4)
        assert ear.take(VIP4) == []
    assert announcing(net) == []


def test_the_announcements_end_with_the_role(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, config(arpreroute=True, elapse=60), net.n1)
    net.n1.start("vipd")
    net.n1.start("arpreroute")
    net.n1.order("vip_set")
    wait_until(lambda: sorted(announcing(net)) == [VIP4, VIP6], 5, "arpreroute has been told")
    net.n1.order("vip_unset")
    wait_until(lambda: announcing(net) == [], 5, "arpreroute has been told")


def test_a_restarted_arpreroute_goes_on(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, config(arpreroute=True, elapse=60), net.n1)
    net.n1.start("vipd")
    process = net.n1.start("arpreroute")
    net.n1.order("vip_set")
    process.kill()
    process.wait(5)
    net.n1.start("arpreroute")
    wait_until(lambda: sorted(announcing(net)) == [VIP4, VIP6], 5, "arpreroute has asked vipd")
    with listening(net.client) as ear:
        wait_until(lambda: net.n1.order("status", target="arpreroute")["sent"] >= 4, 6, "it announces")
        assert ear.take(VIP4)


def test_an_address_that_is_gone_is_not_announced(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, config(arpreroute=True, elapse=60), net.n1)
    net.n1.start("vipd")
    net.n1.start("arpreroute")
    net.n1.order("vip_set")
    wait_until(lambda: VIP4 in announcing(net), 5, "arpreroute has been told")
    net.n1.run("ip", "addr", "del", f"{VIP4}/24", "dev", "eth0")
    wait_until(lambda: net.n1.log("vip_lost"), 5, "vipd has noticed")
    with listening(net.client) as ear:
        sent = net.n1.order("status", target="arpreroute")["sent"]
        wait_until(lambda: net.n1.order("status", target="arpreroute")["sent"] > sent, 5, "the other is announced")
        assert ear.take(VIP4) == []


def test_nonsense_is_refused(net: Network, tmp_path: Path) -> None:
    net.install(tmp_path, config(arpreroute=True), net.n1)
    net.n1.start("arpreroute")
    reply = net.n1.order("announce", target="arpreroute", announcements=[{"ip": "x"}])
    assert (reply["ok"], reply["code"]) == (False, "bad_request")
    assert net.n1.order("dance", target="arpreroute")["code"] == "unknown_op"

"""What the networks of clouds do to a cluster (guide 17): addresses by DHCP as /32 behind a router, an MTU of 1460,
names of a DNS that does not answer yet when a server boots, and virtual machines that stand still while they are moved
alive.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from pair import Pair, userconfig

from lab.archive import archive
from lab.cluster import Lab, Node
from tests.conftest import unique_lab_name

MTU = 1460
TIMEOUT = 4.0
"""Of the heartbeats, seconds."""
LANS = ("default", "repli")
PUBLIC = "public"
"""For people only."""
FARM = """<safe><service mode="farm"><farm><lan name="default"/></farm><user/></service></safe>"""
FRAGMENTS = "awk '/^Ip: [0-9]/ {print $19}' /proc/net/snmp"
"""Datagrams that were too large for a packet."""
PYTHON = "/opt/safekit/private/env/bin/python"


def interface(node: Node, lan: str) -> str:
    """Name of the interface that has the node's address of a lan."""
    return str(node.run(f"ip -4 -o addr show to {node.address(lan)}").stdout.split()[1])


def make_router(client: Node) -> None:
    """The client of the lab stands between the servers, on the lan that it is on."""
    device = interface(client, "default")
    client.run(f"""set -e
        sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.{device}.send_redirects=0
        ip link set {device} mtu {MTU}""")


def as_in_gcp(lab: Lab, node: Node) -> None:
    """The server has /32 addresses and reaches the other one through the router; on the second lan, without."""
    for lan in LANS:
        device, address = interface(node, lan), node.address(lan)
        (other,) = (each.address(lan) for each in lab if each is not node)
        router = f"via {lab.client.address()}" if lan == "default" else f"dev {device} scope link"
        node.run(f"""set -e
            ip link set {device} mtu {MTU}
            ip -4 addr flush dev {device}
            ip addr add {address}/32 dev {device}
            [ {lan} != default ] || ip route add {lab.client.address()} dev {device} scope link src {address}
            ip route add {other} {router} src {address}""")


def give_names(lab: Lab, *nodes: Node) -> None:
    """The names of cluster.xml, as a DNS gives them, to these servers."""
    lines = "".join(f"{node.address(lan)} {node.name}.{lan}.internal\n" for node in lab for lan in LANS)
    for node in nodes:
        node.write("/etc/hosts", node.read("/etc/hosts.before") + lines)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up(unique_lab_name(), lans=(*LANS, PUBLIC), bare=True)
    try:
        make_router(made.client)
        for node in made:
            node.write("/etc/hosts.before", node.read("/etc/hosts"))
            as_in_gcp(made, node)
        give_names(made, *made)
        lans = "".join(
            f'<lan name="{lan}">'
            + "".join(f'<node name="{node.name}" addr="{node.name}.{lan}.internal"/>' for node in made)
            + "</lan>"
            for lan in LANS
        )
        people = "".join(f'<node name="{node.name}" addr="{node.address(PUBLIC)}"/>' for node in made)
        lans += f'<lan name="{PUBLIC}" console="on" framework="off">{people}</lan>'
        made.node("node1").write("/root/cluster.xml", f'<cluster><lans pulse="200">{lans}</lans></cluster>')
        made.node("node1").safekit("cluster", "config", "/root/cluster.xml")
        made.node("node1").safekit("cluster", "export", "/root/cluster.zip")
        bundle = Pair.outside(made.node("node1"), "/root/cluster.zip").read_bytes()
        Pair.outside(made.node("node2"), "/root/cluster.zip").write_bytes(bundle)
        made.node("node2").safekit("cluster", "config", "/root/cluster.zip", timeout=90)
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Pair:
    pair = Pair(lab)
    heart = f'pulse="200" timeout="{TIMEOUT * 1000:.0f}"'
    router = f'<check><ping ident="router"><to addr="{lab.client.address()}" interval="2"/></ping></check>'
    pair.install(userconfig(heart=heart, more=router))
    for node in pair.nodes:
        pair.outside(node, "/root/web.safe").write_bytes(archive(FARM, {}))
        node.safekit("module", "install", "-M", "2", "-m", "web", "/root/web.safe")
        node.safekit("config", "-m", "web")
    pair.first_start(pair.one)
    for node in pair.nodes:
        node.safekit("start", "-m", "web")
        node.safekit("waitstate", "-m", "web", "UP", timeout=60)
    return pair


@pytest.fixture(autouse=True)
def logs(pair: Pair) -> Iterator[None]:
    pair.begin_test()
    yield
    pair.check_logs()


def test_a_mirror_and_a_farm_behind_a_router(pair: Pair) -> None:
    """/32 addresses, MTU 1460: everything is heard and replicated, in packets that fit."""
    one, two = pair.nodes
    before = [int(node.run(FRAGMENTS).stdout) for node in pair.nodes]
    one.run(f"head -c 3000000 /dev/urandom > {pair.directory}/large && sync {pair.directory}/large")
    copies = [node.run(f"sha256sum < {pair.backing}/large").stdout for node in pair.nodes]
    assert copies[0] == copies[1]
    pair.wait_records(one, 50)
    assert pair.value(one, "ping.router") == pair.value(two, "ping.router") == "up"
    for node in pair.nodes:
        assert node.safekit("state", "-lq", "-m", "web", check=False).stdout == "UP\n"
        assert "default" in node.safekit("state", "-v", "-m", pair.module).stdout
        for lan in LANS:
            script = f"from checkers.intfcheck import connected; print(connected('{node.address(lan)}'))"
            assert node.run([PYTHON, "-I", "-c", script]).stdout == "True\n"
    one.safekit("-H", "[http],node2", "level")
    pair.verify(one)
    assert [int(node.run(FRAGMENTS).stdout) for node in pair.nodes] == before, "no datagram is cut into pieces"


def test_nothing_of_the_servers_leaves_by_the_public_network(pair: Pair) -> None:
    """CLO-004: framework="off". There the web service answers, and nothing else is said."""
    one, two = pair.nodes
    talk = "udp port 4800 or udp port 8888 or tcp port 5600"

    def hears(lan: str) -> bool:
        # (run takes the exit status of timeout for its own)
        command = f"timeout -k 1 4 tcpdump -n -l -c 1 -i {interface(one, lan)} '{talk}'; true"
        return " > " in str(one.run(command, timeout=20).stdout)

    assert hears("default") and not hears(PUBLIC)
    asked = ["curl", "-s", "-o", "/dev/null", "-m", "3", "-w", "%{http_code}", f"http://{one.address(PUBLIC)}:9010/"]
    assert two.run(asked).stdout in ("200", "302", "401", "404"), "it answers"


@pytest.mark.parametrize("which", ["primary", "secondary"])
def test_a_move_shorter_than_the_timeout_is_nothing(pair: Pair, which: str) -> None:
    """Every process of a server stands still, the application too, for half of the time-out."""
    prim = pair.one if pair.state(pair.one) == "PRIM green" else pair.two
    pair.wait_protected(prim)
    node = prim if which == "primary" else pair.other(prim)
    mark = pair.mark()
    for _ in range(2):
        node.freeze()
        time.sleep(TIMEOUT / 2)
        node.thaw()
        time.sleep(1.0)
    pair.wait_records(prim, 30)
    assert (pair.state(prim), pair.state(pair.other(prim))) == ("PRIM green", "SECOND green")
    changes = [line.english for each in pair.nodes for line in pair.log(each, mark) if line.code == "local_state"]
    assert changes == []
    pair.verify(prim)


@pytest.mark.parametrize("which", ["primary", "secondary"])
def test_a_move_longer_than_the_timeout(pair: Pair, which: str) -> None:
    """The other server serves meanwhile; the one that comes back gives way and is made equal, by nobody's hand, and no
    acknowledged write is lost."""
    prim = pair.one if pair.state(pair.one) == "PRIM green" else pair.two
    pair.wait_protected(prim)
    pair.wait_records(prim, 30)
    moved = prim if which == "primary" else pair.other(prim)
    stays = pair.other(moved)
    pair.expect(
        "advice_prim", "not_uptodate", "action_rule", "transition_rule", "rfs_unusable", "reintegration_failed",
        "process_died", "late",
        "splitbrain_exiting", "splitbrain_staying", "failover_no_heartbeat",
    )  # fmt: skip
    moved.freeze()
    try:
        pair.wait(stays, "ALONE green", TIMEOUT + 15)
        pair.wait_records(stays, 20)
    finally:
        moved.thaw()
    pair.wait_protected(stays, 90)
    pair.verify(stays)


def test_names_that_come_after_the_boot(lab: Lab, pair: Pair) -> None:
    """CLO-008: a server boots while the DNS does not answer. The cluster stays configured, the module does not start on
    data that may be old, and when the names are there it becomes the secondary by itself."""
    prim = pair.one if pair.state(pair.one) == "PRIM green" else pair.two
    pair.wait_protected(prim)
    booted = pair.other(prim)
    pair.expect(
        "not_uptodate",
        "action_rule",
        "transition_rule",
        "heartbeat_held",
        "late",
        "previous_halt",
        "internal",
        "advice_prim",
    )
    booted.safekit("boot", "-m", pair.module, "on")
    head, _, _ = booted.address().rpartition(".")
    booted.write("/etc/resolv.conf", f"nameserver {head}.250\noptions timeout:2 attempts:1\n")
    booted.poweroff()
    pair.wait(prim, "ALONE green", TIMEOUT + 15)
    booted.poweron()  # with a new /etc/hosts, which has none of the names
    assert "internal" not in booted.read("/etc/hosts")
    as_in_gcp(lab, booted)
    time.sleep(TIMEOUT + 8)
    assert booted.name in booted.safekit("cluster", "confinfo", check=False).stdout, "the cluster stays configured"
    assert pair.state(booted) not in ("ALONE green", "PRIM green"), pair.states()
    assert pair.state(prim) == "ALONE green"
    pair.wait_records(prim, 20)
    give_names(lab, booted)
    pair.wait_protected(prim, 90)
    pair.verify(prim)

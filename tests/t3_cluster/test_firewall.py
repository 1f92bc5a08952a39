"""A mirror whose servers have firewalls that close everything (guide 2.1.3, 10.2): firewalld on one, nftables and
iptables together on the other. What the servers hear of each other passes through rules of ours, or not at all.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import Pair, userconfig

from lab.cluster import Lab, Node
from lab.waiting import wait_until
from safekit.wire import protocol
from tests.conftest import unique_lab_name

CHECKOUT = Path(__file__).resolve().parents[2]
INSTALLER = f"{CHECKOUT}/.venv/bin/python -m installation.main"
CFG = "/opt/safekit/private/bin/firewallcfg"
RULES = """
table inet own {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport 22 accept comment "safekit-like"
  }
}
"""


def start_firewalld(node: Node) -> None:
    """As its unit does at boot; without systemd the bus that it needs is started here."""
    node.run("""mkdir -p /run/dbus; rm -f /run/dbus/pid
        dbus-daemon --system --fork
        setsid firewalld --nofork --nopid >/root/firewalld.log 2>&1 </dev/null &""")
    wait_until(
        lambda: node.run(["firewall-cmd", "--state"], check=False).returncode == 0, 20,
        lambda: f"firewalld answers: {node.run('cat /root/firewalld.log').stdout}",
    )  # fmt: skip


def load_rules(node: Node) -> None:
    """As the distribution's units do at boot; unlike most rules, these do not let the loopback pass."""
    node.run(["nft", "-f", "-"], input=RULES)
    for tool, icmp in (("iptables", "icmp"), ("ip6tables", "ipv6-icmp")):
        node.run(f"""{tool} -P INPUT DROP
            {tool} -A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
            {tool} -A INPUT -p {icmp} -j ACCEPT
            {tool} -A INPUT -p tcp --dport 22 -m comment --comment 'safekit-core of mine' -j ACCEPT""")


def rules(node: Node) -> dict[str, str]:
    """All that judges what comes in, of each firewall; counters and handles are not shown."""
    if node.name == "node1":
        return {"firewalld": node.run("firewall-cmd --list-all-zones; firewall-cmd --get-services").stdout}
    return {
        "nftables": node.run(["nft", "list", "table", "inet", "own"]).stdout,
        **{tool: node.run([tool, "-S", "INPUT"]).stdout for tool in ("iptables", "ip6tables")},
    }


def opened(node: Node, name: str) -> set[str]:
    """Ports that rules of ours open for a part, the same in each firewall of the node: `udp 4800`."""
    if node.name == "node1":
        if name not in node.run(["firewall-cmd", "--list-services"]).stdout.split():
            return set()
        found = node.run(["firewall-cmd", "--info-service", name]).stdout
        (line,) = (line for line in found.splitlines() if line.strip().startswith("ports:"))
        return {" ".join(reversed(port.split("/"))) for port in line.split()[1:]}
    of_each = []
    for kind, text in rules(node).items():
        mark = f'comment "{name}"' if kind == "nftables" else f"--comment {name} "
        lines = [line.split() for line in text.splitlines() if mark in line]
        here = [
            f"{words[0] if kind == 'nftables' else words[words.index('-p') + 1]} "
            f"{words[words.index('dport' if kind == 'nftables' else '--dport') + 1]}"
            for words in lines
            if "dport" in words or "--dport" in words
        ]
        loopback = [words for words in lines if "lo" in words or '"lo"' in words]
        assert len(here) == len(set(here)) and len(loopback) == bool(here), (kind, text)
        of_each.append(set(here))
    assert of_each[0] == of_each[1] == of_each[2], of_each
    return of_each[0]


def reaches(sender: Node, receiver: Node) -> bool:
    """The web service answers."""
    command = ["curl", "-s", "-o", "/dev/null", "-m", "1", f"http://{receiver.address()}:9010/"]
    return sender.run(command, check=False).returncode == 0


def spoken(node: Node) -> dict[str, int]:
    """The protocol version that a server speaks to each server: the oldest one to those that it does not hear."""
    nodes = json.loads(node.safekit("cluster", "confinfo", "--json").stdout)
    return {name: known["protocol"] for name, known in nodes.items()}


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two servers with closed firewalls; SafeKit was installed without a word about them."""
    lab = Lab.up(unique_lab_name(), bare=True)
    try:
        for node in lab:
            place = Pair.outside(node, "/root/debs")
            place.mkdir()
            for package in (CHECKOUT / ".cache/debs").glob("*.deb"):
                if node.name == "node1" or package.name.startswith(("iptables_", "libip6tc", "libnetfilter-conntrack")):
                    shutil.copy(package, place)
            node.run('[ -z "$(ls /root/debs)" ] || dpkg -i /root/debs/*.deb', timeout=120)
        start_firewalld(lab.node("node1"))
        load_rules(lab.node("node2"))
        yield Pair(lab)
    finally:
        lab.down()


@pytest.fixture(scope="module")
def before(pair: Pair) -> dict[str, dict[str, str]]:
    """The rules that an administrator had."""
    return {node.name: rules(node) for node in pair.nodes}


CORE = {"udp 4800", "tcp 9010", "tcp 9453"}


def test_nothing_is_opened_without_a_word(pair: Pair, before: dict[str, dict[str, str]]) -> None:
    for node in pair.nodes:
        assert node.run([CFG, "auto", "status"]).stdout == "off\n"
        assert rules(node) == before[node.name] and not opened(node, "safekit-core")
        assert not reaches(pair.other(node), node)


def test_health_probes_are_let_in_alone(pair: Pair, before: dict[str, dict[str, str]]) -> None:
    """Each server lets the other one in, as a balancer in a cloud is, and nobody else; firewalld by rich rules."""
    client = pair.lab.client
    for node in pair.nodes:
        other = pair.other(node)
        said = node.run([CFG, "probes", f"{other.address()}/32"]).stdout
        assert f"TCP 9010 from {other.address()}/32" in said
        once = rules(node)
        assert reaches(other, node) and not reaches(client, node)
        node.run([CFG, "probes", f"{other.address()}/32"])
        assert rules(node) == once, "again gives the same"
        node.run([CFG, "probes", "azure", "gcp"])
        assert not reaches(other, node) and "35.191.0.0/16" in str(rules(node))
        node.run([CFG, "probes", "off"])
        assert rules(node) == before[node.name]


def test_the_installer_opens_the_services(pair: Pair) -> None:
    """A person at the terminal answers on one server; on the other, what the answer does is done by hand."""
    assert "firewalld: open for safekit-core" in pair.one.run([CFG, "auto", "on"]).stdout
    said = pair.two.run(
        f"rm -f /var/safekit/firewall; printf 'y\\n' | script -qec '{INSTALLER}' /dev/null",
        cwd=str(CHECKOUT), timeout=180,
    ).stdout  # fmt: skip
    assert "firewall automatically? [y/N]" in said and "nftables and iptables: open for safekit-core" in said
    for node in pair.nodes:
        assert node.run([CFG, "auto", "status"]).stdout == "on\n"
        assert opened(node, "safekit-core") == CORE
        wait_until(lambda node=node: reaches(pair.other(node), node), 20, f"{node.name} is reached")
        once = rules(node)
        node.run([CFG, "auto", "on"])
        node.run([CFG, "add"])
        assert rules(node) == once, "again gives the same"
    # With these rules not even the commands reached safeadmin before: they do not let the loopback pass.
    pair.lab.configure_cluster()
    wait_until(lambda: spoken(pair.one)["node2"] == protocol.NEWEST, 20, "the servers hear each other")


def test_a_configured_module_gets_through(pair: Pair) -> None:
    pair.install(userconfig())
    for node in pair.nodes:
        assert opened(node, "safekit-mirror") == {"udp 8888", "tcp 5600"}
    pair.first_start(pair.one)
    pair.wait_records(pair.one, 10)
    pair.verify(pair.one)


LOCAL_ONLY = {"errd", "circlog", "nfsadmin", "nfscheck", "ipcheck", "intfcheck"}
OUTSIDE = {"safeadmin": "4800", "safewebserver": "9010", "heart": "8888", "nfsbox": "5600"}


def test_only_the_documented_processes_have_sockets_outside(pair: Pair) -> None:
    """Guide 10.2.3.1, 10.2.3.2: the others speak over the loopback."""
    for node in pair.nodes:
        lines = [line.split() for line in node.run(["ss", "-HantupO"]).stdout.splitlines()]
        outside: dict[str, set[str]] = {}
        for words in lines:
            address, _, number = words[4].rpartition(":")
            if not address.startswith(("127.", "[::1]", "[::ffff:127.")):
                for name in re.findall(r'"([^"]+)",pid=', words[-1]):
                    outside.setdefault(name, set()).add(number)
        assert not LOCAL_ONLY & set(outside), outside
        for name, number in OUTSIDE.items():
            if name != "nfsbox" or node is pair.one:
                assert number in outside.get(name, set()), (name, outside)


def test_other_ports_replace_the_former_ones(pair: Pair) -> None:
    for node in (pair.two, pair.one):
        node.safekit("stop", "-m", pair.module)
        pair.wait(node, "STOP red")
    pair.install(userconfig(heart='port="9101" pulse="150" timeout="2000"'))
    for node in pair.nodes:
        assert opened(node, "safekit-mirror") == {"udp 9101", "tcp 5600"}
        assert "UDP 9101" in node.safekit("module", "getports", "-m", pair.module).stdout
    for node in pair.nodes:
        node.safekit("start", "-m", pair.module)
    wait_until(lambda: {pair.state(n) for n in pair.nodes} == {"PRIM green", "SECOND green"}, 40, pair.states)


def test_each_module_has_rules_of_its_own(pair: Pair) -> None:
    """(Two modules with one port are refused by config.)"""
    node = pair.two
    node.run(["mkdir", "-p", "/second"])
    config = userconfig(directory="/second")
    node.safekit("module", "install", "-M", "7", "-m", "second", "/opt/safekit/Application_Modules/generic/mirror.safe")
    node.write("/opt/safekit/modules/second/conf/userconfig.xml", config)
    node.safekit("config", "-m", "second")
    assert opened(node, "safekit-second") == {"udp 8894", "tcp 5624"}
    node.safekit("deconfig", "-m", "second")
    assert not opened(node, "safekit-second") and opened(node, "safekit-mirror") == {"udp 9101", "tcp 5600"}


def test_rules_come_back_after_a_boot(pair: Pair) -> None:
    for node in pair.nodes:
        node.shutdown()
    for node in pair.nodes:
        node.poweron()
    start_firewalld(pair.one)
    load_rules(pair.two)
    assert not opened(pair.two, "safekit-core")
    pair.two.run(["systemctl", "restart", "safeadmin"])
    for node in pair.nodes:
        wait_until(lambda node=node: opened(node, "safekit-mirror") == {"udp 9101", "tcp 5600"}, 20, "rules are back")
        assert opened(node, "safekit-core") == CORE
        wait_until(lambda node=node: node.safekit("state", check=False).returncode == 0, 20, "safeadmin answers")
        node.safekit("start", "-m", pair.module)
    wait_until(lambda: {pair.state(n) for n in pair.nodes} == {"PRIM green", "SECOND green"}, 60, pair.states)


def test_all_rules_of_ours_go_and_no_others(pair: Pair, before: dict[str, dict[str, str]]) -> None:
    for node in pair.nodes:
        node.safekit("stop", "-m", pair.module)
        pair.wait(node, "STOP red")
        node.run([CFG, "add", "safeagent"])
        assert opened(node, "safekit-safeagent") == {"udp 3600"}
        node.safekit("deconfig", "-m", pair.module)
        assert not opened(node, "safekit-mirror") and opened(node, "safekit-core") == CORE
        for name in ("safewebserver", "safeadmin"):
            node.run(["systemctl", "stop", name])
        node.safekit("uninstall", timeout=120)
        assert rules(node) == before[node.name]

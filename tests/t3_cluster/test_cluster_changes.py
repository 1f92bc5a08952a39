"""cluster.xml changes, or the addresses of its names do, while modules run (guide 9.3, 12.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from farm import FarmLab, farm_config, figures
from pair import Pair

from lab.archive import archive
from lab.cluster import Lab, Node
from lab.waiting import wait_until
from tests.conftest import unique_lab_name

# The mirror needs lans of its two servers: `repli` and `pair`. Every name of cluster.xml stands in /etc/hosts.
LANS = ("default", "repli", "pair")
MIRROR = """<!DOCTYPE safe><safe><service mode="mirror">
  <heart pulse="100" timeout="2000">
    <heartbeat name="pair" permanent_arp="on"/><heartbeat name="repli" ident="flow"/></heart>
  <rfs><replicated dir="/replicated"/></rfs>
  <user nicestoptimeout="10" forcestoptimeout="10"/></service></safe>"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab.up(unique_lab_name(), nodes=3, lans=LANS)
    for node in lab:
        node.write("/etc/hosts.before", node.read("/etc/hosts"))
    give_names(lab)
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Pair:
    apply(lab, cluster_xml(lab))
    pair = Pair(lab)
    for node in pair.nodes:
        node.run(["mkdir", "-p", "/replicated"])
        pair.outside(node, "/root/mirror.safe").write_bytes(archive(MIRROR, {}))
        node.safekit("module", "install", "-m", "mirror", "/root/mirror.safe")
        node.safekit("config", "-m", "mirror")
    pair.first_start(pair.one)
    return pair


@pytest.fixture(scope="module")
def farm(lab: Lab, pair: Pair) -> FarmLab:
    farm = FarmLab(lab)
    farm.set_up(farm_config(lab))
    farm.start_all()
    return farm


def give_names(lab: Lab, moved: int = 0, lans: tuple[str, ...] = LANS) -> None:
    """/etc/hosts of every server: NODE.LAN. Those of `lans` end `moved` higher."""
    lines = ""
    for node in lab:
        for lan in LANS:
            head, _, last = node.address(lan).rpartition(".")
            lines += f"{head}.{int(last) + (moved if lan in lans else 0)} {node.name}.{lan}\n"
    for node in lab:
        node.write("/etc/hosts", node.read("/etc/hosts.before") + lines)


def cluster_xml(lab: Lab, lans: tuple[str, ...] = LANS, nodes: int = 3, more: str = "") -> str:
    """`default` has the first `nodes` servers, the other lans the first two."""
    text = ""
    for lan in lans:
        names = [node.name for node in lab][: nodes if lan == "default" else 2]
        entries = "".join(f'<node name="{name}" addr="{name}.{lan}"/>' for name in names)
        text += f'<lan name="{lan}" console="{"on" if lan == "default" else "off"}">{entries}</lan>'
    return f'<cluster><lans pulse="200">{text}{more}</lans></cluster>'


def apply(lab: Lab, xml: str) -> str:
    """cluster.xml on the first server, and from there to all that are in it; what the commands warned of."""
    one = next(iter(lab))
    one.write("/root/cluster.xml", xml)
    warned = one.safekit("cluster", "config", "/root/cluster.xml").stderr
    return warned + one.safekit("-H", "[http],*", "--insecure", "-G").stderr


def texts(pair: Pair, node: Node, since: object) -> list[str]:
    return [line.english for line in pair.log(node, since, "EI")]  # type: ignore[arg-type]


def test_names_with_other_addresses_are_followed_without_a_stop(lab: Lab, pair: Pair) -> None:
    moved = 100
    mark = pair.mark()
    for node in lab:
        for lan in ("pair", "repli", "default"):
            device = lab.plan.cable(node.name, lan).interface
            head, _, last = node.address(lan).rpartition(".")
            node.run(["ip", "addr", "add", f"{head}.{int(last) + moved}/24", "dev", device])
        node.run("echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries")
    give_names(lab, moved)
    pair.one.safekit("-H", "[http],*", "--insecure", "-G")
    for node in pair.nodes:
        for ident, lan in (("pair", "pair"), ("flow", "repli")):
            ends = [f"{n.address(lan).rpartition('.')[0]}.{int(n.address(lan).rpartition('.')[2]) + moved}"
                    for n in (node, pair.other(node))]  # fmt: skip
            pair.wait_log(node, mark, [f"Heartbeat {ident} goes from {ends[0]} to {ends[1]} now"])
        listening = node.run(["ss", "-ltnH", "sport = :5600"]).stdout
        assert ends[0] in listening, listening
    # The former addresses of the heartbeats of one network are not needed any more.
    for node in pair.nodes:
        device = lab.plan.cable(node.name, "pair").interface
        node.run(["ip", "addr", "del", f"{node.address('pair')}/24", "dev", device])
    since = time.monotonic()
    wait_until(lambda: time.monotonic() - since > 2.5, 5, "longer than the time-out of the heartbeats")
    for node in pair.nodes:
        told = texts(pair, node, mark)
        assert not [text for text in told if " set to down" in text or "ocal state" in text], told
    assert (pair.state(pair.one), pair.state(pair.two)) == ("PRIM green", "SECOND green")


def test_other_lans_are_taken_up_and_one_heartbeat_less_is_told(lab: Lab, pair: Pair) -> None:
    mark = pair.mark()
    addresses = "".join(f'<node name="{node.name}" addr="{node.address6("default")}"/>' for node in lab)
    # Another port of the membership comes along.
    more = cluster_xml(lab, more=f'<lan name="more">{addresses}</lan>').replace("<lans ", '<lans port="4900" ')
    apply(lab, more)
    for node in pair.nodes:
        ports = [bool(node.run(["ss", "-lunH", f"sport = :{port}"]).stdout) for port in (4800, 4900)]
        assert ports == [False, True]
        pair.wait_log(node, mark, ["The module goes on with another cluster configuration (nodes node1, node2, node3)"])
    mark = pair.mark()
    warned = apply(lab, cluster_xml(lab, ("default", "repli")))
    assert "module mirror goes on without the lan pair" in warned and "safekit config -m mirror" in warned
    for node in pair.nodes:
        pair.wait_log(node, mark, ["Heartbeat pair is not used: its lan pair is not in cluster.xml"])
        assert "heartbeat.pair" not in pair.resources(node)
    refused = pair.one.safekit("confcheck", "-m", "mirror", check=False)
    assert refused.returncode == 1 and '"pair" is not a lan of the cluster' in refused.stderr
    # A heart that is killed now finds the same links.
    pair.one.kill("heart")
    pair.wait_log(pair.one, mark, ["heart was restarted and takes the module over as it is: PRIM green"], levels="EI")
    assert (pair.state(pair.one), pair.state(pair.two)) == ("PRIM green", "SECOND green")
    told = [line.code for line in pair.log(pair.two, mark)]
    assert "local_state" not in told and "peer_rejected" not in told, told
    apply(lab, cluster_xml(lab))
    wait_until(lambda: pair.value(pair.one, "heartbeat.pair") == "up", 20, "the heartbeat is back")


def test_a_server_leaves_the_cluster_and_comes_back_under_a_running_farm(lab: Lab, farm: FarmLab) -> None:
    one, two, three = lab
    # Beforehand, who reads the warning: node3 runs the farm.
    one.write("/root/two.xml", cluster_xml(lab, nodes=2))
    three.safekit("stop", "-m", "farm")
    three.safekit("waitstop", "-m", "farm")
    farm.wait_sharing(one, two)
    client = farm.short(lab.vip, 80, 400, pause=0.02)
    warned = apply(lab, cluster_xml(lab, nodes=2))
    assert "node3" not in warned
    found = figures(client)
    assert not found["failed"] and set(found["found"]) == {"node1", "node2"}, found
    farm.wait_sharing(one, two)
    # Nobody lists it any more, and it is not reached by its name; it sees nobody.
    wait_until(lambda: "node3" not in one.safekit("cluster", "state").stdout, 20, "node3 is not listed")
    gone = one.safekit("-H", "node3", "level", check=False)
    assert gone.returncode == 1 and "cluster.xml has no node 'node3'" in gone.stderr
    wait_until(
        lambda: "No answer from: node1, node2" in three.safekit("cluster", "confinfo", check=False).stderr,
        20,
        "node3 sees that it is alone",
    )
    three.safekit("cluster", "deconfig")
    unusable = three.safekit("start", "-m", "farm", check=False)
    assert unusable.returncode == 1 and "safekit cluster config" in unusable.stderr
    # Back: those that run learn of it without a stop.
    one.write("/root/cluster.xml", cluster_xml(lab))
    client = farm.short(lab.vip, 80, 400, pause=0.02)
    one.safekit("cluster", "config", "/root/cluster.xml")
    one.safekit("cluster", "export", "/root/cluster.zip")
    farm.outside(three, "/root/cluster.zip").write_bytes(farm.outside(one, "/root/cluster.zip").read_bytes())
    three.safekit("cluster", "config", "/root/cluster.zip")
    one.safekit("-H", "node1,node2", "--insecure", "-G")
    three.safekit("start", "-m", "farm")
    farm.wait_sharing(one, two, three)
    found = figures(client)
    assert not found["failed"], found


def test_what_the_module_needs_is_taken_away(lab: Lab, pair: Pair) -> None:
    mark = pair.mark()
    warned = apply(lab, cluster_xml(lab, ("default", "pair")))
    assert "module mirror stops: the lan of its replication flow, repli, is not in cluster.xml" in warned
    for node in pair.nodes:
        reason = "module mirror: the lan of its replication flow, repli, is not in cluster.xml any more"
        wait_until(lambda node=node: pair.state(node) == "STOP red", 40, pair.tail)  # type: ignore[misc]
        told = texts(pair, node, mark)
        assert any("The module stops" in text and reason in text for text in told), told
        assert "Action stop called by SYSTEM" in told
    one = pair.one
    one.safekit("waitstop", "-m", "mirror")
    refused = one.safekit("start", "-m", "mirror", check=False)
    assert refused.returncode == 1 and "repli" in refused.stderr and "cluster.xml" in refused.stderr, refused

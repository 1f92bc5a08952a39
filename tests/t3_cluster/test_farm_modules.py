"""A mirror and a farm on the same servers (guide 1.5), the farm depending on the mirror (15.3); the templates of farms
as they are delivered, with the distribution's real Apache."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

import pytest
from farm import NORMAL, FarmLab, farm_config
from labs import lab_of_the_file
from pair import Pair, userconfig

from lab.cluster import Lab, Node
from lab.waiting import wait_until

VIP = """<vip><interface_list><interface check="off" arpreroute="on"><real_interface>
  <virtual_addr addr="{vip}" where="one_side_alias" check="off"/></real_interface></interface></interface_list></vip>"""
NEEDS = '<check><module name="mirror"><to addr="{vip}" interval="1" timeout="1"/></module></check>'


cluster = lab_of_the_file()


@pytest.fixture
def lab(cluster: Lab) -> Iterator[Lab]:
    """Without modules: they share the virtual address, one after the other."""
    yield cluster
    for node in cluster:
        for module in ("farm", "mirror", "apache", "generic"):
            if (Pair.outside(node, "/opt/safekit/modules") / module).exists():
                # One that could not be configured has nothing to stop.
                node.safekit("forcestop", "-m", module, check=False)
                node.safekit("waitstop", "-m", module, "--timeout", "30", check=False)
                node.safekit("module", "uninstall", "-m", module)


def other_address(lab: Lab) -> str:
    """An address beside the lab's virtual one."""
    return str(ipaddress.ip_address(lab.vip) + 10)


def test_a_farm_that_needs_a_mirror_on_the_same_servers(lab: Lab) -> None:
    database = other_address(lab)
    mirror, farm = Pair(lab), FarmLab(lab)
    mirror.install(userconfig(rfs='locktimeout="4" sendtimeout="4"', vip=VIP.format(vip=database)), number=1)
    farm.set_up(farm_config(lab, inside=NEEDS.format(vip=database)))
    mirror.begin_test()
    farm.begin_test()
    farm.expect(*NORMAL, "action_rule", "transition_rule")
    one, two = lab.node("node1"), lab.node("node2")

    # Without its database the farm waits, and goes on by itself.
    for node in (one, two):
        node.safekit("start", "-m", farm.module)
    for node in (one, two):
        farm.wait(node, "WAIT red")
    mark = farm.mark()
    mirror.first_start(one)
    resource = f"module.mirror_{database}"
    for node in (one, two):
        farm.wait(node, "UP green")
        farm.wait_log(
            node,
            mark,
            [f"Resource {resource} set to up by modulecheck", "Transition WAKEUP from failover rule Implicit_WAKEUP"],
        )
    farm.wait_sharing(one, two)
    assert set(farm.count(farm.vips[0], 80, 60)) == {"node1", "node2"}
    # Both addresses, and both kinds of state, are on the same servers.
    assert [mirror.state(node) for node in (one, two)] == ["PRIM green", "SECOND green"]
    shown = one.run(["ip", "-o", "addr"]).stdout
    assert f" {database}/" in shown and f" {farm.vips[0]}/" in shown
    assert f" {database}/" not in two.run(["ip", "-o", "addr"]).stdout

    # The server of the database dies: the mirror fails over, the farm goes on without that server.
    records = len(mirror.acknowledged(one))
    assert records > 0
    mirror.expect("failover_no_heartbeat", "previous_halt")
    farm.expect("previous_halt")
    one.poweroff()
    mirror.wait(two, "ALONE green")

    def served() -> bool:
        """The farm may have waited until its database was back."""
        return farm.state(two) == "UP green" and set(farm.count(farm.vips[0], 80, 40, limit=0.5)) == {"node2"}

    wait_until(served, 40, lambda: f"all clients are served by node2; {farm.states()}\n{farm.tail()}")
    mirror.wait_records(two, 5)
    one.poweron()
    mirror.start_stopped()
    mirror.wait_protected(two)
    farm.start_up(one)
    farm.wait_sharing(one, two)
    mirror.verify(two)

    # The database is stopped: the farm waits again on both servers.
    mark = farm.mark()
    for node in (one, two):
        node.safekit("stop", "-m", mirror.module)
    for node in (one, two):
        farm.wait(node, "WAIT red")
        farm.wait_log(node, mark, [f"Resource {resource} set to down by modulecheck"])
    for node in (one, two):
        farm.stop(node)
    mirror.check_logs()
    farm.check_logs()


def from_template(lab: Lab, template: str, module: str, **macros: str) -> FarmLab:
    """A template, installed as an administrator does, with values for its macros."""
    farm = FarmLab(lab, module)
    for node in lab:
        node.safekit("module", "install", "-m", module, f"/opt/safekit/Application_Modules/{template}.safe")
        path = f"/opt/safekit/modules/{module}/conf/userconfig.xml"
        text = node.read(path)
        for name, value in macros.items():
            text, count = re.subn(rf'(<macro name="{name}" value=")[^"]*', rf"\g<1>{value}", text)
            assert count == 1, name
        node.write(path, text)
        node.safekit("config", "-m", module)
    farm.begin_test()
    farm.expect(*NORMAL, "printi")
    return farm


def start(farm: FarmLab, *nodes: Node) -> None:
    for node in nodes:
        node.safekit("start", "-m", farm.module)
    for node in nodes:
        farm.wait(node, "UP green")
    farm.wait_sharing(*nodes)


def test_apache_as_delivered(lab: Lab) -> None:
    nodes = tuple(lab)
    farm = from_template(lab, "demo/apache_farm", "apache", VIRTUAL_IP=lab.vip, PULSE="200")
    start(farm, *nodes)
    urls = [f"http://{lab.vip}/"] * 30

    def answers() -> set[str]:
        pages = lab.client.run(["curl", "-sS", "-m5", "-H", "Connection: close", *urls]).stdout
        names = re.findall(r"<h1>(\S+)</h1>", pages)
        assert len(names) == len(urls), pages
        return set(names)

    assert answers() == {"node1", "node2"}
    header = lab.client.run(["curl", "-sSI", urls[0]]).stdout
    assert "Server: Apache" in header, header
    farm.stop(nodes[0])
    farm.wait_sharing(nodes[1])
    assert answers() == {"node2"}
    assert not nodes[0].pids("apache2") and not nodes[0].pids("httpd")
    farm.start_up(nodes[0])
    farm.wait_sharing(*nodes)
    nodes[0].safekit("restart", "-m", farm.module)
    farm.wait(nodes[0], "UP green")
    farm.wait_sharing(*nodes)
    assert answers() == {"node1", "node2"}
    for node in nodes:
        farm.stop(node)
    farm.check_logs()


def test_the_generic_farm_as_delivered(lab: Lab) -> None:
    """Its rule is for the web service of the product, whose page names the server (4.3.5)."""
    nodes = tuple(lab)
    farm = from_template(lab, "generic/farm", "generic", VIRTUAL_IP=lab.vip)
    start(farm, *nodes)
    urls = [f"http://{lab.vip}:9010/safekit/mosaic.html"] * 30
    pages = lab.client.run(["curl", "-sS", "-m5", *urls]).stdout
    assert set(re.findall(r"<title>(\S+) answers</title>", pages)) == {"node1", "node2"}
    for node in nodes:
        wait_until(lambda node=node: farm.value(node, "farm.FarmProto") == "50%", 10, f"{node.name} has told its share")  # type: ignore[misc]
    for node in nodes:
        farm.stop(node)
    farm.check_logs()

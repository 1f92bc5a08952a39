"""A load balancer in front of a mirror and of a farm, guided by their health checks (guide 13.5.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from pair import Pair
from site_scripts import END, SERVER

from lab.archive import archive
from lab.cluster import Lab, Node
from lab.waiting import wait_until

MIRROR_PORT, FARM_PORT = 7001, 7002
MIRROR = """<safe><service mode="mirror"><heart pulse="200" timeout="2000">
<heartbeat name="default"/><heartbeat name="repli"/></heart><user/></service></safe>
"""
FARM = """<safe><service mode="farm"><farm><lan name="default"/></farm><user/></service></safe>
"""
BALANCER = """
defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
  retries 3
  option redispatch
  default-server check port 9010 inter 100 fall 1 rise 1
listen mirror
  bind 127.0.0.1:8001
  option httpchk GET /var/modules/db/ready.txt
  http-check expect string OK
  server node1 {one}:7001
  server node2 {two}:7001
listen farm
  bind 127.0.0.1:8002
  option httpchk GET /var/modules/web/ready.txt
  http-check expect string OK
  server node1 {one}:7002
  server node2 {two}:7002
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up()
    try:
        one, two = made
        for number, (name, config, kind, port) in enumerate(
            (("db", MIRROR, "prim", MIRROR_PORT), ("web", FARM, "both", FARM_PORT)), 1
        ):
            scripts = {f"start_{kind}": SERVER.format(port=port), f"stop_{kind}": END.format(port=port)}
            for node in made:
                Pair.outside(node, "/root/module.safe").write_bytes(archive(config, scripts))
                node.safekit("module", "install", "-r", "-M", str(number), "-m", name, "/root/module.safe")
                node.safekit("config", "-m", name)
        made.client.write("/root/haproxy.cfg", BALANCER.format(one=one.address(), two=two.address()))
        balancer = made.client.popen(["haproxy", "-db", "-f", "/root/haproxy.cfg"])
        yield made
        balancer.kill()
        balancer.wait()
    finally:
        made.down()


def answers(lab: Lab, port: int, count: int = 20) -> Counter[str]:
    """Who answered how many of `count` requests; '' for those that failed."""
    script = f"for i in $(seq {count}); do curl -s -m 4 -f http://127.0.0.1:{port}/name || echo failed; done"
    return Counter(lab.client.run(script, timeout=60).stdout.split())


def wait_answer(lab: Lab, port: int, wanted: set[str]) -> None:
    wait_until(lambda: set(answers(lab, port, 4)) == wanted, 30, lambda: f"{wanted}; {answers(lab, port, 4)}", 0.2)


def reach(node: Node, module: str, state: str) -> None:
    node.safekit("waitstate", "-m", module, state, timeout=60)


def test_a_mirror_is_reached_where_it_is_primary(lab: Lab) -> None:
    one, two = lab
    assert set(answers(lab, 8001, 2)) == {"failed"}, "no server is ready"
    one.safekit("prim", "-m", "db")
    reach(one, "db", "ALONE")
    two.safekit("second", "-m", "db")
    reach(two, "db", "SECOND")
    wait_answer(lab, 8001, {"node1"})
    assert answers(lab, 8001) == {"node1": 20}
    one.safekit("swap", "-m", "db")
    reach(two, "db", "PRIM")
    wait_answer(lab, 8001, {"node2"})
    assert answers(lab, 8001) == {"node2": 20}
    two.poweroff()
    reach(one, "db", "ALONE")
    wait_answer(lab, 8001, {"node1"})
    assert answers(lab, 8001) == {"node1": 20}
    two.poweron()


def test_a_farm_is_balanced_over_the_servers_that_are_up(lab: Lab) -> None:
    two = lab.nodes["node2"]
    for node in lab:
        node.safekit("start", "-m", "web")
        reach(node, "web", "UP")
    wait_answer(lab, 8002, {"node1", "node2"})
    assert answers(lab, 8002) == {"node1": 10, "node2": 10}
    two.safekit("stop", "-m", "web")
    # a request that meets the server which has just stopped is tried on the other one
    assert "failed" not in answers(lab, 8002)
    wait_answer(lab, 8002, {"node1"})
    two.safekit("start", "-m", "web")
    wait_answer(lab, 8002, {"node1", "node2"})

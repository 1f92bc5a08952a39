"""A farm on two nodes: start, restart, stop, checkers (guide 4.3.1 to 4.3.3, 4.4.2, 4.4.4 for farms)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from checked import BOTH, FAST, Checked
from pair import wait_for

from lab.cluster import Lab

EXPECTED = ("action_rule", "transition_rule", "farm_membership", "farm_load", "errd_event", "stopping_loop")
FARM = """<!DOCTYPE safe>
<safe><service mode="farm">
  <farm><lan name="default"/></farm>
  <vip><interface_list><interface check="off" arpreroute="on"><virtual_interface type="vmac_directed">
    <virtual_addr addr="{vip}" where="alias" check="off"/></virtual_interface></interface></interface_list>
    <loadbalancing_list><group name="FarmProto">
      <rule port="8000" proto="tcp" filter="on_port"/></group></loadbalancing_list></vip>
  <user nicestoptimeout="5" forcestoptimeout="5"/>
  <check><tcp ident="id" when="both"><to addr="127.0.0.1" port="8000" interval="1" timeout="1"/></tcp></check>
  <failover {fast}/>
</service></safe>
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up()
    yield made
    made.down()


@pytest.fixture
def module(lab: Lab) -> Iterator[Checked]:
    made = Checked(lab)
    made.begin_test()
    made.expect(*EXPECTED)
    yield made
    for node in made.nodes:
        made.stop(node)
    made.check_logs()


def test_t4_3_start_restart_stop_and_a_closed_port(module: Checked, lab: Lab) -> None:
    one, two = module.nodes
    module.reconfigure(FARM.format(vip=lab.vip, fast=FAST), **BOTH)
    mark = module.mark()
    for node in module.nodes:
        module.start_up(node)
    for node in module.nodes:
        module.wait_log(node, mark, ["Action start called by root", "Script start_both", "Local state UP green"])
        module.wait_log(node, mark, ["farm membership: node1 node2 (group FarmProto)"])
        module.wait_log(node, mark, ["farm load: 128/256 (group FarmProto)"])
    wait_for(lambda: module.value(one, "tcp.id") == "up", 10, "the service is seen")
    mark = module.mark()
    module.stop_web(one)
    module.wait_log(
        one,
        mark,
        [
            "Resource tcp.id set to down by tcpcheck",
            "Action restart from failover rule tcp_failure",
            "Script stop_both",
            "Script start_both",
            "Local state UP green",
        ],
    )
    module.wait_log(two, mark, ["farm load: 256/256 (group FarmProto)", "farm load: 128/256 (group FarmProto)"])
    mark = module.mark()
    one.safekit("stop", "-m", module.module)
    module.wait_log(
        one, mark, ["Action stop called by root", "Script stop_both", "End of stop", "Local state STOP red"]
    )
    module.wait_log(two, mark, ["farm membership: node2 (group FarmProto)", "farm load: 256/256 (group FarmProto)"])
    refused = two.safekit("swap", "-m", module.module, check=False)
    assert refused.returncode == 1 and "mirror" in refused.stderr

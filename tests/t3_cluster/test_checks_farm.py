"""A farm on two nodes: start, restart, stop, checkers (guide 4.3.1 to 4.3.3, and 4.4 for farms)."""

from __future__ import annotations

from functools import partial

import pytest
from checked import ACTING, BOTH, FAST, SWITCH, Checked, Fault, config
from labs import lab_of_the_file

from lab.cluster import Lab
from lab.waiting import wait_until

EXPECTED = (
    *("action_rule", "transition_rule", "errd_event", "stopping_loop"),
    *("farm_membership", "farm_load", "farm_silent"),
    "config_conflict",  # the servers are configured one after the other, while the former configuration runs
)
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


lab = lab_of_the_file()


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
    wait_until(lambda: module.value(one, "tcp.id") == "up", 10, "the service is seen")
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


# Guide 4.4 for farms, each row with its common tail: three automatic actions, the fourth detection stops the module.

WAKEUP = "Transition WAKEUP from failover rule Implicit_WAKEUP"
APPLI = '<errd polltimer="5"><proc name="appli" atleast="1" action="{action}" class="both"/></errd>'
SERVICE = """<errd polltimer="1"><proc name="outer" service="yes" action="restart" class="both"/></errd>"""
TCP = '<tcp ident="id" when="{when}"><to addr="127.0.0.1" port="{port}" interval="1" timeout="1"/></tcp>'
CUSTOM = '<custom ident="id" when="{when}" exec="{program}" arg="{arg}"/>'
OUTER = "setsid /usr/bin/python3 -I -m http.server 8001 </dev/null >/dev/null 2>&1 & echo $! > /run/outer.pid"
INTERFACE = """<vip><interface_list><interface check="on" arpreroute="on"><virtual_interface type="vmac_directed">
  <virtual_addr addr="{vip}" where="alias" check="off"/></virtual_interface></interface></interface_list></vip>"""
UNIT = """[Service]
ExecStart=/bin/sleep 100000
"""


def check(inside: str) -> str:
    return f"<check>{inside}</check>"


def automatic(verb: str, who: str) -> list[str]:
    """Messages of a stopstart or restart that a program asked for."""
    begin = ["Script stop_both", "Action start called automatically"] if verb == "stopstart" else ["Script stop_both"]
    return [f"Action {verb} called by {who}", *begin, "Script start_both", "Local state UP green"]


def by_rule(verb: str, rule: str) -> list[str]:
    """Messages of a restart or stopstart of a rule."""
    begin = ["Action start called automatically"] if verb == "stopstart" else []
    transition = f"Transition {verb.upper()} from failover rule {rule}"
    return [f"Action {verb} from failover rule {rule}", transition, *begin, "Local state UP green"]


def waits(resource: str, who: str, rule: str) -> list[str]:
    """Messages of a fault that makes the module wait."""
    return [
        f"Resource {resource} set to down by {who}",
        f"Action wait from failover rule {rule}",
        f"Transition WAIT_TR from failover rule {rule}",
        "Local state WAIT red",
    ]


def wakes(resource: str, who: str) -> list[str]:
    """Messages of its repair."""
    return [f"Resource {resource} set to up by {who}", WAKEUP, "Local state UP green"]


@pytest.mark.parametrize("verb", ["restart", "stopstart"])
def test_t4_4_1_a_dead_process(module: Checked, verb: str) -> None:
    one, _ = module.nodes
    module.reconfigure(config(APPLI.format(action=verb), mode="farm"), nodes=[one], **BOTH)
    module.start_up(one)
    messages = ["event atleast on proc appli", *automatic(verb, "errd")]
    seen = partial(module.sees, one, "proc.appli")
    wait_until(seen, 20, "the process is seen")
    module.repeat(one, Fault(lambda: one.kill("appli"), messages, ready=seen), "UP green")


def test_t4_4_1_a_dead_service_of_the_service_manager(module: Checked) -> None:
    one, _ = module.nodes
    one.write("/etc/systemd/system/outer.service", UNIT)
    scripts = {"start_both": "#!/bin/sh\nsystemctl start outer\n", "stop_both": "#!/bin/sh\nsystemctl stop outer\n"}
    module.reconfigure(config(SERVICE, mode="farm"), nodes=[one], **scripts)
    module.start_up(one)
    seen = partial(module.sees, one, "proc.outer")
    wait_until(seen, 20, "the service is seen")
    messages = ["event atleast on proc outer", *automatic("restart", "errd")]
    module.repeat(one, Fault(lambda: one.run("systemctl kill outer"), messages, ready=seen), "UP green")
    assert one.run("systemctl is-active outer", check=False).stdout.strip() == "inactive", "stop_both has stopped it"


def test_t4_4_2b_a_closed_port_with_a_rule_of_the_module(module: Checked) -> None:
    one, _ = module.nodes
    text = config(
        check(TCP.format(when="both", port=8000)),
        mode="farm",
        rules="tcpid_failure: if (tcp.id == down) then stopstart();",
    )
    module.reconfigure(text, nodes=[one], **BOTH)
    module.start_up(one)
    seen = partial(module.sees, one, "tcp.id")
    wait_until(seen, 10, "the service is seen")
    messages = ["Resource tcp.id set to down by tcpcheck", *by_rule("stopstart", "tcpid_failure")]
    module.repeat(one, Fault(lambda: module.stop_web(one), messages, ready=seen), "UP green")


def test_t4_4_3_a_service_that_is_needed(module: Checked) -> None:
    one, _ = module.nodes
    text = config(
        check(TCP.format(when="pre", port=8001)),
        mode="farm",
        rules="tcpid_failure: if (tcp.id == down) then wait();",
    )
    module.reconfigure(text, nodes=[one], **BOTH)
    one.run(OUTER)
    module.start_up(one)
    fault = Fault(
        lambda: one.run("kill -9 $(cat /run/outer.pid)"),
        waits("tcp.id", "tcpcheck", "tcpid_failure"),
        lambda: one.run(OUTER),
        wakes("tcp.id", "tcpcheck"),
    )
    module.repeat(one, fault, "UP green")
    one.run("kill -9 $(cat /run/outer.pid)")


def test_t4_4_4_an_interface_without_link(module: Checked, lab: Lab) -> None:
    one, _ = module.nodes
    module.expect("vip_link", "vip_failed", "vip_not_set")
    module.reconfigure(config(INTERFACE.format(vip=lab.vip), mode="farm"), nodes=[one], **BOTH)
    module.start_up(one)
    intf = next(name for name in module.resources(one) if name.startswith("intf."))
    fault = Fault(
        lambda: one.cut("default"),
        waits(intf, "intfcheck", "interface_failure"),
        lambda: one.join("default"),
        wakes(intf, "intfcheck"),
    )
    module.repeat(one, fault, "UP green")


def test_an_address_that_is_taken_away(module: Checked, lab: Lab) -> None:
    one, _ = module.nodes
    module.expect("vip_failed", "vip_not_set", "vip_unset")
    text = INTERFACE.replace('check="on"', 'check="off"').replace('where="alias" check="off"', 'where="alias"')
    module.reconfigure(config(text.format(vip=lab.vip), mode="farm"), nodes=[one], **BOTH)
    module.start_up(one)
    seen = partial(module.sees, one, f"ip.{lab.vip}")
    wait_until(seen, 10, "the address is seen")
    messages = [f"Resource ip.{lab.vip} set to down by ipcheck", *by_rule("stopstart", "ip_failure")]
    remove = f"ip -o addr show to {lab.vip} | while read -r _ dev _ addr _; do ip addr del $addr dev $dev; done"
    module.repeat(one, Fault(lambda: one.run(remove), messages, ready=seen), "UP green")


def test_t4_4_5_a_device_that_does_not_answer(module: Checked, lab: Lab) -> None:
    one, two = module.nodes
    inside = f'<ping ident="id"><to addr="{two.address("repli")}" interval="1" timeout="1"/></ping>'
    module.reconfigure(config(check(inside), mode="farm"), nodes=[one], **BOTH)
    module.start_up(one)
    fault = Fault(
        lambda: lab.block(two, one, "repli"),
        waits("ping.id", "pingcheck", "ping_failure"),
        lambda: lab.unblock(two, one, "repli"),
        wakes("ping.id", "pingcheck"),
    )
    module.repeat(one, fault, "UP green")


def test_t4_4_6_another_module(module: Checked) -> None:
    one, _ = module.nodes
    one.safekit("webserver", "start")
    other = module.beside(one, "othermodule", config("", mode="light"))
    one.safekit("start", "-m", "othermodule")
    other.wait(one, "UP green")
    target = f'<to addr="{one.address()}" interval="1" timeout="2"/>'
    inside = f'<module name="othermodule">{target}</module>'
    module.reconfigure(config(check(inside), mode="farm"), nodes=[one], **BOTH)
    module.start_up(one)
    resource = f"module.othermodule_{one.address()}"
    fault = Fault(
        lambda: one.safekit("stop", "-m", "othermodule"),
        waits(resource, "modulecheck", "module_failure"),
        lambda: one.safekit("start", "-m", "othermodule"),
        wakes(resource, "modulecheck"),
    )
    module.repeat(one, fault, "UP green")
    other.wait(one, "UP green")
    module.start_up(one)
    fault = Fault(
        lambda: one.safekit("restart", "-m", "othermodule"),
        automatic("stopstart", "modulecheck"),
        ready=partial(module.sees, one, resource),
    )
    wait_until(fault.ready, 10, "the other module is seen")
    module.repeat(one, fault, "UP green")
    other.stop(one)


def test_t4_4_7_a_custom_checker_before_the_start(module: Checked) -> None:
    one, _ = module.nodes
    inside = CUSTOM.format(when="pre", program="customscript", arg="")
    rules = "customid_failure: if (custom.id == down) then wait();"
    module.reconfigure(config(check(inside), mode="farm", rules=rules), nodes=[one], **BOTH)
    module.start_up(one)
    fault = Fault(
        lambda: one.run(["touch", SWITCH]),
        waits("custom.id", "customscript", "customid_failure"),
        lambda: one.run(["rm", "-f", SWITCH]),
        wakes("custom.id", "customscript"),
    )
    module.repeat(one, fault, "UP green")


@pytest.mark.parametrize("verb", ["restart", "stopstart"])
def test_t4_4_8_1_a_custom_checker_with_a_rule(module: Checked, verb: str) -> None:
    one, _ = module.nodes
    inside = CUSTOM.format(when="both", program="customscript", arg="")
    rules = f"customid_failure: if (custom.id == down) then {verb}();"
    scripts = {**BOTH, "stop_both": BOTH["stop_both"].replace("#!/bin/sh\n", f"#!/bin/sh\nrm -f {SWITCH}\n")}
    module.reconfigure(config(check(inside), mode="farm", rules=rules), nodes=[one], **scripts)
    module.start_up(one)
    seen = partial(module.sees, one, "custom.id")
    wait_until(seen, 10, "the checker spoke")
    messages = ["Resource custom.id set to down by customscript", *by_rule(verb, "customid_failure")]
    module.repeat(one, Fault(lambda: one.run(["touch", SWITCH]), messages, ready=seen), "UP green")


@pytest.mark.parametrize("verb", ["restart", "stopstart"])
def test_t4_4_8_2_a_custom_checker_that_acts_itself(module: Checked, verb: str) -> None:
    one, _ = module.nodes
    inside = CUSTOM.format(when="both", program="acting", arg=verb)
    module.reconfigure(config(check(inside), mode="farm"), nodes=[one], acting=ACTING, **BOTH)
    module.start_up(one)
    seen = partial(module.sees, one, "custom.id")
    wait_until(seen, 10, "the checker spoke")
    fault = Fault(lambda: one.run(["touch", SWITCH]), automatic(verb, "customscript"), ready=seen)
    module.repeat(one, fault, "UP green")


def test_t4_4_8_2c_without_identity_it_is_an_administrator(module: Checked) -> None:
    one, _ = module.nodes
    inside = CUSTOM.format(when="both", program="acting", arg="restart")
    acting = ACTING.replace(" -i customscript; fi", "; fi")
    module.reconfigure(config(check(inside), mode="farm"), nodes=[one], acting=acting, **BOTH)
    module.start_up(one)
    begin = module.mark()
    for _ in range(5):
        wait_until(partial(module.sees, one, "custom.id"), 10, "the checker spoke")
        mark = module.mark()
        one.run(["touch", SWITCH])
        module.wait_log(one, mark, automatic("restart", "root"))
    assert not any(line.code == "stopping_loop" for line in module.log(one, begin))

"""Guide 4.4 on two nodes: errors that checkers and errd see, what is done, and the messages in their order."""

from __future__ import annotations

import time

import pytest
from checked import ACTING, BOTH, SWITCH, Checked, config
from labs import lab_of_the_file
from pair import assert_in_order

from lab.cluster import Lab
from lab.waiting import wait_until

APPLI = '<errd polltimer="5"><proc name="appli" atleast="1" action="{action}" class="{when}"/></errd>'
TCP = """<check><tcp ident="id" when="{when}">
  <to addr="127.0.0.1" port="8000" interval="1" timeout="1"/></tcp></check>"""
CUSTOM = '<check><custom ident="id" when="{when}" exec="customscript" arg="{arg}"/></check>'
EXPECTED = ("action_rule", "transition_rule", "errd_event", "stopping_loop", "failover_no_heartbeat")


lab = lab_of_the_file()


def test_t4_4_1a_a_dead_process_restarts_the_application(module: Checked) -> None:
    one, two = module.nodes
    module.reconfigure(config(APPLI.format(action="restart", when="prim")))
    module.start(one, two)
    mark = module.mark()
    begin = time.monotonic()
    one.kill("appli")
    messages = ["event atleast on proc appli", "Action restart called by errd", "Script stop_prim", "Script start_prim"]
    module.wait_log(one, mark, [*messages, "Local state PRIM green"])
    assert time.monotonic() - begin < 5.0, "a death is seen by event, not by the poll"
    assert module.state(two) == "SECOND green"


def test_t4_4_1b_a_dead_process_with_stopstart_fails_over(module: Checked) -> None:
    one, two = module.nodes
    module.reconfigure(config(APPLI.format(action="stopstart", when="prim")))
    module.start(one, two)
    mark = module.mark()
    one.kill("appli")
    module.wait(two, "PRIM green")
    module.wait(one, "SECOND green")
    module.wait_log(
        one,
        mark,
        ["event atleast on proc appli", "Action stopstart called by errd", "Action start called automatically"],
    )


@pytest.mark.parametrize("mode", ["mirror", "light"])
def test_t4_4_2a_a_port_that_is_closed_restarts_until_the_loop_is_stopped(module: Checked, mode: str) -> None:
    one, _ = module.nodes
    when, state = ("prim", "ALONE green") if mode == "mirror" else ("both", "UP green")
    scripts = {} if mode == "mirror" else BOTH
    module.reconfigure(config(TCP.format(when=when), mode=mode), nodes=[one], **scripts)
    module.start(one) if mode == "mirror" else module.start_up(one)
    wait_until(lambda: module.value(one, "tcp.id") == "up", 10, "the service is seen")
    mark = module.mark()
    module.stop_web(one)
    messages = ["Resource tcp.id set to down by tcpcheck", "Action restart from failover rule tcp_failure"]
    module.wait_log(one, mark, [*messages, f"Local state {state}", "Resource tcp.id set to up by tcpcheck"])
    module.loops(one, "kill -9 $(cat /run/web.pid); sleep 2.5", state, times=2)


def test_t4_4_2b_a_rule_of_the_module_comes_first(module: Checked) -> None:
    one, two = module.nodes
    module.reconfigure(config(TCP.format(when="prim"), rules="tcpid_failure: if (tcp.id == down) then stopstart();"))
    module.start(one, two)
    wait_until(lambda: module.value(one, "tcp.id") == "up", 10, "the service is seen")
    mark = module.mark()
    module.stop_web(one)
    module.wait_log(
        one,
        mark,
        [
            "Resource tcp.id set to down by tcpcheck",
            "Action stopstart from failover rule tcpid_failure",
            "Transition STOPSTART from failover rule tcpid_failure",
            "Action start called automatically",
            "Local state SECOND green",
        ],
    )
    module.wait(two, "PRIM green")


def test_t4_4_3_a_service_that_is_needed_makes_the_module_wait(module: Checked) -> None:
    one, two = module.nodes
    service = "setsid /usr/bin/python3 -I -m http.server 8001 </dev/null >/dev/null 2>&1 & echo $! > /run/outer.pid"
    for node in module.nodes:
        node.run(service)
    inside = TCP.format(when="pre").replace("8000", "8001")
    module.reconfigure(config(inside, rules="tcpid_failure: if (tcp.id == down) then wait();"))
    module.start(one, two)
    mark = module.mark()
    one.run("kill -9 $(cat /run/outer.pid)")
    module.wait_log(
        one,
        mark,
        ["Resource tcp.id set to down by tcpcheck", "Action wait from failover rule tcpid_failure",
         "Local state WAIT red"],
    )  # fmt: skip
    module.wait(two, "ALONE green")
    mark = module.mark()
    one.run(service)
    module.wait_log(
        one,
        mark,
        ["Resource tcp.id set to up by tcpcheck", "Transition WAKEUP from failover rule Implicit_WAKEUP",
         "Local state SECOND green"],
    )  # fmt: skip
    for node in module.nodes:
        node.run("kill -9 $(cat /run/outer.pid)")


def test_t4_4_4_an_interface_without_link(module: Checked, lab: Lab) -> None:
    one, two = module.nodes
    vip = f"""<vip><interface_list><interface check="on" arpreroute="on"><real_interface>
      <virtual_addr addr="{lab.vip}" where="one_side_alias" check="off"/></real_interface></interface>
      </interface_list></vip>"""
    module.reconfigure(config(vip))
    module.expect("vip_link", "vip_failed", "vip_not_set")
    module.start(one, two)
    intf = next(name for name in module.resources(one) if name.startswith("intf."))
    mark = module.mark()
    one.cut("default")
    module.wait_log(
        one,
        mark,
        [
            f"Resource {intf} set to down by intfcheck",
            "Action wait from failover rule interface_failure",
            "Transition WAIT_TR from failover rule interface_failure",
            "Local state WAIT red",
        ],
    )
    module.wait(two, "ALONE green")
    mark = module.mark()
    one.join("default")
    module.wait_log(
        one,
        mark,
        [f"Resource {intf} set to up by intfcheck", "Transition WAKEUP from failover rule Implicit_WAKEUP",
         "Local state SECOND green"],
    )  # fmt: skip


def test_t4_4_5_a_device_that_does_not_answer(module: Checked, lab: Lab) -> None:
    one, two = module.nodes
    inside = f"""<check><ping ident="id"><to addr="{two.address("repli")}" interval="1" timeout="1"/></ping></check>"""
    module.reconfigure(config(inside))
    module.start(one, two)
    mark = module.mark()
    lab.block(two, one, "repli")
    module.wait_log(
        one,
        mark,
        ["Resource ping.id set to down by pingcheck", "Action wait from failover rule ping_failure",
         "Local state WAIT red"],
    )  # fmt: skip
    mark = module.mark()
    lab.unblock(two, one, "repli")
    module.wait_log(
        one,
        mark,
        ["Resource ping.id set to up by pingcheck", "Transition WAKEUP from failover rule Implicit_WAKEUP",
         "Local state SECOND green"],
    )  # fmt: skip


def test_t4_4_7_a_custom_checker_before_the_start(module: Checked) -> None:
    one, two = module.nodes
    module.reconfigure(
        config(CUSTOM.format(when="pre", arg=""), rules="customid_failure: if (custom.id == down) then wait();")
    )
    module.start(one, two)
    mark = module.mark()
    with module.switched(one):
        module.wait_log(
            one,
            mark,
            [
                "Resource custom.id set to down by customscript",
                "Action wait from failover rule customid_failure",
                "Transition WAIT_TR from failover rule customid_failure",
                "Local state WAIT red",
            ],
        )
        module.wait(two, "ALONE green")
        mark = module.mark()
    module.wait_log(
        one,
        mark,
        ["Resource custom.id set to up by customscript", "Transition WAKEUP from failover rule Implicit_WAKEUP",
         "Local state SECOND green"],
    )  # fmt: skip


@pytest.mark.parametrize(("verb", "transition"), [("restart", "RESTART"), ("stopstart", "STOPSTART")])
def test_t4_4_8_1_a_custom_checker_with_a_rule(module: Checked, verb: str, transition: str) -> None:
    one, _ = module.nodes
    rules = f"customid_failure: if (custom.id == down) then {verb}();"
    module.reconfigure(config(CUSTOM.format(when="prim", arg=""), rules=rules), nodes=[one])
    module.start(one)
    wait_until(lambda: module.value(one, "custom.id") == "up", 10, "the checker spoke")
    mark = module.mark()
    with module.switched(one):
        module.wait_log(
            one,
            mark,
            [
                "Resource custom.id set to down by customscript",
                f"Action {verb} from failover rule customid_failure",
                f"Transition {transition} from failover rule customid_failure",
                *(["Action start called automatically"] if verb == "stopstart" else []),
                "Stopping loop",
                "Local state STOP red",
            ],
            timeout=60,
        )
    wanted = f"Action {verb} from failover rule customid_failure"
    actions = [line for line in module.log(one, mark) if line.english == wanted]
    assert len(actions) == 4, "three actions, and the fourth detection stops the loop"


@pytest.mark.parametrize("verb", ["restart", "stopstart"])
def test_t4_4_8_2_a_custom_checker_that_acts_itself(module: Checked, verb: str) -> None:
    one, _ = module.nodes
    module.reconfigure(config(CUSTOM.format(when="prim", arg=verb)), nodes=[one], customscript=ACTING)
    module.start(one)
    mark = module.mark()
    one.run(["touch", SWITCH])
    after = ["Action start called automatically"] if verb == "stopstart" else []
    module.wait_log(one, mark, [f"Action {verb} called by customscript", *after, "Local state ALONE green"])
    module.loops(one, f"touch {SWITCH}; sleep 1", "ALONE green", times=2)


def test_t4_4_8_2c_without_identity_it_is_an_administrator(module: Checked) -> None:
    one, _ = module.nodes
    module.reconfigure(config(""), nodes=[one])
    module.start(one)
    mark = module.mark()
    for _ in range(5):
        one.safekit("restart", "-m", module.module)
        module.wait(one, "ALONE green")
    lines = module.log(one, mark)
    assert_in_order(lines, ["Action restart called by root"] * 5)
    assert not any(line.english == "Stopping loop" for line in lines)


def test_a_module_waits_for_a_checker_that_has_not_spoken(module: Checked) -> None:
    one, _ = module.nodes
    silent = "#!/bin/sh\nsleep 1000\n"
    text = config(CUSTOM.format(when="pre", arg=""), rules="c: if (custom.id == down) then wait();")
    module.reconfigure(text, nodes=[one], customscript=silent)
    one.safekit("start", "-m", module.module)
    wait_until(lambda: module.value(one, "heartbeat.default") == "down", 15, "the start has listened")
    time.sleep(1.0)
    assert module.state(one) == "WAIT magenta" and module.value(one, "custom.id") == "init"
    one.safekit("set", "-m", module.module, "-r", "custom.id", "-v", "up", "-i", "me")
    module.wait(one, "ALONE green")


def test_checker_off_and_on(module: Checked) -> None:
    one, _ = module.nodes
    module.reconfigure(config(TCP.format(when="prim")), nodes=[one])
    module.start(one)
    wait_until(lambda: module.value(one, "tcp.id") == "up", 10, "the service is seen")
    one.safekit("checker", "off", "-m", module.module)
    wait_until(lambda: module.value(one, "tcp.id") == "init", 10, "the checker is off")
    assert one.pids("tcpcheck") == []
    mark = module.mark()
    module.stop_web(one)
    time.sleep(2.5)
    assert module.state(one) == "ALONE green" and not module.log(one, mark)
    one.safekit("checker", "on", "-m", module.module)
    messages = ["Resource tcp.id set to down by tcpcheck", "Action restart from failover rule tcp_failure"]
    module.wait_log(one, mark, messages)
    module.wait(one, "ALONE green")


@pytest.mark.slow
def test_t4_4_2a_with_the_default_timings(module: Checked) -> None:
    """interval 10 s, timeout 5 s, period 5 s, handle_time 15 s: the glitch of ten seconds is forgotten, the fault
    that stays restarts the application."""
    one, _ = module.nodes
    inside = '<check><tcp ident="id" when="prim"><to addr="127.0.0.1" port="8000"/></tcp></check>'
    module.reconfigure(config(inside, failover=""), nodes=[one])
    module.start(one)
    wait_until(lambda: module.value(one, "tcp.id") == "up", 20, "the service is seen")
    again = "setsid /usr/bin/python3 -I -m http.server 8000 --bind 127.0.0.1 </dev/null >/dev/null 2>&1 & "
    mark = module.mark()
    module.stop_web(one)
    module.wait_log(one, mark, ["Resource tcp.id set to down by tcpcheck"], timeout=12)
    one.run(again + "echo $! > /run/web.pid")
    module.wait_log(one, mark, ["Resource tcp.id set to up by tcpcheck"], timeout=12)
    time.sleep(8.0)
    assert not any(line.code == "action_rule" for line in module.log(one, mark))
    begin = time.monotonic()
    module.stop_web(one)
    module.wait_log(one, mark, ["Action restart from failover rule tcp_failure"], timeout=10 + 5 + 15 + 5)
    assert time.monotonic() - begin > 15.0, "handle_time was kept"
    module.wait(one, "ALONE green")

"""Checkers with the default timings of guide 4.4 (interval 10 s, timeout 5 s, period 5 s, handle_time 15 s), and for
ten minutes on a machine that has no time for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from burners import saturated
from checked import BOTH, EVERY_CHECKER, SWITCH, Checked, config
from labs import lab_of_the_file
from pair import in_order

from lab.cluster import Lab, Node
from lab.waiting import wait_until

pytestmark = pytest.mark.slow
SOAK_SECONDS = 600
HANDLE, PERIOD, INTERVAL, TIMEOUT = 15.0, 5.0, 10.0, 5.0
SLACK = 5.0
"""For a busy machine."""
WAKEUP = "Transition WAKEUP from failover rule Implicit_WAKEUP"
OUTER = "setsid /usr/bin/python3 -I -m http.server 8001 </dev/null >/dev/null 2>&1 & echo $! > /run/outer.pid"
APPLI = """#!/bin/sh
cp -f /bin/sleep /var/tmp/other
setsid /var/tmp/other 100000 </dev/null >/dev/null 2>&1 &
"""


lab = lab_of_the_file()


@dataclass(frozen=True)
class Row:
    """A module of its own with one checker, how to break what it looks at, and what is done."""

    name: str
    inside: str
    resource: str
    who: str
    action: str
    rule: str
    fail: Callable[[], object]
    mend: Callable[[], object] = lambda: None
    own: str = ""


def rows(lab: Lab, node: Node, peer: Node) -> tuple[Row, ...]:
    def check(text: str) -> str:
        return f"<check>{text}</check>"

    module = f'<module name="other"><to addr="{node.address()}"/></module>'
    wait, again = "if ({0} == down) then wait();", "if ({0} == down) then restart();"
    return (
        Row("mtcp", check('<tcp ident="id" when="pre"><to addr="127.0.0.1" port="8001"/></tcp>'), "tcp.id", "tcpcheck",
            "wait", "tcpid_failure", lambda: node.run("kill -9 $(cat /run/outer.pid)"), lambda: node.run(OUTER),
            "tcpid_failure: " + wait.format("tcp.id")),
        Row("mping", check(f'<ping ident="id"><to addr="{peer.address()}"/></ping>'), "ping.id", "pingcheck",
            "wait", "ping_failure", lambda: lab.block(peer, node, "default"),
            lambda: lab.unblock(peer, node, "default")),
        Row("mintf", check(f'<intf ident="id"><to local_addr="{node.address("repli")}"/></intf>'), "intf.id",
            "intfcheck", "wait", "interface_failure", lambda: node.cut("repli"), lambda: node.join("repli")),
        Row("mcustom", check('<custom ident="id" when="both" exec="customscript"/>'), "custom.id", "customscript",
            "restart", "customid_failure", lambda: node.run(["touch", SWITCH]), lambda: node.run(["rm", "-f", SWITCH]),
            "customid_failure: " + again.format("custom.id")),
        Row("mmodule", check(module), f"module.other_{node.address()}", "modulecheck", "wait", "module_failure",
            lambda: node.safekit("stop", "-m", "other"), lambda: node.safekit("start", "-m", "other")),
    )  # fmt: skip


def test_every_checker_with_the_default_timings(lab: Lab) -> None:
    """All faults at the same time, each seen by a module of its own."""
    node, peer = lab.node("node1"), lab.node("node2")
    node.safekit("webserver", "start")
    other = Checked.beside(node, "other", config("", mode="light"))
    other.start_up(node)
    node.run(OUTER)
    faults = [(row, _install(node, row)) for row in rows(lab, node, peer)]
    for row, module in faults:
        module.start_up(node)
        wait_until(lambda row=row, module=module: module.sees(node, row.resource), 30, row.name)  # type: ignore[misc]
    marks = {row.name: module.mark() for row, module in faults}
    for row, _ in faults:
        row.fail()
    begin = time.monotonic()
    for row, module in faults:
        transition = {"wait": "WAIT_TR", "restart": "RESTART"}[row.action]
        wanted = [
            f"Resource {row.resource} set to down by {row.who}",
            f"Action {row.action} from failover rule {row.rule}",
            f"Transition {transition} from failover rule {row.rule}",
        ]
        limit = begin + INTERVAL + TIMEOUT + HANDLE + PERIOD + SLACK - time.monotonic()
        module.wait_log(node, marks[row.name], wanted, max(limit, 1.0))
        lines = module.log(node, marks[row.name])
        at = {line.english: line.date for line in lines}
        assert in_order(lines, wanted) == "" and _seconds(at[wanted[0]], at[wanted[1]]) >= HANDLE - 0.1, row.name
    for row, _ in faults:
        row.mend()
    for row, module in faults:
        module.wait(node, "UP green", INTERVAL + TIMEOUT + HANDLE + PERIOD + SLACK)
        if row.action == "wait":
            again = [f"Resource {row.resource} set to up by {row.who}", WAKEUP]
            assert in_order(module.log(node, marks[row.name]), again) == ""
        module.stop(node)
    other.stop(node)
    node.run("kill -9 $(cat /run/outer.pid)")


def test_process_death_with_the_default_timings(lab: Lab) -> None:
    node = lab.node("node1")
    errd = '<errd><proc name="other" action="restart" class="both"/></errd>'
    scripts = {"start_both": APPLI, "stop_both": "#!/bin/sh\npkill -9 -x other\nexit 0\n"}
    module = Checked.beside(node, "merrd", config(errd, mode="light", failover=""), **scripts)
    module.start_up(node)
    wait_until(lambda: module.sees(node, "proc.other"), 60, "the process is seen")
    mark = module.mark()
    node.kill("other")
    module.wait_log(node, mark, ["event atleast on proc other", "Action restart called by errd",
                                 "Local state UP green"], 35.0)  # fmt: skip
    module.stop(node)


def _install(node: Node, row: Row) -> Checked:
    text = config(row.inside, mode="light", failover="", rules=row.own)
    return Checked.beside(node, row.name, text, customscript=BOTH["customscript"])


def _seconds(begin: str, end: str) -> float:
    """Between two dates of the log."""
    from datetime import datetime

    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def test_a_saturated_machine_is_no_fault(lab: Lab) -> None:
    """Ten minutes with checkers at one second: nothing is done, because nothing happens."""
    node, peer = lab.node("node1"), lab.node("node2")
    extra = "10.123.0.9"
    node.run(f"ip addr add {extra}/32 dev lo")
    inside = EVERY_CHECKER.format(peer=peer.address(), own=node.address("repli"), extra=extra)
    module = Checked.beside(node, "soak", config(inside, mode="light"), **BOTH)
    module.start_up(node)
    seen = ("tcp.t", "ping.p", "intf.i", "ip.a", "custom.c", "proc.appli")
    wait_until(lambda: all(module.sees(node, name) for name in seen), 40, "all is seen")
    mark = module.mark()
    end = time.monotonic() + SOAK_SECONDS
    with saturated():
        while time.monotonic() < end:
            time.sleep(5.0)
    lines = module.log(node, mark)
    changed = [f"{line.date} {line.english}" for line in lines if line.code == "resource_set"]
    print(f"{SOAK_SECONDS} s, load {os.getloadavg()}: {len(changed)} changes of resources {changed}")
    actions = [line.english for line in lines if line.code not in ("resource_set",)]
    assert actions == [] and module.state(node) == "UP green"
    module.stop(node)

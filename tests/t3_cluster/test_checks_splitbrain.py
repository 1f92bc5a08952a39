"""A split brain with a witness (guide 13.17, T7.9), and the death of the checkers' and errd's processes (M5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import checked
import pytest
from checked import Checked

from lab.cluster import Lab
from lab.waiting import wait_until

EXPECTED = (
    *("action_rule", "transition_rule", "failover_no_heartbeat", "errd_event", "process_died", "stopping_loop"),
    "witness_wait",
)
RESTARTED = ["event atleast on proc appli", "Action restart called by errd", "Local state ALONE green"]

LANS = ("pair", "pairrepli")
"""Of the two servers of the module: the third one is a witness."""
config = partial(checked.config, lans=LANS)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up(nodes=3)
    share_lans_of_two(made)
    yield made
    made.down()


def share_lans_of_two(lab: Lab) -> None:
    """The cluster of three servers gets lans of two of them, on the same networks."""
    text = ""
    for name, lan, count in (("default", "default", 3), ("repli", "repli", 3), ("pair", "default", 2),
                             ("pairrepli", "repli", 2)):  # fmt: skip
        members = (f'<node name="{node.name}" addr="{node.address(lan)}"/>' for node in list(lab)[:count])
        text += f'<lan name="{name}" console="{"off" if name in LANS else "on"}">{"".join(members)}</lan>'
    first, *others = list(lab)
    first.write("/root/cluster.xml", f"<cluster><lans>{text}</lans></cluster>")
    first.safekit("cluster", "config", "/root/cluster.xml")
    first.safekit("cluster", "export", "/root/cluster.zip")
    for node in others:
        Checked.outside(node, "/root/cluster.zip").write_bytes(Checked.outside(first, "/root/cluster.zip").read_bytes())
        node.safekit("cluster", "config", "/root/cluster.zip")


def witness(lab: Lab, kind: str = "ping") -> str:
    """The client of the lab stands for the witness: it is on the network of the users. Or the third server does."""
    address = lab.client.address()
    arg = {"ping": address, "http": f"http://{address}:8099/alive?x=1", "node": "node3"}[kind]
    return config(f'<check><splitbrain ident="witness" exec="{kind}" arg="{arg}"/></check>')


@pytest.fixture(scope="module")
def web(lab: Lab) -> Iterator[None]:
    """An URL on the client that answers."""
    lab.client.run("mkdir -p /tmp/web && touch /tmp/web/alive")
    serve = "setsid /usr/bin/python3 -I -m http.server -d /tmp/web 8099 </dev/null >/dev/null 2>&1 & echo $!"
    pid = lab.client.run(serve).stdout.strip()
    yield
    lab.client.run(["kill", pid])


@pytest.mark.parametrize(("loser", "kind"), [("PRIM", "ping"), ("SECOND", "ping"), ("PRIM", "http"), ("PRIM", "node")])
def test_t7_9_the_side_without_the_witness_waits(module: Checked, lab: Lab, web: None, loser: str, kind: str) -> None:
    one, two = module.nodes
    module.reconfigure(witness(lab, kind))
    module.start(one, two)
    for node in module.nodes:
        wait_until(lambda node=node: module.value(node, "splitbrain.witness") == "up", 10, "the witness answers")  # type: ignore[misc]
    lost, kept = (one, two) if loser == "PRIM" else (two, one)
    mark = module.mark()
    lost.cut("default")
    lost.cut("repli")
    module.wait_log(
        lost,
        mark,
        [
            "Resource splitbrain.uptodate set to down by splitbraincheck",
            "Action wait from failover rule splitbrain_failure",
            "Transition WAIT_TR from failover rule splitbrain_failure",
            "Local state WAIT red",
        ],
        timeout=40,
    )
    module.wait(kept, "ALONE green")
    assert module.value(kept, "splitbrain.uptodate") == "up"
    mark = module.mark()
    lost.join("default")
    lost.join("repli")
    module.wait_log(
        lost,
        mark,
        [
            "Resource splitbrain.uptodate set to up by splitbraincheck",
            "Transition WAKEUP from failover rule Implicit_WAKEUP",
            "Local state SECOND green",
        ],
        timeout=40,
    )
    module.wait(kept, "PRIM green")


def test_a_lost_witness_alone_changes_nothing(module: Checked, lab: Lab) -> None:
    one, two = module.nodes
    module.reconfigure(witness(lab))
    module.start(one, two)
    wait_until(lambda: module.value(one, "splitbrain.witness") == "up", 10, "the witness answers")
    lab.block("client", one, "default")
    wait_until(lambda: module.value(one, "splitbrain.witness") == "down", 30, "the loss is seen")
    assert module.state(one) == "PRIM green" and module.value(one, "splitbrain.uptodate") == "up"
    lab.unblock("client", one, "default")


def test_killed_checkers_and_errd_are_back_and_the_gap_is_told(module: Checked) -> None:
    one, _ = module.nodes
    inside = """<errd polltimer="30"><proc name="appli" action="restart" class="prim"/></errd>
      <check><tcp ident="id" when="prim"><to addr="127.0.0.1" port="8000" interval="1" timeout="1"/></tcp></check>"""
    module.reconfigure(config(inside), nodes=[one])
    module.start(one)
    wait_until(lambda: module.value(one, "tcp.id") == "up" and module.value(one, "proc.appli") == "up", 10, "seen")
    for process in ("tcpcheck", "errd"):
        mark = module.mark()
        one.kill(process)
        name = r"tcpcheck\.id" if process == "tcpcheck" else process
        died = re.compile(rf"Process {name} \(pid \d+\) died: terminated by SIGKILL; it is started again")
        again = re.compile(rf"Process {name} runs again \(pid \d+\) after [\d.]+ s without it")
        module.wait_log(one, mark, [died, again], levels="EI")
        wait_until(lambda process=process: one.pids(process), 5, f"{process} runs again")  # type: ignore[misc]
        assert module.state(one) == "ALONE green"
    mark = module.mark()
    one.kill("appli")
    module.wait_log(one, mark, RESTARTED)


def test_a_killed_heart_adopts_its_checkers(module: Checked) -> None:
    one, _ = module.nodes
    target = '<to addr="127.0.0.1" port="8000" interval="1" timeout="1"/>'
    inside = f"""<errd><proc name="appli" action="restart" class="prim"/></errd>
      <check><tcp ident="id" when="prim">{target}</tcp><custom ident="c" when="pre" exec="customscript"/></check>"""
    rules = "c: if (custom.c == down) then wait();"
    module.reconfigure(config(inside, rules=rules), nodes=[one])
    module.start(one)
    wait_until(lambda: module.value(one, "tcp.id") == "up" and module.value(one, "proc.appli") == "up", 10, "seen")
    before = (one.pids("tcpcheck"), one.pids("customcheck"), one.pids("errd"))
    mark = module.mark()
    one.kill("heart")
    module.wait_log(one, mark, ["heart was restarted and takes the module over as it is: ALONE green"], levels="EI")
    assert module.value(one, "custom.c") == "up" and module.value(one, "tcp.id") == "up"
    assert (one.pids("tcpcheck"), one.pids("customcheck"), one.pids("errd")) == before, "nothing else was touched"
    mark = module.mark()
    module.stop_web(one)
    module.wait_log(one, mark, ["Action restart from failover rule tcp_failure", "Local state ALONE green"])
    mark = module.mark()
    one.kill("tcpcheck")
    died = re.compile(r"Process tcpcheck\.id .* died: terminated by SIGKILL; it is started again")
    module.wait_log(one, mark, [died])
    with module.switched(one):
        module.wait_log(one, mark, ["Action wait from failover rule c", "Local state WAIT red"])
        mark = module.mark()
        one.kill("heart")
        module.wait_log(one, mark, ["heart was restarted and takes the module over as it is: WAIT red"], levels="EI")
    module.wait(one, "ALONE green")


def test_suspended_and_other_classes(module: Checked) -> None:
    one, _ = module.nodes
    inside = """<errd polltimer="2"><proc name="appli" action="restart" class="prim"/>
      <proc name="extra" action="handler" class="extras"/></errd>"""
    handler = """#!/bin/sh
"$SAFE/safekit" printe "the handler of extra"
"$SAFE/safekit" errd disable extras
exit 0
"""
    module.reconfigure(config(inside), nodes=[one], handler=handler)
    module.expect("printe")
    module.start(one)
    wait_until(lambda: module.value(one, "proc.appli") == "up", 10, "appli is seen")
    one.safekit("errd", "suspend", "-m", module.module)
    mark = module.mark()
    listed = one.safekit("kill", "-m", module.module, "-name=appli", "-level=test").stdout
    assert "/var/tmp/appli 100000" in listed and "1 processes" in listed
    one.safekit("kill", "-m", module.module, "-name=appli", "-level=terminate")
    assert one.pids("appli") == []
    one.run("sleep 3")
    assert not module.log(one, mark), "suspended: nothing is done"
    one.safekit("errd", "resume", "-m", module.module)
    module.wait_log(one, mark, RESTARTED)
    one.run("cp /bin/sleep /var/tmp/extra; setsid /var/tmp/extra 100 </dev/null >/dev/null 2>&1 &")
    one.safekit("errd", "enable", "extras", "-m", module.module)
    wait_until(lambda: module.value(one, "proc.extra") == "up", 10, "extra is seen")
    mark = module.mark()
    one.safekit("kill", "-m", module.module, "-name=extra", "-level=9")
    module.wait_log(one, mark, ["event atleast on proc extra", "the handler of extra"])
    assert module.state(one) == "ALONE green"
    assert "class=safekit" in one.safekit("errd", "list", "-m", module.module).stdout
    one.safekit("-r", "errdpoll_running")
    assert "safesupervisord" in one.read("/var/safekit/errdpoll_reserrd")


def test_a_dynamic_configuration_changes_checkers_and_errd(module: Checked) -> None:
    one, _ = module.nodes
    module.reconfigure(config(""), nodes=[one])
    module.start(one)
    new = config(
        """<errd><proc name="appli" action="restart" class="prim"/></errd>
        <check><tcp ident="id" when="prim"><to addr="127.0.0.1" port="8000" interval="1" timeout="1"/></tcp></check>"""
    )
    one.write(f"/opt/safekit/modules/{module.module}/conf/userconfig.xml", new)
    one.safekit("config", "-m", module.module)
    wait_until(lambda: module.value(one, "tcp.id") == "up" and module.value(one, "proc.appli") == "up", 15, "new")
    mark = module.mark()
    module.stop_web(one)
    module.wait_log(one, mark, ["Action restart from failover rule tcp_failure", "Local state ALONE green"])
    one.write(f"/opt/safekit/modules/{module.module}/conf/userconfig.xml", config(""))
    one.safekit("config", "-m", module.module)
    wait_until(lambda: not one.pids("tcpcheck") and not one.pids("errd"), 10, "both are gone")
    assert "tcp.id" not in module.resources(one)
    one.write(
        f"/opt/safekit/modules/{module.module}/conf/userconfig.xml",
        config("", rules="x: if (custom.x == down) then stop();"),
    )
    refused = one.safekit("config", "-m", module.module, check=False)
    assert refused.returncode != 0 and "failover" in refused.stderr and module.state(one) == "ALONE green"

"""One server runs the application, and it is the one with the newest data: on two nodes, end to end.

A primary whose cable comes back listens before it decides; of two servers that a witness tells apart, the loser has
stopped before the winner starts; a server that was set back to a snapshot overwrites nothing by itself; commands reach
the module that they name, in a row and with few ports. One lab; each test installs the module as it needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from labs import lab_of_the_file
from pair import BACKING, DIRECTORY, MODULE, VAR, Pair, userconfig

from lab.cluster import Lab, Node
from lab.waiting import wait_until

VIP = """<vip><interface_list><interface check="{check}" arpreroute="on"><real_interface>
  <virtual_addr addr="{addr}" where="one_side_alias" check="{check}"/>
  </real_interface></interface></interface_list></vip>"""
ONE_HEARTBEAT = """<!DOCTYPE safe>
<safe>
 <service mode="mirror" defaultprim="alone">
  <heart pulse="700" timeout="3000"><heartbeat name="default" ident="flow"/></heart>
  <rfs async="second"><replicated dir="{directory}" mode="read_only"/></rfs>
  {vip}
  <user nicestoptimeout="10" forcestoptimeout="10" logging="userlog"/>
 </service>
</safe>
"""
"""As the template has it: the interface is looked at, and heart's time-out is far below handle_time (15 s)."""
WITNESS = '<check><splitbrain ident="w" exec="ping" arg="{addr}"/></check>'
APPLICATION, ADDRESS = "/var/tmp/application", "/var/tmp/address"
"""Files of a node, with the times (Unix, seconds) at which its application ran, and had the virtual address."""
START = """#!/bin/bash
setsid bash -c 'while sleep 0.05; do date +%s.%N >>{application}; done' </dev/null >/dev/null 2>&1 &
echo $! >/run/application.pid
"""
STOP = """#!/bin/bash
[ "$1" = force ] || {kindly}
[ -f /run/application.pid ] && kill -9 "$(cat /run/application.pid)" 2>/dev/null
rm -f /run/application.pid
exit 0
"""
LOOK = 'for i in $(seq 900); do ip -o addr | grep -q " {addr}/" && date +%s.%N >>{file}; sleep 0.05; done'
ROUNDS = 2
ROW = 8


lab = lab_of_the_file()


@pytest.fixture
def pair(lab: Lab) -> Iterator[Pair]:
    """The module; what a test before left is stopped and removed."""
    made = Pair(lab)
    for node in made.nodes:
        node.safekit("stop", "-m", made.module, check=False)
        node.safekit("waitstop", "-m", made.module, "--timeout", "60", check=False)
        node.safekit("module", "uninstall", "-m", made.module, check=False)
    made.begin_test()
    made.expect("failover_no_heartbeat", "action_rule", "transition_rule")
    yield made
    made.check_logs()


def test_a_primary_whose_cable_comes_back_listens_and_follows_the_one_that_served(pair: Pair) -> None:
    """It has left the application with its interface, and the other server has acknowledged records since. What it
    wrote before it left is given up, kept, and told."""
    pair.expect(
        "served_elsewhere", "advice_served", "quarantined", "reintegration_overwrites", "reintegration_lost_file"
    )
    pair.install(ONE_HEARTBEAT.format(directory=DIRECTORY, vip=VIP.format(addr=pair.lab.vip, check="on")))
    pair.first_start(pair.one)
    for number in range(ROUNDS):
        prim = pair.one if number % 2 == 0 else pair.two
        other = pair.other(prim)
        pair.wait_records(prim, 10)
        pair.forget_records()
        prim.cut("default")
        pair.wait(other, "ALONE green")
        pair.wait(prim, "WAIT red", 60)
        pair.wait_records(other, 10)
        mark = pair.mark()
        prim.join("default")
        pair.wait_protected(other)
        for node, never in ((prim, ("ALONE", "PRIM")), (other, ("WAIT", "STOP", "SECOND"))):
            said = [line.english for line in pair.log(node, mark) if line.code == "local_state"]
            assert not [text for text in said if any(f" {state} " in text for state in never)], f"{node.name}: {said}"
        assert pair.verify(other, [other]) >= 10


def times(pair: Pair, node: Node, file: str) -> list[float]:
    """What a node has noted in a file, without a cut last line."""
    try:
        text = pair.outside(node, file).read_text()
    except FileNotFoundError:
        return []
    return [float(line) for line in text.split("\n")[:-1] if line]


def assert_one_after_the_other(pair: Pair, file: str, loser: Node, winner: Node) -> None:
    before, after = times(pair, loser, file), times(pair, winner, file)
    assert before and after, f"{file}: it was on {len(before)} and {len(after)} times: this test shows nothing"
    assert before[-1] < after[0], f"{file}: on both servers for {before[-1] - after[0]:.2f} s"


@pytest.mark.parametrize("stopped", ["at once", "only by force"])
@pytest.mark.parametrize("cut", ["both ways", "one way"])
def test_the_loser_of_a_witness_has_stopped_before_the_winner_starts(pair: Pair, cut: str, stopped: str) -> None:
    """The primary loses the witness and, in one direction or in both, the other server: "one way" it still hears that
    one, which hears nothing of it."""
    pair.expect("witness_wait", "script_timeout", "vip_conflict", "vip_taken_over")
    if cut == "one way":
        # it hears the one that serves, and cannot reach its replication
        pair.expect("rfs_unusable")
    lab, (prim, second) = pair.lab, (pair.one, pair.two)
    pair.install(
        userconfig(
            heart='pulse="200" timeout="2000"',
            vip=VIP.format(addr=lab.vip, check="off"),
            more=WITNESS.format(addr=lab.client.address()) + '<failover period="1000" handle_time="2000"/>',
        ),
        start_prim=START.format(application=APPLICATION),
        stop_prim=STOP.format(kindly="true" if stopped == "at once" else "sleep 60"),
    )
    pair.first_start(prim)
    for node in pair.nodes:
        wait_until(lambda node=node: pair.value(node, "splitbrain.w") == "up", 10, "the witness answers")  # type: ignore[misc]
        for file in (APPLICATION, ADDRESS):
            pair.outside(node, file).write_text("")
    lookers = [node.popen(["bash", "-c", LOOK.format(addr=lab.vip, file=ADDRESS)]) for node in pair.nodes]
    wait_until(
        lambda: times(pair, prim, ADDRESS) and times(pair, prim, APPLICATION), 10, "the application of node1 runs"
    )
    blocked = [(prim, second), (prim, lab.client), (lab.client, prim)]
    blocked += [(second, prim)] if cut == "both ways" else []
    for source, destination in blocked:
        lab.block(source, destination)
    try:
        pair.wait(second, "ALONE green", 60)
        wait_until(lambda: pair.state(prim).split()[0] in ("WAIT", "SECOND"), 10, lambda: pair.states())
        wait_until(lambda: times(pair, second, ADDRESS) and times(pair, second, APPLICATION), 10, "node2 serves")
        for file in (APPLICATION, ADDRESS):
            assert_one_after_the_other(pair, file, prim, second)
    finally:
        for source, destination in blocked:
            lab.unblock(source, destination)
        for looker in lookers:
            looker.kill()
            looker.wait()
    pair.wait_protected(second)


COPY = "/var/tmp/copy"
KEPT = (f"{VAR}/{MODULE}", BACKING)
"""What a snapshot of a server holds of its module."""


def test_a_server_that_was_set_back_overwrites_nothing_without_a_word(pair: Pair) -> None:
    """It comes back from a snapshot of a time when it was alone, and starts first; the other one has served since."""
    pair.expect("set_back_here", "set_back_there", "advice_data")
    pair.expect("quarantined", "reintegration_overwrites", "reintegration_lost_file", "failover_remote_stop")
    one, two = pair.nodes
    pair.install(userconfig())
    pair.first_start(one)
    stop(pair, two)
    pair.wait(one, "ALONE green")
    pair.wait_records(one, 5)
    stop(pair, one)
    one.run(["mkdir", COPY])
    for number, place in enumerate(KEPT):
        one.run(["cp", "-a", place, f"{COPY}/{number}"])
    one.safekit("start", "-m", pair.module)
    pair.wait(one, "ALONE green")
    two.safekit("start", "-m", pair.module)
    pair.wait_protected(one)
    stop(pair, one)
    pair.wait(two, "ALONE green")
    pair.forget_records()
    pair.wait_records(two, 10)
    stop(pair, two)
    for number, place in enumerate(KEPT):
        one.run(["rm", "-rf", place])
        one.run(["cp", "-a", f"{COPY}/{number}", place])

    one.safekit("start", "-m", pair.module)
    pair.wait(one, "ALONE green")
    mark = pair.mark()
    two.safekit("start", "-m", pair.module)
    pair.wait(two, "WAIT red")
    wait_until(lambda: [line for line in pair.log(one, mark) if line.code == "set_back_here"], 10, "node1 says it")
    for node in (one, two):
        told = node.safekit("state", "-m", pair.module).stdout
        whose = "this server" if node is one else "the other server"
        assert f"the data of {whose} was set back" in told and "safekit prim" in told, told

    for node in (one, two):
        stop(pair, node)
    pair.wait(two, "STOP red")
    two.safekit("prim", "-m", pair.module)
    pair.wait(two, "ALONE green", 60)
    one.safekit("second", "-m", pair.module)
    pair.wait_protected(two)
    assert pair.verify(two, [two]) >= 10


def stop(pair: Pair, node: Node) -> None:
    node.safekit("stop", "-m", pair.module)
    pair.wait(node, "STOP red", 60)


def test_stop_and_start_in_a_row_reach_their_module_with_few_ports(pair: Pair) -> None:
    """A server with 32 ephemeral ports: the port of one process is soon another one's. Another module runs beside."""
    node, other, ports = pair.one, "beside", "/proc/sys/net/ipv4/ip_local_port_range"
    pair.install(userconfig())
    usual = node.run(["cat", ports]).stdout
    light = "/opt/safekit/Application_Modules/generic/light.safe"
    node.safekit("module", "install", "-m", other, light)
    try:
        node.safekit("config", "-m", other)
        node.run(["bash", "-c", f"echo 32768 32799 >{ports}"])
        node.safekit("start", "-m", other)
        node.safekit("waitstart", "-m", other, "--timeout", "60")
        since = node.safekit("state", "-m", other, "--json").stdout
        node.safekit("prim", "-m", pair.module)
        pair.wait(node, "ALONE green")
        mark = pair.mark()
        for _ in range(ROW):
            node.safekit("stop", "-m", pair.module)
            node.safekit("start", "-m", pair.module)
        pair.wait(node, "ALONE green", 60)
        called = [line.english for line in pair.log(node, mark) if line.code == "action_called"]
        assert called == ["Action stop called by root", "Action start called by root"] * ROW
        assert json.loads(node.safekit("state", "-m", other, "--json").stdout) == json.loads(since)
    finally:
        node.run(["bash", "-c", f"echo {usual.strip()} >{ports}"])
        node.safekit("stop", "-m", other, check=False)
        node.safekit("waitstop", "-m", other, "--timeout", "60", check=False)
        node.safekit("module", "uninstall", "-m", other, check=False)

"""Faults of a mirror under load: nothing acknowledged is lost, and both servers end up equal.

The nodes have disks of their own: a power-off takes what was not synced.
"""

from __future__ import annotations

import itertools
import threading

import pytest
from labs import lab_of_the_file
from pair import WITNESS, Pair, userconfig

from lab.cluster import Lab, Node
from lab.waiting import wait_until

VIP = """<vip><interface_list><interface check="off" arpreroute="on"><real_interface>
  <virtual_addr addr="{vip}" where="one_side_alias"/>
  </real_interface></interface></interface_list></vip>"""
SHORT = 'locktimeout="4" sendtimeout="4"'
DURABLE = f'async="none" {SHORT}'
SLOW = f'reiallowedbw="3072" {SHORT}'
"""Attributes of <rfs>; with SLOW a reintegration copies 3 MB a second."""
CHECKS = """<errd polltimer="30"><proc name="safeadmin" action="noaction" class="both"/></errd>
<check>
 <tcp ident="t" when="both"><to addr="127.0.0.1" port="9010" interval="1" timeout="1"/></tcp>
 <ping ident="p"><to addr="{witness}" interval="1" timeout="1"/></ping>
 <ip ident="a"><to addr="127.0.0.1" interval="10"/></ip>
 <custom ident="c" when="both" exec="customscript"/>
 <splitbrain ident="witness" exec="ping" arg="{witness}"/>
</check>"""
CUSTOM = """#!/bin/sh
"$SAFE/safekit" set -m "$1" -r "$2" -v up -i customscript
exec sleep 100000
"""
CHECKERS = ("errd", "tcpcheck", "pingcheck", "intfcheck", "ipcheck", "customcheck", "splitbraincheck")
ONLY_PRIM = ("ipcheck",)
FILES = """
import hashlib, os, sys
found = []
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            found.append(f"{os.path.relpath(path, sys.argv[1])} {os.stat(path).st_mtime_ns} "
                         f"{hashlib.sha256(file.read()).hexdigest()}")
print(*sorted(found), sep="\\n")
"""
COMMIT = "import os; f = os.open('/var/tmp/commit', os.O_CREAT | os.O_WRONLY); os.write(f, b'x'); os.fsync(f)"
PROCESSES = ("heart", "nfsbox", "nfsadmin", "vipd", "circlog", "safesupervisord", "safeadmin", "arpreroute")


lab = lab_of_the_file(disks=True, binds=[WITNESS])


@pytest.fixture(scope="module")
def installed(lab: Lab) -> Pair:
    pair = Pair(lab)
    configure(pair, SHORT)
    pair.first_start(pair.one)
    return pair


def configure(pair: Pair, rfs: str) -> None:
    """Install the module with these attributes of <rfs>; it is stopped."""
    pair.install(userconfig(rfs=rfs, vip=VIP.format(vip=pair.lab.vip)))


def configured(pair: Pair, rfs: str) -> tuple[Node, Node]:
    """A protected pair with these attributes of <rfs>."""
    prim, second = protected(pair)
    if f"<rfs {rfs}>" not in prim.read(f"/opt/safekit/modules/{pair.module}/conf/userconfig.xml"):
        for node in (second, prim):
            node.safekit("stop", "-m", pair.module)
            pair.wait(node, "STOP red")
        configure(pair, rfs)
        prim, second = protected(pair)
    return prim, second


def protected(pair: Pair) -> tuple[Node, Node]:
    """PRIM and SECOND with some records, whatever the test before has left."""
    pair.lab.node("node1").join()
    for node in pair.nodes:
        if not node.is_on:
            node.poweron()
    pair.start_stopped()
    wait_until(
        lambda: {pair.state(node) for node in pair.nodes} == {"PRIM green", "SECOND green"},
        60,
        lambda: f"a protected pair; {pair.states()}\n{pair.tail()}",
    )
    prim, second = (pair.one, pair.two) if pair.state(pair.one).startswith("PRIM") else (pair.two, pair.one)
    pair.wait_records(prim, 20)
    return prim, second


def back_to_protection(pair: Pair) -> Node:
    """Start what is stopped, wait for a protected pair, let it work a little, and judge it. The primary."""
    prim, _ = protected(pair)
    assert pair.verify(prim) > 20
    return prim


def test_power_off_of_the_primary(pair: Pair) -> None:
    prim, second = protected(pair)
    pair.expect("failover_no_heartbeat", "previous_halt")
    prim.poweroff()
    pair.wait(second, "ALONE green")
    pair.wait_records(second, 20)
    assert back_to_protection(pair) is second


def test_power_off_of_the_secondary(pair: Pair) -> None:
    prim, second = protected(pair)
    pair.expect("previous_halt")
    second.poweroff()
    pair.wait(prim, "ALONE green")
    pair.wait_records(prim, 20)
    assert back_to_protection(pair) is prim


def test_power_off_of_the_survivor_shortly_after_the_takeover(pair: Pair) -> None:
    """What the former primary had acknowledged was in the memory of its secondary; a survivor makes it durable."""
    prim, second = protected(pair)
    pair.expect("failover_no_heartbeat", "previous_halt", "not_uptodate", "advice_prim", "action_rule")
    pair.expect("transition_rule")
    pair.wait_records(prim, 300)
    prim.poweroff()
    pair.wait(second, "ALONE green")
    pair.wait_records(second, 100)
    second.poweroff()
    second.poweron()
    second.safekit("start", "-m", pair.module)
    pair.wait(second, "ALONE green")
    with pair.paused_writer(second):
        lost = pair.lost(second, [second])
        assert not lost, f"{len(lost)} acknowledged records are lost: {lost[:10]}"
    prim.poweron()
    assert back_to_protection(pair) is second


def test_power_off_of_both_at_once(pair: Pair) -> None:
    """With async="none" what was acknowledged is on both disks."""
    prim, second = configured(pair, DURABLE)
    pair.expect("previous_halt", "not_uptodate", "advice_prim", "action_rule", "transition_rule")
    pair.lab.poweroff(prim, second)
    back_to_protection(pair)


@pytest.mark.parametrize("side", ["primary", "secondary"])
@pytest.mark.parametrize("process", PROCESSES)
def test_kill_9(pair: Pair, process: str, side: str) -> None:
    prim, second = protected(pair)
    node = prim if side == "primary" else second
    before = node.pids(process)
    assert before, f"{process} does not run on the {side}"
    pair.expect("process_died", "action_rule", "transition_rule", "not_uptodate", "supervisor_died", "adopted")
    pair.expect("advice_prim", "rfs_unusable", "reintegration_failed")
    writer = prim.pids("python3")
    node.kill(process)
    if process == "nfsbox" and side == "primary":
        wait_until(lambda: pair.value(prim, "rfs.degraded") == "up", 20, lambda: f"rfs.degraded\n{pair.tail()}")
        pair.wait(prim, "ALONE green")
        pair.wait_records(prim, 20)
        prim.safekit("stop", "-m", pair.module)
        pair.wait(prim, "STOP red")
    else:
        wait_until(lambda: set(node.pids(process)) - set(before), 20, lambda: f"{process} lives again\n{pair.tail()}")
    assert back_to_protection(pair)
    if process in ("heart", "vipd", "circlog", "safeadmin", "nfsadmin", "arpreroute"):
        # The application was not touched (M5).
        assert set(writer) & set(prim.pids("python3")), f"the application was restarted\n{pair.tail()}"


def test_frozen_replication_of_the_secondary(pair: Pair) -> None:
    """R8: a peer that hangs costs the application the documented time-out, once."""
    prim, second = protected(pair)
    pair.expect("process_died", "action_rule", "transition_rule")
    second.freeze("nfsbox")
    try:
        pair.wait(prim, "ALONE green", timeout=30)
        pair.wait_records(prim, 50)
    finally:
        second.thaw("nfsbox")
    assert back_to_protection(pair) is prim


def test_one_network_of_two_cut(pair: Pair) -> None:
    """The other network carries the heartbeats; the replication recovers with its network."""
    prim, second = protected(pair)
    pair.expect("action_rule", "transition_rule", "not_uptodate")
    prim.cut("default")
    try:
        wait_until(lambda: pair.value(prim, "heartbeat.default") == "down", 20, "the loss of heartbeat.default")
        pair.wait_records(prim, 50)
        assert pair.state(prim).split()[0] in ("PRIM", "ALONE")
        assert pair.state(second).split()[0] in ("SECOND", "WAIT")
    finally:
        prim.join("default")
    assert back_to_protection(pair) is prim


def test_the_replication_network_cut(pair: Pair) -> None:
    prim, second = protected(pair)
    pair.expect("action_rule", "transition_rule", "not_uptodate", "advice_prim")
    prim.cut("repli")
    try:
        pair.wait(prim, "ALONE green", timeout=30)
        pair.wait_records(prim, 50)
        assert pair.state(second).split()[0] in ("SECOND", "WAIT")
        assert "start_prim" not in second.run("ls /run/writer.pid", check=False).stdout
    finally:
        prim.join("repli")
    assert back_to_protection(pair) is prim


def test_all_networks_cut_and_healed(pair: Pair) -> None:
    prim, second = protected(pair)
    pair.expect("failover_no_heartbeat", "splitbrain_staying", "splitbrain_exiting", "vip_conflict")
    pair.expect("reintegration_overwrites", "reintegration_lost_file", "quarantined")
    before = set(pair.acknowledged(second))
    prim.cut()
    for node in pair.nodes:
        pair.wait(node, "ALONE green")
        pair.wait_records(node, 20)
    prim.join()
    pair.wait_protected(prim)
    sacrificed = set(pair.acknowledged(second)) - before
    pair.wait_records(prim, 20)
    with pair.paused_writer(prim):
        lost = set(pair.lost(prim)) - sacrificed
        assert not lost, f"{len(lost)} acknowledged records of the server that stays are lost: {[*lost][:10]}"
    pair.forget_records()
    assert back_to_protection(pair) is prim


def test_power_off_in_the_middle_of_a_reintegration_twice(pair: Pair) -> None:
    """First the reintegrated server, then both: the survivor's data win each time."""
    prim, second = configured(pair, SLOW)
    second.safekit("stop", "-m", pair.module)
    pair.wait(second, "STOP red")
    pair.wait(prim, "ALONE green")
    prim.run("head -c 30000000 /dev/urandom > /replicated/big && sync /replicated/big")
    pair.expect("previous_halt", "not_uptodate", "advice_prim", "action_rule", "transition_rule", "inconsistent")
    for _ in range(2):
        second.safekit("start", "-m", pair.module)
        pair.wait_copying(second)
        second.poweroff()
        pair.wait(prim, "ALONE green")
        pair.wait_records(prim, 20)
        second.poweron()
    assert back_to_protection(pair) is prim
    prim.run("rm /replicated/big")
    pair.verify(prim)


def files(node: Node, directory: str) -> list[str]:
    """Name, time and content of the files below a directory; nothing when there is none."""
    return node.run(["/usr/bin/python3", "-I", "-c", FILES, directory], timeout=60).stdout.split("\n")[:-1]


def names(lines: list[str]) -> list[str]:
    """Without the content."""
    return [line.rpartition(" ")[0] for line in lines]


def test_power_off_of_the_secondary_in_a_reintegration_and_right_after_it(pair: Pair) -> None:
    """What was copied may have its size and its time on the disk without its content: the next reintegration, which
    copies only what is recorded, must not take it for equal. When it has ended, everything is on the disk."""
    prim, second = configured(pair, SLOW)
    data, there = f"{pair.directory}/data", f"{pair.backing}/renamed"
    prim.run(f"mkdir {data} && for i in $(seq 20); do head -c 40000 /dev/urandom > {data}/f$i; done && sync {data}")
    pair.expect("previous_halt", "not_uptodate", "advice_prim", "action_rule", "transition_rule", "inconsistent")
    prim.cut("repli")  # the secondary goes on running: no file counts as changed while nobody watched
    try:
        pair.wait(prim, "ALONE green", timeout=30)
        prim.run(f"mv {data} {pair.directory}/renamed && head -c 20000000 /dev/urandom > {pair.directory}/big")
        wanted = files(prim, f"{pair.directory}/renamed")
    finally:
        prim.join("repli")
    wait_until(
        lambda: names(files(second, there)) == names(wanted), 30, lambda: f"files are copied; {pair.states()}", 0.02
    )
    assert pair.state(second) == "SECOND magenta", "the reintegration goes on: this test wants to be in its middle"
    second.run(["/usr/bin/python3", "-I", "-c", COMMIT])  # the journal of the disk: names, sizes and times
    second.poweroff()
    second.poweron()
    kept = files(second, there)
    assert names(kept) == names(wanted) and kept != wanted, "the disk kept sizes and times, and lost contents"
    pair.wait(prim, "ALONE green")
    mark = pair.mark()
    second.safekit("start", "-m", pair.module)
    pair.wait_log(second, mark, ["Reintegration ended (synchronize)"], timeout=40)
    second.poweroff()
    second.poweron()
    assert files(second, there) == wanted, "when it has ended, what was copied is on the disk"
    assert back_to_protection(pair) is prim
    prim.run(f"rm -r {pair.directory}/renamed {pair.directory}/big")


def test_kill_9_of_nfsbox_again_and_again(pair: Pair) -> None:
    """On the secondary, whatever it does at that moment; then on the primary, also while it is degraded."""
    prim, second = configured(pair, SHORT)
    pair.expect("process_died", "action_rule", "transition_rule", "not_uptodate", "advice_prim", "rfs_unusable")
    pair.expect("reintegration_failed")
    for number in range(6):
        pair.wait_records(prim, 1 + 7 * number)
        wait_until(
            lambda: second.pids("nfsbox") and second.kill("nfsbox"), 20, lambda: f"it lives again\n{pair.tail()}"
        )
    assert back_to_protection(pair) is prim
    for _ in range(2):
        before = set(prim.kill("nfsbox"))
        wait_until(lambda: set(prim.pids("nfsbox")) - before, 20, lambda: f"nfsbox lives again\n{pair.tail()}")  # noqa: B023
        pair.wait(prim, "ALONE green")
        pair.wait_records(prim, 20)
    assert pair.value(prim, "rfs.degraded") == "up"
    prim.safekit("stop", "-m", pair.module)
    pair.wait(prim, "STOP red")
    assert back_to_protection(pair) is prim


@pytest.mark.parametrize("first", ["the kill", "the stop"])
def test_nfsbox_and_nfsadmin_of_the_secondary_are_killed_while_the_primary_leaves(pair: Pair, first: str) -> None:
    """Nobody is left who knows what the secondary has acknowledged and not applied."""
    prim, second = configured(pair, SHORT)
    pair.expect("process_died", "action_rule", "transition_rule", "not_uptodate", "advice_prim", "rfs_unusable")
    pair.expect("unapplied", "failover_no_heartbeat")
    pair.wait_records(prim, 100)
    leaving = threading.Thread(target=lambda: prim.safekit("stop", "-m", pair.module, check=False))
    if first == "the stop":
        leaving.start()
    for process in ("nfsbox", "nfsadmin"):
        second.kill(process)
    if first == "the kill":
        leaving.start()
    leaving.join(60)
    pair.wait(prim, "STOP red")
    assert back_to_protection(pair)


@pytest.mark.parametrize(
    ("process", "side"),
    [("reintegre", "secondary"), *itertools.product(("nfsadmin", "nfsbox"), ("primary", "secondary"))],
)
def test_kill_9_in_the_middle_of_a_reintegration(pair: Pair, process: str, side: str) -> None:
    prim, second = configured(pair, SLOW)
    second.safekit("stop", "-m", pair.module)
    pair.wait(second, "STOP red")
    pair.wait(prim, "ALONE green")
    prim.run("head -c 9000000 /dev/urandom > /replicated/big && sync /replicated/big")
    pair.expect("process_died", "action_rule", "transition_rule", "not_uptodate", "inconsistent", "advice_prim")
    pair.expect("reintegration_failed", "rfs_unusable")
    second.safekit("start", "-m", pair.module)
    pair.wait_copying(second)
    (prim if side == "primary" else second).kill(process)
    if process == "nfsbox" and side == "primary":
        wait_until(lambda: pair.value(prim, "rfs.degraded") == "up", 20, lambda: f"rfs.degraded\n{pair.tail()}")
        pair.wait(prim, "ALONE green")
        prim.safekit("stop", "-m", pair.module)
        pair.wait(prim, "STOP red")
    assert back_to_protection(pair) is prim
    prim.run("rm /replicated/big")


def test_the_primary_loses_power_while_it_reintegrates_the_secondary(pair: Pair) -> None:
    """The half copied server must not take over; the former primary comes back with all its data."""
    prim, second = configured(pair, SLOW)
    second.safekit("stop", "-m", pair.module)
    pair.wait(second, "STOP red")
    pair.wait(prim, "ALONE green")
    prim.run("head -c 30000000 /dev/urandom > /replicated/big && sync /replicated/big")
    pair.expect("previous_halt", "not_uptodate", "advice_prim", "action_rule", "transition_rule", "inconsistent")
    pair.expect("advice_primforce", "failover_no_heartbeat")
    second.safekit("start", "-m", pair.module)
    pair.wait_copying(second)
    prim.poweroff()
    wait_until(
        lambda: pair.state(second) in ("WAIT red", "STOP red"),
        30,
        lambda: f"no takeover; {pair.states()}\n{pair.tail()}",
    )
    assert back_to_protection(pair) is prim
    prim.run("rm /replicated/big")


def test_kill_9_of_errd_and_of_every_checker(pair: Pair) -> None:
    """One after the other, on each side: each is back, nothing else happens, and the application goes on."""
    for node in reversed(protected(pair)):
        node.safekit("stop", "-m", pair.module)
        pair.wait(node, "STOP red")
    vip = VIP.replace('check="off"', 'check="on"').format(vip=pair.lab.vip)
    checks = CHECKS.format(witness=pair.lab.client.address())
    pair.install(userconfig(rfs=SHORT, vip=vip, more=checks), customscript=CUSTOM)
    prim, second = protected(pair)
    pair.begin_test()  # from here on: a start may wait for the other server
    pair.expect("process_died")
    writer, mark = prim.pids("python3"), pair.mark()
    for node in (prim, second):
        processes = [name for name in CHECKERS if node is prim or name not in ONLY_PRIM]
        for process in processes:
            wait_until(lambda: node.pids(process), 20, f"{process} runs on {node.name}")  # noqa: B023 - called at once
            before = set(node.kill(process))
            wait_until(
                lambda: set(node.pids(process)) - before,  # noqa: B023
                20,
                lambda: f"{process} is back on {node.name}\n{pair.tail()}",  # noqa: B023
            )
        wait_until(
            lambda: sum(line.code == "process_died" for line in pair.log(node, mark)) >= len(processes),  # noqa: B023
            10,
            lambda: f"each death is told\n{pair.tail()}",
        )
    assert back_to_protection(pair) is prim
    assert set(writer) <= set(prim.pids("python3")), f"the application was restarted\n{pair.tail()}"
    for node in (prim, second):
        told = [line.english for line in pair.log(node, mark) if line.code in ("local_state", "remote_state", "script")]
        assert told == []


def test_disk_of_the_secondary_full(lab: Lab, installed: Pair) -> None:
    """The application goes on without its secondary; with space again the secondary catches up."""
    for node in installed.nodes:
        node.safekit("stop", "-m", installed.module)
    for node in installed.nodes:
        installed.wait(node, "STOP red")
        node.safekit("module", "uninstall", "-m", installed.module)
        size = "200m" if node is installed.one else "40m"
        node.run(f"mkdir -p /small && mount -t tmpfs -o size={size} none /small && mkdir /small/data")
    pair = Pair(lab, directory="/small/data")
    pair.forget_records()
    pair.install(userconfig(rfs=SHORT, directory="/small/data"))
    pair.begin_test()
    pair.first_start(pair.one)
    pair.wait_records(pair.one, 20)
    pair.expect("reintegration_failed", "rfs_unusable", "not_uptodate", "advice_prim", "action_rule", "transition_rule")
    pair.one.run("head -c 60000000 /dev/zero | tr '\\0' x > /small/data/large && sync /small/data/large")
    pair.wait(pair.one, "ALONE green", timeout=30)
    pair.wait_records(pair.one, 50)
    pair.one.run("rm /small/data/large")
    if pair.state(pair.two).startswith("STOP"):
        pair.two.safekit("start", "-m", pair.module)
    pair.wait_protected(pair.one)
    pair.wait_records(pair.one, 20)
    pair.verify(pair.one)
    pair.check_logs()

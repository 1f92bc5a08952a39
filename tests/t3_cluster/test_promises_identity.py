"""What is local is compared, what is adopted is proved, who keeps an address says so: on two nodes, end to end.

One lab. Each test installs the module as it needs it, or takes the pair that the one before left protected.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from labs import lab_of_the_file
from pair import Pair, userconfig

from lab.cluster import Lab, Node
from lab.waiting import wait_until

VIP = """<vip><interface_list><interface check="off" arpreroute="{arp}"><real_interface>
  <virtual_addr addr="{addr}" where="one_side_alias" check="off"/>
  </real_interface></interface></interface_list></vip>"""
RFS = 'locktimeout="4" sendtimeout="4"'
SLOW = 'pulse="300" timeout="10000"'
"""A time-out that is longer than it takes to start everything of a module again."""
KILL = """for p in /proc/[0-9]*; do
  tr '\\0' '\\n' < $p/environ 2>/dev/null | grep -qx SAFEMODULE={module} && echo ${{p#/proc/}}
done | xargs -r kill -9; true"""
EXPECTED = ("process_died", "process_again", "previous_halt", "parts_lost", "vip_adopted", "failover_no_heartbeat",
            "splitbrain_staying", "splitbrain_exiting", "vip_taken_over", "vip_conflict", "rfs_unusable", "internal",
            "supervisor_died", "process_not_started", "unwatched", "stood_still", "second_aborted")  # fmt: skip


lab = lab_of_the_file()


@pytest.fixture
def pair(lab: Lab) -> Iterator[Pair]:
    """The module; what its tests leave is stopped and removed."""
    made = Pair(lab)
    for node in made.nodes:
        if not node.is_on:
            node.poweron()
    made.begin_test()
    made.expect(*EXPECTED)
    yield made
    made.check_logs()


def vip(lab: Lab, *, last: int = 0, arp: str = "on") -> str:
    """The section <vip>; `last` makes another address of it."""
    address = lab.vip if not last else f"{lab.vip.rpartition('.')[0]}.{last}"
    return VIP.format(addr=address, arp=arp)


def formed(pair: Pair, *, arp: str = "on", heart: str = SLOW) -> tuple[Node, Node]:
    """A protected pair, made anew: PRIM and SECOND."""
    removed(pair)
    pair.install(userconfig(heart=heart, rfs=RFS, vip=vip(pair.lab, arp=arp)))
    pair.first_start(pair.one)
    pair.forget_records()  # a test before this one may have split them
    return pair.one, pair.two


def removed(pair: Pair) -> None:
    for node in pair.nodes:
        node.safekit("stop", "-m", pair.module, check=False)
        node.safekit("waitstop", "-m", pair.module, "--timeout", "60", check=False)
        node.safekit("module", "uninstall", "-m", pair.module, check=False)


def kill_all(pair: Pair, node: Node) -> None:
    """Everything that the module runs on a node, at once, as a memory killer does."""
    node.run(["bash", "-c", KILL.format(module=pair.module)])


def has(node: Node, address: str) -> bool:
    return f" {address}/" in node.run(["ip", "-br", "addr"]).stdout


def verdict(pair: Pair, node: Node) -> str:
    """What `state` says of the module."""
    return node.safekit("state", "-m", pair.module).stdout


# --- what is local is compared


def test_servers_with_other_ids_are_named_and_never_both_run(pair: Pair) -> None:
    """Each was configured while it knew nothing of the other; no heartbeat and no connection ever arrives."""
    pair.expect("config_conflict", "action_rule", "transition_rule")
    removed(pair)
    pair.install(userconfig(rfs=RFS, vip=vip(pair.lab)))
    removed(pair)
    wait_until(lambda: not knows(pair, pair.one, pair.two), 20, "both know that nobody has the module")
    pair.two.cut()
    for node, number in ((pair.one, "1"), (pair.two, "9")):
        node.safekit("module", "install", "-M", number, "-m", pair.module, "/root/module.safe")
        node.safekit("config", "-m", pair.module)
    pair.two.join()
    wait_until(lambda: knows(pair, pair.two, pair.one), 20, "node2 knows the module of node1")
    assert "the module id (9 here, 1 on node1)" in pair.two.safekit("config", "-m", pair.module).stderr
    pair.one.safekit("prim", "-m", pair.module)
    pair.wait(pair.one, "ALONE green")
    wait_until(lambda: "ALONE" in told_by(pair, pair.two, pair.one), 20, "node2 knows that node1 runs it")
    for command in ("start", "prim"):
        pair.two.safekit(command, "-m", pair.module)
        pair.wait(pair.two, "WAIT red", 60)
        time.sleep(5)
        assert pair.states() == "node1 ALONE green, node2 WAIT red"
        assert has(pair.one, pair.lab.vip) and not has(pair.two, pair.lab.vip)
        assert "refused: the module id" in verdict(pair, pair.two)
        assert "the module id" in verdict(pair, pair.one), "the one that runs says it too"
        pair.two.safekit("stop", "-m", pair.module)
        pair.wait(pair.two, "STOP red")
    # the way out
    pair.two.safekit("deconfig", "-m", pair.module)
    done = pair.two.safekit("config", "-m", pair.module)
    assert "is now 1, as on node1 (it was 9)" in done.stdout and "node1 has another" not in done.stderr
    pair.two.safekit("second", "-m", pair.module)
    pair.wait_protected(pair.one)


def told_by(pair: Pair, node: Node, other: Node) -> str:
    """What `node` knows of the module as it is configured on `other`, as JSON."""
    modules = json.loads(node.safekit("cluster", "state", "--json").stdout).get(other.name) or ()
    return json.dumps([module for module in modules if module["name"] == pair.module and module["signature"]])


def knows(pair: Pair, node: Node, other: Node) -> bool:
    return told_by(pair, node, other) != "[]"


@pytest.mark.parametrize("what", ["directory", "address"])
def test_a_secondary_with_another_configuration_is_refused_until_it_fits(pair: Pair, what: str) -> None:
    pair.expect("config_conflict", "action_rule", "transition_rule", "config_differs", "not_uptodate", "advice_prim")
    prim, second = formed(pair)
    second.safekit("stop", "-m", pair.module)
    pair.wait(second, "STOP red")
    path = f"/opt/safekit/modules/{pair.module}/conf/userconfig.xml"
    right = second.read(path)
    other = f"{pair.directory}.other" if what == "directory" else f"{pair.lab.vip.rpartition('.')[0]}.61"
    old = f'dir="{pair.directory}"' if what == "directory" else f'addr="{pair.lab.vip}"'
    new = old.partition("=")[0] + f'="{other}"'
    second.run(["mkdir", "-p", f"{pair.directory}.other"])
    pair.outside(second, path).write_text(right.replace(old, new))
    told = second.safekit("config", "-m", pair.module).stderr
    assert other in told and "does not fit that of node1" in told
    second.safekit("start", "-m", pair.module)
    pair.wait(second, "WAIT red", 60)
    pair.wait(prim, "ALONE green")
    name = "directories" if what == "directory" else "addresses"
    for node in (prim, second):
        assert pair.value(node, "config.fits") == "down" and name in pair.value(node, "config.differs")
    assert "refused" in verdict(pair, second) and "refused" in verdict(pair, prim)
    prim.poweroff()
    time.sleep(15)
    assert pair.state(second) == "WAIT red", "old data on another address serves nobody"
    assert not has(second, pair.lab.vip) and not has(second, other)
    prim.poweron()
    second.safekit("stop", "-m", pair.module)
    pair.wait(second, "STOP red")
    pair.outside(second, path).write_text(right)
    second.safekit("config", "-m", pair.module)
    for node in (prim, second):
        node.safekit("start", "-m", pair.module)
    pair.wait_protected(prim)
    assert pair.value(second, "config.same") == "up" and "protected" in verdict(pair, second)


# --- resources of a former configuration


def test_a_renamed_heartbeat_and_checker_leave_no_resource_behind(pair: Pair) -> None:
    prim, second = formed(pair)
    checks = '<check><tcp ident="{}" when="prim"><to addr="127.0.0.1" port="9010"/></tcp></check>'
    for number in (1, 2):
        for node in (second, prim):
            node.safekit("stop", "-m", pair.module)
            pair.wait(node, "STOP red")
        config = userconfig(heart=SLOW, rfs=RFS, more=checks.format(f"T{number}"))
        pair.install(config.replace('<heartbeat name="default"/>', f'<heartbeat name="default" ident="B{number}"/>'))
        for node in (prim, second):
            node.safekit("start", "-m", pair.module)
        pair.wait_protected(prim)
    for node in (prim, second):
        names = {name for name in pair.resources(node) if name.startswith(("heartbeat.", "tcp."))}
        assert names <= {"heartbeat.B2", "heartbeat.flow", "tcp.T2"} and "heartbeat.B2" in names


# --- who keeps an address says so


@pytest.mark.parametrize("arp", ["on", "off"])
def test_after_a_split_brain_the_clients_find_the_server_that_stays(pair: Pair, arp: str) -> None:
    """The client keeps what it has learnt for hours, as a router does."""
    prim, second = formed(pair, arp=arp, heart='pulse="300" timeout="3000"')
    client = pair.lab.client
    client.run(
        "sysctl -qw net.ipv4.neigh.eth0.base_reachable_time_ms=36000000 net.ipv4.neigh.eth0.delay_first_probe_time=3600"
    )
    client.run(["ping", "-c1", "-W1", pair.lab.vip])
    before = neighbour(pair)
    for lan in ("default", "repli"):
        pair.lab.block(prim, second, lan)
        pair.lab.block(second, prim, lan)
    wait_until(lambda: pair.states() == "node1 ALONE green, node2 ALONE green", 30, pair.states)
    wait_until(lambda: neighbour(pair) != before, 10, "the client goes to the server that took over")
    for lan in ("default", "repli"):
        pair.lab.unblock(prim, second, lan)
        pair.lab.unblock(second, prim, lan)
    wait_until(lambda: not has(second, pair.lab.vip), 30, "the server that leaves has let the address go")
    gone = time.monotonic()
    wait_until(lambda: neighbour(pair) == before, 5, "the client is right again")
    assert client.run(["ping", "-c1", "-W1", pair.lab.vip], check=False).returncode == 0
    assert time.monotonic() - gone < 5
    pair.wait_protected(prim)


def neighbour(pair: Pair) -> str:
    """The MAC under which the client knows the address."""
    words = pair.lab.client.run(["ip", "neigh", "show", "to", pair.lab.vip]).stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


# --- an adopted role is proved


def test_everything_of_a_primary_killed_at_once_gives_the_service_to_the_secondary(pair: Pair) -> None:
    prim, second = formed(pair)
    pair.wait_records(prim, 20)
    mark = pair.mark()
    kill_all(pair, prim)
    pair.wait(second, "ALONE green", 40)
    pair.wait_protected(second)
    assert any(line.code == "parts_lost" for line in pair.log(prim, mark))
    pair.wait_records(second, 10)
    pair.verify(second)


def test_everything_of_a_server_alone_killed_at_once_starts_again_and_stop_is_short(pair: Pair) -> None:
    prim, second = formed(pair)
    second.safekit("stop", "-m", pair.module)
    pair.wait(second, "STOP red")
    pair.wait(prim, "ALONE green")
    kill_all(pair, prim)
    wait_until(lambda: pair.state(prim) != "ALONE green", 20, f"no green without evidence; {pair.states()}")
    pair.wait(prim, "ALONE green", 60)
    pair.wait_records(prim, 10)
    with pair.paused_writer(prim):
        assert not pair.lost(prim, [prim])
    kill_all(pair, prim)
    begun = time.monotonic()
    prim.safekit("stop", "-m", pair.module)
    pair.wait(prim, "STOP red", 60)
    assert time.monotonic() - begun < 60, "scripts are done at once; the rest is bounded by the start of what is asked"
    assert pair.directory not in prim.run(["cat", "/proc/mounts"]).stdout
    assert prim.run(["readlink", pair.directory]).stdout.strip() == pair.backing.rpartition("/")[2]
    for node in (prim, second):
        node.safekit("start", "-m", pair.module)
    pair.wait_protected(prim)
    pair.verify(prim)


def test_everything_of_a_secondary_killed_at_once_is_synchronised_again(pair: Pair) -> None:
    prim, second = formed(pair)
    kill_all(pair, second)
    wait_until(lambda: pair.state(second) != "SECOND green", 20, f"no green without evidence; {pair.states()}")
    pair.wait_protected(prim)
    pair.verify(prim)


def test_supervisord_and_nfsbox_killed_together_cost_seconds(pair: Pair) -> None:
    prim, second = formed(pair)
    count = len(pair.acknowledged(prim))
    prim.run(["bash", "-c", "pkill -9 -x safesupervisord; pkill -9 -x nfsbox"], check=False)
    wait_until(lambda: pair.states().count("SECOND green") == 0, 20, f"it is noticed; {pair.states()}")
    wait_until(lambda: len(pair.acknowledged(prim)) > count + 200, 60, lambda: f"service\n{pair.tail()}")
    wait_until(
        lambda: {pair.state(node) for node in pair.nodes} == {"PRIM green", "SECOND green"}, 60, lambda: pair.tail()
    )
    pair.verify(prim if pair.state(prim).startswith("PRIM") else second)


def test_a_degraded_primary_recovers_by_itself(pair: Pair) -> None:
    pair.expect("action_rule", "transition_rule", "rfs_recovery", "not_uptodate")
    prim, _ = formed(pair)
    mark = pair.mark()
    prim.run(["pkill", "-9", "-x", "nfsbox"])
    wait_until(lambda: pair.value(prim, "rfs.degraded") == "up", 20, "degraded")
    wait_until(lambda: any(line.code == "rfs_recovery" for line in pair.log(prim, mark)), 150, lambda: pair.tail())
    pair.wait_protected(prim)
    assert pair.value(prim, "rfs.degraded") == "down"
    pair.verify(prim)

"""Guide chapter 5 on two nodes: which server may start with which data. One lab; every test configures anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from labs import lab_of_the_file
from pair import Pair, assert_in_order, userconfig

from lab.cluster import Lab

NOT_UPTODATE = "Data may be not uptodate for replicated directories (wait for the start of the remote server)"
ADVICE = "If you are sure that this server has valid data, run safekit prim to force start as primary"
INCONSISTENT = "Data may be inconsistent for replicated directories (stopped during reintegration)"
ADVICE_FORCE = "If you are sure that this server has valid data, run safekit primforce to force start as primary"
SLOW = 'reiallowedbw="2048"'


lab = lab_of_the_file()


@pytest.fixture
def pair(lab: Lab) -> Iterator[Pair]:
    """A pair without the module."""
    pair = Pair(lab)
    pair.begin_test()
    yield pair
    pair.check_logs()
    for node in pair.nodes:
        node.safekit("forcestop", "-m", pair.module)
        node.safekit("waitstop", "-m", pair.module, "--timeout", "30")
        node.safekit("module", "uninstall", "-m", pair.module)
        node.run(["rm", "-rf", pair.directory, pair.backing])
    pair.forget_records()


def test_t5_3a_start_on_both_before_the_first_synchronisation(pair: Pair) -> None:
    pair.install(userconfig())
    pair.expect("not_uptodate", "advice_prim", "action_rule", "transition_rule")
    mark = pair.mark()
    for node in pair.nodes:
        node.safekit("start", "-m", pair.module)
    for node in pair.nodes:
        pair.wait(node, "WAIT red")
        assert_in_order(pair.log(node, mark), ["Action start called by root", NOT_UPTODATE])
        assert "data at risk" in node.safekit("state").stdout
        assert node.safekit("state", "-lq", "-m", pair.module, check=False).returncode == 1


def test_t5_3b_prim_and_second(pair: Pair) -> None:
    pair.install(userconfig())
    mark = pair.mark()
    pair.first_start(pair.one)
    assert_in_order(pair.log(pair.one, mark), ["Action prim called by root", "Local state ALONE green"])
    assert_in_order(pair.log(pair.two, mark), ["Action second called by root", "Local state SECOND green"])
    pair.wait_records(pair.one, 20)
    pair.verify(pair.one)


def test_t5_5_a_stale_server_waits(pair: Pair) -> None:
    pair.install(userconfig())
    pair.first_start(pair.one)
    pair.two.safekit("stop", "-m", pair.module)
    pair.wait(pair.two, "STOP red")
    pair.wait(pair.one, "ALONE green")
    pair.wait_records(pair.one, 20)
    pair.one.safekit("stop", "-m", pair.module)
    pair.wait(pair.one, "STOP red")
    pair.expect("not_uptodate", "advice_prim", "action_rule", "transition_rule")
    mark = pair.mark()
    pair.two.safekit("start", "-m", pair.module)
    pair.wait(pair.two, "WAIT red")
    pair.wait_log(pair.two, mark, [NOT_UPTODATE, "Action wait from failover rule notuptodate_server", ADVICE])
    assert pair.value(pair.two, "rfs.uptodate") == "down"
    why = pair.two.safekit("why", "-v", "-m", pair.module).stdout
    assert "notuptodate_server" in why and "rfs.uptodate = down" in why
    pair.one.safekit("start", "-m", pair.module)
    pair.wait_protected(pair.one)
    pair.verify(pair.one)


def test_t5_6_degraded_replication(pair: Pair) -> None:
    pair.install(userconfig())
    pair.first_start(pair.one)
    pair.wait_records(pair.one, 20)
    pair.expect("action_rule", "transition_rule", "process_died", "not_uptodate", "advice_prim", "rfs_unusable")
    mark = pair.mark()
    pair.one.kill("nfsbox")
    pair.wait_log(pair.one, mark, ["Resource rfs.degraded set to up by nfsadmin"])
    pair.wait(pair.one, "ALONE green")
    pair.wait(pair.two, "WAIT red")
    pair.wait_log(pair.two, mark, ["Action wait from failover rule degraded_server"])
    assert pair.value(pair.two, "rfs.uptodate") == "down"
    assert pair.value(pair.one, "rfs.degraded") == "up"
    assert "degraded" in pair.one.safekit("state").stdout.splitlines()[1]
    pair.wait_records(pair.one, 20)
    pair.one.safekit("stop", "-m", pair.module)
    pair.wait(pair.one, "STOP red")
    pair.one.safekit("start", "-m", pair.module)
    pair.wait_protected(pair.one)
    pair.wait_records(pair.one, 20)
    pair.verify(pair.one)


@pytest.mark.parametrize("how", ["attribute", "command"])
def test_t5_7_failover_off(pair: Pair, how: str) -> None:
    pair.install(userconfig(service='failover="off"' if how == "attribute" else ""))
    pair.first_start(pair.one)
    if how == "command":
        for node in pair.nodes:
            node.safekit("failover", "off", "-m", pair.module)
            assert pair.value(node, "usersetting.failover") == "off"
    pair.wait_records(pair.one, 20)
    pair.expect("failover_off", "not_uptodate", "advice_prim", "action_rule", "transition_rule")
    mark = pair.mark()
    pair.one.safekit("stop", "-m", pair.module)
    pair.wait_log(
        pair.two,
        mark,
        [
            "Failover-off configured",
            "Action stopstart called by failover-off",
            "Transition STOPSTART from failover-off",
            "Local state WAIT red",
        ],
    )
    pair.wait(pair.one, "STOP red")
    assert "Script start_prim" not in [line.english for line in pair.log(pair.two, mark)]
    pair.one.safekit("start", "-m", pair.module)
    pair.wait_protected(pair.one)
    pair.verify(pair.one)


def test_t5_8_default_primary(pair: Pair) -> None:
    pair.install(userconfig(service='defaultprim="node1"'))
    pair.first_start(pair.one)
    pair.wait_records(pair.one, 20)
    pair.one.safekit("stop", "-m", pair.module)
    pair.wait(pair.two, "ALONE green")
    pair.wait(pair.one, "STOP red")
    pair.wait_records(pair.two, 20)
    mark = pair.mark()
    pair.one.safekit("start", "-m", pair.module)
    pair.wait_log(pair.one, mark, ["Transition SWAP from defaultprim", "Begin of Swap"])
    pair.wait_protected(pair.one)
    assert_in_order(pair.log(pair.one, mark), ["Reintegration ended (synchronize)", "Transition SWAP from defaultprim"])
    pair.verify(pair.one)


def test_t5_9_prim_after_an_interrupted_reintegration(pair: Pair) -> None:
    pair.install(userconfig(rfs=SLOW))
    pair.one.run(f"head -c 40000000 /dev/urandom > {pair.backing}/big")
    pair.one.safekit("prim", "-m", pair.module)
    pair.wait(pair.one, "ALONE green")
    pair.two.safekit("second", "-m", pair.module)
    pair.wait_copying(pair.two)
    pair.two.safekit("stop", "-m", pair.module)
    pair.wait(pair.two, "STOP red")
    pair.one.safekit("stop", "-m", pair.module)
    pair.wait(pair.one, "STOP red")
    pair.expect("inconsistent", "advice_primforce", "prim_aborted")
    mark = pair.mark()
    pair.two.safekit("prim", "-m", pair.module)
    pair.wait_log(pair.two, mark, [INCONSISTENT, ADVICE_FORCE])
    pair.wait_log(pair.two, mark, ["Requested prim start aborted "])
    pair.wait(pair.two, "STOP red")
    assert "data at risk" in pair.two.safekit("state").stdout
    mark = pair.mark()
    pair.two.safekit("primforce", "-m", pair.module)
    pair.wait_log(pair.two, mark, ["Action primforce called by root"])
    pair.wait(pair.two, "ALONE green")
    pair.wait_records(pair.two, 5)
    pair.one.safekit("second", "-m", pair.module)
    pair.wait_protected(pair.two, timeout=90)
    pair.verify(pair.two, servers=[pair.two])


def test_prim_is_refused_when_the_other_server_is_primary(pair: Pair) -> None:
    pair.install(userconfig())
    pair.one.safekit("prim", "-m", pair.module)
    pair.wait(pair.one, "ALONE green")
    pair.expect("prim_aborted")
    mark = pair.mark()
    pair.two.safekit("prim", "-m", pair.module)
    pair.wait_log(pair.two, mark, ["Requested prim start aborted "])
    pair.wait(pair.two, "STOP red")
    assert pair.state(pair.one) == "ALONE green"


def test_default_timeouts_survive_a_power_off(pair: Pair) -> None:
    """The one test with the default heartbeats: lost within 30 s and a pulse, not much earlier."""
    pair.install(userconfig(heart=""))
    pair.first_start(pair.one)
    pair.wait_records(pair.one, 20)
    pair.expect("failover_no_heartbeat", "previous_halt")
    pair.one.poweroff()
    pair.wait(pair.two, "ALONE green", timeout=45)
    pair.wait_records(pair.two, 5)
    pair.one.poweron()
    pair.one.safekit("start", "-m", pair.module)
    pair.wait_protected(pair.two)
    pair.verify(pair.two)

"""Faults of a farm under traffic, on three nodes with everything that runs there: who is not concerned notices nothing,
and afterwards all share again. One lab; what needs no module around it is in tests/t2_process/test_farm_moves.py."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from farm import FULL, NORMAL, FarmLab, farm_config, figures
from labs import lab_of_the_file

from lab.cluster import Lab, Node
from lab.waiting import wait_until

PULSE_MS, COUNT = 500, 6
LEASE = PULSE_MS * COUNT / 1000


cluster = lab_of_the_file(nodes=3)


def installed(cluster: Lab, config: str) -> FarmLab:
    farm = FarmLab(cluster)
    farm.set_up(config)
    return farm


@pytest.fixture(scope="module")
def patient_farm(cluster: Lab) -> Iterator[FarmLab]:
    """Three seconds until a silent server is replaced: a restarted process is back before that."""
    farm = installed(cluster, farm_config(cluster, kind="vmac_invisible", pulse=PULSE_MS, count=COUNT))
    yield farm
    for node in farm.nodes:
        farm.stop(node)


@pytest.fixture(scope="module", params=["vmac_invisible", "vmac_directed"])
def quick_farm(cluster: Lab, request: pytest.FixtureRequest) -> Iterator[FarmLab]:
    """Half a second until a silent server is replaced."""
    farm = installed(cluster, farm_config(cluster, kind=request.param))
    yield farm
    for node in farm.nodes:
        farm.stop(node)


def begun(farm: FarmLab) -> Iterator[FarmLab]:
    farm.begin_test()
    farm.expect(*NORMAL)
    for node in farm.nodes:
        if farm.state(node) != "UP green":
            node.safekit("start", "-m", farm.module)
    farm.wait_sharing(*farm.nodes)
    farm.client.run(["ip", "neigh", "flush", "all"])
    yield farm
    farm.check_logs()


@pytest.fixture
def patient(patient_farm: FarmLab) -> Iterator[FarmLab]:
    yield from begun(patient_farm)


@pytest.fixture
def quick(quick_farm: FarmLab) -> Iterator[FarmLab]:
    yield from begun(quick_farm)


def whole(farm: FarmLab) -> None:
    """All share: every bucket of every rule has one owner, and the client is served by all."""
    farm.wait_sharing(*farm.nodes)
    shown = [farm.bitmaps(node) for node in farm.nodes]
    for rule in range(4):
        bits = [each[rule][1] for each in shown]
        assert sum(bits) == FULL and sorted(each.bit_count() for each in bits) == [85, 85, 86]
    assert set(farm.count(farm.vips[0], 80, 100)) == {node.name for node in farm.nodes}


def broken_of(result: dict[str, Any]) -> dict[str, set[str]]:
    """How the open connections of each server ended, those that did."""
    found: dict[str, set[str]] = {}
    for number, how in result["broken"].items():
        found.setdefault(result["who"][int(number)], set()).add(how.split()[0])
    return found


def test_a_killed_vipd_is_back_before_anybody_notices(patient: FarmLab) -> None:
    victim = patient.nodes[0]
    open_ = [patient.long(address, 80, 12)[0] for address in patient.vips]
    shorts = [patient.short(address, 80, 400, pause=0.01, limit=1.0) for address in patient.vips]
    patient.expect("process_died")
    mark = patient.mark()
    (killed,) = victim.kill("vipd")
    patient.wait_log(victim, mark, ["Farm: vipd goes on with the packet filters of its life before"], LEASE, "EI")
    assert victim.pids("vipd") not in ([], [killed])
    for process in shorts:
        result = figures(process)
        assert result["failed"] == [] and set(result["found"]) == {"node1", "node2", "node3"}, result
    for process in open_:
        assert figures(process)["broken"] == {}
    # Nobody took anything over.
    for node in patient.nodes[1:]:
        assert not [line for line in patient.log(node, mark) if line.code == "farm_membership"]
    assert [patient.state(node) for node in patient.nodes] == ["UP green"] * 3
    whole(patient)


def test_a_frozen_vipd_is_replaced_and_its_connections_stay(patient: FarmLab) -> None:
    """Its server still runs the application: open connections there belong to nobody else."""
    frozen, *rest = patient.nodes
    patient.expect("farm_frozen")
    mark = patient.mark()
    frozen.freeze("vipd")
    try:
        # Until its lease ends it serves its share by the last bitmap.
        early = patient.count(patient.vips[0], 80, 40, limit=0.5)
        assert "node1" in early and not any(name.startswith("!") for name in early), early
        patient.wait_sharing(*rest)
        wait_until(
            lambda: set(patient.count(patient.vips[0], 80, 40, limit=0.5)) == {"node2", "node3"},
            LEASE + 5,
            "the two others serve all clients",
        )
        assert patient.state(frozen) == "UP green"
    finally:
        frozen.thaw("vipd")
    patient.wait_sharing(*patient.nodes)
    assert any(line.code == "farm_frozen" for line in patient.log(frozen, mark))
    whole(patient)


def test_a_frozen_server_is_replaced_and_knows_it_when_it_wakes(quick: FarmLab) -> None:
    """A virtual machine that stands still: every process of the server."""
    frozen, *rest = quick.nodes
    quick.expect("farm_frozen")
    open_ = quick.long(quick.vips[0], 80, 24)[0]
    frozen.freeze()
    try:
        quick.wait_sharing(*rest)
        # Its kernel serves its share until the lease ends.
        wait_until(
            lambda: set(quick.count(quick.vips[0], 80, 40, limit=1.0)) == {"node2", "node3"},
            5,
            "the two others serve all clients",
        )
    finally:
        frozen.thaw()
    broken = broken_of(figures(open_))
    assert set(broken) <= {frozen.name}, broken
    whole(quick)


def test_split_and_merge_under_traffic(quick: FarmLab) -> None:
    one, two, three = quick.nodes
    open_: list[subprocess.Popen[str]] = [quick.long(address, 80, 12)[0] for address in quick.vips]
    time.sleep(0.5)
    with quick.isolated(one, two, three, quick.client):
        quick.wait_sharing(one)
        quick.wait_sharing(two, three)
        assert quick.bitmaps(one)[0] == (1, FULL)
        shorts = [quick.short(address, 80, 150, pause=0.01, limit=1.0) for address in quick.vips]
        for process in shorts:
            result = figures(process)
            assert result["failed"] == [] and set(result["found"]) == {"node2", "node3"}, result
    shorts = [quick.short(address, 80, 300, pause=0.01) for address in quick.vips]
    quick.wait_sharing(*quick.nodes)
    for process in shorts:
        # A merge moves buckets between living servers: a SYN may have to be repeated, no connection fails.
        result = figures(process)
        assert result["failed"] == [] and result["slowest"] < 2.5, result
    for process in open_:
        broken = broken_of(figures(process))
        # Clients of the server that was cut off were told by who took over.
        assert broken in ({"node1": {"ConnectionResetError"}}, {}), broken
    whole(quick)


@pytest.mark.parametrize("seconds", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_a_server_that_flaps_disturbs_only_its_own_clients(quick: FarmLab, seconds: int) -> None:
    """Its cable is pulled and plugged every second; it is not the one whose MAC the client knows."""
    quick.client.run(["ping", "-c1", "-W2", quick.vips[0]])
    known = quick.neighbour(quick.vips[0])
    flapping = next(node for node in reversed(quick.nodes) if quick.mac(node) != known)
    rest = [node for node in quick.nodes if node is not flapping]
    process = quick.long(quick.vips[0], 80, 24)[0]
    pids = {node.name: node.pids("vipd") for node in quick.nodes}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        flapping.cut("default")
        time.sleep(1.0)
        flapping.join("default")
        time.sleep(1.0)
    result = figures(process)
    broken = broken_of(result)
    assert set(broken) <= {flapping.name}, (broken, flapping.name)
    assert {node.name: node.pids("vipd") for node in quick.nodes} == pids
    assert [quick.state(node) for node in quick.nodes] == ["UP green"] * 3
    whole(quick)
    for node in rest:
        told = json.dumps([line.english for line in quick.log(node, quick.begun) if line.code == "farm_membership"])
        assert 2 <= told.count("farm membership") <= 2 * seconds + 4, told


@pytest.mark.parametrize("heard", ["deaf", "mute"])
def test_after_a_one_way_cut_one_side_serves(quick: FarmLab, heard: str) -> None:
    """node1 does not hear the others, or they do not hear it: whoever knows of it gives way, so no client has two."""
    one, *rest = quick.nodes
    quick.expect("farm_gave_way", "farm_back")
    for node in rest:
        quick.lab.block(*((node, one) if heard == "deaf" else (one, node)), "default")
    try:

        def one_side() -> bool:
            accepted = [_served(quick, node) for node in quick.nodes]
            return accepted in ([FULL, 0, 0], [0, accepted[1], FULL ^ accepted[1]])

        wait_until(one_side, 15, lambda: f"{[hex(_served(quick, node)) for node in quick.nodes]}\n{quick.tail()}")
    finally:
        for node in rest:
            quick.lab.unblock(*((node, one) if heard == "deaf" else (one, node)), "default")
    whole(quick)


def _served(farm: FarmLab, node: Node) -> int:
    found = farm.bitmaps(node)
    return found[0][1] if found else 0


def test_a_killed_vipd_at_the_moment_of_a_stop_of_another(patient: FarmLab) -> None:
    """The restarted process learns of what it missed."""
    one, two, three = patient.nodes
    patient.expect("process_died")
    two.kill("vipd")
    patient.stop(three)
    patient.wait_sharing(one, two)
    assert _served(patient, one) | _served(patient, two) == FULL
    assert set(patient.count(patient.vips[0], 80, 60)) == {"node1", "node2"}
    patient.start_up(three)
    whole(patient)

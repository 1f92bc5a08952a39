"""The lab's plan, faults and units, as values."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from installation.requirements import missing
from lab.errors import LabError
from lab.faults import Faults, rules
from lab.plan import Plan
from lab.units import Unit, parse, restarts, seconds

PLAN = Plan("lab1", 3, ("default", "repli"))


def test_addresses_and_ports_are_unique() -> None:
    cables = [cable for machine in PLAN.machines for cable in PLAN.cables(machine)]
    for field in ("port", "delayed", "relay_end", "mac", "ipv4", "ipv6"):
        values = [getattr(cable, field) for cable in cables]
        assert len(set(values)) == len(cables), field
    assert all(len(cable.delayed) < 16 for cable in cables), "the kernel's limit for interface names"
    taken = {address for cable in cables for address in (cable.ipv4, cable.ipv6)}
    assert PLAN.virtual_ipv4 not in taken and PLAN.virtual_ipv6 not in taken
    assert [cable.lan for cable in PLAN.cables("client")] == ["default"]


def test_cluster_xml_names_every_node_on_every_lan() -> None:
    text = PLAN.cluster_xml()
    assert text.count("<lan ") == 2 and text.count("<node ") == 6
    assert '<node name="node3" addr="10.88.2.13"/>' in text


@pytest.mark.parametrize(
    ("name", "size", "lans", "binds"),
    [
        ("Lab", 2, ("a",), ()),
        ("x" * 33, 2, ("a",), ()),
        ("../x", 2, ("a",), ()),
        ("lab", 0, ("a",), ()),
        ("lab", 33, ("a",), ()),
        ("lab", 2, (), ()),
        ("lab", 2, ("a", "a"), ()),
        ("lab", 2, ('a"b',), ()),
        ("lab", 2, ("a",), ("relative",)),
        ("lab", 2, ("a",), ("/var",)),
        ("lab", 2, ("a",), ("/x/../etc",)),
    ],
)
def test_impossible_labs_are_refused(name: str, size: int, lans: tuple[str, ...], binds: tuple[str, ...]) -> None:
    with pytest.raises(LabError) as caught:
        Plan(name, size, lans, binds)
    assert caught.value.next_step


def test_rules_replace_all_former_ones_and_concern_both_ports_of_a_link() -> None:
    faults = Faults(blocked=frozenset({("node1", "node2", "repli")}), loss={("client", "default"): 2.5})
    text = rules(PLAN, faults)
    assert text.startswith("table bridge safelab\ndelete table bridge safelab\n")
    assert "iifname { n1e1, n1d1 } oifname { n2e1, n2d1 } drop" in text
    for direction in ("iifname", "oifname"):
        assert f"{direction} {{ c0e0, c0d0 }} numgen random mod 100000 < 2500 drop" in text
    assert "numgen" not in rules(PLAN, Faults(loss={("client", "default"): 100.0})), "nft refuses a share of all"


def test_faults_are_values() -> None:
    none = Faults()
    slow = none.with_value("delay", ("node1", "repli"), 40.0)
    assert none.delay == {} and slow.delay == {("node1", "repli"): 40.0}
    assert slow.with_value("delay", ("node1", "repli"), None) == none
    assert slow.to_json()["delay"] == [["node1", "repli", 40.0]]


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("1min 30s", 90), ("100ms", 0.1), ("15min", 900), ("infinity", float("inf"))]
)
def test_time_spans(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "soon", "5 parsecs"])
def test_bad_time_spans(text: str) -> None:
    with pytest.raises(ValueError, match="time span"):
        seconds(text)


def test_the_products_unit_is_understood() -> None:
    from installation.source import this_checkout

    unit = parse("safeadmin", (this_checkout().path / "private/conf/systemd/safeadmin.service").read_text())
    assert unit.command == ("/opt/safekit/private/env/bin/safeadmin",)
    assert unit.restart == "on-failure" and unit.restart_delay == 1 and unit.stop_timeout >= 300
    assert unit.umask == 0o007 and len(unit.limits) == 3
    with pytest.raises(ValueError, match="no ExecStart"):
        parse("empty", "[Service]\n")


def test_restart_on_failure_is_systemds() -> None:
    unit = Unit("u", ("/bin/true",), restart="on-failure")
    clean, failed = 0, 1 << 8
    assert not restarts(unit, clean) and restarts(unit, failed)
    assert restarts(unit, signal.SIGKILL) and not restarts(unit, signal.SIGTERM)
    assert restarts(replace(unit, restart="always"), clean) and not restarts(replace(unit, restart="no"), failed)


def test_requirements_are_compared_with_what_is_installed() -> None:
    assert missing(("click>=8", 'nosuch; python_version < "3"')) == ()
    assert missing(("click>=999", "no-such-package")) == ("click>=999", "no-such-package")

"""The default rules of guide 13.18.5 as truth tables."""

from __future__ import annotations

import itertools

import pytest

from safekit.disk.paths import private_conf
from safekit.rules.ast import Act
from safekit.rules.evaluator import View, evaluate
from safekit.rules.order import module_rules
from safekit.rules.source import RulesFileError, default_text

DEFAULT = default_text(private_conf() / "include" / "failover.xml")
RULES = {rule.label: rule for rule in module_rules("", DEFAULT)}
STATES = ("up", "down", "unknown")


def test_exactly_the_documented_rules() -> None:
    assert list(RULES) == [
        "module_failure",
        "interface_failure",
        "ping_failure",
        "tcp_failure",
        "ip_failure",
        "splitbrain_failure",
        "notuptodate_server",
        "lastprim_server",
        "swap_server",
        "flow_check",
        "degraded_server",
    ]


def fires(label: str, local: dict[str, str], remote: dict[str, str] | None = None) -> bool:
    return evaluate((RULES[label],), View(local, remote)).fired != ()


@pytest.mark.parametrize(
    ("label", "resource", "verb"),
    [
        ("module_failure", "module.x_10.0.0.1", "wait"),
        ("interface_failure", "intf.192.168.0.0", "wait"),
        ("ping_failure", "ping.gw", "wait"),
        ("tcp_failure", "tcp.id", "restart"),
        ("ip_failure", "ip.10.0.0.9", "stopstart"),
        ("splitbrain_failure", "splitbrain.uptodate", "wait"),
    ],
)
def test_checker_rules(label: str, resource: str, verb: str) -> None:
    outcome = RULES[label].outcome
    assert isinstance(outcome, Act) and outcome.verb.value == verb
    assert fires(label, {resource: "down"})
    assert fires(label, {resource: "down", f"{resource}2": "up"})
    for value in ("up", "init", "unknown"):
        assert not fires(label, {resource: value}), value
    assert not fires(label, {})


@pytest.mark.parametrize(("own", "remote", "swapping"), list(itertools.product(STATES, STATES, STATES[:2])))
def test_notuptodate_server(own: str, remote: str, swapping: str) -> None:
    expected = (
        (own == "down" and remote == "down")
        or (swapping == "down" and own == "down" and remote == "unknown")
        or (own == "unknown" and remote == "down")
    )
    local = {"rfs.swapping": swapping} | ({"rfs.uptodate": own} if own != "unknown" else {})
    peer = {"rfs.uptodate": remote} if remote != "unknown" else None
    assert fires("notuptodate_server", local, peer) is expected


@pytest.mark.parametrize(("own", "remote", "last", "remote_last"), list(itertools.product(*[STATES[:2]] * 4)))
def test_lastprim_server(own: str, remote: str, last: str, remote_last: str) -> None:
    expected = (own, remote, last, remote_last) == ("down", "down", "up", "down")
    local = {"rfs.uptodate": own, "rfs.lastprimstate": last}
    assert fires("lastprim_server", local, {"rfs.uptodate": remote, "rfs.lastprimstate": remote_last}) is expected


def test_swap_server() -> None:
    assert fires("swap_server", {"rfs.swapping": "up", "rfs.uptodate": "down"}, None)
    assert not fires("swap_server", {"rfs.swapping": "up", "rfs.uptodate": "down"}, {"rfs.uptodate": "up"})
    assert not fires("swap_server", {"rfs.swapping": "down", "rfs.uptodate": "down"}, None)


@pytest.mark.parametrize(("flow", "own"), list(itertools.product(("up", "down", "init"), ("up", "down", None))))
def test_flow_check(flow: str, own: str | None) -> None:
    local = {"heartbeat.flow": flow} | ({"rfs.uptodate": own} if own else {})
    assert fires("flow_check", local) is (flow == "down" and own != "up")


def test_degraded_server() -> None:
    assert fires("degraded_server", {}, {"rfs.degraded": "up"})
    assert not fires("degraded_server", {"rfs.degraded": "up"}, {"rfs.degraded": "down"})
    assert not fires("degraded_server", {}, None)


def test_own_rules_come_first_and_replace_labels() -> None:
    rules = module_rules("ping_failure: if (ping.gw == down) then stopstart(); x: if (TRUE) then y.y=up;", DEFAULT)
    assert [rule.label for rule in rules[:3]] == ["ping_failure", "x", "module_failure"]
    assert sum(rule.label == "ping_failure" for rule in rules) == 1
    assert [r.label for r in module_rules("x: if (TRUE) then stop();", None)] == ["x"], 'extends="no"'


def test_inserted_rules() -> None:
    labels = [rule.label for rule in module_rules("", DEFAULT, syncdelta=2, syncat=True)]
    assert labels[-2:] == ["force_uptodate", "syncat_wait"]
    assert len(module_rules("", DEFAULT, syncdelta=1)) == len(RULES)


def test_a_missing_or_broken_file_is_told(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "failover.xml"
    with pytest.raises(RulesFileError, match="cannot read"):
        default_text(path)
    path.write_text("<failover>")
    with pytest.raises(RulesFileError, match="well-formed"):
        default_text(path)
    path.write_text("<other/>")
    with pytest.raises(RulesFileError, match="expected <failover>"):
        default_text(path)

"""What a running module takes, mount tables, and names that must agree between files."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from safekit.model import directories, dynamic, schema
from safekit.model.checks import overlap, valid_netmask
from safekit.model.findings import Places
from safekit.model.regex import BadExpression, Expression
from safekit.model.types import (
    Check,
    Errd,
    Failover,
    Farm,
    FarmLan,
    Group,
    Heart,
    Heartbeat,
    Interface,
    ModuleConfig,
    PingCheck,
    Replicated,
    Rfs,
    Service,
    User,
    Vip,
    VirtualAddr,
    VirtualHostname,
)

BASE = ModuleConfig(
    "AM",
    1,
    heart=Heart((Heartbeat("default", "flow", 8888),)),
    rfs=Rfs((Replicated("/d"),), flow="default", port=5600),
    vip=Vip(interfaces=(Interface((VirtualAddr("10.0.0.9"),)),)),
)

TAKEN = {
    "maxloop": replace(BASE, service=Service(maxloop=9)),
    "loop_interval": replace(BASE, service=Service(loop_interval_h=1)),
    "automatic_reboot": replace(BASE, service=Service(automatic_reboot=True)),
    "heart": replace(BASE, heart=Heart((Heartbeat("default", "a", 8888), Heartbeat("repli", "b", 8888)))),
    "async": replace(BASE, rfs=replace(BASE.rfs or Rfs(), async_mode="none")),
    "nbrei": replace(BASE, rfs=replace(BASE.rfs or Rfs(), nbrei=9)),
    "reitimeout": replace(BASE, rfs=replace(BASE.rfs or Rfs(), reitimeout=9)),
    "reidetail": replace(BASE, rfs=replace(BASE.rfs or Rfs(), reidetail=True)),
    "flow": replace(BASE, rfs=replace(BASE.rfs or Rfs(), flow="repli")),
    "user added": replace(BASE, user=User()),
    "errd added": replace(BASE, errd=Errd()),
    "checker added": replace(BASE, check=Check(ping=(PingCheck("p", "10.0.0.1"),))),
    "only the line of the rules moved": replace(BASE, failover=Failover(rules_line=7)),
    "applied at another time": replace(BASE, configured_at=5.0),
}

REFUSED = {
    "service failover": replace(BASE, service=Service(failover=False)),
    "service defaultprim": replace(BASE, service=Service(defaultprim="n1")),
    "rfs locktimeout": replace(BASE, rfs=replace(BASE.rfs or Rfs(), locktimeout=9)),
    "rfs reiallowedbw": replace(BASE, rfs=replace(BASE.rfs or Rfs(), reiallowedbw=9)),
    "rfs replicated": replace(BASE, rfs=replace(BASE.rfs or Rfs(), replicated=(Replicated("/e"),))),
    "rfs ": replace(BASE, rfs=None),
    "vip interfaces": replace(BASE, vip=Vip(interfaces=(Interface((VirtualAddr("10.0.0.8"),)),))),
    "vip groups": replace(BASE, vip=replace(BASE.vip or Vip(), groups=(Group("g"),))),
    "farm ": replace(BASE, farm=Farm(4803, (FarmLan("default"),))),
    "vhost ": replace(BASE, vhost=(VirtualHostname("v", "e"),)),
    "failover period": replace(BASE, failover=Failover(period_ms=1000)),
    "failover rules": replace(BASE, failover=Failover(rules="a: if (x.y == down) then stop();")),
}


@pytest.mark.parametrize("new", TAKEN.values(), ids=TAKEN)
def test_a_running_module_takes(new: ModuleConfig) -> None:
    assert dynamic.refused(BASE, new, dynamic.load_table(), Places("f")) == []


@pytest.mark.parametrize(("name", "new"), REFUSED.items(), ids=REFUSED)
def test_a_running_module_refuses(name: str, new: ModuleConfig) -> None:
    (change,) = dynamic.changes(BASE, new)
    assert f"{change.section} {change.attribute}" == name
    (finding,) = dynamic.refused(BASE, new, dynamic.load_table(), Places("f"))
    assert "safekit stop -m AM" in finding.message and finding.severity == "error"


def test_the_table_names_what_the_schema_knows() -> None:
    service = schema.load("userconfig").shape.children["service"]
    table = dynamic.load_table()
    assert table.subtrees <= set(service.children)
    for section, attribute in table.attributes:
        shape = service if section == "service" else service.children[section]
        assert attribute in shape.attributes or attribute in shape.children, (section, attribute)
    assert set(dynamic.SECTIONS) == {"service", *service.children}


MOUNTINFO = rb"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 0:35 / /srv/my\040data rw - tmpfs tmp\134fs rw
41 22 0:36 / /srv/db rw,nosuid - fuse.safekit nfsbox rw,user_id=0
short line
"""


def test_mount_table() -> None:
    table = directories.parse_mountinfo(MOUNTINFO)
    assert [(m.point, m.fstype, m.source) for m in table] == [
        ("/", "ext4", "/dev/vda1"),
        ("/srv/my data", "tmpfs", "tmp\\fs"),
        ("/srv/db", "fuse.safekit", "nfsbox"),
    ]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("/a", "/a", True),
        ("/a", "/a/b", True),
        ("/a/b", "/a", True),
        ("/a", "/ab", False),
        ("/a_s", "/a", True),
        ("/a", "/a_s/below", True),
        ("/a/b", "/a/c", False),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other, "_s", "_s") is expected


def test_netmasks() -> None:
    assert all(map(valid_netmask, ("255.255.255.0", "255.255.254.0", "128.0.0.0", "255.255.255.255")))
    assert not any(map(valid_netmask, ("255.0.255.0", "0.0.0.0", "24", "255.255.255", "0.0.0.255", "", "x")))


def test_expressions_of_man_regex() -> None:
    word = Expression("^[[:digit:]]+[[:alpha:]_]$")
    assert word.found_in("12_") and not word.found_in("_12")
    assert Expression("oracle_.*").found_in("ora oracle_1"), "a part is enough for commands"
    name = Expression(r"cache/.*\.tmp", of_names=True)
    assert name.is_whole(b"cache/\xff\n.tmp") and not name.is_whole(b"a/cache/x.tmp")
    assert Expression("é+$").found_in("caf\udcff é")


@pytest.mark.parametrize("text", ["(a", "[a", r"(a)\1", "a(?=b)", "a{5000}", "\udcff"])
def test_what_is_no_expression_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(BadExpression) as caught:
        Expression(text)
    assert len(str(caught.value)) > 5


@pytest.mark.parametrize("expression", [".*4242.*", "(a+)+$", "(a|a)*b", "([a-z]+)*[0-9]"])
def test_no_text_of_a_stranger_costs_more_than_its_length(expression: str) -> None:
    """An engine that tries again and again takes from 11 seconds to for ever for each of these."""
    begun = time.process_time()
    assert not Expression(expression).found_in("a" * 120_000 + "!")
    assert not Expression(expression, of_names=True).is_whole(b"a" * 120_000 + b"!")
    assert time.process_time() - begun < 2

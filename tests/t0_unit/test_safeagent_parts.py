"""The agent's settings, its judgement of who may what, and its limits. Pure."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeagent.access import Requester, known, may, plain
from safeagent.inventory import Tracked
from safeagent.traps import BURST, Bucket
from safeagent.tree import MODULE_ENTRY, action_of, date, text
from safekit.model.snmpd import AgentSettings, Community, Family, Level, Listen, Sink, SinkKind, parse_settings
from special.firewallcfg import agent_ports

ACTION = (*MODULE_ENTRY, 4, 1)
LOOPBACK, MANAGER, OTHER = "127.0.0.1", "10.0.0.9", "192.0.2.1"


def who(name: str, address: str, model: int = 2, level: Level = Level.NOAUTH) -> Requester:
    return Requester(model, name, level, plain(address))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("agentaddress 3600", (Listen(Family.IPV4, "", 3600),)),
        (
            "agentaddress 127.0.0.1:161,udp6:[::1]:162",
            (Listen(Family.IPV4, "127.0.0.1", 161), Listen(Family.IPV6, "::1", 162)),
        ),
        ("agentaddress udp:10.0.0.1", (Listen(Family.IPV4, "10.0.0.1", 3600),)),
        ("agentAddress udp6:161", (Listen(Family.IPV6, "", 161),)),
        ("agentaddress [fd00::1]:99", (Listen(Family.IPV6, "fd00::1", 99),)),
        ("", (Listen(Family.IPV4, "", 3600), Listen(Family.IPV6, "", 3600))),
    ],
)  # fmt: skip
def test_addresses(line: str, expected: tuple[Listen, ...]) -> None:
    found = parse_settings(line)
    assert found.listen == expected and found.problems == ()


@pytest.mark.parametrize(
    "line",
    [
        "agentaddress tcp:3600", "agentaddress 0", "agentaddress 99999", "agentaddress host:161", "rocommunity",
        "rocommunity x 10.0.0.0/40", "rocommunity x default -V all", "trapsink", "trapsink a b 0",
        "createUser x SHA-1 12345678", "createUser x SHA short", "createUser -e 0x80 x SHA 12345678",
        "rouser ghost", "rwuser -s tsm x", "rouser x perhaps", 'rocommunity "x',
    ],
)  # fmt: skip
def test_a_line_that_is_not_understood_gives_nothing(line: str) -> None:
    found = parse_settings(line)
    assert len(found.problems) == 1 and found.communities == () and found.users == () and found.sinks == ()


def test_sinks_and_their_community() -> None:
    found = parse_settings("trapsink a\ntrapcommunity c\ntrap2sink b:99\ninformsink udp6:[::1]:77 d\ntrapsink e f 5\n")
    assert found.sinks == (
        Sink(SinkKind.TRAP1, "a", 162, "public"),
        Sink(SinkKind.TRAP2, "b", 99, "c"),
        Sink(SinkKind.INFORM, "::1", 77, "d"),
        Sink(SinkKind.TRAP1, "e", 5, "f"),
    )


def test_sessions_of_snmpv3() -> None:
    """trapsess as net-snmp's users write it: keys by createUser or in the line; the user may tell, and not ask."""
    text = "createUser t SHA 12345678 AES\ncreateUser a SHA 12345678\n"
    found = parse_settings(
        text + "trapsess -v 3 -u t m:99\ntrapsess -v3 -u t -l authNoPriv -Ci [::1]:77\n"
        "trapsess -u inline -a SHA-256 -A 'a long phrase' -x AES -X 'another one' -l authPriv h\n"
        "trapsess -v 2c -c community h\n"
    )
    assert found.problems == () and [user.name for user in found.users] == ["t", "inline"]
    assert found.sinks == (
        Sink(SinkKind.TRAP2, "h", 162, "community"),
        Sink(SinkKind.TRAP2, "m", 99, "", "t", Level.PRIV),
        Sink(SinkKind.INFORM, "::1", 77, "", "t", Level.AUTH),
        Sink(SinkKind.TRAP2, "h", 162, "", "inline", Level.PRIV),
    )
    assert not any(may(found, who("t", OTHER, 3, Level.PRIV), ACTION, write=write) for write in (False, True))
    for line, said in (
        ("-v 3 -u nobody h", "createUser nobody"),
        ("-v 3 -u a -l authPriv h", "no keys for authPriv"),
        ("-v 3 h", "-u NAME"),
        ("-v 3 -u t", "something is missing"),
        ("-v 4 -u t h", "-v 4"),
        ("-v 3 -u t -l high h", "-l high"),
        ("-v 3 -u t -n context h", "-n"),
        ("-v 3 -u t -Z h", "-Z"),
    ):
        wrong = parse_settings(f"{text}trapsess {line}\n")
        assert wrong.sinks == () and len(wrong.problems) == 1 and said in wrong.problems[0], wrong.problems


def test_writing_needs_a_named_address_or_the_loopback() -> None:
    named = parse_settings("rwcommunity private 10.0.0.9\nrocommunity public\n")
    unnamed = parse_settings("rwcommunity private\nrwcommunity wide default\n")
    assert may(named, who("private", MANAGER), ACTION, write=True)
    assert not may(named, who("private", LOOPBACK), ACTION, write=True)
    assert not may(named, who("public", LOOPBACK), ACTION, write=True)
    for address, works in (
        (LOOPBACK, True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        (MANAGER, False),
        (OTHER, False),
    ):
        for name in ("private", "wide"):
            assert may(unnamed, who(name, address), ACTION, write=True) is works, (name, address)
            assert may(unnamed, who(name, address), ACTION, write=False)
    assert not known(named, who("private", OTHER)) and known(unnamed, who("private", OTHER))


def test_a_user_needs_the_level_of_its_line() -> None:
    found = parse_settings("createUser a SHA 12345678 AES\nrwuser a\ncreateUser b SHA 12345678\nrouser b\n")
    for level, works in ((Level.NOAUTH, False), (Level.AUTH, False), (Level.PRIV, True)):
        assert may(found, who("a", OTHER, 3, level), ACTION, write=True) is works
    assert may(found, who("b", OTHER, 3, Level.AUTH), ACTION, write=False)
    assert not may(found, who("b", OTHER, 3, Level.PRIV), ACTION, write=True)
    assert not may(found, who("a", OTHER, 2, Level.PRIV), ACTION, write=True), "a name of a user is no community"


addresses = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
communities = st.builds(
    Community, st.sampled_from("ab"), st.booleans(),
    st.none() | st.tuples(addresses, st.integers(0, 32)).map(lambda p: ipaddress.ip_network(p, strict=False)),
)  # fmt: skip


@given(st.lists(communities), st.sampled_from("abc"), addresses)
def test_whoever_writes_is_in_a_line_that_says_so(
    lines: list[Community], name: str, address: ipaddress.IPv4Address
) -> None:
    settings = AgentSettings((), tuple(lines))
    asks = Requester(2, name, Level.NOAUTH, address)
    if may(settings, asks, ACTION, write=True):
        assert any(
            c.name == name and c.write and (address in c.source if c.source else address.is_loopback) for c in lines
        )
        assert may(settings, asks, ACTION, write=False) and known(settings, asks)


@given(st.text())
def test_no_text_breaks_the_reading(content: str) -> None:
    parse_settings(content)
    assert not parse_settings(f"rocommunity {content!r} {content!r}").listen[0].address


def test_a_value_that_came_back_has_changed_twice() -> None:
    tracked = Tracked("PRIM", 1.0)
    assert tracked.see("WAIT", 2.0) and tracked.changes == 1
    assert tracked.see("WAIT", 9.0) and tracked.changes == 3
    assert not tracked.see("WAIT", 9.0) and tracked.changes == 3


def test_a_bucket_lets_a_failover_through_and_a_loop_not() -> None:
    bucket = Bucket()
    assert sum(bucket.take(0.001 * n) for n in range(1000)) == BURST + 1
    assert sum(bucket.take(10 + 0.5 * n) for n in range(100)) == 100, "two a second for ever"


def test_values() -> None:
    assert text("é" * 200).value == ("é" * 127).encode(), "cut at a character"
    assert date(0).value == bytes(8) and date(1_000_000_000.5).value == bytes.fromhex(
        "07d109090 12e2805 2b0000".replace(" ", "")
    )
    assert action_of((*MODULE_ENTRY, 4, 7)) == 7 and action_of((*MODULE_ENTRY, 4)) is None
    assert action_of((*MODULE_ENTRY, 2, 7)) is None and action_of((*MODULE_ENTRY, 4, 7, 1)) is None


def test_ports_of_the_firewall_follow_the_settings() -> None:
    """SNM-011: the port that others can reach."""
    assert [p.number for p in agent_ports("")] == [3600]
    assert [p.number for p in agent_ports("agentaddress 161,127.0.0.1:162,udp6:[::1]:163,10.0.0.1:164")] == [161, 164]

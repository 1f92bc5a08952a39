"""The SNMP agent asked by net-snmp's tools (guide 10.8). The first test is who may write: a SET here stops modules."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.waiting import wait_until
from safeagent.inventory import Action
from safekit.log.commands import read
from tests.ports import free_port
from tests.t2_process.agent_server import (
    ACTION,
    CHANGES,
    MESSAGE,
    NAME,
    OUTCOME,
    PREFIX,
    SETTINGS,
    STATE,
    AgentServer,
    tool,
)
from tests.t2_process.cli_server import NotedAdmin
from tests.t2_process.web_server import CHECKOUT

pytestmark = pytest.mark.skipif(shutil.which("snmpget") is None, reason="net-snmp's tools are not here: bin/setup test")

WRITABLE = [(ACTION, "i", str(action.value)) for action in Action if action is not Action.NONE]
V3 = "createUser boss SHA-256 'a long pass phrase' AES 'another one here'\nrwuser boss\n"
V3 += "createUser viewer SHA 'the viewers phrase'\nrouser viewer\n"
BOSS = ("-v3", "-u", "boss", "-a", "SHA-256", "-A", "a long pass phrase", "-x", "AES", "-X", "another one here")


def asked(admin: NotedAdmin) -> list[dict[str, Any]]:
    """What safeadmin was asked to do with modules."""
    return [fields for op, fields in admin.asked if op == "control"]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentServer]:
    made = AgentServer(tmp_path)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    made.module("db", 1, {"state.local": "PRIM", "state.color": "green", "rfs.uptodate": "up"})
    made.module("web", 7, {"state.local": "UP", "state.color": "green"}, runs=False)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def admin(agent: AgentServer) -> Iterator[NotedAdmin]:
    with NotedAdmin(agent.mapper) as noted:
        noted.modules = {"db": {"running": True, "heart": True, "mode": "mirror", "id": 1}}
        yield noted


def test_who_may_write_and_who_may_not(agent: AgentServer, admin: NotedAdmin) -> None:
    """SET by a community that may only read, by a wrong one and by none, by users of SNMPv3 who may not, on every
    object that can be written, and on those that cannot."""
    agent.write(SETTINGS + V3)
    agent.start()
    others = ("-v3", "-u", "viewer", "-a", "SHA", "-A", "the viewers phrase", "-l", "authNoPriv")
    low = (*BOSS[:7], "-l", "authNoPriv")
    wrong = tuple("never this phrase" if word == "a long pass phrase" else word for word in BOSS)
    tries: list[tuple[str, dict[str, Any]]] = []
    for oid, kind, value in WRITABLE:
        for version in ("-v2c", "-v1"):
            for community in ("public", "wrong", "", "Private", "private "):
                expected = "noAccess|noSuchName" if community == "public" else "Timeout"
                tries.append(
                    (expected, {"triple": (f"{oid}.1", kind, value), "community": community, "options": (version,)})
                )
        for options in (others, low, (*wrong, "-l", "authPriv"), ("-v3", "-u", "nobody", "-l", "noAuthNoPriv")):
            expected = "noAccess|Authentication|Unknown user|authorizationError|Unsupported"
            tries.append((expected, {"triple": (f"{oid}.1", kind, value), "options": options}))

    def attempt(one: tuple[str, dict[str, Any]]) -> str:
        expected, given = one
        done = agent.set(*given.pop("triple"), **given)
        refused = done.returncode != 0 and re.search(expected, done.stderr, re.IGNORECASE)
        return "" if refused else f"{given}: {done.returncode} {done.stdout}{done.stderr}"

    with ThreadPoolExecutor(16) as pool:  # most of them wait for an answer that does not come
        assert [said for said in pool.map(attempt, tries) if said] == []
    every = [line.partition(" ")[0] for line in agent.walk()]
    assert len(every) > 40
    for oid in every:
        if not oid.startswith(f"{ACTION}."):
            done = agent.set(oid, "s", "x")
            assert done.returncode != 0 and "notWritable" in done.stderr, (oid, done.stdout, done.stderr)
    assert asked(admin) == [], "nothing was asked for"
    assert agent.set(f"{ACTION}.1", "i", "2").returncode == 0, "private writes from here"
    wait_until(lambda: asked(admin), 5, lambda: agent.output.read_text())
    done = agent.set(f"{ACTION}.1", "i", "1", options=(*BOSS, "-l", "authPriv"))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(asked(admin)) == 2, 5, lambda: str(asked(admin)))
    assert asked(admin)[1]["who"] == "snmp:boss@127.0.0.1"


def test_private_writes_from_named_addresses_only(agent: AgentServer, admin: NotedAdmin) -> None:
    """The loopback is a network: two of its addresses are a manager that is named and one that is not."""
    settings = "agentaddress 127.0.0.1:{port}\nrocommunity public\nrwcommunity private 127.0.0.9\n"
    agent.write(settings)
    agent.start()
    for source, works in (("127.0.0.9", True), ("127.0.0.1", False)):
        done = tool(
            "snmpset", "-v2c", "-c", "private", "-t", "1", "-r", "0", f"--clientaddr={source}",
            f"127.0.0.1:{agent.port}", f"{ACTION}.1", "i", "2",
        )  # fmt: skip
        assert (done.returncode == 0) is works, (source, done.stderr)
        if not works:
            assert "Timeout" in done.stderr, "whoever may ask nothing gets no answer"


def test_states_walk_and_bulk(agent: AgentServer) -> None:
    """SNM-005 to SNM-007."""
    agent.start()
    assert agent.get(f"{STATE}.1") == "4" and agent.get(f"{NAME}.1") == '"db"'
    assert agent.get(f"{STATE}.7") == "0", "a module that does not run is stop(0), whatever its file says"
    for state, number in {"STOP": 0, "WAIT": 1, "ALONE": 2, "UP": 3, "PRIM": 4, "SECOND": 5}.items():
        agent.module("db", 1, {"state.local": state, "state.color": "green"})
        wait_until(lambda n=number: agent.get(f"{STATE}.1") == str(n), 3, lambda s=state: s)  # type: ignore[misc]
    walked = agent.walk()
    assert walked == agent.walk(program="snmpbulkwalk"), "the same, by bulk"
    assert [line for line in walked if line.startswith(f"{NAME}.")] == [f'{NAME}.1 "db"', f'{NAME}.7 "web"']
    assert agent.walk(options=("-v1",)) == walked, "and by SNMPv1"
    assert "No Such Instance" in agent.get(f"{STATE}.3") and "No Such Object" in agent.get(f"{PREFIX}.77.1.0")
    assert agent.get(".1.3.6.1.2.1.1.5.0") == '"n1"' and agent.get(".1.3.6.1.2.1.1.2.0") == PREFIX
    assert tool("snmpbulkget", "-v2c", "-c", "public", "-Cr50", "-Oqn", f"127.0.0.1:{agent.port}", ".1").returncode == 0


def test_resources_keep_their_numbers(agent: AgentServer) -> None:
    """SNM-009."""
    base = {"state.local": "PRIM", "state.color": "green"}
    agent.module("db", 1, {**base, "intf.10.0.0.0": "up", "tcp.z": "init"})
    agent.start()

    def names() -> dict[str, int]:
        rows = (line.partition(" ") for line in agent.walk(f"{PREFIX}.2.1.2.1"))
        return {value.strip('"'): int(oid.rpartition(".")[2]) for oid, _, value in rows}

    first = names()
    assert set(first) == {*base, "intf.10.0.0.0", "tcp.z"}
    assert agent.get(f"{PREFIX}.2.1.3.1.{first['tcp.z']}") == "1"
    agent.module("db", 1, {**base, "custom.new": "down", "tcp.z": "up"}, date=2.0)
    wait_until(lambda: "custom.new" in names(), 3, lambda: str(names()))
    second = names()
    assert {n: second[n] for n in (*base, "tcp.z")} == {n: first[n] for n in (*base, "tcp.z")}
    assert second["custom.new"] not in first.values(), "a number is not given again"
    assert agent.get(f"{PREFIX}.2.1.3.1.{second['custom.new']}") == "3"
    assert agent.get(f"{PREFIX}.2.1.7.1.{second['tcp.z']}") == "1", "it changed once"
    agent.stop()
    agent.module("db", 1, {**base, "aaa.first": "up", "intf.10.0.0.0": "up", "tcp.z": "up"}, date=3.0)
    agent.start()
    third = names()
    assert {n: third[n] for n in (*base, "tcp.z", "intf.10.0.0.0")} == {
        n: first[n] for n in (*base, "tcp.z", "intf.10.0.0.0")
    }
    assert agent.get(f"{PREFIX}.2.1.4.1.{third['tcp.z']}") == '"up"'


def test_a_short_flip_is_counted(agent: AgentServer) -> None:
    """Between two polls: WAIT and back. The state is the same, the counter is not."""
    agent.start()
    assert agent.get(f"{CHANGES}.1") == "0"
    before = agent.get(f"{PREFIX}.1.1.13.1")
    agent.module("db", 1, {"state.local": "WAIT", "state.color": "magenta"}, date=50.0)
    agent.module("db", 1, {"state.local": "PRIM", "state.color": "green"}, date=51.0)
    wait_until(lambda: agent.get(f"{CHANGES}.1") == "2", 5, lambda: agent.get(f"{CHANGES}.1"))
    assert agent.get(f"{STATE}.1") == "4" and agent.get(f"{PREFIX}.1.1.13.1") != before


def test_what_becomes_of_an_action(agent: AgentServer, admin: NotedAdmin) -> None:
    """SNM-008."""
    agent.start()
    for action in list(Action)[1:]:
        assert agent.set(f"{ACTION}.1", "i", str(action.value)).returncode == 0
        wait_until(
            lambda a=action: any(f["action"] == a.name.lower() for f in asked(admin)), 5, lambda: str(asked(admin))
        )  # type: ignore[misc]
        wait_until(lambda: agent.get(f"{OUTCOME}.1") == "3", 10, lambda: agent.get(f"{OUTCOME}.1"))
    assert [f["action"] for f in asked(admin)] == [a.name.lower() for a in list(Action)[1:]]
    noted = [entry.arguments for entry in read() if entry.code == 0]
    assert noted[1] == "stop -m db -u snmp@127.0.0.1", "no community in the commands log"
    admin.refusal = ("state", "the other server is primary; safekit state")
    assert agent.set(f"{ACTION}.1", "i", "6").returncode == 0, "answered at once"
    wait_until(lambda: agent.get(f"{OUTCOME}.1") == "4", 5, lambda: agent.get(f"{OUTCOME}.1"))
    assert "the other server is primary" in agent.get(f"{MESSAGE}.1")


def test_a_set_of_several_is_all_or_nothing(agent: AgentServer, admin: NotedAdmin) -> None:
    agent.start()
    for bad, error in (
        ((f"{ACTION}.99", "i", "1"), "noCreation"),
        ((f"{ACTION}.7", "i", "99"), "wrongValue"),
        ((f"{ACTION}.7", "s", "stop"), "wrongType"),
        ((f"{NAME}.7", "s", "x"), "notWritable"),
        ((f"{ACTION}.1", "i", "1"), "inconsistentValue"),
    ):
        done = agent.set(f"{ACTION}.1", "i", "2", *bad)
        assert done.returncode != 0 and error in done.stderr, (bad, done.stderr)
    time.sleep(0.5)  # what must not come has no moment
    assert asked(admin) == []


def test_a_silent_safeadmin_is_told(agent: AgentServer) -> None:
    """SET is answered at once, GET goes on, and the outcome tells it (pending, then refused)."""
    agent.start()
    begun = time.monotonic()
    assert agent.set(f"{ACTION}.1", "i", "2").returncode == 0
    assert time.monotonic() - begun < 2 and agent.get(f"{OUTCOME}.1") == "1"
    done = agent.set(f"{ACTION}.1", "i", "1")
    assert done.returncode != 0 and "inconsistentValue" in done.stderr, "one at a time until it is answered"
    wait_until(lambda: agent.get(f"{OUTCOME}.1") == "4", 30, lambda: agent.get(f"{MESSAGE}.1"))
    assert "safeadmin" in agent.get(f"{MESSAGE}.1")


def test_rubbish_and_unknown_lines(agent: AgentServer) -> None:
    agent.write(
        SETTINGS + "view all included .1\nview other included .1\ndisk /\nrocommunity x 300.0.0.0\nagentaddress tcp:1\n"
    )
    agent.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for size in (0, 1, 7, 100, 1400):
            for _ in range(40):
                sock.sendto(os.urandom(size), ("127.0.0.1", agent.port))
        good = bytes.fromhex("302602010104067075626c6963a019020401020304020100020100300b300906052b060102010500")
        for cut in range(len(good)):
            sock.sendto(good[:cut], ("127.0.0.1", agent.port))
            sock.sendto(good[:cut] + b"\xff" + good[cut + 1 :], ("127.0.0.1", agent.port))
    assert agent.get(f"{STATE}.1") == "4"
    said = agent.stop()
    assert said.count("view") == 1 and "view, disk" in said, said
    assert said.count("Warning") == 2 and "Traceback" not in said and len(said) < 3000, said


def test_without_the_file_nobody_has_access(agent: AgentServer) -> None:
    (agent.safe / "snmp/conf/snmpd.conf").write_text(f"agentaddress 127.0.0.1:{agent.port}\n")
    agent.start()
    assert "Timeout" in agent.get(f"{STATE}.1") and "Timeout" in agent.set(f"{ACTION}.1", "i", "2").stderr
    assert "nobody has access" in agent.stop()


def test_several_addresses_and_ipv6(agent: AgentServer) -> None:
    """An answer comes from the address that was asked, of several ones."""
    more, six = free_port(), free_port()
    agent.write(f"agentaddress {{port}},127.0.0.1:{more},udp6:[::1]:{six}\nrocommunity public\nrocommunity6 public\n")
    agent.start()
    for host in (f"127.0.0.1:{agent.port}", f"127.0.0.77:{agent.port}", f"127.0.0.1:{more}", f"udp6:[::1]:{six}"):
        assert agent.get(f"{STATE}.1", host=host) == "4", host
    assert agent.set(f"{ACTION}.1", "i", "1", community="public", host=f"udp6:[::1]:{six}").returncode != 0


def test_a_community_that_changes_is_the_only_one(agent: AgentServer) -> None:
    """SNM-002, SNM-011: another community and another port after a restart; the old ones are gone."""
    agent.start()
    assert agent.get(f"{STATE}.1") == "4"
    agent.stop()
    old, agent.port = agent.port, free_port()
    agent.output.unlink()
    agent.write("agentaddress 127.0.0.1:{port}\nrocommunity secret\n")
    agent.start()
    assert agent.get(f"{STATE}.1", community="secret") == "4"
    assert "Timeout" in agent.get(f"{STATE}.1") and "Timeout" in agent.get(f"{STATE}.1", host=f"127.0.0.1:{old}")


def test_v3_counts_its_starts(agent: AgentServer) -> None:
    """A manager must not be fooled by messages of a former life: the number of starts grows, the identity stays."""
    agent.write(SETTINGS + V3)
    kept = []
    for _ in range(2):
        agent.start()
        done = tool("snmpget", *BOSS, "-l", "authPriv", "-Oqn", f"127.0.0.1:{agent.port}", f"{STATE}.1")
        assert done.returncode == 0, done.stderr
        kept.append((agent.var / "snmp/engine").read_text().split())
        agent.stop()
        agent.output.unlink()
    assert kept[0][0] == kept[1][0] and int(kept[1][1]) == int(kept[0][1]) + 1
    assert (agent.var / "snmp/engine").stat().st_mode & 0o077 == 0


# Traps


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """net-snmp's snmptrapd: its port, and the file that it writes."""
    program = shutil.which("snmptrapd") or str(CHECKOUT / ".cache/tools/usr/sbin/snmptrapd")
    if not Path(program).exists():
        pytest.skip("snmptrapd is not here: bin/setup test")
    port, heard = free_port(), tmp_path / "heard"
    (tmp_path / "snmptrapd.conf").write_text("disableAuthorization yes\n")
    beside = Path(program).parents[1] / "lib" / f"{os.uname().machine}-linux-gnu"
    process = subprocess.Popen(
        [program, "-f", "-n", "-C", "-c", str(tmp_path / "snmptrapd.conf"), "-Lf", str(heard), "-Oqn", "-m", "",
         f"127.0.0.1:{port}"], env={**os.environ, "LD_LIBRARY_PATH": str(beside)},
    )  # fmt: skip
    wait_until(lambda: heard.exists() and "NET-SNMP" in heard.read_text(), 10, lambda: "snmptrapd")
    yield port, heard
    process.terminate()
    process.wait()


@pytest.mark.parametrize("kind", ["trapsink", "trap2sink", "informsink"])
def test_messages_reach_a_manager(agent: AgentServer, sink: tuple[int, Path], kind: str) -> None:
    """SNM-003, SNM-010."""
    port, heard = sink
    agent.write(SETTINGS + f"{kind} 127.0.0.1:{port} mgr\n")
    agent.start()
    log = agent.followed_log("db")
    log.event("printe", text="the application has gone")
    log.event("printi", text="an information | with a bar")
    log.debug("nobody's business")
    wait_until(lambda: "with a bar" in heard.read_text(), 10, lambda: heard.read_text() + agent.output.read_text())
    said = heard.read_text()
    assert "the application has gone" in said and "nobody's business" not in said
    assert f"{PREFIX}.1.1.3.1" in said and '"db"' in said and "printe" in said
    if kind == "trapsink":
        assert "Enterprise Specific Trap (3)" in said and PREFIX in said, said
    else:
        assert f".1.3.6.1.6.3.1.1.4.1.0 {PREFIX}.3" in said, said
        time.sleep(1.5 if kind == "informsink" else 0)
    said = heard.read_text()
    assert said.count("the application has gone") == 1, "an inform that is acknowledged is not repeated"


@pytest.mark.parametrize("inform", [False, True])
def test_messages_by_snmpv3(agent: AgentServer, tmp_path: Path, inform: bool) -> None:
    """authPriv, to net-snmp's snmptrapd: a notification in the name of our engine, an inform in that of its own."""
    program = shutil.which("snmptrapd") or str(CHECKOUT / ".cache/tools/usr/sbin/snmptrapd")
    if not Path(program).exists():
        pytest.skip("snmptrapd is not here: bin/setup test")
    port, heard = free_port(), tmp_path / "heard"
    user = "teller SHA-256 'a long phrase' AES 'another phrase'"
    agent.write(f"{SETTINGS}createUser {user}\ntrapsess -v 3 -u teller -l authPriv {'-Ci ' * inform}127.0.0.1:{port}\n")
    agent.start()
    engine = (agent.var / "snmp/engine").read_text().split()[0]
    conf = tmp_path / "snmptrapd.conf"
    conf.write_text(
        f"createUser {'' if inform else f'-e 0x{engine} '}{user.replace(chr(39), chr(34))}\nauthUser log teller priv\n"
    )
    beside = Path(program).parents[1] / "lib" / f"{os.uname().machine}-linux-gnu"
    manager = subprocess.Popen(
        [program, "-f", "-n", "-C", "-c", str(conf), "-Lf", str(heard), "-Oqn", "-m", "", f"127.0.0.1:{port}"],
        env={**os.environ, "LD_LIBRARY_PATH": str(beside), "SNMP_PERSISTENT_DIR": str(tmp_path / "kept")},
    )
    try:
        wait_until(lambda: heard.exists() and "NET-SNMP" in heard.read_text(), 10, lambda: "snmptrapd")
        log = agent.followed_log("db")
        for number in range(3):
            log.event("printe", text=f"message {number} of three")
        wait_until(
            lambda: all(f"message {number} of" in heard.read_text() for number in range(3)), 40,
            lambda: heard.read_text() + agent.output.read_text(),
        )  # fmt: skip
        said = heard.read_text()
        assert f".1.3.6.1.6.3.1.1.4.1.0 {PREFIX}.3" in said and all(
            said.count(f"message {n} of") == 1 for n in range(3)
        )
        keys = ("-v3", "-u", "teller", "-a", "SHA-256", "-A", "a long phrase", "-x", "AES", "-X", "another phrase")
        asked = tool(
            "snmpget", *keys, "-l", "authPriv", "-t", "2", "-r", "0", "-Oqn", f"127.0.0.1:{agent.port}", f"{STATE}.1"
        )
        assert asked.stdout.strip().endswith(("No Such Object available on this agent at this OID", "")), asked.stdout
        assert f"{STATE}.1 4" not in asked.stdout, "the user tells, and may not ask"
    finally:
        manager.terminate()
        manager.wait()


def test_an_inform_by_snmpv3_that_nobody_takes_is_given_up(agent: AgentServer) -> None:
    user = "createUser teller SHA 'a long phrase' AES 'another phrase'"
    agent.write(f"{SETTINGS}{user}\ntrapsess -v 3 -u teller -Ci 127.0.0.1:{free_port()}\n")
    agent.start()
    log = agent.followed_log("db")
    log.event("printe", text="to nobody")
    wait_until(lambda: agent.get(f"{PREFIX}.4.4.0") == "1", 60, lambda: agent.output.read_text())
    assert agent.get(f"{STATE}.1") == "4" and "informsink 127.0.0.1" in agent.stop()


def test_a_flood_is_limited_and_counted(agent: AgentServer, sink: tuple[int, Path]) -> None:
    port, heard = sink
    agent.write(SETTINGS + f"trap2sink 127.0.0.1:{port}\n")
    agent.start()
    log = agent.followed_log("db")
    for number in range(500):
        log.event("printe", text=f"loop {number} " + "x" * 3000)
    sent, dropped = f"{PREFIX}.4.3.0", f"{PREFIX}.4.4.0"
    wait_until(lambda: int(agent.get(sent)) + int(agent.get(dropped)) == 500, 20, lambda: agent.get(dropped))
    assert 40 <= int(agent.get(sent)) <= 60
    wait_until(lambda: heard.read_text().count("loop ") == int(agent.get(sent)), 10, lambda: agent.get(sent))


def test_a_manager_that_is_away_costs_nothing(agent: AgentServer) -> None:
    agent.write(SETTINGS + f"informsink 127.0.0.1:{free_port()}\ntrap2sink no.such.host.invalid\n")
    agent.start()
    log = agent.followed_log("db")
    for number in range(5):
        log.event("printe", text=f"message {number}")
    wait_until(lambda: int(agent.get(f"{PREFIX}.4.3.0")) == 5, 10, lambda: agent.output.read_text())
    assert agent.get(f"{STATE}.1") == "4"
    wait_until(lambda: "no.such.host.invalid" in agent.output.read_text(), 15, lambda: agent.output.read_text())
    assert agent.stop().count("no.such.host.invalid") <= 2


def test_the_mib_is_what_the_agent_answers(agent: AgentServer, tmp_path: Path) -> None:
    """SNM-004: clean for smilint but for one known warning (the guide puts the notification below safekit), and each
    object that the agent shows has a name in it."""
    mib, base = CHECKOUT / "private/conf/snmp/safekit.mib", CHECKOUT / ".cache/mibs"
    if not base.is_dir() or shutil.which("smilint") is None:
        pytest.skip("smilint or the base MIBs are not here: bin/setup test, with npm")
    (tmp_path / "smi.conf").write_text(f"path {base}\n")
    done = subprocess.run(
        ["smilint", "-c", str(tmp_path / "smi.conf"), "-l", "6", str(mib)], capture_output=True, text=True
    )
    assert [line for line in done.stderr.splitlines() if "not reverse mappable" not in line] == []

    def translate(*words: str) -> str:
        done = tool("snmptranslate", "-M", str(base), "-m", str(mib), *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    path = "enterprises.bull.safe.safekit.skModuleTable.skModuleEntry.skModuleCurrentState.1"
    assert translate("-On", f".iso.org.dod.internet.private.{path}") == f"{STATE}.1"
    assert translate("-On", "SAFEKIT-MIB::skResourceName.1.2") == f"{PREFIX}.2.1.2.1.2"
    assert translate("-On", "SAFEKIT-MIB::skTrapLogMesg") == f"{PREFIX}.3"
    agent.start()
    lines = [line.partition(" ")[0] for line in agent.walk()]
    assert lines and all("." not in translate(oid).removeprefix("SAFEKIT-MIB::").split(".")[0] for oid in lines)
    assert not any(re.search(r"::(skModule|skResource|skAgent)(Entry|Table)?\.", translate(oid)) for oid in lines)
    done = tool("snmpwalk", "-v2c", "-c", "public", "-M", str(base), "-m", str(mib), f"127.0.0.1:{agent.port}", PREFIX)
    assert "Wrong Type" not in done.stdout and "skModuleCurrentState.1 = INTEGER: prim(4)" in done.stdout, done.stdout


def test_check_tells_whether_it_runs(agent: AgentServer, admin: NotedAdmin) -> None:
    def check(*words: str) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, "-m", "cli.main", "safeagent", "check", *words)
        return subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, timeout=30)

    done = check()
    assert (done.returncode, done.stdout) == (1, "safeagent is not running\n")
    assert json.loads(check("--json").stdout) == {"safeagent": {"running": False, "pid": 0}}

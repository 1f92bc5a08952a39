"""What the guide calls dynamic (chapter 13) takes effect in the processes that run, one attribute after the other; what
is not dynamic is refused with its name, and nothing changes. Checkers and errd: test_checks_splitbrain."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from pair import Pair

from lab.archive import archive
from lab.cluster import Lab, Node
from lab.waiting import wait_until

XML = """<!DOCTYPE safe><safe><service mode="mirror" maxloop="{maxloop}" loop_interval="{loop_interval}">
  <heart pulse="{pulse}" timeout="{timeout}">
    <heartbeat name="default" ident="first" permanent_arp="{permanent_arp}"/>{beat}</heart>
  <rfs async="{mode}" nbrei="{nbrei}" reidetail="{reidetail}" locktimeout="{locktimeout}">
    <flow name="{flow}"/><replicated dir="/replicated"/></rfs>
  <user nicestoptimeout="10" forcestoptimeout="10"><var name="WORD" value="{word}"/></user>
  <check><custom ident="c" when="pre" exec="waits"/></check>
  <failover><![CDATA[ c: if (custom.c == down) then wait(); ]]></failover>
</service></safe>"""
DEFAULTS = {
    "maxloop": "3", "loop_interval": "24", "pulse": "100", "timeout": "30000", "permanent_arp": "off", "beat": "",
    "mode": "second", "nbrei": "3", "reidetail": "off", "locktimeout": "100", "flow": "default", "word": "one",
}  # fmt: skip
WAITS = """#!/bin/sh
while :; do
  [ -e /run/hold ] && value=down || value=up
  [ "$value" = "$last" ] || safekit set -r custom.c -v $value -i waits && last=$value
  sleep 0.3
done
"""
SCRIPTS = {"start_prim": '#!/bin/sh\necho "start_prim says $WORD"\n', "waits": WAITS}
CONF = "/opt/safekit/modules/mirror/conf/userconfig.xml"
ASK = "import sys,json;from safekit.bus.message import by_word_sync as r;print(json.dumps(r(*sys.argv[1:3])))"


@pytest.fixture(scope="module")
def pair(module_lab: Lab) -> Iterator[Pair]:
    """node1 ALONE; node2 runs and waits, and hears node1."""
    pair = Pair(module_lab)
    for node in pair.nodes:
        node.run(["mkdir", "-p", "/replicated"])
        pair.outside(node, "/root/module.safe").write_bytes(archive(XML.format(**DEFAULTS), SCRIPTS))
        node.safekit("module", "install", "-M", "1", "-m", "mirror", "/root/module.safe")
        node.safekit("config", "-m", "mirror")
    one, two = pair.nodes
    one.safekit("prim", "-m", "mirror")
    pair.wait(one, "ALONE green")
    two.write("/run/hold", "")
    two.safekit("start", "-m", "mirror")
    pair.wait(two, "WAIT red")
    yield pair
    for node in pair.nodes:
        node.safekit("stop", "-m", "mirror", check=False)
        node.safekit("waitstop", "-m", "mirror")


def apply(node: Node, **changed: str) -> None:
    """A dynamic configuration: the module goes on."""
    node.write(CONF, XML.format(**{**DEFAULTS, **changed}))
    assert "it goes on with the new configuration" in node.safekit("config", "-m", "mirror").stdout


def ask(node: Node, process: str, operation: str) -> dict[str, object]:
    done = node.run(["/opt/safekit/private/env/bin/python", "-I", "-c", ASK, f"mirror/{process}", operation])
    return dict(json.loads(done.stdout))


def test_service(pair: Pair) -> None:
    one = pair.one
    apply(one, maxloop="7", loop_interval="1")
    assert "maxloop 7" in one.safekit("checkloop", "-m", "mirror").stdout
    for _ in range(7):
        assert one.safekit("incloop", "-m", "mirror", "-i", "test", check=False).returncode == 0
    assert one.safekit("incloop", "-m", "mirror", "-i", "test", check=False).returncode == 1, "the eighth one"
    apply(one, maxloop="9")
    assert one.safekit("checkloop", "-m", "mirror").returncode == 0
    one.safekit("resetloop", "-m", "mirror")


def test_heart(pair: Pair) -> None:
    one, two = pair.nodes
    mark = pair.mark()
    apply(one, beat='<heartbeat name="repli" ident="more"/>', timeout="1000", permanent_arp="on")
    apply(two, beat='<heartbeat name="repli" ident="more"/>', timeout="1000")
    wait_until(lambda: pair.value(one, "heartbeat.more") == "up", 10, pair.tail)
    wait_until(
        lambda: "PERMANENT" in one.run(["ip", "neigh", "show", two.address("default")]).stdout, 10, "a permanent entry"
    )
    # The time-out was 30 s: the other heart, frozen, is missed after one.
    two.freeze("heart")
    try:
        pair.wait_log(one, mark, ["Remote state UNKNOWN grey"], timeout=8)
    finally:
        two.thaw("heart")
    wait_until(lambda: pair.value(one, "heartbeat.first") == "up", 10, "they hear each other again")
    apply(one, timeout="1000")
    apply(two)
    wait_until(lambda: "heartbeat.more" not in pair.resources(one), 5, "the heartbeat is gone with its resource")
    wait_until(
        lambda: "PERMANENT" not in one.run(["ip", "neigh", "show", two.address("default")]).stdout, 10, "no such entry"
    )
    assert (pair.state(one), pair.state(two)) == ("ALONE green", "WAIT red")


def test_user_and_scripts(pair: Pair) -> None:
    one = pair.one
    apply(one, word="two")
    one.safekit("restart", "-m", "mirror")
    pair.wait(one, "ALONE green")
    log = "/var/safekit/modules/mirror/userlog.ulog"
    wait_until(lambda: "start_prim says two" in one.read(log), 10, lambda: one.read(log))
    script = "/opt/safekit/modules/mirror/bin/start_prim"
    one.write(script, SCRIPTS["start_prim"].replace("says", "shouts"))
    apply(one, word="three")
    mark = pair.mark()
    one.safekit("restart", "-m", "mirror")
    pair.wait_log(one, mark, ["Local state ALONE green"])
    wait_until(lambda: "start_prim shouts three" in one.read(log), 10, lambda: one.read(log))
    one.write(script, SCRIPTS["start_prim"])


def test_replication(pair: Pair) -> None:
    one, two = pair.nodes
    assert one.address("default") in one.run(["ss", "-ltnH", "sport = :5600"]).stdout
    changed = {"flow": "repli", "mode": "none", "nbrei": "5", "reidetail": "on",
               "beat": '<heartbeat name="repli" ident="flow"/>'}  # fmt: skip
    mark = pair.mark()
    for node in pair.nodes:
        apply(node, **changed)
    listening = one.run(["ss", "-ltnH", "sport = :5600"]).stdout
    assert one.address("repli") in listening and one.address("default") not in listening
    assert ask(one, "nfsbox", "status")["durable"] is True
    # node2 comes: over the other network, each file told, and from now on what is acknowledged is on its disk.
    one.run("for i in 1 2 3; do echo $i > /replicated/file$i; done")
    two.run(["rm", "/run/hold"])
    pair.wait_protected(one)
    connected = two.run(["ss", "-tnH", "state", "established", "dport = :5600"]).stdout
    assert one.address("repli") in connected, connected
    details = [line.english for line in pair.log(two, mark, "EID")]
    assert any("file3" in text for text in details), details
    assert ask(one, "nfsbox", "status")["session"] == "paired"
    # No configuration in PRIM and SECOND.
    for node, state in ((one, "PRIM"), (two, "SECOND")):
        refused = node.safekit("config", "-m", "mirror", check=False)
        assert refused.returncode == 1 and f"is {state}" in refused.stderr and "safekit stop" in refused.stderr
    two.safekit("stop", "-m", "mirror")
    two.safekit("waitstop", "-m", "mirror")
    pair.wait(one, "ALONE green")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"locktimeout": "7"}, r'rfs locktimeout.*from "100" to "7"'),
        ({"maxloop": "5", "locktimeout": "7"}, r"rfs locktimeout"),
    ],
)
def test_what_is_not_dynamic_is_refused_as_a_whole(pair: Pair, change: dict[str, str], named: str) -> None:
    one = pair.one
    before, confinfo = pair.state(one), one.safekit("confinfo", "-m", "mirror").stdout.splitlines()[0]
    one.write(CONF, XML.format(**{**DEFAULTS, "flow": "repli", **change}))
    refused = one.safekit("config", "-m", "mirror", check=False)
    assert refused.returncode == 1 and re.search(named, refused.stderr) and "nothing was changed" in refused.stderr
    assert pair.state(one) == before and one.safekit("confinfo", "-m", "mirror").stdout.splitlines()[0] == confinfo

"""A newcomer's path: three blank servers, one cluster.xml, everything else from any of them (guide 9.1, 12.2)."""

from __future__ import annotations

import json
import re
import time

from labs import blocks, lab_of_the_file

from lab.cluster import Lab, Node
from lab.waiting import wait_until

PASSWORD = "/var/safekit/admin-password"


lab = lab_of_the_file(nodes=3, bare=True)


def cluster_xml(where: Lab, names: dict[str, tuple[str, ...]]) -> str:
    """Lans with their nodes; only the first one holds everybody."""
    lans = ""
    for index, (lan, members) in enumerate(names.items()):
        console = "on" if index == 0 else "off"
        nodes = "".join(f'<node name="{name}" addr="{where.nodes[name].address(lan)}"/>' for name in members)
        lans += f'<lan name="{lan}" console="{console}">{nodes}</lan>'
    return f"<cluster><lans>{lans}</lans></cluster>"


def confinfo(node: Node) -> set[str]:
    lines = node.safekit("cluster", "confinfo").stdout.splitlines()[1:]
    return {line.split()[1] for line in lines} if len(lines) == 3 else set()


def test_one_configuration_reaches_blank_servers(lab: Lab) -> None:
    one, two, three = lab
    everybody = tuple(lab.nodes)
    xml = cluster_xml(lab, {"default": everybody, "repli": everybody[:2]})
    one.write("/root/cluster.xml", xml)
    refused = one.safekit("-H", "*", "state", check=False)
    assert refused.returncode == 1 and "safekit cluster config" in refused.stderr
    wait_until(
        lambda: one.run(["systemctl", "is-active", "safewebserver"], check=False).stdout == "active\n",
        20,
        "the web service of node1",
        0.2,
    )
    assert '-H "*" -G' in one.safekit("cluster", "config", "/root/cluster.xml").stdout

    # Nothing in common with the others yet: they want a password, and say so; nothing is changed there.
    stranger = one.safekit("-H", "*", "-G", check=False)
    assert stranger.returncode == 1
    assert "this server is node node1" in blocks(stranger.stdout)["node1"]
    assert "Error: node2:" in stranger.stderr and "SAFEKIT_PASSWORD" in stranger.stderr
    wrong = one.run(["safekit", "-H", "node2,node3", "-G"], env={"SAFEKIT_PASSWORD": "wrong"}, check=False)
    assert wrong.returncode == 1 and wrong.stderr.count("wrong name or password") == 2
    assert two.run(["test", "-e", "/var/safekit/cluster/cluster.xml"], check=False).returncode == 1

    password = one.read(PASSWORD).strip()
    given = one.run(["safekit", "-H", "*", "-G"], env={"SAFEKIT_PASSWORD": password})
    assert [f"this server is node {n}" in blocks(given.stdout)[n] for n in everybody] == [True] * 3
    wait_until(lambda: [len(confinfo(node)) for node in lab] == [1, 1, 1], 20, "the same signature everywhere", 0.2)
    # From now on no password: requests are signed.
    assert blocks(three.safekit("-H", "*", "level").stdout).keys() == {"node1", "node2", "node3"}
    told = json.loads(three.safekit("-H", "*", "level", "--json").stdout)
    assert [(name, answer["output"]["host"]) for name, answer in told.items()] == [
        (name, name) for name in ("node1", "node2", "node3")
    ]


def test_a_module_is_deployed_started_and_seen_from_anywhere(lab: Lab) -> None:
    one, two, three = lab
    for node in (one, two):
        node.run(["mkdir", "-p", "/data/a"])
    one.safekit("module", "install", "-m", "web", "mirror.safe")
    xml = """<!DOCTYPE safe><safe><service mode="mirror">
      <heart pulse="200" timeout="3000"><heartbeat name="repli" ident="flow"/></heart>
      <rfs><replicated dir="/data/a"/></rfs><user/></service></safe>"""
    one.write("/opt/safekit/modules/web/conf/userconfig.xml", xml)
    one.safekit("module", "genkey", "-m", "web")
    only = one.safekit("-H", "node2", "-E", "web")
    assert "only installed" in only.stderr and "is installed (id 1)" in only.stdout
    one.safekit("config", "-m", "web")
    done = one.safekit("-H", "node1,node2", "-E", "web")
    assert done.stdout.count("installed and configured") == 2 and done.stdout.count("(id 1)") == 2
    infos = blocks(three.safekit("-H", "node1,node2", "confinfo", "-m", "web").stdout)
    assert len({line.split()[1] for text in infos.values() for line in text.splitlines()}) == 1
    missing = three.safekit("-H", "*", "confinfo", "-m", "web", check=False)
    assert missing.returncode == 1 and "--- node3" in missing.stdout and ": exit status 1" in missing.stdout

    three.safekit("-H", "node1", "prim", "-m", "web")
    three.safekit("-H", "node1", "waitstate", "-m", "web", "ALONE", timeout=40)
    three.safekit("-H", "node2", "second", "-m", "web")
    three.safekit("-H", "node2", "waitstate", "-m", "web", "SECOND", timeout=40)
    states = blocks(three.safekit("-H", "node1,node2", "state").stdout)
    assert "PRIM green" in states["node1"] and "SECOND green" in states["node2"]
    assert "encryption.module" in one.safekit("state", "-v", "-m", "web").stdout
    shown = {
        n.name: lab.client.run(["curl", "-s", f"http://{n.address()}:9010/var/modules/web/ready.txt"]).stdout
        for n in lab
    }
    assert shown == {"node1": "OK", "node2": "NOT FOUND", "node3": "NOT FOUND"}
    wait_until(
        lambda: three.safekit("cluster", "state").stdout.count(" web ") == 2, 20, "cluster state tells both", 0.2
    )

    # The keys change under a running module, the module's own and the cluster's: no heartbeat is lost, nobody changes
    # its state. A second -E has nothing to do; anything else but the key is refused.
    mark = [n.safekit("log", "-A", "-s", "1000", "-m", "web").stdout for n in (one, two)]
    former = confinfo(one)
    assert "valid until 20" in one.safekit("module", "genkey", "-m", "web").stdout
    for _ in range(2):
        assert one.safekit("-H", "node1,node2", "-E", "web").stdout.count("installed and configured (id 1)") == 2
    three.safekit("cluster", "genkey")
    three.safekit("-H", "*", "-G")
    wait_until(
        lambda: all(len(confinfo(n)) == 1 and confinfo(n) != former for n in lab),
        20,
        "another signature everywhere",
        0.2,
    )
    time.sleep(6)  # longer than the time-out of the heartbeats: a lost one would have been told, so would a difference
    for node, before in zip((one, two), mark, strict=True):
        since = node.safekit("log", "-A", "-s", "1000", "-m", "web").stdout.removeprefix(before)
        assert not re.search("heartbeat| state |differs|rejected", since), since
    states = blocks(three.safekit("-H", "node1,node2", "state").stdout)
    assert "PRIM green" in states["node1"] and "SECOND green" in states["node2"]
    three.safekit("-H", "node1", "swap", "-m", "web")
    three.safekit("-H", "node2", "waitstate", "-m", "web", "PRIM", timeout=40)
    three.safekit("-H", "node1", "swap", "-m", "web", check=False)
    three.safekit("-H", "node1,node2", "waitstart", "-m", "web", timeout=40)
    one.safekit("waitstate", "-m", "web", "PRIM", timeout=40)

    # A configuration that is refused changes nothing, on no server.
    before = two.safekit("confinfo", "-m", "web").stdout
    one.write("/opt/safekit/modules/web/conf/userconfig.xml", xml.replace('mode="mirror"', 'mode="nonsense"'))
    broken = one.safekit("-H", "node2", "-E", "web", check=False)
    assert broken.returncode == 1 and "SECOND" in broken.stdout + broken.stderr
    one.write("/opt/safekit/modules/web/conf/userconfig.xml", xml)
    assert two.safekit("confinfo", "-m", "web").stdout == before
    one.safekit("-H", "node1,node2", "shutdown", timeout=60)


def test_a_module_for_all_of_whom_one_in_the_middle_cannot_take_it(lab: Lab) -> None:
    one, two, three = lab
    path = "/opt/safekit/modules/many"
    one.safekit("module", "install", "-m", "many", "farm.safe")
    one.write(
        f"{path}/conf/userconfig.xml",
        """<!DOCTYPE safe><safe><service mode="farm">
      <farm><lan name="default"/></farm><user/></service></safe>""",
    )
    one.safekit("config", "-m", "many")
    one.safekit("-H", "*", "-E", "many")
    two.safekit("start", "-m", "many")
    two.safekit("waitstart", "-m", "many", timeout=40)
    before = two.run(["sha256sum", f"{path}/bin/start_both"]).stdout, two.safekit("confinfo", "-m", "many").stdout
    one.write(f"{path}/bin/start_both", "#!/bin/sh\nexit 0\n")
    one.safekit("config", "-m", "many")
    partly = one.safekit("-H", "*", "-E", "many", check=False)
    told = blocks(partly.stdout)
    assert partly.returncode == 1 and "is UP" in told["node2"] and "safekit stop -m many" in told["node2"]
    assert "installed and configured" in told["node1"] and "installed and configured" in told["node3"]
    assert "those that failed are as they were" in partly.stderr
    assert three.read(f"{path}/bin/start_both") == "#!/bin/sh\nexit 0\n"
    now = two.run(["sha256sum", f"{path}/bin/start_both"]).stdout, two.safekit("confinfo", "-m", "many").stdout
    assert now == before and "UP green" in two.safekit("state", "-m", "many").stdout
    wait_until(lambda: "node2" in one.safekit("confinfo", "-m", "many").stderr, 20, "who differs is named", 0.2)
    two.safekit("stop", "-m", "many")
    two.safekit("waitstop", "-m", "many")
    assert one.safekit("-H", "*", "-E", "many").stdout.count("installed and configured") == 3
    infos = one.safekit("-H", "*", "confinfo", "-m", "many").stdout
    assert len({line.split()[1] for line in infos.splitlines() if line.startswith(("active", "current"))}) == 1
    assert one.safekit("-H", "*", "module", "uninstall", "-m", "many").returncode == 0


def test_keys_change_and_what_is_wrong_is_named(lab: Lab) -> None:
    one, two, three = lab
    before = confinfo(one)
    one.safekit("cluster", "genkey")
    assert confinfo(one) == before, "not in force before it is distributed"
    assert "clear" not in one.safekit("-H", "*", "-G").stderr
    wait_until(
        lambda: all(len(confinfo(n)) == 1 and confinfo(n) != before for n in lab),
        20,
        "another signature everywhere",
        0.2,
    )

    # A server that missed a change still has the key before it, with which nothing is sealed over HTTP any more.
    two.run(["systemctl", "stop", "safewebserver"])
    one.safekit("cluster", "genkey")
    partly = one.safekit("-H", "*", "-G", check=False)
    assert partly.returncode == 1 and "Error: node2:" in partly.stderr and "safekit webserver start" in partly.stderr
    two.safekit("webserver", "start")
    missed = one.safekit("-H", "node2", "-G", check=False)
    assert missed.returncode == 1 and "it may have a former one" in missed.stderr, missed.stderr
    one.run(["safekit", "-H", "node2", "-G"], env={"SAFEKIT_PASSWORD": one.read(PASSWORD).strip()})
    wait_until(lambda: [len(confinfo(node)) for node in lab] == [1, 1, 1], 20, "one signature again", 0.2)

    # A locked configuration, and a server that is down: named, and in bounded time.
    three.safekit("cluster", "config", "lock")
    locked = one.safekit("-H", "*", "-G", check=False)
    assert locked.returncode == 1 and "unlock" in blocks(locked.stdout)["node3"]
    three.safekit("cluster", "config", "unlock")
    three.cut()
    begun = time.monotonic()
    cut = one.safekit("-H", "*", "level", check=False)
    assert cut.returncode == 1 and "Error: node3: no connection" in cut.stderr and time.monotonic() - begun < 15
    assert blocks(cut.stdout)["node1"]
    three.join()
    assert (
        json.loads(lab.client.run(["curl", "-s", f"http://{one.address()}:9010/api/v1/node"], check=False).stdout)[
            "error"
        ]
        == "credentials"
    )


def test_the_last_configurations_and_a_key_of_the_module(lab: Lab) -> None:
    one, two, _ = lab
    path = "/opt/safekit/modules/web/conf/userconfig.xml"
    before = one.read(path)
    one.write(path, before.replace('timeout="3000"', 'timeout="4000"'))
    one.safekit("config", "-m", "web")
    one.safekit("-H", "node2", "-E", "web")
    assert 'timeout="4000"' in two.read(path)
    listed = one.safekit("module", "lastconfig", "-m", "web").stdout
    number = next(line.split()[0] for line in listed.splitlines()[1:] if line[:1].isdigit() and "active" not in line)
    none = one.safekit("module", "restore", "-m", "web", "9", check=False)
    assert none.returncode == 1 and "safekit module lastconfig -m web" in none.stderr
    assert "safekit config -m web" in one.safekit("module", "restore", "-m", "web", number).stdout
    assert one.read(path) == before
    one.safekit("config", "-m", "web")
    assert one.safekit("module", "delkey", "-m", "web").stdout.count("Next step") == 1
    one.safekit("config", "-m", "web")
    one.safekit("-H", "node2", "-E", "web")
    infos = one.safekit("-H", "node1,node2", "confinfo", "-m", "web").stdout
    assert len({line.split()[1] for line in infos.splitlines() if line.startswith(("active", "current"))}) == 1
    assert two.run(["test", "-e", "/opt/safekit/modules/web/conf/module.key"], check=False).returncode == 1


def test_a_module_key_on_one_server_only(lab: Lab) -> None:
    one, two, _ = lab

    def encryption(node: Node) -> str:
        found = re.search(r"encryption\.module\s+(\S+)", node.safekit("state", "-v", "-m", "web").stdout)
        return found[1] if found else ""

    one.safekit("module", "genkey", "-m", "web")
    one.safekit("config", "-m", "web")
    wait_until(lambda: "node2" in one.safekit("confinfo", "-m", "web").stderr, 20, "who differs is named", 0.2)
    assert "Other configuration or key" in one.safekit("confinfo", "-m", "web").stderr
    # As if it had been done long ago: the key before it is accepted for a while.
    one.run(["touch", "-h", "-d", "10 minutes ago", "/opt/safekit/private/modules/web"])
    one.safekit("prim", "-m", "web")
    one.safekit("waitstate", "-m", "web", "ALONE", timeout=40)
    two.safekit("second", "-m", "web", check=False)
    for node in (one, two):
        told = lambda node=node: node.safekit("log", "-m", "web").stdout  # noqa: E731
        wait_until(lambda told=told: "sealed with another key" in told(), 20, f"{node.name} says why", 0.2)
        assert "UNKNOWN" in node.safekit("state", "-m", "web").stdout + node.safekit("state", "-v", "-m", "web").stdout
    assert (encryption(one), encryption(two)) == ("on", "off")
    one.safekit("-H", "node1,node2", "stop", "-m", "web", check=False)
    one.safekit("-H", "node1,node2", "waitstop", "-m", "web", timeout=40)
    one.safekit("-H", "node1,node2", "-E", "web")
    one.safekit("-H", "node1", "prim", "-m", "web")
    one.safekit("waitstate", "-m", "web", "ALONE", timeout=40)
    two.safekit("second", "-m", "web")
    two.safekit("waitstate", "-m", "web", "SECOND", timeout=40)
    assert (encryption(one), encryption(two)) == ("on", "on")
    one.safekit("-H", "node1,node2", "shutdown", timeout=60)
    one.safekit("-H", "node1,node2", "waitstop", "-m", "web", timeout=40)


def test_two_clusters_of_the_same_servers_and_a_server_that_left(lab: Lab) -> None:
    one, two, three = lab
    refused = one.safekit("cluster", "delkey", check=False)
    assert refused.returncode == 1 and "genkey" in refused.stderr
    other = three.read("/var/safekit/cluster/cluster.xml").replace(two.address(), "10.99.0.1", 1)
    three.write("/root/other.xml", other)
    three.safekit("cluster", "config", "/root/other.xml")

    def named() -> bool:
        told = one.safekit("cluster", "confinfo", check=False)
        return "node3: its datagrams are rejected: sealed with another key" in told.stdout + told.stderr

    wait_until(named, 40, "the other cluster is named", 0.2)
    stranger = one.safekit("-H", "node3", "level", check=False)
    assert stranger.returncode == 1, stranger.stdout
    assert "node3 has another cluster key than node1" in stranger.stderr and "safekit -H node3 -G" in stranger.stderr
    password = one.read(PASSWORD).strip()
    one.run(["safekit", "-H", "node3", "-G"], env={"SAFEKIT_PASSWORD": password})
    wait_until(lambda: [len(confinfo(node)) for node in lab] == [1, 1, 1], 40, "one signature again", 0.2)
    one.safekit("-H", "*", "level")

    three.safekit("cluster", "deconfig")
    alone = three.safekit("-H", "*", "state", check=False)
    assert alone.returncode == 1 and "safekit cluster config" in alone.stderr
    gone = one.safekit("-H", "node3", "level", check=False)
    assert gone.returncode == 1 and "its cluster is not configured" in gone.stderr and "-G" in gone.stderr

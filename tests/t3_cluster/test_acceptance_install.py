"""Guide 4.1: what a fresh installation shows, on two nodes with a configured cluster."""

from __future__ import annotations

import re
import time

import pytest
from labs import lab_of_the_file
from pair import userconfig

from lab.archive import archive
from lab.cluster import Lab, Node
from lab.waiting import wait_until

lab = lab_of_the_file()


@pytest.fixture
def node(lab: Lab) -> Node:
    return lab.node("node1")


def out(node: Node, *words: str) -> str:
    return node.safekit(*words).stdout


def test_t4_1_1_paths(node: Node) -> None:
    lines = out(node, "-p").splitlines()
    assert lines[:2] == ["SAFE=/opt/safekit", "SAFEVAR=/var/safekit"]
    assert "SAFEBIN=/opt/safekit/private/bin" in lines
    for _, directory in (line.split("=") for line in lines):
        node.run(["test", "-d", directory])


def licence(node: Node, text: str | None) -> list[str]:
    place = "/opt/safekit/conf/license.txt"
    if text is None:
        node.run(["rm", "-f", place])
    else:
        node.write(place, text)
    return out(node, "level").splitlines()


def test_t4_1_2_level(node: Node) -> None:
    lines = licence(node, None)
    assert lines[0] == "Host : node1"
    assert re.fullmatch(r"OS : \S.*", lines[1])
    assert re.fullmatch(r"SafeKit : \d+\.\d+.*", lines[2])
    assert lines[3] == "License : Demo (No license)"
    assert licence(node, "not a licence")[3] == "License : Invalid Product"
    assert licence(node, "id: A1\nhost: somewhere\n")[3] == "License : Invalid Host"
    assert "Expiration" in licence(node, "id: A1\nhost: *\nexpires: 2999-01-01\n")[3]
    assert licence(node, "id: A1\nexpires: 2001-01-01\n")[3] == "License : Expired license"
    assert licence(node, "id: A1\nhost: node1\n")[3].startswith("License : A1 for node1")
    licence(node, None)


def test_t4_1_3a_without_safeadmin(node: Node) -> None:
    node.run(["service", "safeadmin", "stop"])
    try:
        for words in (("state",), ("level",), ("module", "list"), ("boot", "status")):
            done = node.safekit(*words, check=False)
            assert done.returncode == 1
            assert done.stderr.splitlines()[:2] == [
                "Waiting for safeadmin ..........",
                "Error: safeadmin administrator daemon not running",
            ]
    finally:
        node.run(["service", "safeadmin", "start"])
    assert node.safekit("state").returncode == 0


def test_t4_1_3bc_services_at_boot(node: Node) -> None:
    assert out(node, "boot", "webstatus") == "on\n"
    assert out(node, "boot", "snmpstatus") == "off\n"
    request = [
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        f"http://{node.address()}:9010/api/v1/openapi.json",
    ]
    assert node.pids("safewebserver") and node.run(request).stdout != "000"
    out(node, "webserver", "stop")
    assert not node.pids("safewebserver") and node.run(request, check=False).returncode != 0
    assert out(node, "boot", "webstatus") == "on\n", "the next boot starts it all the same"
    out(node, "webserver", "start")
    wait_until(lambda: node.run(request, check=False).returncode == 0, 20, "the web service answers again")


def test_t4_1_3d_modules(lab: Lab) -> None:
    for node in lab:
        for name, number in (("mirror", "1"), ("second", "7")):
            config = userconfig(directory=f"/data/{name}")
            node.run(["mkdir", "-p", f"/data/{name}"])
            path = f"/proc/{node.process.pid}/root/root/{name}.safe"
            with open(path, "wb") as handle:
                handle.write(archive(config, {}))
            node.safekit("module", "install", "-m", name, "-M", number, f"/root/{name}.safe")
            node.safekit("config", "-m", name)
        assert [line.split() for line in out(node, "module", "listid").splitlines()] == [
            ["mirror", "1"],
            ["second", "7"],
        ]
        assert [line.split() for line in out(node, "boot", "status").splitlines()] == [
            ["mirror", "off"],
            ["second", "off"],
        ]
        states = [line.split() for line in out(node, "state").splitlines()[1:3]]
        assert [row[:5] for row in states] == [
            ["mirror", "1", "mirror", "STOP", "red"],
            ["second", "7", "mirror", "STOP", "red"],
        ]
        assert '<service mode="mirror"' in node.read("/opt/safekit/modules/mirror/conf/userconfig.xml")


def test_ports_of_a_mirror(node: Node) -> None:
    text = out(node, "module", "getports", "-m", "second")
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(" ")] == ["4800", "9010", "8894", "5624"]


def test_all_nodes_answer_with_one_signature(lab: Lab) -> None:
    deadline = time.monotonic() + 30
    while True:
        rows = [line.split() for line in out(lab.node("node2"), "cluster", "confinfo").splitlines()[1:]]
        if len(rows) == 2 or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert [row[0] for row in rows] == ["node1", "node2"]
    assert rows[0][1] == rows[1][1]
    assert [row[3] for row in rows] == ["0", "0"]


def test_only_group_safekit_commands(node: Node) -> None:
    run_as = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/opt/safekit/safekit", "state"]
    done = node.run(run_as, check=False)
    assert done.returncode == 1
    assert "may not run safekit commands" in done.stderr
    group = node.run("getent group safekit | cut -d: -f3").stdout.strip()
    allowed = node.run([*run_as[:3], f"--groups={group}", *run_as[4:]], check=False)
    assert allowed.returncode == 0, allowed.stderr


def test_commands_that_change_something_are_logged(node: Node) -> None:
    node.safekit("boot", "-m", "mirror", "off")
    lines = node.read("/var/safekit/commandlog").splitlines()
    assert any(re.fullmatch(r"\^ \S+ \| +\d+ \| return    0 \| config -m mirror", line) for line in lines)
    assert any(line.endswith("| boot -m mirror off") for line in lines)
    assert not any("| state" in line for line in lines)


def test_a_wrong_file_is_refused_with_its_line(node: Node) -> None:
    node.write("/root/wrong.xml", "<cluster>\n<lans>\n<lan name='x'>\n</lan>\n</lans>\n</cluster>\n")
    done = node.safekit("cluster", "confcheck", "/root/wrong.xml", check=False)
    assert done.returncode == 1
    assert "/root/wrong.xml:3" in done.stderr


def listening(node: Node) -> set[str]:
    """Local addresses of safeadmin's UDP sockets."""
    lines = node.run(["ss", "-lunpH"]).stdout.splitlines()
    return {line.split()[3] for line in lines if '"safeadmin"' in line}


def test_ports_of_safeadmin_are_those_of_its_files(lab: Lab) -> None:
    """UDP 6259 on the loopback is the attribute mapper of /etc/safeini.xml, UDP 4800 the port of <lans>."""
    one, two = lab.node("node1"), lab.node("node2")
    assert "127.0.0.1:6259" in listening(one) and any(place.endswith(":4800") for place in listening(one))
    former = one.read("/etc/safeini.xml")
    one.write("/etc/safeini.xml", former.replace('"6259"', '"7259"'))
    one.run(["systemctl", "restart", "safeadmin"])
    assert out(one, "module", "list") == out(two, "module", "list")
    assert "127.0.0.1:7259" in listening(one) and "127.0.0.1:6259" not in listening(one)
    one.write("/etc/safeini.xml", former)
    for service in ("safeadmin", "safewebserver"):
        one.run(["systemctl", "restart", service])
    one.safekit("webserver", "start")

    cluster = one.read("/var/safekit/cluster/cluster.xml")
    one.write("/root/moved.xml", re.sub(r"<lans\b", '<lans port="4900"', cluster, count=1))
    pids = [node.run(["pgrep", "-x", "safeadmin"]).stdout for node in (one, two)]
    one.safekit("cluster", "config", "/root/moved.xml")
    one.safekit("-H", "node2", "--insecure", "-G")
    for node in (one, two):
        assert any(place.endswith(":4900") for place in listening(node)), listening(node)
        assert not any(place.endswith(":4800") for place in listening(node))
    wait_until(
        lambda: len(out(one, "cluster", "confinfo").splitlines()) == 3, 30, "both servers answer on the new port"
    )
    assert [node.run(["pgrep", "-x", "safeadmin"]).stdout for node in (one, two)] == pids, "reloaded, not restarted"
    assert "        port    UDP 4900" in out(one, "module", "getports", "-i", "1").splitlines()

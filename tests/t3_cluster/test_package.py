"""The Debian package in a node: installed without a network, upgraded, removed, purged (guide 2.1, 2.4, 2.5)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from deb import package, successor

from lab.cluster import Lab, Node
from lab.waiting import wait_until

MAX_PACKAGE = 25 << 20
MAX_INSTALLED = 120 << 20


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package, and its successor of the same content."""
    first = package()
    return first, successor(first, tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def node(packages: tuple[Path, Path]) -> Iterator[Node]:
    """A server that never had the product."""
    made = Lab.up(nodes=1, bare=True)
    try:
        node = made.node("node1")
        node.run(["systemctl", "stop", "safewebserver"])
        node.run(["systemctl", "stop", "safeadmin"])
        node.run(["/opt/safekit/safekit", "uninstall", "-all", "-y"])
        for number, package in enumerate(packages, 1):
            shutil.copyfile(package, f"/proc/{node.process.pid}/root/root/{number}.deb")
        yield node
    finally:
        made.down()


def exists(node: Node, path: str) -> bool:
    return node.run(["test", "-e", path], check=False).returncode == 0


def start_services(node: Node) -> None:
    for name in ("safeadmin", "safewebserver"):
        node.run(["systemctl", "restart", name])
    wait_until(lambda: node.safekit("state", check=False).returncode == 0, 30, "safeadmin answers")


def test_nothing_is_left_of_the_former_installation(node: Node) -> None:
    for path in ("/opt/safekit", "/var/safekit", "/etc/safeini.xml", "/etc/systemd/system/safeadmin.service"):
        assert not exists(node, path), path
    assert node.run(["getent", "group", "safekit"], check=False).returncode != 0


def test_the_package_is_small_and_installs_without_a_network(node: Node, packages: tuple[Path, Path]) -> None:
    assert packages[0].stat().st_size < MAX_PACKAGE
    done = node.run(["dpkg", "-i", "/root/1.deb"], timeout=300)
    assert "is installed: SAFE=/opt/safekit" in done.stdout and "shown this once" in done.stdout
    used = int(node.run(["du", "-sb", "--total", "/opt/safekit", "/usr/lib/safekit"]).stdout.split()[-2])
    assert used < MAX_INSTALLED
    assert not exists(node, "/opt/safekit/private/cache")
    start_services(node)
    assert node.safekit("boot", "webstatus").stdout == "on\n"
    assert node.run(["dpkg", "--verify", "safekit"]).stdout == ""
    for name in ("lxml", "cryptography", "supervisor"):
        assert name in node.read("/opt/safekit/licenses/SUMMARY")


CLUSTER = """<cluster><lans><lan name="default">
<node name="node1" addr="{address}"/><node name="node2" addr="10.255.255.254"/>
</lan></lans></cluster>
"""


def test_an_upgrade_is_refused_while_a_module_runs(node: Node) -> None:
    node.write("/root/cluster.xml", CLUSTER.format(address=node.address()))
    node.safekit("cluster", "config", "/root/cluster.xml")
    node.safekit("module", "install", "-m", "app", "-M", "3", "/opt/safekit/Application_Modules/generic/light.safe")
    node.safekit("config", "-m", "app")
    node.safekit("boot", "-m", "app", "on")
    node.safekit("start", "-m", "app")
    node.safekit("waitstate", "-m", "app", "UP")
    node.write("/opt/safekit/conf/license.txt", "id: A1\nhost: node1\n")
    done = node.run(["dpkg", "-i", "/root/2.deb"], check=False, timeout=300)
    assert done.returncode != 0 and "needs all modules of this server stopped; running: app" in done.stderr
    assert "-1~" in node.run(["dpkg-query", "-W", "-f", "${Version}", "safekit"]).stdout
    assert node.safekit("state").stdout.split("\n")[1].split()[3] == "UP"


KEPT = ("/var/safekit/bus.key", "/var/safekit/cluster/cluster.key", "/opt/safekit/web/conf/user.conf")


def test_an_upgrade_keeps_modules_states_and_keys(node: Node) -> None:
    node.safekit("shutdown")
    before = {path: node.read(path) for path in KEPT}
    done = node.run(["dpkg", "-i", "/root/2.deb"], timeout=300)
    assert "is upgraded" in done.stdout and "has the password" not in done.stdout
    start_services(node)
    assert {path: node.read(path) for path in KEPT} == before
    assert node.safekit("module", "listid").stdout.split() == ["app", "3"]
    assert node.safekit("boot", "status").stdout.split() == ["app", "on"]
    assert "License : A1 for node1" in node.safekit("level").stdout
    # an orderly stop of the service ends a boot: its start starts what is set to boot on
    node.safekit("waitstate", "-m", "app", "UP")


def test_removal_saves_modules_and_a_new_installation_goes_on_with_them(node: Node) -> None:
    done = node.safekit("uninstall", check=False)
    assert done.returncode != 0 and "running: app" in done.stderr
    node.safekit("shutdown")
    for name in ("safewebserver", "safeadmin"):
        node.run(["systemctl", "stop", name])
    node.run(["/opt/safekit/safekit", "uninstall"], timeout=120)
    assert exists(node, "/opt/safekit/Application_Modules/backup/app.safe")
    assert not exists(node, "/opt/safekit/safekit") and not exists(node, "/usr/lib/safekit")
    assert not exists(node, "/etc/systemd/system/safeadmin.service")
    node.run(["dpkg", "-i", "/root/1.deb"], timeout=300)
    start_services(node)
    assert node.safekit("module", "listid").stdout.split() == ["app", "3"]
    assert "License : A1 for node1" in node.safekit("level").stdout


def test_purge_leaves_nothing(node: Node) -> None:
    node.safekit("waitstate", "-m", "app", "UP")
    node.safekit("shutdown")
    for name in ("safewebserver", "safeadmin"):
        node.run(["systemctl", "stop", name])
    node.run(["/opt/safekit/safekit", "uninstall", "-all", "-y"], timeout=120)
    test_nothing_is_left_of_the_former_installation(node)
    assert node.run(["dpkg-query", "-W", "-f", "${Status}", "safekit"], check=False).returncode != 0

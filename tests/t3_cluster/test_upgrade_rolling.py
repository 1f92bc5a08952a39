"""A cluster is upgraded one server after the other, while its mirror goes on (guide 2.4, docs/installation.md)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm import farm_config
from pair import Pair, userconfig

from lab.archive import archive
from lab.cluster import Lab, Node
from lab.waiting import wait_until
from safekit.wire import protocol

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = CHECKOUT / ".venv/bin/python"
FORMER = "739bcd2"
#: The shell's $0 is the Python; releases before the folder `installation` had the installer elsewhere.
INSTALL = 'test -d installation && exec "$0" -m installation.main -q; exec "$0" -m safekit.installation.main -q'
"""The last commit that speaks protocol version 1 only."""


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the former release, ready to be installed without a network.

    Where the history is cut off, it is this one without its newest protocol version.
    """
    found = subprocess.run(
        ["git", "rev-parse", "--verify", f"{FORMER}^{{commit}}"], cwd=CHECKOUT, capture_output=True, check=False
    )
    release = "HEAD" if found.returncode else FORMER
    tree = tmp_path_factory.mktemp("former")
    archive = subprocess.run(["git", "archive", release], cwd=CHECKOUT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
    if release == "HEAD":
        code = tree / "safekit/wire/protocol.py"
        code.write_text(code.read_text().replace(f"NEWEST = {protocol.NEWEST}", "NEWEST = 1"))
    (tree / ".cache").mkdir()
    subprocess.run(["cp", "-a", CHECKOUT / ".cache/wheels", tree / ".cache/wheels"], check=True)
    package = installer_of(tree)
    code = (
        f"from pathlib import Path; from {package}.source import Source; "
        f"from {package}.environment import cached_packages; cached_packages(Source(Path('.')))"
    )
    subprocess.run([PYTHON, "-c", code], cwd=tree, check=True, timeout=300)
    packed = tree.with_suffix(".tar")
    subprocess.run(["tar", "-c", "-f", packed, "-C", tree, "."], check=True)
    return packed


def installer_of(tree: Path) -> str:
    """The package that installs the product of a checkout; former releases had it below `safekit`."""
    return "installation" if (tree / "installation").is_dir() else "safekit.installation"


def install(node: Node, tree: str) -> None:
    """Stop the services, install the product of `tree` (a path of the node), start them."""
    for name in ("safewebserver", "safeadmin"):
        node.run(["systemctl", "stop", name])
    node.run(["sh", "-c", INSTALL, str(PYTHON)], cwd=tree, timeout=180)
    for name in ("safeadmin", "safewebserver"):
        node.run(["systemctl", "start", name])
    wait_until(lambda: node.safekit("state", check=False).returncode == 0, 30, "safeadmin answers")


@pytest.fixture(scope="module")
def pair(former: Path) -> Iterator[Pair]:
    """A mirror on two servers of the former release, started."""
    lab = Lab.up(bare=True)
    try:
        for node in lab:
            Pair.outside(node, "/root/former.tar").write_bytes(former.read_bytes())
            node.run("mkdir /root/former && tar -x -C /root/former -f /root/former.tar && rm /root/former.tar")
            install(node, "/root/former")
        lab.configure_cluster()
        pair = Pair(lab)
        pair.same_release = False
        pair.install(userconfig())
        pair.first_start(pair.one)
        pair.wait_records(pair.one, 20)
        yield pair
    finally:
        lab.down()


def upgrade(pair: Pair, node: Node) -> None:
    """As docs/installation.md says: stop the module there, upgrade, start it."""
    node.safekit("stop", "-m", pair.module)
    node.safekit("waitstate", "-m", pair.module, "STOP")
    install(node, str(CHECKOUT))
    node.safekit("start", "-m", pair.module)
    pair.wait_protected(pair.other(node))


def test_the_secondary_first(pair: Pair) -> None:
    upgrade(pair, pair.two)
    assert pair.value(pair.two, "state.local") == "SECOND"
    pair.verify(pair.one)


def test_commands_reach_both_releases(pair: Pair) -> None:
    """The web service of each release answers the signed requests of the other."""
    for node in pair.nodes:
        said = node.safekit("-H", "*", "state").stdout
        assert said.count("--- node") == 2 and "PRIM green" in said and "SECOND green" in said, said


def test_a_farm_shares_its_load_across_releases(pair: Pair) -> None:
    farm = Pair(pair.lab, "web")

    def shares() -> list[str]:
        found = [farm.resources(node) for node in farm.nodes]
        return [next((r.value for name, r in known.items() if name.endswith("FarmProto")), "") for known in found]

    for node in farm.nodes:
        Pair.outside(node, "/root/web.safe").write_bytes(archive(farm_config(pair.lab), {}))
        node.safekit("module", "install", "-M", "2", "-m", farm.module, "/root/web.safe")
        node.safekit("config", "-m", farm.module)
        node.safekit("start", "-m", farm.module)
    wait_until(lambda: shares() == ["50%", "50%"], 20, lambda: f"half of the load each: {shares()}")
    for node in farm.nodes:
        node.safekit("stop", "-m", farm.module)
        node.safekit("waitstate", "-m", farm.module, "STOP")
        wait_until(lambda: "100%" in shares(), 10, lambda: f"one has all of the load: {shares()}")
        node.safekit("start", "-m", farm.module)
        wait_until(lambda: shares() == ["50%", "50%"], 20, lambda: f"half of the load each again: {shares()}")
    for node in farm.nodes:
        node.safekit("stop", "-m", farm.module)
        node.safekit("waitstate", "-m", farm.module, "STOP")
        node.safekit("module", "uninstall", "-m", farm.module)


def test_both_releases_swap(pair: Pair) -> None:
    pair.one.safekit("swap", "-m", pair.module)
    pair.wait_protected(pair.two)
    pair.verify(pair.two)
    pair.two.safekit("swap", "-m", pair.module)
    pair.wait_protected(pair.one)
    pair.verify(pair.one)


@pytest.mark.parametrize("lost", ["one", "two"])
def test_either_release_takes_over_and_takes_back(pair: Pair, lost: str) -> None:
    """The primary loses its power, once the former release and once the new one."""
    prim: Node = getattr(pair, lost)
    survivor = pair.other(prim)
    if pair.value(prim, "state.local") != "PRIM":
        prim.safekit("swap", "-m", pair.module)
        pair.wait_protected(prim)
    prim.poweroff()
    pair.wait(survivor, "ALONE green")
    pair.wait_records(survivor, 20)
    prim.poweron()
    wait_until(lambda: prim.safekit("state", check=False).returncode == 0, 30, "safeadmin answers")
    prim.safekit("start", "-m", pair.module)
    pair.wait_protected(survivor)
    pair.verify(survivor)


def test_nobody_complained_of_versions(pair: Pair) -> None:
    """What one side could not read would be in a log."""
    for node in pair.nodes:
        text = node.run("cat /var/safekit/safeadmin.log /var/safekit/modules/*/log/*.log").stdout
        assert "protocol version" not in text and "rejected" not in text


def spoken(node: Node) -> dict[str, int]:
    """The protocol version that a server speaks to each server."""
    import json

    nodes = json.loads(node.safekit("cluster", "confinfo", "--json").stdout)
    return {name: known["protocol"] for name, known in nodes.items()}


def test_the_last_server_ends_the_upgrade(pair: Pair) -> None:
    assert spoken(pair.two) == {"node1": 1, "node2": protocol.NEWEST}
    upgrade(pair, pair.one)
    pair.verify(pair.two)
    wait_until(lambda: set(spoken(pair.one).values()) == {protocol.NEWEST}, 20, "both speak the newest version")


def test_an_upgrade_can_be_held_back(pair: Pair) -> None:
    """With protocol="1" in /etc/safeini.xml the new release is as the former one to its peer."""
    pair.two.run("""sed -i 's/<safeini /<safeini protocol="1" /' /etc/safeini.xml""")
    pair.two.safekit("stop", "-m", pair.module)
    pair.wait(pair.one, "ALONE green")
    pair.two.run(["systemctl", "restart", "safeadmin"])
    wait_until(lambda: pair.two.safekit("state", check=False).returncode == 0, 30, "safeadmin answers")
    pair.two.safekit("start", "-m", pair.module)
    pair.wait_protected(pair.one)
    wait_until(lambda: spoken(pair.one)["node2"] == 1, 20, "node1 speaks version 1 to node2")
    pair.one.safekit("swap", "-m", pair.module)
    pair.wait_protected(pair.two)
    pair.verify(pair.two)

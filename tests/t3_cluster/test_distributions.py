"""The installer and a mirror on each distribution that the product is written for: trees made by debootstrap, two
servers that systemd boots. A campaign: it needs the distributions' mirrors and a Python package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import machines
import pytest
from machines import CHECKOUT, Machine, Network
from pair import userconfig

from lab.archive import archive
from lab.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(machines.why_not()), reason=machines.why_not()),
    pytest.mark.skipif(shutil.which("debootstrap") is None, reason="debootstrap is missing"),
]

DEBIAN, UBUNTU = "http://deb.debian.org/debian", "http://archive.ubuntu.com/ubuntu"
RELEASES = {"bookworm": DEBIAN, "trixie": DEBIAN, "jammy": UBUNTU, "noble": UBUNTU}
SCRIPTS = Path("/usr/share/debootstrap/scripts")
TREES = CHECKOUT / ".cache/trees"
ADDRESSES = ("10.77.2.1", "10.77.2.2")
VIP = "10.77.2.10"
CLUSTER = f"""<cluster><lans><lan name="default">
<node name="server1" addr="{ADDRESSES[0]}"/><node name="server2" addr="{ADDRESSES[1]}"/>
</lan></lans></cluster>
"""
MIRROR = userconfig(
    vip=f"""<vip><interface_list><interface><real_interface>
<virtual_addr addr="{VIP}" where="one_side_alias"/></real_interface></interface></interface_list></vip>"""
).replace('<heartbeat name="repli" ident="flow"/>', "")
START = """#!/bin/sh
(while :; do n=$((n + 1)); echo "$(hostname) $n" >>/replicated/records; sleep 0.05; done) >/dev/null 2>&1 </dev/null &
echo $! >/run/application.pid
"""
STOP = """#!/bin/sh
kill "$(cat /run/application.pid)" 2>/dev/null
exit 0
"""
# Enters a tree as a server does that has no systemd: /dev, /proc and a name of its own.
ENTER = """set -e
mount -t proc proc "$1/proc"; mount --rbind /dev "$1/dev"; mount -t sysfs sysfs "$1/sys"
mount -t tmpfs tmpfs "$1/run"; mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PIP_CERT=/root/ca.pem sh -ec "$2"
"""


def enter(tree: Path, command: str) -> None:
    words = ["unshare", "--mount", "--propagation", "private", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    done = subprocess.run(
        [*words, "sh", "-c", ENTER, "sh", tree, command], capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"


def made_tree(release: str) -> Path:
    """A minimal system of the release with systemd, made once. The test is skipped where its mirror is out of reach."""
    tree = TREES / release
    if not tree.is_dir():
        building = tree.with_name(f".{release}")
        shutil.rmtree(building, ignore_errors=True)
        TREES.mkdir(parents=True, exist_ok=True)
        script = SCRIPTS / (release if (SCRIPTS / release).exists() else "jammy" if release == "noble" else "sid")
        words = ["debootstrap", "--no-check-gpg", "--variant=minbase", "--include=systemd,systemd-sysv,dbus"]
        words += [release, str(building), RELEASES[release], str(script)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1200)
        if done.returncode != 0:
            pytest.skip(f"debootstrap of {release} failed: {(done.stdout + done.stderr)[-300:]}")
        components = "main universe" if RELEASES[release] == UBUNTU else "main"
        (building / "etc/apt/sources.list").write_text(f"deb {RELEASES[release]} {release} {components}\n")
        shutil.copyfile("/etc/resolv.conf", building / "etc/resolv.conf")
        authorities = (
            os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
        )
        shutil.copyfile(authorities, building / "root/ca.pem")
        building.rename(tree)
    return tree


@pytest.fixture(scope="module", params=RELEASES)
def tree(request: pytest.FixtureRequest) -> Path:
    """The release with the present checkout in /root/safekit, set up."""
    release: str = request.param
    tree = made_tree(release)
    checkout = tree / "root/safekit"
    kept = checkout / ".cache"
    if kept.is_dir():
        kept.rename(tree / "root/cache")
    shutil.rmtree(checkout, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", CHECKOUT, checkout], check=True)
    if (tree / "root/cache").is_dir():
        (tree / "root/cache").rename(kept)
    enter(tree, "cd /root/safekit && bin/setup product")
    return tree


@pytest.fixture(scope="module")
def pair(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine]]:
    place = tmp_path_factory.mktemp("d")
    network = Network(*ADDRESSES)
    servers = tuple(
        Machine(place / f"m{number}", f"server{number}", holder, tree)
        for number, holder in enumerate(network.holders, 1)
    )
    try:
        for server in servers:
            server.boot()
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.poweroff()
        network.close()


def state(server: Machine) -> str:
    return server.safekit("state", "-lq", "-m", "mirror", check=False).stdout.strip()


def wait_states(*wanted: tuple[Machine, str]) -> None:
    wait_until(
        lambda: all(state(server) == name for server, name in wanted), 60,
        lambda: str([(server.name, state(server)) for server, _ in wanted]),
    )  # fmt: skip


def records(server: Machine) -> int:
    return int(server.run("cat /replicated/records 2>/dev/null | wc -l").stdout)


def test_a_mirror(pair: tuple[Machine, Machine]) -> None:
    """Installed without a network, configured, started; swap, power-off of the primary, and back."""
    one, two = pair
    release = one.run("cat /etc/os-release").stdout
    for server in pair:
        said = server.run("cd /root/safekit && bin/safekitinstall --no-firewall", timeout=300).stdout
        assert "safeadmin and safewebserver: started, and start at boot" in said and "Warning" not in said, release
        server.write("/root/cluster.xml", CLUSTER)
        server.run("mkdir /replicated")
    one.safekit("cluster", "config", "/root/cluster.xml")
    one.safekit("cluster", "export", "/root/cluster.zip")
    two.outside("/root/cluster.zip").write_bytes(one.outside("/root/cluster.zip").read_bytes())
    two.safekit("cluster", "config", "/root/cluster.zip")
    for server in pair:
        server.outside("/root/mirror.safe").write_bytes(archive(MIRROR, {"start_prim": START, "stop_prim": STOP}))
        server.safekit("module", "install", "-M", "1", "-m", "mirror", "/root/mirror.safe")
        server.safekit("config", "-m", "mirror")
        server.safekit("boot", "-m", "mirror", "on")
    one.safekit("prim", "-m", "mirror")
    two.safekit("second", "-m", "mirror")
    wait_states((one, "PRIM"), (two, "SECOND"))
    wait_until(lambda: records(one) > 20, 20, "the application writes")
    one.safekit("swap", "-m", "mirror")
    wait_states((one, "SECOND"), (two, "PRIM"))
    assert f"{VIP}/" in two.run("ip -4 addr show").stdout and f"{VIP}/" not in one.run("ip -4 addr show").stdout
    known = records(two)
    wait_until(lambda: records(two) > known + 20, 20, "the application writes on the other server")
    known = records(two)
    two.poweroff()
    wait_states((one, "ALONE"))
    assert records(one) >= known, "acknowledged records are there"
    two.boot()
    wait_states((one, "PRIM"), (two, "SECOND"))
    one.shutdown()
    wait_states((two, "ALONE"))
    for server in pair:
        if server.process is not None:
            assert server.run(["systemctl", "--failed", "--no-legend", "--plain"]).stdout.count("safe") == 0

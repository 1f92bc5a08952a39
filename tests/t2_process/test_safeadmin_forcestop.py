"""What a forced stop takes away when its processes are dead: stale mounts and virtual addresses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safeadmin_node import CHECKOUT, Node, cluster

from lab.waiting import wait_until
from safeadmin import forcestop
from safekit.log.module import ModuleLog
from safekit.model import directories
from safekit.model.codec import to_json
from safekit.model.types import Interface, ModuleConfig, Replicated, Rfs, Vip, VirtualAddr
from safekit.wire.seal import new_key

FUSE = "import fuse,sys; fuse.FUSE(fuse.Operations(), sys.argv[1], foreground=True, nothreads=True)"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "n")
    node.configure_cluster(cluster({"n1": "127.0.0.1", "n2": "127.0.0.2"}, 4800), new_key())
    yield node
    node.destroy()


def point(directory: Path) -> bool:
    return any(mount.point == str(directory) for mount in directories.mounts())


def test_a_stale_mount_becomes_the_link_of_a_stopped_module(node: Node, tmp_path: Path) -> None:
    directory, backing = tmp_path / "data", tmp_path / "data_For_SafeKit_Replication"
    directory.mkdir()
    backing.mkdir()
    (backing / "file").write_text("kept")
    try:
        with subprocess.Popen([sys.executable, "-c", FUSE, str(directory)]) as server:
            wait_until(lambda: point(directory), 15, "it is mounted")
            server.send_signal(signal.SIGKILL)
        assert point(directory), "the mount outlives its server"
        config = ModuleConfig("am", 1, rfs=Rfs((Replicated(str(directory)),)))
        with node.here():
            forcestop._unmount(config, ModuleLog("am", "safeadmin", "n1"))
        assert not point(directory)
        assert directory.is_symlink() and (directory / "file").read_text() == "kept"
        assert node.texts("am") == []
    finally:
        while point(directory):
            subprocess.run(["umount", "-l", directory], check=True, timeout=10)


def test_a_directory_with_files_in_the_place_of_the_mount_is_left_alone(node: Node, tmp_path: Path) -> None:
    directory, backing = tmp_path / "data", tmp_path / "data_For_SafeKit_Replication"
    directory.mkdir()
    backing.mkdir()
    (directory / "written while nothing was mounted").touch()
    config = ModuleConfig("am", 1, rfs=Rfs((Replicated(str(directory)),)))
    with node.here():
        forcestop._unmount(config, ModuleLog("am", "safeadmin", "n1"))
    assert (directory / "written while nothing was mounted").exists() and not directory.is_symlink()


def test_the_addresses_of_a_dead_vipd_are_removed_and_no_others(node: Node, tmp_path: Path) -> None:
    space = f"sk{os.getpid()}f"
    config = ModuleConfig(
        "am", 1, vip=Vip(interfaces=(Interface(addresses=(VirtualAddr("10.99.0.100"), VirtualAddr("fd99::100"))),))
    )
    (tmp_path / "config.json").write_text(to_json(config))
    code = (
        "import sys; from safeadmin import forcestop; from safekit.log.module import ModuleLog;"
        "from safekit.model.codec import from_json; from safekit.model.types import ModuleConfig;"
        "config = from_json(ModuleConfig, open(sys.argv[1]).read());"
        "forcestop._remove_addresses(config, ModuleLog('am', 'safeadmin', 'n1'))"
    )

    def inside(*words: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", space, *words],
            check=True,
            capture_output=True,
            timeout=20,
            cwd=CHECKOUT,
            env=node.environment,
        )
        return done.stdout.decode()

    subprocess.run(["ip", "netns", "add", space], check=True, timeout=10)
    try:
        inside("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
        inside("ip", "link", "set", "d0", "up")
        for address in ("10.99.0.1/24", "10.99.0.100/24", "fd99::1/64", "fd99::100/64"):
            inside("ip", "addr", "add", address, "dev", "d0", *(["nodad"] if ":" in address else []))
        inside(sys.executable, "-c", code, str(tmp_path / "config.json"))
        shown = inside("ip", "-o", "addr", "show", "dev", "d0")
        assert "10.99.0.1/24" in shown and "fd99::1/64" in shown
        assert "10.99.0.100" not in shown and "fd99::100" not in shown
    finally:
        subprocess.run(["ip", "netns", "del", space], check=True, timeout=10)
    assert sorted(node.texts("am")) == ["Virtual IP 10.99.0.100 unset", "Virtual IP fd99::100 unset"]

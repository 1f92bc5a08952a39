"""A start that could not work is refused with its cause, and nothing is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from safeadmin_node import Node, cluster, free_port, until

from safeadmin.obstacles import obstacle
from safekit.bus.message import BusError
from safekit.model.types import Heart, Heartbeat, ModuleConfig, Replicated, Rfs
from safekit.wire.seal import new_key

HEART = Heart((Heartbeat("default", "flow", 8888),))
CLUSTER = cluster({"n1": "127.0.0.1", "n2": "127.0.0.2"}, 4800)
RFS = Rfs(flow="default", port=5600, replicated=(Replicated("/d"),))


def taken(kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    if kind is socket.SOCK_STREAM:
        sock.listen()
    return sock


def test_the_port_of_a_heartbeat(tmp_path: Path) -> None:
    with taken(socket.SOCK_DGRAM) as sock:
        port = sock.getsockname()[1]
        config = ModuleConfig("am", 1, heart=Heart((Heartbeat("default", "flow", port),)))
        told = obstacle(config, CLUSTER, "n1")
        assert told.startswith(f"UDP port {port} of 127.0.0.1 (heartbeat flow) is used by another program; ")
        assert obstacle(config, CLUSTER, "n2") == ""
    assert obstacle(config, CLUSTER, "n1") == ""


def test_the_port_of_the_replication(tmp_path: Path) -> None:
    with taken(socket.SOCK_STREAM) as sock:
        port = sock.getsockname()[1]
        config = ModuleConfig("am", 1, heart=HEART, rfs=Rfs(flow="default", port=port))
        assert obstacle(config, CLUSTER, "n1").startswith(f"TCP port {port} of 127.0.0.1 (file replication) is used")


def test_an_address_that_is_not_there_is_no_obstacle() -> None:
    elsewhere = cluster({"n1": "192.0.2.1", "n2": "192.0.2.2"}, 4800)
    assert obstacle(ModuleConfig("am", 1, heart=HEART), elsewhere, "n1") == ""


@pytest.mark.parametrize("make", [None, Path.touch])
def test_a_kernel_without_fuse(tmp_path: Path, make: object) -> None:
    device = tmp_path / "fuse"
    if callable(make):
        make(device)
    told = obstacle(ModuleConfig("am", 1, heart=HEART, rfs=RFS), CLUSTER, "n1", device)
    assert told == f"{device} is missing: file replication needs the kernel's FUSE; modprobe fuse"


def test_nothing_is_started(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.configure_cluster(cluster({"n1": "127.0.0.1", "n2": "127.0.0.2"}, free_port()), new_key())
    with taken(socket.SOCK_DGRAM) as sock:
        port = sock.getsockname()[1]
        node.configure_module("am", heart=Heart((Heartbeat("default", "default", port),)))
        try:
            node.start()
            with pytest.raises(BusError, match=f"UDP port {port} of 127.0.0.1"):
                node.control("am", "start")
            assert not node.processes("am") and not node.module("am")["running"]
            sock.close()
            node.control("am", "start")
            until("it runs", lambda: node.module("am")["running"])
        finally:
            node.destroy()

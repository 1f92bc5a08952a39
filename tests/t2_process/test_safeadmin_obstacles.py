"""A start that could not work is refused with its cause, and nothing is started."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from safeadmin_node import Node, cluster

from lab.waiting import wait_until
from safeadmin.obstacles import obstacle
from safekit.bus.message import BusError
from safekit.model.types import Errd, Heart, Heartbeat, ModuleConfig, Proc, Replicated, Rfs, Service
from safekit.wire.seal import new_key
from tests.ports import free_port

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


@pytest.mark.parametrize(
    "config",
    [
        ModuleConfig("am", 1, Service("light"), errd=Errd(procs=(Proc("x", "prim", nameregex="x(?!y)"),))),
        ModuleConfig("am", 1, Service("light"), errd=Errd(procs=(Proc("x", "prim", argregex="x(?!y)"),))),
        ModuleConfig("am", 1, heart=HEART, rfs=Rfs(replicated=(Replicated("/d", notreplicated_regex=("x(?!y)",)),))),
    ],
)
def test_an_expression_that_a_former_release_read(config: ModuleConfig) -> None:
    """The processes would end with it again and again, and nobody would watch the application."""
    told = obstacle(config, CLUSTER, "n1")
    assert "'x(?!y)' of the active configuration cannot be used" in told and "safekit config -m am" in told


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
            wait_until(lambda: node.module("am")["running"], 15, "it runs")
        finally:
            node.destroy()


class Squatter:
    """A program of any user on the local port of safeadmin, which answers everything with bytes of its own."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", port))
        self.socket.settimeout(0.1)
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        while not self._leaving.is_set():
            with contextlib.suppress(TimeoutError):
                data, origin = self.socket.recvfrom(65536)
                self.socket.sendto(data[:-1] + b"x", origin)

    def close(self) -> None:
        self._leaving.set()
        self._thread.join(5)
        self.socket.close()


def test_a_stranger_on_the_port_of_a_dead_safeadmin(tmp_path: Path) -> None:
    """Commands and running processes find safeadmin at another port, until it is started with its own one free."""
    node = Node(tmp_path)
    node.configure_cluster(cluster({"n1": "127.0.0.1", "n2": "127.0.0.2"}, free_port()), new_key())
    node.configure_module("am")
    try:
        node.start()
        node.started("am")
        node.stop(signal.SIGKILL)
        squatter = Squatter(node.mapper)
        try:
            node.start()
            told = (node.safevar / "safeadmin.log").read_text()
            assert f"UDP port {node.mapper} of 127.0.0.1 is held by a program that is no safeadmin" in told
            assert f"ss -lunp 'sport = {node.mapper}'" in told
            wait_until(lambda: reached(node, "am/heart"), 10, "heart is found again")
            second = subprocess.run([str(node.programs / "safeadmin")], env=node.environment, timeout=20, check=False)
            assert second.returncode == 1, "one safeadmin for a server, wherever it is"
        finally:
            squatter.close()
        node.stop(signal.SIGKILL)
        node.start()
        assert not (node.safevar / "safeadmin.port").exists()
        wait_until(lambda: reached(node, "am/heart"), 10, "heart is found at the usual port")
    finally:
        node.destroy()


def reached(node: Node, name: str) -> bool:
    try:
        node.request(name, "ping", 0.5)
    except BusError as error:
        return error.code not in ("timeout", "unknown_target", "unknown")
    return True

"""safeadmin on the wire: two servers in two network namespaces, cuts, other keys, hostile datagrams."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safeadmin_node import SIGNATURE, Node, cluster

from lab.waiting import wait_until
from safeadmin.cluster import CONTEXT
from safeadmin.wire import configuration_id, encode
from safekit.bus.message import BusError
from safekit.bus.message import encode as bus_encode
from safekit.model.types import ClusterConfig, Lan, LanNode
from safekit.wire.membership import Pulse, Row
from safekit.wire.seal import Sealer, new_key
from tests.ports import free_port

PORT = 4800


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


class Wire:
    """Two namespaces, two lans between them."""

    def __init__(self) -> None:
        self.spaces = [f"sk{os.getpid()}a{n}" for n in (1, 2)]
        for space in self.spaces:
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        for lan in (0, 1):
            ends = [f"l{lan}", f"l{lan}"]
            ip(
                "link",
                "add",
                ends[0],
                "netns",
                self.spaces[0],
                "type",
                "veth",
                "peer",
                "name",
                ends[1],
                "netns",
                self.spaces[1],
            )
            for number, space in enumerate(self.spaces, 1):
                ip("-n", space, "addr", "add", f"10.{77 + lan}.0.{number}/24", "dev", f"l{lan}")
                ip("-n", space, "link", "set", f"l{lan}", "up")

    def config(self, lans: int = 2, **settings: int) -> ClusterConfig:
        return ClusterConfig(
            tuple(
                Lan(f"lan{lan}", nodes=tuple(LanNode(f"n{n}", f"10.{77 + lan}.0.{n}") for n in (1, 2)))
                for lan in range(lans)
            ),
            port=PORT,
            signature=SIGNATURE,
            **{"pulse_ms": 200, "mlost_count": 4, "slost_count": 4, **settings},  # type: ignore[arg-type]
        )

    def drop_incoming(self, space: int, lan: int) -> None:
        """Cut one direction: this namespace no longer hears the other on that lan."""
        table = f"inet cut{lan}"
        rules = (
            f"add table {table}; add chain {table} in {{ type filter hook input priority 0; }};"
            f" add rule {table} in iifname l{lan} drop"
        )
        subprocess.run(["ip", "netns", "exec", self.spaces[space], "nft", rules], check=True, timeout=10)

    def heal(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "exec", space, "nft", "flush", "ruleset"], check=True, timeout=10)

    def close(self) -> None:
        for space in self.spaces:
            ip("netns", "del", space)


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def nodes(wire: Wire, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    pair = tuple(
        Node(tmp_path / f"n{n}", f"n{n}", ("ip", "netns", "exec", space), 6259)
        for n, space in enumerate(wire.spaces, 1)
    )
    assert len(pair) == 2
    yield pair
    for node in pair:
        node.destroy()


def answers(node: Node, peer: str) -> bool:
    view = node.call("members")
    return view is not None and bool(view["nodes"][peer]["member"])


def status(node: Node, module: str = "am") -> str:
    reply = node.call("cluster", module=module)
    return "" if reply is None else str(reply["value"])


def test_two_servers_see_each_other_and_lose_each_other(wire: Wire, nodes: tuple[Node, Node]) -> None:
    key = new_key()
    for node in nodes:
        node.configure_cluster(wire.config(), key)
        node.configure_module("am")
    first, second = nodes
    first.start()
    assert status(first) == "unknown", "silence means nothing yet"
    wait_until(lambda: status(first) == "down", 15, "n1 is sure to be alone")
    second.start()
    wait_until(lambda: answers(first, "n2") and answers(second, "n1"), 15, "both see each other")
    wait_until(lambda: status(first) == "up" and status(second) == "up", 15, "cluster() is up")
    views = [node.call("members") for node in nodes]
    assert views[0] and views[1] and views[0]["leader"] == views[1]["leader"] == "n1"
    facts = views[1]["nodes"]["n1"]["facts"]
    assert facts["modules"][0]["name"] == "am" and facts["modules"][0]["mode"] == "mirror"
    # One lan of two: nothing happens.
    wire.drop_incoming(0, 0)
    wait_until(lambda: (first.call("members") or {})["nodes"]["n2"]["lans"]["lan0"] > 1.5, 15, "lan0 is silent")
    assert answers(first, "n2") and answers(second, "n1")
    # The last direction of the last lan: both must see it, although n2 still hears n1.
    wire.drop_incoming(0, 1)
    wait_until(lambda: not answers(first, "n2"), 15, "n1 lost n2")
    wait_until(lambda: not answers(second, "n1"), 15, "n2 knows that it is not heard")
    wait_until(lambda: status(first) == "down", 15, "nobody answers n1")
    assert status(second) == "up", "n1 still answers n2"
    wire.heal()
    wait_until(lambda: answers(first, "n2") and answers(second, "n1"), 15, "they are together again")
    # The death of the leader.
    first.stop(signal.SIGKILL)
    wait_until(lambda: (second.call("members") or {}).get("leader") == "n2", 15, "n2 leads alone")
    log = second.admin_log()
    assert "leader_silent n1" in log and "link_told n1" in log


def test_one_clear_line_for_another_key_and_for_another_configuration(wire: Wire, nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    first.configure_cluster(wire.config(1), new_key())
    second.configure_cluster(wire.config(1, pulse_ms=50), new_key())
    for node in nodes:
        node.start()
    wait_until(lambda: "datagrams of n2 (10.77.0.2) are rejected" in first.admin_log(), 15, "n1 complains")
    # Dozens more arrive: still one line.
    wait_until(lambda: status(first, "x") == "unknown" and first.admin_log().count("\n") > 2, 15, "time passes")
    second.configure_cluster(wire.config(1, pulse_ms=50), key := new_key())
    first.configure_cluster(ClusterConfig(**{**_fields(wire.config(1)), "signature": "99" * 32}), key)
    assert second.call("reload") and first.call("reload")
    wait_until(
        lambda: "another cluster configuration" in second.admin_log(), 15, "n2 complains about the configuration"
    )
    first.configure_cluster(wire.config(1), key)
    first.call("reload")
    wait_until(lambda: answers(first, "n2") and answers(second, "n1"), 15, "they understand each other")
    wait_until(lambda: "understood again" in second.admin_log(), 15, "n2 says so")
    lines = first.admin_log().splitlines() + second.admin_log().splitlines()
    assert (
        sum("are rejected" in line for line in lines) <= 3
        and sum("another cluster configuration" in line for line in lines) <= 2
    )


def _fields(config: ClusterConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in ("lans", "port", "pulse_ms", "mlost_count", "slost_count")}


def test_nothing_on_the_wire_is_readable(wire: Wire, nodes: tuple[Node, Node]) -> None:
    key = new_key()
    for node in nodes:
        node.configure_cluster(wire.config(1), key)
        node.configure_module("verysecretmodule")
    nodes[0].start()
    listener = (
        "import socket,sys;s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.htons(3));s.settimeout(10);"
        "s.bind(('l0',0));print('listening',flush=True)\n"
        "[sys.stdout.buffer.write(s.recv(65535)) for _ in range(30)]"
    )
    with subprocess.Popen(
        ["ip", "netns", "exec", wire.spaces[1], "python3", "-c", listener], stdout=subprocess.PIPE
    ) as capture:
        assert capture.stdout is not None and capture.stdout.readline() == b"listening\n"
        nodes[1].start()
        seen = capture.communicate(timeout=20)[0]
    wait_until(lambda: (nodes[1].call("members") or {})["nodes"]["n1"]["facts"], 15, "the facts crossed the wire")
    assert len(seen) > 2000 and b"SK" in seen
    for word in (b"verysecretmodule", b"mirror", b"n1", b"n2", SIGNATURE.encode()):
        assert seen.count(word) == 0 or word in (b"n1", b"n2"), word


OUTSIDE = {1: "203.0.113.1", 2: "203.0.113.2"}
INSIDE = {1: "192.168.1.2", 2: "192.168.2.2"}


@pytest.fixture
def translated(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two servers behind a router that translates: neither has the address under which the other knows it."""
    spaces = {n: f"sk{os.getpid()}n{n}" for n in (1, 2)}
    router = f"sk{os.getpid()}nr"
    for space in (*spaces.values(), router):
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
    for n, space in spaces.items():
        ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", f"r{n}", "netns", router)
        ip("-n", space, "addr", "add", f"{INSIDE[n]}/24", "dev", "eth0")
        ip("-n", router, "addr", "add", f"192.168.{n}.1/24", "dev", f"r{n}")
        for where, device in ((space, "eth0"), (router, f"r{n}")):
            ip("-n", where, "link", "set", device, "up")
        ip("-n", space, "route", "add", "default", "via", f"192.168.{n}.1")
    rules = "add table ip t; add chain ip t i { type filter hook prerouting priority -300; };"
    rules += " add chain ip t o { type filter hook postrouting priority 300; };"
    for n in (1, 2):
        rules += f" add rule ip t i ip daddr {OUTSIDE[n]} ip daddr set {INSIDE[n]};"
        rules += f" add rule ip t o ip saddr {INSIDE[n]} ip saddr set {OUTSIDE[n]};"
    inside = ["ip", "netns", "exec", router]
    subprocess.run([*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True, timeout=10)
    subprocess.run([*inside, "nft", rules], check=True, timeout=10)
    pair = tuple(Node(tmp_path / f"n{n}", f"n{n}", ("ip", "netns", "exec", s), 6259) for n, s in spaces.items())
    yield pair  # type: ignore[misc]
    for node in pair:
        node.destroy()
    for space in (*spaces.values(), router):
        ip("netns", "del", space)


def test_a_cluster_across_a_translation_of_addresses(translated: tuple[Node, Node]) -> None:
    """Guide 12.1.1: addr as the others know it, laddr as the server has it."""
    lan = Lan("default", nodes=tuple(LanNode(f"n{n}", OUTSIDE[n], INSIDE[n]) for n in (1, 2)))
    key = new_key()
    for node in translated:
        node.configure_cluster(ClusterConfig((lan,), PORT, 200, 4, 4, SIGNATURE), key)
        node.configure_module("am")
        node.start()
    first, second = translated
    wait_until(lambda: answers(first, "n2") and answers(second, "n1"), 15, "they see each other")
    wait_until(lambda: status(first) == "up" and status(second) == "up", 15, "and what the other one has")
    assert "rejected" not in first.admin_log() + second.admin_log()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[Node, int, bytes]]:
    port, key = free_port(), new_key()
    node = Node(tmp_path)
    node.configure_cluster(cluster({"n1": "127.0.0.1", "n2": "127.0.0.2"}, port), key)
    node.configure_module("am")
    node.start()
    yield node, port, key
    node.destroy()


def hostile(rng: random.Random, genuine: bytes) -> Iterator[bytes]:
    """Garbage, truncations, single flipped bits, and the largest datagrams that UDP carries."""
    yield b""
    yield b"\xff" * 60_000
    yield genuine + b"\0" * 60_000
    for length in range(0, len(genuine), max(1, len(genuine) // 40)):
        yield genuine[:length]
    for _ in range(200):
        flipped = bytearray(genuine)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)
    for _ in range(200):
        yield rng.randbytes(rng.randrange(1, 300))


def test_hostile_datagrams_are_ignored_on_both_ports(alone: tuple[Node, int, bytes]) -> None:
    node, port, key = alone
    rng = random.Random(1)
    sealer = Sealer(key, CONTEXT, "n2", 1 << 62)
    nonsense = [
        bytes([kind]) + configuration_id(SIGNATURE) + rng.randbytes(rng.randrange(80))
        for kind in range(8)
        for _ in range(8)
    ]
    with node.here(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.2", 0))
        command = {"id": 7, "op": "control", "from": "x", "module": "am", "action": "start", "who": "intruder"}
        for datagram in hostile(rng, bus_encode(command, new_key())):
            sock.sendto(datagram, ("127.0.0.1", node.mapper))
        row = Row(1, 1 << 62, 1, 1, 0)
        for datagram in hostile(
            rng, Sealer(new_key(), CONTEXT, "n2", 5).seal(encode(Pulse((row,)), configuration_id(SIGNATURE)))
        ):
            sock.sendto(datagram, ("127.0.0.1", port))
        # Authentic, and still nonsense: a defect or an intruder on the other server.
        for payload in nonsense:
            sock.sendto(sealer.seal(payload), ("127.0.0.1", port))
        forged = Pulse((Row(0, 1 << 62, 1, 2, 0),))
        sock.sendto(sealer.seal(encode(forged, configuration_id(SIGNATURE))), ("127.0.0.1", port))
        # An authentic message that means something, to know that all before it has been read.
        sock.sendto(sealer.seal(encode(Pulse((row,)), configuration_id(SIGNATURE))), ("127.0.0.1", port))
    wait_until(lambda: answers(node, "n2"), 15, "n2 was heard")
    assert not node.module("am")["running"] and not node.processes("am")
    assert "intruder" not in " ".join(node.texts("am"))
    errors = (node.root / "safeadmin.err").read_text()
    assert "Traceback" not in errors and "exception" not in errors.lower()
    assert len(node.admin_log().splitlines()) < 15, node.admin_log()


def test_requests_with_wrong_fields_are_refused(alone: tuple[Node, int, bytes]) -> None:
    node = alone[0]
    for op, fields in (
        ("control", {"module": 5, "action": "start", "who": "root"}),
        ("control", {"module": "am", "action": ["start"], "who": "root"}),
        ("control", {"module": "am", "action": "start"}),
        ("cluster", {}),
        ("boot", {"module": "am", "value": "perhaps"}),
        ("map_lookup", {"name": None}),
        ("map_register", {"name": "am/heart", "pid": "1"}),
        ("map_register", {"name": "../../x", "pid": 1}),
        ("no such thing", {}),
    ):
        with pytest.raises(BusError) as caught:
            node.request("safeadmin", op, **fields)
        assert caught.value.code in ("bad_request", "unknown_op"), (op, caught.value.text)
    assert "Traceback" not in (node.root / "safeadmin.err").read_text()


def test_the_port_of_a_lan_that_is_taken_is_said_once_and_retried(tmp_path: Path) -> None:
    port = free_port()
    node = Node(tmp_path)
    node.configure_cluster(cluster({"n1": "127.0.0.1", "n2": "127.0.0.2"}, port), new_key())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        try:
            node.start()
            wait_until(lambda: f"ss -lunp 'sport = {port}'" in node.admin_log(), 15, "the port is reported")
            sock.close()
            wait_until(
                lambda: f"UDP port {port} of 127.0.0.1 is open" in node.admin_log(), 15, "it is used when it is free"
            )
        finally:
            node.destroy()


def test_systemd_is_told_when_safeadmin_is_ready_and_when_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(address))
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        node = Node(tmp_path / "n")
        node.start()
        try:
            assert b"READY=1" in sock.recv(1000)
            assert node.stop() == 0
            assert b"STOPPING=1" in sock.recv(1000)
        finally:
            node.destroy()

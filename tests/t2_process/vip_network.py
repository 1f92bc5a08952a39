"""Servers, a client and a stranger on one bridge, each in a network namespace, for the tests of the virtual
address. Every server has its own SAFE and SAFEVAR, a port mapper, and takes orders through it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lab.waiting import wait_until
from safekit.model.codec import to_json
from safekit.model.types import ClusterConfig, Lan, LanNode, ModuleConfig, Vip
from tests.logs import said

ROOT = Path(__file__).resolve().parents[2]
MODULE = "mirror"
VIP4, VIP6 = "10.77.0.50", "fd77::50"
HOSTS = {"n1": 1, "n2": 2, "client": 100, "stranger": 9}
_counter = itertools.count()

# The port mapper of a server, and a way to send orders from inside its namespace.
AGENT = r"""
import asyncio, json, sys
from safekit.bus.endpoint import BusError, Endpoint
ports = {}
async def admin(request):
    if request.op == "map_register":
        ports[request.fields["name"]] = request.fields["_port"]
    if request.op == "map_lookup":
        return {"port": ports.get(request.fields["name"], 0)}
events = []
async def heart(request):
    events.append(request.fields)
async def main():
    mapper = await Endpoint.open("safeadmin", admin, port=6259)
    bus = await Endpoint.open("mirror/heart", heart)
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := await reader.readline():
        order = json.loads(line)
        if order["op"] == "events":
            print(json.dumps({"events": events}), flush=True)
            continue
        try:
            reply = await bus.by_word(order["target"], order["op"], order["timeout"], **order["fields"])
        except BusError as error:
            reply = {"ok": False, "code": error.code, "text": error.text}
        print(json.dumps(reply), flush=True)
asyncio.run(main())
"""


def sh(*command: str, check: bool = True) -> str:
    """Run a command; its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@dataclass
class Host:
    """A namespace with one interface on the bridge, `eth0`."""

    name: str
    namespace: str
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def number(self) -> int:
        return HOSTS[self.name]

    @property
    def ip(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def ip6(self) -> str:
        return f"fd77::{self.number:x}"

    @property
    def mac(self) -> str:
        return f"02:00:0a:4d:00:{self.number:02x}"

    def run(self, *command: str, check: bool = True) -> str:
        assert shutil.which(command[0]), f"{command[0]} is not installed: bin/setup test"
        return sh("ip", "netns", "exec", self.namespace, *command, check=check)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen(("ip", "netns", "exec", self.namespace, *command), **options)
        self.processes.append(process)
        return process

    def python(self, code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """A program that prints `ready` when it is, and talks through pipes."""
        process = self.popen(
            sys.executable, "-c", code, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        return process

    def addresses(self) -> dict[str, tuple[str, int]]:
        """Address -> (interface, prefix length)."""
        listed = json.loads(self.run("ip", "-j", "addr"))
        return {a["local"]: (link["ifname"], a["prefixlen"]) for link in listed for a in link.get("addr_info", ())}

    def neighbour(self, ip: str) -> str | None:
        """MAC under which `ip` is known."""
        entries = json.loads(self.run("ip", "-j", "neigh", "show", "to", ip) or "[]")
        return next((e["lladdr"] for e in entries if "lladdr" in e), None)

    def ping(self, ip: str) -> bool:
        return "1 received" in self.run("ping", "-n", "-c1", "-W1", ip, check=False)

    def kill_all(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self.processes.clear()


class Server(Host):
    """A cluster node: configuration files, mapper and processes of the module."""

    var: Path
    agent: subprocess.Popen[str]

    def install(self, directory: Path, vip: Vip, cluster: ClusterConfig, state: str = "WAIT") -> None:
        """Write what the processes read, and start the mapper."""
        self.var = directory / "var" / "modules" / MODULE
        conf = directory / "safe" / "private" / "modules" / MODULE / "conf"
        for made in (self.var / "log", conf, directory / "var" / "cluster"):
            made.mkdir(parents=True)
        self.environment = {
            **os.environ,
            "SAFE": str(directory / "safe"),
            "SAFEVAR": str(directory / "var"),
            "SAFENODE": self.name,
            "SAFEMODULE": MODULE,
            "SAFEMAPPER": "6259",
            "PYTHONPATH": str(ROOT),
        }
        (directory / "var" / "bus.key").write_text("5a" * 32 + "\n")
        (directory / "var" / "cluster" / "cluster.json").write_text(to_json(cluster))
        (conf / "active.json").write_text(to_json(ModuleConfig(MODULE, 1, vip=vip)))
        self.state(state)
        self.agent = self.python(AGENT, env=self.environment)

    def state(self, state: str, remote: str = "UNKNOWN") -> None:
        values = {"state.local": state, "state.remote": remote}
        text = "".join(f"{name} {value} 1700000000.000 heart\n" for name, value in values.items())
        (self.var / "resources").write_text(text)

    def start(self, name: str = "vipd") -> subprocess.Popen[Any]:
        """Start vipd or arpreroute, and wait until it answers."""
        module = "vipd.main" if name == "vipd" else "vipd.arpreroute"
        process = self.popen(sys.executable, "-m", module, env=self.environment, stderr=subprocess.DEVNULL)
        wait_until(
            lambda: self.order("ping", target=name, timeout=0.3).get("pid") == process.pid, 10, f"{name} answers"
        )
        return process

    def order(self, op: str, target: str = "vipd", timeout: float = 5.0, **fields: Any) -> dict[str, Any]:
        """A bus request from this server; the reply, or {ok: False, code, text}."""
        assert self.agent.stdin is not None and self.agent.stdout is not None
        request = {"target": f"{MODULE}/{target}", "op": op, "timeout": timeout, "fields": fields}
        self.agent.stdin.write(json.dumps(request) + "\n")
        self.agent.stdin.flush()
        reply: dict[str, Any] = json.loads(self.agent.stdout.readline())
        return reply

    def events(self) -> list[dict[str, Any]]:
        """What the module's processes have told heart."""
        found: list[dict[str, Any]] = self.order("events")["events"]
        return found

    def log(self, code: str) -> list[str]:
        """Texts of the module log's lines with this code."""
        return said(self.var, code)


@dataclass
class Network:
    """The bridge and its hosts."""

    bridge: str
    n1: Server
    n2: Server
    client: Host
    stranger: Host

    @property
    def hosts(self) -> tuple[Host, ...]:
        return (self.n1, self.n2, self.client, self.stranger)

    @property
    def cluster(self) -> ClusterConfig:
        nodes = tuple(LanNode(server.name, server.ip) for server in (self.n1, self.n2))
        return ClusterConfig(lans=(Lan("default", nodes=nodes),))

    def install(self, directory: Path, vip: Vip, *servers: Server, state: str = "WAIT") -> None:
        for server in servers or (self.n1, self.n2):
            server.install(directory / server.name, vip, self.cluster, state)

    def clean(self) -> None:
        """End what a test started and take its addresses away."""
        for host in self.hosts:
            host.kill_all()
            for ip in host.addresses():
                if ip not in (host.ip, host.ip6, "127.0.0.1", "::1") and not ip.startswith("fe80"):
                    host.run("ip", "addr", "del", f"{ip}/{host.addresses()[ip][1]}", "dev", host.addresses()[ip][0])
            for state in ("all", "permanent"):
                host.run("ip", "neigh", "flush", "nud", state)
            host.run("nft", "flush", "ruleset")
            host.run("ip", "link", "set", "eth0", "up")


@contextmanager
def network() -> Iterator[Network]:
    """Make the namespaces, and delete them whatever happens."""
    tag = f"sk{os.getpid()}-{next(_counter)}"
    names = {role: f"{tag}-{role}" for role in ("bridge", *HOSTS)}
    made: list[str] = []
    try:
        for namespace in names.values():
            sh("ip", "netns", "add", namespace)
            made.append(namespace)
            sh("ip", "-n", namespace, "link", "set", "lo", "up")
        bridge = names["bridge"]
        sh("ip", "-n", bridge, "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        sh("ip", "-n", bridge, "link", "set", "br0", "up")
        hosts: dict[str, Host] = {}
        for role in HOSTS:
            host = (Server if role in ("n1", "n2") else Host)(role, names[role])
            hosts[role] = host
            peer = ("peer", "name", "eth0", "netns", host.namespace, "address", host.mac)
            sh("ip", "-n", bridge, "link", "add", f"p-{role}", "type", "veth", *peer)
            sh("ip", "-n", bridge, "link", "set", f"p-{role}", "master", "br0", "up")
            sh("ip", "-n", host.namespace, "link", "set", "eth0", "up")
            sh("ip", "-n", host.namespace, "addr", "add", f"{host.ip}/24", "dev", "eth0")
            sh("ip", "-n", host.namespace, "addr", "add", f"{host.ip6}/64", "dev", "eth0", "nodad")
        n1, n2 = hosts["n1"], hosts["n2"]
        assert isinstance(n1, Server) and isinstance(n2, Server)
        made_network = Network(bridge, n1, n2, hosts["client"], hosts["stranger"])
        try:
            yield made_network
        finally:
            for host in hosts.values():
                host.kill_all()
    finally:
        for namespace in made:
            sh("ip", "netns", "del", namespace, check=False)


# Sends an echo request every `argv[2]` seconds for `argv[3]` seconds; prints the times of the answers.
PINGER = r"""
import ipaddress, json, select, socket, struct, sys, time
ip, interval, seconds = ipaddress.ip_address(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
if ip.version == 4:
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); asked, answered, skip = 8, 0, 20
else:
    s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6); asked, answered, skip = 128, 129, 0
def checksum(b):
    t = sum(struct.unpack("!%dH" % (len(b) // 2), b)); t = (t >> 16) + (t & 0xffff); return ~(t + (t >> 16)) & 0xffff
s.setblocking(False); print("ready", flush=True)
start = time.monotonic(); sent = 0; answers = []
while (now := time.monotonic()) < start + seconds:
    if now >= start + sent * interval:
        b = struct.pack("!BBHHH", asked, 0, 0, 77, sent & 0xffff) + bytes(8)
        b = b[:2] + struct.pack("!H", checksum(b)) + b[4:] if ip.version == 4 else b
        try: s.sendto(b, (str(ip), 0))
        except OSError: pass
        sent += 1
    if select.select([s], [], [], max(0, start + sent * interval - time.monotonic()))[0]:
        data, origin = s.recvfrom(256)
        if data[skip] == answered and origin[0] == str(ip): answers.append(time.monotonic())
print(json.dumps({"sent": sent, "answers": answers}), flush=True)
"""


@contextmanager
def pinging(client: Host, ip: str, seconds: float, interval: float = 0.005) -> Iterator[Callable[[], dict[str, Any]]]:
    """Ping while the block runs; the function it gives waits for the end and returns the figures, with the
    longest gap between two answers in seconds."""
    process = client.python(PINGER, ip, str(interval), str(seconds))

    def result() -> dict[str, Any]:
        stream: IO[str] | None = process.stdout
        assert stream is not None
        figures: dict[str, Any] = json.loads(stream.readline())
        answers = figures["answers"]
        figures["gap"] = max((b - a for a, b in itertools.pairwise(answers)), default=seconds)
        return figures

    yield result

"""A farm of servers, a client and a stranger on one learning bridge, each in a network namespace. Every server
runs the real vipd of a farm module, with a port mapper and somebody who plays heart; applications that answer
with the name of their server; clients that count."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lab.waiting import wait_until
from safekit.model.codec import to_json
from safekit.model.types import (
    ClusterConfig,
    Farm,
    FarmLan,
    Group,
    Host,
    Interface,
    InterfaceKind,
    Lan,
    LanNode,
    ModuleConfig,
    Rule,
    Service,
    Vip,
    VirtualAddr,
)
from tests.logs import said
from tests.t2_process.vip_network import Host as VipHost
from tests.t2_process.vip_network import sh

ROOT = Path(__file__).resolve().parents[2]
MODULE = "farm"
VIP4, VIP6 = "10.78.0.50", "fd78::50"
VMAC4 = "5a:fe:0a:4e:00:32"
PORT = 4803
_counter = itertools.count()

AGENT = r"""
import asyncio, json, sys
from safekit.bus.endpoint import BusError, Endpoint
ports, resources = {}, {}
async def admin(request):
    if request.op == "map_register":
        ports[request.fields["name"]] = request.fields["_port"]
    if request.op == "map_lookup":
        return {"port": ports.get(request.fields["name"], 0)}
async def heart(request):
    if request.op == "set":
        resources[request.fields["resource"]] = request.fields["value"]
        return {"changed": True}
async def main():
    mapper = await Endpoint.open("safeadmin", admin, port=6259)
    bus = await Endpoint.open("farm/heart", heart)
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := await reader.readline():
        order = json.loads(line)
        if order["op"] == "resources":
            print(json.dumps({"resources": resources}), flush=True)
            continue
        try:
            reply = await bus.by_word(order["target"], order["op"], order["timeout"], **order["fields"])
        except BusError as error:
            reply = {"ok": False, "code": error.code, "text": error.text}
        print(json.dumps(reply), flush=True)
asyncio.run(main())
"""

# Answers on TCP with the name of its server and closes; to a client that begins with L it echoes for ever.
# Counts UDP datagrams and the bytes in them on port 5001, answers with its name.
SERVER = r"""
import asyncio, socket, sys
name = sys.argv[1].encode()
async def serve(reader, writer):
    try:
        data = await reader.read(4096)
        if data[:1] != b"L":
            writer.write(name)
        else:
            while data:
                writer.write(name + b":" + data)
                await writer.drain()
                data = await reader.read(4096)
        await writer.drain()
    except OSError:
        pass
    writer.close()
class Udp(asyncio.DatagramProtocol):
    def connection_made(self, transport): self.transport = transport
    def datagram_received(self, data, origin): self.transport.sendto(name + b" %d" % len(data), origin)
async def main():
    loop = asyncio.get_running_loop()
    for address in sys.argv[2:]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for port in (80, 81):
            s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.setsockopt(*((socket.IPPROTO_IPV6, 78, 1) if family == socket.AF_INET6 else (socket.IPPROTO_IP, 15, 1)))
            s.bind((address, port)); s.listen(1024); s.setblocking(False)
            await asyncio.start_server(serve, sock=s, backlog=1024)
        u = socket.socket(family, socket.SOCK_DGRAM)
        u.setsockopt(*((socket.IPPROTO_IPV6, 78, 1) if family == socket.AF_INET6 else (socket.IPPROTO_IP, 15, 1)))
        u.bind((address, 5001)); u.setblocking(False)
        await loop.create_datagram_endpoint(Udp, sock=u)
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""

# Short connections: address, port, how many, pause in seconds, time-out, first source port or 0, source address or -.
SHORT = r"""
import collections, json, socket, sys, time
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pause, limit = float(sys.argv[4]), float(sys.argv[5])
first, source = int(sys.argv[6]), sys.argv[7]
print("ready", flush=True)
found, slowest, times, ports = collections.Counter(), 0.0, [], {}
for n in range(count):
    begun = time.monotonic()
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    s.settimeout(limit)
    try:
        if first or source != "-":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("" if source == "-" else source, first + n if first else 0))
        s.connect((address, port)); mine = s.getsockname()[1]
        s.sendall(b"x"); who = s.recv(64).decode() or "empty"
        ports[mine] = who
    except OSError as error:
        who = "!" + type(error).__name__
    s.close()
    found[who] += 1
    took = time.monotonic() - begun
    slowest = max(slowest, took)
    if who.startswith("!") or who == "empty": times.append(begun)
    if pause: time.sleep(max(0.0, pause - took))
print(json.dumps({"found": found, "slowest": slowest, "failed": times, "ports": ports}), flush=True)
"""

# Open connections that exchange something every 20 ms until a line arrives and once more: address, port, how many.
LONG = r"""
import json, select, socket, sys, time
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
open_ = [socket.create_connection((address, port), timeout=5) for _ in range(count)]
who = []
for s in open_:
    s.sendall(b"Lhello"); who.append(s.recv(99).split(b":")[0].decode())
print("ready", flush=True)
print(json.dumps(who), flush=True)
broken, exchanges, ending = {}, 0, False
while not ending:
    ending = bool(select.select([sys.stdin], [], [], 0)[0])
    for n, s in enumerate(open_):
        if n in broken: continue
        try:
            begun = time.monotonic()
            s.sendall(b"L%d" % n); answer = s.recv(99); exchanges += 1
            if not answer: broken[n] = "end"
            elif answer.split(b":")[0].decode() != who[n]: broken[n] = "moved"
        except OSError as error: broken[n] = "%s after %.2f s" % (type(error).__name__, time.monotonic() - begun)
    time.sleep(0.02)
print(json.dumps({"who": who, "broken": broken, "exchanges": exchanges}), flush=True)
"""


def farm_vip(
    kind: InterfaceKind = "vmac_invisible",
    *addresses: str,
    groups: tuple[Group, ...] | None = None,
    arpreroute: bool = True,
    mac: str | None = None,
    engine: Literal["nftables", "nfqueue"] = "nftables",
) -> Vip:
    """A <vip> with one interface; by default one group with rules for the ports of the test server."""
    chosen = tuple(VirtualAddr(text, "alias") for text in addresses or (VIP4, VIP6))
    rules = (Rule("tcp", "on_port", None, 80), Rule("tcp", "on_addr", None, 81), Rule("udp", "on_port", None, 5001))
    interface = Interface(chosen, kind, arpreroute=arpreroute, mac=mac)
    return Vip(True, (interface,), groups or (Group("FarmProto", (), rules),), engine)


class FarmHost(VipHost):
    """A namespace with `eth0` on the bridge."""

    @property
    def number(self) -> int:
        return {"client": 100, "stranger": 99}.get(self.name) or int(self.name.removeprefix("n"))

    @property
    def ip(self) -> str:
        return f"10.78.0.{self.number}"

    @property
    def second(self) -> str:
        return f"10.79.0.{self.number}"

    @property
    def ip6(self) -> str:
        return f"fd78::{self.number:x}"

    @property
    def mac(self) -> str:
        return f"02:00:0a:4e:00:{self.number:02x}"

    def short(
        self,
        address: str,
        port: int,
        count: int,
        *,
        pause: float = 0.0,
        limit: float = 3.0,
        first: int = 0,
        source: str = "-",
    ) -> subprocess.Popen[str]:
        return self.python(SHORT, address, str(port), str(count), str(pause), str(limit), str(first), source)

    def count(self, address: str, port: int, count: int, **options: Any) -> dict[str, int]:
        """Which server answered how many of that many short connections."""
        return served(self.short(address, port, count, **options))


def served(process: subprocess.Popen[str]) -> dict[str, int]:
    """Which server answered how many connections of a client."""
    found: dict[str, int] = figures(process)["found"]
    return found


def figures(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The last line of a client."""
    output, _ = process.communicate("\n", timeout=120)
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


class FarmServer(FarmHost):
    """A server of the farm."""

    var: Path
    agent: subprocess.Popen[str]
    vipd: subprocess.Popen[Any]
    program: tuple[str, ...] = ("-m", "vipd.main")

    def install(self, directory: Path, config: ModuleConfig, cluster: ClusterConfig) -> None:
        """Write what vipd reads, start the mapper and the application."""
        self.var = directory / "var" / "modules" / MODULE
        conf = directory / "safe" / "private" / "modules" / MODULE / "conf"
        for made in (self.var / "log", conf, directory / "var" / "cluster"):
            made.mkdir(parents=True, exist_ok=True)
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
        (directory / "var" / "cluster" / "cluster.key").write_text("c5" * 32 + "\n")
        (directory / "var" / "cluster" / "cluster.json").write_text(to_json(cluster))
        (conf / "active.json").write_text(to_json(config))
        (self.var / "resources").write_text("")
        self.agent = self.python(AGENT, env=self.environment)

    def application(self, *addresses: str) -> subprocess.Popen[str]:
        return self.python(SERVER, self.name, *addresses)

    def start(self) -> subprocess.Popen[Any]:
        """Start vipd, and wait until it answers."""
        self.vipd = self.popen(sys.executable, *self.program, env=self.environment, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.order("ping", timeout=0.3).get("pid") == self.vipd.pid, 15, "vipd answers")
        return self.vipd

    def order(self, op: str, timeout: float = 20.0, **fields: Any) -> dict[str, Any]:
        """A bus request to vipd; the reply, or {ok: False, code, text}."""
        assert self.agent.stdin is not None and self.agent.stdout is not None
        request = {"target": f"{MODULE}/vipd", "op": op, "timeout": timeout, "fields": fields}
        self.agent.stdin.write(json.dumps(request) + "\n")
        self.agent.stdin.flush()
        reply: dict[str, Any] = json.loads(self.agent.stdout.readline())
        return reply

    def up(self) -> None:
        """What heart orders at start, without the scripts."""
        for op in ("vip_init", "vip_set", "farm_join"):
            reply = self.order(op)
            assert reply["ok"], f"{self.name}: {op}: {reply}\n{self.text()}"

    def status(self) -> dict[str, Any]:
        return self.order("status")

    def bits(self, group: int = 0) -> int:
        return int(self.status()["groups"][group]["bitmap"].replace(":", ""), 16)

    def resources(self) -> dict[str, str]:
        found: dict[str, str] = self.order("resources")["resources"]
        return found

    def text(self) -> str:
        """Everything in the log, and what vipd printed."""
        found = [(self.var / "log" / name) for name in ("module.log", "vipd.log")]
        return "\n".join(path.read_text() for path in found if path.exists())

    def log(self, code: str) -> list[str]:
        """Texts of the module log's lines with this code."""
        return said(self.var, code)


@dataclass
class FarmNetwork:
    """The bridge and its hosts."""

    bridge: str
    servers: tuple[FarmServer, ...]
    client: FarmHost
    stranger: FarmHost
    cut: set[str] = field(default_factory=set)

    def install(
        self,
        directory: Path,
        vip: Vip,
        *,
        pulse_ms: int = 100,
        count: int = 5,
        application: bool = True,
        lans: tuple[str, ...] = ("default",),
    ) -> None:
        """lans: "default" is the network of the virtual addresses, "second" another one on the same cable."""
        for server in self.servers if "second" in lans else ():
            server.run("ip", "addr", "replace", f"{server.second}/24", "dev", "eth0")
        cluster = ClusterConfig(
            lans=tuple(
                Lan(
                    lan,
                    nodes=tuple(LanNode(s.name, s.ip if lan == "default" else s.second) for s in self.servers),
                )
                for lan in lans
            ),
            signature="ab" * 32,
        )
        config = ModuleConfig(
            MODULE,
            1,
            service=Service(mode="farm"),
            vip=vip,
            farm=Farm(PORT, tuple(map(FarmLan, lans)), pulse_ms, count, count),
        )
        addresses = [entry.addr for interface in vip.interfaces for entry in interface.addresses]
        for server in self.servers:
            server.install(directory / server.name, config, cluster)
            if application:
                server.application(*addresses)

    def start(self) -> None:
        """All servers take part, started together."""
        for server in self.servers:
            server.start()
        for server in self.servers:
            server.up()
        wait_until(self.agreed, 10, "the farm has formed")

    def agreed(self, *servers: FarmServer) -> bool:
        """Whether exactly these servers (default: all) share the buckets."""
        names = [server.name for server in servers or self.servers]
        seen = [server.status() for server in servers or self.servers]
        return all(s.get("participants") == names and s["final"] for s in seen)

    def unplug(self, host: FarmHost, plugged: bool = False) -> None:
        """Cut or restore the cable of a host at the bridge."""
        state = "up" if plugged else "down"
        sh("ip", "-n", self.bridge, "link", "set", f"p-{host.name}", state)

    def clean(self) -> None:
        """End what a test started and take away what it set."""
        for host in (*self.servers, self.client, self.stranger):
            self.unplug(host, plugged=True)
            host.kill_all()
            host.run("nft", "flush", "ruleset")
            host.run("ip", "link", "set", "eth0", "up")
            # The kernel drops IPv6 addresses with the link.
            host.run("ip", "addr", "replace", f"{host.ip}/24", "dev", "eth0")
            host.run("ip", "addr", "replace", f"{host.ip6}/64", "dev", "eth0", "nodad")
            for ip, (name, prefix) in host.addresses().items():
                if ip not in (host.ip, host.ip6, "127.0.0.1", "::1") and not ip.startswith("fe80"):
                    host.run("ip", "addr", "del", f"{ip}/{prefix}", "dev", name)
            host.run("ip", "neigh", "flush", "all")


@contextmanager
def farm_network(count: int = 3) -> Iterator[FarmNetwork]:
    """Make the namespaces, and delete them whatever happens."""
    tag = f"skf{os.getpid()}-{next(_counter)}"
    roles = [*(f"n{n}" for n in range(1, count + 1)), "client", "stranger"]
    names = {role: f"{tag}-{role}" for role in ("bridge", *roles)}
    made: list[str] = []
    hosts: dict[str, FarmHost] = {}
    try:
        for namespace in names.values():
            sh("ip", "netns", "add", namespace)
            made.append(namespace)
            sh("ip", "-n", namespace, "link", "set", "lo", "up")
        bridge = names["bridge"]
        sh("ip", "-n", bridge, "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        sh("ip", "-n", bridge, "link", "set", "br0", "up")
        for role in roles:
            host = (FarmServer if role.startswith("n") else FarmHost)(role, names[role])
            hosts[role] = host
            peer = ("peer", "name", "eth0", "netns", host.namespace, "address", host.mac)
            sh("ip", "-n", bridge, "link", "add", f"p-{role}", "type", "veth", *peer)
            sh("ip", "-n", bridge, "link", "set", f"p-{role}", "master", "br0", "up")
            sh("ip", "-n", host.namespace, "link", "set", "eth0", "up")
            sh("ip", "-n", host.namespace, "addr", "add", f"{host.ip}/24", "dev", "eth0")
            sh("ip", "-n", host.namespace, "addr", "add", f"{host.ip6}/64", "dev", "eth0", "nodad")
        servers = tuple(host for host in hosts.values() if isinstance(host, FarmServer))
        yield FarmNetwork(bridge, servers, hosts["client"], hosts["stranger"])
    finally:
        for host in hosts.values():
            host.kill_all()
        for namespace in made:
            sh("ip", "netns", "del", namespace, check=False)


__all__ = ["Group", "Host", "Rule", "farm_network", "farm_vip", "figures"]

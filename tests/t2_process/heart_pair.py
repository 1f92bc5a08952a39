"""Two real hearts on the loopback; everything that they ask of others (safeadmin, supervisord, nfsadmin, vipd)
is played here and recorded."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safekit.bus.endpoint import BusError, Endpoint, Request
from safekit.disk import resources
from safekit.disk.paths import ModulePaths
from safekit.log.module import Line, parse_line
from safekit.model.codec import to_json
from safekit.model.types import (
    ClusterConfig,
    Failover,
    Heart,
    Heartbeat,
    Lan,
    LanNode,
    ModuleConfig,
    Replicated,
    Rfs,
    Service,
    User,
    Vip,
)
from safekit.wire import seal
from tests.ports import free_port
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"n1": "127.0.0.1", "n2": "127.0.0.2"}
SCRIPTS = (
    "prestart", "poststop", "transition", "start_both", "stop_both", "start_prim", "stop_prim", "start_second",
    "stop_second", "start_sec", "stop_sec",
)  # fmt: skip


def module(port: int, timeout_ms: int, **service: Any) -> ModuleConfig:
    """A mirror with replication and an address, fast heartbeats."""
    return ModuleConfig(
        name="AM",
        id=1,
        service=Service(**service),
        heart=Heart((Heartbeat("default", "flow", port, pulse_ms=100, timeout_ms=timeout_ms, permanent_arp=False),)),
        rfs=Rfs(replicated=(Replicated("/replicated"),), flow="default", port=5600),
        vip=Vip(),
        user=User(),
        failover=Failover(period_ms=500, handle_time_ms=500),
        signature="same",
    )


class Node:
    """One server."""

    def __init__(self, root: Path, name: str, key: str, config: ModuleConfig) -> None:
        self.name = name
        self.root = root / name
        self.environment = {
            "SAFE": str(self.root / "safe"),
            "SAFEVAR": str(self.root / "var"),
            "SAFEMAPPER": str(free_port()),
            "SAFENODE": name,
            "SAFEMODULE": "AM",
            "PYTHONPATH": str(ROOT),
        }
        self.paths = self.inside(lambda: ModulePaths("AM"))
        self.file = {
            what: self.inside(lambda what=what: getattr(self.paths, what))  # type: ignore[misc]
            for what in ("resources", "log", "supervisor_sock", "userbin", "active_json", "var", "marker", "why")
        }
        for directory in (
            self.root / "var/cluster",
            self.file["userbin"],
            self.file["active_json"].parent,
            self.file["var"],
        ):
            directory.mkdir(parents=True, exist_ok=True)
        conf = self.root / "safe/private/conf/include"
        conf.mkdir(parents=True)
        (conf / "failover.xml").write_bytes((ROOT / "private/conf/include/failover.xml").read_bytes())
        (self.root / "var/bus.key").write_text(seal.new_key().hex())
        (self.root / "var/cluster/cluster.key").write_text(key)
        lan = Lan("default", nodes=tuple(LanNode(n, a) for n, a in ADDRESSES.items()))
        (self.root / "var/cluster/cluster.json").write_text(to_json(ClusterConfig(lans=(lan,))))
        self.file["active_json"].write_text(to_json(config))
        for script in SCRIPTS:
            path = self.file["userbin"] / script
            path.write_text(f'#!/bin/sh\necho "{script} $*" >> {self.root}/trace\n')
            path.chmod(0o755)
        self.program: tuple[str, ...] = ("-m", "heart.main")
        self.heart: subprocess.Popen[bytes] | None = None
        self.ports: dict[str, int] = {}
        self.attempt = ""
        self.asked: list[tuple[float, str, str]] = []
        self.endpoints: list[Endpoint] = []
        self.supervisor: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.prepared: dict[str, Any] = {"consistent": True}
        self.fails: dict[str, BusError] = {}
        self.played = {"AM/nfsbox", "AM/arpreroute", "AM/nfscheck"}
        """Processes that are said to live, and that nobody asks anything."""
        self.kill_at = ""
        """`nfsadmin primary`: heart is killed when it asks for that."""

    def inside(self, work: Callable[[], Any]) -> Any:
        """Run with this node's environment."""
        saved = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            return work()
        finally:
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    # -- the others

    async def open(self) -> None:
        """The others are there; heart is not started."""
        port = int(self.environment["SAFEMAPPER"])
        for name, handler in (
            ("safeadmin", self._safeadmin), ("AM/nfsadmin", self._nfsadmin), ("AM/vipd", self._vipd)
        ):  # fmt: skip
            saved = dict(os.environ)
            os.environ.update(self.environment)
            try:
                self.endpoints.append(
                    await Endpoint.open(name, handler, admin_port=port, port=port if name == "safeadmin" else 0)
                )
            finally:
                os.environ.clear()
                os.environ.update(saved)
        await self.open_supervisor()

    async def open_supervisor(self) -> None:
        self.supervisor = await asyncio.start_unix_server(self._rpc, str(self.file["supervisor_sock"]))

    async def close(self) -> None:
        self.kill_heart()
        for endpoint in self.endpoints:
            await endpoint.close()
        self.end_supervisor()

    def end_supervisor(self) -> None:
        """As a process that dies: nobody listens any more, and what was open is closed."""
        if self.supervisor is not None:
            self.supervisor.close()
        for writer in list(self._connections):
            writer.close()

    async def _safeadmin(self, request: Request) -> dict[str, Any] | None:
        if request.op == "map_register":
            self.ports[request.text("name")] = request.fields["_port"]
            return None
        if request.op == "map_lookup":
            known = 1 if request.text("name") in self.played else 0
            return {"port": self.ports.get(request.text("name"), known), "pid": 0}
        if request.op == "cluster":
            return {"value": "up"}
        self.note("safeadmin", request.op)
        return {"accepted": True}

    async def _nfsadmin(self, request: Request) -> dict[str, Any] | None:
        options = " ".join(k for k in ("swap", "fullsync", "force") if request.fields.get(k))
        self.note("nfsadmin", f"{request.op} {options}".strip())
        self.attempt = str(request.fields.get("attempt", self.attempt))
        if request.op in self.fails:
            raise self.fails[request.op]
        return dict(self.prepared) if request.op == "prepare" else {}

    async def _vipd(self, request: Request) -> dict[str, Any] | None:
        self.note("vipd", request.op)
        return {}

    async def _rpc(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length"))
            parameters, method = xmlrpc.client.loads(await reader.readexactly(length))
            self.note("supervisor", f"{str(method).partition('.')[2]} {parameters[0] if parameters else ''}".strip())
            answer = ([],) if method == "supervisor.getAllProcessInfo" else (True,)
            body = xmlrpc.client.dumps(answer, methodresponse=True).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    def note(self, who: str, what: str) -> None:
        self.asked.append((time.monotonic(), who, what))
        if self.kill_at and self.kill_at == f"{who} {what}":
            self.kill_at = ""
            self.kill_heart()

    def asked_of(self, who: str) -> list[str]:
        return [what for _, name, what in self.asked if name == who]

    # -- heart

    def start_heart(self) -> None:
        self.heart = subprocess.Popen(
            [sys.executable, *self.program, "-m", "AM"], env={**os.environ, **self.environment}
        )

    def kill_heart(self) -> None:
        if self.heart is not None and self.heart.poll() is None:
            self.heart.send_signal(signal.SIGCONT)
            self.heart.kill()
            self.heart.wait(10)
        self.ports.pop("AM/heart", None)

    async def tell(self, op: str, timeout: float = 8.0, **fields: Any) -> dict[str, Any]:
        """A request to heart, as safeadmin sends it. To be there wants half a second of a processor, and a busy machine
        some seconds: that is no part of what is asked."""
        if self.heart is not None and self.heart.poll() is None:
            await until(lambda: "AM/heart" in self.ports, 30, f"heart of {self.name} has started")
        return await self.endpoints[0].by_word("AM/heart", op, timeout, **fields)

    async def control(self, action: str, **fields: Any) -> dict[str, Any]:
        return await self.tell("control", action=action, who=fields.pop("who", "root"), **fields)

    async def nfsadmin_event(self, kind: str) -> None:
        await self.endpoints[1].by_word("AM/heart", "event", 5.0, kind=kind, reason="test", attempt=self.attempt)

    # -- looking

    def resources(self) -> dict[str, str]:
        return {name: r.value for name, r in resources.load(self.file["resources"]).items()}

    def state(self) -> str:
        found = self.resources()
        return f"{found.get('state.local')} {found.get('state.color')}"

    def log(self) -> list[Line]:
        if not self.file["log"].exists():
            return []
        return [line for line in map(parse_line, self.file["log"].read_text().splitlines()) if line is not None]

    def events(self) -> list[str]:
        return [line.english for line in self.log() if line.level == "E"]

    def trace(self) -> list[str]:
        path = self.root / "trace"
        return path.read_text().splitlines() if path.exists() else []


class Two:
    """n1 and n2. `timeout_ms`: silent for so long, a server is lost. `service`: attributes of <service>."""

    def __init__(self, root: Path, timeout_ms: int = 2500, **service: Any) -> None:
        config = module(free_port(), timeout_ms, **service)
        key = seal.new_key().hex()
        self.n1, self.n2 = (Node(root, name, key, config) for name in ADDRESSES)

    async def __aenter__(self) -> Two:
        await self.n1.open()
        await self.n2.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.n1.close()
        await self.n2.close()

    def show(self) -> str:
        return "\n".join(
            f"--- {n.name} {n.state()} {n.asked[-6:]}\n" + "\n".join(line.english for line in n.log()[-25:])
            for n in (self.n1, self.n2)
        )

    async def reach(self, first: str, second: str, seconds: float = 10.0) -> float:
        return await until(lambda: (self.n1.state(), self.n2.state()) == (first, second), seconds, self.show)

    async def form(self) -> None:
        """prim on n1, second on n2, reintegration played, both green."""
        for node in (self.n1, self.n2):
            node.start_heart()
        await self.n1.control("prim")
        await until(lambda: self.n1.state() == "ALONE green", 10, self.show)
        await self.n2.control("second")
        await until(lambda: "secondary" in self.n2.asked_of("nfsadmin"), 10, self.show)
        await self.synchronise(self.n1, self.n2)
        await self.reach("PRIM green", "SECOND green")
        await until(lambda: "start_sec ALONE PRIM start" in self.n1.trace(), 10, self.show)

    async def synchronise(self, primary: Node, secondary: Node) -> None:
        """The end of a reintegration, as the two nfsadmin play it."""
        await until(lambda: primary.resources().get("state.remote") == "SECOND", 10, self.show)
        await primary.endpoints[1].by_word("AM/heart", "pair", 5.0, peer=secondary.name)
        await secondary.nfsadmin_event("rfs_synced")

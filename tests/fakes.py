"""A server of our own for tests of one process: SAFE, SAFEVAR, a mapper, and a heart that records what it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safekit.bus.endpoint import Endpoint, Request
from safekit.disk.paths import ModulePaths
from safekit.log.module import Line, parse_line
from safekit.model.codec import to_json
from safekit.model.types import ClusterConfig, Lan, LanNode, ModuleConfig
from safekit.wire import seal
from tests.ports import free_port
from tests.waiting import until

CLUSTER = ClusterConfig(lans=(Lan("default", nodes=(LanNode("n1", "127.0.0.1"), LanNode("n2", "127.0.0.2"))),))


class Mapper:
    """safeadmin, as far as it knows who has which port."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}

    async def serve(self, request: Request) -> dict[str, Any] | None:
        """Answers processes that register, and those that look for one."""
        if request.op == "map_register":
            self.ports[request.text("name")] = request.fields["_port"]
            return None
        return {"port": self.ports.get(request.text("name"), 0)}


class FakeServer:
    """Directories and environment of a server with one configured module; starts its processes."""

    def __init__(self, root: Path, config: ModuleConfig) -> None:
        self.root = root
        self.module = config.name
        self.environment = {
            "SAFE": str(root / "safe"),
            "SAFEVAR": str(root / "var"),
            "SAFEMAPPER": str(free_port()),
            "SAFENODE": "n1",
            "SAFEMODULE": config.name,
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        }
        os.environ.update(self.environment)
        self.paths = ModulePaths(config.name)
        (root / "var" / "cluster").mkdir(parents=True)
        self.paths.var.mkdir(parents=True)
        self.paths.active_json.parent.mkdir(parents=True)
        self.paths.userbin.mkdir(parents=True)
        (root / "var" / "bus.key").write_text(seal.new_key().hex())
        (root / "var" / "cluster" / "cluster.key").write_text(seal.new_key().hex())
        (root / "var" / "cluster" / "cluster.json").write_text(to_json(CLUSTER))
        self.paths.active_json.write_text(to_json(config))
        self.processes: list[subprocess.Popen[bytes]] = []
        self._mapper = Mapper()
        self.ports = self._mapper.ports
        self.told: list[tuple[float, str, dict[str, Any]]] = []
        self.endpoints: list[Endpoint] = []

    def spawn(self, package: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", package, "-m", self.module, *arguments],
            env={**os.environ, **self.environment},
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    async def _heart(self, request: Request) -> dict[str, Any] | None:
        fields = {key: value for key, value in request.fields.items() if not key.startswith("_")}
        self.told.append((time.monotonic(), request.op, fields))
        return {"changed": True, "accepted": True}

    async def __aenter__(self) -> FakeServer:
        self.endpoints.append(
            await Endpoint.open("safeadmin", self._mapper.serve, port=int(self.environment["SAFEMAPPER"]))
        )
        self.endpoints.append(await Endpoint.open(f"{self.module}/heart", self._heart))
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(10)
        for endpoint in self.endpoints:
            await endpoint.close()

    def log(self) -> list[Line]:
        """Lines of the module log."""
        if not self.paths.log.exists():
            return []
        found = [parse_line(text) for text in self.paths.log.read_text().splitlines()]
        return [line for line in found if line is not None]

    def values(self, resource: str) -> list[str]:
        """The values that a resource was set to, in order, without repeats."""
        values: list[str] = []
        for _, op, fields in self.told:
            if op == "set" and fields["resource"] == resource and values[-1:] != [fields["value"]]:
                values.append(fields["value"])
        return values

    async def until(self, condition: Callable[[], object], what: str, timeout: float = 10.0) -> float:
        """Wait for a condition; the seconds that it took."""
        return await until(condition, timeout, lambda: f"{what}; heart was told {self.told[-8:]}")

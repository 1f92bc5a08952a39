"""A web service of its own for the tests: its directories, its process, and requests of every kind."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from safekit.disk.files import boot_identity
from safekit.model.codec import to_json
from safekit.model.types import ClusterConfig, Lan, LanNode
from safekit.wire import remote, seal
from safewebserver.htpasswd import hashed
from tests.ports import free_port

CHECKOUT = Path(__file__).resolve().parents[2]
CLUSTER = ClusterConfig(lans=(Lan("default", nodes=(LanNode("n1", "127.0.0.1"), LanNode("n2", "127.0.0.2"))),))
KEY = bytes(range(32))
PASSWORDS = {"admin": "admin-secret", "operator": "operator-secret", "viewer": "viewer-secret", "nobody": "no-group"}


GREEN = {"state.local": "ALONE", "state.color": "green"}
"""Resources of a module that runs here alone."""


@dataclass
class Answer:
    status: int
    data: bytes
    headers: dict[str, str]

    @property
    def json(self) -> dict[str, Any]:
        content = self.data.rstrip(b"\n").rpartition(b"\n")[0] if "X-SafeKit-Signed" in self.headers else self.data
        found: dict[str, Any] = json.loads(content)
        return found

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclass
class WebServer:
    """`start` begins the process; `define` are the lines of httpd.conf."""

    root: Path
    define: str = "Define usefile\n"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.safe, self.var = self.root / "safe", self.root / "var"
        self.env = {
            "SAFE": str(self.safe),
            "SAFEVAR": str(self.var),
            "SAFEMAPPER": str(free_port()),
            "SAFENODE": "n1",
        }
        for directory in (self.safe / "web/conf", self.safe / "modules", self.var / "cluster", self.var / "modules"):
            directory.mkdir(parents=True, exist_ok=True)
        (self.var / "bus.key").write_text(seal.new_key().hex())
        (self.var / "cluster/cluster.key").write_text(KEY.hex())
        (self.var / "cluster/cluster.json").write_text(to_json(CLUSTER))
        users = "".join(f"{name}:{hashed(password)}\n" for name, password in PASSWORDS.items())
        (self.safe / "web/conf/user.conf").write_text(users)
        (self.safe / "web/conf/group.conf").write_text("Admin: admin\nControl: operator\nMonitor: viewer\n")
        self.settings(self.define)

    def settings(self, define: str) -> None:
        (self.safe / "web/conf/httpd.conf").write_text(f"Define httpadminport {self.port}\n{define}")

    @property
    def output(self) -> Path:
        """What the process says. A file: nobody reads a pipe meanwhile, and a full one would stop the service."""
        return self.root / "output"

    def start(self) -> WebServer:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "safewebserver.main"], cwd=CHECKOUT, env={**os.environ, **self.env},
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    self.process.wait()
                    raise AssertionError(f"the service did not start: {self.output.read_text()}") from None
                time.sleep(0.05)

    def stop(self) -> str:
        """What it said. Its end is orderly."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(15)
        output = self.output.read_text(errors="replace")
        assert self.process.returncode == 0, output
        return output

    def module(self, name: str, resources: dict[str, str], *, boot: str | None = None) -> None:
        """An installed module with that resource file, running since `boot` (default: this boot)."""
        (self.safe / "modules" / name / "conf").mkdir(parents=True, exist_ok=True)
        var = self.var / "modules" / name
        (var / "log").mkdir(parents=True, exist_ok=True)
        (var / "resources").write_text("".join(f"{k} {v} 1.000 heart\n" for k, v in resources.items()))
        (var / "running").write_text(boot_identity() if boot is None else boot)
        (var / "heart.epoch").write_text("12345")

    def ask(
        self, method: str, path: str, body: bytes = b"", *, headers: dict[str, str] | None = None,
        user: str = "", password: str | None = None, port: int = 0, host: str = "127.0.0.1",
        source: str = "",
    ) -> Answer:  # fmt: skip
        """A request, with a user's password (the right one by default), from the address `source`."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        if user:
            pair = f"{user}:{PASSWORDS.get(user, '') if password is None else password}"
            sent["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        connection = HTTPConnection(host, port or self.port, timeout=30, source_address=(source, 0) if source else None)
        try:
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def signed(
        self, method: str, path: str, body: bytes = b"", *, key: bytes = KEY, **options: Any
    ) -> tuple[dict[str, str], str]:
        """The headers of a signed request from n2, and its nonce."""
        header, nonce = remote.sign(key, "n2", options.pop("target", "n1"), method, path, body, **options)
        return {"Authorization": header}, nonce


def command(*words: str) -> bytes:
    return json.dumps({"arguments": words}).encode()

"""A server for the tests of the command safekit: its directories, and a safeadmin that only notes what it is asked."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from safekit.bus import endpoint as bus
from safekit.disk.paths import ModulePaths
from safekit.disk.resources import ResourceWriter
from safekit.wire import seal
from tests.ports import free_port

CHECKOUT = Path(__file__).resolve().parents[2]

CLUSTER = """<cluster><lans>
 <lan name="default"><node name="n1" addr="10.1.0.1"/><node name="n2" addr="10.1.0.2"/></lan>
</lans></cluster>
"""

RUNNING = {"id": 1, "mode": "mirror", "running": True, "heart": True, "boot": "off"}

PRIM = {"state__local": "PRIM", "state__color": "green", "state__remote": "SECOND", "state__remotecolor": "green"}

# The service manager of this machine is none of our business.
SYSTEMCTL = """#!/bin/sh
state=$(dirname "$0")/enabled
case $1 in
enable) [ ! -e "$state.refuse" ] || { echo "Unit $2 is masked." >&2; exit 1; }; echo enabled > "$state" ;;
disable) echo disabled > "$state" ;;
is-enabled) cat "$state" 2>/dev/null || { echo not-found; exit 4; } ;;
*) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""


class NotedAdmin:
    """A safeadmin in a thread: answers `state` from `modules`, notes everything else."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.modules: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusal: tuple[str, str] | None = None
        self.states_asked = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))
        self._stop = asyncio.Event()

    def __enter__(self) -> NotedAdmin:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _main(self) -> None:
        self._endpoints = {"safeadmin": await bus.Endpoint.open("safeadmin", self._answer, port=self.port)}
        self._ready.set()
        await self._stop.wait()
        for endpoint in self._endpoints.values():
            await endpoint.close()

    async def _answer(self, request: bus.Request) -> dict[str, Any]:
        if request.op == "state":
            self.states_asked += 1
            return {"node": "n1", "modules": self.modules}
        if request.op == "map_lookup":
            name = request.text("name")
            if name not in self._endpoints:
                self._endpoints[name] = await bus.Endpoint.open(name, self._answer)
            return {"port": self._endpoints[name].port}
        if request.op == "map_register":
            return {}
        if request.op == "members" and self.nodes:
            return {"node": "n1", "nodes": self.nodes}
        fields = {k: v for k, v in request.fields.items() if not k.startswith("_")}
        self.asked.append((request.op, fields))
        if self.refusal is not None:
            raise bus.BusError(*self.refusal)
        return {
            "accepted": True,
            "changed": True,
            "cluster": True,
            "problem": "",
            "count": 4,
            "maxloop": 3,
            "reached": True,
        }


@dataclass
class Server:
    """SAFE, SAFEVAR and a way to run commands."""

    safe: Path
    var: Path
    env: dict[str, str]
    port: int
    extra: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._start("-m", "cli.main", *words)

    def python(self, script: str) -> subprocess.CompletedProcess[str]:
        return self._start("-c", script)

    def _start(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            env={**os.environ, **self.env, **self.extra},
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=30,
        )


def make_module(name: str = "mirror", mode: str = "mirror") -> ModulePaths:
    """An installed and configured module."""
    paths = ModulePaths(name)
    paths.conf_dir.mkdir(parents=True)
    paths.userconfig.write_text("<safe/>")
    (paths.active / "conf").mkdir(parents=True)
    paths.userbin.mkdir()
    rfs = {"replicated": []} if mode == "mirror" else None
    paths.active_json.write_text(json.dumps({"name": name, "id": 1, "service": {"mode": mode}, "rfs": rfs}))
    paths.var.mkdir(parents=True, exist_ok=True)
    paths.id_file.write_text("1\n")
    return paths


def put_state(paths: ModulePaths, **values: str) -> None:
    writer = ResourceWriter(paths.resources)
    for name, value in values.items():
        writer.set(name.replace("__", "."), value, "heart")
    writer.flush()


def make_archive(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def make_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """SAFE and SAFEVAR in a directory of the test, named by the environment of the test and of what it starts."""
    port = free_port()
    safe, var = tmp_path / "safe", tmp_path / "var"
    for directory in (safe / "modules", safe / "private" / "bin", var / "cluster", var / "modules"):
        directory.mkdir(parents=True)
    (var / "bus.key").write_text(seal.new_key().hex())
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "systemctl").chmod(0o755)
    env = {
        "SAFE": str(safe),
        "SAFEVAR": str(var),
        "SAFEMAPPER": str(port),
        "SAFENODE": "n1",
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SAFEMODULE", raising=False)
    return Server(safe, var, env, port)


def userconfig(directory: Path, lan: str = "default") -> str:
    """A mirror with one replicated directory."""
    return f"""<safe>
 <service mode="mirror">
  <heart><heartbeat name="{lan}" ident="flow"/></heart>
  <rfs><replicated dir="{directory}"/></rfs>
 </service>
</safe>
"""


def install_mirror(server: Server, tmp_path: Path) -> Path:
    """A replicated directory with a file, and the module installed."""
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "file").write_text("content")
    (tmp_path / "cluster.xml").write_text(CLUSTER)
    assert server.run("cluster", "config", str(tmp_path / "cluster.xml")).returncode == 0
    scripts = {"bin/start_prim": "#!/bin/sh\n", "bin/confcheck": "#!/bin/sh\nexit ${CONFCHECK:-0}\n"}
    archive = make_archive(tmp_path / "m.safe", **{"conf/userconfig.xml": userconfig(directory), **scripts})
    assert server.run("module", "install", "-m", "mirror", str(archive)).returncode == 0
    return directory

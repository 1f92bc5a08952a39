"""A server for tests: its own SAFE, SAFEVAR and mapper port, the real safeadmin, supervisord and circlog, and a
heart that is a few lines on the bus."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.waiting import wait_until
from safeadmin.processes import Member, find
from safekit.log.module import Line, parse_line
from safekit.model.codec import to_json
from safekit.model.types import (
    ClusterConfig,
    Heart,
    Heartbeat,
    Lan,
    LanNode,
    ModuleConfig,
    Service,
    User,
)
from safekit.wire.seal import new_key
from tests.ports import free_port

CHECKOUT = Path(__file__).resolve().parents[2]
SIGNATURE = "ab" * 32

FAKE_HEART = """
import asyncio, os, sys, time
from safekit.process.frame import run
from safekit.bus.endpoint import BusError
from safekit.disk.files import boot_identity
from safekit.disk.resources import ResourceWriter

async def main(context):
    writer = ResourceWriter(context.paths.resources)
    context.writer = writer
    if context.paths.marker.exists():
        context.log.event("printi", text="adopts " + writer.value("state.local"))
    await context.stopping.wait()
    return 0

def handler(context):
    async def serve(request):
        writer, action = ResourceWriter(context.paths.resources), request.fields.get("action")
        if request.op == "set":
            changed = writer.set(request.text("resource"), request.text("value"), request.text("who"))
            writer.flush()
            return {"changed": changed}
        if request.op == "hang":
            asyncio.get_running_loop().call_later(0.05, time.sleep, 3600)
            return {}
        if request.op == "respawn":
            await context.bus.by_word("safeadmin", "respawn", module=context.module)
            return {}
        if request.op == "leave":
            asyncio.get_running_loop().call_later(0.05, os._exit, 0)
            return {}
        if request.op != "control":
            raise BusError("unknown_op", request.op)
        if request.text("who") == "boot":
            context.log.event("action_boot")
        elif request.text("who") == "automatic":
            context.log.event("action_auto")
        else:
            context.log.event("action_called", action=action, who=request.text("who"))
        if action == "prim":
            raise BusError("refused", "the other server is primary; use start")
        if action in ("start", "second"):
            context.paths.marker.write_text(boot_identity())
            writer.set("state.local", "ALONE", "heart")
            writer.flush()
        elif action in ("stop", "shutdown", "forcestop"):
            async def stop():
                context.log.event("script", name="stop_prim")
                writer.set("state.local", "STOP", "heart")
                writer.flush()
                context.paths.marker.unlink(missing_ok=True)
                context.log.event("end_of_stop")
                await context.bus.by_word("safeadmin", "ended", module=context.module)
                os._exit(0)
            context.task = asyncio.get_running_loop().create_task(stop())
        return {"accepted": True}
    return serve

run("heart", main, handler=handler)
"""

ENTRY = "from {module} import main\nmain()\n"


def cluster(addresses: dict[str, str], port: int, **settings: Any) -> ClusterConfig:
    """One lan with these nodes."""
    lan = Lan("default", nodes=tuple(LanNode(name, addr) for name, addr in addresses.items()))
    return ClusterConfig((lan,), port=port, signature=SIGNATURE, **{"pulse_ms": 200, **settings})


class Node:
    """One server. `wrap` goes before every command (ip netns exec NAME)."""

    def __init__(self, root: Path, name: str = "n1", wrap: tuple[str, ...] = (), mapper: int = 0) -> None:
        self.root, self.name, self.wrap = root, name, wrap
        self.safe, self.safevar = root / "safe", root / "var"
        self.programs = self.safe / "private" / "env" / "bin"
        self.mapper = mapper or free_port()
        self.daemon: subprocess.Popen[bytes] | None = None
        for directory in (self.programs, self.safe / "modules", self.safe / "private" / "modules", self.safevar):
            directory.mkdir(parents=True)
        (self.safevar / "cluster").mkdir()
        self.key = new_key()
        (self.safevar / "bus.key").write_text(self.key.hex())
        for program, module in (
            ("safeadmin", "safeadmin.main"),
            ("safesupervisord", "safekit.process.supervisord"),
            ("circlog", "circlog.main"),
        ):
            self.program(program, ENTRY.format(module=module))
        self.program("heart", FAKE_HEART)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("SAFE")},
            "SAFE": str(self.safe),
            "SAFEVAR": str(self.safevar),
            "SAFEMAPPER": str(self.mapper),
            "SAFENODE": self.name,
            "PYTHONPATH": str(CHECKOUT),
        }

    def program(self, name: str, text: str) -> None:
        """Install a program of the product."""
        path = self.programs / name
        path.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n{text}")
        path.chmod(0o755)

    def configure_cluster(self, config: ClusterConfig, key: bytes) -> None:
        (self.safevar / "cluster" / "cluster.key").write_text(key.hex())
        (self.safevar / "cluster" / "cluster.json").write_text(to_json(config))

    def configure_module(
        self, name: str, number: int = 1, mode: str = "mirror", boot: bool = False, **fields: Any
    ) -> None:
        (self.safe / "modules" / name).mkdir(exist_ok=True)
        active = self.safe / "private" / "modules" / name
        (active / "conf").mkdir(parents=True, exist_ok=True)
        (active / "bin").mkdir(exist_ok=True)
        if mode == "mirror":
            fields.setdefault("heart", Heart((Heartbeat("default", "default", 8888),)))
        config = ModuleConfig(
            name,
            number,
            Service(mode),  # type: ignore[arg-type]
            user=User(nicestoptimeout=5, forcestoptimeout=5),
            signature="cd" * 32,
            configured_at=1.0,
            **fields,
        )
        (active / "conf" / "active.json").write_text(to_json(config))
        self.var(name).mkdir(parents=True, exist_ok=True)
        (self.var(name) / "id").write_text(f"{number}\n")
        (self.var(name) / "boot").write_text("on\n" if boot else "off\n")

    def script(self, module: str, name: str, text: str) -> None:
        path = self.safe / "private" / "modules" / module / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def var(self, module: str) -> Path:
        return self.safevar / "modules" / module

    def start(self, wait: bool = True) -> None:
        """Start safeadmin and wait until it answers."""
        with open(self.root / "safeadmin.err", "ab") as errors:
            self.daemon = subprocess.Popen(
                [*self.wrap, str(self.programs / "safeadmin")],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )
        if wait:
            wait_until(lambda: self.call("ping", timeout=0.3), 10, "safeadmin answers")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Signal safeadmin and wait for its end; its exit status."""
        assert self.daemon is not None
        self.daemon.send_signal(number)
        status = self.daemon.wait(timeout)
        self.daemon = None
        return status

    def request(self, target: str, op: str, timeout: float = 5.0, **fields: Any) -> dict[str, Any]:
        """A request on this server's bus. Raises what by_word_sync raises, BusError as RuntimeError(code)."""
        if not self.wrap:
            from safekit.bus.message import by_word_sync

            with self.here():
                return by_word_sync(target, op, timeout, "test", **fields)
        code = (
            "import json,sys;from safekit.bus.message import by_word_sync;a=json.load(sys.stdin);"
            "print(json.dumps(by_word_sync(a[0],a[1],a[2],'test',**a[3])))"
        )
        done = subprocess.run(
            [*self.wrap, sys.executable, "-c", code],
            input=json.dumps([target, op, timeout, fields]).encode(),
            env=self.environment,
            capture_output=True,
            timeout=timeout + 10,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.decode())
        return dict(json.loads(done.stdout))

    def call(self, op: str, timeout: float = 5.0, **fields: Any) -> dict[str, Any] | None:
        """A request to safeadmin; None when there is no answer."""
        from safekit.bus.message import BusTimeout

        try:
            return self.request("safeadmin", op, timeout, **fields)
        except (BusTimeout, RuntimeError):
            return None

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """The environment of this server, in this process."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def control(self, module: str, action: str, who: str = "root", **fields: Any) -> dict[str, Any]:
        return self.request("safeadmin", "control", 20.0, module=module, action=action, who=who, **fields)

    def module(self, name: str) -> dict[str, Any]:
        state = self.call("state")
        assert state is not None, "safeadmin does not answer"
        return dict(state["modules"][name])

    def processes(self, module: str) -> list[Member]:
        with self.here():
            return find(module)

    def pid(self, module: str, name: str) -> int:
        """The pid of a process of the module, 0 when there is none."""
        return next((p.pid for p in self.processes(module) if p.name == name), 0)

    def log(self, module: str) -> list[Line]:
        try:
            text = (self.var(module) / "log" / "module.log").read_text()
        except FileNotFoundError:
            return []
        return [line for line in map(parse_line, text.splitlines()) if line is not None]

    def texts(self, module: str) -> list[str]:
        return [line.english for line in self.log(module)]

    def admin_log(self) -> str:
        try:
            return (self.safevar / "safeadmin.log").read_text()
        except FileNotFoundError:
            return ""

    def started(self, module: str) -> None:
        """Start the module and wait until its heart runs it."""
        self.control(module, "start")
        wait_until(lambda: (self.var(module) / "running").exists(), 15, "heart runs the module")

    def destroy(self) -> None:
        """End what this server runs, by pid."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait(10)
        for entry in (self.safevar / "modules").glob("*"):
            for _ in range(100):
                # supervisord first, or it starts the others again.
                left = sorted(self.processes(entry.name), key=lambda p: p.name != "safesupervisord")
                if not left:
                    break
                for process in left:
                    process.process.send(signal.SIGKILL)
                time.sleep(0.02)

"""Two servers' replication processes on the loopback: real nfsbox, nfsadmin and reintegre, and a heart that does as
the test says. For tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.waiting import wait_until
from safekit.bus.endpoint import BusError, Endpoint, Request
from safekit.disk import placeholder
from safekit.log.module import parse_line
from safekit.model.codec import to_json
from safekit.model.types import ClusterConfig, Lan, LanNode, ModuleConfig, Replicated, Rfs
from safekit.wire import seal
from tests.fakes import Mapper
from tests.ports import free_port
from tests.t2_process.reintegre_primary import tree

CHECKOUT = Path(__file__).resolve().parent.parent.parent
ZONE = 1 << 20
MODULES = {
    "nfsbox": "nfsbox.main",
    "nfsadmin": "nfsbox.admin.main",
    "reintegre": "reintegre.main",
    "nfscheck": "nfsbox.check.main",
}
Fields = dict[str, Any]
_CLONE_NEWNET = 0x40000000


class Node:
    """One server: its directories, its processes, and what its heart was told."""

    def __init__(self, pair: Pair, name: str, base: Path, address: str) -> None:
        self.pair, self.name, self.base, self.address = pair, name, base, address
        self.var, self.safe = base / "var", base / "safe"
        self.dir = base / "replicated"
        self.backing = base / "replicated_For_SafeKit_Replication"
        self.events: list[Fields] = []
        self.resources: dict[str, str] = {}
        self.pairs = 0
        self.refuse_pair = False
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.endpoints: list[Endpoint] = []
        self._ports = Mapper()
        self.netns = pair.netns.get(name, "")
        self.prefix: Sequence[str] = ("nsenter", f"--net={self.netns}") if self.netns else ()
        self.mapper = free_port()
        for path in (
            self.var / "cluster",
            self.var / "modules/AM/rfs",
            self.var / "modules/AM/log",
            self.safe / "private/modules/AM/conf",
            self.backing,
        ):
            path.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(self.dir):
            self.dir.symlink_to(self.backing.name)
        (self.var / "nodename").write_text(name)
        (self.var / "bus.key").write_text(pair.bus_key)
        (self.var / "cluster/cluster.key").write_text(pair.key)

    def configure(self, rfs: Rfs) -> None:
        """Write the active configuration."""
        mine = replace(
            rfs,
            replicated=tuple(replace(r, dir=str(self.dir)) for r in rfs.replicated),
            flow="default",
            port=self.pair.port,
        )
        config = ModuleConfig("AM", 1, rfs=mine)
        (self.safe / "private/modules/AM/conf/active.json").write_bytes(_bytes(to_json(config)))
        (self.var / "cluster/cluster.json").write_bytes(_bytes(to_json(self.pair.cluster())))

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SAFE": str(self.safe),
            "SAFEVAR": str(self.var),
            "SAFEMAPPER": str(self.mapper),
            "SAFENODE": self.name,
            "SAFEMODULE": "AM",
            "PYTHONPATH": str(CHECKOUT),
        }

    # -- processes
    def launch(self, name: str) -> subprocess.Popen[bytes]:
        """Start one of the processes unless it runs."""
        running = self.processes.get(name)
        if running is not None and running.poll() is None:
            return running
        log = open(self.var / f"modules/AM/log/{name}.out", "ab")  # noqa: SIM115  (the child's)
        with log:
            self.processes[name] = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", MODULES[name], "-m", "AM"],
                env=self.environment,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self.processes[name]

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Kill a process and wait for its end."""
        process = self.processes.get(name)
        if process is not None and process.poll() is None:
            process.send_signal(number)
            process.wait(15)

    def power_off(self) -> None:
        """Every process dies at once; the mount is left dead, as after a crash of them all."""
        for name in ("nfsadmin", "reintegre", "nfscheck", "nfsbox"):
            self.kill(name)

    def up(self) -> None:
        """nfsbox and nfsadmin run; answers of a former life are forgotten."""
        self.events.clear()
        self.launch("nfsbox")
        self.launch("nfsadmin")

    # -- the bus
    async def open(self) -> None:
        saved = {name: os.environ.get(name) for name in ("SAFEVAR", "SAFEMAPPER")}
        os.environ.update(SAFEVAR=str(self.var), SAFEMAPPER=str(self.mapper))
        try:
            with inside(self.netns):
                await self._open()
        finally:
            for name, value in saved.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    async def _open(self) -> None:
        self.endpoints.append(
            await Endpoint.open("safeadmin", self._ports.serve, port=self.mapper, admin_port=self.mapper)
        )
        self.endpoints.append(await Endpoint.open("AM/heart", self._heart, admin_port=self.mapper))

    async def _heart(self, request: Request) -> Fields | None:
        fields = request.fields
        match request.op:
            case "event":
                self.events.append({"kind": fields["kind"], "reason": fields.get("reason", "")})
            case "set":
                self.resources[fields["resource"]] = fields["value"]
            case "process":
                if fields["on"]:
                    self.launch(fields["name"])
                elif fields["name"] in self.processes:
                    self.processes[fields["name"]].terminate()
            case "pair":
                if self.refuse_pair:
                    raise BusError("not_primary", "the test says no")
                self.pairs += 1
        return None

    def ask(self, op: str, *, target: str = "nfsadmin", timeout: float = 60.0, **fields: Any) -> Fields:
        """A request of heart. Raises BusError. A process that is starting is waited for."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return self.pair.run(self.endpoints[1].by_word(f"AM/{target}", op, timeout, **fields))
            except BusError as error:
                if error.code != "unknown_target" or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    def log(self) -> list[tuple[str, str]]:
        """(code, English text) of the module log."""
        path = self.var / "modules/AM/log/module.log"
        if not path.exists():
            return []
        lines = (parse_line(line) for line in path.read_text(errors="replace").splitlines())
        return [(line.code, line.english) for line in lines if line is not None]

    def output(self, most: int = 3000) -> str:
        """What processes wrote to their error output, for a failing test; the last characters of each."""
        found = sorted((self.var / "modules/AM/log").glob("*"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-most:]}" for path in found)


@contextmanager
def inside(netns: str) -> Iterator[None]:
    """This thread makes its sockets in a network namespace, given by its file."""
    if not netns:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    home, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(netns, os.O_RDONLY)
    try:
        if libc.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {netns}")
        try:
            yield
        finally:
            if libc.setns(home, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot leave the network namespace")
    finally:
        os.close(home)
        os.close(there)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


class Pair:
    """n1 and n2. Use as a context manager."""

    def __init__(
        self,
        base: Path,
        rfs: Rfs | None = None,
        addresses: tuple[str, str] = ("127.0.0.1", "127.0.0.2"),
        port: int = 0,
        netns: dict[str, str] | None = None,
    ) -> None:
        self.rfs = rfs or Rfs((Replicated("/replicated"),))
        self.bus_key, self.key = seal.new_key().hex(), seal.new_key().hex()
        self.addresses = addresses
        self.netns = netns or {}
        self.port = port or free_port()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.n1, self.n2 = (
            self.node(name, base / name, address) for name, address in zip(("n1", "n2"), addresses, strict=True)
        )
        self.configure(self.rfs)
        for node in self.nodes:
            self.run(node.open())

    def node(self, name: str, base: Path, address: str) -> Node:
        return Node(self, name, base, address)

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.n1, self.n2

    def configure(self, rfs: Rfs) -> None:
        self.rfs = rfs
        for node in self.nodes:
            node.configure(rfs)

    def cluster(self) -> ClusterConfig:
        return ClusterConfig(
            (Lan("default", nodes=(LanNode("n1", self.addresses[0]), LanNode("n2", self.addresses[1]))),)
        )

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(300)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            with contextlib.suppress(BusError, subprocess.TimeoutExpired):
                node.power_off()
            subprocess.run(["umount", "-l", str(node.dir)], stderr=subprocess.DEVNULL, check=False)
            if node.dir.is_dir() and not node.dir.is_symlink():
                placeholder.unseal(os.fsencode(node.dir))
            for endpoint in node.endpoints:
                self.run(endpoint.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)

    # -- what hearts do together
    def start_primary(self, node: Node, **fields: Any) -> None:
        node.up()
        node.ask("prepare")
        node.ask("primary", **fields)

    def start_secondary(self, node: Node, timeout: float = 60.0, **fields: Any) -> None:
        """Reintegrate `node` and wait until it is equal."""
        node.up()
        node.ask("prepare")
        self.reintegrate(node, timeout, **fields)

    def reintegrate(self, node: Node, timeout: float = 60.0, **fields: Any) -> None:
        node.ask("secondary", **fields)
        self.until(lambda: {"rfs_synced", "rfs_failed"} & set(node.kinds()), timeout, node)
        assert "rfs_failed" not in node.kinds(), (node.events, node.log()[-10:])

    def until(self, condition: Callable[[], object], timeout: float = 30.0, node: Node | None = None) -> None:
        def known() -> str:
            told = "\n".join(n.output() for n in ((node,) if node else self.nodes))
            return f"{json.dumps([n.events for n in self.nodes])}\n{told}"

        wait_until(condition, timeout, known)


@contextmanager
def replicating(base: Path, *, others: bool = False, **rfs: Any) -> Iterator[Pair]:
    """n1 is primary and n2 its equal. `others`: users without rights come through to the directories. `rfs`: attributes
    of <rfs>."""
    for path in (base, *base.parents) if others else ():
        if Path("/tmp") in path.parents:
            path.chmod(path.stat().st_mode | 0o055)
    with Pair(base, Rfs((Replicated("/replicated"),), **rfs)) as found:
        if others:
            found.n1.base.chmod(0o755)
        found.start_primary(found.n1)
        found.start_secondary(found.n2)
        yield found


def told(node: Node, code: str) -> list[str]:
    return [text for found, text in node.log() if found == code]


def leave(pair: Pair, primary: Node, secondary: Node) -> None:
    """The secondary stops in order."""
    secondary.ask("standby")
    primary.ask("alone")
    secondary.ask("release")
    for name in ("nfsadmin", "nfsbox"):
        secondary.kill(name, signal.SIGTERM)


def equal(pair: Pair, timeout: float = 5.0) -> None:
    """The data of both servers; a moment is allowed for what is acknowledged but not applied."""

    def look(backing: Path) -> dict[str, tuple[Any, ...]] | None:
        try:
            return tree(backing)
        except FileNotFoundError:  # the place holder of a file that was closed went while it was looked at
            return None

    deadline = time.monotonic() + timeout
    while True:
        one, two = look(pair.n1.backing), look(pair.n2.backing)
        if one is not None and one == two:
            return
        if time.monotonic() > deadline:
            assert one is not None and two is not None, "names come and go"
            different = {k: (one.get(k), two.get(k)) for k in one.keys() | two.keys() if one.get(k) != two.get(k)}
            raise AssertionError(f"{len(different)} entries differ: {dict(list(different.items())[:5])}")
        time.sleep(0.05)

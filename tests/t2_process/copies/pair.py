"""Two servers on small disks of their own, with the real processes, and what hearts do with them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from safekit.bus.endpoint import BusError, Request
from safekit.model.types import Replicated, Rfs
from safekit.rfs.exclusions import Exclusions
from tests.t2_process.copies.changes import ENDED, Application, Change
from tests.t2_process.copies.disk import Disk, detach
from tests.t2_process.copies.nursery import Nursery, boot_note
from tests.t2_process.copies.trees import Tree, differences, tree
from tests.t2_process.rfs_pair import Node, Pair

ZONE: Final = 1 << 16
PROCESSES: Final = ("nfsadmin", "reintegre", "nfsbox")
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Different(AssertionError):
    """The two servers differ, or lost what was acknowledged."""


class Server(Node):
    """One server: a disk, and processes that are forked."""

    pair: Copies

    def __init__(self, pair: Copies, name: str, base: Path, address: str) -> None:
        self.disk = Disk(pair.memory, name, base)
        self.boot = 1
        self.since = boot_note(1)
        self.die = ""
        super().__init__(pair, name, base, address)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "SAFEKIT_COPIES_BOOT": self.since, "SAFEKIT_COPIES_DIE": self.die}

    def launch(self, name: str) -> Any:
        running = self.processes.get(name)
        if running is not None and running.poll() is None:
            return running
        if self.disk.off:  # asked for by a process that is about to die with the machine
            return running
        self._forget(name)
        child = self.pair.nursery.bear(name, self.environment, self.var / f"modules/AM/log/{name}.out")
        self.processes[name] = child  # type: ignore[assignment]
        return child

    async def _heart(self, request: Request) -> dict[str, Any] | None:
        if request.op == "process" and not request.fields["on"] and request.fields["name"] in self.processes:
            # As a supervisor does: it answers when the process has ended.
            await asyncio.to_thread(self.kill, request.fields["name"], signal.SIGTERM)
            return None
        return await super()._heart(request)

    def output(self) -> str:
        try:
            return super().output()
        except OSError as error:
            return f"(no logs: {error})"

    def _forget(self, name: str) -> None:
        """The port of a process that is gone is nobody's."""
        self.ports.pop(f"AM/{name}", None)
        for endpoint in self.endpoints:
            endpoint._addresses.pop(f"AM/{name}", None)

    def kill_all(self) -> None:
        """Every process at once."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for name in PROCESSES:
                process = self.processes.get(name)
                if process is not None:
                    process.send_signal(number)
        for name in PROCESSES:
            process = self.processes.get(name)
            if process is not None:
                process.wait(20)
            self._forget(name)

    def power_off(self) -> None:
        """The disk goes first: what processes write while they end was never written."""
        self.disk.power_off()
        self.kill_all()
        detach(self.dir)
        self.disk.unmount()
        self.boot += 1
        self.disk.mount()
        self.since = boot_note(self.boot)

    @property
    def alive(self) -> bool:
        box = self.processes.get("nfsbox")
        return box is not None and box.poll() is None

    def signal(self, number: int) -> None:
        """To every process."""
        for name in PROCESSES:
            process = self.processes.get(name)
            if process is not None:
                process.send_signal(number)


class Copies(Pair):
    """Server n1 and n2. A context manager."""

    def __init__(self, base: Path, nursery: Nursery, *, durable: bool = False, border: bool = False) -> None:
        self.memory = self.room()
        self.nursery = nursery
        self.application: Application | None = None
        self._load: threading.Thread | None = None
        self._left: dict[bytes, Application] = {}  # applications that stayed behind, with what they have open
        self._border = border
        rfs = Rfs(
            (self._replicated(),),
            async_mode="none" if durable else "second",
            acl=True,
            ruzone_blocksize=ZONE,
            reipacketsize=ZONE,
        )
        super().__init__(base, rfs)
        self._look_at_border()
        for server in self.nodes:
            sync(server.base)

    def room(self) -> Path:
        """A directory in memory, for the disks."""
        return Path(tempfile.mkdtemp(prefix="copies.", dir="/dev/shm"))

    def _replicated(self) -> Replicated:
        if not self._border:
            return Replicated("/replicated")
        return Replicated("/replicated", notreplicated_paths=("t3/d2",), notreplicated_regex=(".*\\.tmp",))

    def _look_at_border(self) -> None:
        item = self.rfs.replicated[0]
        exclusions = Exclusions(item.notreplicated_paths, item.notreplicated_regex)
        self.local: Callable[[bytes], bool] | None = exclusions.match if exclusions.any else None

    def move_border(self) -> None:
        """Everything is replicated from now on, or not any more; both servers are stopped."""
        self._border = not self._border
        self.configure(replace(self.rfs, replicated=(self._replicated(),)))
        self._look_at_border()
        for server in self.servers:
            (server.var / "modules/AM/rfs/full_required").touch()  # as `config` does
            sync(server.base)

    def node(self, name: str, base: Path, address: str) -> Node:
        return Server(self, name, base, address)

    @property
    def servers(self) -> tuple[Server, Server]:
        return self.n1, self.n2  # type: ignore[return-value]

    def other(self, server: Server) -> Server:
        return self.servers[server is self.servers[0]]

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                server.kill_all()
            detach(server.dir)
        self.ended()
        self.forgotten()
        for server in self.servers:
            for endpoint in server.endpoints:
                self.run(endpoint.close())
            server.disk.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        shutil.rmtree(self.memory)

    # --- the application ------------------------------------------------------------------------------------

    def begin(self, server: Server, changes: Sequence[Change]) -> None:
        """Have the application make changes on a primary, in a thread of its own."""
        self.settled()
        if self.application is None or self.application.base != os.fsencode(server.dir):
            self.ended()
            self.application = self._left.pop(os.fsencode(server.dir), None) or Application(server.dir)
        application = self.application

        def run() -> None:
            for change in changes:
                if application.run(change) in ENDED:
                    return

        self._load = threading.Thread(target=run, name="application", daemon=True)
        self._load.start()

    def settled(self, timeout: float = 30.0) -> None:
        """The application has made its changes."""
        if self._load is not None:
            self._load.join(timeout)
            if self._load.is_alive():
                told = [(server.name, server.events[-5:], server.output()[-3000:]) for server in self.servers]
                raise AssertionError(f"the application waits for ever: {told}")
            self._load = None

    def ended(self) -> None:
        """The application is stopped."""
        self.settled()
        if self.application is not None:
            self.application.close()
            self.application = None

    def left_behind(self) -> None:
        """The application is not stopped, although its server is about to be secondary: it goes on when that is primary
        again, with the files that it has open."""
        self.settled()
        if self.application is not None:
            self._left[self.application.base] = self.application
            self.application = None

    def forgotten(self) -> None:
        """Nobody stayed behind any more."""
        while self._left:
            self._left.popitem()[1].close()

    # --- what hearts do -------------------------------------------------------------------------------------

    def lead(self, server: Server, **fields: Any) -> None:
        """`server` becomes ALONE, from whatever it is."""
        if not server.alive:
            self.start_primary(server, **fields)
        else:
            server.ask("primary", **fields)

    def leave(self, server: Server) -> None:
        """A server stops in order."""
        if server.alive:
            server.ask("standby")
            server.ask("release")
            for name in ("nfsadmin", "nfsbox"):
                server.kill(name, signal.SIGTERM)
                server._forget(name)

    def follow(self, server: Server, patience: float = 60.0) -> None:
        """Reintegrate, as often as it takes: heart tries again when it is told of a failure."""
        deadline, refused = time.monotonic() + patience, ""
        while True:
            try:
                if not server.alive:
                    server.up()
                    server.ask("prepare")
                server.events.clear()
                server.ask("secondary")
                self.until(lambda: {"rfs_synced", "rfs_failed", "nfsbox_died"} & set(server.kinds()), 60, server)
                if "rfs_synced" in server.kinds():
                    return
            except BusError as error:
                refused = f"{error.code}: {error.text}"
                if "has a secondary already" in error.text:
                    # It did not notice that the former life of this one ended; its heart would tell it.
                    self.other(server).ask("alone")
            if time.monotonic() > deadline:
                raise AssertionError(f"no pair within {patience} s: {server.events} {refused}\n{server.output()}")
            if not server.alive:
                server.kill_all()

    # --- what must hold -------------------------------------------------------------------------------------

    def equal(self, what: str, timeout: float = 4.0) -> None:
        """Both trees. Raises Different."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                trees = [tree(server.backing, local=self.local) for server in self.servers]
            except OSError:
                trees = []
            if trees and trees[0] == trees[1]:
                return
            if time.monotonic() > deadline:
                found = differences(*trees) if trees else ["names come and go"]
                raise Different(f"{what}: {len(found)} entries differ: " + "; ".join(found[:6]))
            time.sleep(0.03)

    def image(self, server: Server) -> Tree:
        """What was acknowledged. Times of the last second are no part of that."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                return tree(server.backing, times=False, local=self.local)

    def kept(self, server: Server, image: Tree, what: str, timeout: float = 2.0) -> None:
        """A server that takes over has what was acknowledged. Raises Different."""
        deadline = time.monotonic() + timeout
        while True:
            now = self.image(server)
            if now == image:
                return
            if time.monotonic() > deadline:
                found = differences(image, now)
                raise Different(f"{what}: {len(found)} entries are lost: " + "; ".join(found[:6]))
            time.sleep(0.03)


def sync(path: Path) -> None:
    """syncfs(2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _LIBC.syncfs(descriptor)
    finally:
        os.close(descriptor)

"""Two servers on small disks of their own, with the real processes, and what hearts do with them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
#: Seconds in which something must move while somebody waits, and in which everything has an end.
PATIENCE: Final = 60.0
LONGEST: Final = 900.0
LOOK: Final = 1.0
#: Characters of a log in which the stacks of a process are.
STACKS: Final = 40_000
#: What ends an attempt to make a server equal.
ENDS: Final = frozenset({"rfs_synced", "rfs_failed", "nfsbox_died"})
#: A reintegration that was tried so often, for so long, will not be done.
TRIES: Final = 10
#: Reasons for which a pair may break without anybody's doing: the disk of the secondary has less room.
FULL: Final = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Different(AssertionError):
    """The two servers differ, or lost what was acknowledged."""


class Stuck(AssertionError):
    """Nothing moves any more; the text tells which process waits for what."""


class Broken(AssertionError):
    """The pair broke without anybody's doing."""


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

    def output(self, most: int = 3000) -> str:
        try:
            return super().output(most)
        except OSError as error:
            return f"(no logs: {error})"

    def _forget(self, name: str) -> None:
        """The port of a process that is gone is nobody's."""
        self._ports.ports.pop(f"AM/{name}", None)
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
                process.wait(PATIENCE)
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

    def figures(self, timeout: float = 2.0) -> dict[str, Any]:
        """What its nfsbox tells of itself; empty when it does not."""
        if not self.alive:
            return {}
        try:
            return self.ask("status", target="nfsbox", timeout=timeout)
        except BusError as error:
            return {"silent": error.text}

    def waits(self) -> str:
        """What each of its processes is at, the sessions of its nfsbox, what its heart was told."""
        told = f"=== {self.name}: {self.figures()}\nheart was told {self.events[-8:]}"
        self.signal(signal.SIGUSR1)
        time.sleep(1.0)  # they write it to their logs
        return f"{told}\n{self.output(STACKS)}"

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
        self.full = False  # the pair broke because a disk is full
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

    def settled(self) -> None:
        """The application has made its changes. Raises Stuck, Broken."""
        load = self._load
        if load is None:
            return

        def made() -> bool:
            load.join(0.05)
            return not load.is_alive()

        self.patiently(made, "the application has made its changes", paired=True)
        self._load = None

    def patiently(self, condition: Callable[[], object], what: str, *, paired: bool = False) -> None:
        """Wait as long as anything moves. `paired`: see to a pair that breaks meanwhile. Raises Stuck, Broken."""
        begun = since = looked = time.monotonic()
        known: object = None
        while not condition():
            time.sleep(0.02)
            now = time.monotonic()
            if now - looked < LOOK:
                continue
            figures = {server: server.figures() for server in self.servers}
            if paired:
                self._answer_loss(figures)
            moved = self._moved(figures)
            looked = time.monotonic()
            if moved != known:
                known, since = moved, looked
            if looked - since > PATIENCE or looked - begun > LONGEST:
                raise Stuck(f"nothing moves until {what} ({looked - begun:.0f} s)\n{self.waits()}")

    def _moved(self, figures: Mapping[Server, Mapping[str, Any]]) -> object:
        """Another value whenever something was done; what is tried without effect does not count."""
        application = self.application
        names = ("applied", "frames_sent", "session", "role", "dirty_files")
        shown = [[told.get(name) for name in names] for told in figures.values()]
        return application.done if application is not None else 0, shown, [len(s.events) for s in self.servers]

    def waits(self) -> str:
        """Of both servers and of the application."""
        application = self.application
        at = f"the application is at {application.now}, {application.done} are done" if application is not None else ""
        return "\n".join([at, *(server.waits() for server in self.servers)])

    def _answer_loss(self, figures: Mapping[Server, Mapping[str, Any]]) -> None:
        """As heart does when it is told that a pair broke: the primary goes on alone. Raises Broken when nothing here
        was the reason."""
        for server, shown in figures.items():
            if shown.get("session") == "lost" and shown.get("role") == "primary":
                reasons = [event["reason"] for event in server.events if event["kind"] == "replication_lost"]
                reason = reasons[-1] if reasons else "no reason was told"
                told = "" if any(full in reason for full in FULL) else self.waits()
                server.ask("alone")
                if told:
                    raise Broken(f"{server.name} lost its secondary: {reason}\n{told}")
                self.full = True

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

    def follow(self, server: Server) -> None:
        """Reintegrate, as often as it takes: heart tries again when it is told of a failure. Raises Stuck."""
        begun, tries, refused = time.monotonic(), 0, ""
        self.full = False
        while True:
            tries += 1
            try:
                if not server.alive:
                    server.up()
                    server.ask("prepare")
                server.events.clear()
                server.ask("secondary")
                self.patiently(lambda: ENDS & set(server.kinds()), f"{server.name} is equal")
                if "rfs_synced" in server.kinds():
                    return
            except BusError as error:
                refused = f"{error.code}: {error.text}"
                if "has a secondary already" in error.text:
                    # It did not notice that the former life of this one ended; its heart would tell it.
                    self.other(server).ask("alone")
            if time.monotonic() - begun > PATIENCE and tries > TRIES:
                raise Stuck(f"no pair in {tries} tries: {server.events} {refused}\n{self.waits()}")
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

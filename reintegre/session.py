"""One reintegration: two walkers and `nbrei` copiers over connections of their own, until the primary agrees that
nothing is left."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from reintegre.copier import MOVED, Copier, FileWork, Outcome, Pairs, Stopped, of_one
from reintegre.local import LocalTree
from reintegre.plan import Trust
from reintegre.primary import Primary, ProtocolFault, Service
from reintegre.progress import Meter
from reintegre.records import Key, Records
from reintegre.walk import Found, Walker
from safekit.rfs.exclusions import parent
from safekit.rfs.identity import Identity

WALKERS = 2
QUEUED_FILES = 4096
#: Small files that one request asks for.
TOGETHER = 128
#: Times that one name may change under our hands before it counts as a fault.
MOST_TRIES = 1000
#: Entries that cannot be made equal after which the reintegration ends at once, and how many of them are named.
MOST_FAULTS = 1000
FAULTS_TOLD = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """Attributes of <rfs> that steer a reintegration: nbrei files at once, packet and zone in bytes, commit in
    packets (0: only at the end). The allowance of bytes (reiallowedbw) is kept by the sender, the primary."""

    nbrei: int = 3
    zone: int = 8 << 20
    packet: int = 8 << 20
    commit: int = 0


@dataclass(frozen=True, slots=True)
class Copied:
    """What one replicated directory cost."""

    files: int
    bytes: int
    seconds: float

    @property
    def rate(self) -> int:
        """KB/s, KB of 1024 bytes."""
        return round(self.bytes / 1024 / max(self.seconds, 0.001))


@dataclass
class _Root:
    begin: float
    open: int = 1
    files: int = 0
    bytes: int = 0
    end: float = 0.0


@dataclass
class Hooks:
    """How the session tells: a directory begins, a directory is done, a detail (only when wanted)."""

    begin: Callable[[int], None] = lambda root: None
    done: Callable[[int, Copied], None] = lambda root, copied: None
    detail: Callable[[str], None] = lambda text: None


@dataclass
class _Jobs:
    directories: deque[tuple[int, bytes, bool]] = field(default_factory=deque)
    files: deque[FileWork] = field(default_factory=deque)
    outstanding: int = 0
    walking: int = 0


class Session:
    """Runs once. `connect` opens one more connection to the primary's service."""

    def __init__(
        self,
        connect: Callable[[], Service],
        trees: Sequence[LocalTree],
        trust: Trust,
        recorded: Records,
        limits: Limits,
        hooks: Hooks,
    ) -> None:
        self._connect = connect
        self._trees = trees
        self._limits = limits
        self._hooks = hooks
        self.meter = Meter()
        self._pairs = Pairs()
        self._found = Found()
        self._trust = trust
        self._recorded = recorded
        self._jobs = _Jobs()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._services: list[Service] = []
        self._roots: dict[int, _Root] = {}
        self._revisit: set[tuple[int, bytes, bool]] = set()
        self._tries: dict[Key, int] = {}
        self._faults: list[OSError] = []

    # --- from outside -------------------------------------------------------------------------------------

    def stop(self, reason: BaseException | None = None) -> None:
        """End from any thread; `run` then raises `reason`, or Stopped."""
        with self._changed:
            self._error = self._error or reason or Stopped("asked to stop")
            self._stop.set()
            self._changed.notify_all()
            services = list(self._services)
        for service in services:
            service.close()

    def run(self, server: int = 0) -> dict[str, object] | None:
        """Do everything; the primary's state at the end. server: the number of our data. Raises OSError when the
        primary is lost or refuses, ProtocolFault, Stopped."""
        control = self._open()
        threads: list[threading.Thread] = []
        with ThreadPoolExecutor(self._limits.nbrei, "hash") as executor:
            try:
                for number in range(WALKERS):
                    threads.append(threading.Thread(target=self._walk, name=f"walk{number}", daemon=True))
                for number in range(self._limits.nbrei):
                    threads.append(
                        threading.Thread(target=self._copy, args=(executor,), name=f"copy{number}", daemon=True)
                    )
                for root in range(len(self._trees)):
                    self._roots[root] = _Root(time.monotonic())
                    self._hooks.begin(root)
                    self._give_directory(root, b"", False)
                for thread in threads:
                    thread.start()
                self._settle()
                self.meter.counted()
                return self._rounds(control, server)
            except BaseException as error:
                self.stop(error)
                raise
            finally:
                self.stop()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()

    # --- queues -------------------------------------------------------------------------------------------

    def _open(self) -> Primary:
        service = self._connect()
        with self._changed:
            self._services.append(service)
            stopped = self._stop.is_set()
        if stopped:
            service.close()
        return Primary(service)

    def _give_directory(self, root: int, path: bytes, again: bool) -> None:
        with self._changed:
            self._jobs.directories.append((root, path, again))
            self._jobs.outstanding += 1
            self._changed.notify()

    def _give_file(self, work: FileWork) -> None:
        with self._changed:
            while len(self._jobs.files) >= QUEUED_FILES and not self._stop.is_set():
                self._changed.wait(1.0)
            self._jobs.files.append(work)
            self._jobs.outstanding += 1
            self._changed.notify_all()

    def _finished(self) -> None:
        with self._changed:
            self._jobs.outstanding -= 1
            if not self._jobs.outstanding:
                self._changed.notify_all()

    def _settle(self) -> None:
        """Wait until every job is done. Raises what a thread met."""
        with self._changed:
            while self._jobs.outstanding and not self._stop.is_set():
                self._changed.wait(1.0)
        if self._error is not None:
            raise self._error

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped("asked to stop")

    # --- threads ------------------------------------------------------------------------------------------

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            self.stop(error)

    def _walker(self, primary: Primary) -> Walker:
        return Walker(
            primary,
            self._trees,
            self._trust,
            self._recorded,
            self._limits.zone,
            self._found,
            self.meter,
            self._pairs,
            self._give_directory,
            self._give_file,
            self._later,
            self._fault,
            self._hooks.detail,
        )

    def _fault(self, error: OSError) -> None:
        """One entry cannot be made equal: it is named at the end, and the rest goes on. Raises it when there are so
        many that they are no exception."""
        with self._changed:
            self._faults.append(error)
            if len(self._faults) >= MOST_FAULTS:
                raise error
        self._hooks.detail(error.strerror or str(error))

    def _all_equal(self) -> None:
        """Raises OSError with the names of what could not be made equal."""
        if not self._faults:
            return
        told = list(dict.fromkeys(error.strerror or str(error) for error in self._faults))
        more = f"; and {len(told) - FAULTS_TOLD} more" if len(told) > FAULTS_TOLD else ""
        text = "; ".join(told[:FAULTS_TOLD]) + more
        raise OSError(self._faults[0].errno, f"everything else is equal, but not: {text}")

    def _later(self, root: int, path: bytes) -> None:
        """Look at an entry again. Raises ProtocolFault when that happens without end."""
        with self._changed:
            self._revisit.add((root, path, False))
        self._tried(root, path)

    def _tried(self, root: int, path: bytes) -> None:
        with self._changed:
            tries = self._tries[root, path] = self._tries.get((root, path), 0) + 1
        if tries > MOST_TRIES:
            raise ProtocolFault(f"{path!r} cannot be made equal: {tries} attempts failed")

    def _walk(self) -> None:
        self._guarded(self._walk_jobs)

    def _walk_jobs(self) -> None:
        walker = self._walker(self._open())
        while True:
            with self._changed:
                while not self._jobs.directories and not self._stop.is_set():
                    self._changed.wait(1.0)
                if self._stop.is_set():
                    return
                root, path, again = self._jobs.directories.pop()
            walker.directory(root, path, again)
            self._finished()

    def _copy(self, executor: ThreadPoolExecutor) -> None:
        self._guarded(lambda: self._copy_jobs(executor))

    def _copy_jobs(self, executor: ThreadPoolExecutor) -> None:
        limits = self._limits
        copier = Copier(
            self._open(),
            self._trees,
            limits.zone,
            limits.packet,
            limits.commit,
            self.meter,
            self._pairs,
            executor,
            self._check,
        )
        while True:
            with self._changed:
                while not self._jobs.files and not self._stop.is_set():
                    self._changed.wait(1.0)
                if self._stop.is_set():
                    return
                works = self._next(copier)
                self._changed.notify_all()
            outcomes = copier.files(works) if len(works) > 1 else [copier.file(works[0])]
            for work, outcome in zip(works, outcomes, strict=True):
                self._note(work, outcome)

    def _next(self, copier: Copier) -> list[FileWork]:
        """The next file, with small ones behind it that can go together; what is left is shared with the others."""
        files = self._jobs.files
        most = min(TOGETHER, 1 + len(files) // self._limits.nbrei)
        works = [files.popleft()]
        root = works[0].root
        if copier.batched(works[0]):
            while len(works) < most and files and files[0].root == root and copier.batched(files[0]):
                works.append(files.popleft())
        return works

    def _note(self, work: FileWork, outcome: Outcome) -> None:
        self.meter.finished()
        with self._changed:
            if outcome.copied:
                self._roots[work.root].files += 1
                self._roots[work.root].bytes += outcome.copied
                self._roots[work.root].end = time.monotonic()
        if outcome.again:
            self._later(work.root, work.path)
        if outcome.fault is not None:
            self._fault(outcome.fault)
        if outcome.copied:
            self._hooks.detail(f"copied {work.path!r}: {outcome.copied} of {work.size} bytes")
        self._finished()

    # --- the end ------------------------------------------------------------------------------------------

    def _rounds(self, control: Primary, server: int) -> dict[str, object] | None:
        """Whatever changed its name or failed meanwhile is compared again until the primary has nothing left."""
        walker = self._walker(control)
        reported = False
        while True:
            linked = self._links(control)
            self._times(control)
            self._settle()
            if not reported:
                # Nothing is left but what changes under our hands: the figures of the copy are known.
                self._report()
                reported = True
            paths, doubts = control.revisit()
            for root, file in doubts:
                self._pairs.forget(root, file)
            waiting = [*paths, *self._take()]
            if waiting or not linked:
                for root, path, deep in waiting:
                    self._again(control, walker, root, path, deep)
                self._settle()
                continue
            self._check()
            self._all_equal()
            done, left, state = control.end(server)
            if done:
                return state
            if not left:
                raise ProtocolFault("the primary neither ends the reintegration nor says what is left")

    def _take(self) -> set[tuple[int, bytes, bool]]:
        with self._changed:
            taken, self._revisit = self._revisit, set()
        return taken

    def _again(self, control: Primary, walker: Walker, root: int, path: bytes, deep: bool) -> None:
        if root >= len(self._trees):
            raise ProtocolFault(f"no replicated directory {root}")
        tree = self._trees[root]
        if path:
            self._found.entered(root, path)
        try:
            remote, local = control.stat(root, path), tree.entry(path)
            if remote is None:
                if local is not None and path:
                    walker.delete(root, path)
                return
            above = parent(path)
            if path and not tree.is_directory(above):
                # An entry can only be made when the directory above it is there.
                self._again(control, walker, root, above, True)
            if remote.is_dir:
                new = local is None or not local.is_dir
                control.push_entry(root, path)
                if deep or new:
                    self._give_directory(root, path, True)
                return
        except OSError as error:
            if error.errno in MOVED:
                self._later(root, path)
            else:
                self._fault(of_one(path, error))
            return
        walker.try_entry(root, path, remote, local, True)

    def _links(self, control: Primary) -> bool:
        """Names that belong together on the primary do here. False when something had to be done for that: it may move
        what was found right before."""
        self._settle()
        with self._found.lock:
            groups = [(root, file, tuple(names)) for (root, file), names in self._found.names.items()]
        right = True
        for root, file, names in groups:
            for path in names[1:]:
                self._check()
                right = self._linked(control, root, file, names[0], path) and right
        return right

    def _linked(self, control: Primary, root: int, file: Identity, first: bytes, path: bytes) -> bool:
        tree = self._trees[root]
        one, other = tree.identity(first), tree.identity(path)
        if one is not None and one == other:
            return True
        there, name = control.stat(root, first), control.stat(root, path)
        if name is None or not name.identity.same(file):
            # That name stands for another file by now, or for none: the stream has brought that.
            with self._found.lock:
                self._found.names[root, file].pop(path, None)
            return True
        if there is None or not there.identity.same(file):
            # The name that stood for the file is gone: the next one does.
            with self._found.lock:
                self._found.names[root, file].pop(first, None)
            self._later(root, path)
            return False
        self._found.entered(root, path)
        try:
            if control.push_link(root, first, path):
                self._pairs.forget(root, file)
                self._later(root, first)
        except OSError as error:
            if error.errno not in MOVED:
                self._fault(of_one(path, error))
                with self._found.lock:
                    self._found.names[root, file].pop(path, None)
                return False
            self._later(root, path)
        self._hooks.detail(f"link {path!r} to {first!r}")
        self._tried(root, path)
        return False

    def _times(self, control: Primary) -> None:
        """Entries made or removed in a directory moved its time."""
        directories, self._found.directories = self._found.directories, []
        for root, path, mtime in dict.fromkeys(directories):
            self._check()
            here = self._trees[root].data.status(path)
            if here is None or here.st_mtime_ns == mtime:
                continue
            try:
                control.push_entry(root, path)
            except OSError as error:
                if error.errno in MOVED:
                    self._later(root, path)
                else:
                    self._fault(of_one(path, error))

    def _report(self) -> None:
        for root, count in self._roots.items():
            if count.files:
                self._hooks.done(root, Copied(count.files, count.bytes, count.end - count.begin))

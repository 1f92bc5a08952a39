"""What is acknowledged when the pair breaks in the middle: what the peer has, or what is recorded for good (R1, M3)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fuse
import pytest

from lab.waiting import wait_until
from nfsbox.box import Box
from nfsbox.fs import kernel, libfuse
from nfsbox.fs import mount as mount_module
from nfsbox.fs.libfuse import MountFailure
from nfsbox.fs.mount import Mount
from nfsbox.fs.operations import Operations
from nfsbox.pair.engine import Engine, Refused, Role, Root, Settings
from nfsbox.pair.secondary import Applier
from nfsbox.pair.stream import State, Stream
from nfsbox.pair.tracking import Tracker
from nfsbox.place import BoxError, Place
from safekit import syscalls
from safekit.bus.requests import nfsbox as asked
from safekit.disk import steps
from safekit.model.types import Replicated, Rfs
from safekit.rfs.changes import Mode
from safekit.rfs.exclusions import Exclusions
from safekit.rfs.generations import DataState, to_fields
from safekit.rfs.journal import expand, load
from safekit.rfs.tree import Tree
from safekit.rfs.wire import HEADER, Flag, Op, WireClosed
from tests.t2_process.fuse_info import Info
from tests.t2_process.nfsbox_pair import DriverError, Pair, finish

MakePair = Callable[..., Pair]


class Change(threading.Thread):
    """One write in the background; `error` and `acknowledged` tell how it ended."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.acknowledged = False
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            os.pwrite(self.handle, b"record", 0)
            self.acknowledged = True
        except OSError as error:
            self.error = error

    def ended(self) -> None:
        self.join(20)
        assert not self.is_alive()
        with contextlib.suppress(OSError):  # the mount may be gone
            os.close(self.handle)


@pytest.mark.parametrize("order", ["standby", "release"])
def test_leaving_does_not_acknowledge_what_is_held(make: MakePair, order: str) -> None:
    """The peer may have gone on without this server: what waits for it has not happened."""
    pair = make().up()
    change = Change(pair.a.mount / "held")
    pair.b.kill()
    change.start()
    wait_until(lambda: pair.a("status")["held"] == 1)
    pair.a(order)
    change.ended()
    assert not change.acknowledged
    assert change.error is not None and change.error.errno == errno.EIO


@pytest.mark.parametrize("order", ["standby", "release"])
def test_leaving_waits_for_what_is_under_way(make: MakePair, order: str) -> None:
    """A stop of the primary in the middle of a write: the peer, which takes over, has what was acknowledged."""
    pair = make().up()
    change = Change(pair.a.mount / "under way")
    pair.b.process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(1.0, lambda: pair.b.process.send_signal(signal.SIGCONT))
    try:
        change.start()
        wait_until(lambda: pair.a("status")["pending"] > 0)
        timer.start()
        pair.a(order)
    finally:
        timer.join()
    change.ended()
    assert change.acknowledged, change.error
    pair.b("primary")
    assert (pair.b.mount / "under way").read_bytes() == b"record"


def test_leaving_while_the_peer_is_frozen_acknowledges_nothing(make: MakePair) -> None:
    pair = make().up()
    change = Change(pair.a.mount / "under way")
    pair.b.process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{pair.b.process.pid}/task")
    wait_until(
        lambda: all(" T " in (task / "stat").read_text() for task in tasks.iterdir())
    )  # each thread stops itself
    try:
        change.start()
        wait_until(lambda: pair.a("status")["pending"] > 0)
        begun = time.monotonic()
        pair.a("standby")
        change.ended()
    finally:
        pair.b.process.send_signal(signal.SIGCONT)
    assert not change.acknowledged
    assert time.monotonic() - begun < 60, "it waited for locktimeout"


def test_a_hand_over_that_did_not_come_about_leaves_the_primary_as_it_is(make: MakePair) -> None:
    pair = make(rfs={"locktimeout": 2}).up()
    pair.b.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(DriverError) as caught:
            pair.a("demote", timeout=1)
    finally:
        pair.b.process.send_signal(signal.SIGCONT)
    assert caught.value.code == "timeout"
    pair.a("primary", peer="B", paired=True)  # heart starts the application here again
    pair.a("alone")
    (pair.a.mount / "later").write_text("x")


# --- one engine, no processes ------------------------------------------------------------------------------------


class Peer:
    """A stream whose secondary answers as the test wants."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.state = self.was = State.PAIRED if strict else State.RESYNC
        self.identity, self.peer, self.reason, self.replicated = 1, "B", "", 0
        self.sent: list[int] = []
        self.answer: Callable[[], int] = lambda: 0
        self.failed = ""

    lost = False

    def wait_late(self, number: int, timeout: float) -> int:
        return self.wait(number, timeout)

    def fail(self, reason: str) -> None:
        self.failed = reason

    def send(self, op: int, *_: Any, **__: Any) -> int:
        self.sent.append(op)
        return len(self.sent)

    def send_write(self, *_: Any) -> int:
        return self.send(Op.WRITE)

    def new_fid(self) -> int:
        return 7

    def pair(self) -> bool:
        return True

    def bind(self, file: Any) -> bool:
        file.session, file.fid = self.identity, 7
        return True

    def wait(self, _number: int, _timeout: float | None = None) -> int:
        return self.answer()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[Engine, Operations, Path]]:
    backing, directory = tmp_path / "backing", tmp_path / "rfs"
    backing.mkdir()
    directory.mkdir()
    tracker = Tracker(directory, 4096)
    root = Root(0, bytes(tmp_path / "mount"), bytes(backing), Exclusions((), ()))
    engine = Engine((root,), tracker, Settings(zone_size=4096), lambda _: None)
    tracker.start(Mode.ALONE, None)
    engine.become_primary(paired=False)
    yield engine, Operations(engine, root), backing
    tracker.stop(clean=True)


def opened(operations: Operations, name: str) -> int:
    info = Info(os.O_RDWR)
    operations.open(f"/{name}", info)
    return info.fh


def request(data: bytes) -> memoryview:
    return memoryview(bytearray(kernel.WRITE_DATA) + bytearray(data))


@pytest.mark.parametrize("change", ["truncate", "fallocate", "write"])
def test_what_fails_at_the_peer_is_noted_before_the_end(alone: tuple[Engine, Operations, Path], change: str) -> None:
    """The end of the resynchronisation may come between the answer of the peer and the note of it: it waits."""
    engine, operations, backing = alone
    (backing / "f").write_bytes(b"x" * 5000)
    handle = opened(operations, "f")
    peer = Peer()
    engine.stream = peer  # type: ignore[assignment]
    ends: list[object] = []

    def end() -> None:
        ends.append(engine.make_strict(b"", peer))  # type: ignore[arg-type]

    other = threading.Thread(target=end, daemon=True)

    def answer() -> int:
        if not other.ident:
            other.start()
            other.join(0.2)
            return errno.EBADF
        return 0

    peer.answer = answer
    match change:
        case "truncate":
            operations.truncate("/f", 100, handle)
        case "fallocate":
            operations.content.allocate(handle, 0, 0, 9000)
        case "write":
            operations.content.write(handle, 0, request(b"record"), 0)
    other.join(10)
    assert ends == [None], "the end did not wait for what had failed"
    assert (0, b"f") in engine.revisit.entries
    operations.ended()


def test_nothing_is_forgotten_before_the_disk_here_has_it(
    alone: tuple[Engine, Operations, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure right after the end would take from this server what only its memory and the peer have."""
    engine, operations, backing = alone
    (backing / "f").write_bytes(b"x" * 5000)
    operations.content.write(opened(operations, "f"), 0, request(b"record"), 0)
    peer = Peer()
    engine.stream = peer  # type: ignore[assignment]

    def refuses() -> None:
        assert peer.sent[-1] == Op.STRICT, "what comes before the peer is strict is recorded in the old epoch only"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as disk:
        disk.setattr(syscalls, "sync_filesystem", lambda _: refuses())
        with pytest.raises(OSError, match="Input/output"):
            engine.make_strict(b"", peer)  # type: ignore[arg-type]
    assert engine.tracker.snapshot().files
    assert engine.make_strict(b"", peer) is peer  # type: ignore[arg-type]
    engine.make_paired(peer)  # type: ignore[arg-type]
    assert engine.tracker.snapshot().files, "the system tells once that a page is lost, and then calls it written"
    with pytest.raises(OSError, match="refused data before"):
        engine.checkpoint()
    assert engine.tracker.snapshot().files
    operations.ended()


@pytest.mark.parametrize("refuses", [False, True])
def test_a_checkpoint_forgets_nothing_of_a_disk_that_has_refused(
    alone: tuple[Engine, Operations, Path], monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    engine, operations, backing = alone
    engine.tracker.paired(0)
    (backing / "f").write_bytes(b"x" * 5000)
    operations.content.write(opened(operations, "f"), 0, request(b"record"), 0)
    engine.stream = Peer(strict=True)  # type: ignore[assignment]
    if refuses:
        with monkeypatch.context() as disk, pytest.raises(OSError, match="No space"):
            disk.setattr(syscalls, "sync_filesystem", full)
            engine.checkpoint()
    with contextlib.nullcontext() if not refuses else pytest.raises(OSError, match="refused data before"):
        engine.checkpoint()
    assert bool(engine.tracker.snapshot().files) == refuses
    assert engine.in_order != refuses
    operations.ended()


def full(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_exchange_of_names_waits_for_nobody_who_may_need_the_order(
    alone: tuple[Engine, Operations, Path],
) -> None:
    """A close is answered under the lock of the paths, and may have to be sent in the order of changes."""
    engine, operations, backing = alone
    (backing / "a").write_text("a")
    (backing / "b").write_text("b")
    paths = threading.Lock()
    exchange = threading.Thread(
        target=lambda: operations.exchange(b"/a", b"/b", lambda change: change(), paths), daemon=True
    )
    with paths:
        exchange.start()
        exchange.join(0.2)
        assert exchange.is_alive() and (backing / "a").read_text() == "a"
        assert engine.order.acquire(timeout=5), "the exchange holds the order and waits for the paths"
        engine.order.release()
    exchange.join(10)
    assert not exchange.is_alive() and (backing / "a").read_text() == "b"


def test_a_thread_that_outlives_its_mount_answers_into_no_file(
    alone: tuple[Engine, Operations, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk hangs; meanwhile the number of its descriptor could be that of a file of somebody else."""
    _, operations, _ = alone
    mount = Mount(operations, bytes(tmp_path / "mount"), "AM:0")
    number = mount._session.fd = os.open(tmp_path / "device", os.O_RDWR | os.O_CREAT)
    hangs = threading.Event()
    thread = threading.Thread(target=lambda: (hangs.wait(10), os.write(number, b"an answer")), daemon=True)
    mount._threads.append(thread)
    thread.start()
    monkeypatch.setattr(mount_module, "unmount", lambda path: 0)
    monkeypatch.setattr(mount_module, "END_SECONDS", 0.01)
    mount.stop()
    opened = [os.open(tmp_path / str(count), os.O_RDWR | os.O_CREAT) for count in range(3)]
    hangs.set()
    thread.join(10)
    assert not thread.is_alive()
    assert [os.fstat(descriptor).st_size for descriptor in opened] == [0, 0, 0]
    assert os.readlink(f"/proc/self/fd/{number}") == "/dev/null"
    for descriptor in (*opened, number):
        os.close(descriptor)


@pytest.mark.parametrize("made", ["create", "mkdir", "symlink", "mknod"])
def test_what_cannot_be_given_to_its_owner_leaves_nothing(
    alone: tuple[Engine, Operations, Path], monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    """The quota of the caller is used up after the entry was made: no entry, no descriptor, no word to the peer."""
    engine, operations, backing = alone
    peer = engine.stream = Peer(strict=True)  # type: ignore[assignment]
    monkeypatch.setattr("fuse.fuse_get_context", lambda: (1000, 1000, 1))
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as quota:
        quota.setattr(steps, "data_owner", exceeded)
        quota.setattr(Tree, "chown", exceeded)
        for number in range(3):
            path = f"/new{number}"
            with pytest.raises(OSError, match="quota exceeded"):
                match made:
                    case "create":
                        operations.create(path, 0o644, Info(os.O_RDWR | os.O_CREAT))
                    case "mkdir":
                        operations.mkdir(path, 0o755)
                    case "symlink":
                        operations.symlink(path, "target")
                    case "mknod":
                        operations.mknod(path, stat.S_IFIFO | 0o644, 0)
    assert not os.listdir(backing) and not operations.handles and not len(engine.files)
    assert len(os.listdir("/proc/self/fd")) <= before + 1, "the directory itself may stay open"
    assert not peer.sent and not peer.failed
    operations.mkdir("/later", 0o755)
    assert peer.sent == [Op.MKDIR]


def exceeded(*_: object, **__: object) -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize("fails", ["record", "look", "role"])
def test_a_file_that_keeps_its_name_is_replicated_on(
    alone: tuple[Engine, Operations, Path], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """libfuse has put it aside for a rename over it, and the rename fails: what is written then the peer needs."""
    engine, operations, backing = alone
    for name in ("kept", "other"):
        (backing / name).write_text("old")
    handle = opened(operations, "kept")
    operations.request = kernel.RENAME, 0
    operations.rename("/kept", "/.fuse_hidden0000000100000001")
    with monkeypatch.context() as patch:
        if fails == "record":
            patch.setattr(engine.tracker, "renamed", refused)
        elif fails == "look":
            patch.setattr(operations, "_bind_before_loss", refused)
        else:
            patch.setattr(engine, "writable", False)
        with pytest.raises(OSError):
            operations.rename("/other", "/kept")
    operations.content.write(handle, 0, request(b"new"), 0)
    file = operations.handles[handle]
    assert (backing / "kept").read_text() == "new"
    assert not file.orphan and engine.visible(file) == b"kept"
    assert (0, file.inode, file.generation) in engine.tracker.snapshot().files
    operations.release("", handle)


def test_a_file_is_found_by_its_other_name_whatever_the_first_one_has_become(
    alone: tuple[Engine, Operations, Path],
) -> None:
    engine, operations, backing = alone
    (backing / "d").mkdir()
    (backing / "d/one").write_text("old")
    os.link(backing / "d/one", backing / "two")
    first, second = opened(operations, "d/one"), opened(operations, "two")
    operations.release("", first)
    operations.unlink("/d/one")
    operations.rmdir("/d")
    operations.symlink("/d", "elsewhere")
    file = operations.handles[second]
    assert engine.visible(file) == b"two"
    engine.stream = peer = Peer(strict=True)  # type: ignore[assignment]
    operations.content.write(second, 0, request(b"new"), 0)
    engine.flush_times()
    assert peer.sent.count(Op.SETATTR) == 1, "the time of a file is sent while it stays open"
    operations.release("", second)


def test_the_time_of_a_file_that_was_open_before_the_pair_is_sent(alone: tuple[Engine, Operations, Path]) -> None:
    engine, operations, backing = alone
    (backing / "f").write_text("old")
    handle = opened(operations, "f")
    operations.content.write(handle, 0, request(b"alone"), 0)
    engine.flush_times()
    engine.stream = peer = Peer(strict=True)  # type: ignore[assignment]
    for count in (1, 2):
        operations.content.write(handle, 0, request(b"pair"), 0)
        engine.flush_times()
        assert peer.sent.count(Op.SETATTR) == count
    operations.release("", handle)


def test_the_time_of_a_new_file_is_sent_while_it_stays_open(
    alone: tuple[Engine, Operations, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, operations, _ = alone
    monkeypatch.setattr(fuse, "fuse_get_context", lambda: (0, 0, 1))
    engine.stream = peer = Peer(strict=True)  # type: ignore[assignment]
    info = Info(os.O_RDWR | os.O_CREAT)
    operations.create("/f", 0o644, info)
    for count in (1, 2):
        operations.content.write(info.fh, 0, request(b"line"), 0)
        engine.flush_times()
        assert peer.sent.count(Op.SETATTR) == count
    operations.release("", info.fh)


def refused(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def thread_keys() -> int:
    """The number of the next key for data of threads: a process has 1024."""
    libc, key = ctypes.CDLL(None), ctypes.c_uint()
    assert libc.pthread_key_create(ctypes.byref(key), None) == 0
    assert libc.pthread_key_delete(key) == 0
    return key.value


def test_a_mount_gives_back_what_libfuse_has_of_it(alone: tuple[Engine, Operations, Path], tmp_path: Path) -> None:
    """A start that is refused is tried again without end: at the thousandth libfuse had no key left."""
    _, operations, _ = alone
    place = tmp_path / "mount"
    place.mkdir()

    def mounted() -> tuple[int, int]:
        mount = Mount(operations, bytes(place), "AM:0")
        mount.start()
        mount.mounted()
        mount.stop()
        gc.collect()  # what tests before this one have left open goes now, not in between
        return thread_keys(), len(os.listdir("/proc/self/fd"))

    first = mounted()
    assert [mounted() for _ in range(3)] == [first] * 3


def test_a_mount_that_libfuse_refuses_leaves_nothing(
    alone: tuple[Engine, Operations, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, operations, _ = alone
    place = tmp_path / "mount"
    place.mkdir()
    operations.tree.statvfs()
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(libfuse, "_fuse_new", lambda *_: None)
    with pytest.raises(MountFailure, match=r"log/nfsbox\.log"):
        Mount(operations, bytes(place), "AM:0").start()
    assert not os.path.ismount(place) and os.listdir("/proc/self/fd") == before


def test_a_pair_that_is_told_late_is_not_recorded_over_what_came_after_it(tmp_path: Path) -> None:
    """The peer is lost while nfsadmin answers, and `alone` records that in another thread."""
    later = DataState(5, peer=77, current=600, base=500)

    def pair(_peer: str, _server: int, _session: int) -> dict[str, object]:
        box.engine.stream.lost = True  # type: ignore[union-attr, misc]
        box.set_state(to_fields(later))
        return to_fields(DataState(5, peer=77, current=500))

    rfs = Rfs((Replicated(str(tmp_path / "data")),), flow="default", port=5600)
    box = Box(Place("AM", "A", tmp_path, lambda: (), None), rfs, lambda _: None, pair)
    box.engine.stream = Peer()  # type: ignore[assignment]
    with pytest.raises(Refused):
        box._pair("B", 77)
    assert box.state() == to_fields(later)


def test_a_name_that_comes_later_is_listened_on_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the boot of a server its DNS may be silent; that is no reason to stop the module. A port of others is one."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    known: dict[str, str] = {}
    ask = socket.getaddrinfo

    def look_up(host: str, *words: Any, **more: Any) -> Any:
        if host == "node.internal" and host not in known:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ask(known.get(host, host), *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    rfs = Rfs((Replicated(str(tmp_path / "data")),), flow="default", port=port)
    box = Box(Place("AM", "A", tmp_path, lambda: (), ("node.internal", port)), rfs, lambda _: None, lambda *_: {})
    box.listening.begin()
    box.listening.begin_when_named()
    assert box.listening.unnamed and box.listening.server is None
    known["node.internal"] = "127.0.0.1"
    box.listening.begin_when_named()
    assert not box.listening.unnamed and box.listening.server is not None
    socket.create_connection(("127.0.0.1", port), 5).close()
    second = Box(Place("AN", "A", tmp_path, lambda: (), ("node.internal", port)), rfs, lambda _: None, lambda *_: {})
    with pytest.raises(BoxError, match="another program uses it"):
        second.listening.begin()
    assert not second.listening.unnamed
    box.listening.end()


@pytest.mark.parametrize("fails", ["data", "record"])
def test_what_fails_after_a_hand_over_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The peer has everything, and may be primary: this server is none, and knows the token to come back with."""
    data, directory = tmp_path / "data_For_SafeKit_Replication", tmp_path / "rfs"
    data.mkdir()
    directory.mkdir()
    rfs = Rfs((Replicated(str(tmp_path / "data")),), flow="default", port=5600)
    box = Box(Place("AM", "A", directory, lambda: (), None), rfs, lambda _: None, lambda *_: {})
    box._tracker.start(Mode.PAIRED, None)
    box.engine.disks.open()
    box.prepared = True
    monkeypatch.setattr(box.engine, "demote", lambda within, token: True)
    if fails == "data":
        monkeypatch.setattr(syscalls, "sync_filesystem", full)
    else:
        monkeypatch.setattr(steps, "record_commit", full)
    box.demote(1.0)
    assert box._token and not box._tracker.active
    assert not load(directory).closed, "the next start takes it for a crash, and compares more"
    assert box.engine.disks.refused is (fails == "data")
    second = Box(Place("AM", "A", directory, lambda: (), None), rfs, lambda _: None, lambda *_: {})
    assert second.engine.disks.refused is (fails == "data"), "over the life of the process"
    box.engine.disks.close()


class HandOver:
    """The connection of a primary that hands over, and sends nothing more."""

    received = 0

    def __init__(self) -> None:
        self.acknowledged, self.cut = threading.Event(), threading.Event()

    def arrived(self) -> bool:
        return True

    def receive(self) -> bytes:
        self.received += 1
        if self.received == 1:
            return HEADER.pack(Op.HANDOVER, Flag.ACK, 0, 0, 0, 0, 0) + b"token"
        self.cut.wait(10)
        raise WireClosed(errno.EPIPE, "closed by the test")

    def send_ack(self, _number: int) -> None:
        self.acknowledged.set()

    def shutdown(self) -> None:
        self.cut.set()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("ended", [False, True])
def test_the_role_may_come_before_the_stream_of_a_hand_over_has_ended(
    alone: tuple[Engine, Operations, Path], tmp_path: Path, ended: bool
) -> None:
    """The other server has its acknowledgement before the token of the stream is told here: the role is taken, once."""
    rfs = Rfs((Replicated(str(tmp_path / "data")),), flow="default", port=5600)
    box = Box(Place("AM", "B", tmp_path, lambda: (), None), rfs, lambda _: None, lambda *_: {})
    disks = box.engine.disks = alone[0].disks
    channel: Any = HandOver()
    telling = threading.Event()

    def end(reason: str, token: bytes | None) -> None:
        assert telling.wait(10)
        follower._ended(reason, token)

    follower = box._follower
    follower._applier = applier = Applier(
        channel, (), disks, strict=True, durable=False, on_end=end, on_strict=lambda _: None
    )
    follower._started = box.prepared = True
    applier.start()
    assert channel.acknowledged.wait(10)
    assert box._token is None
    if ended:
        channel.shutdown()
    timer = threading.Timer(0.2, telling.set)
    timer.start()
    try:
        box.primary(asked.Primary("A", paired=True))
        engine = box.engine
        assert box._token == b"token" and engine.role is Role.PRIMARY
        assert engine.awaiting and not engine.writable, "nothing passes by the peer that is awaited"
        engine.become_readonly(Role.STANDBY)
        box._token = None
        with pytest.raises(BoxError, match="no hand-over"):
            box.primary(asked.Primary("A", paired=True))
    finally:
        timer.join()
        box._tracker.stop(clean=False)
        disks.close()


def test_the_end_belongs_to_its_session(alone: tuple[Engine, Operations, Path]) -> None:
    """A late request of a session that broke must not end the one that follows."""
    engine, _, _ = alone
    late, now = Peer(), Peer()
    engine.stream = now  # type: ignore[assignment]
    with pytest.raises(Refused):
        engine.make_strict(b"", late)  # type: ignore[arg-type]
    assert not now.strict


def test_a_stream_that_breaks_as_it_is_paired_is_lost_once(alone: tuple[Engine, Operations, Path]) -> None:
    """Lost before, the pair does not come about; lost afterwards, the loss of a pair is told. Never neither."""
    engine, _, _ = alone
    told: list[str] = []
    engine.notify = lambda news: told.append(news.op)

    class Breaking(Stream):
        """Another thread meets the loss of the connection in the middle of `make_paired`."""

        @property
        def state(self) -> State:
            found = self.found
            if sys._getframe(1).f_code.co_name in ("make_paired", "pair") and losing.ident is None:
                losing.start()
                losing.join(0.3)
            return found

        @state.setter
        def state(self, state: State) -> None:
            self.found = state

    channel: Any = SimpleNamespace(shutdown=lambda: None, wait_at_most=lambda seconds: None)
    stream = Breaking(channel, 1, "B", paired=False, sendtimeout=1, locktimeout=1, on_lost=engine._stream_lost)
    losing = threading.Thread(target=stream.fail, args=("gone",), daemon=True)
    engine.stream, stream.strict = stream, True
    with contextlib.suppress(Refused):
        engine.make_paired(stream)
    losing.join(5)
    assert stream.lost
    assert (told, engine.tracker.mode) in ((["session_lost"], Mode.ALONE), (["replication_lost"], Mode.PAIRED))


@pytest.mark.parametrize("change", ["truncate", "fallocate", "write"])
def test_a_checkpoint_between_record_and_change_forgets_nothing(
    alone: tuple[Engine, Operations, Path], change: str
) -> None:
    engine, operations, backing = alone
    (backing / "f").write_bytes(b"x" * 50_000)
    handle = opened(operations, "f")
    engine.stream = Peer(strict=True)  # type: ignore[assignment]
    engine.tracker.paired(engine.tracker.epoch())
    engine.tracker.touch_directory(0, b"elsewhere")
    real = engine.order

    class Late:
        """The order lock, which a checkpoint gets first."""

        def __enter__(self) -> None:
            engine.order = real
            engine.tracker.checkpointed(engine.tracker.epoch())
            real.acquire()

        def __exit__(self, *_: object) -> None:
            real.release()

    engine.order = Late()  # type: ignore[assignment]
    match change:
        case "truncate":
            operations.truncate("/f", 40_000, handle)
        case "fallocate":
            operations.content.allocate(handle, 0, 40_000, 100)
        case "write":
            operations.content.write(handle, 40_000, request(b"record"), 0)
    zones = [zone for found in engine.tracker.snapshot().files.values() for zone in found.zones]
    assert 40_000 // 4096 in zones
    operations.ended()


def test_an_awaited_peer_is_not_passed_by(alone: tuple[Engine, Operations, Path]) -> None:
    """A change that began in the role before finds the new primary not writable until its peer is there."""
    engine, _, _ = alone
    engine.become_readonly(Role.SECONDARY)
    engine.become_primary(paired=True)
    assert not engine.writable
    engine.alone()
    assert engine.writable and not engine.awaiting


def test_a_link_made_by_the_resynchronisation_reaches_open_files(make: MakePair) -> None:
    """The secondary had another file under the second name, and has it open for the application."""
    pair = make()
    pair.a("prepare")
    pair.a("primary")
    (pair.a.mount / "one").write_bytes(b"x" * 1000)
    os.link(pair.a.mount / "one", pair.a.mount / "two")
    (pair.b.backing / "two").write_bytes(b"y" * 1000)
    pair.b("prepare")
    handle = os.open(pair.a.mount / "two", os.O_WRONLY)
    service = pair.connect()
    wait_until(lambda: pair.a("status")["session"] == "resync")
    os.pwrite(handle, b"first", 0)  # the peer learns of the open file, by the name `two`
    service("push_entry", root=0, path=b"one")
    service("push_zone", root=0, path=b"one", off=0, len=1000)
    assert service("push_link", root=0, existing=b"one", path=b"two")["open"], "reintegre must compare it again"
    service("push_zone", root=0, path=b"one", off=0, len=1000)
    os.pwrite(handle, b"second", 10)
    finish(service, pair.b)
    wait_until(lambda: (pair.b.backing / "one").read_bytes() == (pair.a.backing / "one").read_bytes())
    assert (pair.b.backing / "one").samefile(pair.b.backing / "two")
    os.close(handle)


@pytest.mark.parametrize("change", ["truncate", "punch"])
def test_a_change_of_more_zones_than_memory_holds_costs_one_record(
    alone: tuple[Engine, Operations, Path], change: str
) -> None:
    """Any user may ask for it: 2**58 bytes are 2**46 zones here."""
    engine, operations, backing = alone
    (backing / "f").write_bytes(b"x" * 50_000)
    handle = opened(operations, "f")
    try:
        if change == "truncate":
            operations.truncate("/f", 1 << 58, handle)
        else:
            operations.content.allocate(handle, 3, 4096, 1 << 58)
    except OSError:
        pass  # the file system below has limits of its own
    (found,) = engine.tracker.snapshot().files.values()
    assert len(found.zones) <= 13
    operations.ended()


def test_a_large_file_that_is_cut_is_compared_whole(alone: tuple[Engine, Operations, Path]) -> None:
    engine, operations, backing = alone
    (backing / "f").touch()
    os.truncate(backing / "f", 1 << 40)
    handle = opened(operations, "f")
    operations.truncate("/f", 10, handle)
    assert (0, b"f") in engine.tracker.snapshot().moved
    found = [(path, zones) for _, path, _, zones, _ in expand(engine.tracker.snapshot(), [Tree(os.fsencode(backing))])]
    assert set(found) == {(b"f", None)}
    operations.ended()


def test_a_write_over_small_zones_records_those_between(alone: tuple[Engine, Operations, Path]) -> None:
    engine, operations, backing = alone
    (backing / "f").write_bytes(b"x" * 50_000)
    handle = opened(operations, "f")
    for offset, size in ((0, 1), (3 * 4096, 1), (0, 4 * 4096)):
        operations.content.write(handle, offset, request(b"y" * size), 0)
    (found,) = engine.tracker.snapshot().files.values()
    assert found.zones >= {0, 1, 2, 3}
    operations.ended()


def test_a_link_in_the_place_of_a_file_leads_nowhere(alone: tuple[Engine, Operations, Path], tmp_path: Path) -> None:
    """The kernel looked the name up before: on a secondary, or for fchmodat2 of a link on older kernels."""
    _, operations, backing = alone
    outside = tmp_path / "outside"
    outside.write_text("secret")
    outside.chmod(0o600)
    (backing / "link").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        opened(operations, "link")
    with pytest.raises(OSError, match="symbolic links"):
        operations.truncate("/link", 0)
    with pytest.raises(OSError, match="not supported"):
        operations.chmod("/link", 0o666)
    assert outside.read_text() == "secret" and outside.stat().st_mode & 0o777 == 0o600


def test_a_write_that_cannot_be_taken_back_ends_the_pair(
    alone: tuple[Engine, Operations, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails, for reads as well: the peer has what is not here, and nobody would notice."""
    engine, operations, backing = alone
    (backing / "f").write_bytes(b"x" * 5000)
    handle = opened(operations, "f")
    operations.content.write(handle, 0, request(b"y" * 100), 0)  # its zone is recorded
    peer = Peer(strict=True)
    engine.stream = peer  # type: ignore[assignment]

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("safekit.disk.steps.data_write", broken)
        with pytest.raises(OSError, match="Input/output"):
            operations.content.write(handle, 0, request(b"y" * 100), 0)
        assert not peer.failed and peer.sent == [Op.WRITE, Op.WRITE, Op.TRUNCATE]
        patch.setattr("safekit.disk.steps.data_read", broken)
        with pytest.raises(OSError, match="Input/output"):
            operations.content.write(handle, 0, request(b"y" * 100), 0)
        assert "disk of the primary failed" in peer.failed
    operations.ended()


def test_users_who_open_without_end_leave_descriptors_for_us(
    alone: tuple[Engine, Operations, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one neither the loss of the peer could be recorded nor the peer connect."""
    engine, _, backing = alone
    monkeypatch.setattr("resource.getrlimit", lambda _: (2050, 4096))
    operations = Operations(engine, engine.roots[0])
    (backing / "f").touch()
    for _ in range(1025):
        opened(operations, "f")
    with pytest.raises(OSError, match="Too many open files in system"):
        opened(operations, "f")
    with pytest.raises(OSError, match="Too many open files in system"):
        operations.create("/g", 0o600, Info(os.O_RDWR))
    assert not (backing / "g").exists()
    operations.ended()

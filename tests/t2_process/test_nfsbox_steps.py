"""Every system call of the record and of the application of changes fails once, alone: nothing that was acknowledged is
lost, whoever asked is told (or the peer is told apart), and everything works again when the cause is gone."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nfsbox.fs import kernel, switch
from nfsbox.fs.operations import Operations
from nfsbox.pair.engine import Engine, Root, Settings
from nfsbox.pair.tracking import Tracker
from safekit import syscalls
from safekit.disk import steps
from safekit.disk.files import reserve, write_atomic
from safekit.rfs import journal
from safekit.rfs.changes import Mode
from safekit.rfs.exclusions import Exclusions
from safekit.rfs.tree import Tree
from safekit.rfs.wire import Op, Set, pack_attr
from tests.t2_process.applier_bench import Bench, frame, write
from tests.t2_process.fuse_info import Info

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR)
SHORT = -1
"""Not an error: half of what was to be written is."""
SHORTENED = ("data_write", "record_write", "record_allocate", "note_write", "file_write")
NAMELESS = (
    "open_beneath",
    "chmod_at",
    "exchange_at",
    "fallocate",
    "set_times",
    "birth_ns",
    "handle",
    "sync_filesystem",
)
LABELS = [*sorted(name for name, value in vars(steps).items() if callable(value) and name != "Path"), *NAMELESS]
ZONE = 4096
USER = 1234


class Fault:
    """One label fails once, with one error. `hit`: whether it was reached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, label: str) -> None:
        place = syscalls if label in NAMELESS else steps
        self._real = getattr(place, label)
        self._code: int | None = None
        self.hit = False
        monkeypatch.setattr(place, label, self._call)

    def arm(self, code: int) -> None:
        self._code, self.hit = code, False

    def disarm(self) -> None:
        self._code = None

    def _call(self, *arguments: Any, **options: Any) -> Any:
        code, self._code = self._code, None
        if code is None:
            return self._real(*arguments, **options)
        self.hit = True
        if code != SHORT:
            raise OSError(code, os.strerror(code))
        descriptor, data, *rest = arguments
        return self._real(descriptor, data[: max(1, len(data) // 2)], *rest)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("fuse.fuse_get_context", lambda: (USER, USER, 1))
    made = Server(tmp_path)
    yield made
    made.close()


class Server:
    """A primary that is alone, without a mount; what is asked of it is asked as the mount asks."""

    def __init__(self, base: Path) -> None:
        self.backing, self.directory = base / "backing", base / "rfs"
        self.backing.mkdir()
        self.directory.mkdir()
        self.tracker = Tracker(self.directory, ZONE)
        root = Root(0, bytes(base / "mount"), bytes(self.backing), Exclusions((), ()))
        self.engine = Engine((root,), self.tracker, Settings(zone_size=ZONE), lambda _: None)
        self.operations = Operations(self.engine, root)
        self.tracker.start(Mode.ALONE, None)
        self.engine.become_primary(paired=False)

    def made(self, name: str, content: bytes = b"old" * 3000) -> str:
        """A file of before; it is equal at the peer."""
        (self.backing / name).write_bytes(content)
        os.setxattr(self.backing / name, "user.known", b"1")
        return "/" + name

    def opened(self, path: str, flags: int = os.O_RDWR) -> int:
        info = Info(flags)
        self.operations.open(path, info)
        return info.fh

    def write(self, handle: int, data: bytes, offset: int = 0) -> int:
        buffer = bytearray(kernel.WRITE_DATA) + bytearray(data)
        return self.operations.content.write(handle, offset, memoryview(buffer), kernel.WRITE_KILL_SUIDGID)

    def recorded(self) -> set[bytes]:
        """The files that would be compared if this server ended now."""
        loaded = journal.load(self.directory)
        assert loaded.reliable, loaded.why
        return {path for _, path, *_ in journal.expand(loaded.changes, [Tree(os.fsencode(self.backing))])}

    def close(self) -> None:
        self.operations.ended()
        self.tracker.stop(clean=True)


Change = Callable[[Server, str], bytes | None]
"""Does one thing with names that begin with a word; the file of which the content is promised then, None for none."""


def _written(server: Server, word: str) -> bytes:
    handle = server.opened(server.made(word))
    assert server.write(handle, b"new" * 2000, 100) == 6000, "the application is told how much was written"
    server.operations.fsync(None, 0, handle)
    server.operations.fsync(None, 1, handle)
    return word.encode()


def _created(server: Server, word: str) -> bytes:
    info = Info(os.O_RDWR | os.O_CREAT)
    server.operations.create("/" + word, stat.S_IFREG | 0o4640, info)
    assert server.write(info.fh, b"new") == 3
    assert (server.backing / word).stat().st_uid == USER
    return word.encode()


def _truncated(server: Server, word: str) -> bytes:
    path = server.made(word)
    server.operations.truncate(path, 10)
    server.operations.truncate(path, 5, server.opened(path))
    server.opened(path, os.O_RDWR | os.O_TRUNC)
    return word.encode()


def _punched(server: Server, word: str) -> bytes:
    server.operations.content.allocate(server.opened(server.made(word)), 3, 0, ZONE)
    return word.encode()


def _privileged(server: Server, word: str) -> bytes:
    path = server.made(word)
    os.chmod(server.backing / word, 0o4755)
    assert server.write(server.opened(path), b"new") == 3
    assert not (server.backing / word).stat().st_mode & stat.S_ISUID
    return word.encode()


def _attributes(server: Server, word: str) -> None:
    path = server.made(word)
    server.operations.chmod(path, 0o600)
    server.operations.chown(path, 5, 6)
    server.operations.utimens(path, (1, 2))
    server.operations.setxattr(path, "user.more", b"value", 0)
    server.operations.removexattr(path, "user.known")
    assert server.operations.getxattr(path, "user.more") == b"value"
    found = (server.backing / word).stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid, found.st_mtime_ns) == (0o600, 5, 6, 2)
    assert server.operations.xattr_names(path.encode()) == [b"user.more"]


def _entries(server: Server, word: str) -> None:
    server.operations.mkdir(f"/{word}", 0o755)
    server.operations.symlink(f"/{word}/link", "target")
    server.operations.mknod(f"/{word}/fifo", stat.S_IFIFO | 0o600, 0)
    assert server.operations.readlink(f"/{word}/link") == "target"
    handle = server.operations.opendir(f"/{word}")
    try:
        assert {name for name, _, _ in server.operations.listing(handle)} == {b".", b"..", b"link", b"fifo"}
    finally:
        server.operations.releasedir(f"/{word}", handle)
    server.operations.unlink(f"/{word}/link")
    server.operations.unlink(f"/{word}/fifo")
    server.operations.rmdir(f"/{word}")
    assert server.operations.statfs("/")["f_blocks"]


def _renamed(server: Server, word: str) -> bytes:
    path = server.made(word + "old")
    assert server.write(server.opened(path), b"new") == 3
    server.operations.rename(path, f"/{word}new")
    return f"{word}new".encode()


def _linked(server: Server, word: str) -> bytes:
    server.operations.link(f"/{word}more", server.made(word))
    return f"{word}more".encode()


def _exchanged(server: Server, word: str) -> bytes:
    one, other = server.made(word + "1", b"1"), server.made(word + "2", b"2")
    server.operations.exchange(one.encode(), other.encode(), lambda change: change(), threading.Lock())
    assert (server.backing / f"{word}1").read_bytes() == b"2"
    return f"{word}1".encode()


def _hidden(server: Server, word: str) -> None:
    path = server.made(word)
    server.opened(path)
    server.operations.request = kernel.UNLINK, 0
    server.operations.rename(path, f"/.fuse_hidden{word}")
    server.operations.unlink(f"/.fuse_hidden{word}")


def _noted(server: Server, word: str) -> None:
    state = server.directory / "state"
    write_atomic(state, word.encode())
    reserve(state)
    assert state.read_bytes().rstrip(b"\n") == word.encode()


def _checkpoint(server: Server, word: str) -> None:
    server.operations.fsyncdir("/", 0, descriptor := server.operations.opendir("/"))
    server.operations.releasedir("/", descriptor)
    server.tracker.epoch()
    server.engine.sync_backing()


CHANGES: tuple[Change, ...] = (
    _written, _created, _truncated, _punched, _privileged, _attributes, _entries, _renamed, _linked, _exchanged,
    _hidden, _noted, _checkpoint,
)  # fmt: skip

_SECONDARY = "of the secondary"
NOT_MET = {
    "record_undo": "it only tidies up after another failure",
    "note_undo": "the same",
    "file_remove": "the same",
    "data_read": "it reads back what another failure has left at the peer",
    "reserve_open": "it is only asked for when the disk is full",
    "reserve_write": "the same",
    "tree_part": "the way of kernels without openat2",
    "tree_again": "the same",
    "tree_mode": "the way of kernels without fchmodat2",
    "birth_ns": "the way of file systems without handles",
    "lock_open": "a lock is taken before anything is served",
    "tree_list": "the names of a directory for reintegre",
    "mount_open": "only what is mounted is looked at",
    "record_remove": "a record goes with a checkpoint of the pair",
    "tree_settle": _SECONDARY,
    "tree_truncate": _SECONDARY,
    **{label: _SECONDARY for label in LABELS if label.startswith(("apply_", "commit_"))},
}
"""Labels that no change of this list meets, and why. Every other one is met, or the test is of no use."""

ABSORBED = {
    ("_privileged", "data_dropxattr"): "the file had no capability",
    ("_written", "data_dropxattr"): "the same",
    ("_created", "data_dropxattr"): "the same",
    ("_renamed", "data_dropxattr"): "the same",
}
"""Failures that nobody need be told of, and why."""


def codes(label: str) -> tuple[int, ...]:
    return (*ERRORS, SHORT) if label in SHORTENED else ERRORS


@pytest.mark.parametrize("label", LABELS)
def test_a_primary_tells_what_fails_and_records_what_it_promised(
    place: Server, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    fault = Fault(monkeypatch, label)
    met = False
    promised: set[bytes] = set()
    for change in CHANGES:
        for code in codes(label):
            word = f"{change.__name__[1:]}{code}".replace("-", "s")
            fault.arm(code)
            told, failed = 0, ""
            try:
                found = change(place, word)
            except OSError as error:
                told, found = error.errno or 0, None
            except AssertionError as error:
                failed, found = str(error), None
            fault.disarm()
            met = met or fault.hit
            if code == SHORT:
                # Half of a write may be told as such; of the record, it is written on.
                assert not told and (not failed or label == "data_write"), (change.__name__, told, failed)
            elif fault.hit and not told:
                reserved = change is _noted and label.startswith("file_") and code in (errno.ENOSPC, errno.EDQUOT)
                absorbed = reserved or (change.__name__, label) in ABSORBED
                assert absorbed and not failed, f"{change.__name__}: nobody was told {code} {failed}"
            else:
                assert not failed and told in (0, code), (change.__name__, code, told, failed)
            if found is not None:
                promised.add(found)
            again = change(place, word + "again")  # the cause is gone
            if again is not None:
                promised.add(again)
    assert promised <= place.recorded(), "acknowledged, and not recorded"
    changed = {
        entry.name.encode() for entry in place.backing.iterdir() if entry.is_file() and b"new" in entry.read_bytes()
    }
    assert changed <= place.recorded(), "changed, and not recorded"
    assert met != (label in NOT_MET), f"no change here meets {label}, or one does now"


def test_a_note_that_fails_is_no_part_of_the_next_one(place: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn one would be read together with what follows, and one file would stay for ever."""
    place.engine.place_holders.note(0, b".fuse_hidden1")

    def torn(descriptor: int, data: memoryview) -> int:
        os.write(descriptor, data[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(steps, "note_write", torn)
        with pytest.raises(OSError, match="No space"):
            place.engine.place_holders.note(0, b".fuse_hidden2")
    place.engine.place_holders.note(0, b".fuse_hidden3")
    assert (place.directory / "hidden").read_bytes() == b"0 .fuse_hidden1\x000 .fuse_hidden3\0"


def test_a_note_that_a_crash_has_torn_removes_no_file_of_the_users(place: Server) -> None:
    """What is left of `directory/.fuse_hidden1` can be the name of a file."""
    (place.backing / "direct").write_text("of the users")
    (place.backing / ".fuse_hidden1").write_text("of nobody")
    (place.directory / "hidden").write_bytes(b"0 .fuse_hidden1\x000 direct")
    assert switch.clean_hidden(place.directory, place.engine.roots) == 1
    assert [entry.name for entry in place.backing.iterdir()] == ["direct"]


# --- the secondary ----------------------------------------------------------------------------------------------


def attr(mode: int) -> bytes:
    return pack_attr(Set.MODE | Set.UID | Set.GID, mode, 7, 8, 3, 4)


FRAMES: dict[str, bytes] = {
    "create": frame(Op.CREATE, 1, b=0o600, body=attr(stat.S_IFREG | 0o4640) + b"made"),
    "open": frame(Op.OPEN, 2, body=b"f"),
    "write": write(2, 5, b"content"),
    "truncate": frame(Op.TRUNCATE, 2, 4),
    "fallocate": frame(Op.FALLOCATE, 2, 0, 9000),
    "setattr": frame(Op.SETATTR, 2, body=pack_attr(Set.MODE | Set.UID | Set.GID | Set.MTIME, 0o640, 7, 8, 3, 4)),
    "setxattr": frame(Op.SETXATTR, 2, body=b"user.a1", extra=6),
    "removexattr": frame(Op.REMOVEXATTR, 2, body=b"user.a"),
    "fsync": frame(Op.FSYNC, 2),
    "fdatasync": frame(Op.FSYNC, 2, 1),
    "mkdir": frame(Op.MKDIR, b=0o700, body=attr(stat.S_IFDIR | 0o750) + b"directory"),
    "mknod": frame(Op.MKNOD, b=stat.S_IFIFO | 0o600, body=attr(stat.S_IFIFO | 0o640) + b"fifo"),
    "symlink": frame(Op.SYMLINK, body=pack_attr(Set.UID | Set.GID, 0, 7, 8) + b"linkto", extra=4),
    "link": frame(Op.LINK, body=b"fmore", extra=1),
    "rename": frame(Op.RENAME, body=b"morerenamed", extra=4),
    "exchange": frame(Op.EXCHANGE, body=b"renamedother", extra=7),
    "psetattr": frame(Op.PSETATTR, body=pack_attr(Set.MODE | Set.MTIME, 0o600, 0, 0, 3, 4) + b"f"),
    "psetxattr": frame(Op.PSETXATTR, b=6, body=b"fuser.b2", extra=1),
    "premovexattr": frame(Op.PREMOVEXATTR, body=b"fuser.b", extra=1),
    "ptruncate": frame(Op.PTRUNCATE, a=2, body=b"f"),
    "fsyncdir": frame(Op.FSYNCDIR, body=b"directory"),
    "unlink": frame(Op.UNLINK, body=b"fifo"),
    "rmdir": frame(Op.RMDIR, body=b"directory"),
    "close": frame(Op.CLOSE, 2, a=77),
}


@dataclass
class Stream:
    """What the primary hears."""

    told: list[tuple[str, Any]] = field(default_factory=list)
    reason: str = ""


def served(base: Path, durable: bool) -> Stream:
    """A secondary applies all of it, each operation for itself; its directory is made anew."""
    backing = base / "data"
    backing.mkdir(parents=True)
    (backing / "f").write_bytes(b"x" * 100)
    (backing / "other").write_bytes(b"other")
    bench = Bench(backing)
    told = bench.run(*[[each] for each in FRAMES.values()], durable=durable)
    return Stream(told, bench.reason)


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("label", LABELS)
def test_a_secondary_that_cannot_apply_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, durable: bool
) -> None:
    """It never acknowledges what it could not do, and never goes on after it; the primary resynchronises it then."""
    fault = Fault(monkeypatch, label)
    assert [kind for kind, _ in served(tmp_path / "without", durable).told] == ["ack"] * len(FRAMES)
    for code in ERRORS if label != "apply_write" else (*ERRORS, SHORT):
        fault.arm(code)
        stream = served(tmp_path / str(code), durable)
        fault.disarm()
        errors = [about for kind, about in stream.told if kind == "error"]
        if not fault.hit or code == SHORT:
            assert not errors and len(stream.told) == len(FRAMES)
            continue
        assert [error[1] for error in errors] == [code], f"{label}: the primary was told {stream.told}"
        assert stream.told[-1][0] == "error", "it went on after what it could not do"
        assert "must resynchronise" in stream.reason

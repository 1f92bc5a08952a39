"""Two nfsbox processes over loopback with real mounts, and a plain resynchroniser, for the tests of nfsbox."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

from safekit.disk import placeholder
from safekit.rfs import wire
from tests.ports import free_port

DRIVER = Path(__file__).with_name("nfsbox_driver.py")
REPOSITORY = Path(__file__).resolve().parents[2]
SUFFIX = "_For_SafeKit_Replication"
KEY = b"k" * 32


class DriverError(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Node:
    """One nfsbox process with one replicated directory."""

    def __init__(self, base: Path, name: str, rfs: dict[str, Any], replicated: dict[str, Any]) -> None:
        self.name = name
        self.base = base / name
        self.port = free_port()
        self.mount = self.base / "data"
        self.backing = self.base / ("data" + SUFFIX)
        self.rfs_dir = self.base / "rfs"
        self._rfs = rfs
        self._replicated = replicated
        self.base.mkdir(parents=True, exist_ok=True)
        self.backing.mkdir(exist_ok=True)
        if not self.mount.is_symlink():
            self.mount.symlink_to(self.backing.name)
        self.start()

    def start(self) -> None:
        options = {
            "node": self.name,
            "directory": str(self.rfs_dir),
            "address": "127.0.0.1",
            "port": self.port,
            "rfs": self._rfs,
            "replicated": [{"dir": str(self.mount), **self._replicated}],
        }
        self.errors = open(self.base / "errors", "ab")  # noqa: SIM115 - closed with the node
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(DRIVER), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the driver of {self.name} ended: {(self.base / 'errors').read_text()}"
        answer = json.loads(line)
        if not answer["ok"]:
            raise DriverError(answer["code"], answer["text"])
        return answer.get("value")

    def send(self, op: str, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        self.process.stdin.flush()

    def __call__(self, op: str, **fields: Any) -> Any:
        self.send(op, **fields)
        return self._answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.close()
        libc = ctypes.CDLL(None)
        while libc.umount2(os.fsencode(self.mount), 2 | 8) == 0:
            pass
        if self.mount.is_dir() and not self.mount.is_symlink():
            placeholder.unseal(os.fsencode(self.mount))

    def log(self) -> str:
        return (self.base / "errors").read_text()


class Resync:
    """A connection to the resynchronisation service."""

    def __init__(self, primary: Node) -> None:
        self.channel, _ = wire.connect(("127.0.0.1", primary.port), "test", wire.Kind.RESYNC, [KEY], {"node": "B"})
        self.copied: dict[int, bytes] = {}  # one name of each file that was copied, by its inode

    def __call__(self, op: str, **fields: Any) -> dict[str, Any]:
        self.channel.send(wire.Op.REQUEST, body=msgpack.packb({"op": op, **fields}))
        answer = wire.decode_map(wire.expect(self.channel.receive_within(60), wire.Op.REPLY))
        if not answer["ok"]:
            raise OSError(answer["errno"], answer["text"])
        return answer

    def close(self) -> None:
        self.channel.close()


class Pair:
    """A is primary first, B secondary."""

    def __init__(self, base: Path, *, rfs: dict[str, Any] | None = None, replicated: dict[str, Any] | None = None):
        self.a = Node(base, "A", rfs or {}, replicated or {})
        self.b = Node(base, "B", rfs or {}, replicated or {})

    def up(self) -> Pair:
        self.a("prepare")
        self.a("primary")
        self.b("prepare")
        self.resynchronise()
        return self

    def connect(self) -> Resync:
        self.b("secondary", peer="A", address="127.0.0.1", port=self.a.port)
        self.b("mark", consistent=False)
        return Resync(self.a)

    def resynchronise(self) -> None:
        service = self.connect()
        copy_all(service, self.b)
        finish(service, self.b)

    def close(self) -> None:
        self.a.close()
        self.b.close()


def copy_all(service: Resync, target: Node, path: bytes = b"") -> None:
    """Everything, without looking at what is there: what reintegre avoids."""
    if path:
        service("push_entry", root=0, path=path)
    names = set()
    cursor: int | None = 0
    while cursor is not None:
        try:
            page = service("list", root=0, path=path, cursor=cursor)
        except OSError:
            return
        cursor = page["cursor"]
        for name, mode, *_ in page["entries"]:
            names.add(name)
            below = path + b"/" + name if path else name
            if stat.S_ISDIR(mode):
                copy_all(service, target, below)
            else:
                copy_file(service, below)
    here = os.fsencode(target.backing) + (b"/" + path if path else b"")
    try:
        present = os.listdir(here)
    except OSError:
        return
    for name in present:
        if name not in names:
            service("push_delete", root=0, path=path + b"/" + name if path else name)
    if path:
        service("push_entry", root=0, path=path)


def copy_file(service: Resync, path: bytes) -> None:
    try:
        entry = service("stat", root=0, path=path)["entry"]
    except OSError:  # it goes while we look, or its directory does
        entry = None
    other = service.copied.get(entry[7], path) if entry is not None and stat.S_ISREG(entry[1]) else path
    if other != path:
        try:
            if not service("push_link", root=0, existing=other, path=path)["open"]:
                return
        except OSError:
            pass  # the two names do not belong together any more
    try:
        pushed = service("push_entry", root=0, path=path)
    except (FileNotFoundError, NotADirectoryError):  # its directory was renamed: it is looked at again
        return
    if pushed["kind"] != "file":
        return
    service.copied[pushed["ino"]] = path
    try:
        offset = 0
        while offset < pushed["size"]:
            service("push_zone", root=0, path=path, off=offset, len=1 << 20)
            offset += 1 << 20
        service("finish", root=0, path=path)
    except (FileNotFoundError, NotADirectoryError):
        return


def finish(service: Resync, target: Node, rounds: int = 400) -> None:
    """Revisit until the primary agrees to the end."""
    for _ in range(rounds):
        if service("end", server=2)["done"]:
            target("mark", consistent=True)
            service.close()
            return
        for root, path, below in service("revisit")["paths"]:
            assert root == 0
            entry = service("stat", root=0, path=path)["entry"]
            if entry is None:
                with contextlib.suppress(FileNotFoundError):  # nor is what it stood in, on the secondary
                    service("push_delete", root=0, path=path)
            elif stat.S_ISDIR(entry[1]) and below:
                copy_all(service, target, path)
            else:
                copy_file(service, path)
    raise AssertionError("the resynchronisation does not end")


def tree(directory: Path) -> dict[bytes, tuple[Any, ...]]:
    """Everything that two servers must have alike."""
    base = os.fsencode(directory)
    found = {}
    for here, directories, files in os.walk(base):
        for name in [*directories, *files, b"."]:
            if name.startswith(b".fuse_hidden"):
                continue
            full = os.path.join(here, name)
            status = os.lstat(full)
            content: Any = None
            if stat.S_ISREG(status.st_mode):
                content = _digest(full)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(full)
            directory_entry = stat.S_ISDIR(status.st_mode)
            found[os.path.relpath(full, base)] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                0 if directory_entry else status.st_size,
                status.st_mtime_ns,
                0 if directory_entry else status.st_nlink,
                status.st_rdev,
                content,
                tuple(
                    sorted(
                        (n, os.getxattr(full, n, follow_symlinks=False))
                        for n in os.listxattr(full, follow_symlinks=False)
                    )
                ),
            )
    return found


def _digest(path: bytes) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as handle:
        end = os.fstat(handle.fileno()).st_size
        at = 0
        while at < end:
            try:
                at = os.lseek(handle.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            data = os.pread(handle.fileno(), 1 << 20, at)
            if not data:
                break
            if data.strip(b"\0"):
                digest.update(b"%d:" % at + data)
            at += len(data)
    return digest.hexdigest()


def differences(left: Path, right: Path) -> list[tuple[bytes, Any, Any]]:
    one, two = tree(left), tree(right)
    keys = sorted(one.keys() | two.keys())
    return [(key, one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)]


def assert_equal_soon(left: Path, right: Path, seconds: float = 3.0) -> None:
    """Frames that want no acknowledgement (times) may be 0.2 s on their way."""
    end = time.monotonic() + seconds
    while True:
        found = differences(left, right)
        if not found:
            return
        assert time.monotonic() < end, found[:10]
        time.sleep(0.1)

"""Operations of every kind on the primary's mount: the secondary ends up alike (R1, R3, R7)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.waiting import wait_until
from tests.t2_process.nfsbox_pair import Pair, assert_equal_soon
from tests.t2_process.unnamed import give_name

LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(
        tmp_path_factory.mktemp("nfsbox"),
        rfs={"acl": True},
        replicated={
            "read_only": True,
            "notreplicated_paths": ["local", "cache/private"],
            "notreplicated_regex": [".*\\.tmp"],
        },
    )
    try:
        yield made.up()
        assert made.a("notes") is not None
    finally:
        made.close()


@pytest.fixture
def m(pair: Pair) -> Iterator[Path]:
    """The primary's mount; equality, and an unbroken pair, are checked after each test."""
    yield pair.a.mount
    assert_equal_soon(pair.a.backing, pair.b.backing)
    assert pair.a("status")["session"] == "paired", pair.a("notes")


def test_names(m: Path) -> None:
    d = m / "names"
    d.mkdir()
    (d / "file").write_text("one")
    os.rename(d / "file", d / "renamed")
    (d / "sub").mkdir()
    os.rename(d / "renamed", d / "sub" / "moved")
    os.symlink("sub/moved", d / "link")
    os.link(d / "sub" / "moved", d / "hard")
    os.mkfifo(d / "fifo")
    sock = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(d)  # a socket's path is limited to 107 bytes
    try:
        sock.bind("socket")
    finally:
        os.chdir(here)
        sock.close()
    os.mknod(d / "null", 0o20666, os.makedev(1, 3))
    (d / "gone").mkdir()
    (d / "gone").rmdir()
    (d / "away").write_text("x")
    (d / "away").unlink()
    os.rename(d / "sub", d / "sub2")
    assert (d / "sub2" / "moved").read_text() == "one"
    assert sorted(os.listdir(d)) == ["fifo", "hard", "link", "null", "socket", "sub2"]


def test_non_utf8_and_long_names(m: Path) -> None:
    base = os.fsencode(m) + b"/bytes"
    os.mkdir(base)
    for name in (b"\xff\xfe", b"a b\nc", "é漢字".encode(), b"n" * 255):
        with open(base + b"/" + name, "wb") as handle:
            handle.write(name)
    assert set(os.listdir(base)) == {b"\xff\xfe", b"a b\nc", "é漢字".encode(), b"n" * 255}
    os.rename(base + b"/\xff\xfe", base + b"/\xfe\xff")


def test_attributes(m: Path) -> None:
    f = m / "attributes"
    f.write_bytes(b"x")
    os.chmod(f, 0o4751)
    assert os.stat(f).st_mode & 0o7777 == 0o4751
    os.chown(f, 1234, 4321)
    assert os.stat(f).st_mode & 0o7777 == 0o751  # a change of owner takes the set-id bit
    os.utime(f, ns=(1_111_111_111_111_111_111, 1_222_222_222_222_222_222))
    assert os.stat(f).st_mtime_ns == 1_222_222_222_222_222_222
    os.symlink("nowhere", m / "dangling")
    os.chown(m / "dangling", 7, 8, follow_symlinks=False)
    os.utime(m / "dangling", ns=(10**18, 10**18), follow_symlinks=False)
    os.chmod(f, 0o4755)
    with open(f, "ab") as handle:
        handle.write(b"by root: keeps it")
    assert os.stat(f).st_mode & 0o4000
    os.chmod(f, 0o4777)
    subprocess.run(
        ["setpriv", "--reuid=1001", "--regid=1001", "--clear-groups", "sh", "-c", f"echo hi >> {f}"],
        check=False,
    )
    d = m / "setgid"
    d.mkdir()
    os.chown(d, 0, 77)
    os.chmod(d, 0o2775)
    (d / "child").write_text("")
    (d / "sub").mkdir()
    assert os.stat(d / "child").st_gid == 77
    assert os.stat(d / "sub").st_mode & 0o2000


def test_extended_attributes_and_acl(m: Path) -> None:
    f = m / "xattr"
    f.write_text("x")
    os.setxattr(f, "user.one", b"1\0binary")
    os.setxattr(f, "user.two", b"2")
    os.removexattr(f, "user.two")
    os.setxattr(f, "trusted.t", b"t")
    assert os.listxattr(f) and os.getxattr(f, "user.one") == b"1\0binary"
    with pytest.raises(FileExistsError):
        os.setxattr(f, "user.one", b"again", os.XATTR_CREATE)
    subprocess.run(["setfacl", "-m", "u:1234:rw,g:55:r", str(f)], check=True)
    d = m / "acl"
    d.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", str(d)], check=True)
    (d / "inherits").write_text("x")
    (d / "sub").mkdir()
    assert (
        "user:1234:rwx"
        in subprocess.run(["getfacl", "-n", str(d / "sub")], check=True, capture_output=True, text=True).stdout
    )


def test_content(m: Path) -> None:
    f = m / "content"
    rng = random.Random(1)
    with open(f, "wb", buffering=0) as handle:
        for _ in range(200):
            handle.seek(rng.randrange(1 << 20))
            handle.write(rng.randbytes(rng.choice((1, 100, 4096, 70000))))
        handle.truncate(500_000)
        os.posix_fallocate(handle.fileno(), 0, 600_000)
        assert os.fstat(handle.fileno()).st_size == 600_000
        assert LIBC.fallocate(handle.fileno(), 3, ctypes.c_long(8192), ctypes.c_long(65536)) == 0
        os.fsync(handle.fileno())
    os.truncate(f, 400_000)
    with open(m / "large", "wb", buffering=0) as handle:
        for _ in range(4):
            assert handle.write(rng.randbytes(1 << 20)) == 1 << 20
        assert handle.write(rng.randbytes((1 << 20) - 4097)) > 0


def test_append_by_two(m: Path) -> None:
    f = m / "append"
    one = os.open(f, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    two = os.open(f, os.O_WRONLY | os.O_APPEND)
    for i in range(50):
        os.write(one, b"1%03d" % i)
        os.write(two, b"2%03d" % i)
    os.close(one)
    os.close(two)
    assert f.read_bytes() == b"".join(b"1%03d2%03d" % (i, i) for i in range(50))


def test_names_that_would_never_be_replicated_are_refused(m: Path) -> None:
    name = m / ".fuse_hidden0000000100000001"
    (m / "visible").touch()
    for make in (
        name.touch,
        name.mkdir,
        lambda: name.symlink_to("x"),
        lambda: os.link(m / "visible", name),
        lambda: os.mkfifo(name),
    ):
        with pytest.raises(PermissionError):
            make()


@pytest.mark.parametrize("kind", ["", ".tmp"])  # of the latter nothing is replicated
def test_append_through_two_names(m: Path, kind: str) -> None:
    log, other = m / f"log{kind}", m / f"other name{kind}"
    log.write_bytes(b"")
    os.link(log, other)
    one, two = (os.open(path, os.O_WRONLY | os.O_APPEND) for path in (log, other))
    for number in range(20):
        os.write(one, b"1%04d\n" % number)
        os.write(two, b"2%04d\n" % number)
    os.close(one)
    os.close(two)
    lines = log.read_bytes().split()
    log.unlink()
    other.unlink()
    # A new name gives the top a time that is replicated; to write to one that is there already would not.
    (m / f"top after log{kind or '.all'}.done").write_text("")
    assert sorted(lines) == sorted(b"%d%04d" % (name, number) for name in (1, 2) for number in range(20))


def test_what_was_written_through_another_name_is_read(m: Path) -> None:
    (m / "kept").write_bytes(b"before" * 1000)
    assert (m / "kept").read_bytes() == b"before" * 1000
    os.link(m / "kept", m / "for a moment")
    with open(m / "for a moment", "r+b", buffering=0) as handle:
        handle.write(b"behind" * 1000)
    os.unlink(m / "for a moment")
    assert (m / "kept").read_bytes() == b"behind" * 1000


def test_large_reads(m: Path) -> None:
    """Large answers are passed on through a pipe, their ends and small ones are copied: all give what was written."""
    content = random.Random(7).randbytes((3 << 20) + 777)
    path = m / "large"
    path.write_bytes(content)
    with open(m / "sparse", "wb") as sparse:
        sparse.truncate(2 << 20)
        sparse.seek(5 << 20)
        sparse.write(b"end")
    descriptor = os.open(path, os.O_RDWR)
    try:
        for offset, size in (
            (0, 4 << 20),
            (1, 2 << 20),
            (4097, 1 << 20),
            (65535, 65537),
            ((3 << 20) - 5, 4096),
            (4 << 20, 1 << 20),
            (12345, 100_000),
        ):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(descriptor, size, offset) == content[offset : offset + size], (offset, size)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pwrite(descriptor, b"changed", 1 << 20)
        changed = content[: 1 << 20] + b"changed" + content[(1 << 20) + 7 :]
        assert path.read_bytes() == changed
        os.ftruncate(descriptor, (1 << 20) + 3)
        assert path.read_bytes() == changed[: (1 << 20) + 3]
        os.ftruncate(descriptor, 2 << 20)
        assert path.read_bytes() == changed[: (1 << 20) + 3] + bytes((1 << 20) - 3)
    finally:
        os.close(descriptor)
    sparse_descriptor = os.open(m / "sparse", os.O_RDONLY)
    try:
        os.posix_fadvise(sparse_descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(sparse_descriptor, 6 << 20, 0) == bytes(5 << 20) + b"end"
    finally:
        os.close(sparse_descriptor)


def test_reads_while_a_file_changes_its_size(m: Path) -> None:
    """An answer whose end goes away while it is made is a shorter one, never an error or old data of another file."""
    path = m / "shrinking"
    path.write_bytes(b"x" * (2 << 20))
    program = (
        "import os, sys\nd = os.open(sys.argv[1], os.O_RDWR)\n"
        "for n in range(150):\n os.ftruncate(d, 300000 + n)\n os.pwrite(d, b'x' * (1 << 20), 0)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while writer.poll() is None:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            assert not os.pread(descriptor, 2 << 20, 0).strip(b"x\0")
    finally:
        os.close(descriptor)
        assert writer.wait(60) == 0


def test_sparse(m: Path, pair: Pair) -> None:
    f = m / "sparse"
    with open(f, "wb", buffering=0) as handle:
        handle.seek(5 << 30)
        handle.write(b"end")
        assert os.lseek(handle.fileno(), 0, os.SEEK_DATA) >= (5 << 30) - 4096
    assert os.stat(pair.b.backing / "sparse").st_blocks * 512 < 1 << 20
    assert os.stat(f).st_blocks * 512 < 1 << 20


def test_shared_mapping(m: Path) -> None:
    f = m / "mapped"
    f.write_bytes(b"a" * 16384)
    descriptor = os.open(f, os.O_RDWR)
    with mmap.mmap(descriptor, 16384) as mapping:
        mapping[4096:4100] = b"BBBB"
        mapping.flush()
        mapping[0:2] = b"CC"
    os.close(descriptor)
    os.sync()


def test_open_file_survives_rename_and_unlink(m: Path, pair: Pair) -> None:
    d = m / "open"
    d.mkdir()
    handle = open(d / "f", "wb", buffering=0)  # noqa: SIM115 - it must outlive its names
    handle.write(b"before")
    os.rename(d / "f", d / "g")
    os.rename(d, m / "open2")
    handle.write(b" after")
    assert (m / "open2" / "g").read_bytes() == b"before after"
    wait_until(lambda: (pair.b.backing / "open2" / "g").read_bytes() == b"before after")
    os.link(m / "open2" / "g", m / "open2" / "other")
    os.unlink(m / "open2" / "g")
    handle.write(b" unlinked")
    assert (m / "open2" / "other").read_bytes() == b"before after unlinked"
    os.unlink(m / "open2" / "other")
    handle.write(b" orphan")
    assert os.fstat(handle.fileno()).st_size == 28
    assert os.fstat(handle.fileno()).st_nlink == 0
    os.fchmod(handle.fileno(), 0o600)
    assert os.listdir(m / "open2") == []
    assert not [name for name in os.listdir(pair.b.backing / "open2") if name.startswith(".fuse_hidden")]
    handle.close()
    (m / "open2").rmdir()


def test_first_write_after_unlink_of_one_name(m: Path) -> None:
    (m / "n1").write_bytes(b"12345678")
    os.link(m / "n1", m / "n2")
    with open(m / "n1", "r+b", buffering=0) as handle:
        os.unlink(m / "n1")
        handle.write(b"late")
    assert (m / "n2").read_bytes() == b"late5678"


def test_rename_over_open_file(m: Path, pair: Pair) -> None:
    (m / "target").write_text("old")
    old = open(m / "target", "r+b", buffering=0)  # noqa: SIM115 - it must outlive its name
    for i in range(20):
        (m / "target.new").write_text(f"new {i}")
        os.rename(m / "target.new", m / "target")
        assert (pair.b.backing / "target").read_text() == f"new {i}"  # a rename is applied when it returns
    assert old.read() == b"old"
    old.write(b"nobody sees")
    old.close()
    wait_until(lambda: not [name for name in os.listdir(pair.a.backing) if name.startswith(".fuse_hidden")])


def test_rename_flags(m: Path) -> None:
    (m / "r1").write_text("1")
    (m / "r2").write_text("2")
    one, two = os.fsencode(m / "r1"), os.fsencode(m / "r2")
    assert LIBC.renameat2(-100, one, -100, two, 1) == -1
    assert ctypes.get_errno() == 17
    assert LIBC.renameat2(-100, one, -100, os.fsencode(m / "r3"), 1) == 0
    exchange(two, os.fsencode(m / "r3"))
    assert ((m / "r2").read_text(), (m / "r3").read_text()) == ("1", "2")
    assert LIBC.renameat2(-100, two, -100, os.fsencode(m / "r3"), 4) == -1  # a whiteout
    assert ctypes.get_errno() == 22


def exchange(one: bytes, other: bytes) -> None:
    """renameat2 with RENAME_EXCHANGE. Raises OSError."""
    if LIBC.renameat2(-100, one, -100, other, 2):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_exchange(m: Path, pair: Pair) -> None:
    """Files, directories and both, in one directory and in two, while they are open; then each is who it is said to
    be, for names, for handles and at the peer."""
    for name in ("x", "x/sub", "y"):
        (m / name).mkdir()
    (m / "x/f").write_text("f of x")
    (m / "y/g").write_text("g of y")
    (m / "x/sub/deep").write_text("deep")
    with (
        open(m / "x/f", "r+b", buffering=0) as f,
        open(m / "y/g", "r+b", buffering=0) as g,
        open(m / "x/sub/deep", "ab", buffering=0) as deep,
    ):
        exchange(os.fsencode(m / "x/f"), os.fsencode(m / "y/g"))
        f.write(b"F")
        g.write(b"G")
        assert (m / "x/f").read_text() == "G of y" and (m / "y/g").read_text() == "F of x"
        exchange(os.fsencode(m / "x/sub"), os.fsencode(m / "y/g"))  # a directory and a file
        deep.write(b"er")
        assert (m / "y/g/deep").read_text() == "deeper" and (m / "x/sub").read_text() == "F of x"
        f.write(b"!")
        exchange(os.fsencode(m / "x"), os.fsencode(m / "y"))
        assert (m / "y/sub").read_text() == "F!of x" and (m / "x/g/deep").read_text() == "deeper"
        deep.write(b"!")
    (m / "y/sub").write_text("by name")
    os.rename(m / "x/g", m / "x/h")
    assert sorted(os.listdir(m / "x")) == ["h"] and sorted(os.listdir(m / "y")) == ["f", "sub"]
    wait_until(lambda: (pair.b.backing / "x/h/deep").read_text() == "deeper!")
    with pytest.raises(FileNotFoundError):
        exchange(os.fsencode(m / "x/h"), os.fsencode(m / "x/none"))
    with pytest.raises(OSError, match="Invalid argument"):
        exchange(os.fsencode(m / "x"), os.fsencode(m / "x/h"))  # the one holds the other
    (m / "local").mkdir()
    (m / "local/l").write_text("not replicated")
    with pytest.raises(OSError, match="cross-device"):
        exchange(os.fsencode(m / "local/l"), os.fsencode(m / "y/f"))
    (m / "local/k").write_text("neither")
    exchange(os.fsencode(m / "local/l"), os.fsencode(m / "local/k"))
    assert (m / "local/l").read_text() == "neither"
    shutil.rmtree(m / "local")
    (m / "z").write_text("replicated: the time of the top follows")


def hidden_names(pair: Pair) -> list[Path]:
    return [*pair.a.backing.rglob(".fuse_hidden*"), *pair.b.backing.rglob(".fuse_hidden*")]


def test_files_without_a_name(m: Path, pair: Pair) -> None:
    d = m / "temporary"
    d.mkdir()
    before = d.stat().st_mtime_ns
    descriptor = os.open(d, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"only here")
    os.fchmod(descriptor, 0o600)
    assert (os.fstat(descriptor).st_nlink, os.fstat(descriptor).st_mode) == (0, 0o100600)
    assert os.pread(descriptor, 100, 0) == b"only here"
    assert not os.listdir(d) and d.stat().st_mtime_ns == before
    assert not list(pair.b.backing.rglob(".fuse_hidden*"))
    os.close(descriptor)
    wait_until(lambda: not hidden_names(pair))
    # a name appears with what is in it; writes and attributes of afterwards follow it
    descriptor = os.open(d, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"first ")
    os.setxattr(descriptor, "user.note", b"kept")
    give_name(descriptor, d / "named")
    assert (d / "named").read_bytes() == b"first " == (pair.b.backing / "temporary/named").read_bytes()
    os.write(descriptor, b"second ")
    os.fchmod(descriptor, 0o604)
    assert (pair.b.backing / "temporary/named").stat().st_mode == 0o100604
    os.rename(d / "named", d / "renamed")
    os.fchown(descriptor, 3, 4)
    os.write(descriptor, b"third")
    give_name(descriptor, d / "second name")
    assert os.fstat(descriptor).st_nlink == 2
    assert os.path.samefile(pair.b.backing / "temporary/renamed", pair.b.backing / "temporary/second name")
    os.unlink(d / "second name")
    with pytest.raises(FileExistsError):
        give_name(descriptor, d / "renamed")
    os.close(descriptor)
    assert (d / "renamed").read_bytes() == b"first second third"
    wait_until(lambda: not hidden_names(pair))
    assert (d / "renamed").stat().st_nlink == 1
    # a name that is lost again takes the file along
    descriptor = os.open(d, os.O_TMPFILE | os.O_RDWR, 0o640)
    give_name(descriptor, d / "lost")
    os.replace(d / "renamed", d / "lost")
    os.write(descriptor, b"into nothing")
    os.close(descriptor)
    assert (d / "lost").read_bytes() == b"first second third"
    wait_until(lambda: not hidden_names(pair))


def test_files_without_a_name_where_nothing_is_replicated(m: Path, pair: Pair) -> None:
    (m / "local").mkdir()
    with pytest.raises(OSError, match="Read-only"):
        os.open(pair.b.mount, os.O_TMPFILE | os.O_RDWR, 0o600)
    descriptor = os.open(m / "local", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(descriptor, b"local")
    give_name(descriptor, m / "local/l")
    assert os.fstat(descriptor).st_nlink == 1  # before that, the kernel holds it for a file that is gone
    with pytest.raises(OSError, match="cross-device"):
        give_name(descriptor, m / "replicated too")
    os.rename(m / "local/l", m / "replicated")
    os.write(descriptor, b" no longer")
    with pytest.raises(OSError, match="cross-device"):
        give_name(descriptor, m / "local/l")
    arrives(pair.b.backing / "replicated", "local no longer")
    os.rename(m / "replicated", m / "local/l")
    os.write(descriptor, b", again")
    os.rename(m / "local/l", m / "replicated")
    os.write(descriptor, b" no longer")
    os.close(descriptor)
    arrives(pair.b.backing / "replicated", "local no longer, again no longer")
    os.rmdir(m / "local")
    (m / "another").write_text("replicated: the time of the top follows")


def test_errors_change_nothing(m: Path) -> None:
    (m / "full").mkdir()
    (m / "full" / "x").write_text("x")
    with pytest.raises(OSError, match="not empty"):
        (m / "full").rmdir()
    with pytest.raises(FileExistsError):
        (m / "full").mkdir()
    with pytest.raises(FileNotFoundError):
        os.rename(m / "missing", m / "y")
    with pytest.raises(NotADirectoryError):
        os.mkdir(m / "full" / "x" / "y")
    with pytest.raises(FileExistsError):
        os.open(m / "full" / "x", os.O_CREAT | os.O_EXCL)


def test_many_entries(m: Path) -> None:
    d = m / "many"
    d.mkdir()
    for i in range(1500):
        os.close(os.open(d / f"f{i}", os.O_CREAT | os.O_WRONLY))
    assert len(os.listdir(d)) == 1500
    for entry in os.scandir(d):
        os.unlink(entry.path)
    assert os.listdir(d) == []


def test_locks(m: Path) -> None:
    f = m / "lock"
    f.write_text("")
    with open(f) as one, open(f) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_owner_is_the_caller(m: Path) -> None:
    d = m / "public"
    d.mkdir()
    os.chmod(d, 0o777)
    os.chmod(m, 0o755)
    subprocess.run(
        [
            "setpriv",
            "--reuid=1000",
            "--regid=1000",
            "--clear-groups",
            "sh",
            "-c",
            "umask 027; echo x > own; mkdir dir; ln -s a link; mkfifo fifo",
        ],
        check=True,
        cwd=d,
    )
    for name in ("own", "dir", "link", "fifo"):
        assert os.lstat(d / name).st_uid == 1000
    assert os.stat(d / "own").st_mode & 0o777 == 0o640


def test_secondary_refuses_changes(m: Path, pair: Pair) -> None:
    (m / "protected").write_text("x")
    for change in (
        lambda: (pair.b.mount / "new").write_text("x"),
        lambda: (pair.b.mount / "protected").unlink(),
        lambda: os.chmod(pair.b.mount / "protected", 0o777),
        lambda: os.rename(pair.b.mount / "protected", pair.b.mount / "other"),
        lambda: os.truncate(pair.b.mount / "protected", 0),
    ):
        with pytest.raises(OSError, match="Read-only"):
            change()
    assert (pair.b.mount / "protected").read_text() == "x"


def test_secondary_shows_the_latest(m: Path, pair: Pair) -> None:
    for i in range(20):
        (m / "seen").write_text(f"value {i}" * (i + 1))
        text = f"value {i}" * (i + 1)
        wait_until(lambda text=text: (pair.b.mount / "seen").read_text() == text, 2)
    os.unlink(m / "seen")
    assert not (pair.b.mount / "seen").exists()


def test_random_program(m: Path) -> None:
    """A few hundred random operations by a seeded program."""
    rng = random.Random(7)
    d = m / "random"
    d.mkdir()
    handles: list[int] = []
    names = [d / f"n{i}" for i in range(12)]
    for _ in range(500):
        one, two = rng.choice(names), rng.choice(names)
        with contextlib.suppress(OSError):
            match rng.randrange(12):
                case 0 | 1:
                    handles.append(os.open(one, os.O_RDWR | os.O_CREAT))
                case 2 | 3 | 4:
                    if handles:
                        os.pwrite(rng.choice(handles), rng.randbytes(rng.randrange(1, 9000)), rng.randrange(60000))
                case 5:
                    os.rename(one, two)
                case 6:
                    os.unlink(one)
                case 7:
                    os.link(one, two)
                case 8:
                    os.truncate(one, rng.randrange(50000))
                case 9:
                    if handles:
                        os.close(handles.pop(rng.randrange(len(handles))))
                case 10:
                    os.chmod(one, rng.randrange(0o1000))
                case 11:
                    if handles:
                        os.ftruncate(rng.choice(handles), rng.randrange(50000))
    for descriptor in handles:
        os.close(descriptor)


def test_not_replicated_stays_local(m: Path, pair: Pair) -> None:
    other = pair.b.backing
    (m / "local").mkdir()
    (m / "local" / "f").write_text("x")
    (m / "a.tmp").write_text("x")
    (m / "a.tmp.bak").write_text("y")
    (m / "cache").mkdir()
    (m / "cache" / "private").write_text("x")
    (m / "cache" / "public").write_text("x")
    wait_until(lambda: (other / "a.tmp.bak").read_text() == "y")
    assert sorted(os.listdir(other / "cache")) == ["public"]
    assert not (other / "local").exists() and not (other / "a.tmp").exists()
    # Across the border: what comes out is sent whole, what goes in is removed there.
    os.rename(m / "a.tmp", m / "came")
    assert (other / "came").read_text() == "x"
    os.rename(m / "came", m / "b.tmp")
    assert not (other / "came").exists()
    (m / "local" / "tree").mkdir()
    (m / "local" / "tree" / "deep").write_bytes(b"z" * 300_000)
    os.rename(m / "local" / "tree", m / "tree")
    assert (other / "tree" / "deep").read_bytes() == b"z" * 300_000
    # The secondary may use its own local part.
    (pair.b.mount / "c.tmp").write_text("mine")
    assert not (pair.a.backing / "c.tmp").exists()
    for path in (pair.b.mount / "c.tmp", m / "b.tmp", m / "local" / "f"):
        path.unlink()
    (m / "local").rmdir()
    shutil.rmtree(m / "cache")
    (m / "last").write_text("gives the directories one time again")


def arrives(path: Path, text: str) -> None:
    """What is acknowledged is in the secondary's hands, and in its file a moment later."""
    wait_until(lambda: path.read_text() == text)


def test_an_open_file_crosses_the_border(m: Path, pair: Pair) -> None:
    """What is written after a rename goes where the file is then."""
    other = pair.b.backing
    with open(m / "moving.tmp", "w") as handle:
        handle.write("before")
        handle.flush()
        os.rename(m / "moving.tmp", m / "moving")
        handle.write(", behind")
        handle.flush()
        arrives(other / "moving", "before, behind")
        os.ftruncate(handle.fileno(), 6)
        arrives(other / "moving", "before")
        os.rename(m / "moving", m / "y.tmp")
        handle.write(", local")
        handle.flush()
    assert not (other / "moving").exists() and not (other / "y.tmp").exists()
    (m / "y.tmp").unlink()
    (m / "above.tmp").mkdir()
    with open(m / "above.tmp/deep", "w") as handle:
        os.rename(m / "above.tmp", m / "above")
        handle.write("deep")
        handle.flush()
        arrives(other / "above/deep", "deep")


def test_no_file_is_on_both_sides_of_the_border(m: Path, pair: Pair) -> None:
    """What is written through the one name, the peer would not get under the other one."""
    (m / "local").mkdir()
    (m / "f").write_text("old")
    (m / "local/g").write_text("old")
    for one, another in (("f", "local/f"), ("local/g", "g")):
        with pytest.raises(OSError) as caught:
            os.link(m / one, m / another)
        assert caught.value.errno == errno.EXDEV
    os.link(m / "local/g", m / "local/h")
    os.link(pair.a.backing / "f", pair.a.backing / "local/f")  # made while nobody looked
    with open(m / "local/f"), open(m / "f", "r+") as handle:
        handle.write("new")
        handle.flush()
        arrives(pair.b.backing / "f", "new")
    for name in ("f", "g", "h"):
        (m / "local" / name).unlink()
    (m / "local").rmdir()


def test_a_directory_crosses_the_border_whole_or_not_at_all(m: Path, pair: Pair) -> None:
    other = pair.b.backing
    (m / "w.tmp").mkdir()
    (m / "w.tmp/one").write_bytes(b"\0" * 200_000 + b"tail")
    os.link(m / "w.tmp/one", m / "w.tmp/two")
    (m / "w.tmp/own.tmp").write_text("stays local")
    with open(m / "w.tmp/one", "r+") as one, open(m / "w.tmp/own.tmp", "w") as own, open(m / "w.tmp/gone", "w") as gone:
        os.unlink(m / "w.tmp/gone")
        os.rename(m / "w.tmp", m / "w")
        for handle in (one, own, gone):
            handle.write("changed")
            handle.flush()
        assert os.path.samefile(other / "w/one", other / "w/two"), "links stay links"
        wait_until(lambda: (other / "w/two").read_bytes() == (m / "w/two").read_bytes())
        assert sorted(os.listdir(other / "w")) == ["one", "two"]
        os.link(m / "w/one", m / "outside")
        with pytest.raises(OSError, match="cross-device"):
            os.rename(m / "w", m / "w.tmp")
        (m / "outside").unlink()
        os.rename(m / "w", m / "w.tmp")
        one.write("here only")
    assert not (other / "w").exists()
    shutil.rmtree(m / "w.tmp")
    # What stays local depends on the directory: nothing of it gets over by a rename of that.
    (m / "cache/private").mkdir(parents=True)
    (m / "cache/private/p").write_text("x")
    for old, new in (("cache", "elsewhere"), ("w.tmp", "cache/w")):
        (m / "w.tmp/private").mkdir(parents=True, exist_ok=True)
        if old == "cache":
            with pytest.raises(OSError, match="cross-device"):
                os.rename(m / old, m / new)
        else:
            os.rename(m / old, m / new)
    (m / "ready/private").mkdir(parents=True)
    shutil.rmtree(m / "cache")
    with pytest.raises(OSError, match="cross-device"):
        os.rename(m / "ready", m / "cache")
    shutil.rmtree(m / "ready")


def test_what_is_local_at_the_secondary_goes_with_its_directory(m: Path, pair: Pair) -> None:
    other = pair.b.mount
    for name in ("one", "two", "three", "cache"):
        (m / name).mkdir()
        (other / name / "own.tmp").write_text("mine")
    (other / "cache/private").write_text("mine")
    (m / "one").rmdir()
    os.rename(m / "three", m / "two")
    arrives(pair.b.backing / "two/own.tmp", "mine")
    os.rename(m / "cache", m / "elsewhere")  # nothing here gets over the border by that
    assert sorted(os.listdir(pair.b.backing / "elsewhere")) == ["own.tmp"]
    (m / "two").rmdir()
    (m / "elsewhere").rmdir()


def test_a_link_over_the_border_made_before_is_replicated(m: Path, pair: Pair) -> None:
    """Where an earlier release, or another configuration, allowed it."""
    (m / "local").mkdir()
    (m / "kept").write_text("old")
    os.link(pair.a.backing / "kept", pair.a.backing / "local/kept")
    with open(m / "local/kept", "r+") as handle:
        handle.write("new")
    arrives(pair.b.backing / "kept", "new")
    os.truncate(m / "local/kept", 1)
    os.chmod(m / "local/kept", 0o611)
    arrives(pair.b.backing / "kept", "n")
    assert (pair.b.backing / "kept").stat().st_mode & 0o777 == 0o611
    shutil.rmtree(m / "local")
    (m / "kept").unlink()


def test_mapped_memory_crosses_the_border(m: Path, pair: Pair) -> None:
    (m / "map.tmp").write_bytes(b"." * 8192)
    with open(m / "map.tmp", "r+b") as handle, mmap.mmap(handle.fileno(), 8192) as memory:
        memory[0:5] = b"first"
        os.rename(m / "map.tmp", m / "map")
        memory[5000:5006] = b"second"
        memory.flush()
        wait_until(lambda: (pair.b.backing / "map").read_bytes() == (m / "map").read_bytes())
        found = (pair.b.backing / "map").read_bytes()
        assert found[:5] == b"first" and found[5000:5006] == b"second"
        os.rename(m / "map", m / "map.tmp")
        memory[0:5] = b"third"
    assert not (pair.b.backing / "map").exists()
    (m / "map.tmp").unlink()
    (m / "map").write_text("the top has a time again")


def names_of_one_file(directory: Path) -> list[object]:
    """What is seen through each name, at once after each change through another one."""
    seen: list[object] = []
    makers = {
        "file": lambda path: path.touch(),
        "fifo": os.mkfifo,
        "character": lambda path: os.mknod(path, 0o20644, os.makedev(1, 3)),
        "block": lambda path: os.mknod(path, 0o60644, os.makedev(1, 3)),
        "socket": lambda path: os.mknod(path, 0o140644),
        "link": lambda path: os.symlink("target", path),
    }
    directory.mkdir()
    names = [directory / f"n{number}" for number in range(5)]
    for kind, make in makers.items():
        make(names[0])
        inode = os.lstat(names[0]).st_ino

        def look(kind: str = kind, inode: int = inode) -> None:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(name)
                    told = (status.st_nlink, status.st_mode, status.st_uid, status.st_ino == inode)
                    seen.append((kind, name.name, told))

        look()
        os.link(names[0], names[1], follow_symlinks=False)
        look()
        os.link(names[1], names[2], follow_symlinks=False)
        look()
        if kind != "link":
            os.chmod(names[1], 0o201)
            look()
        os.chown(names[2], 65533, 65533, follow_symlinks=False)
        look()
        os.unlink(names[0])
        look()
        os.rename(names[1], names[3])
        os.utime(names[2], (7, 7), follow_symlinks=False)
        seen.append(os.lstat(names[3]).st_mtime)
        make(names[4])
        os.rename(names[3], names[4])
        look()
        os.rename(names[2], names[4])  # the same file: nothing happens
        look()
        os.unlink(names[2])
        look()
        os.unlink(names[4])
    # names that are removed while they are open
    (directory / "a").write_text("x")
    os.link(directory / "a", directory / "b")
    with open(directory / "a") as a, open(directory / "b") as b, open(directory / "b") as c:
        for name in ("a", "b"):
            (directory / name).unlink()
            seen.append([os.fstat(handle.fileno()).st_nlink for handle in (a, b, c)])
    return seen


def test_what_is_seen_through_another_name_is_as_on_a_plain_directory(m: Path, tmp_path: Path) -> None:
    assert names_of_one_file(m / "one file") == names_of_one_file(tmp_path / "one file")


def test_sqlite(m: Path) -> None:
    program = (
        "import sqlite3, sys\n"
        "for mode in ('wal', 'delete'):\n"
        "    c = sqlite3.connect(sys.argv[1] + mode, isolation_level=None)\n"
        "    c.execute(f'pragma journal_mode={mode}'); c.execute('pragma synchronous=full')\n"
        "    c.execute('create table t(id integer primary key, v text)')\n"
        "    for i in range(60): c.execute('insert into t(v) values(?)', ('x' * i * 20,))\n"
        "    assert c.execute('pragma integrity_check').fetchone()[0] == 'ok'\n"
        "    c.close()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(m / "db.")], check=True, timeout=60)

"""Contents: writing, appending, truncating, holes, mapping, locks, synchronising."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
from pathlib import Path

from tests.posix.exerciser import Recorder, case

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
KEEP_SIZE, PUNCH, ZERO = 1, 3, 16


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@case
def writing(r: Recorder) -> None:
    fd = os.open(r.path("a"), os.O_RDWR | os.O_CREAT)
    r.do("write", os.write, fd, b"hello")
    r.do("pwrite", os.pwrite, fd, b"HELLO", 10)
    r.note("gap reads as zeros", os.pread(fd, 100, 0).decode("latin-1"))
    r.do("read at end", os.pread, fd, 10, 1000)
    r.do("nothing", os.write, fd, b"")
    r.do("vector", os.pwritev, fd, [b"x" * 10, b"y" * 10], 100)
    os.close(fd)
    r.stat("size", "a")
    fd = os.open(r.path("a"), os.O_RDONLY)
    r.do("write to a reader", os.write, fd, b"x")
    os.close(fd)
    fd = os.open(r.path("a"), os.O_WRONLY)
    r.do("read from a writer", os.read, fd, 1)
    os.close(fd)
    big = bytes(range(256)) * 20000
    r.create("big", big)
    with open(r.path("big"), "rb") as handle:
        r.note("5 MB come back", handle.read() == big)
    fd = os.open(r.path("big"), os.O_RDWR)
    for offset in (1, 4095, 131071, 1 << 20, 3_000_001):
        os.pwrite(fd, b"<<%d>>" % offset, offset)
    r.note("unaligned", [os.pread(fd, 12, offset - 2).decode("latin-1") for offset in (4095, 131071, 1 << 20)])
    os.close(fd)


@case
def appending(r: Recorder) -> None:
    one = os.open(r.path("a"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    two = os.open(r.path("a"), os.O_WRONLY | os.O_APPEND)
    for number in range(5):
        os.write(one, b"1%d " % number)
        os.write(two, b"2%d " % number)
    os.lseek(one, 0, os.SEEK_SET)
    os.write(one, b"end")
    os.close(one)
    os.close(two)
    r.read("in order", "a")
    fd = os.open(r.path("b"), os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"0123456789")
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"X")
    os.close(fd)
    r.read("append set later", "b")


@case
def parallel_appends(r: Recorder) -> None:
    def body(letter: bytes) -> None:
        fd = os.open(r.path("log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for _ in range(100):
            os.write(fd, letter * 99 + b"\n")
        os.close(fd)

    threads = [threading.Thread(target=body, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(r.path("log"), "rb") as handle:
        lines = handle.read().splitlines()
    r.note("lines", len(lines))
    r.note("whole", all(len(line) == 99 and len(set(line)) == 1 for line in lines))


@case
def truncating(r: Recorder) -> None:
    r.create("a", b"0123456789")
    r.do("shorter", os.truncate, r.path("a"), 4)
    r.read("content", "a")
    r.do("longer", os.truncate, r.path("a"), 8)
    r.read("zeros", "a")
    r.do("negative", os.truncate, r.path("a"), -1)
    r.do("missing", os.truncate, r.path("none"), 0)
    r.do("directory", os.truncate, r.base, 0)
    fd = os.open(r.path("a"), os.O_RDWR)
    r.do("by descriptor", os.ftruncate, fd, 2)
    r.do("far", os.ftruncate, fd, 1 << 40)
    r.note("size", os.fstat(fd).st_size)
    r.do("back", os.ftruncate, fd, 0)
    os.close(fd)
    fd = os.open(r.path("a"), os.O_RDONLY)
    r.do("by a reader", os.ftruncate, fd, 0)
    os.close(fd)
    r.create("b", b"x" * 100)
    fd = os.open(r.path("b"), os.O_RDWR)
    os.truncate(r.path("b"), 10)
    r.note("seen by the open descriptor", os.fstat(fd).st_size)
    r.note("and read", len(os.pread(fd, 100, 0)))
    os.close(fd)


@case
def holes(r: Recorder) -> None:
    fd = os.open(r.path("s"), os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 10 << 20)
    r.note("size", os.fstat(fd).st_size)
    r.note("is sparse", os.fstat(fd).st_blocks * 512 < 1 << 20)
    r.note("hole reads as zeros", os.pread(fd, 4096, 1 << 20) == bytes(4096))
    r.do("data", lambda: os.lseek(fd, 0, os.SEEK_DATA) >= (10 << 20) - (1 << 16))
    r.do("hole", os.lseek, fd, 0, os.SEEK_HOLE)
    r.do("data behind the end", os.lseek, fd, 11 << 20, os.SEEK_DATA)
    r.do("allocate", fallocate, fd, 0, 0, 1 << 20)
    r.note("allocated reads as zeros", os.pread(fd, 100, 5) == bytes(100))
    os.pwrite(fd, b"x" * 8192, 0)
    r.do("punch", fallocate, fd, PUNCH, 0, 4096)
    r.note("punched", os.pread(fd, 4096, 0) == bytes(4096) and os.pread(fd, 10, 4096) == b"x" * 10)
    r.do("keep size", fallocate, fd, KEEP_SIZE, 20 << 20, 4096)
    r.note("kept", os.fstat(fd).st_size)
    r.do("extend", fallocate, fd, 0, 12 << 20, 4096)
    r.note("extended", os.fstat(fd).st_size)
    r.do("length nothing", fallocate, fd, 0, 0, 0)
    os.close(fd)
    fd = os.open(r.path("s"), os.O_RDONLY)
    r.do("by a reader", fallocate, fd, 0, 0, 10)
    os.close(fd)


@case
def mapping(r: Recorder) -> None:
    r.create("m", b"a" * 8192)
    fd = os.open(r.path("m"), os.O_RDWR)
    with mmap.mmap(fd, 8192) as view:
        r.note("read", view[:3].decode())
        view[100:105] = b"HELLO"
        view.flush()
        r.note("seen by read", os.pread(fd, 5, 100).decode())
        os.pwrite(fd, b"WORLD", 5000)
        r.note("seen in the map", view[5000:5005].decode())
    os.close(fd)
    r.do("after close", lambda: Path(r.path("m")).read_bytes()[100:105].decode())
    fd = os.open(r.path("m"), os.O_RDONLY)
    with mmap.mmap(fd, 8192, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as view:
        r.note("private", view[100:105].decode())
    os.close(fd)
    fd = os.open(r.path("m"), os.O_RDWR)
    view = mmap.mmap(fd, 8192)
    os.close(fd)
    os.rename(r.path("m"), r.path("n"))
    view[0:4] = b"late"
    view.close()
    r.do("written through a map after close and rename", lambda: Path(r.path("n")).read_bytes()[:4].decode())


@case
def synchronising(r: Recorder) -> None:
    fd = os.open(r.path("f"), os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x")
    r.do("fsync", os.fsync, fd)
    r.do("fdatasync", os.fdatasync, fd)
    os.close(fd)
    fd = os.open(r.base, os.O_RDONLY)
    r.do("fsync of a directory", os.fsync, fd)
    os.close(fd)
    for name in ("O_SYNC", "O_DSYNC"):
        fd = os.open(r.path("f"), os.O_WRONLY | getattr(os, name))
        r.do(f"write with {name}", os.write, fd, b"y" * 5000)
        os.close(fd)
    fd = os.open(r.path("f"), os.O_RDONLY)
    r.do("fsync by a reader", os.fsync, fd)
    os.close(fd)


@case
def locking(r: Recorder) -> None:
    r.create("l")
    one, two = os.open(r.path("l"), os.O_RDWR), os.open(r.path("l"), os.O_RDWR)
    r.do("flock", fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    r.do("taken", fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(one, fcntl.LOCK_UN)
    r.do("free again", fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(two)
    r.do("posix lock", fcntl.lockf, one, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
    child = os.fork()
    if not child:
        status = 1
        try:
            fd = os.open(r.path("l"), os.O_RDWR)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
            except OSError:
                status = 7
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)
            status += 1
        finally:
            os._exit(status)
    r.note("overlapping refused, other range given", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.close(one)


@case
def many_open_files(r: Recorder) -> None:
    fds = [os.open(r.path(f"f{n}"), os.O_RDWR | os.O_CREAT) for n in range(300)]
    for number, fd in enumerate(fds):
        os.pwrite(fd, b"%d" % number, 0)
    r.note("contents", all(os.pread(fd, 10, 0) == b"%d" % n for n, fd in enumerate(fds)))
    for number, fd in enumerate(fds):
        os.unlink(r.path(f"f{number}"))
        os.pwrite(fd, b"gone", 0)
    r.note("after unlink", all(os.pread(fd, 4, 0) == b"gone" for fd in fds))
    for fd in fds:
        os.close(fd)
    r.names("empty")


@case
def two_descriptors(r: Recorder) -> None:
    writer, reader = os.open(r.path("f"), os.O_WRONLY | os.O_CREAT), os.open(r.path("f"), os.O_RDONLY)
    os.write(writer, b"first")
    r.note("seen at once", os.pread(reader, 100, 0).decode())
    other = os.dup(writer)
    os.write(other, b" second")
    os.close(writer)
    os.write(other, b" third")
    os.close(other)
    r.note("duplicates share the offset", os.pread(reader, 100, 0).decode())
    os.close(reader)
    fd = os.open(r.path("f"), os.O_RDWR | os.O_TRUNC)
    r.note("size after O_TRUNC", os.fstat(fd).st_size)
    os.close(fd)
    fd = os.open(r.path("x"), os.O_RDWR | os.O_CREAT, 0o000)
    r.do("write to a file made without rights", os.write, fd, b"mine")
    os.close(fd)
    fd = os.open(r.base, os.O_RDWR | os.O_TMPFILE, 0o640)
    os.write(fd, b"no name")
    r.note("links of a temporary file", os.fstat(fd).st_nlink)
    r.do("name for a temporary file", os.link, f"/proc/self/fd/{fd}", r.path("t"), src_dir_fd=fd)
    os.write(fd, b" yet")
    os.close(fd)
    r.read("temporary file", "t")


@case
def direct(r: Recorder) -> None:
    fd = os.open(r.path("f"), os.O_RDWR | os.O_CREAT)
    page = mmap.mmap(-1, 8192)
    page.write(b"d" * 8192)
    os.close(fd)
    fd = os.open(r.path("f"), os.O_RDWR | os.O_DIRECT)
    r.do("direct write", os.pwrite, fd, page, 0)
    os.close(fd)
    r.do("read normally", lambda: Path(r.path("f")).read_bytes() == b"d" * 8192)

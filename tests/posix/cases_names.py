"""Names: creating, linking, renaming, removing, reading directories."""

from __future__ import annotations

import ctypes
import os
import stat

from tests.posix.exerciser import Recorder, case

libc = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2


def renameat2(old: str, new: str, flags: int) -> None:
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@case
def creating(r: Recorder) -> None:
    r.do("create", os.close, os.open(r.path("a"), os.O_CREAT | os.O_WRONLY, 0o640))
    r.stat("created", "a")
    r.do("exclusive on existing", os.open, r.path("a"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    r.do("open missing", os.open, r.path("missing"), os.O_RDONLY)
    r.do("create in missing directory", os.open, r.path("no/file"), os.O_CREAT | os.O_WRONLY)
    r.do("create below a file", os.open, r.path("a/b"), os.O_CREAT | os.O_WRONLY)
    r.do("open directory for writing", os.open, r.base, os.O_WRONLY)
    r.do("file as directory", os.open, r.path("a"), os.O_RDONLY | os.O_DIRECTORY)
    os.symlink("target", r.path("link"))
    r.do("exclusive on dangling link", os.open, r.path("link"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    r.do("no follow", os.open, r.path("link"), os.O_RDONLY | os.O_NOFOLLOW)
    fd = r.do("create through dangling link", os.open, r.path("link"), os.O_CREAT | os.O_WRONLY)
    os.close(fd)
    r.names("names")
    os.umask(0o077)
    os.close(os.open(r.path("masked"), os.O_CREAT | os.O_WRONLY, 0o777))
    os.umask(0o022)
    r.stat("umask", "masked")
    r.create("full", b"content")
    os.close(os.open(r.path("full"), os.O_WRONLY | os.O_TRUNC))
    r.stat("truncated by open", "full")


@case
def directories(r: Recorder) -> None:
    r.do("mkdir", os.mkdir, r.path("d"), 0o750)
    r.stat("made", "d")
    r.do("again", os.mkdir, r.path("d"))
    r.do("in missing", os.mkdir, r.path("x/y"))
    r.create("d/f")
    r.do("not empty", os.rmdir, r.path("d"))
    r.do("unlink a directory", os.unlink, r.path("d"))
    r.do("rmdir a file", os.rmdir, r.path("d/f"))
    os.unlink(r.path("d/f"))
    r.do("rmdir", os.rmdir, r.path("d"))
    r.do("rmdir missing", os.rmdir, r.path("d"))
    r.do("rmdir dot", os.rmdir, r.path("."))
    os.mkdir(r.path("sg"))
    os.chown(r.path("sg"), 0, 4242)
    os.chmod(r.path("sg"), 0o2775)
    os.mkdir(r.path("sg/below"))
    r.create("sg/file")
    r.stat("setgid directory gives group and bit", "sg/below")
    r.stat("setgid directory gives group", "sg/file")
    r.note("links of a directory", os.stat(r.path("sg")).st_nlink in (1, 3))


@case
def long_names(r: Recorder) -> None:
    longest = "n" * 255
    r.do("255", os.close, os.open(r.path(longest), os.O_CREAT | os.O_WRONLY))
    r.do("256", os.open, r.path(longest + "n"), os.O_CREAT | os.O_WRONLY)
    r.do("mkdir 256", os.mkdir, r.path(longest + "n"))
    r.do("stat 256", os.stat, r.path(longest + "n"))
    r.do("path too long", os.stat, r.path("/".join(["n" * 250] * 20)))
    deep = r.base
    for _ in range(12):
        deep += "/" + "d" * 200
        os.mkdir(deep)
    r.do("deep path", os.close, os.open(deep + "/bottom", os.O_CREAT | os.O_WRONLY))
    r.do("deep stat", lambda: os.stat(deep + "/bottom").st_size)


@case
def odd_names(r: Recorder) -> None:
    base = os.fsencode(r.base)
    for name in (
        b"space here",
        b"tab\there",
        b"new\nline",
        b"\xff\xfe not text",
        b"\xc3\xa9t\xc3\xa9",
        b"-rf",
        b"...",
        b"\\back",
        b'"quote"',
        b"*?[x]",
        b"\x01control",
        b"%41",
        b"|pipe",
    ):
        os.close(os.open(base + b"/" + name, os.O_CREAT | os.O_WRONLY))
    r.note("all there", sorted(name.decode("latin-1") for name in os.listdir(base)))
    os.rename(base + b"/\xff\xfe not text", base + b"/\xfd moved")
    os.symlink(b"\xff target", base + b"/\xfc link")
    r.note("link", os.readlink(base + b"/\xfc link").decode("latin-1"))
    for name in os.listdir(base):
        os.unlink(base + b"/" + name)
    r.names("all gone")


@case
def symbolic_links(r: Recorder) -> None:
    r.create("file", b"text")
    r.do("symlink", os.symlink, "file", r.path("link"))
    r.do("again", os.symlink, "file", r.path("link"))
    r.do("readlink", os.readlink, r.path("link"))
    r.do("readlink of a file", os.readlink, r.path("file"))
    r.stat("the link", "link")
    r.stat("through it", "link", follow=True)
    r.read("content through it", "link")
    os.symlink("loop2", r.path("loop1"))
    os.symlink("loop1", r.path("loop2"))
    r.do("loop", os.open, r.path("loop1"), os.O_RDONLY)
    r.do("stat loop", os.stat, r.path("loop1"))
    r.do("loop as directory", os.stat, r.path("loop1/x"))
    r.do("longest target", os.symlink, "t" * 4095, r.path("longest"))
    r.do("its length", lambda: len(os.readlink(r.path("longest"))))
    r.do("empty target", os.symlink, "", r.path("empty"))
    r.do("lchown", os.lchown, r.path("link"), 1, 2)
    r.stat("owner of the link", "link")
    r.stat("owner of the file", "file")
    r.do("utime of the link", os.utime, r.path("link"), ns=(5, 7_000_000_001), follow_symlinks=False)
    r.note("its time", os.lstat(r.path("link")).st_mtime_ns)
    os.mkdir(r.path("dir"))
    os.symlink("dir", r.path("todir"))
    r.create("todir/inside", b"x")
    r.names("through a directory link", "dir")
    r.do("rmdir of a link", os.rmdir, r.path("todir"))
    r.do("unlink of a link", os.unlink, r.path("todir"))
    r.names("directory untouched", "dir")


@case
def hard_links(r: Recorder) -> None:
    r.create("a", b"one")
    r.do("link", os.link, r.path("a"), r.path("b"))
    r.stat("two names", "a")
    r.note("one file", os.path.samestat(os.stat(r.path("a")), os.stat(r.path("b"))))
    with open(r.path("b"), "ab") as handle:
        handle.write(b" two")
    r.read("through the other", "a")
    r.do("on existing", os.link, r.path("a"), r.path("b"))
    r.do("of missing", os.link, r.path("none"), r.path("c"))
    os.mkdir(r.path("d"))
    r.do("of a directory", os.link, r.path("d"), r.path("e"))
    r.do("into a directory", os.link, r.path("a"), r.path("d/a"))
    os.chmod(r.path("b"), 0o600)
    r.stat("mode is shared", "d/a")
    os.unlink(r.path("a"))
    r.stat("names left", "b")
    r.do("rename one name onto another", os.rename, r.path("b"), r.path("d/a"))
    r.note("both stay", [os.path.exists(r.path("b")), os.path.exists(r.path("d/a"))])
    os.symlink("nowhere", r.path("s"))
    r.do("of a symbolic link", os.link, r.path("s"), r.path("s2"), follow_symlinks=False)
    r.do("is one", os.readlink, r.path("s2"))
    for number in range(50):
        os.link(r.path("b"), r.path(f"many{number}"))
    r.stat("many", "many49")


@case
def renaming(r: Recorder) -> None:
    r.create("a", b"a")
    r.create("b", b"b")
    r.do("over a file", os.rename, r.path("a"), r.path("b"))
    r.read("content", "b")
    r.do("missing", os.rename, r.path("a"), r.path("c"))
    os.makedirs(r.path("d/e"))
    os.mkdir(r.path("empty"))
    r.do("directory over empty one", os.rename, r.path("d"), r.path("empty"))
    r.names("moved", "empty")
    os.mkdir(r.path("full"))
    r.create("full/x")
    r.do("directory over full one", os.rename, r.path("empty"), r.path("full"))
    r.do("file over directory", os.rename, r.path("b"), r.path("full"))
    r.do("directory over file", os.rename, r.path("full"), r.path("b"))
    r.do("into itself", os.rename, r.path("empty"), r.path("empty/e/inside"))
    r.do("onto itself", os.rename, r.path("b"), r.path("b"))
    r.do("into missing", os.rename, r.path("b"), r.path("nowhere/b"))
    os.symlink("b", r.path("s"))
    r.do("a link", os.rename, r.path("s"), r.path("t"))
    r.do("is still one", os.readlink, r.path("t"))
    fd = os.open(r.path("b"), os.O_RDWR)
    os.rename(r.path("b"), r.path("renamed while open"))
    os.pwrite(fd, b"later", 0)
    os.close(fd)
    r.read("written through the descriptor", "renamed while open")
    fd = os.open(r.create("victim", b"old content"), os.O_RDWR)
    r.create("new", b"new content")
    os.rename(r.path("new"), r.path("victim"))
    r.note("replaced file is readable", os.pread(fd, 100, 0).decode())
    os.pwrite(fd, b"ghost", 0)
    os.close(fd)
    r.read("and not mixed up", "victim")
    os.makedirs(r.path("tree/sub"))
    fd = os.open(r.create("tree/sub/file", b"1"), os.O_WRONLY | os.O_APPEND)
    os.rename(r.path("tree"), r.path("moved tree"))
    os.write(fd, b"2")
    os.close(fd)
    r.read("below a renamed directory", "moved tree/sub/file")


@case
def renaming_with_flags(r: Recorder) -> None:
    r.create("a", b"a")
    r.create("b", b"b")
    r.do("no replace, taken", renameat2, r.path("a"), r.path("b"), NOREPLACE)
    r.do("no replace, free", renameat2, r.path("a"), r.path("c"), NOREPLACE)
    r.names("names")
    r.do("exchange", renameat2, r.path("b"), r.path("c"), EXCHANGE)
    r.read("b", "b")
    r.read("c", "c")
    r.do("exchange with missing", renameat2, r.path("b"), r.path("none"), EXCHANGE)


@case
def unlinking(r: Recorder) -> None:
    fd = os.open(r.create("open", b"content"), os.O_RDWR)
    r.do("unlink while open", os.unlink, r.path("open"))
    r.stat("name gone", "open")
    r.note("still readable", os.pread(fd, 100, 0).decode())
    os.pwrite(fd, b"CONTENT", 0)
    r.note("still writable", os.pread(fd, 100, 0).decode())
    os.ftruncate(fd, 3)
    r.note("still truncatable", os.fstat(fd).st_size)
    r.create("open", b"another file")
    r.note("not the new one", os.pread(fd, 100, 0).decode())
    os.close(fd)
    r.read("the new one", "open")
    r.do("missing", os.unlink, r.path("gone"))
    r.do("below a file", os.unlink, r.path("open/x"))
    os.mkdir(r.path("d"))
    fd = os.open(r.create("d/f"), os.O_RDONLY)
    os.unlink(r.path("d/f"))
    r.do("directory of an open, unlinked file", os.rmdir, r.path("d"))
    os.close(fd)


@case
def reading_directories(r: Recorder) -> None:
    for number in range(3000):
        os.close(os.open(r.path(f"f{number}"), os.O_CREAT | os.O_WRONLY))
    r.note("count", len(os.listdir(r.base)))
    removed = 0
    with os.scandir(r.base) as entries:
        for entry in entries:
            os.unlink(entry.path)
            removed += 1
    r.note("removed while reading", removed)
    r.names("nothing skipped")
    os.mkdir(r.path("d"))
    r.create("f")
    os.symlink("x", r.path("s"))
    os.mkfifo(r.path("p"))
    with os.scandir(r.base) as entries:
        kinds = sorted(
            (e.name, e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False), e.is_symlink()) for e in entries
        )
    r.note("kinds", [list(kind) for kind in kinds])
    fd = os.open(r.base, os.O_RDONLY | os.O_DIRECTORY)
    before = sorted(os.listdir(fd))
    os.mkdir(r.path("later"))
    os.lseek(fd, 0, os.SEEK_SET)
    r.note("rewound", sorted(os.listdir(fd)) == sorted([*before, "later"]))
    os.close(fd)
    with os.scandir(r.base) as entries:
        r.note("inode numbers agree", all(e.inode() == os.lstat(e.path).st_ino for e in entries))


@case
def special_files(r: Recorder) -> None:
    r.do("fifo", os.mkfifo, r.path("fifo"), 0o640)
    r.stat("is a fifo", "fifo")
    r.do("character device", os.mknod, r.path("chr"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    r.stat("is a device", "chr")
    r.do("block device", os.mknod, r.path("blk"), stat.S_IFBLK | 0o600, os.makedev(7, 200))
    r.stat("is a block device", "blk")
    r.do("socket", os.mknod, r.path("sock"), stat.S_IFSOCK | 0o644)
    r.stat("is a socket", "sock")
    r.do("regular by mknod", os.mknod, r.path("reg"), stat.S_IFREG | 0o600)
    r.stat("is regular", "reg")
    r.do("mknod on existing", os.mknod, r.path("reg"), stat.S_IFREG | 0o600)
    reader = os.open(r.path("fifo"), os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(r.path("fifo"), os.O_WRONLY)
    os.write(writer, b"through")
    r.note("fifo works", os.read(reader, 100).decode())
    os.close(reader)
    os.close(writer)
    for name in ("fifo", "chr", "blk", "sock"):
        r.do(f"unlink {name}", os.unlink, r.path(name))

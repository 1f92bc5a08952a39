"""Owners, modes, times, extended attributes, and what other users may do."""

from __future__ import annotations

import os
import time

from tests.posix.exerciser import NOBODY, OTHER, Recorder, case


@case
def modes(r: Recorder) -> None:
    r.create("f")
    for mode in (0o000, 0o777, 0o1644, 0o2755, 0o4755, 0o7777):
        r.do(f"chmod {mode:o}", os.chmod, r.path("f"), mode)
        r.stat(f"{mode:o}", "f")
    r.do("missing", os.chmod, r.path("none"), 0o644)
    fd = os.open(r.path("f"), os.O_RDONLY)
    r.do("by descriptor", os.fchmod, fd, 0o600)
    os.close(fd)
    r.stat("600", "f")
    os.mkdir(r.path("d"))
    os.chmod(r.path("d"), 0o3770)
    r.stat("directory", "d")
    fd = os.open(r.path("f"), os.O_RDONLY)
    os.unlink(r.path("f"))
    r.do("fchmod of an unlinked file", os.fchmod, fd, 0o640)
    r.note("its mode", oct(os.fstat(fd).st_mode))
    os.close(fd)


@case
def owners(r: Recorder) -> None:
    r.create("f", b"x", 0o755)
    r.do("chown", os.chown, r.path("f"), 1000, 2000)
    r.stat("owner", "f")
    r.do("only group", os.chown, r.path("f"), -1, 3000)
    r.stat("group", "f")
    os.chmod(r.path("f"), 0o6755)
    r.do("chown of a setuid file", os.chown, r.path("f"), 5, 6)
    r.stat("bits cleared", "f")
    os.chmod(r.path("f"), 0o6745)
    os.chown(r.path("f"), 7, 8)
    r.stat("setgid without group execution stays", "f")
    os.symlink("f", r.path("s"))
    r.do("through a link", os.chown, r.path("s"), 9, 10)
    r.stat("the file", "f")
    fd = os.open(r.path("f"), os.O_RDONLY)
    r.do("by descriptor", os.fchown, fd, 11, 12)
    os.close(fd)
    r.stat("by descriptor", "f")


@case
def privileged_bits(r: Recorder) -> None:
    r.create("f", b"#!", 0o755)
    os.chown(r.path("f"), NOBODY, NOBODY)
    os.chmod(r.path("f"), 0o6777)

    def body() -> None:
        fd = os.open(r.path("f"), os.O_WRONLY)
        os.write(fd, b"changed")
        os.close(fd)

    r.as_user("other user writes", OTHER, body)
    r.stat("bits cleared by the write", "f")
    os.chmod(r.path("f"), 0o6777)
    r.as_user("other user truncates", OTHER, lambda: os.truncate(r.path("f"), 0))
    r.stat("bits cleared by truncate", "f")
    os.chmod(r.path("f"), 0o4755)
    with open(r.path("f"), "wb") as handle:
        handle.write(b"root")
    r.stat("root keeps them", "f")
    r.create("g", b"", 0o644)
    os.chown(r.path("g"), NOBODY, 4242)
    r.as_user("setgid of a foreign group", NOBODY, lambda: os.chmod(r.path("g"), 0o2755))
    r.stat("not given", "g")


@case
def access(r: Recorder) -> None:
    r.create("secret", b"s", 0o600)
    r.create("public", b"p", 0o644)
    os.mkdir(r.path("closed"), 0o700)
    r.create("closed/f")
    os.mkdir(r.path("blind"), 0o711)
    os.chmod(r.path("blind"), 0o711)
    r.create("blind/f", b"x", 0o644)

    def body() -> None:
        r.do("read secret", os.open, r.path("secret"), os.O_RDONLY)
        r.do("read public", os.open, r.path("public"), os.O_RDONLY)
        r.do("write public", os.open, r.path("public"), os.O_WRONLY)
        r.do("truncate public", os.truncate, r.path("public"), 0)
        r.do("list closed", os.listdir, r.path("closed"))
        r.do("stat in closed", os.stat, r.path("closed/f"))
        r.do("list blind", os.listdir, r.path("blind"))
        r.do("stat in blind", lambda: os.stat(r.path("blind/f")).st_size)
        r.do("create in blind", os.open, r.path("blind/g"), os.O_CREAT | os.O_WRONLY)
        r.do("remove in blind", os.unlink, r.path("blind/f"))
        r.do("chmod of another's file", os.chmod, r.path("public"), 0o777)
        r.do("chown", os.chown, r.path("public"), NOBODY, NOBODY)
        r.do("utime of another's file", os.utime, r.path("public"), (1, 1))
        r.do("access", os.access, r.path("secret"), os.R_OK)
        os.close(os.open(r.path("mine"), os.O_CREAT | os.O_WRONLY, 0o600))
        r.do("give away", os.chown, r.path("mine"), OTHER, -1)

    r.as_user("nobody", NOBODY, body)
    r.stat("made by nobody", "mine")


@case
def sticky(r: Recorder) -> None:
    os.mkdir(r.path("t"))
    os.chmod(r.path("t"), 0o1777)
    r.as_user("owner", NOBODY, lambda: (r.create("t/file"), os.mkdir(r.path("t/dir")))[-1])

    def body() -> None:
        r.do("remove", os.unlink, r.path("t/file"))
        r.do("rename", os.rename, r.path("t/file"), r.path("t/other"))
        r.do("rmdir", os.rmdir, r.path("t/dir"))
        r.create("t/mine")
        r.do("rename over another's", os.rename, r.path("t/mine"), r.path("t/file"))
        r.do("own", os.unlink, r.path("t/mine"))

    r.as_user("other", OTHER, body)
    r.names("left", "t")
    r.as_user("owner again", NOBODY, lambda: r.do("remove", os.unlink, r.path("t/file")))


@case
def times(r: Recorder) -> None:
    r.create("f", b"x")
    r.do("utime", os.utime, r.path("f"), ns=(1_000_000_001, 2_000_000_002))
    r.stat("nanoseconds", "f", times=True)
    r.do("before 1970", os.utime, r.path("f"), ns=(-5_000_000_000, -7_000_000_000))
    r.stat("negative", "f", times=True)
    r.do("far future", os.utime, r.path("f"), ns=(4_000_000_000_000_000_000, 4_000_000_000_000_000_001))
    r.stat("far", "f", times=True)
    os.utime(r.path("f"), ns=(1, 1))
    before = time.time() - 1
    r.do("now", os.utime, r.path("f"))
    r.note("now", os.stat(r.path("f")).st_mtime > before)
    os.utime(r.path("f"), ns=(1, 1))
    fd = os.open(r.path("f"), os.O_WRONLY)
    os.write(fd, b"y")
    r.note("write moves the time", os.fstat(fd).st_mtime > before)
    os.utime(fd, ns=(3, 4))
    r.note("utime by descriptor", [os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns])
    os.close(fd)
    r.note("stays after close", os.stat(r.path("f")).st_mtime_ns)
    os.mkdir(r.path("d"))
    os.utime(r.path("d"), ns=(1, 1))
    r.create("d/x")
    r.note("a name moves the directory's", os.stat(r.path("d")).st_mtime > before)
    os.utime(r.path("d"), ns=(1, 1))
    os.unlink(r.path("d/x"))
    r.note("removing too", os.stat(r.path("d")).st_mtime > before)
    first = os.stat(r.path("f")).st_ctime_ns
    time.sleep(0.02)
    os.chmod(r.path("f"), 0o600)
    r.note("chmod moves the change time", os.stat(r.path("f")).st_ctime_ns > first)
    first = os.stat(r.path("f")).st_ctime_ns
    time.sleep(0.02)
    os.rename(r.path("f"), r.path("g"))
    r.note("rename moves it", os.stat(r.path("g")).st_ctime_ns > first)
    r.create("t", b"x" * 10)
    os.utime(r.path("t"), ns=(1, 1))
    os.truncate(r.path("t"), 5)
    r.note("truncate moves the time", os.stat(r.path("t")).st_mtime > before)


@case
def extended_attributes(r: Recorder) -> None:
    path = r.create("f", b"x")
    r.do("set", os.setxattr, path, "user.one", b"1\0\xff")
    r.do("get", os.getxattr, path, "user.one")
    r.do("missing", os.getxattr, path, "user.none")
    r.do("create only, taken", os.setxattr, path, "user.one", b"2", os.XATTR_CREATE)
    r.do("replace only, missing", os.setxattr, path, "user.two", b"2", os.XATTR_REPLACE)
    r.do("replace", os.setxattr, path, "user.one", b"new", os.XATTR_REPLACE)
    r.do("empty value", os.setxattr, path, "user.empty", b"")
    r.do("large value", os.setxattr, path, "user.large", b"L" * 2000)
    r.do("trusted", os.setxattr, path, "trusted.x", b"t")
    r.do("unknown class", os.setxattr, path, "nonsense.x", b"t")
    r.note("list", sorted(name for name in os.listxattr(path) if name.startswith(("user.", "trusted."))))
    r.do("remove", os.removexattr, path, "user.one")
    r.do("remove missing", os.removexattr, path, "user.one")
    r.do("gone", os.getxattr, path, "user.one")
    os.mkdir(r.path("d"))
    r.do("directory", os.setxattr, r.path("d"), "user.d", b"dir")
    r.do("of the directory", os.getxattr, r.path("d"), "user.d")
    os.symlink("f", r.path("s"))
    r.do("user attribute of a link", os.setxattr, r.path("s"), "user.l", b"x", follow_symlinks=False)
    fd = os.open(path, os.O_RDWR)
    r.do("by descriptor", os.setxattr, fd, "user.fd", b"f")
    os.close(fd)
    r.do("seen by name", os.getxattr, path, "user.fd")


@case
def access_control_lists(r: Recorder) -> None:
    path = r.create("f", b"x", 0o640)
    # version 2; user::rw- user:NOBODY:rw- group::r-- mask::rw- other::---
    acl = bytes.fromhex(
        "02000000"
        "01000600ffffffff"
        "02000600" + NOBODY.to_bytes(4, "little").hex() + "04000400ffffffff"
        "10000600ffffffff"
        "20000000ffffffff"
    )
    r.do("set", os.setxattr, path, "system.posix_acl_access", acl)
    r.do("get", lambda: os.getxattr(path, "system.posix_acl_access") == acl)
    r.stat("mode shows the mask", "f")
    r.as_user("named user", NOBODY, lambda: r.do("may write", os.open, path, os.O_RDWR))
    r.as_user("other user", OTHER, lambda: r.do("may not read", os.open, path, os.O_RDONLY))
    os.chmod(path, 0o600)
    r.as_user("masked user", NOBODY, lambda: r.do("may not", os.open, path, os.O_RDONLY))
    os.mkdir(r.path("d"))
    r.do("default", os.setxattr, r.path("d"), "system.posix_acl_default", acl)
    r.create("d/inherits", b"", 0o666)
    r.stat("inherited", "d/inherits")
    r.do("inherited list", lambda: "system.posix_acl_access" in os.listxattr(r.path("d/inherits")))
    r.do("remove", os.removexattr, path, "system.posix_acl_access")
    r.do("malformed", os.setxattr, path, "system.posix_acl_access", b"nonsense")

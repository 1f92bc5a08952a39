"""The top of a replicated directory is root's alone, and looks to users as it did (R9, R11)."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from safekit.rfs import top
from safekit.rfs.tree import Tree
from tests.t2_process.users import USER, as_user

_libc_calls = ("setxattr", "fchmod", "fchown", "removexattr", "fsync")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for path in (tmp_path, *tmp_path.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)  # other users act in it
    found = tmp_path / "data"
    found.mkdir()
    os.chown(found, USER, 2002)
    found.chmod(0o3751)
    return found


@pytest.fixture
def tree(data: Path) -> Iterator[Tree]:
    found = Tree(os.fsencode(data))
    found.open()
    yield found
    found.close()


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
#: user::rwx user:2001:r-x group::r-x mask::rwx other::---
LIST = acl((1, 7, NOBODY), (2, 5, USER), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY))


def test_a_closed_top_lets_nobody_in_and_looks_as_before(tree: Tree, data: Path) -> None:
    assert as_user("touch", str(data / "mine"))
    before = tree.lstat(b"")
    tree.close_to_others()
    assert not as_user("ls", str(data)) and not as_user("touch", str(data / "more"))
    after = tree.lstat(b"")
    for field in ("st_mode", "st_uid", "st_gid", "st_ino", "st_mtime_ns", "st_size", "st_nlink", "st_blocks"):
        assert getattr(after, field) == getattr(before, field), field
    real = data.stat()
    assert (real.st_uid, stat.S_IMODE(real.st_mode) & 0o777) == (0, 0o700)
    assert tree.listxattr(b"") == [] and tree.xattrs(b"", acl=True) == {}
    tree.close_to_others()  # once more changes nothing
    assert tree.lstat(b"").st_mode == before.st_mode


def test_new_entries_inherit_as_before(tree: Tree, data: Path) -> None:
    tree.close_to_others()
    tree.mkdir(b"sub", 0o755)
    found = (data / "sub").stat()
    assert found.st_gid == 2002 and found.st_mode & stat.S_ISGID


def test_what_the_mount_changes_is_seen_and_given_back(tree: Tree, data: Path) -> None:
    tree.close_to_others()
    tree.chmod(b"", 0o2770)
    tree.chown(b"", 3001, 3002)
    tree.setxattr(b"", b"user.note", b"kept")
    found = tree.lstat(b"")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o2770, 3001, 3002)
    assert not as_user("ls", str(data))
    assert top.reopen(tree._begin().fd)
    real = data.stat()
    assert (stat.S_IMODE(real.st_mode), real.st_uid, real.st_gid) == (0o2770, 3001, 3002)
    assert os.listxattr(data) == ["user.note"]
    assert not top.reopen(tree._begin().fd)


def test_an_access_control_list_of_the_top(tree: Tree, data: Path) -> None:
    os.setxattr(data, top.ACCESS_ACL, LIST)
    mode = data.stat().st_mode
    tree.close_to_others()
    assert not as_user("ls", str(data))
    assert tree.lstat(b"").st_mode == mode
    assert tree.getxattr(b"", top.ACCESS_ACL) == LIST
    assert tree.xattrs(b"", acl=True) == {top.ACCESS_ACL: LIST}
    tree.chmod(b"", 0o705)
    changed = tree.getxattr(b"", top.ACCESS_ACL)
    assert changed == acl((1, 7, NOBODY), (2, 5, USER), (4, 5, NOBODY), (16, 0, NOBODY), (32, 5, NOBODY))
    assert top.reopen(tree._begin().fd)
    assert os.getxattr(data, top.ACCESS_ACL) == changed
    assert stat.S_IMODE(data.stat().st_mode) == 0o705


def test_a_list_that_is_set_while_closed_changes_the_mode(tree: Tree, data: Path) -> None:
    tree.close_to_others()
    tree.setxattr(b"", top.ACCESS_ACL, LIST)
    assert stat.S_IMODE(tree.lstat(b"").st_mode) == 0o3770
    tree.setxattr(b"", top.ACCESS_ACL, acl((1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)))
    assert stat.S_IMODE(tree.lstat(b"").st_mode) == 0o3640
    assert tree.listxattr(b"") == []
    tree.setxattr(b"", top.ACCESS_ACL, LIST)
    tree.removexattr(b"", top.ACCESS_ACL)
    assert tree.listxattr(b"") == [] and stat.S_IMODE(tree.lstat(b"").st_mode) == 0o3770


def test_the_record_is_nobodys_to_change(tree: Tree) -> None:
    tree.close_to_others()
    for attempt in (
        lambda: tree.setxattr(b"", b"trusted.safekit.top", b"777 0"),
        lambda: tree.removexattr(b"", b"trusted.safekit.top"),
        lambda: tree.getxattr(b"", b"trusted.safekit.top"),
    ):
        with pytest.raises(PermissionError):
            attempt()


def test_an_administrator_who_opens_it_by_hand_has_decided(tree: Tree, data: Path) -> None:
    tree.close_to_others()
    os.chown(data, USER, -1)
    data.chmod(0o711)
    found = tree.lstat(b"")
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o711, USER)
    tree.close_to_others()
    assert not as_user("ls", str(data))
    found = tree.lstat(b"")
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o711, USER)


class PowerFailure(BaseException):
    pass


@pytest.mark.parametrize("closing", [True, False])
def test_nothing_is_forgotten_wherever_it_is_interrupted(
    data: Path, monkeypatch: pytest.MonkeyPatch, closing: bool
) -> None:
    """Before each of its calls: users see the same, and the next start and the next opening complete it."""
    os.setxattr(data, top.ACCESS_ACL, LIST)
    wanted = data.stat()

    def interrupted(at: int) -> bool:
        """False when it came to its end before that call."""
        calls = 0
        with monkeypatch.context() as patched, Opened(data) as tree:
            if not closing:
                tree.close_to_others()
            for name in _libc_calls:
                real = getattr(os, name)

                def call(*arguments: object, real: object = real) -> object:
                    nonlocal calls
                    calls += 1
                    if calls > at:
                        raise PowerFailure
                    return real(*arguments)  # type: ignore[operator]

                patched.setattr(os, name, call)
            try:
                if closing:
                    tree.close_to_others()
                else:
                    top.reopen(tree._begin().fd)
            except PowerFailure:
                return True
        return False

    at = 0
    while interrupted(at):
        for complete in (True, False):
            with Opened(data) as tree:
                found = tree.lstat(b"")
                assert (found.st_mode, found.st_uid, found.st_gid) == (wanted.st_mode, USER, 2002), at
                assert tree.getxattr(b"", top.ACCESS_ACL) == LIST
                if complete:
                    tree.close_to_others()
                    assert not as_user("ls", str(data))
                else:
                    top.reopen(tree._begin().fd)
                    real = data.stat()
                    assert (real.st_mode, real.st_uid) == (wanted.st_mode, USER), at
                    assert os.listxattr(data) == [top.ACCESS_ACL.decode()]
        at += 1
    assert at >= 6


class Opened:
    """A tree that is closed at the end."""

    def __init__(self, path: Path) -> None:
        self.tree = Tree(os.fsencode(path))

    def __enter__(self) -> Tree:
        self.tree.open()
        return self.tree

    def __exit__(self, *_: object) -> None:
        self.tree.close()

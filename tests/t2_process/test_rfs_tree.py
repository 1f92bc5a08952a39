"""The way to the data of a replicated directory: beneath its top, through no link, by whatever call (R11)."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safekit.rfs import tree as module
from safekit.rfs.tree import Tree


@pytest.fixture(params=["openat2", "by_parts"])
def tree(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A tree of which `d/link` leads to a directory outside, with a file; as old kernels do it as well."""
    monkeypatch.setattr(module._resolver, "native", request.param == "openat2")
    for path in (tmp_path / "data/d/e", tmp_path / "outside/e"):
        path.mkdir(parents=True)
    (tmp_path / "outside/secret").write_text("root's")
    (tmp_path / "outside/secret").chmod(0o600)
    (tmp_path / "data/d/link").symlink_to(tmp_path / "outside")
    (tmp_path / "data/d/file").write_text("ours")
    (tmp_path / "data/d/secret").symlink_to(tmp_path / "outside/secret")
    return Tree(os.fsencode(tmp_path / "data"))


def outside(tmp_path: Path) -> list[tuple[str, int, int, float]]:
    return [
        (str(path), path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime)
        for path in sorted((tmp_path / "outside").rglob("*"))
    ]


THROUGH_LINK: dict[str, Callable[[Tree, bytes], object]] = {
    "lstat": lambda t, p: t.lstat(p),
    "exists": lambda t, p: None if t.exists(p) else t.lstat(p),
    "birth": lambda t, p: t.birth_ns(p),
    "listdir": lambda t, p: t.listdir(os.path.dirname(p)),
    "open": lambda t, p: t.open_file(p, os.O_RDWR),
    "create": lambda t, p: t.create(p + b"new", os.O_RDWR, 0o666),
    "sync": lambda t, p: t.sync(p),
    "truncate": lambda t, p: t.truncate(p, 0),
    "chmod": lambda t, p: t.chmod(p, 0o777),
    "chown": lambda t, p: t.chown(p, 1, 1),
    "times": lambda t, p: t.set_times(p, 0, 0),
    "listxattr": lambda t, p: t.listxattr(p),
    "getxattr": lambda t, p: t.getxattr(p, b"user.x"),
    "setxattr": lambda t, p: t.setxattr(p, b"user.x", b"1"),
    "removexattr": lambda t, p: t.removexattr(p, b"user.x"),
    "mkdir": lambda t, p: t.mkdir(p + b"dir", 0o777),
    "mknod": lambda t, p: t.mknod(p + b"fifo", stat.S_IFIFO | 0o666, 0),
    "symlink": lambda t, p: t.symlink(b"x", p + b"symlink"),
    "link to": lambda t, p: t.link(b"d/file", p + b"hard"),
    "link of": lambda t, p: t.link(p, b"d/stolen"),
    "unlink": lambda t, p: t.unlink(p),
    "rmdir": lambda t, p: t.rmdir(os.path.dirname(p) + b"/e"),
    "rename from": lambda t, p: t.rename(p, b"d/stolen"),
    "rename to": lambda t, p: t.rename(b"d/file", p + b"moved"),
    "exchange": lambda t, p: t.exchange(b"d/file", p),
    "remove": lambda t, p: (t.remove(p), t.lstat(p)),
}


@pytest.mark.parametrize("what", THROUGH_LINK)
def test_no_operation_goes_through_a_link(tree: Tree, tmp_path: Path, what: str) -> None:
    before = outside(tmp_path)
    with pytest.raises(OSError) as caught:
        THROUGH_LINK[what](tree, b"d/link/secret")
    assert caught.value.errno == errno.ELOOP, what
    assert outside(tmp_path) == before
    assert (tmp_path / "data/d/file").read_text() == "ours"


ON_LINK: dict[str, Callable[[Tree, bytes], object]] = {
    "open": lambda t, p: t.open_file(p, os.O_RDWR),
    "truncate": lambda t, p: t.truncate(p, 0),
    "chmod": lambda t, p: t.chmod(p, 0o777),
    "sync": lambda t, p: t.sync(p),
    "create": lambda t, p: t.create(p, os.O_RDWR, 0o666),
    "setxattr": lambda t, p: t.setxattr(p, b"user.x", b"1"),
}


@pytest.mark.parametrize("what", ON_LINK)
def test_what_a_link_leads_to_is_not_touched(tree: Tree, tmp_path: Path, what: str) -> None:
    before = outside(tmp_path)
    with pytest.raises(OSError):
        ON_LINK[what](tree, b"d/secret")
    assert outside(tmp_path) == before


def test_attributes_of_a_link_are_its_own(tree: Tree, tmp_path: Path) -> None:
    before = outside(tmp_path)
    tree.set_times(b"d/secret", 5, 7)
    tree.chown(b"d/secret", 3, 4)
    status = tree.lstat(b"d/secret")
    assert (status.st_mtime_ns, status.st_uid, status.st_gid) == (7, 3, 4)
    assert tree.readlink(b"d/secret") == os.fsencode(tmp_path / "outside/secret")
    assert outside(tmp_path) == before


@pytest.mark.parametrize("path", [b"..", b"../outside/secret", b"d/../../outside/secret", b"d/.."])
def test_nothing_above_is_reached(tree: Tree, path: bytes) -> None:
    with pytest.raises(OSError) as caught:
        tree.lstat(path)
    assert caught.value.errno in (errno.EINVAL, errno.EXDEV)


def test_a_fifo_in_the_place_of_a_file_keeps_nobody_waiting(tree: Tree, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data/d/fifo")
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        with pytest.raises(OSError) as caught:
            tree.open_file(b"d/fifo", flags)
        assert caught.value.errno in (errno.ESTALE, errno.ENXIO)


def test_removal_enters_no_link_and_leaves_the_top(tree: Tree, tmp_path: Path) -> None:
    before = outside(tmp_path)
    deep = tmp_path / "data/deep"
    deep.joinpath(*["x"] * 400).mkdir(parents=True)
    (deep / "x/x/link").symlink_to(tmp_path / "outside")
    tree.remove(b"deep")
    tree.remove(b"d")
    tree.remove(b"never/was")
    assert outside(tmp_path) == before
    assert tree.listdir(b"") == []
    with pytest.raises(OSError):
        tree.remove(b"")


def test_a_directory_that_is_exchanged_for_a_link_all_the_time_leads_nowhere(tree: Tree, tmp_path: Path) -> None:
    """What an attacker does: the name is a directory of his, then a link, then a directory again."""
    data, before = tmp_path / "data", outside(tmp_path)
    ended = threading.Event()

    def swap() -> None:
        (data / "mine").mkdir()
        while not ended.is_set():
            os.rename(data / "mine", data / "aside")
            os.symlink(tmp_path / "outside", data / "mine")
            os.unlink(data / "mine")
            os.rename(data / "aside", data / "mine")

    thread = threading.Thread(target=swap)
    thread.start()
    made = refused = 0
    end = time.monotonic() + 2
    try:
        while time.monotonic() < end:
            try:
                os.close(tree.create(b"mine/f%d" % made, os.O_RDWR, 0o666))
                tree.chmod(b"mine/f%d" % made, 0o777)
                tree.truncate(b"mine/secret", 0)
                made += 1
            except OSError as error:
                made += error.errno == errno.EEXIST
                refused += 1
    finally:
        ended.set()
        thread.join()
    assert refused
    assert outside(tmp_path) == before


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "data/a/b").mkdir(parents=True)
    tree = Tree(os.fsencode(tmp_path / "data"), keep=4)
    yield tree
    tree.close()


def test_kept_directories_follow_their_names(keeping: Tree, tmp_path: Path) -> None:
    tree, data = keeping, tmp_path / "data"
    os.close(tree.create(b"a/b/one", os.O_RDWR, 0o600))
    tree.rename(b"a", b"z")
    tree.mkdir(b"a", 0o700)
    tree.mkdir(b"a/b", 0o700)
    os.close(tree.create(b"a/b/two", os.O_RDWR, 0o600))
    assert sorted(p.name for p in (data / "a/b").iterdir()) == ["two"]
    tree.exchange(b"a", b"z")
    os.close(tree.create(b"a/b/three", os.O_RDWR, 0o600))
    assert sorted(p.name for p in (data / "a/b").iterdir()) == ["one", "three"]
    tree.remove(b"a")
    tree.rename(b"z", b"a")
    assert tree.exists(b"a/b/two")
    tree.unlink(b"a/b/two")
    tree.rmdir(b"a/b")
    tree.mkdir(b"a/b", 0o700)
    os.close(tree.create(b"a/b/four", os.O_RDWR, 0o600))
    assert [p.name for p in (data / "a/b").iterdir()] == ["four"]


def test_no_more_directories_are_kept_than_told_and_none_after_the_end(keeping: Tree, tmp_path: Path) -> None:
    held = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        keeping.mkdir(b"d%d" % number, 0o700)
        assert not keeping.exists(b"d%d/none" % number)
    assert len(os.listdir("/proc/self/fd")) <= held + 5
    keeping.close()
    assert len(os.listdir("/proc/self/fd")) <= held
    with pytest.raises(OSError) as caught:
        keeping.lstat(b"a/b")
    assert caught.value.errno == errno.ESTALE
    keeping.open()
    assert keeping.exists(b"a/b")


def test_one_thread_may_forget_a_directory_in_which_another_one_works(keeping: Tree) -> None:
    failures: list[BaseException] = []
    keeping.mkdir(b"still", 0o700)

    def work() -> None:
        try:
            for number in range(3000):
                name = b"still/%d.%d" % (threading.get_ident(), number)
                os.close(keeping.create(name, os.O_RDWR, 0o600))
                keeping.unlink(name)
        except BaseException as error:
            failures.append(error)

    def forget() -> None:
        for number in range(3000):
            keeping.mkdir(b"x", 0o700)
            keeping.exists(b"x/%d" % number)
            keeping.rename(b"x", b"y")
            keeping.rmdir(b"y")

    threads = [threading.Thread(target=target) for target in (work, work, forget)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert keeping.listdir(b"still") == []


def test_an_error_that_says_nothing_of_a_name_is_not_its_absence(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks removes it at the peer when it is gone."""

    def fails(*_: object, **__: object) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("safekit.disk.steps.tree_stat", fails)
    with pytest.raises(OSError):
        tree.exists(b"d/file")


def test_a_directory_that_is_renamed_while_it_is_looked_up_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other thread has opened it under its old name, and has not noted it yet."""
    (tmp_path / "d").mkdir()
    data = Tree(bytes(tmp_path), keep=100)
    found, renamed = threading.Event(), threading.Event()
    real = module._resolver.open

    def slow(top: int, path: bytes, flags: int) -> int:
        opened = real(top, path, flags)
        if threading.current_thread() is other:
            found.set()
            assert renamed.wait(10)
        return opened

    other = threading.Thread(target=lambda: data.at(b"d/f"))
    monkeypatch.setattr(module._resolver, "open", slow)
    other.start()
    assert found.wait(10)
    data.rename(b"d", b"e")
    data.mkdir(b"d", 0o755)
    renamed.set()
    other.join(10)
    assert os.fstat(data.at(b"d/f")[0].fd).st_ino == (tmp_path / "d").stat().st_ino
    data.close()


def test_a_rename_and_a_look_up_at_the_same_time(tmp_path: Path) -> None:
    """What fails after the name was changed here would never be told to the peer."""

    class Meanwhile(dict[bytes, module.Directory]):
        """Another thread looks something up while this one is gone through."""

        def __iter__(self) -> Iterator[bytes]:
            for number, known in enumerate(super().__iter__()):
                yield known
                if number == 0 and not other.ident:
                    other.start()
                    other.join(0.2)

    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    data = Tree(bytes(tmp_path), keep=100)
    data.at(b"two/f")
    data.at(b"one/f")
    data._kept = Meanwhile(data._kept)
    other = threading.Thread(target=lambda: data.at(b"three/f"))
    data.rename(b"one", b"four")
    other.join(10)
    assert os.fstat(data.at(b"four/f")[0].fd).st_ino == (tmp_path / "four").stat().st_ino
    data.close()

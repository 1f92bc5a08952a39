"""While a change waits for a peer that does not answer, everything else of the same mount goes on (R3, R8)."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.waiting import wait_until
from tests.t2_process.nfsbox_pair import Pair, assert_equal_soon


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, replicated={"notreplicated_paths": ["local"]})
    (made.a.backing / "local").mkdir()
    (made.a.backing / "sub").mkdir()
    for number in range(300):
        (made.a.backing / "sub" / str(number)).write_text(f"content {number}")
    yield made.up()
    made.b.process.send_signal(signal.SIGCONT)
    made.close()


class Background(threading.Thread):
    """Something in the background; how it ended, and in which order."""

    ended: list[str] = []  # noqa: RUF012 - one order for all

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self.action = action
        self.error: OSError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.action()
        except OSError as error:
            self.error = error
        self.ended.append(self.name)

    def done(self, seconds: float = 20) -> None:
        self.join(seconds)
        assert not self.is_alive(), f"{self.name} waits"
        if self.error is not None:
            raise self.error


def look_around(pair: Pair) -> None:
    """What waits for nobody: names, status, contents, local files. Nothing of it is in the kernel's caches."""
    mount = pair.a.mount
    assert len(os.listdir(mount / "sub")) == 300
    for number in range(300):
        path = mount / "sub" / str(number)
        assert path.stat().st_size == len(f"content {number}")
        assert path.read_text() == f"content {number}"
    assert os.statvfs(mount).f_blocks
    assert not os.listxattr(mount / "sub" / "7")


def writer(path: Path, data: bytes, offset: int = 0) -> Callable[[], object]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT)

    def write() -> None:
        try:
            os.pwrite(handle, data, offset)
        finally:
            os.close(handle)

    return write


def handles(pair: Pair) -> int:
    """Files that nfsbox has open in the replicated directory."""
    count = 0
    for entry in os.listdir(f"/proc/{pair.a.process.pid}/fd"):
        try:
            path = f"/proc/{pair.a.process.pid}/fd/{entry}"
            count += str(pair.a.backing / "sub") in os.readlink(path) and os.path.isfile(path)
        except FileNotFoundError:
            continue
    return count


def threads(pair: Pair) -> int:
    """Threads of the mount (their names are not in /proc: all threads of the process)."""
    return len(os.listdir(f"/proc/{pair.a.process.pid}/task"))


def test_reads_go_on_while_a_write_waits_for_a_frozen_peer(pair: Pair) -> None:
    before = threads(pair)
    first = writer(pair.a.mount / "held", b"first")
    second, third = (writer(pair.a.mount / f"later{n}", b"next") for n in (1, 2))
    local = os.open(pair.a.mount / "local" / "file", os.O_RDWR | os.O_CREAT)
    Background.ended.clear()
    pair.b.process.send_signal(signal.SIGSTOP)
    held = Background("held", first)
    wait_until(lambda: pair.a("status")["pending"] > 0)
    begun = time.monotonic()
    Background("look", lambda: look_around(pair)).done(10)
    later = [Background("later", second), Background("last", third)]
    Background("again", lambda: look_around(pair)).done(10)
    assert time.monotonic() - begun < 8
    os.pwrite(local, b"not replicated", 0)
    assert os.pread(local, 100, 0) == b"not replicated"
    assert Background.ended == ["look", "again"], "a change was acknowledged without the peer"
    wait_until(lambda: handles(pair) == 0, what="files that were only read are closed meanwhile")
    pair.b.process.send_signal(signal.SIGCONT)
    for thread in (held, *later):
        thread.done()
    os.close(local)
    look_around(pair)
    (pair.a.mount / "after").write_text("after")
    wait_until(lambda: threads(pair) <= before, what="the thread that was relieved ends")
    (pair.a.mount / "local" / "file").unlink()
    (pair.a.mount / "local").rmdir()
    assert_equal_soon(pair.a.backing, pair.b.backing)


def test_reads_go_on_until_the_loss_of_the_peer_is_decided(pair: Pair) -> None:
    first = writer(pair.a.mount / "held", b"first")
    second = writer(pair.a.mount / "later", b"second")
    Background.ended.clear()
    pair.b.kill()
    held = Background("held", first)
    wait_until(lambda: pair.a("status")["held"] == 1)
    for _ in range(3):
        Background("look", lambda: look_around(pair)).done(10)
    later = Background("later", second)
    Background("look", lambda: look_around(pair)).done(10)
    assert set(Background.ended) == {"look"}
    pair.a("alone")
    held.done()
    later.done()
    assert (pair.a.mount / "held").read_bytes() == b"first"
    assert (pair.a.mount / "later").read_bytes() == b"second"


def test_what_waits_behind_a_held_change_fails_with_it(pair: Pair) -> None:
    """This server leaves its role: neither the held change nor those put aside have happened for the peer."""
    actions = [writer(pair.a.mount / f"f{n}", b"data") for n in range(4)]
    pair.b.kill()
    held = Background("held", actions[0])
    wait_until(lambda: pair.a("status")["held"] == 1)
    others = [Background(f"put aside {n}", action) for n, action in enumerate(actions[1:])]
    Background("look", lambda: look_around(pair)).done(10)
    pair.a("release")
    for thread in (held, *others):
        with pytest.raises(OSError) as caught:
            thread.done()
        assert caught.value.errno in (errno.EIO, errno.EROFS, errno.ENOTCONN, errno.ECONNABORTED)
    assert os.path.islink(pair.a.mount), "released while changes waited"


def test_many_changes_wait_within_bounds(pair: Pair) -> None:
    """More than may be put aside: they wait, none is lost, none is acknowledged early."""
    size = 1 << 20
    actions = [writer(pair.a.mount / f"big{n}", bytes([n]) * size) for n in range(80)]
    Background.ended.clear()
    pair.b.process.send_signal(signal.SIGSTOP)
    changes = [Background("big0", actions[0])]
    wait_until(lambda: pair.a("status")["pending"] > 0)
    # Before the others: with more aside than there may be, everything waits, looks too.
    Background("look", lambda: os.stat(pair.a.mount)).done(20)
    changes += [Background(f"big{n}", action) for n, action in enumerate(actions[1:], 1)]
    pair.b.process.send_signal(signal.SIGCONT)
    for thread in changes:
        thread.done(30)
    for number in range(80):
        assert (pair.b.backing / f"big{number}").stat().st_size == size
        assert (pair.b.backing / f"big{number}").read_bytes() == bytes([number]) * size

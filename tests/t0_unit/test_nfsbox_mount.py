"""Parts of a mount, alone: who serves it while a change waits, what the kernel has of files, requests rewritten."""

from __future__ import annotations

import struct
import threading

import pytest

from nfsbox.fs import kernel, relief
from nfsbox.fs.known import Known
from nfsbox.fs.relief import Relief

# Who serves


class Threads:
    """Counts the threads that a mount starts."""

    def __init__(self) -> None:
        self.started = 0

    def __call__(self) -> None:
        self.started += 1


def relieved() -> tuple[Relief, Threads]:
    """A mount whose thread is with a change that waits for the peer, and that has been relieved."""
    threads = Threads()
    mount = Relief(threads)
    mount.begin()
    mount.busy = True
    mount.relieve()
    return mount, threads


def test_only_who_is_with_a_change_is_relieved_and_once() -> None:
    threads = Threads()
    mount = Relief(threads)
    mount.begin()
    mount.relieve()
    assert threads.started == 1 and not mount.relieved
    mount.busy = True
    mount.relieve()
    mount.relieve()
    assert threads.started == 2 and mount.relieved


def test_changes_are_made_in_their_order_and_the_relieved_thread_then_ends() -> None:
    mount, _ = relieved()
    assert mount.leave(memoryview(b"one")) and mount.leave(memoryview(b"two"))
    assert mount.done()
    assert [mount.take(), mount.take(), mount.take()] == [b"one", b"two", None]
    assert not mount.relieved and not mount.leave(memoryview(b"three")), "whoever serves now makes the next one"
    assert not mount.ended() and mount.ended()


def test_the_request_is_copied_its_buffer_takes_the_next() -> None:
    mount, _ = relieved()
    buffer = bytearray(b"first")
    mount.leave(memoryview(buffer))
    buffer[:] = b"other"
    assert mount.take() == b"first"


def test_a_change_that_nobody_waited_for_relieves_nobody() -> None:
    mount = Relief(Threads())
    mount.begin()
    mount.busy = True
    assert not mount.done() and not mount.busy


def test_what_is_put_aside_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relief, "MAX_ASIDE", 4)
    mount, _ = relieved()
    mount.leave(memoryview(b"12345"))
    left: list[bool] = []
    waiting = threading.Thread(target=lambda: left.append(mount.leave(memoryview(b"6"))), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive() and not left
    assert mount.take() == b"12345"
    waiting.join(10)
    assert left == [True] and mount.take() == b"6"


def test_when_the_relieved_thread_has_ended_nobody_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount went away under it."""
    monkeypatch.setattr(relief, "MAX_ASIDE", 4)
    mount, _ = relieved()
    mount.leave(memoryview(b"12345"))
    waiting = threading.Thread(target=mount.leave, args=(memoryview(b"6"),), daemon=True)
    waiting.start()
    assert not mount.ended()
    waiting.join(10)
    assert not waiting.is_alive()


# What the kernel has


def entry(node: int, *, handle: int | None = None) -> bytes:
    attr = struct.pack("<QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o100644, 1, 0, 0, 0, 0, 0)
    body = (
        struct.pack("<QQQQII", node, 0, 1, 1, 7, 7) + attr + (b"" if handle is None else struct.pack("<QQ", handle, 0))
    )
    return kernel.OUT.pack(kernel.OUT.size + len(body), 0, 9) + body


def opened(handle: int) -> bytes:
    body = struct.pack("<QQ", handle, 0)
    return kernel.OUT.pack(kernel.OUT.size + len(body), 0, 9) + body


def generation(known: Known, node: int) -> int:
    reply = known.told(kernel.LOOKUP, 1, entry(node), caching=True, names=None)
    return int.from_bytes(reply[24:32], "little")


def hold(known: Known, **handles: int) -> None:
    """The kernel opens handles, h1 and so on, of these nodes."""
    for name, node in handles.items():
        known.told(kernel.OPEN, node, opened(int(name[1:])), caching=True, names=None)


def test_pages_of_everything_that_is_open_are_void() -> None:
    known = Known()
    hold(known, h1=10, h2=20)
    known.told(kernel.CREATE, 1, entry(30, handle=3), caching=True, names=None)
    known.closed(2)
    nodes, paths = known.forget(lambda: {1: b"d/file", 3: b"d/.fuse_hidden0001"})
    assert nodes == {10, 30} and paths == {b"d/file"}, "nobody has a name for what is hidden"


def test_a_name_that_leads_to_another_file_gets_a_node_of_its_own() -> None:
    known = Known()
    hold(known, h1=10, h2=20)
    assert generation(known, 10) == generation(known, 20) == 0
    known.forget(lambda: {1: None, 2: b"same"})
    assert generation(known, 10) == 1 and generation(known, 20) == 0
    known.forget(dict)
    assert generation(known, 10) == 1
    hold(known, h3=10)
    known.forget(lambda: {3: None})
    assert generation(known, 10) == 3


def test_with_write_back_all_files_are_others_but_those_that_stay_local_and_are_open() -> None:
    known = Known(writeback=True)
    hold(known, h1=10, h2=20)
    known.forget(lambda: {1: b"replicated"})
    assert generation(known, 10) == generation(known, 99) == 1
    assert generation(known, 20) == 0, "its pages that are not written yet are this server's own"
    known.forget(lambda: {1: b"replicated"})
    assert generation(known, 10) == 2 and generation(known, 20) == 0


def test_while_files_are_looked_at_none_is_opened() -> None:
    known = Known(writeback=True)
    looking, opens = threading.Event(), threading.Event()

    def former() -> dict[int, bytes | None]:
        looking.set()
        assert not opens.wait(0.1)
        return {}

    def open_one() -> None:
        looking.wait(10)
        hold(known, h5=50)
        opens.set()

    opener = threading.Thread(target=open_one)
    opener.start()
    known.forget(former)
    opener.join(10)
    assert generation(known, 50) == 1


# Requests as libfuse knows them


def rename2(flags: int, newdir: int = 7, names: bytes = b"old\0new\0") -> tuple[memoryview, int]:
    body = kernel.RENAME2_IN.pack(newdir, flags, 0) + names
    request = kernel.IN.pack(kernel.HEADER + len(body), kernel.RENAME2, 3, 5, 1000, 1001, 42, 0, 0) + body
    return memoryview(bytearray(request + bytes(8))), len(request)


@pytest.mark.parametrize("flags", [0, kernel.RENAME_NOREPLACE])
def test_a_rename_of_today_is_one_of_before(flags: int) -> None:
    request, size = rename2(flags)
    size = kernel.as_rename(request, size)
    length, opcode, unique, olddir, uid, gid, pid, *_ = kernel.IN.unpack_from(request, 0)
    assert (length, opcode, unique, olddir, uid, gid, pid) == (size, kernel.RENAME, 3, 5, 1000, 1001, 42)
    assert bytes(request[kernel.HEADER : size]) == (7).to_bytes(8, "little") + b"old\0new\0"
    assert bytes(request[:size]) == kernel.rename_request(rename2(flags)[0].tobytes(), 5, b"old", 7, b"new")


def test_a_rename_that_nobody_knows_is_not_made_otherwise() -> None:
    """A white-out leaves a device behind: as a plain rename it would be one that lies."""
    request, size = rename2(1 << 2)
    assert kernel.as_rename(request, size) == 0
    assert not kernel.exchanges(bytes(request)) and kernel.exchanges(bytes(rename2(kernel.RENAME_EXCHANGE)[0]))


def test_only_what_says_so_takes_privileges_away() -> None:
    request = bytearray(100)
    for opcode, at, bit in ((kernel.SETATTR, 41, 8), (kernel.OPEN, 44, 1)):
        assert not kernel.kills_privileges(request, opcode)
        request[at] = bit
        assert kernel.kills_privileges(request, opcode)
        assert not kernel.kills_privileges(request, kernel.CREATE)

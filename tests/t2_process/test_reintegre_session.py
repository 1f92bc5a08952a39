"""reintegre makes one tree equal to another: every kind of entry, only what differs, interrupted, renamed under
its hands, the primary dying."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reintegre.copier import Stopped
from reintegre.local import LocalTree
from reintegre.plan import Trust
from reintegre.primary import Primary
from reintegre.records import Records
from reintegre.session import Copied, Hooks, Limits, Session
from safekit.rfs.generations import Kind, Verdict
from tests.t2_process.reintegre_primary import FakePrimary, tree

ZONE = 4096


def trust(kind: Kind, newer_than: float = 0.0, idle: int = 0) -> Trust:
    return Trust(Verdict(kind, "test", "test", newer_than), target_idle_ns=idle)


class Bed:
    """A source, a target, and the reports of the sessions between them."""

    def __init__(self, base: Path) -> None:
        self.source, self.target = base / "source", base / "target"
        self.source.mkdir()
        self.target.mkdir()
        self.primary = FakePrimary([self.source], [self.target])
        self.copied: list[Copied] = []
        self.details: list[str] = []
        self.local = LocalTree(str(self.target), lambda path: path.endswith(b".tmp"), acl=True)

    def session(self, kind: Kind = Kind.BITMAP, limits: Limits | None = None, **options: float) -> Session:
        self.copied.clear()
        self.details.clear()
        self.primary.calls.clear()
        self.primary.sent = 0
        hooks = Hooks(done=lambda root, copied: self.copied.append(copied), detail=self.details.append)
        recorded = Records()
        for item in Primary(self.primary.connect()).dirty().files:
            recorded.add(item, ours=False)
        return Session(
            self.primary.connect,
            [self.local],
            trust(kind, **options),
            recorded,  # type: ignore[arg-type]
            limits or Limits(zone=ZONE, packet=ZONE),
            hooks,
        )

    def run(self, kind: Kind = Kind.BITMAP, limits: Limits | None = None, **options: float) -> None:
        assert self.session(kind, limits, **options).run() == {"server": 1}

    def same(self) -> None:
        mine, theirs = tree(self.target), tree(self.source)
        assert {k: v for k, v in mine.items() if not k.endswith(".tmp")} == theirs

    def write(self, name: str, data: bytes) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    yield Bed(tmp_path)


def populate(bed: Bed) -> None:
    rng = random.Random(7)
    for number in range(120):
        bed.write(f"d{number % 7}/e{number % 3}/f{number}", rng.randbytes(rng.randrange(3 * ZONE)))
    os.symlink("d0/e0", bed.source / "symbolic")
    os.symlink(b"no\xffwhere", os.fsencode(bed.source) + b"/dang\xffling")
    os.mkfifo(bed.source / "pipe", 0o640)
    os.mknod(bed.source / "device", 0o20600, os.makedev(1, 3))
    os.link(bed.source / "d0/e0/f0", bed.source / "d1/hard")
    os.link(bed.source / "d0/e0/f0", bed.source / "another")
    bed.write("suid", b"x").chmod(0o4755)
    os.chown(bed.source / "suid", 1234, 4321)
    os.chmod(bed.source / "suid", 0o4755)
    os.setxattr(bed.source / "suid", "user.colour", b"blue\0green")
    (bed.source / "empty").mkdir(mode=0o1777)
    with open(bed.source / "sparse", "wb") as handle:
        handle.truncate(1 << 22)
        os.pwrite(handle.fileno(), b"middle", 1 << 21)
    os.utime(bed.source / "sparse", ns=(1, 123456789_987654321))
    os.utime(bed.source / "empty", ns=(1, 987654321_123456789))


def test_everything_arrives_and_a_second_run_sends_nothing(bed: Bed) -> None:
    populate(bed)
    bed.run(Kind.FULL)
    bed.same()
    assert bed.copied and bed.copied[0].files >= 120
    assert (bed.target / "sparse").stat().st_blocks * 512 < 1 << 20
    bed.run(Kind.BITMAP)
    assert not bed.copied and not bed.primary.sent and "push_entry" not in bed.primary.calls
    assert "hash" not in bed.primary.calls, "unchanged files are not read"


def test_only_what_differs_is_sent(bed: Bed) -> None:
    populate(bed)
    big = bed.write("big", os.urandom(64 * ZONE))
    bed.run(Kind.FULL)
    with open(big, "r+b") as handle:
        os.pwrite(handle.fileno(), b"changed", 10 * ZONE + 5)
    bed.run(Kind.BITMAP)
    assert (bed.primary.sent, bed.copied[0].files) == (ZONE, 1)
    bed.same()


def test_recorded_zones_are_compared_even_if_attributes_are_equal(bed: Bed) -> None:
    big = bed.write("big", os.urandom(64 * ZONE))
    bed.run(Kind.FULL)
    before = big.stat()
    with open(big, "r+b") as handle:
        os.pwrite(handle.fileno(), b"hidden", 20 * ZONE)
    os.utime(big, ns=(before.st_atime_ns, before.st_mtime_ns))
    bed.primary.dirty = [(0, b"big", before.st_ino, [19, 20])]
    bed.run(Kind.BITMAP)
    assert bed.primary.sent == ZONE
    bed.same()


def test_a_recorded_whole_file_is_compared_whole(bed: Bed) -> None:
    big = bed.write("big", b"a" * 10 * ZONE)
    bed.run(Kind.FULL)
    before = big.stat()
    big.write_bytes(b"a" * 9 * ZONE + b"b" * ZONE)
    os.utime(big, ns=(before.st_atime_ns, before.st_mtime_ns))
    bed.primary.dirty = [(0, b"big", 1, [0]), (0, b"big", 1, None)]
    bed.run(Kind.BITMAP)
    bed.same()


@pytest.mark.parametrize("old", [False, True])
def test_small_files_go_together(bed: Bed, old: bool) -> None:
    """Many in one request, also beside a file with two names and a large one; one by one with an older primary."""
    bed.primary.old = old
    for number in range(300):
        (bed.source / f"small{number:03}").write_bytes(b"%d" % number * (number % 5))
    (bed.source / "large").write_bytes(b"l" * 100_000)
    os.link(bed.source / "small007", bed.source / "second name")
    os.setxattr(bed.source / "small008", "user.kept", b"yes")
    bed.run()
    bed.same()
    calls = bed.primary.calls
    assert sum(copied.files for copied in bed.copied) == 241  # empty ones are made, not copied
    if old:
        assert 1 <= calls["push_files"] <= 3 and calls["push_entry"] >= 300
    else:
        assert calls["push_files"] < 60 and calls.get("push_entry", 0) < 60
    bed.run()
    assert not bed.copied and not bed.primary.sent


def test_full_sends_everything_although_nothing_changed(bed: Bed) -> None:
    populate(bed)
    bed.run(Kind.FULL)
    files = bed.copied[0].files
    bed.run(Kind.FULL)
    assert bed.copied[0].files == files


def test_checksums_find_a_silent_difference(bed: Bed) -> None:
    populate(bed)
    bed.run(Kind.FULL)
    victim = bed.target / "d3/e0/f3"
    before = victim.stat()
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    bed.run(Kind.BITMAP)
    assert not bed.copied, "nothing tells of it"
    bed.run(Kind.RESUME)
    assert bed.copied[0].files == 1
    bed.same()


def test_a_file_changed_here_while_nobody_watched_is_found(bed: Bed) -> None:
    populate(bed)
    bed.run(Kind.FULL)
    idle = time.time_ns()
    time.sleep(0.02)  # the clock of the file system ticks every few milliseconds
    victim = bed.target / "d3/e0/f3"
    before = victim.stat()
    victim.write_bytes(b"!" * before.st_size)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    bed.run(Kind.BITMAP, idle=idle)
    assert bed.copied[0].files == 1
    bed.same()


def test_timestamps(bed: Bed) -> None:
    populate(bed)
    bed.run(Kind.FULL)
    time.sleep(0.02)
    cut = time.time()
    time.sleep(0.02)
    big = bed.source / "d3/e0/f3"
    before = big.stat()
    big.write_bytes(b"!" * before.st_size)
    os.utime(big, ns=(before.st_atime_ns, before.st_mtime_ns))
    bed.run(Kind.TIMESTAMP, newer_than=cut)
    assert bed.copied[0].files == 1, "its change time tells"
    bed.same()


def test_names_changed_on_both_sides(bed: Bed) -> None:
    populate(bed)
    bed.run(Kind.FULL)
    source, target = bed.source, bed.target
    (target / "only here").mkdir()
    (target / "only here/file").write_bytes(b"x")
    (target / "d2/extra").write_bytes(b"x")
    (target / "symbolic").unlink()
    os.symlink("elsewhere", target / "symbolic")
    (target / "pipe").unlink()
    (target / "pipe").mkdir()
    (target / "pipe/below").write_bytes(b"")
    (source / "empty").rmdir()
    (source / "empty").write_bytes(b"now a file")
    (source / "d4").rename(source / "moved")
    (source / "another").unlink()
    os.link(source / "d1/hard", source / "late")
    (source / "d0/e0/f0").unlink()
    (target / "local.tmp").write_bytes(b"not replicated")
    bed.run(Kind.BITMAP)
    bed.same()
    assert (target / "local.tmp").exists()


def test_two_files_that_were_one_here(bed: Bed) -> None:
    bed.write("a", b"same size")
    bed.write("b", b"SAME SIZE")
    (bed.target / "a").write_bytes(b"same size")
    os.link(bed.target / "a", bed.target / "b")
    bed.run(Kind.RESUME)
    bed.same()


def test_one_file_that_was_two_here(bed: Bed) -> None:
    bed.write("a", b"text")
    os.link(bed.source / "a", bed.source / "b")
    (bed.target / "a").write_bytes(b"text")
    (bed.target / "b").write_bytes(b"text")
    bed.run(Kind.RESUME)
    bed.same()


def test_at_most_nbrei_files_at_once(bed: Bed) -> None:
    for number in range(12):
        bed.write(f"f{number}", os.urandom(8 * ZONE))
    now: set[str] = set()
    most = 0
    lock = threading.Lock()

    def hook(op: str, fields: dict[str, object]) -> None:
        nonlocal most
        if op == "push_zone":
            with lock:
                now.add(threading.current_thread().name)
                most = max(most, len(now))
            time.sleep(0.002)
            with lock:
                now.discard(threading.current_thread().name)

    bed.primary.hook = hook
    bed.run(Kind.FULL, Limits(nbrei=1, zone=ZONE, packet=ZONE))
    assert most == 1
    bed.run(Kind.FULL, Limits(nbrei=3, zone=ZONE, packet=ZONE))
    assert most == 3
    bed.same()


def test_commits_on_the_way(bed: Bed) -> None:
    bed.write("big", os.urandom(10 * ZONE))
    bed.run(Kind.FULL, Limits(zone=ZONE, packet=ZONE))
    assert "flush" not in bed.primary.calls
    bed.run(Kind.FULL, Limits(zone=ZONE, packet=ZONE, commit=3))
    assert bed.primary.calls["flush"] == 3


def test_the_primary_dies_in_the_middle(bed: Bed) -> None:
    populate(bed)

    def hook(op: str, fields: dict[str, object]) -> None:
        if bed.primary.calls.get("push_zone", 0) > 40:
            bed.primary.lost = True

    bed.primary.hook = hook
    with pytest.raises(ConnectionResetError):
        bed.session(Kind.FULL).run()
    bed.primary.lost = False
    bed.primary.hook = lambda op, fields: None
    sent = bed.primary.sent
    bed.run(Kind.RESUME)
    bed.same()
    assert sent and bed.primary.sent < sum(f.stat().st_size for f in bed.source.rglob("*") if f.is_file()), (
        "what had arrived is not sent again"
    )


def test_it_can_be_stopped_while_the_primary_hangs(bed: Bed) -> None:
    populate(bed)
    release = threading.Event()
    bed.primary.hook = lambda op, fields: (release.wait(10), None)[1] if op == "push_zone" else None
    session = bed.session(Kind.FULL)
    timer = threading.Timer(0.2, lambda: (session.stop(Stopped("the pair is stopping")), release.set()))
    timer.start()
    with pytest.raises(Stopped, match="the pair is stopping"):
        session.run()
    timer.join()


def test_a_name_that_changed_hands_is_compared_again(bed: Bed) -> None:
    """The listing shows a file; before its content is looked at another one takes its name."""
    bed.write("one", b"1" * 4 * ZONE)
    bed.write("two", b"2" * 4 * ZONE)
    bed.run(Kind.FULL)
    one = bed.source / "one"
    with open(one, "r+b") as handle:
        handle.write(b"x")
    done = threading.Event()

    def hook(op: str, fields: dict[str, object]) -> None:
        if op == "hash" and not done.is_set():
            done.set()
            (bed.source / "two").rename(one)
            (bed.target / "two").rename(bed.target / "one")
            bed.primary.waiting.append((0, b"one", False))

    bed.primary.hook = hook
    bed.run(Kind.BITMAP)
    bed.same()


def test_a_renamed_directory_is_compared_with_everything_below(bed: Bed) -> None:
    populate(bed)
    bed.run(Kind.FULL)
    victim = bed.target / "d3/e0/f3"
    before = victim.stat()
    victim.write_bytes(b"!" * before.st_size)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = threading.Event()

    def hook(op: str, fields: dict[str, object]) -> None:
        if op == "end" and not done.is_set():
            done.set()
            for base in (bed.source, bed.target):
                (base / "d3").rename(base / "renamed")
            bed.primary.waiting.append((0, b"renamed", True))

    bed.primary.hook = hook
    bed.run(Kind.BITMAP)
    bed.same()


@pytest.mark.parametrize("change", ["made", "removed", "replaced", "linked"])
def test_a_directory_keeps_its_time_when_an_entry_is_compared_again(bed: Bed, change: str) -> None:
    """Its own entries were done, and its time set, when one of them had to be made equal once more."""
    bed.write("d/one", b"1" * ZONE)
    bed.write("d/two", b"2" * ZONE)
    os.link(bed.source / "d/two", bed.source / "d/twin")
    bed.run(Kind.FULL)
    done = threading.Event()

    def hook(op: str, fields: dict[str, object]) -> None:
        if op != "end" or done.is_set():
            return
        done.set()
        one = bed.source / "d/one"
        if change != "made":
            one.unlink()
        if change == "made":
            bed.write("d/new", b"new")
        elif change == "replaced":
            one.symlink_to("elsewhere")
        elif change == "linked":
            os.link(bed.source / "d/two", one)
        os.utime(bed.source / "d", ns=(1, 123456789_987654321))
        bed.primary.waiting.append((0, b"d/new" if change == "made" else b"d/one", False))

    bed.primary.hook = hook
    bed.run(Kind.BITMAP)
    bed.same()


@pytest.mark.parametrize("instead", ["link", "file"])
def test_a_directory_that_becomes_something_else_ends_nothing(bed: Bed, instead: str) -> None:
    """While it is compared it moves, and its name leads elsewhere: what was noted below it is not there any more."""
    bed.write("d/e/one", b"1")
    os.link(bed.source / "d/e/one", bed.source / "d/e/two")
    done = threading.Event()

    def hook(op: str, fields: dict[str, object]) -> None:
        if op == "push_link" and not done.is_set():
            done.set()
            for base in (bed.source, bed.target):
                (base / "d").rename(base / "moved")
                if instead == "link":
                    (base / "d").symlink_to("moved")
                else:
                    (base / "d").write_text("x")
            bed.primary.waiting += [(0, b"moved", True), (0, b"d", False)]
            raise FileNotFoundError(errno.ENOENT, "moved")

    bed.primary.hook = hook
    bed.run(Kind.BITMAP)
    bed.same()


def test_deep_and_wide_trees_come_in_pages(bed: Bed) -> None:
    for number in range(205):
        bed.write(f"wide/{number}", b"")
    deep = "/".join(f"level{n}" for n in range(40))
    bed.write(f"{deep}/bottom", b"x")
    bed.run(Kind.FULL)
    bed.same()
    assert bed.primary.calls["list"] > 205 // bed.primary.page


def test_progress_ends_at_the_whole(bed: Bed) -> None:
    populate(bed)
    session = bed.session(Kind.FULL)
    session.run()
    progress = session.meter.progress()
    assert progress.counted and progress.files == progress.files_total
    assert progress.bytes == progress.bytes_total and progress.left == 0.0


@pytest.mark.parametrize("kind", [Kind.FULL, Kind.RESUME, Kind.BITMAP])
def test_holes_are_no_progress(bed: Bed, kind: Kind) -> None:
    """A disk image of 64 MiB with data of 1 MiB at its end is 1 MiB of work, and its holes are no part of it."""
    data = random.Random(1).randbytes(1 << 20)
    with open(bed.source / "image", "wb") as handle:
        handle.truncate(64 << 20)
        os.pwrite(handle.fileno(), data, 63 << 20)
    bed.write("other", b"x" * ZONE)
    if kind is not Kind.FULL:
        bed.run(Kind.FULL)
        inode = (bed.source / "image").stat().st_ino
        bed.primary.dirty = [(0, b"image", inode, [0, (63 << 20) // ZONE])]
    session = bed.session(kind)
    seen: list[tuple[int, int]] = []
    compared = session.meter.compared

    def noting(size: int) -> None:
        compared(size)
        now = session.meter.progress()
        seen.append((now.bytes, now.bytes_total))

    session.meter.compared = noting  # type: ignore[method-assign]
    session.run()
    bed.same()
    last = session.meter.progress()
    assert last.bytes == last.bytes_total <= (1 << 20) + 4 * ZONE
    assert all(done <= total for done, total in seen)
    if kind is Kind.FULL:
        assert last.bytes_total >= 1 << 20


def test_what_cannot_be_made_equal_is_named_and_the_rest_goes_on(bed: Bed) -> None:
    """A file with a damaged block, a directory that cannot be read, an entry that the other disk does not take."""
    for name in ("bad", "good", "dir/deep", "locked/in", "zero/one/two"):
        bed.write(name, b"x" * (3 * ZONE))
    (bed.target / "stuck").write_text("cannot be removed")
    refused = {
        ("push_zone", b"bad"): OSError(errno.EIO, "Input/output error on the primary"),
        ("push_entry", b"locked"): OSError(errno.EPERM, "Operation not permitted on the secondary"),
        ("list", b"zero/one"): OSError(errno.EINVAL, "it cannot be sent: a date"),
        ("push_delete", b"stuck"): OSError(errno.EPERM, "Operation not permitted on the secondary"),
    }

    def hook(op: str, fields: dict[str, Any]) -> None:
        if (op, fields.get("path")) in refused:
            raise refused[op, fields["path"]]

    bed.primary.hook = hook
    with pytest.raises(OSError) as caught:
        bed.run(Kind.FULL)
    told = caught.value.strerror
    for _, path in refused:
        assert f"{path.decode()}: " in told, told
    assert (bed.target / "good").read_bytes() == (bed.target / "dir/deep").read_bytes() == b"x" * (3 * ZONE)
    assert bed.primary.calls.get("end", 0) == 0, "the servers are not equal"
    refused.clear()
    bed.run(Kind.RESUME)
    bed.same()


def test_what_concerns_everything_ends_at_once(bed: Bed) -> None:
    for number in range(50):
        bed.write(f"f{number}", b"x" * ZONE)

    def hook(op: str, fields: dict[str, Any]) -> None:
        if op in ("push_files", "push_entry", "push_zone"):
            raise OSError(errno.ENOSPC, "No space left on device on the secondary")

    bed.primary.hook = hook
    with pytest.raises(OSError) as caught:
        bed.run(Kind.FULL)
    assert caught.value.errno == errno.ENOSPC
    assert sum(bed.primary.calls.get(op, 0) for op in ("push_files", "push_entry", "push_zone")) < 20


@pytest.mark.parametrize("kind", [Kind.FULL, Kind.BITMAP, Kind.RESUME])
def test_names_of_what_has_no_content_stay_together_and_apart(bed: Bed, kind: Kind) -> None:
    """Symbolic links and pipes may have several names too."""
    source, target = bed.source, bed.target
    for folder in (source, target):
        os.symlink("somewhere", folder / "link1")
        os.mkfifo(folder / "pipe1", 0o600)
    for name in ("link", "pipe"):
        os.link(source / f"{name}1", source / f"{name}2", follow_symlinks=False)  # one there, absent here
        os.link(target / f"{name}1", target / f"{name}4", follow_symlinks=False)  # one here, two there
    for folder in (source,):
        os.symlink("somewhere", folder / "link4")
        os.mkfifo(folder / "pipe4", 0o600)
    os.symlink("somewhere", target / "link2")  # two here, one there
    os.mkfifo(target / "pipe2", 0o600)
    bed.run(kind)
    bed.same()
    for name in ("link", "pipe"):
        one, two, four = ((target / f"{name}{n}").lstat() for n in (1, 2, 4))
        assert one.st_ino == two.st_ino != four.st_ino and (one.st_nlink, four.st_nlink) == (2, 1)


@pytest.mark.parametrize("kind", [Kind.BITMAP, Kind.RESUME])
@pytest.mark.parametrize(("old", "cut", "new"), [(21352, 4649, 16185), (3 * ZONE, 100, 3 * ZONE), (2 * ZONE, 0, ZONE)])
def test_a_file_that_was_cut_off_and_grows_again_after_it_was_listed(
    bed: Bed, kind: Kind, old: int, cut: int, new: int
) -> None:
    """What was cut off comes back as zeros there, and is still here."""
    path = bed.write("a", os.urandom(old))
    bed.run(Kind.FULL)
    os.truncate(path, cut)

    def hook(op: str, fields: dict[str, object]) -> None:
        if op == "push_entry" and fields["path"] == b"a" and path.stat().st_size == cut:
            os.truncate(path, new)

    bed.primary.hook = hook
    bed.run(kind)
    assert path.stat().st_size == new
    bed.same()

"""Names that came to stand for other content while the secondary was away, and then were written to in one place."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from reintegre.local import LocalTree
from tests.t2_process.rfs_pair import ZONE, Pair, equal, leave
from tests.t2_process.unnamed import give_name

LIBC = ctypes.CDLL(None, use_errno=True)


def write(path: Path, data: bytes, offset: int) -> None:
    with open(path, "r+b", buffering=0) as handle:
        os.pwrite(handle.fileno(), data, offset)


def test_what_a_name_stood_for_before_is_not_kept(pair: Pair) -> None:
    n1 = pair.n1
    for name in ("renamed", "victim", "linked", "cur/big", "prev/big", "moved/big", "log", "log.1", "shrunk"):
        path = n1.backing / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(4 * ZONE))
    pair.start_primary(n1)
    pair.start_secondary(pair.n2)
    leave(pair, n1, pair.n2)
    born = time.time()
    while time.time() < born + 2.1:  # younger files than that count as new
        time.sleep(0.1)
    top = n1.dir
    # another file takes a name, then it is written in one zone
    os.rename(top / "renamed", top / "victim")
    write(top / "victim", b"later", 3 * ZONE)
    # a rotated log goes on being written under its new name
    with open(top / "log", "r+b", buffering=0) as handle:
        os.pwrite(handle.fileno(), b"before", ZONE)
        os.rename(top / "log", top / "log.1")
        os.pwrite(handle.fileno(), b"after", 2 * ZONE)
    # a whole directory takes the place of another one
    (top / "prev/big").unlink()
    (top / "prev").rmdir()
    os.rename(top / "cur", top / "prev")
    write(top / "prev/big", b"later", ZONE)
    # a further name, and only that one stays
    os.unlink(top / "moved/big")
    os.link(top / "linked", top / "moved/big")
    os.unlink(top / "linked")
    write(top / "moved/big", b"later", 0)
    # cut, then written behind the cut: the hole between reads as zeros
    os.truncate(top / "shrunk", 0)
    write(top / "shrunk", b"end", 4 * ZONE - 3)
    pair.start_secondary(pair.n2)
    equal(pair)


def test_what_goes_while_it_is_looked_at_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that removes attributes and replaces links must not keep the secondary from becoming equal."""
    (tmp_path / "f").write_text("x")
    os.setxattr(tmp_path / "f", "user.gone", b"1")
    os.setxattr(tmp_path / "f", "user.kept", b"2")
    (tmp_path / "link").symlink_to("f")
    real = os.getxattr

    def getxattr(path: bytes, name: bytes, **options: bool) -> bytes:
        if name == b"user.gone":
            os.removexattr(path, name)
        return real(path, name, **options)

    def readlink(path: bytes, **options: int) -> bytes:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("safekit.disk.steps.tree_getxattr", getxattr)
    monkeypatch.setattr("safekit.disk.steps.tree_readlink", readlink)
    tree = LocalTree(str(tmp_path), lambda path: False, acl=False)
    assert {name: dict(entry.xattrs) for name, entry in tree.names(b"").items()} == {b"f": {b"user.kept": b"2"}}
    assert tree.entry(b"link") is None


def test_a_full_disk_of_the_secondary_is_named(pair: Pair) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(pair.n2.backing)], check=True)
    try:
        (pair.n1.backing / "large").write_bytes(os.urandom(4 * ZONE))
        pair.start_primary(pair.n1)
        pair.n2.up()
        pair.n2.ask("prepare")
        pair.n2.ask("secondary", attempt="1")
        pair.until(lambda: "rfs_failed" in pair.n2.kinds())
        reason = pair.n2.events[-1]["reason"]
        assert reason == "large: No space left on device on the secondary: make room there, it is tried again"
    finally:
        pair.n2.power_off()
        subprocess.run(["umount", "-l", str(pair.n2.backing)], check=True)


def test_sessions_leave_nothing_open(pair: Pair) -> None:
    """A secondary that comes and goes for weeks."""

    def open_files() -> int:
        return len(os.listdir(f"/proc/{pair.n1.processes['nfsbox'].pid}/fd"))

    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    counts = []
    for _ in range(6):
        pair.n2.ask("standby")
        pair.n1.ask("alone")
        counts.append(open_files())
        pair.n2.events.clear()
        pair.reintegrate(pair.n2)
    assert max(counts) - counts[0] <= 1, counts


@pytest.mark.parametrize("lost", ["stop", "power"])
def test_links_made_while_the_secondary_was_away_stay_links(pair: Pair, lost: str) -> None:
    """Their inodes have numbers of files that were removed; later writes through one name are found under the other,
    also when the first names are gone, after another absence, and by whoever takes over."""
    n1, n2 = pair.n1, pair.n2
    files, directories = 120, 12

    def at(number: int, step: int) -> Path:
        return n1.dir / f"t{number * step % directories}"

    for number in range(directories):
        (n1.backing / f"t{number}").mkdir()
    pair.start_primary(n1)
    for number in range(files):
        (at(number, 1) / f"m{number}").write_text("old")
        os.link(at(number, 1) / f"m{number}", at(number, 7) / f"n{number}")
    pair.start_secondary(n2)
    if lost == "stop":
        leave(pair, n1, n2)
    else:
        n2.power_off()
        n1.ask("alone")
    for number in range(files):
        (at(number, 1) / f"m{number}").unlink()
        (at(number, 7) / f"n{number}").unlink()
        (at(number, 1) / f"m{number}").write_text("newer")
    for number in range(files):
        (at(number, 11) / f"x{number}").write_text("x")
        os.link(at(number, 11) / f"x{number}", at(number, 5) / f"y{number}")
    pair.start_secondary(n2)
    equal(pair)
    for number in range(files):
        with open(at(number, 11) / f"x{number}", "a") as handle:
            handle.write(" written")
    equal(pair)
    for number in range(files):
        (at(number, 11) / f"x{number}").unlink()
    leave(pair, n1, n2)
    pair.start_secondary(n2)
    equal(pair)
    n1.power_off()
    n2.ask("primary")
    found = {(n2.dir / at(number, 5).name / f"y{number}").read_text() for number in range(files)}
    assert found == {"x written"}


def test_exchanged_names_are_compared(pair: Pair) -> None:
    """What changed places has equal sizes and times, so that nothing but the record tells; below directories too, and
    beside writes to one zone through a handle of before."""
    n1 = pair.n1
    names = ("one", "other", "open", "closed", "left/same", "right/same", "left/deep/same", "right/deep/same")
    for name in names:
        path = n1.backing / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(3 * ZONE))
        os.utime(path, ns=(10**18, 10**18))
    pair.start_primary(n1)
    pair.start_secondary(pair.n2)
    top = n1.dir
    exchange(top / "one", top / "other")
    exchange(top / "left", top / "right")
    equal(pair)
    leave(pair, n1, pair.n2)
    unnamed = os.open(top, os.O_TMPFILE | os.O_RDWR, 0o600)  # older than the change of its directory
    os.write(unnamed, os.urandom(ZONE))
    born = time.time()
    while time.time() < born + 2.1:  # younger files than that count as new
        time.sleep(0.1)
    exchange(top / "one", top / "other")
    with open(top / "open", "r+b", buffering=0) as handle:
        os.pwrite(handle.fileno(), b"before", 0)
        exchange(top / "open", top / "closed")
        os.pwrite(handle.fileno(), b"after", 2 * ZONE)
    exchange(top / "left", top / "right")
    exchange(top / "left/same", top / "right/deep")  # a file and a directory
    give_name(unnamed, top / "appeared")
    os.pwrite(unnamed, b"later", 5)
    for name in ("one", "other", "open", "closed", "left/deep/same", "right/same", "right/deep", "left/same/same"):
        if (n1.backing / name).is_file():
            os.utime(top / name, ns=(10**18, 10**18))
    pair.start_secondary(pair.n2)
    assert (pair.n2.backing / "appeared").stat().st_size == ZONE
    os.pwrite(unnamed, b"through the handle of before", ZONE)
    os.close(unnamed)
    equal(pair)


def exchange(one: Path, other: Path) -> None:
    assert LIBC.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0, os.strerror(ctypes.get_errno())

"""Names that got another file while a server lacked it: equal sizes and times prove nothing then.

Files from an archive, or of a build that sets times, have equal times; what a server that lost its power keeps of a
file may be its size and time without its content.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.t2_process.rfs_pair import ZONE, Node, Pair, equal, leave

SAME = 10**18  # the time of every file
MARK_S = 2.2  # a directory is marked two seconds back: what is older than the change must not look new


def write(path: Path, text: str) -> None:
    path.write_text(text.ljust(100))
    os.utime(path, ns=(SAME, SAME))


def populate(base: Path) -> None:
    """Files of one size and one time, each with a content of its own."""
    for folder in ("one", "two", "two/sub", "three"):
        (base / folder).mkdir(parents=True)
        for name in ("a", "b", "c"):
            write(base / folder / name, f"{folder}/{name}")
    for number in (1, 2):
        path = base / f"large{number}"
        path.write_bytes(os.urandom(3 * ZONE))
        os.utime(path, ns=(SAME, SAME))


def renamed_over(base: Path) -> None:
    os.rename(base / "one/a", base / "one/b")
    os.rename(base / "large1", base / "large2")


def exchanged(base: Path) -> None:
    for first, second in (("one/a", "two/b"), ("two/sub", "three")):
        os.rename(base / first, base / "meanwhile")
        os.rename(base / second, base / first)
        os.rename(base / "meanwhile", base / second)


def replaced_directory(base: Path) -> None:
    subprocess.run(["rm", "-r", str(base / "three")], check=True)
    os.rename(base / "two/sub", base / "three")


def linked(base: Path) -> None:
    os.unlink(base / "one/b")
    os.link(base / "one/a", base / "one/b")
    os.unlink(base / "one/a")


def made_again(base: Path) -> None:
    """As an archive is unpacked over an older one."""
    for name in ("one/a", "three/b"):
        os.unlink(base / name)
        write(base / name, f"another {name}")
    write(base / "two/new", "still another")
    os.rename(base / "two/new", base / "two/c")


CHANGES: tuple[Callable[[Path], None], ...] = (renamed_over, exchanged, replaced_directory, linked, made_again)


def start(pair: Pair) -> None:
    for change in CHANGES:
        populate(pair.n1.backing / change.__name__)
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)


def change_all(node: Node) -> None:
    for change in CHANGES:
        change(node.dir / change.__name__)


def test_names_got_other_files_while_the_secondary_was_away(pair: Pair) -> None:
    start(pair)
    leave(pair, pair.n1, pair.n2)
    change_all(pair.n1)
    pair.start_secondary(pair.n2)
    equal(pair)


@pytest.mark.parametrize("lost", ["secondary", "primary"])
def test_names_got_other_files_and_a_server_lost_that(pair: Pair, lost: str) -> None:
    """In a pair; the disk of the one that lost its power did not have it yet."""
    start(pair)
    victim, other = (pair.n2, pair.n1) if lost == "secondary" else (pair.n1, pair.n2)
    before = victim.base / "before"
    subprocess.run(["cp", "-a", str(victim.backing), str(before)], check=True)
    time.sleep(MARK_S)
    change_all(pair.n1)
    victim.power_off()
    other.ask("alone")
    subprocess.run(["umount", "-l", str(victim.dir)], check=True)
    subprocess.run(["rm", "-r", str(victim.backing)], check=True)
    before.rename(victim.backing)
    pair.start_secondary(victim)
    equal(pair)


def lose_content(path: Path) -> None:
    """What a power failure may leave: size and time."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("lost", ["secondary", "primary"])
def test_changed_files_are_found_under_whatever_name_they_have(pair: Pair, lost: str) -> None:
    """Files with several names, each written by another one; a new file that moved to directories whose marks are
    younger than the file."""
    start(pair)
    base = pair.n1.dir / "linked"
    written = {}
    for name, links in (("a", ("one/x", "three/x")), ("b", ("one/y", "two/y")), ("c", ("three/z", "two/z"))):
        for link in links:
            os.link(base / "one" / name, base / link)
        written[name] = (f"one/{name}", *links)["abc".index(name)]
    pair.n2.ask("standby")
    pair.n1.ask("alone")
    pair.n2.events.clear()
    pair.reintegrate(pair.n2)  # the links are no news any more
    for name in written.values():
        (base / name).write_text("written".ljust(100))
    with open(base / "one/new", "wb") as handle:
        handle.truncate(ZONE)  # the size comes first: it is on disk before the content is
        handle.write(os.urandom(ZONE))
    time.sleep(MARK_S)
    os.rename(base / "one/new", base / "two/moved")
    os.rename(base / "two/moved", base / "three/moved")
    equal(pair)
    victim, other = (pair.n2, pair.n1) if lost == "secondary" else (pair.n1, pair.n2)
    victim.power_off()
    other.ask("alone")
    for name in ("three/moved", *written.values()):
        lose_content(victim.backing / "linked" / name)
    pair.start_secondary(victim)
    equal(pair)

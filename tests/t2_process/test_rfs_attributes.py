"""Attributes of <rfs> between two servers: what travels with acl on and off, and how fast a reintegration may be."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from safekit.model.types import Replicated, Rfs
from tests.t2_process.rfs_pair import Pair, equal, leave, told


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path, Rfs((Replicated("/replicated"),))) as found:
        yield found


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return done.stdout


def acl(path: Path) -> list[str]:
    return [line for line in run("getfacl", "-n", "-p", "--omit-header", path).split("\n") if line]


def dress(base: Path, number: int) -> Path:
    """A file and a directory with all that can be set on them."""
    folder = base / f"folder{number}"
    folder.mkdir()
    run("setfacl", "-d", "-m", f"u:{1000 + number}:rwx", folder)
    file = base / f"file{number}"
    file.write_text("x")
    os.chown(file, 500 + number, 600 + number)
    os.chmod(file, 0o640)
    os.setxattr(file, "user.note", b"n%d" % number)
    run("setfacl", "-m", f"u:{1000 + number}:rw,g:7:r", file)
    return file


@pytest.mark.parametrize("on", [True, False])
def test_acl(pair: Pair, on: bool) -> None:
    """In the first synchronisation, live, and in a reintegration; changed and removed as well."""
    pair.configure(replace(pair.rfs, acl=on))
    files = [dress(pair.n1.backing, 0)]
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    files.append(dress(pair.n1.dir, 1))
    leave(pair, pair.n1, pair.n2)
    files.append(dress(pair.n1.dir, 2))
    run("setfacl", "-x", "g:7", pair.n1.dir / "file0")
    pair.start_secondary(pair.n2)
    run("setfacl", "-m", "u:4321:r", pair.n1.dir / "file1")
    run("setfacl", "-b", pair.n1.dir / "file2")
    for number in range(len(files)):
        for name in (f"file{number}", f"folder{number}"):
            one, two = pair.n1.backing / name, pair.n2.backing / name
            mine, theirs = one.stat(), two.stat()
            assert (mine.st_mode, mine.st_uid, mine.st_gid) == (theirs.st_mode, theirs.st_uid, theirs.st_gid)
            assert (acl(one) == acl(two)) is (on or name == "file2"), f"{name}: {acl(one)} {acl(two)}"
            if not on:
                assert not any(re.match(r"(default:)?(user|group):\d", line) for line in acl(two))
        assert os.getxattr(pair.n2.backing / f"file{number}", "user.note") == b"n%d" % number
    if on:
        equal(pair)


def test_reiallowedbw(pair: Pair) -> None:
    """The guide allows a tenth more or less; a busy machine may be slower. Replication is not bounded."""
    pair.configure(replace(pair.rfs, reiallowedbw=4096))
    (pair.n1.backing / "large").write_bytes(os.urandom(12 << 20))
    pair.start_primary(pair.n1)
    pair.start_secondary(pair.n2)
    (copied,) = told(pair.n2, "copied")
    rate = int(copied.split()[-2])
    assert 2048 <= rate <= 1.1 * 4096, copied
    begun = os.times().elapsed
    (pair.n1.dir / "written").write_bytes(os.urandom(12 << 20))
    assert os.times().elapsed - begun < 2.5, "12 MB at 4 MB/s would take 3 s"
    equal(pair)

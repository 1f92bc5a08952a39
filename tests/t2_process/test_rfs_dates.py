"""Dates of any file system travel: before 1970, before 1901, after 2262 (R7)."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from nfsbox_pair import Pair, assert_equal_soon

from lab.waiting import wait_until
from reintegre.primary import entry
from safekit.rfs.wire import Set, pack_attr, pack_time, unpack_attr, unpack_time

SECOND = 1_000_000_000
#: 1500, 1677, 1900, 1960, 2038, 2262, 2300, 5000, each with ns.
DATES = [s * SECOND + 123_456_789 for s in (-14831769600, -9243936000, -2208988800, -315619200)] + [
    s * SECOND + 987_654_321 for s in (2208988800, 9223372036, 10413792000, 95617584000)
]


@pytest.mark.parametrize("moment", [*DATES, 0, 1, -1, (1 << 63) - 1, 1 << 63, -(1 << 63), -(1 << 63) - 1])
@pytest.mark.parametrize("mode", [0, stat.S_IFREG | 0o644, stat.S_IFBLK | 0o600])
def test_any_date_survives_the_wire(moment: int, mode: int) -> None:
    device = stat.S_ISBLK(mode)
    for mask in (Set.MTIME, Set.ATIME, Set.MTIME | Set.ATIME | Set.MODE):
        for atime, mtime in ((moment, 7), (8, moment), (moment, moment)):
            sent = (mask, mode, 1, 2, atime, mtime, 0x803 if device else 0, 0 if device else 1 << 40)
            assert unpack_attr(pack_attr(*sent) + b"path") == sent
    assert unpack_time(msgpack.unpackb(msgpack.packb(pack_time(moment)))) == moment
    packed = msgpack.unpackb(msgpack.packb(pack_time(moment)))
    assert entry([b"n", mode, 1, 2, 3, packed, packed, 4, 1, 0, 8, None, 0]).mtime == moment


@pytest.fixture(params=["a disk", "tmpfs"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """On a disk dates end in 1901 and 2446: what lies beyond is cut on both servers alike."""
    made = Pair(tmp_path)
    mounted = [made.a.backing, made.b.backing] if request.param == "tmpfs" else []
    for backing in mounted:
        subprocess.run(["mount", "-t", "tmpfs", "none", str(backing)], check=True)
    yield made
    made.close()
    for backing in mounted:
        subprocess.run(["umount", str(backing)], check=True)


def test_dates_are_replicated_and_resynchronised(pair: Pair) -> None:
    a = pair.a
    for number, moment in enumerate(DATES):
        (a.backing / f"before{number}").write_text("x")
        (a.backing / f"dir{number}").mkdir()
        for name in (f"before{number}", f"dir{number}"):
            os.utime(a.backing / name, ns=(moment, moment))
    os.symlink("nowhere", a.backing / "link")
    os.utime(a.backing / "link", ns=(DATES[0], DATES[-1]), follow_symlinks=False)
    pair.up()
    for number, moment in enumerate(DATES):
        path = a.mount / f"live{number}"
        with path.open("w") as handle:
            handle.write("y")
            handle.flush()
            os.utime(path, ns=(moment, moment))
        (a.mount / f"made{number}").mkdir()
        os.utime(a.mount / f"made{number}", ns=(moment, moment))
    wait_until(lambda: (pair.b.backing / f"made{len(DATES) - 1}").exists())
    assert_equal_soon(pair.a.backing, pair.b.backing)
    seen = [(a.mount / f"live{number}").stat().st_mtime_ns for number in range(len(DATES))]
    assert seen == [(a.backing / f"live{number}").stat().st_mtime_ns for number in range(len(DATES))]
    assert "Traceback" not in a.log() + pair.b.log()

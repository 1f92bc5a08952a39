"""rfsdiff on real files and a real record: how much a reintegration would copy (guide 13.6.4.6)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cli.rfsdiff import _log
from nfsbox.pair.tracking import Tracker
from safekit.disk.paths import ModulePaths
from safekit.rfs.changes import Mode
from safekit.rfs.difference import Changed, changed, everything, rates, to_copy
from safekit.rfs.exclusions import Exclusions
from safekit.rfs.journal import load
from safekit.rfs.tree import Tree
from tests.t2_process.identities import real

ZONE = 65536


def test_what_zones_of_a_file_cost() -> None:
    assert to_copy(10, None, ZONE) == 10
    assert to_copy(3 * ZONE + 10, [0, 3, 3], ZONE) == ZONE + 10
    assert to_copy(ZONE, [1, 7], ZONE) == 0, "behind the end"


def test_rates_come_from_what_copied_enough() -> None:
    assert rates([]) is None and rates([(1000, 1.0), (1 << 21, 0.0)]) is None
    assert rates([(2 << 20, 1.0), (8 << 20, 2.0), (5, 9.0)]) == (2 << 20, 4 << 20)


def test_each_modified_file_is_counted_once_with_what_would_be_copied(tmp_path: Path) -> None:
    """RFT-004, RFT-005: links and pipes are no regular files."""
    data, record = tmp_path / "data", tmp_path / "rfs"
    (data / "d").mkdir(parents=True)
    record.mkdir()
    for name, size in (("zones", 10 * ZONE), ("d/whole", 5000), ("same", 700), ("gone", 1)):
        (data / name).write_bytes(b"x" * size)
    tracker = Tracker(record, ZONE)
    tracker.start(Mode.ALONE, None)
    tracker.touch(0, real(data / "zones"), b"zones", 2, 4)
    tracker.touch(0, real(data / "zones"), b"zones", 9, 9)
    tracker.touch(0, real(data / "gone"), b"gone", 0, 0)
    tracker.whole(0, b"d/whole")
    tracker.touch_directory(0, b"d", now_ns=0)
    (data / "d" / "new").write_bytes(b"n" * 100)
    (data / "d" / "link").symlink_to("new")
    os.mkfifo(data / "d" / "pipe")
    (data / "gone").unlink()
    tree = Tree(os.fsencode(data))
    tree.open()
    found = {one.path: one for one in changed(load(record), [tree])}
    assert found == {
        b"zones": Changed(0, b"zones", 10 * ZONE, 4 * ZONE),
        b"d/whole": Changed(0, b"d/whole", 5000, 5000),
        b"d/new": Changed(0, b"d/new", 100, 100),
    }
    assert {one.path for one in everything([tree], [Exclusions()])} == {b"zones", b"d/whole", b"d/new", b"same"}
    local = Exclusions(["d"], [r".*ame"])
    assert {one.path for one in everything([tree], [local])} == {b"zones"}, "what stays local is not copied"
    tree.close()
    tracker.stop(clean=True)


def test_the_detailed_log_is_xml_whatever_files_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEVAR", str(tmp_path))
    paths = ModulePaths("AM")
    paths.var.mkdir(parents=True)
    names = [b"plain", b'a "b" <&>', b"\xff\x01\n", "é".encode()]
    with _log(paths) as put:
        for number, name in enumerate(names):
            put("/data", Changed(0, name, number, number))
    log = (paths.var / "rfsdifflog.xml").read_bytes()
    shown = [str(element.get("path")) for element in ElementTree.fromstring(log)]
    assert shown == ["/data/plain", '/data/a "b" <&>', "/data/\\xff\\x01\\x0a", "/data/é"]
    flat = subprocess.run(
        [sys.executable, "-m", "special.flatlogdump", "-O", "stdout"], input=log, capture_output=True, check=True
    ).stdout.decode()
    assert flat.splitlines()[1] == "file path=/data/plain size=0 copy=0"
    with pytest.raises(RuntimeError), _log(paths) as put:
        raise RuntimeError
    assert (paths.var / "rfsdifflog.xml").read_bytes() == log, "an estimate that was stopped leaves the former log"

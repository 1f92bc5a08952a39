"""A .safe file is hostile until proven otherwise."""

from __future__ import annotations

import os
import random
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from safekit.disk.archive import MAX_FILES, ArchiveError, pack, unpack

CONFIG = ("conf/userconfig.xml", b"<safe/>")


def make(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def refused(archive: Path, target: Path) -> str:
    before = set(target.parent.rglob("*"))
    with pytest.raises(ArchiveError) as error:
        unpack(archive, target)
    assert not target.exists(), "something was left behind"
    assert set(target.parent.rglob("*")) == before, "something was written elsewhere"
    assert str(archive) in str(error.value)
    return str(error.value)


def test_a_module_is_unpacked_with_modes_of_ours(tmp_path: Path) -> None:
    archive = make(
        tmp_path / "a.safe",
        CONFIG,
        (special("bin/start_prim", stat.S_IFREG | 0o6777), b"#!/bin/sh\n"),
        ("conf/module.key", b"00"),
        ("web/index.html", b""),
        ("manifest.xml", b""),
    )
    unpack(archive, tmp_path / "m")
    modes = {str(p.relative_to(tmp_path / "m")): stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "m").rglob("*.*")}
    assert modes["conf/module.key"] == 0o640 and modes["conf/userconfig.xml"] == 0o660
    assert stat.S_IMODE((tmp_path / "m/bin/start_prim").stat().st_mode) == 0o770


@pytest.mark.parametrize(
    "name",
    [
        "../x", "/etc/x", "conf/../../x", "conf\\..\\x", "bin/a\nb", "etc/passwd", "x", ".hidden/x",
        "conf/" + "d/" * 20 + "x", "bin/" + "n" * 300, "lib/x.py",
    ],
)  # fmt: skip
def test_entries_outside_a_module_are_refused(tmp_path: Path, name: str) -> None:
    refused(make(tmp_path / "a.safe", CONFIG, (name, b"x")), tmp_path / "m")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFBLK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    refused(make(tmp_path / "a.safe", CONFIG, (special("bin/x", kind | 0o777), b"/etc/shadow")), tmp_path / "m")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_path_twice_is_refused(tmp_path: Path) -> None:
    for names in (("bin/x", "bin/x"), ("bin/x", "bin/x/y"), ("bin/x/y", "bin/x")):
        archive = make(tmp_path / "a.safe", CONFIG, *((name, b"1") for name in names))
        assert "twice" in refused(archive, tmp_path / "m")


def test_bombs_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    many = make(tmp_path / "many.safe", CONFIG, *((f"bin/{n}", b"") for n in range(MAX_FILES + 1)))
    assert "more than" in refused(many, tmp_path / "m")
    big = make(tmp_path / "big.safe", CONFIG, *((f"bin/{n}", bytes(64 << 20)) for n in range(5)))
    assert big.stat().st_size < 2 << 20
    assert "more than" in refused(big, tmp_path / "m")


def test_a_size_that_lies_is_noticed(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.safe", CONFIG, ("bin/x", os.urandom(1000) + bytes(1 << 20)))
    data = bytearray(archive.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, 10)
    archive.write_bytes(data)
    refused(archive, tmp_path / "m")


def test_no_damage_gives_another_error(tmp_path: Path) -> None:
    good = make(tmp_path / "good.safe", CONFIG, ("bin/x", b"hello" * 100)).read_bytes()
    source = random.Random(1)
    archive = tmp_path / "a.safe"
    for number in range(1500):
        data = bytearray(good)
        for _ in range(source.randint(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        archive.write_bytes(data[: source.randint(0, len(data))] if number % 3 == 0 else data)
        target = tmp_path / f"m{number}"
        try:
            unpack(archive, target)
        except ArchiveError:
            assert not target.exists()
    for start in (b"", b"PK", good[:30]):
        archive.write_bytes(start)
        refused(archive, tmp_path / "m")


def test_what_is_packed_can_be_unpacked_and_nothing_else_is_packed(tmp_path: Path) -> None:
    root = tmp_path / "module"
    (root / "conf").mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "conf/userconfig.xml").write_text("<safe/>")
    (root / "bin/x").symlink_to("/etc/shadow")
    (root / "core").write_text("x")
    assert pack(root, tmp_path / "a.safe") == 1
    assert stat.S_IMODE((tmp_path / "a.safe").stat().st_mode) & 0o007 == 0
    first = (tmp_path / "a.safe").read_bytes()
    pack(root, tmp_path / "a.safe")
    assert (tmp_path / "a.safe").read_bytes() == first
    unpack(tmp_path / "a.safe", tmp_path / "m")
    assert (tmp_path / "m/conf/userconfig.xml").read_text() == "<safe/>"

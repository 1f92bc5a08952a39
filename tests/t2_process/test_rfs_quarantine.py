"""What a server gives up after a split brain is kept first: bounded, newest first, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.quarantine import quarantine_command
from safekit.rfs import quarantine
from safekit.rfs.quarantine import Quarantine
from safekit.rfs.tree import Tree

ZONE = 1 << 16


@pytest.fixture
def data(tmp_path: Path) -> Path:
    found = tmp_path / "data"
    found.mkdir()
    return found


def keep(tmp_path: Path, data: Path, *items: tuple[str, list[int] | None], **options: int) -> Quarantine:
    options.setdefault("generation", 7)
    return quarantine.keep(
        tmp_path / "var/modules/AM/quarantine",
        [(str(data), Tree(os.fsencode(data)))],
        [(0, os.fsencode(path), 1, zones) for path, zones in items],
        ZONE,
        rule="split_brain",
        sentence="both ran alone",
        **options,  # type: ignore[arg-type]
    )


def write(path: Path, content: bytes, at: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (at, at))


def test_whole_files_and_changed_zones_are_kept_with_their_attributes(tmp_path: Path, data: Path) -> None:
    write(data / "dir/new", b"all of it", 1000)
    big = os.urandom(5 * ZONE + 100)
    write(data / "big", big, 2000)
    (data / "dir/new").chmod(0o640)
    os.chown(data / "dir/new", 2001, 2002)
    found = keep(tmp_path, data, ("big", [1, 2, 5]), ("big", [9]), ("dir/new", None), ("gone", None), ("dir", None))
    assert [entry.path for entry in found.entries] == ["big", "dir/new"]
    assert found.entries[0].ranges == ((ZONE, 2 * ZONE), (5 * ZONE, 100))
    base = tmp_path / "var/modules/AM/quarantine"
    stored = quarantine.content(base, found, found.entries[0]).read_bytes()
    assert stored == bytes(ZONE) + big[ZONE : 3 * ZONE] + bytes(2 * ZONE) + big[5 * ZONE :]
    assert quarantine.load(base, found.id) == found
    quarantine.restore(base, found, found.entries[1], tmp_path / "back/new")
    status = (tmp_path / "back/new").stat()
    assert (tmp_path / "back/new").read_bytes() == b"all of it"
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime) == (0o640, 2001, 2002, 1000)
    with pytest.raises(FileExistsError):
        quarantine.restore(base, found, found.entries[1], tmp_path / "back/new")


def test_the_newest_changes_come_first_and_what_does_not_fit_is_told(tmp_path: Path, data: Path) -> None:
    for number in range(4):
        write(data / f"f{number}", b"x" * 1000, number)
    found = keep(tmp_path, data, *((f"f{n}", None) for n in range(4)), limit=2500)
    assert [(entry.path, bool(entry.stored)) for entry in found.entries] == [
        ("f3", True),
        ("f2", True),
        ("f1", False),
        ("f0", False),
    ]
    assert found.entries[2].why == "there is no room for it" and found.bytes == 2000


def test_a_file_that_cannot_be_read_ends_nothing(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bad", "good"):
        write(data / name, b"x", 1)
    real = Tree.open_file

    def open_file(tree: Tree, path: bytes, flags: int, mode: int = 0) -> object:
        if path == b"bad":
            raise OSError(5, "Input/output error")
        return real(tree, path, flags)

    monkeypatch.setattr(Tree, "open_file", open_file)
    found = keep(tmp_path, data, ("bad", None), ("good", None))
    assert {entry.path: entry.why for entry in found.entries} == {"bad": "Input/output error", "good": ""}


def test_what_is_half_overwritten_never_takes_the_place_of_the_whole(tmp_path: Path, data: Path) -> None:
    write(data / "f", b"mine", 1)
    first = keep(tmp_path, data, ("f", None))
    write(data / "f", b"theirs", 2)
    assert keep(tmp_path, data, ("f", None)) == first
    assert keep(tmp_path, data, ("f", None), generation=8) != first


def test_only_the_last_are_kept_and_an_interrupted_one_is_none(tmp_path: Path, data: Path) -> None:
    base = tmp_path / "var/modules/AM/quarantine"
    write(data / "f", b"mine", 1)
    made = [keep(tmp_path, data, ("f", None), generation=n).id for n in range(quarantine.KEPT + 2)]
    assert [found.id for found in quarantine.every(base)] == made[:1:-1]
    (base / ".half.tmp/files").mkdir(parents=True)
    (base / "damaged").mkdir()
    (base / "damaged/index.json").write_text('{"id": 1')
    assert [found.id for found in quarantine.every(base)] == made[:1:-1]
    keep(tmp_path, data, ("f", None), generation=99)
    assert not (base / ".half.tmp").exists()
    for name in ("damaged/..", "..", "no", ".half.tmp"):
        with pytest.raises(quarantine.Unknown):
            quarantine.remove(base, name)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The command on a server that has the module AM."""
    monkeypatch.setenv("SAFE", str(tmp_path / "safe"))
    monkeypatch.setenv("SAFEVAR", str(tmp_path / "var"))
    (tmp_path / "safe/modules/AM/conf").mkdir(parents=True)
    (tmp_path / "safe/modules/AM/conf/userconfig.xml").write_text("<safe/>")

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(quarantine_command, ["-m", "AM", *words], standalone_mode=False)
        if result.exception is not None:
            return 1, str(result.exception)
        return int(result.return_value or 0), result.output

    return run


def test_the_command(tmp_path: Path, data: Path, command) -> None:  # type: ignore[no-untyped-def]
    assert command("list") == (0, "Module AM has given up nothing on this server.\n")
    write(data / "text", b"one\ntwo\n", 1)
    write(data / "dir/bytes", b"\0" * 10 + b"abc", 1)
    write(data / "same", b"same", 1)
    write(data / "later", b"x" * 5000, 0)
    found = keep(tmp_path, data, ("text", None), ("dir/bytes", None), ("same", None), ("later", None), limit=4000)
    write(data / "text", b"one\nthree\n", 2)
    write(data / "dir/bytes", b"\0" * 10 + b"abd", 2)
    code, text = command("list")
    assert code == 0 and found.id in text and "3 files" in text and "1 could not be kept" in text
    assert json.loads(command("list", "--json")[1])[0]["kept"] == 3
    code, text = command("show", found.id)
    assert code == 0 and f"{data}/text" in text and "no room" in text and "split_brain" in text
    assert json.loads(command("show", found.id, "--json")[1])["directory"].endswith(found.id)
    code, text = command("diff", found.id)
    assert code == 1
    assert "+two" in text and "-three" in text and "1 bytes differ" in text and f"{data}/same: same" in text
    assert command("diff", found.id, "same")[0] == 0
    assert command("restore", found.id, "text")[0] == 1
    code, text = command("restore", found.id, "dir", f"{data}/text", "--to", str(tmp_path / "back"))
    assert code == 0 and (tmp_path / f"back{data}/text").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / f"back{data}/dir/bytes").read_bytes() == b"\0" * 10 + b"abc"
    assert "not in quarantine" in command("show", found.id, "nothing")[1]
    assert "no quarantine" in command("show", "2020")[1]
    assert command("clean", found.id) == (0, f"{found.id}: removed\n")
    assert command("list")[1].startswith("Module AM has given up nothing")

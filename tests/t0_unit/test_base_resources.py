"""The resource file is whole, durable where it must be, and readable by people."""

from __future__ import annotations

import errno
import ipaddress
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekit.disk import resources as res
from safekit.disk.files import reserve, write_atomic
from vipd import ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "resources"


def test_a_missing_file_is_empty(path: Path) -> None:
    assert res.load(path) == {}


def test_set_and_read(path: Path) -> None:
    writer = res.ResourceWriter(path)
    assert writer.set("tcp.id", "down", "tcpcheck")
    assert not writer.set("tcp.id", "down", "somebody")
    writer.flush()
    found = res.load(path)["tcp.id"]
    assert (found.value, found.setter) == ("down", "tcpcheck")
    assert res.ResourceWriter(path).value("tcp.id") == "down"


def test_a_durable_value_is_on_disk_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    res.ResourceWriter(path).set("rfs.uptodate", "up", "heart")
    assert res.load(path)["rfs.uptodate"].value == "up"
    assert len(synced) == 2, "the file and its directory"


def test_a_volatile_value_waits_for_the_flush(path: Path) -> None:
    writer = res.ResourceWriter(path)
    writer.set("ping.id", "up", "pingcheck")
    assert res.load(path) == {}
    writer.flush()
    assert res.load(path)["ping.id"].value == "up"


def test_a_durable_value_that_cannot_be_written_is_not_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = res.ResourceWriter(path)
    writer.set("rfs.uptodate", "down", "heart")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        writer.set("rfs.uptodate", "up", "heart")
    assert writer.value("rfs.uptodate") == "down"
    assert res.load(path)["rfs.uptodate"].value == "down"
    assert [p.name for p in path.parent.iterdir()] == ["resources"]


@pytest.mark.parametrize(("name", "value"), [("noclass", "up"), ("a.b c", "up"), ("a.b", "two words"), ("a.b", "")])
def test_what_does_not_fit_a_line_is_refused(path: Path, name: str, value: str) -> None:
    with pytest.raises(ValueError, match="is not a resource"):
        res.ResourceWriter(path).set(name, value, "x")


@given(st.text(max_size=300))
def test_any_file_can_be_parsed(text: str) -> None:
    for name, resource in res.parse(text).items():
        assert res.valid_name(name) and resource.name == name


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}\.[A-Za-z0-9._:-]{1,20}", fullmatch=True),
        st.from_regex(r"[A-Za-z0-9%./-]{1,20}", fullmatch=True),
        max_size=10,
    )
)
def test_render_and_parse_agree(values: dict[str, str]) -> None:
    wanted = {name: res.Resource(name, value, 12.5, "heart") for name, value in values.items()}
    assert res.parse(res.render(wanted)) == wanted


async def follow(path: Path) -> list[str]:
    import asyncio

    seen: list[str] = []

    async def watch() -> None:
        async for found in res.Follower(path, interval=30).changes():
            seen.append(found["a.b"].value if "a.b" in found else "-")
            if seen[-1] == "3":
                return

    task = asyncio.create_task(watch())
    writer = res.ResourceWriter(path)
    for value in "123":
        await asyncio.sleep(0.05)
        writer.set("a.b", value, "test")
        writer.flush()
    await asyncio.wait_for(task, 5)
    return seen


def test_followers_see_changes_at_once(path: Path) -> None:
    import asyncio

    assert asyncio.run(follow(path)) == ["-", "1", "2", "3"]


def test_a_full_disk_leaves_what_was_put_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replacement uses the blocks of the one before; readers see one version whole."""
    path, held = tmp_path / "resources", tmp_path / "ledger"
    writer = res.ResourceWriter(path)
    writer.set("rfs.uptodate", "up", "heart")
    reserve(path, 8192)
    ledger.save(held, ())
    reserve(held)

    def full(path: Path, data: bytes, mode: int, durable: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safekit.disk.files._write_new", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "nothing was put by", b"x")
    for number in range(5):
        value = ("down", "up")[number % 2]
        writer.set("rfs.uptodate", value, "heart")
        assert res.load(path)["rfs.uptodate"].value == value
        address = ipaddress.ip_address(f"10.0.0.{number}")
        ledger.save(held, [ledger.Entry(address, "eth0", 24, 1.0)])
        assert set(ledger.load(held)) == {address}
    assert path.stat().st_mode & 0o777 == 0o660


def test_threads_that_write_one_file_at_the_same_time_do_not_meet(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one begins while the first one is about to put its file in place."""
    real = os.rename
    second = threading.Thread(target=lambda: write_atomic(path, b"second", durable=False))

    def rename(source: Path, target: Path) -> None:
        if not second.ident:
            second.start()
            second.join(10)
            assert path.read_bytes() == b"second"
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    write_atomic(path, b"the first one", durable=False)
    assert path.read_bytes() == b"the first one"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]

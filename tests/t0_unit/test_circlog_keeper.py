"""circlog's keeper: every E line once in the elog, in order, whatever is interrupted; bounded files."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from circlog.keeper import DiskReport, Keeper, State, check_space, event_lines
from safekit.disk.files import write_atomic
from safekit.log.module import Line, ModuleLog, format_line, parse_line


@pytest.fixture(autouse=True)
def log_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEVAR", str(tmp_path))
    directory = tmp_path / "modules" / "am" / "log"
    directory.mkdir(parents=True)
    return directory


def line(number: int, level: str = "E") -> bytes:
    return format_line(Line("2026-01-01T00:00:00.000Z", "n1", level, "heart", "printe", {}, f"line {number}"))  # type: ignore[arg-type]


def drain(keeper: Keeper) -> None:
    for _ in range(100_000):
        if not keeper.step():
            return
    pytest.fail("the keeper never finishes")


def numbers(*files: Path) -> list[int]:
    found = []
    for file in files:
        if file.exists():
            for text in file.read_text().splitlines():
                parsed = parse_line(text)
                assert parsed is not None and parsed.level == "E", text
                found.append(int(parsed.english.rpartition(" ")[2]))
    return found


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as handle:
        handle.write(data)


def test_only_event_lines_are_copied(log_dir: Path) -> None:
    for number in range(30):
        append(log_dir / "module.log", line(number, "EID"[number % 3]))
    drain(Keeper("am"))
    assert numbers(log_dir / "module.elog") == list(range(0, 30, 3))


def test_text_that_looks_like_a_level_does_not_fool_it() -> None:
    events, length = event_lines(b"d|n|I|p|c|{}|x|E|y\nd|n|E|p|c|{}|z\nd|n|E|p|c|{}|cut")
    assert events == b"d|n|E|p|c|{}|z\n" and length == len(b"d|n|I|p|c|{}|x|E|y\nd|n|E|p|c|{}|z\n")


def test_a_line_that_is_not_complete_is_copied_when_it_is(log_dir: Path) -> None:
    data = line(1)
    append(log_dir / "module.log", data[:20])
    keeper = Keeper("am")
    drain(keeper)
    assert numbers(log_dir / "module.elog") == []
    append(log_dir / "module.log", data[20:])
    drain(keeper)
    assert numbers(log_dir / "module.elog") == [1]


def test_both_logs_stay_bounded_and_keep_the_newest(log_dir: Path) -> None:
    keeper = Keeper("am", log_limit=20_000, elog_limit=5_000)
    for number in range(5000):
        append(log_dir / "module.log", line(number, "EI"[number % 2]))
        if number % 50 == 0:
            drain(keeper)
    drain(keeper)
    drain(keeper)
    sizes = {file.name: file.stat().st_size for file in log_dir.iterdir()}
    assert sizes["module.log"] + sizes["module.log.1"] < 2 * 20_000 + 50 * 100
    assert sizes["module.elog"] + sizes["module.elog.1"] <= 2 * 5_000
    kept = numbers(log_dir / "module.elog.1", log_dir / "module.elog")
    assert kept[-1] == 4998 and kept == list(range(kept[0], 5000, 2))


def test_a_writer_that_holds_the_renamed_log_loses_nothing(log_dir: Path) -> None:
    keeper = Keeper("am", log_limit=1000)
    with open(log_dir / "module.log", "ab", buffering=0) as slow:
        for number in range(20):
            slow.write(line(number))
        drain(keeper)
        assert (log_dir / "module.log.1").exists()
        slow.write(line(20))
    append(log_dir / "module.log", line(21))
    drain(keeper)
    assert sorted(numbers(log_dir / "module.elog")) == list(range(22))


def test_the_module_log_follows_a_rotation(log_dir: Path) -> None:
    log, keeper = ModuleLog("am", "heart", "n1"), Keeper("am", log_limit=2000)
    for number in range(200):
        log.event("printe", text=f"line {number}")
        drain(keeper)
    assert numbers(log_dir / "module.elog") == list(range(200))


class Crash(Exception):
    """The process is killed here."""


def crash_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """The n-th system call of the keeper that changes a file kills the process, half done where it can be."""
    left = [calls]

    def tick() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **kwargs: object) -> object:
            tick()
            return function(*args, **kwargs)

        return called

    real_write = os.write

    def write(descriptor: int, data: bytes) -> int:
        if left[0] == 0:
            real_write(descriptor, bytes(data)[: len(data) // 2])
        tick()
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "replace", wrap(os.replace))
    monkeypatch.setattr(os, "ftruncate", wrap(os.ftruncate))
    monkeypatch.setattr("circlog.keeper.write_atomic", wrap(write_atomic))


@pytest.mark.parametrize("seed", range(60))
def test_a_crash_anywhere_neither_loses_nor_doubles_a_line(log_dir: Path, seed: int) -> None:
    draw, number = random.Random(seed), 0
    keeper = Keeper("am", log_limit=3000, elog_limit=1 << 20)
    for _ in range(25):
        for _ in range(draw.randint(0, 12)):
            append(log_dir / "module.log", line(number))
            number += 1
        with pytest.MonkeyPatch.context() as patch:
            if draw.random() < 0.6:
                crash_after(patch, draw.randrange(8))
            try:
                drain(keeper)
            except Crash:
                keeper = Keeper("am", log_limit=3000, elog_limit=1 << 20)
    drain(Keeper("am", log_limit=3000, elog_limit=1 << 20))
    assert numbers(log_dir / "module.elog") == list(range(number))


def test_a_lost_record_goes_on_behind_the_last_copied_line(log_dir: Path) -> None:
    for number in range(10):
        append(log_dir / "module.log", line(number))
    drain(Keeper("am"))
    append(log_dir / "module.log", line(10))
    for damage in (b"", b"{", b'{"copied": 1, "elog": []}', b'{"copied": {"x": 1}, "elog": [1, 2]}'):
        (log_dir / "circlog.state").write_bytes(damage)
        drain(Keeper("am"))
        assert numbers(log_dir / "module.elog") == list(range(11))


def test_an_emptied_log_is_followed_from_its_beginning(log_dir: Path) -> None:
    append(log_dir / "module.log", line(1) + line(2))
    keeper = Keeper("am")
    drain(keeper)
    os.truncate(log_dir / "module.log", 0)
    append(log_dir / "module.log", line(3))
    drain(keeper)
    assert numbers(log_dir / "module.elog") == [1, 2, 3]


def test_a_full_disk_leaves_no_half_line_and_is_made_good(log_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(log_dir / "module.log", line(1) + line(2) + line(3))
    keeper, real_write = Keeper("am"), os.write

    def full(descriptor: int, data: bytes) -> int:
        real_write(descriptor, bytes(data)[:30])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(3):
            with pytest.raises(OSError, match="space"):
                keeper.step()
    drain(keeper)
    assert numbers(log_dir / "module.elog") == [1, 2, 3]


def test_a_full_disk_is_said_once_and_its_end_once() -> None:
    report, error = DiskReport(), OSError(errno.ENOSPC, "No space left on device", "/x")
    first = report.failed(error, "noon")
    assert first is not None and "disk is full" in first and "df -h" in first
    assert report.failed(error, "later") is None
    after = report.worked()
    assert after is not None and "noon" in after
    assert report.worked() is None
    assert report.failed(error, "again") is not None


def test_space_is_checked(log_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(log_dir)
    real = os.statvfs(log_dir)
    fields = list(real)
    fields[3] = 1
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    with pytest.raises(OSError, match="space"):
        check_space(log_dir)


def test_a_state_survives_its_file() -> None:
    state = State({5: 10, 7: 0}, 9, 100)
    assert State.load(state.dump()) == state

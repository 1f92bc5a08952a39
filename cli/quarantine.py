"""quarantine: what this server wrote on its own and gave up after a split brain."""

from __future__ import annotations

import difflib
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from cli.base import Failure, command, json_option, module_option, module_paths, show_json
from safekit.rfs import quarantine
from safekit.rfs.quarantine import Entry, Quarantine

ACTIONS: Final = ("list", "show", "diff", "restore", "clean")
#: Of larger files only the number of bytes that differ is told.
TEXT: Final = 1 << 20
_PIECE: Final = 1 << 20


@command(
    "quarantine",
    example="safekit quarantine list -m mirror\nsafekit quarantine show -m mirror 20260131-101500\n"
    "safekit quarantine diff -m mirror 20260131-101500 orders.txt\n"
    "safekit quarantine restore -m mirror 20260131-101500 orders.txt --to /root/given-up\n"
    "safekit quarantine clean -m mirror 20260131-101500\nsafekit quarantine clean -m mirror --all",
    admin=False,
)
@click.argument("action", type=click.Choice(ACTIONS))
@click.argument("number", metavar="[ID]", required=False)
@click.argument("names", metavar="[FILE]...", nargs=-1)
@click.option("--to", "target", metavar="DIR", help="restore: a directory for the files; nothing there is overwritten.")
@click.option("--all", "everything", is_flag=True, help="clean: every quarantine of the module.")
@module_option
@json_option
def quarantine_command(
    action: str,
    number: str | None,
    names: tuple[str, ...],
    target: str | None,
    everything: bool,
    module: str | None,
    as_json: bool,
) -> int:
    """Show what this server wrote on its own and gave up after a split brain: list, show, diff, restore, clean.

    Before a reintegration overwrites such files they are kept in SAFEVAR/modules/AM/quarantine: at most 1 GB and half
    of what is free, the newest first, of large files the zones that were changed; the last five times. `diff` compares
    them with what the replicated directory holds now. `restore` writes them into a directory of your choice: look at
    them there, and copy what is missing into the replicated directory of the primary. Without FILE: all of them.
    """
    paths = module_paths(module)
    base = paths.var / "quarantine"
    if action == "list":
        return _list(quarantine.every(base), paths.module, as_json=as_json)
    if action == "clean" and everything:
        numbers = [found.id for found in quarantine.every(base)]
    elif number is None:
        raise Failure("which one? its ID is missing", f"safekit quarantine list -m {paths.module}")
    else:
        numbers = [number, *names] if action == "clean" else [number]
    try:
        if action == "clean":
            for one in numbers:
                quarantine.remove(base, one)
                click.echo(f"{one}: removed")
            return 0
        found = quarantine.load(base, numbers[0])
    except quarantine.Unknown as error:
        raise Failure(str(error), f"safekit quarantine list -m {paths.module}") from None
    entries = _chosen(found, names)
    if action == "show":
        return _show(found, entries, base, as_json=as_json)
    if action == "diff":
        return _diff(base, found, entries, as_json=as_json)
    return _restore(base, found, entries, target)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if value < 1024 or unit == "GB":
            break
        value /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _list(found: Sequence[Quarantine], module: str, *, as_json: bool) -> int:
    if as_json:
        return show_json(
            [{**asdict(one), "entries": len(one.entries), "kept": len(one.kept), "bytes": one.bytes} for one in found]
        )
    if not found:
        click.echo(f"Module {module} has given up nothing on this server.")
    for one in found:
        left = len(one.entries) - len(one.kept)
        more = f", {left} could not be kept" if left else ""
        click.echo(f"{one.id}  {_date(one.made)}  {len(one.kept)} files, {_size(one.bytes)}{more}  ({one.rule})")
    return 0


def _chosen(found: Quarantine, names: Sequence[str]) -> list[Entry]:
    """Entries by path: relative or absolute, a directory for all below. Raises Failure for one that is not there."""
    if not names:
        return list(found.entries)
    chosen: dict[str, Entry] = {}
    for name in names:
        plain = name.rstrip("/")
        matching = [
            entry
            for entry in found.entries
            if any(path == plain or path.startswith(plain + "/") for path in (entry.path, entry.shown))
        ]
        if not matching:
            raise Failure(f"{name} is not in quarantine {found.id}", f"safekit quarantine show {found.id}")
        chosen |= {entry.shown: entry for entry in matching}
    return list(chosen.values())


def _state(entry: Entry) -> str:
    if not entry.stored:
        return f"not kept: {entry.why}"
    return "kept" if entry.ranges is None else f"changed zones kept: {_size(entry.bytes)}"


def _show(found: Quarantine, entries: Sequence[Entry], base: Path, *, as_json: bool) -> int:
    if as_json:
        return show_json({**asdict(found), "directory": str(base / found.id), "entries": [asdict(e) for e in entries]})
    click.echo(f"Kept on {_date(found.made)} in {base / found.id}")
    click.echo(f"Why: {found.sentence} (rule {found.rule})")
    for entry in entries:
        changed = _date(entry.mtime_ns / 1e9)
        click.echo(f"{entry.shown}  {_size(entry.size)}, changed {changed}  [{_state(entry)}]")
    return 0


def _pieces(entry: Entry) -> Iterator[tuple[int, int]]:
    for offset, length in ((0, entry.size),) if entry.ranges is None else entry.ranges:
        for begin in range(offset, offset + length, _PIECE):
            yield begin, min(_PIECE, offset + length - begin)


def _differing(kept: Path, now: Path, entry: Entry) -> int:
    """Bytes of what was kept that are others now. Raises OSError."""
    count = 0
    with kept.open("rb") as one, now.open("rb") as other:
        for offset, length in _pieces(entry):
            one.seek(offset)
            other.seek(offset)
            a, b = one.read(length), other.read(length)
            if a != b:
                count += sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
    return count


def _compare(base: Path, found: Quarantine, entry: Entry) -> tuple[str, str]:
    """(same, differs, gone, not kept; the details)."""
    if not entry.stored:
        return "not kept", entry.why
    kept, now = quarantine.content(base, found, entry), Path(entry.shown)
    try:
        status = now.lstat()
        if not stat.S_ISREG(status.st_mode):
            return "differs", "it is no file any more\n"
        size = status.st_size
        if entry.ranges is None and max(size, entry.size) <= TEXT:
            mine, theirs = kept.read_bytes(), now.read_bytes()
            if mine == theirs:
                return "same", ""
            if b"\0" not in mine + theirs:
                before, after = (data.decode("utf-8", "replace").splitlines(keepends=True) for data in (theirs, mine))
                lines = difflib.unified_diff(before, after, f"{entry.shown} (now)", f"{entry.shown} (given up)")
                return "differs", "".join(line if line.endswith("\n") else line + "\n" for line in lines)
        differing = _differing(kept, now, entry) + (abs(size - entry.size) if entry.ranges is None else 0)
    except FileNotFoundError:
        return "gone", ""
    if not differing and size == entry.size:
        return "same", ""
    return "differs", f"{differing} bytes differ; {entry.size} bytes given up, {size} bytes now\n"


def _diff(base: Path, found: Quarantine, entries: Sequence[Entry], *, as_json: bool) -> int:
    compared = []
    for entry in entries:
        try:
            compared.append((entry, *_compare(base, found, entry)))
        except OSError as error:
            raise Failure(f"{entry.shown}: {error.strerror}", "run it as root, with the module started") from None
    if as_json:
        show_json([{"file": entry.shown, "state": state, "details": text} for entry, state, text in compared])
    else:
        for entry, state, text in compared:
            click.echo(f"{entry.shown}: {state}")
            click.echo(text, nl=not text.endswith("\n")) if text else None
    return int(any(state != "same" for _, state, _ in compared))


def _restore(base: Path, found: Quarantine, entries: Sequence[Entry], target: str | None) -> int:
    if target is None:
        raise Failure("where to? --to DIR is missing", "choose a directory outside of the replicated ones")
    place, failed = Path(target), 0
    for entry in entries:
        if not entry.stored:
            click.echo(f"{entry.shown}: not kept: {entry.why}", err=True)
            failed += 1
            continue
        written = place / entry.shown.lstrip("/")
        try:
            quarantine.restore(base, found, entry, written)
        except OSError as error:
            click.echo(f"{written}: {error.strerror}", err=True)
            failed += 1
            continue
        part = "" if entry.ranges is None else f" (the changed zones, {_size(entry.bytes)}; zeroes elsewhere)"
        click.echo(f"{written}{part}")
    return int(failed > 0)

"""rfsdiff: how much the next reintegration would copy, and how long it would take (guide 13.6.4.6)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO
from xml.sax.saxutils import quoteattr

import click

from cli.base import Failure, command, json_option, module_option, module_paths, require_admin, show_json
from cli.progress import Live
from safekit.configuration import active
from safekit.disk.paths import ModulePaths
from safekit.log.select import select
from safekit.model.application import ConfigureError
from safekit.rfs import difference
from safekit.rfs.difference import Changed, Range
from safekit.rfs.exclusions import Exclusions
from safekit.rfs.journal import load
from safekit.rfs.tree import Tree
from safekit.view.module import read_module
from safekit.view.words import duration, size

LOG: Final = "rfsdifflog.xml"
RECENT: Final = 5
_UNITS: Final = {"bytes": 0, "KB": 1, "MB": 2, "GB": 3, "TB": 4}
_SIZE: Final = re.compile(r"([\d.]+) (bytes|KB|MB|GB|TB)")


@command("rfsdiff", example="safekit rfsdiff -m mirror\ncat /var/safekit/modules/mirror/rfsdifflog.xml | safekit -r "
         "flatlogdump -O stdout")  # fmt: skip
@module_option
@json_option
def rfsdiff_command(module: str | None, as_json: bool) -> int:
    """Estimate what a secondary that starts now would copy from this server, which is ALONE.

    Counted are the regular files that have changed since the secondary was lost, and of large files the zones. It is
    an estimate: other changes may come until then, and names and attributes are compared besides. Each file is listed
    in SAFEUSERVAR/rfsdifflog.xml. The range of the time comes from the rates of the last reintegrations.
    """
    paths = module_paths(module, configured=True)
    state = read_module(paths.module, require_admin().get("modules", {}).get(paths.module, {})).state
    if state != "ALONE":
        raise Failure(
            f"module {paths.module} is {state}: what would be copied is known on a server that is ALONE",
            f"safekit state -m {paths.module} on both servers",
        )
    try:
        found = _Difference(paths)
        with Live() as live, _log(paths) as put:
            found.look(put, lambda: live.show(f"{found.files:,} files, {size(found.copied)}", now=False))
    except ConfigureError as error:
        raise Failure(error.text, error.next_step) from None
    except PermissionError as error:
        raise Failure(f"{error.filename}: {error.strerror}", "run the command as root") from None
    if as_json:
        return show_json(found.data())
    for line in found.lines():
        click.echo(line)
    return 0


class _Difference:
    """What is found, added up. Raises ConfigureError, OSError."""

    def __init__(self, paths: ModulePaths) -> None:
        config = active(paths.module)
        if config.rfs is None:
            raise ConfigureError(f"module {paths.module} has no replicated directories", "nothing is copied")
        self.paths = paths
        self.directories = [replicated.dir for replicated in config.rfs.replicated]
        self.trees = [Tree(os.fsencode(place + config.rfs.suffix)) for place in self.directories]
        self.exclusions = [
            Exclusions(replicated.notreplicated_paths, replicated.notreplicated_regex)
            for replicated in config.rfs.replicated
        ]
        self.loaded = load(paths.rfs)
        self.why = self.loaded.why if not self.loaded.reliable else ""
        if paths.full_required.exists():
            self.why = "the configuration was applied while the module was stopped"
        elif not self.loaded.present:
            self.why = "this server has no record of changes"
        self.files = self.copied = self.size = 0
        self.rates: Range | None = difference.rates(_reintegrations(paths))

    def look(self, put: Callable[[str, Changed], None], told: Callable[[], None]) -> None:
        for tree in self.trees:
            tree.open()
        try:
            found = (
                difference.everything(self.trees, self.exclusions)
                if self.why
                else difference.changed(self.loaded, self.trees)
            )
            for one in found:
                self.files += 1
                self.copied += one.copied
                self.size += one.size
                put(self.directories[one.root], one)
                told()
        finally:
            for tree in self.trees:
                tree.close()

    @property
    def seconds(self) -> Range | None:
        return (self.copied / self.rates[1], self.copied / self.rates[0]) if self.rates else None

    def lines(self) -> Iterator[str]:
        if self.why:
            yield f"{self.why}: every file is compared, and copied where it differs"
            yield f"{self.files:,} files, {size(self.copied)} at most to copy"
        else:
            yield f"{self.files:,} files modified, {size(self.copied)} to copy (of {size(self.size)})"
        if self.seconds is None:
            yield "Duration: not known, no reintegration in the log of the module has copied enough to tell a rate"
        else:
            low, high = self.seconds
            span = duration(low) if duration(low) == duration(high) else f"{duration(low)} to {duration(high)}"
            yield f"Duration: {span}, at the rate of the last reintegrations; names are compared besides"
        yield f"Each file is in {self.paths.var / LOG}"

    def data(self) -> dict[str, Any]:
        return {
            "module": self.paths.module, "files": self.files, "bytes": self.copied, "size": self.size,
            "everything": bool(self.why), "why": self.why, "seconds": self.seconds, "log": str(self.paths.var / LOG),
        }  # fmt: skip


def _reintegrations(paths: ModulePaths) -> list[tuple[int, float]]:
    """Bytes and seconds of the last reintegrations, as the log tells them."""
    found = []
    for line in select(paths, "E", None):
        if line.code == "copied" and (match := _SIZE.fullmatch(str(line.fields.get("size", "")))):
            copied = int(float(match[1]) * 1024 ** _UNITS[match[2]])
            found.append((copied, float(line.fields.get("seconds", 0))))
    return found[-RECENT:]


@contextmanager
def _log(paths: ModulePaths) -> Iterator[Callable[[str, Changed], None]]:
    """The detailed log: whole, or as it was before."""
    target: Path = paths.var / LOG
    under_way = target.with_suffix(".new")
    with open(under_way, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o640)
        _begin(file, paths.module)

        def put(directory: str, one: Changed) -> None:
            name = quoteattr(_shown(os.fsencode(directory) + b"/" + one.path))
            file.write(f'  <file path={name} size="{one.size}" copy="{one.copied}"/>\n')

        yield put
        file.write("</rfsdiff>\n")
    os.replace(under_way, target)


def _begin(file: TextIO, module: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    file.write(f'<?xml version="1.0" encoding="UTF-8"?>\n<rfsdiff module={quoteattr(module)} date="{stamp}">\n')


def _shown(path: bytes) -> str:
    """A path as XML can have it: what is no text is written with its number."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)

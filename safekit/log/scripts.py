"""How each user script ended, and the last that it wrote: SAFEVAR/modules/AM/log/scripts.jsonl, one run a line.

userlog.ulog has all that the application ever wrote; nobody finds in it what the script of last night said. Written
by whoever runs the scripts (heart, or safeadmin that forces a stop), read by `safekit log --scripts`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safekit.spelling import harmless

KEPT_BYTES = 256 * 1024
"""Size at which the file is renamed to .1; so twice this is kept."""
TAIL_BYTES = 8192
TAIL_LINES = 20
MAX_LINE = 500
_NOT_RUN = re.compile(
    r"[^:]*?(?P<name>[^/:]+): (?:(?:line|ligne) )?[0-9]+: (?P<what>.+): "
    r"(?:(?:command )?not found|commande introuvable|No such file or directory|Permission denied|"
    r"Aucun fichier ou dossier de ce nom|Permission non accord\u00e9e)"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a script. `status` is None when it could not be run; `problem` says what is wrong ("" nothing).

    `output` is the last that was written to the application log while it ran, by whatever it started too.
    """

    time: float
    name: str
    args: tuple[str, ...]
    status: int | None
    seconds: float
    problem: str = ""
    output: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The last line that is not empty."""
        return next((line for line in reversed(self.output) if line.strip()), "")


def tail(data: bytes, lines: int = TAIL_LINES) -> tuple[str, ...]:
    """The last lines of an output, harmless for a terminal."""
    text = data.decode("utf-8", "replace").splitlines()[-lines:]
    return tuple(harmless(line[:MAX_LINE]).rstrip() for line in text)


def not_run(name: str, output: Sequence[str]) -> str:
    """The line in which the shell of script `name` says that it could not run a command, "" when there is none."""
    for line in output:
        found = _NOT_RUN.fullmatch(line)
        if found is not None and found["name"] == name:
            return line
    return ""


def append(path: Path, run: Run) -> None:
    """Keep what became of a run. Raises OSError."""
    path.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        os.write(descriptor, (json.dumps(asdict(run), ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size > KEPT_BYTES:
        os.replace(path, path.with_name(path.name + ".1"))


def parse(line: str) -> Run | None:
    """A line of the file; None when it is damaged."""
    try:
        found: dict[str, Any] = json.loads(line.lstrip("\0"))
        status = found["status"]
        return Run(
            float(found["time"]),
            str(found["name"]),
            tuple(map(str, found["args"])),
            None if status is None else int(status),
            float(found["seconds"]),
            str(found["problem"]),
            tuple(map(str, found["output"])),
        )
    except (ValueError, KeyError, TypeError):
        return None


def runs(path: Path) -> Iterator[Run]:
    """Every run that is kept, oldest first."""
    for each in (path.with_name(path.name + ".1"), path):
        try:
            with open(each, encoding="utf-8", errors="replace") as handle:
                yield from (run for run in map(parse, handle) if run is not None)
        except FileNotFoundError:
            continue

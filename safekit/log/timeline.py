"""What happened on the servers of a cluster, in one order: module logs, commands logs and safeadmin's log.

Each server tells its lines with its own dates. The asker knows by how much a server's clock differs (two dates of
the question, two of the answer, as in NTP) and brings all dates to its own clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

from safekit.log.messages import Language
from safekit.log.module import Line

Source = Literal["log", "command", "safeadmin"]
SOURCES: tuple[Source, ...] = ("log", "command", "safeadmin")
MAX_ENTRIES = 10_000
MAX_TEXT = 8000


class BadTimeline(ValueError):
    """An answer that is none; the text says what is wrong with it."""


@dataclass(frozen=True)
class Entry:
    """Something that happened. `at`: Unix time by the clock of `node`. `subject`: the module, "" for the server.
    `who`: the process that wrote the line, or the pid of the command."""

    at: float
    node: str
    source: Source
    subject: str
    who: str
    text: str


@dataclass(frozen=True)
class Clock:
    """The clock of a server against ours: `ahead` seconds, known within `within` seconds."""

    ahead: float
    within: float

    @property
    def differs(self) -> bool:
        """Whether the difference is more than the way of the messages may make believe."""
        return abs(self.ahead) > self.within


def clock(asked: float, received: float, answered: float, arrived: float) -> Clock:
    """From our dates of question and answer (asked, arrived) and the server's (received, answered)."""
    ahead = ((received - asked) + (answered - arrived)) / 2
    return Clock(ahead, max(0.0, ((arrived - asked) - (answered - received)) / 2))


def merge(told: Iterable[tuple[Sequence[Entry], Clock]], count: int | None) -> list[Entry]:
    """The last `count` entries (None: all) of all servers by our clock, oldest first. The lines of one server stay in
    the order in which they were written when their dates are equal."""
    found = [
        replace(entry, at=entry.at - clock.ahead) if clock.differs else entry
        for entries, clock in told
        for entry in entries
    ]
    found.sort(key=lambda entry: entry.at)
    return found if count is None else found[-count:]


def utc(text: str) -> float | None:
    """Unix time of a date of a log: UTC with Z, or local time without zone; None for one that is damaged."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def shown(at: float) -> str:
    """A date as `safekit log` shows it: local time with milliseconds."""
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def of_log(module: str, lines: Iterable[Line], language: Language) -> Iterator[Entry]:
    """The lines of a module log."""
    for line in lines:
        at = utc(line.date)
        if at is not None:
            yield Entry(at, line.node, "log", module, line.process, line.text(language))


def of_commands(node: str, module: str | None) -> Iterator[Entry]:
    """This server's commands, those about a module when one is named. Raises OSError."""
    from safekit.log.commands import read

    for entry in read():
        at, words = utc(entry.date), entry.arguments.split()
        about = _module_of(words)
        if at is None or (module is not None and about not in (module, "")):
            continue
        done = "" if entry.code is None else f"return {entry.code}: "
        yield Entry(at, node, "command", about, str(entry.pid), f"{done}safekit {entry.arguments}")


def _module_of(words: Sequence[str]) -> str:
    for option, value in pairwise(words):
        if option in ("-m", "-E"):
            return value
    return ""


def of_safeadmin(node: str, texts: Iterable[str]) -> Iterator[Entry]:
    """The lines of safeadmin.log: date | node | level | text."""
    for text in texts:
        parts = text.rstrip("\n").split(" | ", 3)
        at = utc(parts[0]) if len(parts) == 4 else None
        if at is not None:
            yield Entry(at, node, "safeadmin", "", "safeadmin", parts[3])


def local_entries(node: str, module: str | None, levels: str, count: int, language: Language) -> list[Entry]:
    """What this server knows: of one module, or (None) of all of them. Raises OSError."""
    from safekit.configuration import list_modules
    from safekit.disk.paths import ModulePaths, safevar
    from safekit.log.select import select

    found: list[Entry] = []
    for name in list_modules() if module is None else (module,):
        found += of_log(name, select(ModulePaths(name), levels, count), language)
    found += of_commands(node, module)
    for file in ("safeadmin.log.1", "safeadmin.log"):
        try:
            with open(safevar() / file, encoding="utf-8", errors="replace") as handle:
                found += of_safeadmin(node, handle)
        except FileNotFoundError:
            continue
    found.sort(key=lambda entry: entry.at)
    return found[-count:]


def to_fields(entry: Entry) -> dict[str, Any]:
    """An entry in the answer of the web service."""
    return {
        "at": round(entry.at, 6),
        "source": entry.source,
        "subject": entry.subject,
        "who": entry.who,
        "text": entry.text,
    }


def from_answer(node: str, data: dict[str, Any]) -> tuple[list[Entry], float, float]:
    """The entries of a server, and its dates of question and answer. Raises BadTimeline."""
    entries = data.get("entries")
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise BadTimeline("its answer has no list of entries")
    found = []
    for item in entries:
        if not isinstance(item, dict):
            raise BadTimeline("an entry is not an object")
        source = next((s for s in SOURCES if s == item.get("source")), None)
        texts = [item.get(name) for name in ("subject", "who", "text")]
        if source is None or not all(isinstance(text, str) for text in texts):
            raise BadTimeline("an entry has not the fields source, subject, who and text")
        subject, who, text = (str(t)[:MAX_TEXT] for t in texts)
        found.append(Entry(_date(item.get("at")), node, source, subject, who, text))
    return found, _date(data.get("received")), _date(data.get("answered"))


def _date(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 36:
        raise BadTimeline(f"{value!r} is not a date")
    return float(value)


def lines(entries: Sequence[Entry], paint: Callable[[str, Source], str] = lambda text, source: text) -> Iterator[str]:
    """Entries for people, in columns."""
    width = max((len(entry.node) for entry in entries), default=0)
    for entry in entries:
        if entry.source == "command":
            where, text = "command", f"[{entry.who}] {entry.text}"
        else:
            where = f"{entry.subject}/{entry.who}" if entry.subject else entry.who
            text = entry.text
        text = "".join(c if c.isprintable() else " " for c in text)
        yield paint(f"{shown(entry.at)} | {entry.node.ljust(width)} | {where:<15} | {text}", entry.source)

"""Times, sizes and progress in words, the same wherever a person reads them. Pure but for the local time zone."""

from __future__ import annotations

import time
from datetime import datetime

from safekit.view.module import Progress


def duration(seconds: float) -> str:
    """A time span in at most two units: 42 s, 3 min 20 s, 2 h 5 min, 4 d 3 h."""
    left = max(round(seconds), 0)
    for size, name, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{left} s"


def size(count: float) -> str:
    """A number of bytes for people (1 KB is 1024 bytes, as everywhere in the product)."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def moment(when: float, now: float | None = None) -> str:
    """A local time: without the date when it is today."""
    if when <= 0:
        return ""
    current = time.localtime(now)
    then = time.localtime(when)
    same_day = (then.tm_year, then.tm_yday) == (current.tm_year, current.tm_yday)
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)


def local_stamp(date: str) -> str:
    """A date of a log in local time with milliseconds, 2026-01-31 10:02:03.123; as it is when it is damaged."""
    try:
        at = datetime.fromisoformat(date).astimezone()
    except ValueError:
        return date
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def progress_line(p: Progress) -> str:
    """Progress of a reintegration in one line, which a narrow terminal may cut: the time left comes first."""
    if not p.files_total:
        return "reintegration: comparing the directory trees"
    percent = f"{100 * p.done / p.total:.0f}%" if p.total else "-"
    left = f", {duration(p.eta)} left" if p.eta is not None else ""
    kind = f" ({p.kind})" if p.kind else ""
    return (
        f"reintegration{kind} {percent}{left}: {size(p.done)} of {size(p.total)}, {size(p.rate)}/s,"
        f" {p.files}/{p.files_total} files"
    )

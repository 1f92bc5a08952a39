"""When certificates end, as the web service publishes it and `safekit state` tells it.

A line each, BEGINS ENDS FILE NAME, and no JSON: `state` pays for every import."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safekit.disk.paths import safe, safevar

FILE = "certificates.txt"
WARN_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class Expiry:
    """One file of SAFE/web/conf. `begins` and `ends` are Unix seconds."""

    file: str
    name: str
    begins: float
    ends: float


def expiry_file() -> Path:
    """Where it is published."""
    return safevar() / "web" / FILE


def published() -> tuple[Expiry, ...]:
    """What is known; nothing before the web service has run, or when the file is damaged."""
    try:
        lines = expiry_file().read_text(encoding="utf-8").splitlines()
        fields = [line.split(" ", 3) for line in lines]
        return tuple(Expiry(file, name, float(begins), float(ends)) for begins, ends, file, name in fields)
    except (OSError, ValueError):
        return ()


def to_text(found: Iterable[Expiry]) -> str:
    """The content of the file."""
    return "".join(f"{each.begins:.0f} {each.ends:.0f} {each.file} {_one_line(each.name)}\n" for each in found)


def _one_line(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def line_of(each: Expiry, now: float) -> str:
    """One sentence, with what to do."""
    path, date = safe() / "web" / "conf" / each.file, time.strftime("%Y-%m-%d %H:%M", time.localtime(each.ends))
    if now < each.begins:
        begins = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.begins))
        return f"the certificate {path} ({each.name}) is not valid before {begins}: is the clock right? timedatectl"
    what = f"ended on {date}" if now >= each.ends else f"ends in {(each.ends - now) / 86400:.0f} days, on {date}"
    return f"the certificate {path} ({each.name}) {what}: renew it (SAFE/web/bin/initssl renew, or your PKI)"


def due(now: float) -> list[str]:
    """A sentence for each certificate that is not valid, or not for long."""
    return [line_of(each, now) for each in published() if each.ends - now < WARN_SECONDS or now < each.begins]

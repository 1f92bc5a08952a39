"""What the log of a module says."""

from __future__ import annotations

from pathlib import Path

from safekit.log.module import parse_line


def said(var: Path, code: str) -> list[str]:
    """Texts of the lines with this code, in SAFEVAR/modules/AM."""
    lines = (parse_line(text) for text in (var / "log" / "module.log").read_text().splitlines())
    return [line.english for line in lines if line is not None and line.code == code]

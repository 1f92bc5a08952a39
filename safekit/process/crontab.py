"""The crontab of a user, through the system's own command: it checks the lines and tells cron."""

from __future__ import annotations

import contextlib
import subprocess

SECONDS = 30.0


class CrontabError(Exception):
    """The crontab could not be read or written; the text is what the command says."""


def read(user: str) -> str:
    """The whole text, "" when the user has none. Raises CrontabError."""
    done = _run(user, "-l")
    if done.returncode:
        if "no crontab" in done.stderr:
            return ""
        raise CrontabError(done.stderr.strip())
    return done.stdout


def write(user: str, text: str) -> None:
    """Replace the whole text. Raises CrontabError; the former one stays then."""
    done = _run(user, "-", text)
    if done.returncode:
        raise CrontabError(done.stderr.strip())


def remove(user: str) -> None:
    """The user has no crontab any more, as where he had none, or where there is no cron."""
    with contextlib.suppress(CrontabError):
        _run(user, "-r")


def _run(user: str, what: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["crontab", "-u", user, what], input=text or "",
            capture_output=True, text=True, errors="surrogateescape", check=False, timeout=SECONDS,
        )  # fmt: skip
    except FileNotFoundError:
        raise CrontabError("the command crontab is not on this system: install cron") from None
    except subprocess.TimeoutExpired:
        raise CrontabError(f"the command crontab did not end within {SECONDS:g} s") from None

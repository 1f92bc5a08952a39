"""Scheduled synchronisation (13.6.4.10): what `syncat` says, and the entry of the crontab that does it.

cron sets the resource rfs.syncat to up at the times of the expression; a server that waits for it synchronises then
(see heart.core.syncat). The entry is on every server of the module and means nothing to a primary.
"""

from __future__ import annotations

from datetime import datetime

from cronsim import CronSim, CronSimError

from safekit.disk.paths import safe

USER = "safekit"
"""Whose crontab it is (13.6.3)."""
RESOURCE = "rfs.syncat"
_SPECIAL = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@annually": "0 0 1 1 *",
    "@yearly": "0 0 1 1 *",
}
_KNOWN = frozenset("0123456789*,-/ \tABCDEFGHIJKLMNOPQRSTUVWXYZ")


class ScheduleError(ValueError):
    """The expression is none that cron takes."""


def parse(expression: str) -> str:
    """The five fields of an expression. Raises ScheduleError."""
    text = " ".join(expression.split())
    fields = _SPECIAL.get(text.lower(), text).upper()
    if len(fields.split()) != 5 or not set(fields) <= _KNOWN:
        expected = 'expected five fields as in a crontab, for example "1 0 * * *" for one minute past midnight'
        raise ScheduleError(f'"{expression}": {expected}')
    try:
        next(CronSim(fields, datetime(2000, 1, 1)))
    except CronSimError as error:
        raise ScheduleError(f'"{expression}": {str(error).lower()} in the fields of a crontab') from None
    except StopIteration:
        raise ScheduleError(f'"{expression}": there is no such date') from None
    return fields


def next_time(expression: str, now: datetime) -> datetime:
    """When cron runs it next, after `now`, in the zone of `now`. Raises ScheduleError."""
    return next(CronSim(parse(expression), now))


def without(text: str, module: str) -> str:
    """A crontab without the entry of the module; what else somebody wrote there stays."""
    kept: list[str] = []
    titled = False
    for line in text.splitlines(keepends=True):
        mine = line.rstrip("\n") == _title(module)
        if not mine and not (titled and f" -m {module} -r {RESOURCE} " in line):
            kept.append(line)
        titled = mine
    return "".join(kept)


def with_entry(text: str, module: str, expression: str) -> str:
    """A crontab in which the module has this entry, and no other. Raises ScheduleError."""
    kept = without(text, module)
    if kept and not kept.endswith("\n"):
        kept += "\n"
    command = safe() / "safekit"
    # Silent: cron sends by mail what an entry prints, and the log of the module tells what was done.
    line = f"[ -x {command} ] && {command} set -m {module} -r {RESOURCE} -v up -i cron >/dev/null 2>&1"
    return f"{kept}{_title(module)}\n{parse(expression)} {line}\n"


def _title(module: str) -> str:
    return f"# SafeKit module {module}: synchronisation (syncat); safekit config writes the next line"

"""syncat: what is taken for a schedule, when it is next, and the entry of a crontab."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from safekit.model.schedule import ScheduleError, next_time, parse, with_entry, without

OTHERS = "MAILTO=ops\n# SafeKit module other: mine\n5 0 * * * /usr/bin/true %d\n"


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("01 0 * * *", "2026-12-01 00:01"),
        ("*/15 8-18 * * mon-fri", "2026-11-30 17:15"),
        ("  30   4  1,15 * 5 ", "2026-12-01 04:30"),
        ("@daily", "2026-12-01 00:00"),
        ("@Hourly", "2026-11-30 18:00"),
        ("0 0 29 2 *", "2028-02-29 00:00"),
    ],
)
def test_the_next_time(expression: str, wanted: str) -> None:
    assert f"{next_time(expression, datetime(2026, 11, 30, 17, 1, tzinfo=UTC)):%Y-%m-%d %H:%M}" == wanted


def test_a_day_without_that_hour_and_one_that_has_it_twice() -> None:
    """As cron does it: an hour that is left out runs at once after the change, one that comes twice runs once."""
    zone = ZoneInfo("Europe/Paris")
    spring = next_time("30 2 * * *", datetime(2026, 3, 29, 0, 0, tzinfo=zone))
    assert f"{spring:%d %H:%M}" == "29 03:00"
    autumn = next_time("30 2 * * *", datetime(2026, 10, 25, 0, 0, tzinfo=zone))
    assert f"{next_time('30 2 * * *', autumn):%d %H:%M}" == "26 02:30"


@pytest.mark.parametrize(
    "expression",
    ["", "daily", "@reboot", "1 2 3 4", "1 2 3 4 5 6", "61 0 * * *", "0 0 31 2 *", "0 0 * * L", "0 0 * * 1#2",
     "0 0 * * *\n* * * * * rm -rf /", "1 0 * * % x", "/SC DAILY /ST 00:01:00"],
)  # fmt: skip
def test_what_is_no_schedule(expression: str) -> None:
    with pytest.raises(ScheduleError):
        if "rm" in expression:
            expression = expression.replace(" rm -rf /", "")
        parse(expression)


def test_the_entry_of_a_module_comes_changes_and_goes_and_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE", "/opt/safekit")
    once = with_entry(OTHERS, "db", "@daily")
    assert once.startswith(OTHERS) and once.splitlines()[-1] == (
        "0 0 * * * [ -x /opt/safekit/safekit ] && "
        "/opt/safekit/safekit set -m db -r rfs.syncat -v up -i cron >/dev/null 2>&1"
    )
    both = with_entry(once, "db2", "5 1 * * *")
    again = with_entry(both, "db", "1 0 * * *")
    assert again.count("-m db -r") == again.count("-m db2 -r") == 1 and "1 0 * * * [ -x" in again
    assert without(again, "db2") == with_entry(OTHERS, "db", "1 0 * * *")
    assert without(without(again, "db"), "db2") == OTHERS
    assert with_entry("5 0 * * * last", "db", "@daily").startswith("5 0 * * * last\n#"), "a last line without its end"


def test_what_somebody_wrote_in_the_place_of_the_entry_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    text = with_entry("", "db", "@daily")
    title = text.splitlines(keepends=True)[0]
    assert without(title + "5 0 * * * mine\n", "db") == "5 0 * * * mine\n"

"""Which changes of a module become messages, by whom, and how many. Pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from safekit.notify.deliver import letter
from safekit.notify.queue import FIRST, KEEP, LONGEST, Waiting, after_failure
from safekit.notify.settings import BadSettings, Mail, NotifySettings, Security, parse_settings
from safenotify.events import HOUR, Event, Events, Limit, View, headline, speaks

PRIM = View("web", "mirror", "PRIM", "green", 1.0, "SECOND", "protected")
SECOND = View("web", "mirror", "SECOND", "green", 1.0, "PRIM", "protected")
ALONE = View("web", "mirror", "ALONE", "green", 1.0, "UNKNOWN", "degraded")
STOP = View("web", "mirror", "STOP", "red", 1.0, "UNKNOWN", "stopped")


def through(*states: tuple[float, View], settle: float = 10.0) -> list[Event]:
    """The events of a module that is in those states from those times on, looked at every second for a while after."""
    events = Events(settle)
    found: list[Event] = []
    last = states[-1][0] + 2 * settle
    for second in range(int(last) + 2):
        now = [view for at, view in states if at <= second][-1]
        found += events.see([now], float(second))
    return found


def magenta(view: View) -> View:
    return replace(view, color="magenta")


def test_a_failover_is_one_message_of_the_server_that_takes_over() -> None:
    survivor = through((0, SECOND), (5, magenta(ALONE)), (9, ALONE))
    assert len(survivor) == 1 and speaks(survivor[0])
    assert headline(survivor[0], "B", "A") == "web failed over from A to B"
    assert survivor[0].began == 5
    gone = through((0, PRIM), (5, magenta(STOP)), (7, STOP))
    assert len(gone) == 1 and not speaks(gone[0]), "the other one had a secondary: it is told there"


def test_a_swap_is_told_once_by_the_new_primary() -> None:
    new = through((0, SECOND), (3, magenta(PRIM)), (5, ALONE), (6, PRIM))
    old = through((0, PRIM), (3, magenta(SECOND)), (6, SECOND))
    assert [speaks(event) for event in (*new, *old)] == [True, False]
    assert headline(new[0], "B", "A") == "web runs on B now, A is its secondary"


def test_a_secondary_that_goes_and_comes_is_told_by_the_primary() -> None:
    primary = through((0, PRIM), (5, ALONE), (100, PRIM))
    assert [headline(e, "A", "B") for e in primary if speaks(e)] == [
        "web runs on A alone: B cannot take over", "web is protected: A runs it, B can take over"
    ]  # fmt: skip
    assert not [e for e in through((0, SECOND), (5, STOP), (100, SECOND)) if speaks(e)]


def test_the_last_server_tells_that_nothing_runs_any_more() -> None:
    (event,) = through((0, ALONE), (5, magenta(STOP)), (8, STOP))
    assert speaks(event) and headline(event, "A", "B") == "web does not run on A any more (STOP)"


def test_what_comes_back_before_it_settled_is_no_event() -> None:
    assert through((0, PRIM), (5, ALONE), (8, PRIM)) == []
    assert through((0, PRIM), (5, magenta(PRIM)), (8, PRIM)) == [], "a restart of the application"


def test_what_is_found_at_the_start_is_no_event() -> None:
    assert through((0, STOP)) == [] and through((0, PRIM)) == []


def test_a_module_that_never_rests_is_told_all_the_same() -> None:
    states: list[tuple[float, View]] = [(0, PRIM)]
    states += [(float(n), magenta(replace(PRIM, state="WAIT"))) for n in range(5, 400)]
    assert len(through(*states, settle=5.0)) == 1


def test_a_storm_is_limited_and_summed_up() -> None:
    limit = Limit(6)
    taken = [limit.take("web", float(n)) for n in range(100)]
    assert taken == [0] * 6 + [None] * 94
    assert limit.take("other", 50.0) == 0, "each module has its own"
    assert limit.owed(1000.0) == [] and limit.owed(HOUR + 1) == ["web"]
    assert limit.take("web", HOUR + 1) == 94 and limit.take("web", HOUR + 2) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[mail]\nserver = s\n", "needs server and to"),
        ("[mail]\nserver = s\nto = a b\n", "not a list of addresses"),
        ("[mail]\nserver = s\nto = a@b\nuser = u\n", "belong together"),
        ("[mail]\nserver = s\nto = a@b\nuser = u\npassword = p\nsecurity = none\n", "clear text"),
        ("[mail]\nserver = s\nto = a@b\nsecurity = ssl\n", "is not starttls"),
        ("[mail]\nserver = s\nto = a@b\nprot = 2\n", "has no prot"),
        ("[mial]\nserver = s\n", "is not one of"),
        ("[webhook]\nurl = file:///etc/passwd\n", "is not an address"),
        ("[limits]\nper_hour = 0\n", "is not a number between 1"),
        ("server = s\n", "no section headers"),
    ],
)
def test_settings_that_are_wrong_are_named(text: str, expected: str) -> None:
    with pytest.raises(BadSettings, match=expected.replace("[", "\\[")):
        parse_settings(text)


def test_settings() -> None:
    assert parse_settings("") == NotifySettings()
    found = parse_settings("[mail]\nserver=s\nto=a@b, c@d\nsecurity=tls ; yes\n[webhook]\nurl=https://x/y?z=%20\n")
    assert found.mail is not None and (found.mail.port, found.mail.to, found.mail.sender) == (
        465,
        ("a@b", "c@d"),
        "safekit@s",
    )
    assert found.channels == ("mail", "webhook") and "https" not in repr(found)


def test_a_subject_cannot_add_headers() -> None:
    mail = Mail("s", 25, Security.NONE, "a@b", ("c@d",))
    made = letter(mail, {"subject": "x\r\nBcc: evil@e\n" + "y" * 500, "text": "t\n", "id": "1"})
    assert made["Bcc"] is None and len(made["Subject"]) <= 150 and made["Message-ID"] == "<1@safekit>"


def test_deliveries_are_tried_later_and_later_and_given_up() -> None:
    item: Waiting | None = Waiting(Path("x"), "mail", {}, 0.0)
    gaps: list[float] = []
    now = 0.0
    while True:
        assert item is not None
        item = after_failure(item, now, "no")
        if item is None:
            break
        gaps.append(item.due - now)
        now = item.due
    assert gaps[:3] == [FIRST, 2 * FIRST, 4 * FIRST] and max(gaps) == LONGEST and KEEP < now <= KEEP + LONGEST

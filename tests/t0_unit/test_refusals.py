"""What is said of datagrams that are refused: nothing that a stranger sends hides or repeats a warning."""

from __future__ import annotations

from safekit.log.refusals import AGAIN_SECONDS, REPEAT_SECONDS, STRANGERS, Refusals


def test_once_then_with_their_number() -> None:
    refusals = Refusals()
    assert [refusals.say("10.0.0.2", "key", float(t)) for t in range(4)] == [0, None, None, None]
    assert refusals.say("10.0.0.2", "version", 1.0) == 0, "another problem is another line"
    assert refusals.say("10.0.0.2", "key", REPEAT_SECONDS) == 3


def test_strangers_take_no_room_from_servers_of_the_cluster() -> None:
    refusals = Refusals()
    said = [refusals.say(f"10.1.{n >> 8}.{n & 255}", "malformed", 1.0, stranger=True) for n in range(5000)]
    assert sum(number is not None for number in said) == STRANGERS
    assert refusals.say("10.0.0.2", "key", 1.0) == 0


def test_who_forges_between_genuine_datagrams_gets_a_line_a_minute() -> None:
    refusals = Refusals()
    said = settled = 0
    for tenth in range(int(AGAIN_SECONDS * 10 * 5)):
        said += refusals.say("10.0.0.2", "key", tenth / 10) is not None
        settled += refusals.settle("10.0.0.2")
    assert said == settled == 5


def test_what_is_over_and_comes_back_is_said_again() -> None:
    refusals = Refusals()
    assert not refusals.settle("10.0.0.2")
    assert refusals.say("10.0.0.2", "key", 0.0) == 0
    assert refusals.settle("10.0.0.2") and not refusals.settle("10.0.0.2")
    assert refusals.say("10.0.0.2", "key", AGAIN_SECONDS) == 0

"""Order and arguments of the user scripts for every transition (guide 14.1, 14.2)."""

from __future__ import annotations

import pytest

from heart.core import plans
from heart.core.actions import Scripts, Step
from heart.core.values import Role


def calls(steps: tuple[Step, ...]) -> list[str]:
    """Every script call with its arguments, in order."""
    return [" ".join((call.name, *call.args)) for step in steps if isinstance(step, Scripts) for call in step.calls]


def names(steps: tuple[Step, ...]) -> list[str]:
    """Names, with the forced call of a stop script that follows its nice one folded away."""
    out: list[str] = []
    for call in calls(steps):
        name, *args = call.split()
        if args[0] == "force":
            assert out and out[-1] == name, "force comes right after the nice call of the same script"
        else:
            out.append(name)
    return out


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (plans.start("start"), ["transition", "prestart"]),
        (
            plans.to_alone(Role.WAIT, "start", stops=(), starts=("start_both", "start_prim")),
            ["transition", "start_both", "start_prim"],
        ),
        (plans.second_scripts("start"), ["transition", "start_both", "start_second", "start_sec"]),
        (plans.pair_complete("start"), ["transition", "start_sec"]),
        (plans.pair_broken("stop"), ["stop_sec", "transition"]),
        (
            plans.to_alone(Role.SECOND, "stop", stops=("stop_sec", "stop_second"), starts=("start_prim",)),
            ["stop_sec", "stop_second", "transition", "start_prim"],
        ),
        (plans.give(Role.PRIM, False), ["stop_prim", "transition", "start_second"]),
        (plans.give(Role.ALONE, False), ["stop_prim", "transition", "start_second", "start_sec"]),
        (plans.take(False), ["stop_second", "transition", "start_prim"]),
        (plans.leave(Role.ALONE, "stop"), ["stop_prim", "stop_both", "transition"]),
        (plans.leave(Role.UP, "stop"), ["stop_both", "transition"]),
        (plans.leave(Role.PRIM, "stop"), ["stop_sec", "stop_prim", "stop_both", "transition"]),
        (plans.leave(Role.SECOND, "stop"), ["stop_sec", "stop_second", "stop_both", "transition"]),
        (plans.restart(Role.ALONE), ["stop_prim", "stop_both", "start_both", "start_prim"]),
        (plans.restart(Role.UP), ["stop_both", "start_both"]),
        (
            plans.restart(Role.PRIM),
            ["stop_sec", "stop_prim", "stop_both", "start_both", "start_prim", "start_sec"],
        ),
        (
            plans.restart(Role.SECOND),
            ["stop_sec", "stop_second", "stop_both", "start_both", "start_second", "start_sec"],
        ),
    ],
)
def test_order_of_each_transition(steps: tuple[Step, ...], expected: list[str]) -> None:
    assert names(steps) == expected


def test_stop_scripts_are_called_nicely_then_with_force_before_the_next_one() -> None:
    assert calls(plans.leave(Role.ALONE, "stopstart")) == [
        "stop_prim ALONE WAIT stopstart",
        "stop_prim force ALONE WAIT stopstart",
        "stop_both ALONE WAIT stopstart",
        "stop_both force ALONE WAIT stopstart",
        "transition ALONE WAIT stopstart",
    ]


def test_the_end_of_a_stop_is_the_forced_pass_then_poststop() -> None:
    assert calls(plans.stop_from_wait("stop")) == [
        "stop_sec force WAIT STOP stop",
        "stop_prim force WAIT STOP stop",
        "stop_second force WAIT STOP stop",
        "stop_both force WAIT STOP stop",
        "poststop WAIT STOP stop",
        "transition WAIT STOP stop",
    ]


def test_the_first_transition_is_the_one_of_the_guide() -> None:
    assert calls(plans.start("start"))[0] == "transition STOP WAIT start"


def test_start_and_stop_scripts_are_separate_effects() -> None:
    """A start script may be killed by a stop; a stop script may not."""
    for steps in (plans.restart(Role.PRIM), plans.take(False), plans.give(Role.ALONE, True)):
        for step in steps:
            if isinstance(step, Scripts):
                assert len({call.stops for call in step.calls}) == 1


@pytest.mark.parametrize("word", ["start", "stop", "stopstart", "stopwait", "restart", "swap"])
def test_action_words_are_passed_on(word: str) -> None:
    assert plans.action_word(word) == word


def test_an_unknown_action_word_becomes_start() -> None:
    assert plans.action_word("") == plans.action_word("primforce") == "start"

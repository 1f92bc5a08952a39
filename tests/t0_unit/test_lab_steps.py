"""What `safelab up` shows: the step, its time, and what is left by what it took the last time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lab.steps import Steps


def test_each_step_says_what_is_left_and_is_remembered(tmp_path: Path) -> None:
    times = tmp_path / "times"
    times.write_text(json.dumps({"image": 30.0, "boot": 4.0, "cluster": 6.0}))
    out = io.StringIO()
    steps = Steps(out, times)
    steps.expect("image", "boot", "cluster")
    assert steps.line("image", 10.0).endswith("(10 s), about 30 s left")
    assert steps.line("image", 99.0).endswith("about 10 s left"), "longer than the last time: the rest counts"
    for name in ("image", "boot", "cluster"):
        with steps.step(name):
            pass
    shown = out.getvalue().splitlines()
    assert len(shown) == 3 and "about 40 s left" in shown[0] and "about 6 s left" in shown[2], (
        "not on a terminal: a line each"
    )
    assert all(seconds < 1 for seconds in json.loads(times.read_text()).values())


def test_a_step_that_fails_is_not_remembered_and_damaged_times_are_guessed(tmp_path: Path) -> None:
    times = tmp_path / "times"
    times.write_text("[")
    steps = Steps(None, times)
    steps.expect("boot")
    with pytest.raises(RuntimeError), steps.step("boot"):
        raise RuntimeError
    assert times.read_text() == "["
    assert "about 5 s left" in steps.line("boot", 0.0)

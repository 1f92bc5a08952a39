"""The list of tests that may be tried again: short, each with a reason, each naming a test that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import retried

CHECKOUT = Path(__file__).resolve().parents[2]


def test_the_list_is_short_and_says_why() -> None:
    assert len(retried.LOAD_DEPENDENT) <= retried.MOST
    for known in retried.LOAD_DEPENDENT:
        file, _, rest = known.test.partition("::")
        assert f"def {rest.partition('[')[0]}" in (CHECKOUT / file).read_text(encoding="utf-8"), known.test
        assert "t2_process" in file or "t3_cluster" in file, "a pure test depends on no load"
        assert len(known.reason) > 30, known.test


def test_only_what_is_listed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = retried.LoadDependent("tests/t3_cluster/test_a.py::test_window", "a window of 200 ms that the guide sets")
    monkeypatch.setattr(retried, "LOAD_DEPENDENT", (listed,))
    assert retried.reason_to_try_again("tests/t3_cluster/test_a.py::test_window[1]") == listed.reason
    assert retried.reason_to_try_again("tests/t3_cluster/test_a.py::test_other") is None

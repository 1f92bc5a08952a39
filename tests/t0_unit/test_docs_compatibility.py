"""docs/compatibility.md claims nothing that no test shows."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (CHECKOUT / "docs/compatibility.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not line.startswith("| ---")
]


def test_each_line_names_tests_that_are_there() -> None:
    header = {"shown by"}
    claims = [row for row in ROWS if row[-1] not in header]
    assert len(claims) > 20
    for row in claims:
        named = re.findall(r"`(test_\w+\.py)`", row[-1])
        assert named or row[-1].startswith("all tests"), row
        for name in named:
            assert len(list((CHECKOUT / "tests").glob(f"t*_*/{name}"))) == 1, name


def test_each_application_and_distribution_of_the_tests_is_told() -> None:
    told = " ".join(row[-1] for row in ROWS)
    for pattern in ("test_filesystem_*.py", "test_distributions.py"):
        for path in (CHECKOUT / "tests/t3_cluster").glob(pattern):
            assert path.name in told, path.name

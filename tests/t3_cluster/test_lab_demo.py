"""The demonstration shows what it promises."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from lab.state import lab_directory, lab_names

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def no_demo_lab() -> None:
    if "demo" in lab_names():
        pytest.fail(f"a lab 'demo' is in use ({lab_directory('demo')}); remove it: bin/safelab down --name demo")


@pytest.mark.usefixtures("no_demo_lab")
def test_demo_loses_nothing_and_cleans_up() -> None:
    done = subprocess.run(
        [str(CHECKOUT / "bin/demo"), "--seconds", "4"], capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    acknowledged = re.search(r"rows acknowledged +(\d+)", done.stdout)
    assert acknowledged is not None and int(acknowledged[1]) > 100
    assert re.search(r"rows lost +0\n", done.stdout) and re.search(r"the two directories +equal", done.stdout)
    assert "demo" not in lab_names()

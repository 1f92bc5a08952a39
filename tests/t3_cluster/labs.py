"""The lab of a test file, and what all of its servers say at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from lab.cluster import Lab
from tests.conftest import unique_lab_name


def lab_of_the_file(**options: Any) -> Any:
    """A fixture: one lab for all tests of a file, made with these options of `Lab.up`. Every test leaves it as it found
    it."""

    @pytest.fixture(scope="module")
    def made() -> Iterator[Lab]:
        lab = Lab.up(unique_lab_name(), **options)
        yield lab
        lab.down()

    return made


def blocks(text: str) -> dict[str, str]:
    """What each server said, by node."""
    parts = re.split(r"^--- (\S+).*\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))

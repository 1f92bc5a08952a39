"""Clusters for the tests of this level, and what their logs said when a test fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from checked import Checked
from labs import lab_of_the_file
from pair import Pair

from lab.cluster import Lab
from lab.state import lab_directory
from tests.conftest import unique_lab_name

_LINES = 60


module_lab = lab_of_the_file()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two nodes with a configured cluster, fresh for one test."""
    lab = Lab.up(unique_lab_name())
    yield lab
    lab.down()


@pytest.fixture
def module(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Checked]:
    """A module with checkers on all nodes of the lab of the file, stopped afterwards. EXPECTED of the file: messages of
    its faults."""
    made = Checked(lab)
    made.begin_test()
    made.expect(*request.module.EXPECTED)
    yield made
    for node in made.nodes:
        made.stop(node)
    made.check_logs()


@pytest.fixture
def pair(installed: Pair) -> Iterator[Pair]:
    """The mirror that the file has installed, whose logs say nothing unexpected. Files that install one for each test
    have a fixture of that name of their own."""
    installed.begin_test()
    yield installed
    installed.check_logs()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the ends of all logs of the test's labs to the report of a failure, while they still exist."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when != "call" or not report.failed:
        return
    fixtures = getattr(item, "funcargs", {})
    for fixture in fixtures.values():
        lab = fixture if isinstance(fixture, Lab) else getattr(fixture, "lab", None)
        if isinstance(lab, Lab):
            for title, text in lab_logs(lab):
                report.sections.append((f"{lab.name}: {title}", text))


def lab_logs(lab: Lab) -> Iterator[tuple[str, str]]:
    """(title, last lines) of the consoles and, on nodes that are on, of safeadmin's and the modules' logs."""
    for node in lab:
        console = lab_directory(lab.name) / "nodes" / node.name / "console.log"
        if console.exists():
            yield f"console of {node.name}", _tail(console.read_text(errors="replace"))
        if not node.is_on:
            continue
        listing = node.run("ls /var/log/safe*.log /var/safekit/modules/*/log/*.log 2>/dev/null", check=False)
        for path in listing.stdout.split():
            yield f"{node.name}:{path}", _tail(node.run(["tail", "-n", str(_LINES), path], check=False).stdout)


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_LINES:])

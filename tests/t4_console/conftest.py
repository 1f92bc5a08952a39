"""A cluster and a browser for the tests of the console: one lab of three servers for all files of this level.

The browser is the distribution's Chromium; it reaches the lab over the window that `safelab web` opens. Every page is
watched: an error in a script or a refusal by the content security policy fails the test that caused it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Console
from playwright.sync_api import Browser, BrowserContext, Playwright, sync_playwright

from installation.console import made
from lab.cluster import Lab
from tests.conftest import unique_lab_name

CHROMIUM = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
CHECKOUT = Path(__file__).resolve().parents[2]
PICTURES = CHECKOUT / ".cache" / "pictures"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a browser, or without the console's libraries, there is nothing to look at."""
    missing = "no Chromium; on Debian bin/setup test installs it" if CHROMIUM is None else ""
    if not made(CHECKOUT):
        missing = "the console's libraries are not here; bin/setup makes them"
    for item in items:
        if missing and "t4_console" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    lab = Lab.up(unique_lab_name(), nodes=3, bare=True)
    try:
        yield Cluster(lab)
    finally:
        lab.down()


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield found
    found.close()


@pytest.fixture
def open_console(cluster: Cluster, browser: Browser) -> Iterator[Callable[..., Console]]:
    """A console in a fresh browser profile; `user` logs in. The test fails when its page reported an error."""
    contexts: list[BrowserContext] = []
    consoles: list[Console] = []

    def make(
        user: str | None = "admin", *, node: str = "node1", path: str = "/", locale: str = "en-GB",
        size: tuple[int, int] = (1440, 900), scheme: str = "light",
    ) -> Console:  # fmt: skip
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, locale=locale, color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce", accept_downloads=True,
        )  # fmt: skip
        contexts.append(context)
        context.set_default_timeout(20_000)
        console = Console(context, cluster, node)
        consoles.append(console)
        console.open(path)
        if user is not None:
            console.log_in(user)
        return console

    yield make
    problems = [problem for console in consoles for problem in console.problems]
    for context in contexts:
        context.close()
    assert not problems, problems


@pytest.fixture(scope="session")
def pictures() -> Path:
    PICTURES.mkdir(parents=True, exist_ok=True)
    return PICTURES

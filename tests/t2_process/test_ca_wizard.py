"""The wizard of the CA service in Chromium, from a blank server to a client certificate (PKI-013, PKI-021)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.t2_process.ca_server import PASSWORD, CaServer, openssl

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
WAIT = 90_000


def test_the_wizard_makes_certificates_that_a_browser_takes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    server = CaServer(tmp_path / "one").start()
    complaints: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            ignore_https_errors=True, http_credentials={"username": "CA_admin", "password": PASSWORD}, locale="en-US"
        )
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.url)
        page.get_by_role("form", name="First server").get_by_role("button", name="Confirm").click()
        page.locator("#log .good").first.wait_for()
        assert "https is switched on" in page.locator("#log").inner_text()
        page.get_by_text("https is on, port 9453").first.wait_for()
        page.get_by_role("tab", name="Configure HTTPS console").click()
        form = page.get_by_role("form", name="Create a client certificate")
        form.get_by_label("User name").fill("MARY SMITH")
        form.get_by_label("Password").fill("long password")
        form.get_by_label("Role").select_option("Control")
        with page.expect_download() as download:
            form.get_by_role("button", name="Confirm").click()
        p12 = tmp_path / "mary.p12"
        download.value.save_as(p12)
        assert download.value.suggested_filename == "user_Control_MARY SMITH.p12"
        row = page.get_by_role("row", name="user_Control_MARY SMITH")
        page.once("dialog", lambda dialog: dialog.accept())
        row.get_by_role("button", name="Revoke").click()
        row.get_by_text("revoked").wait_for()
        for path in ("/advanced.html", "/getcsr.html", "/legacy.html"):
            page.goto(server.url + path)
            page.get_by_role("heading", level=1).wait_for()
        for language, title in (("fr", "Toutes les étapes"), ("ja", "すべての手順")):
            page.get_by_role("banner").get_by_role("combobox").select_option(language)
            page.get_by_role("heading", level=1, name=title).wait_for()
        browser.close()
    server.stop()
    assert complaints == []
    opened = openssl("pkcs12", "-in", str(p12), "-passin", "pass:long password", "-nodes")
    assert "MARY SMITH" in opened and "BEGIN PRIVATE KEY" in opened
    if shutil.which("pk12util") is not None:  # the store of Chromium
        store = f"sql:{tmp_path}"
        subprocess.run(["certutil", "-N", "--empty-password", "-d", store], check=True, timeout=60)
        taken = ["pk12util", "-i", str(p12), "-d", store, "-W", "long password", "-K", ""]
        subprocess.run(taken, check=True, timeout=60, capture_output=True)
        listed = subprocess.run(["certutil", "-L", "-d", store], check=True, timeout=60, capture_output=True, text=True)
        assert "MARY SMITH (Control)" in listed.stdout

"""A page that is full, and a path of a newcomer: from servers without a cluster to a survived power failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Console
from playwright.sync_api import Browser, expect

from lab.cluster import Lab
from lab.waiting import wait_until
from lab.window import open_window
from tests.conftest import unique_lab_name

Open = Callable[..., Console]
SPREAD = """([nodes, modules, now]) => {
  const row = (module, i, n) => ({
    module, id: i + 1, mode: "mirror", state: n === 0 ? "PRIM" : "SECOND", since: now - 60 * i,
    running: true, heart: true,
    color: i % 7 === 3 && n === 1 ? "magenta" : "green", remote_state: "", remote_color: "", configured: true,
    verdict: { kind: "protected", since: now, reason: "", next_step: "" }, ready: n === 0, degraded: i % 11 === 5,
    failover: "on", encryption: "on", uptodate: "up", stamp: String(i), down: [], shares: {}, reintegration: null,
    signature: "s" + i, virtual: [], replicated: ["/data/" + module],
  });
  const all = Object.fromEntries(nodes.map((node, k) => [node, {
    node, reachable: k !== 7, problem: null, version: "7.4.0", cluster: "c", configured: true, ahead: 0, nodes,
    at: k === 7 ? now - 30 : 0,
    modules: Object.fromEntries(modules.map((m, i) => [m, row(m, i, k % 2)])
      .filter((_, i) => Math.floor(k / 2) === i % 4)),
  }]));
  const channel = new BroadcastChannel("safekit");
  channel.postMessage({ kind: "lead", id: 1 });
  setInterval(() => channel.postMessage({ kind: "beat", id: 1 }), 500);
  const data = { me: "node1", user: "admin", role: "Admin", time: now, order: nodes, nodes: all };
  channel.postMessage({ kind: "event", type: "snapshot", data });
}"""


def test_twenty_modules_on_eight_servers(open_console: Open, pictures: Path) -> None:
    """A full page stays readable: nothing is wider than the window, and each module has its row."""
    console = open_console()
    other = console.watched(console.context.new_page())
    other.goto(f"{console.url}/safekit/localhost.html")
    nodes, modules = [f"node{i}" for i in range(1, 9)], [f"module{i:02}" for i in range(1, 21)]
    now = console.page.evaluate("Date.now() / 1000")
    other.evaluate(SPREAD, [nodes, modules, now])
    expect(console.page.locator("article")).to_have_count(20)
    expect(console.page.locator("article[data-module=module06]")).to_contain_text("data at risk")
    assert console.page.evaluate("document.documentElement.scrollWidth") <= 1440
    console.picture(pictures / "full-cards.png")
    console.go("monitoring", format="table")
    other.evaluate(SPREAD, [nodes, modules, now])
    expect(console.page.locator("tbody tr")).to_have_count(20)
    assert console.page.evaluate("document.documentElement.scrollWidth") <= 1440
    console.picture(pictures / "full-table.png")


@pytest.fixture
def blank() -> Iterator[Lab]:
    lab = Lab.up(unique_lab_name(), nodes=2, bare=True)
    yield lab
    lab.down()


def test_the_path_of_a_newcomer(blank: Lab, browser: Browser) -> None:
    """Two servers that know nothing of each other become a cluster, a module protects a directory, and the power of
    its server fails: all in the browser, but the failure."""
    one, two = blank.nodes.values()
    password = one.read("/var/safekit/admin-password").strip()
    for node in (one, two):
        node.run(["mkdir", "-p", "/data/first"])
    context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-GB", reduced_motion="reduce")
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.goto(open_window(blank.name)["node1"])
    page.locator("input[name=user]").fill("admin")
    page.locator("input[name=password]").fill(password)
    page.locator("button[type=submit]").click()
    page.get_by_role("link", name="Configure the cluster").click()
    form = page.locator("form.cluster")
    form.locator("[data-machine='0'] input[name=address]").fill(one.address())
    page.locator("[data-key=new-node]").click()
    form.locator("[data-machine='1'] input[name=address]").fill(two.address())
    form.locator("[data-machine='1'] input[name=address]").press("Tab")
    expect(form.locator("[data-machine='1'] input[name=name]")).to_have_value("node2")
    page.locator("[data-key=save-cluster]").click()
    dialog = page.get_by_role("dialog", name="Password for node2")
    dialog.locator("input[name=password]").fill(two.read("/var/safekit/admin-password").strip())
    dialog.locator("[data-key=confirm]").click()
    expect(page.locator(".page-head, .cluster-panel").first).to_be_visible()
    wait_until(lambda: two.run(["test", "-e", "/var/safekit/cluster/cluster.xml"], check=False).returncode == 0, 60,
               "node2 has the configuration")  # fmt: skip
    template = page.locator("dl[data-node=node1] [data-template='generic/mirror']")
    template.click()
    page.locator("input[name=module]").fill("first")
    page.locator("dialog [data-key=confirm]").click()
    wizard = page.get_by_role("dialog", name="Configuration of first")
    expect(wizard.locator("input[name=node2]")).to_be_checked()
    wizard.locator("[data-key=validate]").click()
    wizard.get_by_label("VIRTUAL_IP").fill(blank.vip)
    wizard.get_by_label("DIRECTORY1").fill("/data/first")
    wizard.locator("[data-section=replication] .row").nth(1).get_by_role("button").click()
    wizard.locator("[data-key=validate]").click()
    wizard.locator("[data-key=configure]").click()
    wizard.locator("[data-key=next]").click(timeout=90_000)
    wizard.locator("[data-key=start-prim]").click()
    page.get_by_role("tab", name="Monitoring").click()
    card = page.locator("article[data-module=first]")
    expect(card).to_contain_text("protected", timeout=120_000)
    one.write("/data/first/kept", "acknowledged")
    # The browser stays on the server that survives.
    other = context.new_page()
    other.goto(open_window(blank.name)["node2"])
    other.locator("input[name=user]").fill("admin")
    other.locator("input[name=password]").fill(two.read("/var/safekit/admin-password").strip())
    other.locator("button[type=submit]").click()
    expect(other.locator("article[data-module=first]")).to_contain_text("node1 serves")
    one.poweroff()
    # The template's heartbeats are believed for 30 seconds.
    expect(other.locator("article[data-module=first]")).to_contain_text("node2 serves", timeout=120_000)
    assert two.read("/data/first/kept") == "acknowledged"
    context.close()

"""What the tests of the console look at: a cluster in a lab, and a page of a browser on it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, expect

from lab.cluster import Lab, Node
from lab.waiting import wait_until
from lab.window import open_window

PASSWORDS = {"oper": "operator-secret", "viewer": "viewer-secret"}
MIRROR = """<!DOCTYPE safe>
<safe>
 <service mode="mirror">
  <heart pulse="200" timeout="3000">
   <heartbeat name="pair"/>
   <heartbeat name="repli" ident="flow"/>
  </heart>
  <rfs><replicated dir="/data/app"/></rfs>
  <user/>
 </service>
</safe>
"""
FARM = """<!DOCTYPE safe>
<safe>
 <service mode="farm">
  <farm><lan name="default"/></farm>
  <user/>
 </service>
</safe>
"""
MODULES = "/opt/safekit/modules"
# What a browser says itself of an answer that is no success: the tests make such answers on purpose.
EXPECTED = re.compile(r"Failed to load resource: (the server responded with a status of|net::ERR)")


class Cluster:
    """Three servers: a mirror `app` on node1 and node2, a farm `web` on all."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.urls = open_window(self.lab.name)
        self.nodes = list(self.lab.nodes.values())
        self.one, self.two, self.three = self.nodes
        self.admin = {node.name: node.read("/var/safekit/admin-password").strip() for node in self.nodes}
        self._configure()
        self._users()
        for node in (self.one, self.two):
            node.run(["mkdir", "-p", "/data/app"])
            self.install(node, "app", "mirror.safe", MIRROR)
        for node in self.nodes:
            self.install(node, "web", "farm.safe", FARM)
        self.one.safekit("prim", "-m", "app")
        self.one.safekit("waitstate", "-m", "app", "ALONE", timeout=60)
        self.two.safekit("second", "-m", "app")
        self.two.safekit("waitstate", "-m", "app", "SECOND", timeout=60)
        for node in self.nodes:
            node.safekit("start", "-m", "web")

    def _configure(self) -> None:
        """All on one network; the two of the mirror on two more."""
        lans = {"default": ("default", 3), "pair": ("default", 2), "repli": ("repli", 2)}
        xml = "<cluster>\n <lans>\n"
        for lan, (network, count) in lans.items():
            members = "".join(f'   <node name="{n.name}" addr="{n.address(network)}"/>\n' for n in self.nodes[:count])
            console = "on" if lan == "default" else "off"
            xml += f'  <lan name="{lan}" console="{console}">\n{members}  </lan>\n'
        self.one.write("/root/cluster.xml", xml + " </lans>\n</cluster>\n")
        self.one.safekit("cluster", "config", "/root/cluster.xml")
        self.one.run(["safekit", "-H", "*", "-G"], env={"SAFEKIT_PASSWORD": self.admin["node1"]})

    def _users(self) -> None:
        """An operator and a viewer beside admin, on every server."""
        for node in self.nodes:
            for name, password in PASSWORDS.items():
                node.run(
                    f"printf '%s' {password} | /opt/safekit/web/bin/htpasswd -i /opt/safekit/web/conf/user.conf {name}"
                )
            node.write("/opt/safekit/web/conf/group.conf", "Admin: admin\nControl: oper\nMonitor: viewer\n")

    def install(self, node: Node, module: str, template: str, userconfig: str) -> None:
        node.safekit("module", "install", "-m", module, template)
        node.write(f"{MODULES}/{module}/conf/userconfig.xml", userconfig)
        node.safekit("config", "-m", module)

    def password(self, user: str, node: str) -> str:
        return self.admin[node] if user == "admin" else PASSWORDS[user]

    def state(self, node: Node, module: str) -> str:
        data = json.loads(node.safekit("state", "-m", module, "--json").stdout)
        found = data["modules"][0]
        return f"{found['state']} {found['color']}"

    def wait(self, node: Node, module: str, state: str, timeout: float = 60) -> None:
        wait_until(lambda: self.state(node, module) == state, timeout, f"{module} on {node.name} is {state}", 0.3)

    def pair(self) -> None:
        """app is PRIM on node1 and SECOND on node2, web runs everywhere: what every test begins with."""
        for node in self.nodes:
            if not node.is_on:
                node.poweron()
            if self.state(node, "web") != "UP green":
                node.safekit("start", "-m", "web", check=False)
        states = [self.state(node, "app") for node in (self.one, self.two)]
        if states == ["SECOND green", "PRIM green"]:
            self.one.safekit("swap", "-m", "app", timeout=90)
        for node in (self.one, self.two):
            if self.state(node, "app").startswith("STOP"):
                node.safekit("start", "-m", "app", check=False)
        self.wait(self.one, "app", "PRIM green", 90)
        self.wait(self.two, "app", "SECOND green", 90)

    def log(self, node: Node, module: str) -> str:
        return node.safekit("log", "-A", "-s", "400", "-m", module).stdout


class Console:
    """A page of the console, and what it reported as an error."""

    def __init__(self, context: BrowserContext, cluster: Cluster, node: str) -> None:
        self.context = context
        self.cluster = cluster
        self.node = node
        self.problems: list[str] = []
        self.page: Page = self.watched(context.new_page())

    def watched(self, page: Page) -> Page:
        def said(message: ConsoleMessage) -> None:
            if message.type == "error" and not EXPECTED.match(message.text):
                self.problems.append(message.text)

        page.on("console", said)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        return page

    @property
    def url(self) -> str:
        return self.cluster.urls[self.node]

    def open(self, path: str = "/") -> None:
        self.page.goto(f"{self.url}{path}")

    def log_in(self, user: str = "admin", password: str | None = None) -> None:
        self.page.get_by_label("User").or_(self.page.locator("input[name=user]")).first.fill(user)
        self.page.locator("input[name=password]").fill(password or self.cluster.password(user, self.node))
        self.page.locator("button[type=submit]").click()
        if password is None:
            self.page.locator(".top").wait_for()

    def go(self, *parts: str, **query: str) -> None:
        """Another place of the console, as by a link."""
        tail = "&".join(f"{name}={value}" for name, value in query.items())
        self.page.evaluate("place => { location.hash = place; }", f"#/{'/'.join(parts)}{'?' + tail if tail else ''}")

    def card(self, module: str) -> Locator:
        return self.page.locator(f"article[data-module='{module}']")

    def tab(self, key: str) -> Locator:
        return self.page.locator(f"[role=tab][data-key='{key}']")

    def item(self, key: str) -> Locator:
        """An item of the menu that is open."""
        return self.page.locator(f"[role=menuitem][data-key='{key}']")

    def key(self, key: str) -> Locator:
        return self.page.locator(f"[data-key='{key}']")

    def menu(self, module: str, node: str | None = None) -> Locator:
        """The button that opens the menu of a module, or of a module on a server."""
        block = self.page.locator(f"main [data-module='{module}']").first
        place = block.locator(f"[data-node='{node}']") if node else block
        return place.locator("[aria-haspopup=menu]").first

    def confirm(self) -> None:
        self.page.locator("dialog [data-key=confirm]").last.click()

    def done(self, words: str) -> None:
        """The task strip tells that the command ended well."""
        expect(self.page.locator(".strip .task", has_text=words).first).to_contain_text("done", timeout=90_000)

    def picture(self, path: Path) -> None:
        self.page.screenshot(path=path)

    def api(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """A request of the page itself, with its session: what a person without the buttons could try."""
        script = """async ([method, path, body]) => {
          const answer = await fetch(`/api/v1/${path}`, { method, headers: { "X-SafeKit-Console": "1",
            "Content-Type": "application/json" }, body: body === null ? undefined : JSON.stringify(body) });
          return [answer.status, await answer.json()];
        }"""
        status, data = self.page.evaluate(script, [method, path, body])
        return int(status), data

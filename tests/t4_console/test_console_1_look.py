"""What the console shows (checklist areas web-console and web-i18n): states, verdicts, details, roles, languages."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, Console
from playwright.sync_api import expect

Open = Callable[..., Console]


@pytest.fixture(autouse=True)
def _pair(cluster: Cluster) -> None:
    cluster.pair()


def test_logging_in_and_out(open_console: Open, cluster: Cluster) -> None:
    """WCO-001: the console opens at the address of a server; a wrong password is told, and logging out ends it."""
    console = open_console(None)
    console.log_in("admin", "wrong")
    expect(console.page.get_by_role("alert")).to_contain_text("Wrong user or password")
    console.log_in("admin")
    expect(console.page.get_by_role("tab", name="Monitoring")).to_have_attribute("aria-selected", "true")
    cookie = next(each for each in console.context.cookies() if each["name"] == "safekit_session")
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    console.page.get_by_title("User admin").click()
    console.item("logout").click()
    expect(console.page.locator("input[name=user]")).to_be_visible()
    assert console.api("GET", "node")[0] == 401
    console.page.reload()
    expect(console.page.locator("input[name=user]")).to_be_visible()


def test_the_address_localhost_is_explained(open_console: Open, cluster: Cluster) -> None:
    """WCO-012: localhost as an address of the console leads to a page that asks for another one."""
    console = open_console(None)
    answer = cluster.lab.client.run(
        ["curl", "-sH", "Host: localhost:9010", "-o", "/dev/null", "-w", "%{redirect_url} %{http_code}",
         f"http://{cluster.one.address()}:9010/"], check=False,
    )  # fmt: skip
    assert "localhost" in answer.stdout
    console.open("/safekit/localhost.html")
    expect(console.page.get_by_role("heading")).to_contain_text("Use another address")


def test_the_first_page_tells_who_serves_and_since_when(open_console: Open) -> None:
    """WCO-006, WCO-037: four tabs; each module with its verdict, who serves, in the format that is chosen."""
    console = open_console()
    tabs = console.page.locator(".main-tabs [role=tab]")
    assert tabs.all_inner_texts() == ["Configuration", "Control", "Monitoring", "Advanced Configuration"]
    card = console.card("app")
    expect(card).to_contain_text("protected")
    expect(card).to_contain_text("node1 serves; node2 is ready to take over with the same data.")
    expect(card.locator("[data-node=node1]")).to_contain_text("PRIM")
    expect(card.locator("[data-node=node2]")).to_contain_text("SECOND")
    expect(card).to_contain_text("/data/app")
    console.key("format").select_option("table")
    row = console.page.locator("tr[data-module=app]")
    expect(row).to_contain_text("PRIM")
    expect(row).to_contain_text("node1")
    assert "format=table" in console.page.url, "the address holds what is shown"
    console.page.reload()
    expect(console.page.locator("tr[data-module=web]")).to_contain_text("UP")
    console.key("format").select_option("wall")
    expect(console.page.locator(".top")).to_have_count(0)
    expect(console.card("app")).to_be_visible()


def test_a_change_is_on_the_screen_at_once(open_console: Open, cluster: Cluster) -> None:
    """FAR-021: a farm without one of its servers is degraded, and the page says which one is missing."""
    console = open_console()
    expect(console.card("web")).to_contain_text("All 3 servers share the load")
    cluster.three.safekit("stop", "-m", "web")
    expect(console.card("web")).to_contain_text("2 of 3 servers share the load; missing: node3")
    expect(console.card("web")).to_contain_text("degraded")
    console.card("web").get_by_role("button", name="Start on node3").click()
    console.confirm()
    expect(console.card("web")).to_contain_text("All 3 servers share the load", timeout=40_000)


def test_the_details_of_a_module_on_a_server(open_console: Open, cluster: Cluster) -> None:
    """WCO-029, 032, 033, 034, 035, 055, 059: blue row, and all tabs against what the commands say."""
    console = open_console()
    console.go("control", "app", "node2")
    selected = console.page.locator(".node-row.selected")
    expect(selected).to_contain_text("node2")
    assert "rgb(29, 79, 145)" in selected.evaluate("e => getComputedStyle(e).backgroundColor")
    remote = console.page.locator("tr[data-resource='state.remote']")
    expect(remote).to_contain_text("PRIM")
    expect(remote.locator("[title='state.remote']")).to_have_text("Remote state")
    expect(console.page.locator("tr[data-resource='encryption.module']")).to_contain_text(re.compile("on|off"))

    console.tab("log").click()
    lines = console.page.locator(".loglines tr")
    expect(lines.filter(has_text="Local state SECOND green").first).to_be_visible()
    short = lines.count()
    console.key("verbose").check()
    expect(lines.nth(short)).to_be_visible()
    with console.page.expect_download() as download:
        console.key("save").click()
    assert "Local state SECOND green" in download.value.path().read_text()

    console.tab("applog").click()
    said = cluster.two.read("/var/safekit/modules/app/userlog.ulog").splitlines()
    if said:
        expect(console.page.locator(".log")).to_contain_text(said[-1][:40])

    cluster.two.safekit("level")
    cluster.two.safekit("boot", "-m", "web", "off")
    console.tab("commands").click()
    table = console.page.locator(".panel tbody")
    expect(table).to_contain_text("safekit second -m app")
    expect(table).not_to_contain_text("start -m web")
    expect(table.locator("tr").first).to_be_visible()

    console.tab("info").click()
    expect(console.key("level")).to_contain_text("node2")
    signature = cluster.two.safekit("confinfo", "-m", "app").stdout.split()
    shown = console.page.locator(".facts-list dd").first.inner_text()
    assert shown in signature, (shown, signature)
    expect(console.page.locator("pre.xml")).to_contain_text('dir="/data/app"')

    console.tab("why").click()
    expect(console.page.locator(".why li").first).to_contain_text("rule")
    console.tab("replication").click()
    expect(console.page.locator(".panel")).to_contain_text("/data/app")


def test_what_if_changes_nothing(open_console: Open, cluster: Cluster) -> None:
    """What would happen is asked of the rules, by whoever may look."""
    console = open_console("oper")
    console.go("control", "app", "node1", "whatif")
    console.key("ask").click()
    expect(console.page.locator("pre.output")).to_contain_text("nothing is changed")
    expect(console.page.locator("pre.output")).to_contain_text("ALONE")
    assert cluster.state(cluster.one, "app") == "PRIM green"


def test_the_detail_in_a_window_of_its_own(open_console: Open) -> None:
    """WCO-036: the same data in a new window."""
    console = open_console()
    console.go("control", "app", "node1")
    with console.context.expect_page() as opened:
        console.page.get_by_role("link", name="Open in a window of its own").click()
    window = console.watched(opened.value)
    expect(window.locator("h1")).to_contain_text("app on node1")
    expect(window.locator("tr[data-resource='state.local']")).to_contain_text("PRIM")


def test_all_servers_in_one_timeline(open_console: Open) -> None:
    console = open_console()
    console.go("timeline", module="app")
    table = console.page.locator(".lanes")
    expect(table.locator("th").nth(1)).to_have_text("node1")
    expect(table.locator("[data-server=node2] .mark").first).to_be_visible()
    expect(table.locator(".from-command").first).to_be_visible()


@pytest.mark.parametrize(
    ("locale", "label", "language"),
    [("fr-FR", "Supervision", "fr"), ("ja-JP", "監視", "ja"), ("de-DE", "Monitoring", "en")],
)  # fmt: skip
def test_the_language_of_the_browser(open_console: Open, locale: str, label: str, language: str) -> None:
    """I18-001: French, Japanese, and English for everything else."""
    console = open_console(locale=locale)
    expect(console.tab("monitoring")).to_have_text(label)
    assert console.page.evaluate("document.documentElement.lang") == language


def test_the_texts_lie_where_the_guide_says(cluster: Cluster) -> None:
    """I18-002: the catalogues, with the same keys."""
    place = "/opt/safekit/web/htdocs/jquery.lang/langpack"
    assert cluster.one.run(["ls", place]).stdout.split() == ["en.json", "fr.json", "ja.json"]
    english, *others = (json.loads(cluster.one.read(f"{place}/{name}.json")) for name in ("en", "fr", "ja"))
    assert all(other.keys() == english.keys() for other in others) and len(english) > 300


def test_help_on_each_page(open_console: Open) -> None:
    """I18-003: the help of the place, in every tab."""
    console = open_console()
    for key in ("configuration", "control", "monitoring", "advanced"):
        console.tab(key).click()
        console.key("help").click()
        expect(console.page.get_by_role("dialog")).to_contain_text("Help:")
        console.page.keyboard.press("Escape")
        expect(console.page.get_by_role("dialog")).to_have_count(0)


ALL_TABS = ["Configuration", "Control", "Monitoring", "Advanced Configuration"]


@pytest.mark.parametrize(
    ("user", "path", "tabs"),
    [
        ("admin", "/", ALL_TABS),
        ("oper", "/", ["Control", "Monitoring"]),
        ("viewer", "/", ["Monitoring"]),
        ("admin", "/monitor_and_control.html", ["Control", "Monitoring"]),
        ("admin", "/monitor_only.html", ["Monitoring"]),
        ("admin", "/deploy.html", ALL_TABS),
    ],
)
def test_tabs_by_role(open_console: Open, cluster: Cluster, user: str, path: str, tabs: list[str]) -> None:
    """WCO-047, 048: what a role sees, and what the servers refuse to it, whatever its page shows."""
    console = open_console(user, path=path)
    expect(console.page.locator(".main-tabs [role=tab]")).to_have_text(tabs)
    if path != "/":
        return
    for node in ("", "nodes/node2/"):
        start = {"arguments": ["start", "-m", "web"]}
        install = {"arguments": ["module", "list"]}
        level = {"monitor": 1, "control": 2, "admin": 3}[console.api("GET", "node")[1]["role"].lower()]
        assert (console.api("POST", f"{node}command", start)[0] == 403) == (level < 2)
        assert console.api("POST", f"{node}command", install)[0] == 200
        assert (console.api("GET", f"{node}files?path=modules")[0] == 403) == (level < 3)
        assert (console.api("GET", f"{node}modules/app/configuration")[0] == 403) == (level < 2)
        deploy = console.api("POST", f"{node}modules/app/deploy", {"nodes": "x"})[0]
        assert deploy == (400 if level == 3 else 403), deploy


def test_another_user_cannot_become_admin_over_another_server(open_console: Open) -> None:
    """The relay judges the person before it signs, and what it signs says for whom: no query makes somebody more."""
    console = open_console("viewer")
    for query in ("?role=Admin", "?on_behalf=root&role=Admin", "?role=Admin&on_behalf=web@x"):
        status, answer = console.api("GET", f"nodes/node2/files{query}&path=modules")
        assert (status, answer["error"]) == (403, "forbidden"), answer
        assert console.api("POST", f"nodes/node2/command{query}", {"arguments": ["stop", "-m", "web"]})[0] == 403
    assert console.api("GET", "nodes/169.254.169.254/node")[1]["error"] == "no_node"
    assert console.api("GET", "nodes/node2/nodes/node1/node")[1]["error"] == "relay"
    assert console.api("GET", "probe?address=10.88.1.12")[0] == 403


def test_the_inventory_is_kept_in_the_browser(open_console: Open) -> None:
    """WCO-002, 003, 004: cluster1 comes by itself; rename, add, delete by right click; in this browser only."""
    console = open_console()
    entry = console.page.locator(".inventory li")
    expect(entry).to_have_count(1)
    expect(entry).to_contain_text("cluster1")
    entry.click(button="right")
    console.item("edit").click()
    console.page.locator("input[name=name]").fill("paris")
    console.confirm()
    expect(console.page.locator(".brand")).to_contain_text("paris")
    entry.first.click(button="right")
    console.item("add").click()
    console.page.locator("input[name=name]").fill("lyon")
    console.page.locator("input[name=host]").fill("127.0.0.1")
    expect(console.page.locator("dialog [data-key=confirm]")).to_be_disabled()
    console.page.locator("input[name=host]").fill("10.1.2.3")
    console.confirm()
    expect(entry).to_have_count(2)
    console.page.reload()
    expect(entry).to_have_count(2)
    console.page.locator("[data-cluster=lyon]").click(button="right")
    console.item("delete").click()
    expect(entry).to_have_count(1)
    other = open_console()
    expect(other.page.locator(".inventory li")).to_contain_text("cluster1")


def test_an_inventory_in_the_address(open_console: Open) -> None:
    """WCO-005, 007: the address presets it; the entry of another cluster leads to that cluster's console."""
    console = open_console(path="/deploy.html?inventory=paris@127.88.0.11,lyon@10.1.2.3")
    assert [each.inner_text().split("\n")[0] for each in console.page.locator(".inventory li").all()] == [
        "paris",
        "lyon",
    ]
    link = console.page.locator("[data-cluster=lyon] a")
    expect(link).to_have_attribute("href", re.compile(r"^http://10\.1\.2\.3:\d+/$"))
    console.key("inventory-root").click()
    expect(console.card("app")).to_be_visible()


def test_a_view_of_an_administrator(open_console: Open, cluster: Cluster) -> None:
    """WCO-049, 050: a list of modules of one's own, for Control and Monitoring."""
    place = "/opt/safekit/Application_Modules/webconsole/monitor"
    assert "<monitor>" in cluster.one.read(f"{place}/default.xml")
    xml = '<monitor><module name="web"><node name="node1"/><node uri="http://10.9.9.9:9010"/></module></monitor>'
    cluster.one.write(f"{place}/mine.xml", xml)
    try:
        console = open_console()
        console.key("view").select_option("mine")
        expect(console.card("app")).to_have_count(0)
        expect(console.card("web").locator("[data-node]")).to_have_count(1)
        console.tab("control").click()
        console.key("view").select_option("mine")
        expect(console.page.locator(".module")).to_have_count(1)
    finally:
        cluster.one.run(["rm", f"{place}/mine.xml"])


def test_the_files_of_the_console(cluster: Cluster, open_console: Open) -> None:
    """WCO-054: addresses change with the content, so no cache is ever cleared; and it is usable on a telephone."""
    console = open_console(size=(390, 844))
    page = cluster.lab.client.run(["curl", "-si", f"http://{cluster.one.address()}:9010/"]).stdout
    base = re.search(r'data-base="(/console/[0-9a-f]{16})"', page)
    assert base and "no-cache" in page and "Server: SafeKit\r\n" in page.replace("\n", "\r\n").replace("\r\r", "\r")
    style = cluster.lab.client.run(["curl", "-si", f"http://{cluster.one.address()}:9010{base[1]}/style.css"]).stdout
    assert "immutable" in style
    for place in (("monitoring",), ("control", "app", "node1"), ("timeline",), ("configuration",), ("advanced",)):
        console.go(*place)
        expect(console.page.locator("main")).to_be_visible()
        expect(console.page.locator("[aria-busy]")).to_have_count(0)
        wide = console.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, (place, wide)


def test_many_pages_share_one_stream(open_console: Open, cluster: Cluster) -> None:
    """Eight pages of a browser, which has six connections to a server; when the one that reads goes, another reads."""
    console = open_console()
    pages = [console.page]
    for _ in range(7):
        page = console.watched(console.context.new_page())
        page.goto(f"{console.url}/")
        expect(page.locator("article[data-module=web]")).to_contain_text("All 3 servers")
        pages.append(page)
    console.page.close()
    cluster.three.safekit("stop", "-m", "web")
    for page in pages[1:]:
        expect(page.locator("article[data-module=web]")).to_contain_text("2 of 3 servers", timeout=30_000)
    cluster.three.safekit("start", "-m", "web")
    for page in pages[1:]:
        expect(page.locator("article[data-module=web]")).to_contain_text("All 3 servers", timeout=30_000)


def test_a_service_that_starts_again_leaves_no_gap(open_console: Open, cluster: Cluster) -> None:
    """The page says that the connection is lost and since when; after it is back, everything is as it is."""
    console = open_console()
    cluster.one.run(["systemctl", "stop", "safewebserver"])
    expect(console.page.locator(".banner.red")).to_contain_text("No connection to this server", timeout=20_000)
    cluster.three.safekit("stop", "-m", "web")
    cluster.one.run(["systemctl", "start", "safewebserver"])
    # Sessions live in the memory of the service.
    console.page.locator("input[name=user]").wait_for(timeout=40_000)
    console.log_in()
    expect(console.page.locator(".banner.red")).to_have_count(0)
    expect(console.card("web")).to_contain_text("missing: node3")
    cluster.three.safekit("start", "-m", "web")


def test_a_server_whose_service_is_stopped_is_grey(open_console: Open, cluster: Cluster) -> None:
    """WCO-052: unreachable, told with the age of what is known."""
    console = open_console()
    cluster.two.run(["systemctl", "stop", "safewebserver"])
    place = console.card("app").locator("[data-node=node2]")
    expect(place.locator(".state.grey")).to_contain_text("ago", timeout=30_000)
    expect(console.page.locator(".page-head")).to_contain_text("No answer from node2")
    cluster.two.run(["systemctl", "start", "safewebserver"])
    expect(place.locator(".state.green")).to_be_visible(timeout=30_000)


def test_degraded_replication_is_told(open_console: Open, cluster: Cluster) -> None:
    """WCO-053: under an ALONE server with rfs.degraded up."""
    console = open_console()
    cluster.one.kill("nfsbox")
    place = console.card("app").locator("[data-node=node1]")
    expect(place).to_contain_text("Degraded", timeout=40_000)
    expect(console.card("app")).to_contain_text("data at risk")
    cluster.one.safekit("stop", "-m", "app", timeout=90)
    cluster.one.safekit("start", "-m", "app", timeout=90)


SERIOUS = """;
axe.run(document, {resultTypes: ["violations"]}).then(result => result.violations
  .filter(each => ["serious", "critical"].includes(each.impact))
  .map(each => [each.id, each.nodes[0].html.slice(0, 200), each.nodes[0].failureSummary.slice(0, 300)]))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(390, 844), (1440, 900)])
@pytest.mark.parametrize("locale", ["en-GB", "fr-FR", "ja-JP"])
def test_pictures_and_what_axe_says(
    open_console: Open, pictures: Path, locale: str, size: tuple[int, int], scheme: str
) -> None:
    """Pictures of the pages for people to look at; axe finds nothing serious in them."""
    axe = Path(__file__).resolve().parents[2] / ".cache/console/node_modules/axe-core/axe.min.js"
    console = open_console(locale=locale, size=size, scheme=scheme)
    for name, place in (
        ("monitoring", ("monitoring",)),
        ("control", ("control", "app", "node1")),
        ("timeline", ("timeline",)),
        ("configuration", ("configuration",)),
        ("advanced", ("advanced", "node1", "app")),
        ("compare", ("compare",)),
    ):
        console.go(*place)
        expect(console.page.locator("main [aria-busy]")).to_have_count(0)
        time.sleep(0.4)
        console.picture(pictures / f"{name}-{size[0]}-{scheme}-{locale[:2]}.png")
        if axe.is_file() and locale == "en-GB":
            found = console.page.evaluate(axe.read_text() + SERIOUS)
            assert not found, (name, found)

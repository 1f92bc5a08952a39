"""What the console changes (checklist area web-console): control, cluster, configuration, files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from cluster import FARM, MODULES, Cluster, Console
from playwright.sync_api import expect

Open = Callable[..., Console]
XML = f"{MODULES}/app/conf/userconfig.xml"


@pytest.fixture(autouse=True)
def _pair(cluster: Cluster) -> None:
    cluster.pair()


def test_the_menus_run_the_right_commands(open_console: Open, cluster: Cluster) -> None:
    """WCO-030, 031, 058: global and node menus, each dialog says what will happen; success is quiet."""
    console = open_console()
    console.go("control", "app", "node1")
    console.menu("app", "node1").click()
    items = {each.get_attribute("data-key"): each for each in console.page.locator("[role=menuitem]").all()}
    control = ["start", "stop", "restart", "swap", "stopstart", "prim", "second", "failover-on", "failover-off"]
    assert list(items) == [*control, "boot", "snapshot"]
    assert items["start"].get_attribute("aria-disabled") == "true"
    assert "runs already" in items["start"].inner_text()
    console.item("failover-off").click()
    expect(console.page.get_by_role("dialog")).to_contain_text("node1 will not take over by itself")
    console.confirm()
    console.done("failover off -m app")
    expect(console.page.locator("tr[data-resource='usersetting.failover']")).to_contain_text("off")
    expect(console.page.locator(".detail-head")).to_contain_text("automatic failover is off")
    console.menu("app", "node2").click()
    console.item("failover-off").click()
    console.confirm()
    for node in (cluster.one, cluster.two):
        for _ in range(2):
            node.safekit("failover", "on", "-m", "app", check=False)
    console.menu("app", "node1").click()
    console.item("swap").click()
    expect(console.page.get_by_role("dialog")).to_contain_text("The secondary becomes primary")
    console.confirm()
    cluster.wait(cluster.two, "app", "PRIM green")
    assert re.search(r"Action swap called by web@\d", cluster.log(cluster.one, "app"))
    cluster.wait(cluster.one, "app", "SECOND green")

    console.menu("web").click()
    console.item("stop").click()
    expect(console.page.get_by_role("dialog")).to_contain_text("node1, node2, node3")
    console.confirm()
    for node in cluster.nodes:
        cluster.wait(node, "web", "STOP red")
        assert "called by web@" in cluster.log(node, "web")
    console.menu("web").click()
    console.item("start").click()
    console.confirm()
    for node in cluster.nodes:
        cluster.wait(node, "web", "UP green")
    assert console.page.locator("[data-key=task-output]").count() == 0, "success is quiet"


def test_a_command_that_fails_opens_its_output(open_console: Open, cluster: Cluster) -> None:
    console = open_console()
    console.go("advanced", "node1", "app")
    cluster.one.write(XML, cluster.one.read(XML).replace('mode="mirror"', 'mode="nonsense"'))
    try:
        console.page.locator("li[data-module=app] [aria-haspopup=menu]").first.click()
        console.item("check").click()
        expect(console.key("task-output")).to_contain_text("nonsense", timeout=40_000)
        expect(console.page.locator(".strip .task").first).to_contain_text("failed (exit status 1)")
    finally:
        cluster.one.write(XML, cluster.one.read(XML).replace('mode="nonsense"', 'mode="mirror"'))


def test_boot_start_and_snapshot(open_console: Open, cluster: Cluster) -> None:
    """WCO-031: Admin > Configure boot start, Support > Snapshot."""
    console = open_console()
    console.go("control", "web", "node3")
    console.menu("web", "node3").click()
    console.item("boot").click()
    console.key("boot-on").click()
    console.done("boot -m web on")
    assert "on" in cluster.three.safekit("boot", "status", "-m", "web").stdout
    console.menu("web", "node3").click()
    with console.page.expect_download(timeout=90_000) as download:
        console.item("snapshot").click()
    assert download.value.suggested_filename == "snapshot_node3_web.zip"
    assert download.value.path().read_bytes()[:2] == b"PK"


def test_prim_asks_for_the_name_of_the_server(open_console: Open, cluster: Cluster) -> None:
    """What can lose data is confirmed by the server's name."""
    console = open_console()
    for node in (cluster.two, cluster.one):
        node.safekit("stop", "-m", "app", timeout=90)
    console.go("control", "app", "node1")
    console.menu("app", "node1").click()
    console.item("prim").click()
    expect(console.page.locator("dialog [data-key=confirm]")).to_be_disabled()
    console.page.locator("dialog input").fill("node1")
    console.confirm()
    cluster.wait(cluster.one, "app", "ALONE green")
    assert "called by web@" in cluster.log(cluster.one, "app")
    cluster.two.safekit("start", "-m", "app")


def test_the_cluster_configuration(open_console: Open, cluster: Cluster) -> None:
    """WCO-008, 009, 010, 012, 013, 014, 015, 016: simple and advanced mode."""
    console = open_console()
    before = cluster.one.read("/var/safekit/cluster/cluster.xml")
    signature = cluster.one.safekit("cluster", "confinfo").stdout
    console.key("cluster-panel").locator("summary").first.click()
    expect(console.page.locator(".cluster input").first).to_be_disabled()
    console.go("configuration", cluster="open")
    form = console.page.locator("form.cluster")
    save, discard = console.key("save-cluster"), console.key("discard")
    form.get_by_label("Simple").check()
    expect(save).to_be_disabled()
    expect(form.locator("[data-machine='1'] input[name=name]")).to_have_class("green")
    form.locator("[data-machine='2'] [data-key=remove]").click()
    expect(save).to_have_class(re.compile("changed"))
    discard.click()
    expect(form.locator("[data-machine]")).to_have_count(3)
    console.key("new-node").click()
    fresh = form.locator("[data-machine='3']")
    fresh.locator("input[name=address]").fill(cluster.two.address("repli"))
    fresh.locator("input[name=address]").press("Tab")
    expect(fresh.locator("input[name=name]")).to_have_value("node2")
    expect(fresh.locator("input[name=name]")).to_have_class("green")
    fresh.locator("input[name=name]").fill("dead")
    fresh.locator("input[name=address]").fill("10.88.1.99")
    fresh.locator("input[name=address]").press("Tab")
    expect(fresh.locator("input[name=name]")).to_have_class("red", timeout=15_000)
    fresh.locator("input[name=address]").fill("127.0.0.1")
    expect(form).to_contain_text("localhost means another server")
    expect(save).to_be_disabled()
    discard.click()
    form.get_by_label("Advanced").check()
    console.key("new-lan").click()
    lan = form.locator("fieldset").last
    lan.locator("input[name=lan]").fill("admin")
    for node in cluster.nodes:
        lan.get_by_label(node.name, exact=False).fill(node.address("repli"))
    lan.locator("input[name=console]").uncheck()
    save.click()
    expect(console.page.locator(".strip .task").first).to_contain_text("done", timeout=90_000)
    for node in cluster.nodes:
        assert '<lan name="admin" console="off">' in node.read("/var/safekit/cluster/cluster.xml"), node.name
    signatures = {line.split()[1] for line in cluster.one.safekit("cluster", "confinfo").stdout.splitlines()[1:]}
    assert len(signatures) == 1 and not signatures & set(signature.split()), "one new signature on all"
    cluster.wait(cluster.one, "app", "PRIM green")
    expect(form.locator("fieldset")).to_have_count(4)
    form.locator("fieldset").last.get_by_role("button").click()
    save.click()
    expect(form.locator("fieldset")).to_have_count(3, timeout=60_000)
    expect(console.page.locator(".strip .task").first).to_contain_text("done", timeout=90_000)
    assert before.count("<lan ") == cluster.three.read("/var/safekit/cluster/cluster.xml").count("<lan ")


def test_a_module_from_its_template_to_its_first_start(open_console: Open, cluster: Cluster) -> None:
    """WCO-017 to 028: the wizard, in five steps, with the name first and the server with the data last."""
    console = open_console()
    for node in (cluster.one, cluster.two):
        node.run(["mkdir", "-p", "/data/mine"])
    console.go("configuration")
    console.page.locator("dl[data-node=node1] [data-template='generic/mirror']").click()
    name = console.page.locator("input[name=module]")
    name.fill("app")
    expect(console.page.get_by_role("dialog")).to_contain_text("installed already")
    name.fill("mine")
    console.confirm()
    wizard = console.page.get_by_role("dialog", name="Configuration of mine")
    expect(wizard.get_by_role("tab")).to_have_count(5)
    wizard.locator("input[name=node3]").uncheck()
    wizard.locator("input[name=lan-default]").uncheck()
    wizard.locator("input[name=lan-pair]").check()
    expect(wizard).to_contain_text("With one network only")
    wizard.locator("input[name=lan-repli]").check()
    wizard.locator("[data-key=validate]").click()

    expect(wizard).to_contain_text("Macros")
    wizard.get_by_label("VIRTUAL_IP").fill(cluster.lab.vip)
    wizard.get_by_label("DIRECTORY1").fill("/data/mine")
    second = wizard.locator("[data-section=replication] .row").nth(1)
    second.get_by_role("button").click()
    wizard.locator("input[name=genkey]").check()
    wizard.locator("[data-key=validate]").click()
    configure = wizard.locator("[data-key=configure]")
    expect(configure).to_be_enabled()
    text = cluster.one.read(f"{MODULES}/mine/conf/userconfig.xml")
    assert '<heartbeat name="pair"' in text and '"repli"' in text and "DIRECTORY2%" not in text
    assert "<!-- async" in text, "comments stay"
    configure.click()
    expect(wizard.locator("[data-result=node1]")).to_contain_text("success", timeout=90_000)
    expect(wizard.locator("[data-result=node2]")).to_contain_text("success")
    wizard.locator("[data-key=next]").click()
    wizard.locator("[data-key=start-prim]").click()
    cluster.wait(cluster.one, "mine", "PRIM green", 90)
    cluster.wait(cluster.two, "mine", "SECOND green", 90)
    assert "Action prim called by web@" in cluster.log(cluster.one, "mine")
    assert "encryption.module" in cluster.one.safekit("state", "-v", "-m", "mine").stdout

    # Edited again: the module must be stopped first; a server that does not answer is a connection error.
    row = console.page.locator("tr[data-module=mine]")
    row.locator("[aria-haspopup=menu]").click()
    console.item("edit").click()
    console.page.locator("dialog input[value=node2]").check()
    console.confirm()
    console.page.locator("dialog [data-key=validate]").click()
    console.page.locator("dialog [data-key=validate]").click()
    expect(configure).to_be_disabled()
    for node in (cluster.two, cluster.one):
        node.safekit("stop", "-m", "mine", timeout=90)
    expect(configure).to_be_enabled()
    wizard.get_by_role("button", name="Close").click()
    uninstall(console, cluster, "mine", {"node1", "node2"})


def uninstall(console: Console, cluster: Cluster, module: str, nodes: set[str]) -> None:
    """WCO-044: the servers are chosen; a copy of the module stays in backup."""
    console.go("configuration")
    console.page.locator(f"tr[data-module={module}] [aria-haspopup=menu]").click()
    console.item("uninstall").click()
    for box in console.page.locator("dialog input[type=checkbox]").all():
        box.set_checked(box.get_attribute("name") in nodes)
    console.confirm()
    expect(console.page.get_by_role("dialog")).to_contain_text(f"{module} is removed from {', '.join(sorted(nodes))}")
    console.confirm()
    console.done(f"module uninstall -m {module}")
    expect(console.page.locator(f"tr[data-module={module}]")).to_have_count(0, timeout=150_000)
    for node in cluster.nodes:
        if node.name in nodes:
            assert "backup" in node.run(["ls", f"/opt/safekit/Application_Modules/backup/{module}.safe"]).stdout


def test_a_result_that_is_bad_is_red(open_console: Open, cluster: Cluster) -> None:
    """WCO-026, 028: broken XML is a failure with its text; what was validated stays on the source server."""
    cluster.install(cluster.three, "solo", "farm.safe", FARM)
    console = open_console(node="node3")
    console.go("configuration")
    cluster.three.run(["rm", f"{MODULES}/solo/web/index.html"])
    console.page.locator("tr[data-module=solo] [aria-haspopup=menu]").click()
    console.item("edit").click()
    console.confirm()
    console.page.locator("dialog [data-key=validate]").click()
    # WCO-023: without web/index.html the file itself is edited; WCO-042: as text or as XML.
    expect(console.page.locator("dialog .editor-host[data-ready=true]")).to_be_visible()
    cluster.three.write(f"{MODULES}/solo/conf/userconfig.xml", FARM.replace('mode="farm"', 'mode="nonsense"'))
    console.tab("apply").click()
    console.key("configure").click()
    result = console.page.locator("[data-result=node3]")
    expect(result).to_contain_text("failure", timeout=60_000)
    expect(result).to_contain_text("nonsense")
    expect(console.tab("check")).to_have_class("red")
    console.page.get_by_role("dialog").get_by_role("button", name="Close").click()
    assert 'mode="nonsense"' in cluster.three.read(f"{MODULES}/solo/conf/userconfig.xml")
    uninstall(console, cluster, "solo", {"node3"})


def test_files_of_a_server(open_console: Open, cluster: Cluster) -> None:
    """WCO-038, 039, 041, 045, 046, 057: tree, editor, templates; blue and purple."""
    console = open_console()
    console.go("advanced", "node1", "web")
    module = console.page.locator("li[data-module=web]")
    expect(module.locator("[data-modified]")).to_have_attribute("data-modified", "false")
    module.get_by_role("button", name="bin", exact=True).click()
    module.locator("li[data-path='modules/web/bin/start_both'] button").first.click()
    editor = console.page.locator("dialog .editor-host[data-ready=true]")
    expect(editor).to_be_visible()
    editor.locator(".cm-content").click()
    console.page.keyboard.press("Control+End")
    console.page.keyboard.type("\n# by the console\n")
    console.key("save-file").click()
    expect(console.key("save-file")).to_be_disabled()
    console.page.get_by_role("dialog").get_by_role("button", name="Close").first.click()
    path = f"{MODULES}/web/bin/start_both"
    assert "# by the console" in cluster.one.read(path)
    assert cluster.one.run(["test", "-x", path], check=False).returncode == 0, "a script stays executable"
    expect(module.locator("[data-modified]")).to_have_attribute("data-modified", "true")

    module.locator("[aria-haspopup=menu]").first.click()
    console.item("save-to").click()
    templates = "/opt/safekit/Application_Modules"
    copy = console.page.locator("li[data-path='templates/web']")
    expect(copy).to_be_visible()
    menu(console, copy, "rename")
    console.page.locator("input[name=file]").fill("appli")
    console.confirm()
    copy = console.page.locator("li[data-path='templates/appli']")
    menu(console, copy, "pack")
    packed = console.page.locator("li[data-path='templates/appli.safe']")
    expect(packed).to_be_visible()
    with console.page.expect_download() as download:
        menu(console, packed, "save")
    assert download.value.path().read_bytes()[:2] == b"PK"
    menu(console, packed, "copy")
    demo = console.page.locator("li[data-path='templates/demo']")
    menu(console, demo, "paste")
    console.done("templates/demo/appli.safe")
    menu(console, copy, "delete")
    console.confirm()
    expect(copy).to_have_count(0)
    menu(console, packed, "unpack")
    expect(copy).to_be_visible()
    assert "userconfig.xml" in cluster.one.run(["ls", f"{templates}/appli/conf"]).stdout
    console.go("configuration")
    expect(console.page.locator("dl[data-node=node1] [data-template='demo/appli']")).to_be_visible()
    cluster.one.run(["rm", "-r", f"{templates}/appli", f"{templates}/appli.safe", f"{templates}/demo/appli.safe"])

    # WCO-040: back to what was applied.
    console.go("advanced", "node1", "web")
    console.page.locator("[data-last='1'] [aria-haspopup=menu]").click()
    console.item("restore").click()
    console.confirm()
    expect(console.page.get_by_role("dialog", name="Configuration of web")).to_be_visible(timeout=40_000)
    assert "# by the console" not in cluster.one.read(path)
    console.page.keyboard.press("Escape")
    expect(module.locator("[data-modified]")).to_have_attribute("data-modified", "false")


def menu(console: Console, row: object, key: str) -> None:
    row.locator("[aria-haspopup=menu]").first.click()  # type: ignore[attr-defined]
    console.item(key).click()


def test_the_xml_editor(open_console: Open, cluster: Cluster) -> None:
    """WCO-042: Insert offers what the schema allows, Erase takes it away; errors are shown with their line."""
    before = cluster.one.read(XML)
    console = open_console()
    console.go("advanced", "node1", "app")
    module = console.page.locator("li[data-module=app]")
    module.get_by_role("button", name="conf", exact=True).click()
    module.locator("li[data-path='modules/app/conf/userconfig.xml'] button").first.click()
    dialog = console.page.get_by_role("dialog")
    expect(dialog.locator(".findings")).to_contain_text("No mistake found")
    dialog.get_by_label("Xml", exact=True).check()
    console.tab("insert").click()
    service = dialog.locator(".xml-tree li li").first
    check = service.locator("> .xml-adds .tag-add", has_text="<check>").first
    assert "rgb" in check.evaluate("e => getComputedStyle(e).color")
    assert int(check.evaluate("e => getComputedStyle(e).fontWeight")) >= 700
    attribute = service.locator("> .xml-adds .attribute-add").first
    assert attribute.evaluate("e => getComputedStyle(e).fontStyle") == "italic"
    check.click()
    expect(dialog.locator(".xml-tree")).to_contain_text("check")
    console.tab("erase").click()
    dialog.get_by_role("button", name="Erase check").click()
    dialog.get_by_label("Text", exact=True).check()
    expect(console.key("save-file")).to_be_disabled()
    text = dialog.locator(".editor-host[data-ready=true] .cm-content")
    text.click()
    console.page.keyboard.press("Control+Home")
    console.page.keyboard.press("Control+f")
    console.page.keyboard.press("Escape")
    console.page.keyboard.press("Control+End")
    console.page.keyboard.type("<oops/>")
    expect(dialog.locator(".findings li.red")).to_contain_text("Line", timeout=20_000)
    # Another editor saved meanwhile: both versions are there, and nothing is overwritten unseen.
    cluster.one.write(XML, before + "\n<!-- theirs -->\n")
    console.key("save-file").click()
    expect(dialog).to_contain_text("Somebody changed this file meanwhile")
    dialog.get_by_role("button", name="Load it, give up mine").click()
    cluster.one.write(XML, before)
    console.page.keyboard.press("Escape")
    assert cluster.one.read(XML) == before


def test_a_change_on_some_servers_only(open_console: Open, cluster: Cluster) -> None:
    """WCO-043, 051: the advanced wizard; servers that differ are told, and made equal again."""
    console = open_console()
    cluster.two.safekit("stop", "-m", "app", timeout=90)
    cluster.wait(cluster.one, "app", "ALONE green")
    changed = cluster.one.read(XML).replace('timeout="3000"', 'timeout="4000"')
    cluster.one.write(XML, changed)
    console.go("advanced", "node1", "app")
    console.page.locator("li[data-module=app] [aria-haspopup=menu]").first.click()
    console.item("apply").click()
    wizard = console.page.get_by_role("dialog", name="Advanced configuration of app")
    expect(wizard.get_by_role("tab")).to_have_count(3)
    wizard.locator("input[name=node2]").uncheck()
    wizard.locator("[data-key=validate]").click()
    expect(wizard).to_contain_text("only what may change while it runs")
    wizard.locator("[data-key=configure]").click()
    expect(wizard.locator("[data-result=node1]")).to_contain_text("success", timeout=60_000)
    wizard.locator("[data-key=next]").click()
    expect(console.page.locator(".banner")).to_contain_text("do not have the same configuration of app")
    cluster.one.write(XML, changed.replace('timeout="4000"', 'timeout="3000"'))
    cluster.one.safekit("config", "-m", "app")
    expect(console.page.locator(".banner")).to_have_count(0, timeout=20_000)
    cluster.two.safekit("start", "-m", "app")


def test_commands_of_a_server(open_console: Open, cluster: Cluster) -> None:
    """WCO-059: of a module with the global ones, and all of them in Advanced Configuration."""
    cluster.one.safekit("webserver", "status", check=False)
    cluster.one.safekit("failover", "on", "-m", "app", check=False)
    cluster.one.safekit("checker", "on", "-m", "web", check=False)
    console = open_console()
    console.go("control", "app", "node1", "commands")
    table = console.page.locator(".panel tbody")
    expect(table).to_contain_text("failover on -m app")
    expect(table).not_to_contain_text("checker on -m web")
    console.go("advanced", "node1")
    everything = console.page.locator(".log.short tbody")
    expect(everything).to_contain_text("failover on -m app")
    expect(everything).to_contain_text("checker on -m web")
    assert json.loads(cluster.one.safekit("state", "--json").stdout)["node"] == "node1"

"""A server with a real systemd: the package is installed, modules start at boot and stop in order at shutdown
(guide 2.1, 2.4, 4.2.8, 4.2.9, 9.2).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import machines
import pytest
from deb import installer, package, successor
from machines import Machine, Network
from pair import userconfig

from lab.archive import archive
from lab.waiting import wait_until

pytestmark = pytest.mark.skipif(bool(machines.why_not()), reason=machines.why_not())

ADDRESSES = ("10.77.1.1", "10.77.1.2")
VIP = "10.77.1.10"
CLUSTER = f"""<cluster><lans><lan name="default">
<node name="server1" addr="{ADDRESSES[0]}"/><node name="server2" addr="{ADDRESSES[1]}"/>
</lan></lans></cluster>
"""
MIRROR = (
    userconfig(
        vip=f"""<vip><interface_list><interface><real_interface>
<virtual_addr addr="{VIP}" where="one_side_alias"/></real_interface></interface></interface_list></vip>"""
    )
    .replace('<heartbeat name="default"/>', "")
    .replace('name="repli"', 'name="default"')
)
LIGHT = '<safe><service mode="light"><user/></service></safe>'
# An application that systemd runs for the module, as `systemctl start postgresql` would. Each line of /root/life
# tells the time, what happened, and whether the directory and the address were there.
UNIT = """[Service]
ExecStart=/bin/sleep infinity
ExecStop=/bin/sh -c 'mountpoint -q /replicated && echo unit stopped, mounted >>/root/life'
"""
NOTE = """
note() {
    mountpoint -q /replicated && mounted=mounted || mounted=plain
    ip -4 addr show | grep -qF 10.77.1.10/ && address=address || address=none
    echo "$SAFEMODULE $1 $mounted $address" >>/root/life
}
"""
SCRIPTS = {
    "start_prim": f"#!/bin/sh\n{NOTE}\nnote start; date >>/replicated/starts; systemctl start application\n",
    "stop_prim": f'#!/bin/sh\n{NOTE}\n[ "$1" = force ] && exit 0\nsystemctl stop application\nnote stop\n',
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A booted server that never had the product, with both packages in /root."""
    place = tmp_path_factory.mktemp("s")
    network = Network(*ADDRESSES)
    server = Machine(place / "m", "server1", network.holders[0])
    try:
        first = package()
        second = successor(first, place)
        server.boot()
        for number, path in enumerate((first, second), 1):
            shutil.copyfile(path, server.outside(f"/root/{number}.deb"))
        shutil.copy(installer(first, place), server.outside("/root/safekit.bin"))
        BEFORE.update(files(server))
        yield server
    finally:
        server.poweroff()
        network.close()


def wait_state(server: Machine, module: str, wanted: str) -> None:
    wait_until(lambda: server.state(module) == wanted, 40, lambda: f"{module} {wanted}: {server.state(module)!r}")


def module_log(server: Machine, module: str) -> str:
    return server.run(f"cat /var/safekit/modules/{module}/log/module.log").stdout


def active(server: Machine, unit: str) -> str:
    return server.run(["systemctl", "is-active", unit], check=False).stdout.strip()


# What an administrator, dpkg and systemd write beside the product.
OTHERS = ("root", "run", "tmp", "var/log", "var/cache", "var/tmp", "var/lib/dpkg", "var/lib/apt",
          "var/lib/PackageKit", "var/lib/systemd", "replicated",
          "replicated_For_SafeKit_Replication", "etc/systemd/system/application.service", "etc/.pwd.lock")  # fmt: skip


def files(server: Machine) -> set[str]:
    """What the server has written since it was made: its layer of the overlay, without what was deleted."""
    upper, found = server.directory / "changes/upper/root", set()
    for path in upper.rglob("*"):
        name = str(path.relative_to(upper))
        copied_up = path.is_dir() and (server.tree / name).is_dir() and "safekit" not in name
        if not name.startswith(OTHERS) and not path.is_char_device() and not copied_up:
            found.add(name)
    return found


def written(server: Machine) -> set[str]:
    """Those that were not there before the first installation; accounts have backups, with a dash."""
    return {path for path in files(server) - BEFORE if path.rstrip("-") not in ACCOUNTS}


ACCOUNTS = {f"etc/{name}" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")}
BEFORE: set[str] = set()


def life(server: Machine) -> list[str]:
    return server.read("/root/life").splitlines()


def test_the_package_starts_its_services(server: Machine) -> None:
    """(INS-001: one file is run and unpacks the package and safekitinstall, which asks.)"""
    unpacked = server.run("mkdir /root/i && cd /root/i && ../safekit.bin").stdout
    assert "safekitinstall" in unpacked and "Next step" in unpacked
    said = server.run("cd /root/i && printf 'n\\n' | script -qec ./safekitinstall /dev/null", timeout=300).stdout
    assert "Configure the local firewall automatically? [y/N]" in said
    assert server.read("/var/safekit/firewall") == "off\n"
    assert "safeadmin and safewebserver: started, and start at boot" in said
    for unit in ("safeadmin", "safewebserver"):
        assert active(server, unit) == "active"
        assert server.run(["systemctl", "is-enabled", unit]).stdout == "enabled\n"
    verified = server.run(["systemd-analyze", "verify", "safeadmin.service", "safewebserver.service"])
    assert "safe" not in verified.stderr, verified.stderr
    assert server.run(["systemctl", "--failed", "--no-legend", "--plain"]).stdout.count("safe") == 0


def test_modules_start_at_boot_and_stop_in_order_at_shutdown(server: Machine) -> None:
    server.write("/root/cluster.xml", CLUSTER)
    server.write("/etc/systemd/system/application.service", UNIT)
    server.run("systemctl daemon-reload; mkdir /replicated")
    server.safekit("cluster", "config", "/root/cluster.xml")
    for module, number, config, scripts in (
        ("data", "1", MIRROR, SCRIPTS),
        ("app", "2", LIGHT, {}),
        ("idle", "3", LIGHT, {}),
    ):
        server.outside(f"/root/{module}.safe").write_bytes(archive(config, dict(scripts)))
        server.safekit("module", "install", "-M", number, "-m", module, f"/root/{module}.safe")
        server.safekit("config", "-m", module)
        if module != "idle":
            server.safekit("boot", "-m", module, "on")
    server.safekit("prim", "-m", "data")
    server.safekit("start", "-m", "app")
    wait_state(server, "data", "ALONE")
    wait_state(server, "app", "UP")
    server.shutdown()
    upper = server.directory / "changes/upper/root"
    # systemd stops the application's unit by itself at the same time: the module waits for its end all the same.
    assert (upper / "root/life").read_text().splitlines() == [
        "data start mounted address",
        "unit stopped, mounted",
        "data stop mounted address",
    ], "when the application stops, its files and its address are still there"
    for module in ("data", "app"):
        text = (upper / f"var/safekit/modules/{module}/log/module.log").read_text()
        assert text.index("Action shutdown called by SYSTEM") < text.rindex("End of stop")
        assert "still running after" not in text
    journal = server.journal()

    def last(text: str) -> int:
        return max(number for number, line in enumerate(journal) if text in line)

    assert last("Stopping safeadmin.service") < last("Stopped safeadmin.service")
    assert last("Stopped safewebserver.service") < last("Stopped safeadmin.service")
    assert last("Stopped safeadmin.service") < last("Stopped target network-online.target")
    server.boot()
    wait_state(server, "data", "ALONE")
    wait_state(server, "app", "UP")
    assert server.state("idle") == "STOP"
    for module in ("data", "app"):
        text = module_log(server, module)
        assert "Action start called at boot time" in text and "Previous halt unexpected" not in text
    assert active(server, "application") == "active"
    assert life(server)[-1] == "data start mounted address"


def test_a_lost_power_is_noticed_at_the_next_boot(server: Machine) -> None:
    server.poweroff()
    server.boot()
    wait_state(server, "data", "ALONE")
    text = module_log(server, "data")
    assert "Previous halt unexpected" in text, text[-6000:]
    wait_until(lambda: server.run("wc -l </replicated/starts").stdout.strip() == "3", 20, "the application has started")
    wait_state(server, "app", "UP")


def test_a_killed_safeadmin_is_started_again_and_its_modules_go_on(server: Machine) -> None:
    starts = server.run("cat /replicated/starts").stdout
    first = server.run(["systemctl", "show", "-P", "MainPID", "safeadmin"]).stdout.strip()
    server.run(["kill", "-9", first])

    def another() -> bool:
        now = server.run(["systemctl", "show", "-P", "MainPID", "safeadmin"]).stdout.strip()
        return now not in (first, "0") and server.safekit("state", check=False).returncode == 0

    wait_until(another, 20, "systemd starts safeadmin again")
    assert server.state("data") == "ALONE" and server.run("cat /replicated/starts").stdout == starts
    assert active(server, "application") == "active"


# Takes data points as KairosDB does, and keeps the last ones.
DATABASE = """
import http.server
class Taker(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"] == "application/gzip":
            import gzip; data = gzip.decompress(data)
        open("/root/points", "ab").write(data + b"\\n")
        self.send_response(204); self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8081), Taker).serve_forever()
"""


def test_the_daemon_of_kairosdb_as_its_readme_says(server: Machine) -> None:
    """MET-007, MET-008: the unit is copied and edited, enabled and started; it sends, and starts at the next boot."""
    server.write("/root/database.py", DATABASE)
    server.run("setsid python3 /root/database.py >/dev/null 2>&1 </dev/null &")
    steps = [
        line.split("#")[0].strip() for line in server.read("/opt/safekit/KairosDB/README").splitlines()
        if line.startswith("    ") and any(word in line for word in ("cp ", "vi ", "systemctl "))
    ]  # fmt: skip
    assert [step.split()[0] for step in steps] == ["cp", "vi", "systemctl", "systemctl", "systemctl"]
    for step in steps:
        editor = "sed -i s,http://127.0.0.1:8080,http://127.0.0.1:8081,"
        server.run(step.replace("vi", editor, 1) if step.startswith("vi ") else step)
    assert active(server, "safeKairosDBd") == "active"
    assert "127.0.0.1:8081" in server.run(["systemctl", "cat", "safeKairosDBd"]).stdout
    wait_until(
        lambda: "safekit.state.local" in server.run("cat /root/points 2>/dev/null", check=False).stdout, 40,
        lambda: server.run("journalctl -u safeKairosDBd --no-pager | tail -20").stdout,
    )  # fmt: skip
    assert "safekairosdb" in server.run("ps -eo comm").stdout
    verified = server.run(["systemd-analyze", "verify", "safeKairosDBd.service"], check=False)
    assert "safeKairosDBd" not in verified.stderr, verified.stderr
    server.run(["systemctl", "stop", "safeKairosDBd"])
    assert active(server, "safeKairosDBd") == "inactive" and "safekairosdb" not in server.run("ps -eo comm").stdout
    server.shutdown()
    server.boot()
    assert active(server, "safeKairosDBd") == "active", "enabled: it starts at boot, with nobody to send to"
    wait_state(server, "data", "ALONE")
    server.run("systemctl disable --now safeKairosDBd && rm /lib/systemd/system/safeKairosDBd.service")


def test_an_upgrade_keeps_what_starts_at_boot_and_starts_the_services_again(server: Machine) -> None:
    refused = server.run(["dpkg", "-i", "/root/2.deb"], check=False, timeout=300)
    assert refused.returncode != 0 and "running: app" in refused.stderr and "safekit shutdown" in refused.stderr
    assert server.state("data") == "ALONE"
    server.safekit("boot", "-m", "app", "off")
    server.safekit("boot", "weboff")
    server.safekit("shutdown")
    former = server.run(["systemctl", "show", "-P", "MainPID", "safeadmin"]).stdout
    server.run(["dpkg", "-i", "/root/2.deb"], timeout=300)
    assert server.run(["systemctl", "show", "-P", "MainPID", "safeadmin"]).stdout not in (former, "0\n")
    assert server.run(["systemctl", "is-enabled", "safewebserver"], check=False).stdout == "disabled\n"
    server.shutdown()
    server.boot()
    wait_state(server, "data", "ALONE")
    assert server.state("app") == "STOP" and active(server, "safewebserver") == "inactive"
    server.safekit("boot", "webon")
    assert server.run(["systemctl", "is-enabled", "safewebserver"]).stdout == "enabled\n"


def test_removal_keeps_what_is_the_administrators(server: Machine) -> None:
    server.safekit("shutdown")
    server.run(["/opt/safekit/safekit", "uninstall"], timeout=120)
    for unit in ("safeadmin", "safewebserver"):
        assert active(server, unit) == "inactive"
        assert "not-found" in server.run(["systemctl", "show", "-P", "LoadState", unit]).stdout
    assert server.run("ps -eo comm").stdout.count("safe") == 0
    kept = written(server)
    left = {path for path in kept if path.count("/") <= 3 and not path.startswith("var/safekit/")}
    expected = {
        "etc/safeini.xml", "opt/safekit", "opt/safekit/Application_Modules", "opt/safekit/Application_Modules/backup",
        "opt/safekit/Application_Modules/webconsole", "opt/safekit/conf", "opt/safekit/conf/notify.conf",
        "opt/safekit/snmp", "opt/safekit/snmp/conf",
        "opt/safekit/modules", "opt/safekit/modules/.lock", "opt/safekit/modules/lastconfig",
        "opt/safekit/modules/app", "opt/safekit/modules/data", "opt/safekit/modules/idle",
        "opt/safekit/private", "opt/safekit/private/modules", "opt/safekit/web",
        "opt/safekit/web/conf", "var/safekit",
    }  # fmt: skip
    assert left == expected, sorted(left ^ expected)
    assert {"var/safekit/bus.key", "var/safekit/cluster/cluster.key", "var/safekit/modules/data/resources"} <= kept
    assert {f"opt/safekit/Application_Modules/backup/{module}.safe" for module in ("data", "app", "idle")} <= kept
    assert "safekit" in server.read("/etc/group")


def test_a_new_installation_goes_on_and_a_complete_removal_leaves_nothing(server: Machine) -> None:
    done = server.run("cd /root/i && ./safekitinstall -q", timeout=300)
    assert done.stdout + done.stderr == "", "silent"
    wait_state(server, "data", "ALONE")
    damaged = server.run("cd /root/i && head -c 100000 ../safekit.bin >cut && sh ./cut", check=False)
    assert damaged.returncode == 1 and "is damaged or not complete" in damaged.stderr
    server.safekit("shutdown")
    server.run(["/opt/safekit/safekit", "uninstall", "-all", "-y"], timeout=120)
    assert not written(server), "files that were not there before the first installation"
    for name in ("passwd", "group"):
        assert "safekit" not in server.read(f"/etc/{name}")
    # The data are the administrator's.
    assert server.read("/replicated/starts") or server.read("/replicated_For_SafeKit_Replication/starts")

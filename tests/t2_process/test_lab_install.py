"""safekitinstall into the root of another system, and what an installed node looks like (guide 2.1, 2.5, 10.9)."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from installation.product import pack_module
from installation.source import Source, this_checkout
from lab.cluster import Lab
from lab.waiting import wait_until
from tests.conftest import unique_lab_name

CHECKOUT = Path(__file__).resolve().parents[2]


def install(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "installation.main", "--root", str(root), *options]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    """Everything but compiled code: path -> mode and content (the target of a link)."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if "__pycache__" not in path.parts:
                content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
                found[str(path.relative_to(root))] = (stat.S_IMODE(path.lstat().st_mode), content)
    return found


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """The root of a system with nothing but accounts."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\n")
    for name in ("shadow", "gshadow"):
        (tmp_path / "etc" / name).write_text("")
    return tmp_path


def test_layout_of_an_installation(system: Path) -> None:
    done = install(system)
    assert done.returncode == 0, done.stderr
    assert "Next step: install SafeKit on every server" in done.stdout
    safe, var = system / "opt/safekit", system / "var/safekit"
    gid = next(int(line.split(":")[2]) for line in (system / "etc/group").read_text().splitlines() if "safekit" in line)
    assert any(line.startswith("safekit:") for line in (system / "etc/passwd").read_text().splitlines())
    assert (var.stat().st_gid, stat.S_IMODE(var.stat().st_mode) & 0o777) == (gid, 0o770)
    key = var / "bus.key"
    assert (key.stat().st_gid, stat.S_IMODE(key.stat().st_mode)) == (gid, 0o640)
    assert len(bytes.fromhex(key.read_text())) == 32
    assert (system / "etc/safeini.xml").read_text().endswith('<safeini mapper="6259"/>\n')
    for kind in ("generic", "demo", "other", "backup"):
        assert (safe / "Application_Modules" / kind).is_dir()
    for kind, name, directory in this_checkout().module_templates():
        with zipfile.ZipFile(safe / "Application_Modules" / kind / f"{name}.safe") as bundle:
            assert bundle.read("conf/userconfig.xml") == (directory / "conf/userconfig.xml").read_bytes()
    assert (system / "etc/systemd/system/multi-user.target.wants/safeadmin.service").is_symlink()
    for name in this_checkout().scripts:
        script = safe / "private/env/bin" / name
        assert script.read_text().startswith("#!/opt/safekit/private/env/bin/python -I\n") and os.access(
            script, os.X_OK
        )
    outside = {path.split("/")[0] for path in files(system)}
    assert outside == {"etc", "opt", "usr", "var"}


def test_repeating_and_upgrading_keep_modules_states_and_keys(system: Path) -> None:
    assert install(system, "-q").stdout == ""
    mine = {
        "opt/safekit/modules/app/conf/userconfig.xml": "<safe/>",
        "opt/safekit/conf/license.txt": "licence",
        "opt/safekit/Application_Modules/backup/app.safe": "saved",
        "var/safekit/modules/app/resources": "rfs.uptodate up 1 heart",
        "etc/safeini.xml": '<safeini mapper="7000"/>',
    }
    for path, text in mine.items():
        (system / path).parent.mkdir(parents=True, exist_ok=True)
        (system / path).write_text(text)
    stale = system / "opt/safekit/private/conf/of-an-older-version"
    stale.write_text("")
    before = files(system)
    del before[str(stale.relative_to(system))]
    done = install(system)
    assert done.returncode == 0 and "upgraded" in done.stdout and "bus.key kept" in done.stdout
    assert "Next step: safekit start -m AM" in done.stdout and "cluster config" not in done.stdout
    assert files(system) == before


def test_changed_settings_of_the_web_service_stay_and_a_dated_copy_is_kept(system: Path) -> None:
    """INS-011."""
    conf = system / "opt/safekit/web/conf"
    assert "httpd.conf.2" not in install(system).stdout
    mine = (conf / "httpd.conf").read_text() + "Define httpmonitorport 9012\n"
    (conf / "httpd.conf").write_text(mine)
    said = install(system).stdout
    (copy,) = conf.glob("httpd.conf.2*")
    assert f"a copy in {copy.name};" in said
    assert copy.read_text() == mine == (conf / "httpd.conf").read_text()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o640
    assert "httpd.conf.2" not in install(system).stdout and list(conf.glob("httpd.conf.2*")) == [copy]


def test_changed_settings_of_the_agent_stay_and_a_dated_copy_is_kept(system: Path) -> None:
    """SNM-012; the agent is there and does not start at boot (SNM-001, CLB-004)."""
    snmp = system / "opt/safekit/snmp"
    install(system)
    wanted = system / "etc/systemd/system/multi-user.target.wants"
    assert (system / "etc/systemd/system/safeagent.service").is_file() and not (wanted / "safeagent.service").exists()
    assert (snmp / "mib/safekit.mib").read_text().startswith("SAFEKIT-MIB DEFINITIONS")
    mine = (snmp / "conf/snmpd.conf").read_text() + "trapsink 10.0.0.9\n"
    (snmp / "conf/snmpd.conf").write_text(mine)
    (system / "var/safekit/boot.snmp").write_text("on\n")
    said = install(system).stdout
    (copy,) = snmp.glob("conf/snmpd.2*")
    assert copy.name in said and copy.read_text() == mine == (snmp / "conf/snmpd.conf").read_text()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o640 and (wanted / "safeagent.service").is_symlink()


def test_the_tools_of_certificates_and_the_place_of_an_authority(system: Path) -> None:
    """PKI-016, PKI-025 (delivered), and an upgrade that tells where the authority is. Its service starts at no boot."""
    assert "certification authority" not in install(system).stdout
    web = system / "opt/safekit/web"
    for name in ("startcaserv", "stopcaserv", "initssl", "makeusercert", "getipandnames", "htpasswd"):
        assert (web / "bin" / name).resolve().name == name and (web / "bin" / name).exists()
    assert os.access(web / "bin/openssl", os.X_OK)
    assert "Define caservport 9001" in (web / "conf/httpd.caserv.conf").read_text()
    units = system / "etc/systemd/system"
    assert (units / "safecaserv.service").is_file()
    assert not (units / "multi-user.target.wants/safecaserv.service").is_symlink()
    (web / "conf/httpd.caserv.conf").write_text("Define caservport 9002\n")
    key = web / "conf/ca/private/cacert.key"
    key.parent.mkdir(parents=True, mode=0o700)
    key.write_text("key")
    said = install(system).stdout
    assert "the certification authority of the cluster is in /opt/safekit/web/conf/ca and stays" in said
    # the group that conf hands down gives nobody a right here
    assert key.read_text() == "key" and key.parent.stat().st_mode & 0o777 == 0o700
    assert "9002" in (web / "conf/httpd.caserv.conf").read_text()


def test_an_open_web_service_is_warned_of_by_each_installation(system: Path) -> None:
    done = install(system, "--open")
    assert "Warning: the web service is open: whoever reaches port 9010 commands this server" in done.stdout
    assert "password" not in done.stdout.replace("ask for passwords", "")
    conf = system / "opt/safekit/web/conf"
    assert "#Define usefile" in (conf / "httpd.conf").read_text() and not (conf / "user.conf").exists()
    done = install(system)
    assert "Warning: the web service is open" in done.stdout and not (conf / "user.conf").exists()
    closed = (conf / "httpd.conf").read_text().replace("#Define usefile", "Define usefile")
    (conf / "httpd.conf").write_text(closed)
    done = install(system)
    assert "is open" not in done.stdout and "user admin of the web service has the password" in done.stdout
    assert (conf / "user.conf").read_text().startswith("admin:$2")


def test_uninstall_saves_modules_and_keeps_states(system: Path) -> None:
    assert install(system).returncode == 0
    module = system / "opt/safekit/modules/app"
    (module / "conf").mkdir(parents=True)
    (module / "conf/userconfig.xml").write_text("<safe/>")
    key = (system / "var/safekit/bus.key").read_text()
    done = install(system, "--uninstall")
    assert done.returncode == 0 and "module app is saved" in done.stdout
    assert not (system / "opt/safekit/safekit").exists() and not (system / "opt/safekit/private/env").exists()
    assert not (system / "etc/systemd/system/safeadmin.service").exists()
    with zipfile.ZipFile(system / "opt/safekit/Application_Modules/backup/app.safe") as bundle:
        assert bundle.read("conf/userconfig.xml") == b"<safe/>"
    assert (module / "conf/userconfig.xml").exists() and (system / "var/safekit/bus.key").read_text() == key
    assert install(system).returncode == 0, "a new version goes on with what was kept"
    done = install(system, "--uninstall", "--all", "-q")
    assert done.returncode == 0, done.stderr
    left = [path for path in files(system) if "safe" in path]
    assert not left
    assert "safekit" not in (system / "etc/passwd").read_text() + (system / "etc/group").read_text()


@pytest.mark.parametrize(
    ("prepare", "options", "cause"),
    [
        (lambda root: (root / "etc/passwd").unlink(), (), "no etc/passwd"),
        (lambda root: None, ("--uninstall",), "there is no"),
        (lambda root: None, ("--all",), "--all is only for --uninstall"),
    ],
)
def test_refusals_change_nothing(
    system: Path, prepare: Callable[[Path], None], options: tuple[str, ...], cause: str
) -> None:
    prepare(system)
    before = files(system)
    done = install(system, *options)
    assert done.returncode == 1
    assert cause in done.stderr and "Next step: " in done.stderr and "Traceback" not in done.stderr
    assert files(system) == before


def test_equal_modules_give_equal_archives(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin/start_prim").write_text("#!/bin/sh\n")
        (tmp_path / name / "bin/start_prim").chmod(0o755)
        pack_module(tmp_path / name, tmp_path / f"{name}.safe")
    assert (tmp_path / "one.safe").read_bytes() == (tmp_path / "two.safe").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.safe") as bundle:
        assert bundle.getinfo("bin/start_prim").external_attr >> 16 & 0o777 == 0o755


def test_fingerprint_follows_the_product(tmp_path: Path) -> None:
    for path in ("safekit", "private/conf", "Application_Modules/generic/m/conf"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "setup.cfg").write_text((CHECKOUT / "setup.cfg").read_text())
    code = tmp_path / "safekit/__init__.py"
    code.write_text("A = 1\n")
    seen = {Source(tmp_path).fingerprint()}
    code.write_text("A = 2\n")
    seen.add(Source(tmp_path).fingerprint())
    (tmp_path / "private/conf/new").write_text("")
    seen.add(Source(tmp_path).fingerprint())
    (tmp_path / "private/conf/new").chmod(0o755)
    seen.add(Source(tmp_path).fingerprint())
    assert len(seen) == 4
    (tmp_path / "notes.txt").write_text("not installed")
    assert Source(tmp_path).fingerprint() in seen


@pytest.fixture(scope="module")
def node_lab() -> Iterator[Lab]:
    lab = Lab.up(unique_lab_name(), nodes=1, bare=True)
    yield lab
    lab.down()


def test_processes_have_the_documented_names(node_lab: Lab) -> None:
    node = node_lab.nodes["node1"]
    wait_until(lambda: node.pids("safeadmin"), 10, "the kernel calls safeadmin by its name")
    assert node.run(["systemctl", "is-active", "safeadmin"]).stdout == "active\n"


def test_root_and_members_of_the_group_may_command_and_nobody_else(node_lab: Lab) -> None:
    node = node_lab.nodes["node1"]
    wait_until(lambda: node.safekit("state", check=False).returncode == 0, 20, "safeadmin answers root")
    node.run("useradd -G safekit member && useradd stranger")
    as_member = node.run(["runuser", "-u", "member", "--", "/opt/safekit/safekit", "state"], check=False, cwd="/")
    assert as_member.returncode == 0, as_member.stderr
    as_stranger = node.run(["runuser", "-u", "stranger", "--", "/opt/safekit/safekit", "state"], check=False, cwd="/")
    assert as_stranger.returncode != 0 and "group safekit" in as_stranger.stderr
    assert "Traceback" not in as_stranger.stderr
    for look in (["cat", "/var/safekit/bus.key"], ["ls", "/opt/safekit/modules"]):
        assert node.run(["runuser", "-u", "member", "--", *look], check=False, cwd="/").returncode == 0
        assert "Permission denied" in node.run(["runuser", "-u", "stranger", "--", *look], check=False, cwd="/").stderr


def test_environment_of_the_product_is_complete(node_lab: Lab) -> None:
    node = node_lab.nodes["node1"]
    modules = (
        "lxml.etree, supervisor, pyroute2, fuse, netfilterqueue, click, msgpack, cryptography, heart, nfsbox, vipd"
    )
    node.run(["/opt/safekit/private/env/bin/python", "-I", "-c", f"import {modules}"])
    assert node.run(["/opt/safekit/private/env/bin/supervisord", "--version"]).stdout.startswith("4.")
    answer = node.run(["/opt/safekit/safekit", "-p"]).stdout
    assert "/opt/safekit" in answer and "/var/safekit" in answer


def test_an_installed_product_makes_labs_without_a_checkout(node_lab: Lab) -> None:
    node = node_lab.nodes["node1"]
    environment = {"SAFELAB_DIR": "/data/labs"}  # a node does not see this host's labs
    safelab = "/opt/safekit/private/env/bin/safelab"
    refused = node.run([safelab, "up"], check=False)
    assert refused.returncode == 1 and "cannot be written" in refused.stderr and "SAFELAB_DIR" in refused.stderr
    node.run([safelab, "up", "--nodes", "2"], env=environment, timeout=120)
    inner = node.run([safelab, "run", "node2", "--", "/opt/safekit/safekit", "cluster", "confinfo"], env=environment)
    assert "node1" in inner.stdout and "node2" in inner.stdout
    assert "is removed" in node.run([safelab, "down"], env=environment).stdout

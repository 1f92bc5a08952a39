"""config, confcheck, confinfo and deconfig on real files, without any running module."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

from tests.t2_process.cli_server import NotedAdmin, Server, userconfig


def signatures(server: Server) -> tuple[str, str]:
    active, current = server.run("confinfo", "-m", "mirror").stdout.splitlines()[:2]
    return active.split()[1], current.split()[1]


def test_config_deconfig(server: Server, data: Path) -> None:
    assert signatures(server)[0] == "not"
    done = server.run("config", "-m", "mirror")
    assert done.returncode == 0 and done.stderr.count("warning") == 2, done.stderr
    assert "there is one heartbeat" in done.stderr and "there is no witness" in done.stderr, "as confcheck tells"
    assert "safekit boot -m mirror on" in done.stdout and "safekit prim -m mirror" in done.stdout
    assert data.is_symlink()
    assert (data / "file").read_text() == "content"
    assert signatures(server)[0] == signatures(server)[1]
    script = server.safe / "modules/mirror/bin/start_prim"
    script.write_text("#!/bin/sh\necho changed\n")
    active, current = signatures(server)
    assert active != current
    assert "safekit config -m mirror" in server.run("confinfo", "-m", "mirror").stdout
    assert server.run("config", "-m", "mirror").returncode == 0
    assert os.access(server.safe / "private/modules/mirror/bin/start_prim", os.X_OK)
    assert server.run("deconfig", "-m", "mirror").returncode == 0
    assert not data.is_symlink()
    assert (data / "file").read_text() == "content"


def test_a_wrong_configuration_changes_nothing(server: Server, data: Path) -> None:
    assert server.run("config", "-m", "mirror").returncode == 0
    before = os.readlink(server.safe / "private/modules/mirror")
    (server.safe / "modules/mirror/conf/userconfig.xml").write_text(userconfig(data, lan="nowhere"))
    for word in ("confcheck", "config"):
        done = server.run(word, "-m", "mirror")
        assert done.returncode == 1
        assert "userconfig.xml:3" in done.stderr and "nowhere" in done.stderr
        assert "Next step" in done.stderr
    assert os.readlink(server.safe / "private/modules/mirror") == before


def test_confcheck_runs_the_script_of_the_module(server: Server, data: Path) -> None:
    assert server.run("confcheck", "-m", "mirror").returncode == 0
    server.extra = {"CONFCHECK": "3"}
    done = server.run("confcheck", "-m", "mirror")
    assert done.returncode == 1
    assert "status 3" in done.stderr


def test_config_is_refused_while_the_module_runs_in_prim(server: Server, data: Path, admin: NotedAdmin) -> None:
    from safekit.disk.paths import ModulePaths
    from safekit.disk.resources import ResourceWriter

    assert server.run("config", "-m", "mirror").returncode == 0
    writer = ResourceWriter(ModulePaths("mirror").resources)
    writer.set("state.local", "PRIM", "heart")
    writer.set("state.color", "green", "heart")
    writer.flush()
    admin.modules = {"mirror": {"id": 1, "mode": "mirror", "running": True, "heart": True}}
    done = server.run("config", "-m", "mirror")
    assert done.returncode == 1
    assert "is PRIM" in done.stderr and "safekit stop -m mirror" in done.stderr
    assert server.run("deconfig", "-m", "mirror").returncode == 1


def test_uninstall_undoes_the_configuration(server: Server, data: Path) -> None:
    assert server.run("config", "-m", "mirror").returncode == 0
    done = server.run("module", "uninstall", "-m", "mirror")
    assert (done.returncode, done.stderr) == (0, "")
    assert not data.is_symlink() and (data / "file").read_text() == "content"
    assert not (server.safe / "private/modules/mirror").exists()
    assert not (server.var / "modules/mirror").exists()


def test_ports_of_a_configured_mirror(server: Server, data: Path) -> None:
    assert server.run("module", "getports", "-m", "mirror").returncode == 1
    server.run("config", "-m", "mirror")
    text = server.run("module", "getports", "-m", "mirror").stdout
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(" ")] == ["4800", "9010", "8888", "5600"]


def test_going_back_to_one_of_the_last_three_configurations(server: Server, data: Path) -> None:
    xml = server.safe / "modules/mirror/conf/userconfig.xml"
    first = xml.read_text()
    assert server.run("module", "lastconfig", "-m", "mirror").returncode == 1
    for number in range(5):
        xml.write_text(first.replace("<heart>", f'<heart pulse="{700 + number}" timeout="30000">'))
        assert server.run("config", "-m", "mirror").returncode == 0
        time.sleep(1.01)  # the names of the copies have seconds (guide 3.8.3)
    listed = server.run("module", "lastconfig", "-m", "mirror").stdout.splitlines()
    assert len(listed) == 5 and listed[1].endswith("active, in SAFE/modules") and listed[2].startswith("2 ")
    xml.write_text(first.replace("<heart>", '<heart pulse="555" timeout="30000">'))
    assert server.run("module", "restore", "-m", "mirror", "9").returncode == 1
    restored = server.run("module", "restore", "-m", "mirror", "2")
    assert restored.returncode == 0, restored.stderr
    assert 'pulse="703"' in xml.read_text()
    (kept,) = (server.safe / "Application_Modules/backup").iterdir()
    assert b'pulse="555"' in zipfile.ZipFile(kept).read("conf/userconfig.xml")
    active, current = signatures(server)
    assert active != current, "what runs is not touched"
    assert server.run("config", "-m", "mirror").returncode == 0
    assert server.run("module", "restore", "-m", "mirror", "1").returncode == 0
    assert len(list((server.safe / "Application_Modules/backup").iterdir())) == 1
    commands = (server.var / "commandlog").read_text()
    assert "module restore -m mirror 2" in commands

"""The cluster commands on real files."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from tests.t2_process.cli_server import NotedAdmin, Server

GOOD = """<cluster><lans>
 <lan name="default"><node name="n1" addr="10.1.0.1"/><node name="n2" addr="10.1.0.2"/></lan>
</lans></cluster>
"""


def files(server: Server) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (server.var / "cluster").iterdir()}


@pytest.fixture
def xml(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.xml"
    path.write_text(GOOD)
    return path


def test_config_writes_file_key_and_compiled_form(server: Server, admin: NotedAdmin, xml: Path) -> None:
    done = server.run("cluster", "config", str(xml))
    assert (done.returncode, done.stderr) == (0, "")
    assert files(server).keys() >= {"cluster.xml", "cluster.key", "cluster.json"}
    assert files(server)["cluster.xml"].decode() == GOOD
    assert stat.S_IMODE((server.var / "cluster" / "cluster.key").stat().st_mode) == 0o640
    assert (server.var / "nodename").read_text() == "n1\n"
    assert [op for op, _ in admin.asked] == ["members", "reload"], "who was in it, then: read it again"


def test_every_config_makes_a_new_key(server: Server, admin: NotedAdmin, xml: Path) -> None:
    server.run("cluster", "config", str(xml))
    first = files(server)
    assert server.run("cluster", "config").returncode == 0
    second = files(server)
    assert first["cluster.xml"] == second["cluster.xml"]
    assert first["cluster.key"] != second["cluster.key"]


def test_export_and_config_of_the_zip_give_the_same_key(
    server: Server, admin: NotedAdmin, xml: Path, tmp_path: Path
) -> None:
    server.run("cluster", "config", str(xml))
    before = files(server)
    carried = tmp_path / "cluster.zip"
    assert server.run("cluster", "export", str(carried)).returncode == 0
    assert stat.S_IMODE(carried.stat().st_mode) == 0o600
    assert server.run("cluster", "genkey").returncode == 0
    # The new key waits until it is distributed: until then the servers would not understand each other.
    assert files(server)["cluster.key"] == before["cluster.key"]
    assert files(server)["cluster.key.next"] != before["cluster.key"]
    assert server.run("cluster", "config", str(carried)).returncode == 0
    assert files(server) == before


def test_a_wrong_file_changes_nothing(server: Server, admin: NotedAdmin, xml: Path, tmp_path: Path) -> None:
    server.run("cluster", "config", str(xml))
    before = files(server)
    wrong = tmp_path / "wrong.xml"
    wrong.write_text(GOOD.replace('addr="10.1.0.2"', ""))
    for words in (("confcheck", str(wrong)), ("config", str(wrong))):
        done = server.run("cluster", *words)
        assert done.returncode == 1
        assert f"{wrong}:2" in done.stderr and "addr" in done.stderr
    assert server.run("cluster", "config", str(tmp_path / "missing.xml")).returncode == 1
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("cluster.xml", GOOD)
    assert "cluster.key" in server.run("cluster", "config", str(broken)).stderr
    assert files(server) == before


def test_this_server_must_be_a_node(server: Server, admin: NotedAdmin, xml: Path) -> None:
    server.extra = {"SAFENODE": "stranger"}
    done = server.run("cluster", "config", str(xml))
    assert done.returncode == 1
    assert "not a node" in done.stderr
    assert files(server) == {}


def test_a_name_of_an_older_cluster_does_not_bind(server: Server, admin: NotedAdmin, xml: Path) -> None:
    (server.var / "nodename").write_text("old\n")
    assert server.run("cluster", "config", str(xml)).returncode == 0
    assert (server.var / "nodename").read_text() == "n1\n"


def test_lock_and_unlock(server: Server, admin: NotedAdmin, xml: Path) -> None:
    server.run("cluster", "config", str(xml))
    before = files(server)
    assert server.run("cluster", "config", "lock").returncode == 0
    for words in (("config", str(xml)), ("config",), ("genkey",), ("deconfig",)):
        done = server.run("cluster", *words)
        assert done.returncode == 1
        assert "safekit cluster config unlock" in done.stderr
    assert server.run("cluster", "config", "unlock").returncode == 0
    assert files(server) == before
    assert server.run("cluster", "config", str(xml)).returncode == 0


def test_deconfig(server: Server, admin: NotedAdmin, xml: Path) -> None:
    server.run("cluster", "config", str(xml))
    admin.modules = {"mirror": {"running": True}}
    refused = server.run("cluster", "deconfig")
    assert refused.returncode == 1 and "mirror" in refused.stderr
    admin.modules = {}
    assert server.run("cluster", "deconfig").returncode == 0
    assert files(server) == {}


def test_a_key_is_never_given_up(server: Server, admin: NotedAdmin) -> None:
    done = server.run("cluster", "delkey")
    assert done.returncode == 1
    assert "encrypted" in done.stderr

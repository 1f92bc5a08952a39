"""Ids and configurations of the other servers, as `module install` and `config` see them through safeadmin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.t2_process.cli_server import CLUSTER, NotedAdmin, Server, make_archive, userconfig


def facts(*modules: dict[str, Any]) -> dict[str, Any]:
    return {"facts": {"modules": list(modules)}}


def module(name: str, number: int, **agrees: str) -> dict[str, Any]:
    return {
        "name": name,
        "id": number,
        "signature": "s" if agrees else "",
        "agrees": [[k, v] for k, v in agrees.items()],
    }


@pytest.fixture
def archive(server: Server, admin: NotedAdmin, tmp_path: Path) -> Path:
    """A cluster, and a module to install."""
    (tmp_path / "cluster.xml").write_text(CLUSTER)
    assert server.run("cluster", "config", str(tmp_path / "cluster.xml")).returncode == 0
    directory = tmp_path / "data"
    directory.mkdir()
    return make_archive(tmp_path / "m.safe", **{"conf/userconfig.xml": userconfig(directory)})


def test_an_id_is_that_of_the_other_servers_whatever_was_installed_before(
    server: Server, admin: NotedAdmin, archive: Path
) -> None:
    admin.nodes = {"n1": facts(), "n2": facts(module("old", 1), module("idx", 2))}
    assert "id 2 " in server.run("module", "install", "-m", "idx", str(archive)).stdout
    other = server.run("module", "install", "-m", "new", str(archive))
    assert "id 3 " in other.stdout, "1 is in use elsewhere"
    assert other.stderr == ""


def test_an_id_that_is_taken_here_is_no_silent_other_id(server: Server, admin: NotedAdmin, archive: Path) -> None:
    assert server.run("module", "install", "-m", "first", str(archive)).returncode == 0
    admin.nodes = {"n2": facts(module("idx", 1, id="1"))}
    refused = server.run("module", "install", "-m", "idx", str(archive))
    assert refused.returncode == 1
    assert "module idx has id 1 on n2, which belongs to module first here" in refused.stderr
    assert "module install -M ID -m idx" in refused.stderr
    forced = server.run("module", "install", "-M", "7", "-m", "idx", str(archive))
    assert forced.returncode == 0 and "it has id 1 on n2" in forced.stderr


def test_the_first_configuration_takes_the_id_of_the_cluster(server: Server, admin: NotedAdmin, data: Path) -> None:
    """Installed while this server knew nothing of the others."""
    assert server.run("module", "listid").stdout.split() == ["mirror", "1"]
    admin.nodes = {"n2": facts(module("mirror", 5, id="5"))}
    done = server.run("config", "-m", "mirror")
    assert done.returncode == 0, done.stderr
    assert "the id of module mirror is now 5, as on n2 (it was 1)" in done.stdout
    assert "is configured (id 5)" in done.stdout
    admin.nodes = {"n2": facts(module("mirror", 6, id="6"))}
    again = server.run("config", "-m", "mirror")
    assert "is configured (id 5)" in again.stdout, "what has been configured keeps its id"
    assert "does not fit that of n2: the module id (5 here, 6 on n2)" in again.stderr
    assert "Next step: configure the other servers in the same way: safekit -H SERVERS -E mirror" in again.stderr


def test_config_tells_what_differs_on_other_servers(server: Server, admin: NotedAdmin, data: Path) -> None:
    admin.nodes = {"n2": facts(module("mirror", 1, id="1", directories="/elsewhere", files="x"))}
    done = server.run("config", "-m", "mirror")
    assert done.returncode == 0
    assert f"the replicated directories ({data} here, /elsewhere on n2)" in done.stderr
    admin.nodes = {"n2": facts(module("mirror", 1, id="1", directories=str(data), files="x"))}
    done = server.run("config", "-m", "mirror")
    assert done.returncode == 0 and "replicated directories" not in done.stderr
    assert "n2 has another configuration of module mirror: the files of the module" in done.stdout

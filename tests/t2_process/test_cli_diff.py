"""safekit diff between two servers whose web services run: what differs is told line by line, keys never."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from web_server import WebServer

from cli.main import run
from safekit import __version__
from safekit.model import store
from safekit.model.codec import to_json
from safekit.model.types import ClusterConfig, Lan, LanNode, ModuleConfig

ADDRESSES = {"n1": "127.0.0.1", "n2": "127.0.0.2"}
CLUSTER = ClusterConfig((Lan("default", nodes=tuple(LanNode(n, a) for n, a in ADDRESSES.items())),))
CONFIG = ModuleConfig("db", 1)


def configured(server: WebServer, files: dict[str, str]) -> None:
    """Module db as `config` leaves it."""
    root, active = server.safe / "modules/db", server.safe / "private/modules/.db/1"
    for place in (root, active):
        shutil.rmtree(place, ignore_errors=True)
        for name in ("conf", "bin"):
            (place / name).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(text)
    signed = replace(CONFIG, signature=store.signature(active), configured_at=1.0)
    (active / "conf/active.json").write_text(to_json(signed))
    link = server.safe / "private/modules/db"
    link.unlink(missing_ok=True)
    link.symlink_to(active)
    (server.var / "modules/db").mkdir(parents=True, exist_ok=True)
    (server.var / "modules/db/id").write_text("1\n")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, WebServer]]:
    made = {}
    for name in ADDRESSES:
        server = made[name] = WebServer(tmp_path_factory.mktemp(name))
        server.env["SAFENODE"] = name
        (server.var / "cluster/cluster.json").write_text(to_json(CLUSTER))
    made["n2"].start()
    yield made
    made["n2"].stop()


@pytest.fixture(autouse=True)
def here(services: dict[str, WebServer], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in services["n1"].env.items():
        monkeypatch.setenv(name, value)
    for server in services.values():
        configured(server, {"conf/userconfig.xml": "<safe>\n <a/>\n</safe>\n", "bin/start_prim": "#!/bin/sh\nold\n"})


def asked(services: dict[str, WebServer], *words: str) -> int:
    url = f"http://{ADDRESSES['n2']}:{services['n2'].port}"
    return run(["diff", "-m", "db", "--on", url, *words])


def test_the_same_module_is_the_same(services: dict[str, WebServer], capfd: pytest.CaptureFixture[str]) -> None:
    assert asked(services) == 0
    assert "module db is the same on n1 and n2" in capfd.readouterr().out


def test_lines_files_and_ids_that_differ_are_told(
    services: dict[str, WebServer], capfd: pytest.CaptureFixture[str]
) -> None:
    files = {"conf/userconfig.xml": "<safe>\n <b/>\n</safe>\n", "bin/start_prim": "#!/bin/sh\nold\n", "bin/new": "x\n"}
    configured(services["n2"], files)
    (services["n2"].var / "modules/db/id").write_text("7\n")
    (services["n2"].safe / "modules/db/bin/start_prim").write_text("#!/bin/sh\nedited\n")
    assert asked(services) == 1
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "module db differs between n1 and n2:"
    assert "  module id: 1 on n1, 7 on n2" in said and "  bin/new: only on n2" in said
    at = said.index("  conf/userconfig.xml:")
    assert {"      - <a/>", "      + <b/>"} <= set(said[at:])
    assert not any("bin/start_prim" in line for line in said), "what is applied counts"
    assert any("on n2 SAFE/modules/db was changed, and not applied yet" in line for line in said)
    assert said[-1] == "Next step: on the server with the right one: safekit -H SERVERS -E db"
    assert asked(services, "--json") == 1
    data = json.loads(capfd.readouterr().out)
    (answer,) = data["servers"].values()
    assert data["same"] is False and answer["facts"] == {"id": ["1", "7"]}
    assert set(answer["files"]) == {"bin/new", "conf/userconfig.xml"} and answer["files"]["bin/new"][0] is None


def test_keys_are_told_by_their_fingerprint_only(
    services: dict[str, WebServer], capfd: pytest.CaptureFixture[str]
) -> None:
    key = "ab" * 32
    name = "private/modules/db/conf/module.key"
    (services["n2"].safe / name).write_text(key)
    assert asked(services) == 1
    said = capfd.readouterr()
    assert "module key: none on n1, " in said.out and key not in said.out + said.err
    assert "module.key" not in said.out
    assert run(["diff", "--own", "--text", "conf/module.key", "--text", "../../x", "-m", "db"]) == 0
    own = json.loads(capfd.readouterr().out)
    assert own["texts"] == {} and own["version"] == __version__


def test_a_server_without_the_module_or_without_an_answer_is_named(
    services: dict[str, WebServer], capfd: pytest.CaptureFixture[str]
) -> None:
    (services["n2"].safe / "private/modules/db").unlink()
    assert asked(services) == 1
    said = capfd.readouterr().err
    assert "is not configured" in said and "Next step: run safekit config -m db" in said
    assert run(["diff", "-m", "db", "--on", "http://127.0.0.2:1"]) == 1
    assert "127.0.0.2" in capfd.readouterr().err

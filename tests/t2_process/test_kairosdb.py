"""safekairosdbd against a stand-in of KairosDB that is as strict as the real one, which is in no registry here."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab.waiting import wait_until
from safekairosdb.points import MAX_POINTS, NUMBERS, Buffer, Changes
from safekit.disk.files import boot_identity, write_atomic
from safekit.disk.resources import Resource
from tests.ports import free_port
from tests.t2_process.unit_filter import under
from tests.t2_process.web_server import CHECKOUT


class Kairos(BaseHTTPRequestHandler):
    """POST /api/v1/datapoints: 204, or 400 with {"errors": [...]} as DataPointsParser makes them."""

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"] == "application/gzip":
            data = gzip.decompress(data)
        points = json.loads(data)
        errors = [error for number, point in enumerate(points) for error in self.judge(number, point)]
        server: Any = self.server
        if self.path != "/api/v1/datapoints":
            errors = [f"no {self.path}"]
        if not errors:
            server.points += points
        body = b"" if not errors else json.dumps({"errors": errors}).encode()
        self.send_response(400 if errors else 204)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @staticmethod
    def judge(number: int, point: dict[str, Any]) -> Iterator[str]:
        name = f"metric[{number}](name={point.get('name')})"
        if not point.get("name"):
            yield f"{name}.name may not be empty."
        if not isinstance(point.get("timestamp"), int) or point["timestamp"] <= 0:
            yield f"{name}.timestamp must be a number greater than zero"
        if point.get("value") in (None, ""):
            yield f"{name}.value may not be empty."
        if not point.get("tags"):
            yield f"{name}.tags count must be greater than or equal to 1."
        for key, value in point.get("tags", {}).items():
            if not key or not value:
                yield f"{name}.tag[{key}].value may not be empty."
        if isinstance(point.get("value"), str) and point.get("type") != "string":
            yield f"{name}.type: a string needs the type string"

    def log_message(self, *_: object) -> None:
        pass


class Database:
    def __init__(self, port: int = 0) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Kairos)
        self.server.points = []  # type: ignore[attr-defined]
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def points(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.points  # type: ignore[attr-defined]
        return found

    def values(self, name: str) -> list[Any]:
        return [point["value"] for point in list(self.points) if point["name"] == name]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Node:
    def __init__(self, root: Path) -> None:
        self.root, self.safe, self.var = root, root / "safe", root / "var"
        (self.safe / "modules/db").mkdir(parents=True)
        self.env = {"SAFE": str(self.safe), "SAFEVAR": str(self.var), "SAFENODE": "n1"}
        self.resources({"state.local": "SECOND", "state.color": "green", "rfs_bandwidth.replication": "0"})

    def resources(self, values: dict[str, str], *, runs: bool = True) -> None:
        var = self.var / "modules/db"
        var.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{k} {v} {time.time():.3f} heart\n" for k, v in values.items())
        write_atomic(var / "resources", text.encode(), durable=False)
        if runs:
            write_atomic(var / "running", boot_identity().encode(), durable=False)
        else:
            (var / "running").unlink(missing_ok=True)

    def start(self, url: str) -> subprocess.Popen[str]:
        command = [*under("safeKairosDBd"), sys.executable, "-m", "safekairosdb.main", url]
        with (self.root / "said").open("w") as said:
            return subprocess.Popen(
                command, cwd=CHECKOUT, env={**os.environ, **self.env}, stdout=said, stderr=said, text=True
            )

    def said(self) -> str:
        return (self.root / "said").read_text()


@pytest.fixture
def database() -> Iterator[Database]:
    made = Database()
    yield made
    made.close()


def test_every_change_is_sent(tmp_path: Path, database: Database) -> None:
    """MET-001 to MET-005."""
    node = Node(tmp_path)
    process = node.start(f"http://127.0.0.1:{database.server.server_port}/")
    try:
        wait_until(lambda: database.values("safekit.state.local"), 20, node.said)
        for state in ("ALONE", "PRIM", "WAIT", "SECOND"):
            node.resources({"state.local": state, "state.color": "green", "rfs_bandwidth.replication": "345",
                            "rfs_bandwidth.reintegration": "17.5"})  # fmt: skip
            wait_until(lambda s=state: database.values("safekit.state.local")[-1] == s, 5, lambda: str(database.points))  # type: ignore[misc]
        assert database.values("safekit.state.local") == ["SECOND", "ALONE", "PRIM", "WAIT", "SECOND"]
        wait_until(lambda: len(database.values("safekit.state.local.number")) == 5, 5, lambda: str(database.points))
        assert database.values("safekit.state.local.number") == [5, 2, 4, 1, 5]
        assert max(database.values("safekit.rfs_bandwidth.replication")) == 345
        assert 17.5 in database.values("safekit.rfs_bandwidth.reintegration")
        assert all(
            p["name"].startswith("safekit.") and p["tags"] == {"module": "db", "node": "n1"} for p in database.points
        )
        node.resources({"state.local": "SECOND", "state.color": "green"}, runs=False)
        wait_until(lambda: database.values("safekit.state.local")[-1] == "STOP", 10, lambda: str(database.points))
    finally:
        process.terminate()
        assert process.wait(15) == 0, node.said()


def test_an_absence_costs_one_line_and_no_change(tmp_path: Path) -> None:
    """MET-009: away, back, slow; what changed meanwhile arrives."""
    node, port = Node(tmp_path), free_port()
    process = node.start(f"http://127.0.0.1:{port}")
    database: Database | None = None
    try:
        wait_until(lambda: "does not take data" in node.said(), 20, node.said)
        for state in ("ALONE", "PRIM"):
            node.resources({"state.local": state, "state.color": "green"})
            time.sleep(1)
        database = Database(port)
        wait_until(lambda: database is not None and database.values("safekit.state.local"), 30, node.said)
        wait_until(lambda: "takes data again" in node.said(), 5, node.said)
        assert database.values("safekit.state.local") == ["SECOND", "ALONE", "PRIM"]
        assert node.said().count("does not take data") == 1
    finally:
        process.terminate()
        assert process.wait(15) == 0, node.said()
        if database is not None:
            database.close()


def test_an_url_that_is_none_ends_for_good(tmp_path: Path) -> None:
    process = Node(tmp_path).start("127.0.0.1:8080")
    assert process.wait(20) == 2 and "is not an URL" in (tmp_path / "said").read_text()


def test_the_buffer_is_bounded_and_keeps_the_newest() -> None:
    buffer = Buffer()
    buffer.add([{"n": n} for n in range(10)])
    batch = buffer.batch()
    buffer.add([{"n": n} for n in range(10, MAX_POINTS + 5)])
    assert len(buffer) == MAX_POINTS and buffer.dropped == 5
    buffer.sent(batch)
    assert buffer.batch()[0] == {"n": 5} or buffer.batch()[0] == {"n": 10}
    while buffer.batch():
        last = buffer.batch()
        buffer.sent(last)
    assert last[-1] == {"n": MAX_POINTS + 4}


def test_a_quiet_module_is_repeated_each_minute() -> None:
    changes = Changes("db", "n1")
    found = {"state.local": Resource("state.local", "PRIM", 5.0, "heart")}
    sent = [len(changes.see(found, 1000.0 + second)) for second in range(0, 190, 5)]
    assert [count for count in sent if count] == [2, 2, 2, 2] and sent[0] == sent[12] == 2
    assert NUMBERS["PRIM"] == 4


def test_what_is_delivered_names_what_is_sent() -> None:
    """MET-006, MET-007, in the checkout; the installed files: test_lab_install."""
    dashboard = json.loads((CHECKOUT / "private/KairosDB/dashboard.json").read_text())
    names = [t["query"]["metricName"] for panel in dashboard["panels"] for t in panel["targets"]]
    readme = (CHECKOUT / "private/KairosDB/README").read_text()
    assert len(names) >= 4 and all(n.removesuffix(".number").startswith("safekit.") for n in names)
    assert "safekit.state.local.number" in names and "safekit.rfs_bandwidth.replication" in readme
    for spelling in ("safeKairosDBd", "safeKarisDbd"):
        assert (
            "safekairosdbd http://127.0.0.1:8080" in (CHECKOUT / f"private/conf/systemd/{spelling}.service").read_text()
        )

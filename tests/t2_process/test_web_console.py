"""What the web service tells a console: sessions, the stream of events, the relay, files."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cli_server import NotedAdmin
from web_server import GREEN, KEY, PASSWORDS, WebServer, command

from safekit.disk.files import write_atomic
from safewebserver import files
from safewebserver.api import ApiError
from safewebserver.htpasswd import hashed
from safewebserver.permissions import Role
from safewebserver.sessions import IDLE_SECONDS, WATCH_SECONDS, Sessions

# Sessions


def log_in(web: WebServer, user: str = "admin", password: str | None = None) -> tuple[int, str]:
    body = json.dumps({"user": user, "password": PASSWORDS[user] if password is None else password}).encode()
    answer = web.ask("POST", "/api/v1/session", body)
    return answer.status, answer.headers.get("Set-Cookie", "").partition(";")[0]


def test_a_session_is_a_cookie_until_it_is_ended(web: WebServer) -> None:
    status, cookie = log_in(web, "operator")
    header = web.ask(
        "POST", "/api/v1/session", json.dumps({"user": "operator", "password": PASSWORDS["operator"]}).encode()
    )
    flags = header.headers["Set-Cookie"]
    assert status == 200 and "HttpOnly" in flags and "SameSite=Strict" in flags and "Secure" not in flags
    node = web.ask("GET", "/api/v1/node", headers={"Cookie": cookie})
    assert (node.status, node.json["user"], node.json["role"]) == (200, "operator", "Control")
    assert web.ask("GET", "/api/v1/files", headers={"Cookie": cookie}).status == 403
    foreign = {"Cookie": cookie, "Origin": "http://evil.example"}
    assert web.ask("POST", "/api/v1/command", command("level"), headers=foreign).error == "origin"
    assert web.ask("DELETE", "/api/v1/session", headers={"Cookie": cookie}).status == 200
    ended = web.ask("GET", "/api/v1/node", headers={"Cookie": cookie, "X-SafeKit-Console": "1"})
    assert (ended.status, ended.error) == (401, "session") and "WWW-Authenticate" not in ended.headers


@pytest.mark.parametrize("cookie", ["safekit_session=", "safekit_session=x", "safekit_session=" + "a" * 4000])
def test_an_invented_session_is_none(web: WebServer, cookie: str) -> None:
    assert web.ask("GET", "/api/v1/node", headers={"Cookie": cookie}).status == 401


def test_wrong_passwords_and_bodies_open_nothing(web: WebServer) -> None:
    assert log_in(web, "admin", "wrong")[0] == 401
    assert log_in(web, "nobody")[0] == 401, "in no group"
    for body in (
        b"{}",
        b'{"user": 1, "password": ""}',
        b'{"user": "a:b", "password": "x"}',
        b'{"user": "", "password": "x"}',
    ):
        assert web.ask("POST", "/api/v1/session", body).status == 400, body
    assert web.ask("POST", "/api/v1/session", b'{"user": "\\ud800", "password": "x"}').status in (400, 401)


def test_who_tries_passwords_at_the_console_is_seen(tmp_path: Path) -> None:
    server = WebServer(tmp_path).start()
    try:
        assert [log_in(server, "admin", "my-secret-guess")[0] for _ in range(3)] == [401] * 3
    finally:
        said = server.stop()
    assert said.count("refused a request of 127.0.0.1: wrong name or password") == 1
    assert "my-secret-guess" not in said


def test_a_changed_password_ends_the_sessions_of_its_user(web: WebServer) -> None:
    _, cookie = log_in(web, "viewer")
    users = web.safe / "web/conf/user.conf"
    before = users.read_text()
    users.write_text(re.sub("viewer:.*", f"viewer:{hashed('another')}", before))
    try:
        assert web.ask("GET", "/api/v1/node", headers={"Cookie": cookie}).status == 401
    finally:
        users.write_text(before)


def test_an_idle_session_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE", str(tmp_path))
    (tmp_path / "web/conf").mkdir(parents=True)
    (tmp_path / "web/conf/user.conf").write_text("a:$2y$aaa\nm:$2y$mmm\n")
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    admin, wall = sessions.open("a", Role.ADMIN), sessions.open("m", Role.MONITOR)
    now[0] = IDLE_SECONDS - 1
    assert sessions.find(admin, use=False) == ("a", Role.ADMIN), "a stream alone does not keep it"
    assert sessions.find(admin) == ("a", Role.ADMIN)
    now[0] = 2 * IDLE_SECONDS - 2
    assert sessions.find(admin) == ("a", Role.ADMIN)
    now[0] += IDLE_SECONDS + 1
    assert sessions.find(admin) is None and sessions.find(wall) == ("m", Role.MONITOR)
    now[0] += WATCH_SECONDS + 1
    assert sessions.find(wall) is None


# The stream


class Stream:
    """Server-sent events, read one by one."""

    def __init__(self, web: WebServer, last: str = "") -> None:
        self.connection = HTTPConnection("127.0.0.1", web.port, timeout=15)
        _, cookie = log_in(web)
        self.connection.request("GET", "/api/v1/events", headers={"Cookie": cookie, "Last-Event-ID": last})
        self.response: HTTPResponse = self.connection.getresponse()
        assert self.response.status == 200 and self.response.getheader("Content-Type") == "text/event-stream"

    def event(self) -> tuple[str, str, dict[str, Any]]:
        """(kind, id, data) of the next one."""
        fields: dict[str, str] = {}
        while True:
            line = self.response.readline().decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                return fields["event"], fields["id"], json.loads(fields["data"])
            else:
                fields = {}

    def close(self) -> None:
        self.connection.close()


def until(stream: Stream, node: str, check: Any) -> str:
    """The id of the first change of a server that fits."""
    for _ in range(30):
        kind, number, data = stream.event()
        if kind == "change" and data["node"] == node and check(data):
            return number
    raise AssertionError("the change did not come")


def test_a_snapshot_then_changes_and_what_was_missed(web: WebServer) -> None:
    stream = Stream(web)
    kind, number, data = stream.event()
    assert kind == "snapshot" and data["me"] == "n1" and data["order"] == ["n1", "n2"] and data["role"] == "Admin"
    assert data["nodes"]["n1"]["modules"]["mirror"]["state"] == "ALONE"
    began = time.monotonic()
    web.module("mirror", {"state.local": "WAIT", "state.color": "red"})
    number = until(stream, "n1", lambda d: d.get("modules", {}).get("mirror", {}).get("state") == "WAIT")
    assert time.monotonic() - began < 5
    stream.close()
    web.module("mirror", GREEN)
    web.module("second", GREEN)
    time.sleep(0.6)
    again = Stream(web, number)
    kind, later, data = again.event()
    assert kind == "change" and int(later.partition("-")[2]) == int(number.partition("-")[2]) + 1
    if "second" not in data.get("modules", {}):
        until(again, "n1", lambda d: "second" in d.get("modules", {}))
    again.close()
    unknown = Stream(web, "0badcafe-17")
    assert unknown.event()[0] == "snapshot"
    unknown.close()


def basic(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{PASSWORDS[user]}".encode()).decode()


def test_streams_end_with_the_right_to_see_them(web: WebServer) -> None:
    """After a log out and after a changed password, also while there is always something to tell."""
    _, cookie = log_in(web, "operator")
    web.module("busy", GREEN)
    paths = ("/api/v1/events", "/api/v1/modules/busy/log/events")
    streams = []
    for header in ({"Cookie": cookie}, {"Authorization": basic("viewer")}):
        for path in paths:
            streams.append(HTTPConnection("127.0.0.1", web.port, timeout=30))
            streams[-1].request("GET", path, headers=header)
    answers = [each.getresponse() for each in streams]
    users = web.safe / "web/conf/user.conf"
    before = users.read_text()
    assert [each.status for each in answers] == [200] * 4
    with ThreadPoolExecutor(4) as pool:
        read = [pool.submit(each.read) for each in answers]
        assert web.ask("DELETE", "/api/v1/session", headers={"Cookie": cookie}).status == 200
        users.write_text(re.sub("viewer:.*", f"viewer:{hashed('another')}", before))
        try:
            deadline, value = time.monotonic() + 20, 0
            while time.monotonic() < deadline and not all(each.done() for each in read):
                value += 1
                web.module("busy", {**GREEN, "custom.load": str(value)})
                time.sleep(0.5)
            ended = [each.done() and each.result().endswith(b"event: ended\ndata: {}\n\n") for each in read]
        finally:
            users.write_text(before)
            for each in streams:
                if each.sock is not None:
                    each.sock.shutdown(socket.SHUT_RDWR)
    assert ended == [True] * 4, [each.done() and each.result()[-200:] for each in read]


def test_a_server_that_answers_as_another_is_told(web: WebServer) -> None:
    """n2's address leads to n1 here: what it says is not taken for n2's."""
    stream = Stream(web)
    _, _, data = stream.event()
    known = data["nodes"].get("n2")
    if known is None or known["reachable"]:
        until(stream, "n2", lambda d: (d.get("whole") or d.get("about", {})).get("reachable") is False)
    stream.close()


def test_a_view_waits_for_a_change(web: WebServer) -> None:
    first = web.ask("GET", "/api/v1/view", user="viewer").json
    began = time.monotonic()
    same = web.ask("GET", f"/api/v1/view?after={first['seq']}&wait=1", user="viewer").json
    assert time.monotonic() - began >= 0.9 or same["seq"] != first["seq"]


# The relay


@pytest.mark.parametrize(
    ("user", "method", "path", "body", "status", "error"),
    [
        ("viewer", "POST", "command", command("stop", "-m", "mirror"), 403, "forbidden"),
        ("viewer", "POST", "command", command("level"), 502, "target"),
        ("operator", "POST", "command", command("module", "uninstall", "-m", "mirror"), 403, "forbidden"),
        ("operator", "PUT", "file?path=modules/mirror/bin/x", b"{}", 403, "forbidden"),
        ("viewer", "DELETE", "file?path=modules/mirror/bin/x", b"", 403, "forbidden"),
        ("viewer", "GET", "node", b"", 502, "target"),
        ("admin", "GET", "nodes/n1/node", b"", 400, "relay"),
        ("admin", "GET", "events", b"", 400, "relay"),
        ("admin", "GET", "modules/mirror/log/events", b"", 400, "relay"),
        ("admin", "POST", "session", b"{}", 400, "relay"),
    ],
)
def test_the_person_is_judged_before_anything_is_signed(
    web: WebServer, user: str, method: str, path: str, body: bytes, status: int, error: str
) -> None:
    answer = web.ask(method, f"/api/v1/nodes/n2/{path}", body, user=user)
    assert (answer.status, answer.error) == (status, error), answer.data


@pytest.mark.parametrize("node", ["n3", "127.0.0.1", "169.254.169.254", "localhost", "n2%2f..", "n1;n2"])
def test_only_servers_of_the_cluster_are_asked(web: WebServer, node: str) -> None:
    assert web.ask("GET", f"/api/v1/nodes/{node}/node", user="admin").status in (400, 404)


def test_a_server_asks_in_the_name_of_a_person(web: WebServer) -> None:
    def ask(query: str, method: str = "GET", path: str = "files", body: bytes = b"") -> Any:
        target = f"/api/v1/{path}?{query}"
        headers, _ = web.signed(method, target, body)
        return web.ask(method, target, body, headers=headers)

    assert ask("path=modules").status == 200
    limited = ask("path=modules&on_behalf=web@10.0.0.9&role=Monitor")
    assert limited.status == 403 and "web@10.0.0.9 has Monitor" in limited.data.decode()
    assert ask("on_behalf=x&role=Monitor", "POST", "command", command("stop", "-m", "mirror")).status == 403
    for wrong in (
        "role=Monitor",
        "on_behalf=x",
        "on_behalf=x&role=Root",
        "on_behalf=-u&role=Admin",
        "on_behalf=%00&role=Admin",
    ):
        assert ask(wrong).status == 400, wrong
    # Without a signature these words mean nothing.
    assert web.ask("GET", "/api/v1/files?on_behalf=root&role=Admin", user="viewer").status == 403


def test_a_probe_tells_a_name_or_nothing(web: WebServer) -> None:
    found = web.ask("GET", "/api/v1/probe?address=127.0.0.3", user="admin").json
    assert (found["node"], found["answers"]) == ("n1", True)
    assert web.ask("GET", "/api/v1/probe?address=127.0.0.1", user="operator").status == 403
    for address in ("", "a/b", "a@b", "http://x", "x:1", "a b", ":::", "1:2", "1.2.3.4%x/"):
        assert web.ask("GET", f"/api/v1/probe?address={quote(address)}", user="admin").status == 400, address


def test_only_an_administrator_passes_on_much(web: WebServer) -> None:
    """Two megabytes of anybody else are refused before they are in the memory."""
    for user, status in (("viewer", 413), ("admin", 502)):
        answer = web.ask("GET", "/api/v1/nodes/n2/node", bytes(2 << 20), user=user)
        assert answer.status == status, answer.data


# Several servers at once


def test_a_new_key_that_cannot_be_made_is_told(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in web.env.items():
        monkeypatch.setenv(name, value)
    cluster = web.var / "cluster"
    kept = {path: path.read_bytes() for path in cluster.iterdir() if path.is_file()}
    (cluster / "cluster.key.next").mkdir()
    xml = (
        '<cluster><lans><lan name="default"><node name="n1" addr="127.0.0.1"/>'
        '<node name="n2" addr="127.0.0.2"/></lan></lans></cluster>'
    )
    body = json.dumps({"xml": xml, "before": "", "renew": True}).encode()
    try:
        with NotedAdmin(int(web.env["SAFEMAPPER"])):
            own = web.ask("POST", "/api/v1/cluster/apply", body, user="admin").json["results"][0]
    finally:
        (cluster / "cluster.key.next").rmdir()
        for path in cluster.iterdir():
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)
    assert own["status"] != 0 and "cluster.key.next" in own["output"], own


def test_without_a_cluster_a_deployment_says_so(web: WebServer) -> None:
    described = web.var / "cluster/cluster.json"
    kept = described.read_text()
    described.unlink()
    try:
        answer = web.ask("POST", "/api/v1/modules/mirror/deploy", b'{"nodes": ["n2"]}', user="admin")
    finally:
        described.write_text(kept)
    assert (answer.status, answer.error) == (409, "no_cluster") and "cluster config" in answer.json["next_step"]


# Files


def file(web: WebServer, method: str, path: str, data: dict[str, str] | None = None, match: str = "") -> Any:
    headers = {"If-Match": f'"{match}"'} if match else {}
    body = json.dumps(data).encode() if data is not None else b""
    return web.ask(method, f"/api/v1/file?path={quote(path)}", body, user="admin", headers=headers)


def test_two_editors_of_a_file(web: WebServer) -> None:
    path = "modules/mirror/bin/start_prim"
    (web.safe / "modules/mirror/bin").mkdir(exist_ok=True)
    assert file(web, "PUT", path, {"text": "one\n"}).status == 200
    first = file(web, "GET", path)
    assert first.json["text"] == "one\n" and first.headers["ETag"] == f'"{first.json["etag"]}"'
    assert file(web, "PUT", path, {"text": "blind\n"}).status == 428
    assert file(web, "PUT", path, {"text": "two\n"}, first.json["etag"]).status == 200
    late = file(web, "PUT", path, {"text": "late\n"}, first.json["etag"])
    assert (late.status, late.error) == (412, "changed")
    assert (web.safe / path).read_text() == "two\n" and os.access(web.safe / path, os.X_OK)
    assert file(web, "DELETE", path).status == 200 and file(web, "GET", path).status == 404


def test_of_two_who_save_at_once_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "start_prim"
    path.write_bytes(b"old")

    def slowly(where: Path, content: bytes, **options: Any) -> None:
        time.sleep(0.2)
        write_atomic(where, content, **options)

    monkeypatch.setattr(files, "write_atomic", slowly)
    with ThreadPoolExecutor(2) as pool:
        saves = [pool.submit(files._write, path, text, files.tag_of(b"old")) for text in (b"one", b"two")]
    errors = [each.exception() for each in saves]
    told = [each.body["error"] for each in errors if isinstance(each, ApiError)]
    assert told == ["changed"] and errors.count(None) == 1
    assert path.read_bytes() == (b"one", b"two")[errors.index(None)]


def test_no_file_is_written_that_could_not_be_read(web: WebServer) -> None:
    answer = file(web, "PUT", "modules/mirror/conf/large", {"text": "x" * (files.MAX_FILE + 1)})
    assert (answer.status, answer.error) == (413, "too_large")


@pytest.mark.parametrize(
    "path",
    [
        "modules/../../etc/passwd",
        "/etc/passwd",
        "modules/mirror/../../x",
        "modules/mirror/link/passwd",
        "modules/.hidden/x",
        "modules/mirror/conf/module.key",
        "web/conf/user.conf",
        "modules/lastconfig/x",
        "modules/mirror/fifo",
        "",
        "modules/a\0b",
    ],
)
def test_no_file_outside_and_no_key(web: WebServer, path: str) -> None:
    root = web.safe / "modules/mirror"
    (root / "conf").mkdir(exist_ok=True)
    (root / "conf/module.key").write_text(KEY.hex())
    if not (root / "link").is_symlink():
        (root / "link").symlink_to("/etc")
        os.mkfifo(root / "fifo")
    for method, data in (("GET", None), ("PUT", {"text": "x"}), ("DELETE", None)):
        if path == "modules/mirror/fifo" and method == "DELETE":
            continue
        answer = file(web, method, path, data)
        assert answer.status in (400, 403, 404, 409, 428), (method, path, answer.data)
        assert KEY.hex().encode() not in answer.data and b"root:" not in answer.data
    listed = web.ask("GET", "/api/v1/files?path=modules/mirror/conf", user="admin").json
    assert "module.key" not in {entry["name"] for entry in listed["entries"]}


def test_operations_of_the_file_manager(web: WebServer) -> None:
    base = web.safe / "Application_Modules"
    (base / "generic").mkdir(parents=True, exist_ok=True)

    def change(op: str, source: str, target: str) -> Any:
        body = json.dumps({"op": op, "from": source, "to": target}).encode()
        return web.ask("POST", "/api/v1/files", body, user="admin")

    (web.safe / "modules/mirror/conf").mkdir(exist_ok=True)
    (web.safe / "modules/mirror/conf/userconfig.xml").write_text("<safe/>")
    (web.safe / "modules/mirror/conf/module.key").write_text(KEY.hex())
    for name in ("fifo", "link"):
        (web.safe / "modules/mirror" / name).unlink(missing_ok=True)
    assert change("copy", "modules/mirror", "templates/mine").status == 200
    assert not (base / "mine/conf/module.key").exists(), "a template has no key"
    assert change("copy", "modules/mirror", "templates/mine").status == 409
    assert change("pack", "modules/mirror", "templates/whole.safe").status == 200
    with zipfile.ZipFile(base / "whole.safe") as made:
        assert "conf/userconfig.xml" in made.namelist() and not [n for n in made.namelist() if n.endswith(".key")]
    assert change("pack", "templates/mine", "templates/mine.safe").status == 200
    assert change("move", "templates/mine", "templates/generic/other").status == 200
    assert change("unpack", "templates/mine.safe", "templates/mine").status == 200
    assert (base / "mine/conf/userconfig.xml").read_text() == "<safe/>"
    assert change("mkdir", "", "templates/new").status == 200
    for op, source, target in (
        ("copy", "templates/mine", "modules/mine"),
        ("move", "modules/mirror", "templates/gone"),
        ("copy", "templates/mine", "templates/mine/inside"),
        ("copy", "templates", "templates/x"),
        ("unpack", "templates/generic", "templates/y"),
        ("move", "templates/missing", "templates/z"),
        ("move", "/modules/mirror", "templates/gone"),
        ("mkdir", "", "/modules//mine"),
    ):
        assert change(op, source, target).status in (400, 404, 409), (op, source, target)


@pytest.mark.parametrize("path", ["modules/mirror", "/modules/mirror", "modules//mirror/", "modules", "/templates"])
def test_a_module_is_not_deleted_however_its_path_is_written(web: WebServer, path: str) -> None:
    assert file(web, "DELETE", path).status == 400 and (web.safe / "modules/mirror").is_dir()
    assert file(web, "PUT", path.replace("mirror", "new"), {"text": "x"}).status == 400
    assert not (web.safe / "modules/new").exists()


def test_no_link_is_followed(web: WebServer) -> None:
    """Neither to list a directory elsewhere nor to copy it to where it can be read."""
    (web.root / "elsewhere").mkdir()
    (web.root / "elsewhere/secret").write_text("secret")
    link = web.safe / "modules/mirror/away"
    link.symlink_to(web.root / "elsewhere")
    assert web.ask("GET", "/api/v1/files?path=modules/mirror/away", user="admin").status == 400
    for op in ("copy", "pack", "unpack", "move"):
        body = json.dumps({"op": op, "from": "modules/mirror/away", "to": "modules/mirror/copied"}).encode()
        assert web.ask("POST", "/api/v1/files", body, user="admin").status == 400, op
    assert file(web, "DELETE", "modules/mirror/away").status == 200 and not link.is_symlink()
    assert (web.root / "elsewhere/secret").read_text() == "secret"


def test_the_stream_needs_a_person_or_a_server(web: WebServer) -> None:
    assert web.ask("GET", "/api/v1/events").status == 401

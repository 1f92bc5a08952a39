"""The web service as a process: who may do what on every route, signed requests, health checks, bounds."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import resource
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from web_server import GREEN, KEY, PASSWORDS, WebServer, command

from safekit.disk.paths import ModulePaths
from safekit.wire import remote
from safekit.wire.targets import Credentials, Target
from safekit.wire.webclient import Ask, CallError, call
from safewebserver.api import openapi
from safewebserver.forks import reads
from safewebserver.permissions import Role
from tests.ports import free_ports


def _filled(path: str) -> str:
    values = {"module": "mirror", "name": "cluster", "number": "1", "node": "n9", "path": "command"}
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], path)


def routes() -> list[tuple[str, str, Role | None]]:
    """(method, path, role) of the description, with a module's name filled in."""
    found = []
    for path, methods in openapi()["paths"].items():
        for method, entry in methods.items():
            if method != "parameters":
                role = entry["x-role"]
                found.append((method.upper(), _filled(path), Role[role.upper()] if role else None))
    return found


BODIES = {
    "/api/v1/proof": b'{"user": "admin"}',
    "/api/v1/command": command("level"),
    "/api/v1/cluster": b"{}",
    "/api/v1/nodes/n9/command": command("level"),
    "/api/v1/session": json.dumps({"user": "admin", "password": PASSWORDS["admin"]}).encode(),
}


def test_the_description_names_every_route_and_no_other(web: WebServer) -> None:
    from safewebserver.api import Api
    from safewebserver.app import make_app
    from safewebserver.assets import PAGES

    pages = {*PAGES, *(f"/safekit/{name}" for name in ("pages.css", "mosaic.html", "localhost.html"))}
    pages |= {"/console/{hash}/{path}", "/metrics", "/certs/clca.crl"}
    app = make_app(None, Api(None, None))  # type: ignore[arg-type]
    found = {(r.method, r.resource.canonical) for r in app.router.routes() if r.resource is not None}
    served = {(method, path) for method, path in found if path not in pages and method != "HEAD"}
    described = {
        (method.upper(), path)
        for path, methods in openapi()["paths"].items()
        for method in methods
        if method != "parameters"
    }
    assert served == described


@pytest.mark.parametrize(("method", "path", "role"), routes())
def test_every_route_by_credentials(web: WebServer, method: str, path: str, role: Role | None) -> None:
    if path.endswith("/events"):
        path += "?level=X"  # refused after the credentials were accepted: a stream would never end
    body = BODIES.get(path, b"")
    if role is None:
        assert web.ask(method, path, body).status in (200, 404)
        return
    # From an address of its own: who guesses much has to wait.
    source = "127.1.{}.{}".format(*hashlib.sha256(f"{method}{path}".encode()).digest()[:2])
    for user, password in (
        ("", None),
        ("admin", "wrong"),
        ("stranger", "x"),
        ("nobody", None),
        ("viewer", "admin-secret"),
    ):
        refused = web.ask(method, path, body, user=user, password=password, source=source)
        assert (refused.status, refused.error) == (401, "credentials"), (user, refused.data)
        assert "Basic" in refused.headers["WWW-Authenticate"]
    for header in ("Bearer x", "Basic !!!", "SafeKit x", "SafeKit " + "a=b," * 8, ""):
        assert web.ask(method, path, body, headers={"Authorization": header}).status == 401
    for user, own in (("viewer", Role.MONITOR), ("operator", Role.CONTROL), ("admin", Role.ADMIN)):
        answer = web.ask(method, path, body, user=user)
        assert (answer.status == 403) == (own < role), (user, answer.data)
        assert answer.status != 401 and answer.status < 500


def test_the_role_decides_about_each_command(web: WebServer) -> None:
    for user, words, status in (
        ("viewer", ("level",), 200),
        ("viewer", ("start", "-m", "mirror"), 403),
        ("operator", ("module", "uninstall", "-m", "mirror"), 403),
        ("operator", ("logview", "-m", "mirror"), 400),
        ("admin", ("-r", "processtree"), 400),
        ("admin", ("nonsense",), 200),
    ):
        answer = web.ask("POST", "/api/v1/command", command(*words), user=user)
        assert answer.status == status, answer.data
    assert answer.json["status"] == 1 and "nonsense" in answer.json["output"]


def test_a_signed_request_and_its_answer(web: WebServer) -> None:
    body = command("level", "--help")
    headers, nonce = web.signed("POST", "/api/v1/command", body)
    answer = web.ask("POST", "/api/v1/command", body, headers=headers)
    assert answer.status == 200
    content = remote.check_answer(KEY, nonce, 200, answer.data)
    assert json.loads(content)["status"] == 0
    with pytest.raises(remote.SignatureError):
        remote.check_answer(KEY, nonce, 200, answer.data.replace(b'"status": 0', b'"status": 1'))
    again = web.ask("POST", "/api/v1/command", body, headers=headers)
    assert (again.status, again.error) == (401, "replay")


def test_altered_signed_requests(web: WebServer) -> None:
    body, path = command("state"), "/api/v1/command"
    cases = (
        (web.signed("POST", path, body)[0], "POST", path, command("shutdown"), "altered"),
        (web.signed("POST", path, body)[0], "POST", path + "?x", body, "altered"),
        (web.signed("GET", path, body)[0], "POST", path, body, "altered"),
        (web.signed("POST", path, body, key=bytes(32))[0], "POST", path, body, "key"),
        (web.signed("POST", path, body, target="n2")[0], "POST", path, body, "target"),
    )
    for headers, method, where, sent, kind in cases:
        answer = web.ask(method, where, sent, headers=headers)
        assert (answer.status, answer.error) == (401, kind), answer.data


def test_a_clock_one_hour_off_is_named(web: WebServer) -> None:
    headers, _ = web.signed("GET", "/api/v1/node", now=time.time() + 3600)
    answer = web.ask("GET", "/api/v1/node", headers=headers)
    assert (answer.status, answer.error) == (401, "clock")
    assert "n2" in answer.json["text"] and "60 min ahead" in answer.json["text"]
    assert "NTP" in answer.json["next_step"] and float(answer.json["skew"]) == pytest.approx(3600, abs=5)


def test_a_restart_remembers_what_was_received(tmp_path: Path) -> None:
    server = WebServer(tmp_path).start()
    headers, _ = server.signed("GET", "/api/v1/node")
    assert server.ask("GET", "/api/v1/node", headers=headers).status == 200
    server.stop()
    server.start()
    try:
        assert server.ask("GET", "/api/v1/node", headers=headers).error == "replay"
    finally:
        server.stop()


def test_health_checks_follow_the_state(web: WebServer) -> None:
    def probe(name: str) -> tuple[int, bytes]:
        answer = web.ask("GET", f"/var/modules/{name}/ready.txt")
        return answer.status, answer.data

    for state, color, here in (
        ("ALONE", "green", True), ("PRIM", "green", True), ("UP", "green", True), ("SECOND", "green", False),
        ("ALONE", "magenta", False), ("WAIT", "red", False), ("STOP", "red", False),
    ):  # fmt: skip
        web.module("checked", {"state.local": state, "state.color": color})
        assert probe("checked") == ((200, b"OK") if here else (404, b"NOT FOUND")), (state, color)
        told = web.ask("GET", "/var/modules/checked/state.json").json
        assert (told["state"], told["color"], told["ready"], told["incarnation"]) == (state, color, here, 12345)
    web.module("checked", GREEN, boot="another boot")
    assert probe("checked") == (404, b"NOT FOUND"), "after a power failure the file still tells the past"
    assert probe("missing") == (404, b"NOT FOUND")
    # The simplest probes of load balancers.
    with socket.create_connection(("127.0.0.1", web.port), timeout=5) as raw:
        raw.sendall(b"GET /var/modules/mirror/ready.txt HTTP/1.0\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.0 200")
    assert web.ask("HEAD", "/var/modules/mirror/ready.txt").status == 200
    assert web.ask("GET", "/var/modules/mirror/ready.txt", host="::1").status == 200


@pytest.mark.parametrize(
    "path",
    ["/var/modules/../ready.txt", "/var/modules/%2e%2e/ready.txt", "/var/modules/..%2f..%2fetc/ready.txt",
     "/var/modules/mirror/../../cluster/cluster.key", "/api/v1/modules/..%2fcluster", "/api/v1/modules/lastconfig/log",
     "/safekit/../openapi.json", "/pages/index.html", "/var/modules/mirror/log/module.log", "/web/conf/user.conf"],
)  # fmt: skip
def test_no_path_leaves_its_directory(web: WebServer, path: str) -> None:
    answer = web.ask("GET", path, user="admin")
    assert answer.status in (400, 404), answer.data
    assert KEY.hex().encode() not in answer.data


def test_bodies_are_bounded_and_of_the_right_kind(web: WebServer) -> None:
    assert web.ask("POST", "/api/v1/command", b" " * (2 << 20), user="admin").status == 413
    wrong = web.ask("POST", "/api/v1/command", command("level"), user="admin", headers={"Content-Type": "text/plain"})
    assert wrong.status == 415
    wrong_bodies = [b"", b"[]", b"{", b'{"arguments":"level"}', b'{"arguments":[1]}', b"[" * 100_000]
    wrong_bodies += [b'{"arguments":["level"],"timeout":-1}', b'{"arguments":["level"],"timeout":true}']
    wrong_bodies += [b'{"arguments":["\\ud800"]}', b'{"arguments":["a\\u0000b"]}']
    for body in wrong_bodies:
        answer = web.ask("POST", "/api/v1/command", body, user="admin")
        assert answer.status == 400, (body[:40], answer.data)


def test_pages_of_other_sites_cannot_command(web: WebServer) -> None:
    answer = web.ask(
        "POST", "/api/v1/command", command("level"), user="admin", headers={"Origin": "http://evil.example"}
    )
    assert (answer.status, answer.error) == (403, "origin")
    own = {"Origin": f"http://127.0.0.1:{web.port}"}
    assert web.ask("POST", "/api/v1/command", command("level", "--help"), user="admin", headers=own).status == 200


def test_pages(web: WebServer) -> None:
    assert web.ask("GET", "/").headers["Location"] == "/safekit/localhost.html"
    assert b"n1" in web.ask("GET", "/safekit/localhost.html").data
    page = web.ask("GET", "/", headers={"Host": "server1:9010"})
    if page.status == 503:
        assert b"bin/setup" in page.data, "a checkout without npm says what is missing"
    else:
        assert page.status == 200 and b"modulepreload" in page.data and b"n1" not in page.data
        policy = page.headers["Content-Security-Policy"]
        assert "require-trusted-types-for 'script'" in policy and "frame-ancestors 'none'" in policy
    assert page.headers["Server"] == "SafeKit" and page.headers["X-Frame-Options"] == "DENY"
    mosaic = web.ask("GET", "/safekit/mosaic.html", headers={"Host": "<b>x"})
    assert mosaic.status in (200, 400) and b"<b>" not in mosaic.data


def test_the_log_is_followed(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from safekit.log.module import ModuleLog

    for name, value in web.env.items():
        monkeypatch.setenv(name, value)
    web.module("talking", GREEN)
    log = ModuleLog("talking", "heart", "n1")
    log.event("printe", text="before")
    connection = HTTPConnection("127.0.0.1", web.port, timeout=10)
    headers, _ = web.signed("GET", "/api/v1/modules/talking/log/events")
    connection.request("GET", "/api/v1/modules/talking/log/events", headers=headers)
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "text/event-stream" and response.readline() == b": follows\n"
    response.readline()

    def talk() -> None:
        log.info("information")
        log.event("printe", text="after")

    threading.Timer(0.2, talk).start()
    assert response.readline() == b"event: line\n"
    line = json.loads(response.readline().removeprefix(b"data: "))
    assert (line["level"], line["text"], line["node"]) == ("E", "after", "n1")
    connection.close()
    told = web.ask("GET", "/api/v1/modules/talking/log?level=A&lines=10", user="viewer").json["lines"]
    assert [entry["text"] for entry in told] == ["before", "information", "after"]


def test_ports_limit_roles_and_open_mode(tmp_path: Path) -> None:
    """FWL-012."""
    port, control, monitor = free_ports(3)
    define = f"Define httpcontrolport {control}\nDefine httpmonitorport {monitor}\n"
    server = WebServer(tmp_path, define, port).start()
    try:
        asked = command("module", "uninstall", "-m", "x")
        assert server.ask("POST", "/api/v1/command", command("level", "--help"), port=monitor).status == 200
        assert server.ask("POST", "/api/v1/command", command("stop", "-m", "x"), port=monitor).status == 403
        assert server.ask("POST", "/api/v1/command", asked, port=control).status == 403
        assert server.ask("POST", "/api/v1/command", asked, port=control, user="admin").status == 403
        assert server.ask("GET", "/api/v1/node").json["role"] == "Admin"
    finally:
        assert "no password is asked for" in server.stop()


def test_users_are_read_again_when_they_change(tmp_path: Path) -> None:
    server = WebServer(tmp_path).start()
    try:
        assert server.ask("GET", "/api/v1/node", user="admin").status == 200
        (server.safe / "web/conf/user.conf").write_text("")
        assert server.ask("GET", "/api/v1/node", user="admin").status == 401
    finally:
        server.stop()


def test_wrong_settings_are_told(tmp_path: Path) -> None:
    server = WebServer(tmp_path)
    (server.safe / "web/conf/httpd.conf").write_text("Define httpadminport none\n")
    with pytest.raises(AssertionError, match=r"did not start: .*httpd.conf:1: 'none' is not a port"):
        server.start()
    assert server.process is not None and server.process.returncode == 2


def test_random_requests_of_the_description_never_break_it(web: WebServer) -> None:
    """Every method, parameters and bodies at random: answers are of ours, never a defect."""
    source = random.Random(7)
    values = [
        "",
        "mirror",
        "x" * 300,
        "..",
        "%00",
        "%ff%fe",
        "a b",
        "-1",
        "1e999",
        "NaN",
        "0",
        "265",
        "266",
        "{}",
        "\u00e9",
    ]
    junk = [b"", b"{}", b"null", b'{"arguments": null}', b'{"cluster.xml": 1, "cluster.key": ""}', bytes(range(256)),
            b'{"cluster.xml": "\\u0000", "cluster.key": "\\u00e9"}', b'{"arguments": [[]], "timeout": {}}']  # fmt: skip
    paths = [path for path in openapi()["paths"] if not path.endswith("/events")]
    for _ in range(250):
        path = source.choice(paths).replace("{module}", source.choice(values))
        query = "&".join(
            f"{source.choice(['level', 'lines', 'lang', 'id', 'configure'])}={source.choice(values)}" for _ in range(2)
        )
        target = f"{path}?{query}".encode("ascii", "replace").decode().replace(" ", "%20")
        method = source.choice(["GET", "GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
        if method == "PUT" and "archive" in path and "mirror" in path:
            continue
        answer = web.ask(method, target, source.choice(junk), user="admin")
        assert answer.status < 500, (method, target, answer.data)


def zipped(*entries: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_hostile_module_leaves_nothing(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (web.var / "cluster/cluster.xml").write_text("<cluster/>")
    for number, content in enumerate(
        (b"no zip", zipped(("../../evil", b"x")), zipped(("conf/userconfig.xml", b"<"), ("../x", b"")))
    ):
        answer = web.ask("PUT", f"/api/v1/modules/bad{number}/archive?configure=1", content, user="admin",
                         headers={"Content-Type": "application/zip"})  # fmt: skip
        assert answer.status == 200 and answer.json["status"] != 0, answer.data
    for name, value in web.env.items():
        monkeypatch.setenv(name, value)
    assert not any(ModulePaths(f"bad{n}").root.exists() for n in range(3))
    assert not list(web.root.rglob("evil")) and not list((web.var / "web").glob("upload-*"))


def test_reading_commands_run_in_forks_and_survive_the_death_of_their_process(tmp_path: Path) -> None:
    server = WebServer(tmp_path).start()
    assert server.process is not None
    try:

        def said(*words: str) -> tuple[int, str]:
            answer = server.ask("POST", "/api/v1/command", command(*words), user="admin")
            assert answer.status == 200, answer.data
            return answer.json["status"], answer.json["output"]

        def forking() -> psutil.Process:
            children = psutil.Process(server.process.pid).children()
            (found,) = (each for each in children if each.name() == "safewebserver.f")
            return found

        # Without safeadmin the command fails as it does in a shell, with both outputs.
        status, text = said("module", "list")
        assert status == 1 and "Waiting for safeadmin" in text and "not running" in text
        process, wrong = forking(), ("log", "-m", "nosuch", "--nonsense")
        first = said(*wrong)
        assert first[0] == 1 and "No such option" in first[1] and forking().pid == process.pid
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: said(*wrong), range(16))) == {first}
        process.kill()
        process.wait(5)
        assert said(*wrong) == first
        assert said(*wrong) == first and forking().pid != process.pid
        assert not [c for c in forking().children() if c.status() == psutil.STATUS_ZOMBIE]
    finally:
        server.stop()
    assert not process.is_running()


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("-u admin state", True),
        ("-u admin -m x log -s 3", True),
        ("-u admin module list", True),
        ("-u admin module -m list uninstall", False),
        ("-u admin module install x", False),
        ("-u admin cluster config", False),
        ("-u admin -m state start", False),
        ("state", True),
        ("-u admin", False),
        ("", False),
    ],
)
def test_only_reading_commands_are_forked(words: str, read: bool) -> None:
    assert reads(words.split()) is read


def test_slow_clients_cost_nothing_to_the_others(web: WebServer) -> None:
    """2,000 connections with half a request (more than the usual limit of descriptors), and a health check."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    slow = []
    try:
        for _ in range(2000):
            sock = socket.create_connection(("127.0.0.1", web.port), timeout=5)
            sock.sendall(b"GET /var/modules/mirror/ready.txt HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            slow.append(sock)
        begun = time.monotonic()
        assert web.ask("GET", "/var/modules/mirror/ready.txt").status == 200
        assert time.monotonic() - begun < 5
        slow[0].settimeout(40)
        assert slow[0].recv(1000) == b"", "half a request does not hold its connection for ever"
    finally:
        for sock in slow:
            sock.close()


def test_huge_bodies_and_a_thousand_connections_cost_a_bounded_memory(tmp_path: Path) -> None:
    """Bodies of 1 GiB as announced, and without an end, by whoever has no password; meanwhile others are served."""
    server = WebServer(tmp_path)
    server.module("mirror", GREEN)
    server.start()
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    assert server.ask("GET", "/var/modules/mirror/ready.txt").status == 200
    before = process.memory_info().rss
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(1000)]
    stop = threading.Event()

    def push(chunked: bool) -> int:
        sent = 0
        while not stop.is_set():
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
                kind = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1073741824"
                head = b"PUT /api/v1/modules/mirror/archive HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % kind
                block = b"x" * 65536
                try:
                    sock.sendall(head)
                    while not stop.is_set():
                        sock.sendall(b"10000\r\n" + block + b"\r\n" if chunked else block)
                        sent += len(block)
                except OSError:
                    continue  # refused and closed: once more
        return sent

    try:
        with ThreadPoolExecutor(8) as pool:
            pushing = [pool.submit(push, bool(number % 2)) for number in range(8)]
            most, served, deadline = 0, 0, time.monotonic() + 5
            while time.monotonic() < deadline:
                assert server.ask("GET", "/var/modules/mirror/ready.txt").status == 200
                served += 1
                most = max(most, process.memory_info().rss)
            stop.set()
            assert sum(future.result() for future in pushing) > 1 << 20, "they did send"
        assert served >= 5 and most - before < 100 << 20, (served, most - before)
        limit = server.ask("PUT", "/api/v1/modules/mirror/archive", b"x" * 1000, user="admin",
                           headers={"Content-Length": str(1 << 30)})  # fmt: skip
        assert limit.status == 413
        assert server.output.stat().st_size < 1 << 14, "what was sent is not in the journal"
    finally:
        stop.set()
        for sock in idle:
            sock.close()
        said = server.stop()
    assert "Traceback" not in said and "defect" not in said, said


def test_refusals_are_in_the_journal_without_what_was_tried(tmp_path: Path) -> None:
    server = WebServer(tmp_path).start()
    for _ in range(5):
        assert server.ask("GET", "/api/v1/node", user="my-secret-password", password="x").status == 401
    assert server.ask("GET", "/api/v1/node").status == 401, "the question for a password is no refusal"
    said = server.stop()
    assert said.count("refused a request of 127.0.0.1: wrong name or password") == 1
    assert "my-secret-password" not in said


def test_without_passwords_a_page_with_a_name_of_its_own_cannot_command(tmp_path: Path) -> None:
    server = WebServer(tmp_path, define="").start()
    try:
        for host, status in (
            (f"127.0.0.1:{server.port}", 200),
            (f"[::1]:{server.port}", 200),
            ("n1", 200),
            ("N1:9010", 200),
            ("n1.evil.example", 403),
            ("evil.example", 403),
            (f"evil.example:{server.port}", 403),
            ("127.0.0.1.evil.example", 403),
        ):
            headers = {"Host": host, "Origin": f"http://{host}"}
            answer = server.ask("POST", "/api/v1/command", command("log", "--nonsense"), headers=headers)
            assert answer.status == status, (host, answer.data)
    finally:
        server.stop()


@pytest.mark.parametrize(("sent", "accepted"), [(999.0, False), (1001.0, True)])
def test_the_date_of_a_request_against_the_boot(sent: float, accepted: bool) -> None:
    header, _ = remote.sign(KEY, "n2", "n1", "GET", "/", now=sent)
    try:
        remote.verify(header, [KEY], "n1", "GET", "/", remote.Nonces(), now=1010.0, not_before=1000.0)
    except remote.SignatureError as error:
        assert error.kind == "replay" and not accepted
    else:
        assert accepted


def test_no_key_goes_in_clear_to_a_server_that_is_known_to_have_it(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody in between only has to say that the key is another one; then the key would come in clear."""
    monkeypatch.setenv("SAFENODE", "n2")
    target = Target("n1", "http", "127.0.0.1", web.port)
    ask = Ask("PUT", "/api/v1/cluster", b"{}", secret=True)
    person = Credentials("admin", PASSWORDS["admin"])
    for options in ({"insecure": True, "credentials": person}, {}):
        with pytest.raises(CallError) as error:
            call(target, replace(ask, only_sealed=True), [bytes(32)], **options)
        assert error.value.kind == "downgrade" and "no key was sent" in error.value.text
    with pytest.raises(CallError) as error:
        call(target, ask, [bytes(32)])
    assert error.value.kind == "credentials" and "none was sent" in error.value.text
    with pytest.raises(CallError) as error:
        call(target, ask, [bytes(32)], Credentials("admin", PASSWORDS["admin"]))
    assert error.value.kind == "malformed", "a server that is not known to have it gets it by its password"
    with pytest.raises(CallError) as error:
        call(target, replace(ask, only_sealed=True), [KEY])
    assert error.value.kind == "malformed", "sealed, it arrives"
    with pytest.raises(CallError) as error:
        call(target, replace(ask, only_sealed=True), [bytes(32), KEY])
    assert error.value.kind == "downgrade", "whoever has a former key could open what is sealed with it"
    with pytest.raises(CallError) as error:
        call(target, ask, [bytes(32), KEY])
    assert error.value.kind == "credentials", "the same where nobody knows what it has: heartbeats can be kept away"
    assert "it may have a former one" in error.value.text and "none was sent" in error.value.text
    assert "give the password" in error.value.next_step
    with pytest.raises(CallError) as error:
        call(target, ask, [bytes(32), KEY], Credentials("admin", PASSWORDS["admin"]))
    assert error.value.kind == "malformed", "a server that missed the change of the key is reached by its password"
    with pytest.raises(CallError) as error:
        call(target, ask, [bytes(32), KEY], insecure=True)
    assert error.value.kind == "malformed", "or with the former one, by who says so"
    assert call(target, Ask("GET", "/api/v1/node"), [bytes(32), KEY])[0]["node"] == "n1", "what is no secret, as ever"

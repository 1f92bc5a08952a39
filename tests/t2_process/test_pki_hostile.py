"""Strangers and broken clients at TCP 9001: guesses, replays, somebody in between, bodies, paths, other sites."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from caserv import proof
from caserv.client import CaClient
from caserv.errors import PkiError
from safekit.wire.proof import Asking, hash_with
from tests.t2_process.ca_server import PASSWORD, CaServer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CaServer:
    """`initssl ca` was done; not started."""
    server = CaServer(tmp_path_factory.mktemp("ca"))
    server.lists("10.0.0.1", "n1")
    server.make_authority()
    return server


@pytest.fixture
def server(authority: CaServer, tmp_path: Path) -> Iterator[CaServer]:
    """A service of its own for each test: guesses are remembered."""
    (tmp_path / "s").mkdir()
    made = CaServer(tmp_path / "s")
    shutil.rmtree(made.conf)
    shutil.copytree(authority.conf, made.conf)
    made.start()
    yield made
    made.stop()


def files(server: CaServer) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in server.conf.rglob("*") if path.is_file()}


def test_guesses_are_limited_and_told(server: CaServer) -> None:
    """The sixth is not even looked at, the right password neither; after a while it is."""
    server.stop()
    server.wait = 8.0  # a busy machine takes seconds for a request
    server.start()
    assert [server.ask("GET", "/", password=f"guess{n}").status for n in range(5)] == [401] * 5
    refused = server.ask("GET", "/")
    assert refused.status == 429 and int(refused.headers["Retry-After"]) >= 1
    assert "too many wrong passwords" in refused.text
    assert server.ask("GET", "/certs/cacert.crt", password=None).status == 200, "what is public stays so"
    time.sleep(float(refused.headers["Retry-After"]))
    assert server.ask("GET", "/").status == 200
    assert [server.ask("GET", "/", password="guess").status for _ in range(4)] == [401] * 4, "a right one forgives"


def test_headers_that_are_none(server: CaServer) -> None:
    for header in (
        "Basic", "Basic !!!", "Basic " + base64.b64encode(b"CA_admin").decode(), "Bearer x", "SafeKit-CA x",
        "Basic " + base64.b64encode(b"CA_admin:\xff").decode(),
    ):  # fmt: skip
        answer = server.ask("GET", "/api/state", password=None, headers={"Authorization": header})
        assert answer.status in (401, 429), header
        time.sleep(0.01)
        if answer.status == 429:
            time.sleep(float(answer.headers["Retry-After"]))


def agreed(server: CaServer, password: str = PASSWORD) -> tuple[str, bytes]:
    """Session and key for one request, as `initssl req` makes them."""
    sock, challenge = server.connection(), server.ask("GET", "/caserv/challenge", password=None).json
    sock.connect()
    assert isinstance(sock.sock, ssl.SSLSocket)
    certificate = sock.sock.getpeercert(binary_form=True) or b""
    sock.close()
    asking = Asking("CA_admin", proof.name_of(certificate), hash_with(password, challenge["salt"]))
    found = server.post("/caserv/proof", {"message": asking.message.hex()}, password=None).json
    return str(found["session"]), asking.key(bytes.fromhex(found["message"]))


def test_a_request_is_good_once(server: CaServer) -> None:
    session, key = agreed(server)
    headers = {"Authorization": proof.authorization(key, session, "GET", "/api/state", b"")}
    first = server.ask("GET", "/api/state", password=None, headers=headers)
    assert first.status == 200 and proof.answer_is_right(key, 200, first.data, first.headers[proof.PROOF])
    again = server.ask("GET", "/api/state", password=None, headers=headers)
    assert again.status == 401 and "was made before" in again.text and proof.PROOF not in again.headers
    for name in ("00" * 16, session[:-2] + "00", "ff" * 16):
        forged = proof.authorization(key, name, "GET", "/api/state", b"")
        assert server.ask("GET", "/api/state", password=None, headers={"Authorization": forged}).status == 401
    # The body is part of what was signed.
    session, key = agreed(server)
    header = proof.authorization(key, session, "POST", "/api/revoke", b'{"name":"a"}')
    other = server.ask(
        "POST", "/api/revoke", b'{"name":"b"}', password=None,
        headers={"Authorization": header, "Content-Type": "application/json"},
    )  # fmt: skip
    assert other.status == 401
    for message in ("", "x", "00" * 33, "ff" * 33, "00" * 1000):
        bad = server.post("/caserv/proof", {"message": message}, password=None)
        assert bad.status == 400 and "no half of a key" in bad.text, (message, bad)


class InBetween:
    """Passes every byte between a client and the service, but has a certificate of its own on the client's side."""

    def __init__(self, server: CaServer, place: Path) -> None:
        self.server = server
        self.seen = b""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.conf / "server.crt", server.conf / "server.key")
        self.listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        client = ssl.create_default_context()
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = client.wrap_socket(socket.create_connection(("127.0.0.1", self.server.port)))
            for source, target, keep in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass, args=(source, target, keep), daemon=True).start()

    def _pass(self, source: ssl.SSLSocket, target: ssl.SSLSocket, keep: bool) -> None:
        try:
            while data := source.recv(65536):
                if keep:
                    self.seen += data
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()


def test_somebody_in_between_gets_neither_the_password_nor_the_trust(server: CaServer, tmp_path: Path) -> None:
    between = InBetween(server, tmp_path)
    client = CaClient(f"https://127.0.0.1:{between.port}", PASSWORD)
    with pytest.raises(PkiError, match="is wrong, or this is not your CA server"):
        client.ca_certificate()
    between.listener.close()
    assert b"SafeKit-CA session=" in between.seen and PASSWORD.encode() not in between.seen
    assert base64.b64encode(f"CA_admin:{PASSWORD}".encode()) not in between.seen
    assert CaClient(server.url, PASSWORD).ca_certificate() == (server.certs / "cacert.crt").read_bytes()
    with pytest.raises(PkiError, match="has the fingerprint"):
        CaClient(server.url, PASSWORD, fingerprint="00" * 32).ca_certificate()


@pytest.mark.parametrize(
    "path",
    [
        "/certs/../private/cacert.key", "/certs/..%2fprivate%2fcacert.key", "/certs/%2e%2e/private/cacert.key",
        "/certs/cacert.key", "/api/files/cacert.key", "/api/files/..%2f..%2fserver.key", "/api/files/.lock",
        "/certs/%00cacert.crt", "/assets/..%2fi18n%2fen.json", "/assets/service.py", "/assets/..%2fservice.py",
        "/certs/cacert.crt%0d%0aSet-Cookie:%20a=b", "/api/files/index.txt", "//certs/cacert.key",
    ],
)  # fmt: skip
def test_paths_lead_nowhere_else(server: CaServer, path: str) -> None:
    (server.certs / "evil.crt").symlink_to("../private/cacert.key")
    answer = server.ask("GET", path)
    assert answer.status in (400, 404) and b"PRIVATE KEY" not in answer.data, answer
    assert "Set-Cookie" not in answer.headers
    assert server.ask("GET", "/certs/evil.crt").status == 404


def test_bodies_that_are_too_much_or_nothing(server: CaServer) -> None:
    before = files(server)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    multi = {"Content-Type": "multipart/form-data; boundary=x"}
    kind = {"Content-Type": "application/json"}
    assert server.ask("POST", "/caserv", b"a=" + b"x" * (300 << 10), headers=form).status == 413
    for path, body, headers in (
        ("/caserv", b"", form), ("/caserv", b"\xff\xfe", form), ("/caserv", b"--x", multi), ("/caserv", b"", multi),
        ("/caserv", b'--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n--y--\r\n--x--', multi),
        ("/api/first", b"[", kind), ("/api/first", b"[]", kind), ("/api/first", b'{"subject": 1}', kind),
        ("/api/first", b'{"other": "x"}', kind), ("/api/first", b"[" * 100_000, kind),
            ("/api/names", b'{"ipv4.json":"localhost"}', kind),
        ("/api/user", b'{"name":"../../x","role":"Admin","password":"12345678"}', kind),
        ("/api/user", b'{"name":"a\\r\\nb","role":"Admin","password":"12345678"}', kind),
        ("/api/user", b'{"name":"a","role":"Admin","password":"1"}', kind),
        ("/api/user", b'{"name":"\\ud800","role":"Admin","password":"12345678"}', kind),
        ("/api/user", b'{"name":"a","role":"Admin","password":"\\ud800\\ud800\\ud800\\ud800"}', kind),
        ("/api/additional", b'{"address":"http://10.0.0.1","password":"x"}', kind),
        ("/api/additional", b'{"address":"10.0.0.1:99999","password":"x"}', kind),
        ("/api/additional", b'{"address":"a b/../c","password":"x"}', kind),
        ("/api/additional", b'{"address":"[::1","password":"x"}', kind),
        ("/api/revoke", b'{"name":"nobody"}', kind), ("/api/renew", b'{"name":"user_Admin_../../x"}', kind),
        ("/api/upload", b"{}", kind),
    ):  # fmt: skip
        answer = server.ask("POST", path, body, headers=headers)
        assert answer.status == 400 and answer.json["next_step"], (path, body[:60], answer)
    assert server.ask("POST", "/api/first", b"{}", headers=form).status == 415
    assert server.ask("PUT", "/caserv", b"").status == 405
    assert files(server) == before


def test_a_stranger_is_not_listened_to(server: CaServer) -> None:
    """What he sends is not read; what he does not send is not waited for by anybody else."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    with context.wrap_socket(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as sock:
        sock.sendall(b"POST /caserv HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 401")
        received = b"x"
        while received:
            received = sock.recv(65536)
    begun = time.monotonic()
    assert server.ask("GET", "/certs/cacert.crt", password=None).status == 200
    assert time.monotonic() - begun < 5
    for each in slow:
        each.close()
    with context.wrap_socket(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n")
        assert sock.recv(100).split(b" ")[1] == b"400"


def test_other_sites_cannot_use_the_password_that_a_browser_remembers(server: CaServer) -> None:
    before = files(server)
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert server.post("/api/revoke", {"name": "user_Admin_administrator"}, headers=headers).status == 403
        form = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        assert server.ask("POST", "/caserv", "action=signrequest", headers=form).status == 403
    assert files(server) == before
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert server.post("/api/firewall", {}, headers=own).status == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_not_spoken(server: CaServer) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
        context.wrap_socket(plain)


def test_two_tasks_at_once_do_not_mix(server: CaServer) -> None:
    """One of several that ask at the same time is served, or all of them one after the other; the index is whole."""
    answers: list[int] = []

    def ask(number: int) -> None:
        data = {"name": f"user {number}", "role": "Monitor", "password": "long password"}
        answers.append(server.post("/api/user", data).status)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [
        each for each in server.ask("GET", "/api/state").json["issued"] if each["name"].startswith("user_Monitor_user")
    ]
    assert len(made) == answers.count(200) >= 1 and set(answers) <= {200, 400}


def test_a_damaged_index_issues_nothing(server: CaServer) -> None:
    """What was revoked may be in the line that is lost."""
    index = server.ca / "index.txt"
    index.write_text(index.read_text()[:-30])
    answer = server.post("/api/user", {"name": "x", "role": "Monitor", "password": "long password"})
    assert answer.status == 400 and "index.txt:" in answer.text and "restore" in answer.json["next_step"]
    assert not (server.certs / "user_Monitor_x.crt").exists()


def test_every_language_has_every_text() -> None:
    place = Path(__file__).resolve().parents[2] / "caserv/pages"
    texts = {name: json.loads((place / f"i18n/{name}.json").read_text()) for name in ("en", "fr", "ja")}
    code = (place / "ca.js").read_text()
    for name, each in texts.items():
        assert each.keys() == texts["en"].keys(), name
        assert all(set_of(each[key]) == set_of(texts["en"][key]) for key in each), name
    for key in re.findall(r"\bt\('([\w.]+)'", code):
        assert key in texts["en"], key


def set_of(text: str) -> set[str]:
    return set(re.findall(r"\{\w+\}", text))

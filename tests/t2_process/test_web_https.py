"""HTTPS as an administrator sets it up (guide 11.3, 11.4): certificates of servers, of people and of commands, what is
refused and why, and certificates that are renewed while the service runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from certificates import SERVER, make
from cli_server import RUNNING, NotedAdmin, make_module
from web_https import Pki, secure_server
from web_server import KEY, PASSWORDS, Answer, WebServer, command

from cli import distributed
from lab.waiting import wait_until
from safekit.wire import webclient
from safekit.wire.certificates import revoked
from safekit.wire.targets import Target
from safewebserver import checkcert
from safewebserver.relay import Relay, Unreachable


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[tuple[WebServer, int]]:
    server, https = secure_server(tmp_path_factory.mktemp("https"), pki)
    (server.safe / "web/conf/sslgroup.conf").write_text('Control:\u201dMARY SMITH\u201d "nobody else"\n')
    (server.safe / "web/conf/clca.crl").write_bytes(pki.people.revoke(pki.clients["gone"]))
    yield server.start(), https
    said = server.stop()
    assert "Traceback" not in said and "defect" not in said, said


def ask(
    server: tuple[WebServer, int], client: str, method: str, path: str, body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> Answer:  # fmt: skip
    """A request with a client's certificate; '' for none."""
    web, port = server
    context = ssl.create_default_context(cafile=web.safe / "web/conf/cacert.crt")
    if client:
        context.load_cert_chain(web.root / f"clients/{client}.crt", web.root / f"clients/{client}.key")
    connection = HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    try:
        connection.request(method, path, body=body, headers={"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.read(), dict(response.getheaders()))
    finally:
        connection.close()


def whoami(server: tuple[WebServer, int], client: str) -> tuple[str, str]:
    answer = ask(server, client, "GET", "/api/v1/node")
    assert answer.status == 200, answer.data
    return answer.json["user"], answer.json["role"]


# Certificates of people (SCE-001, 002, 003, 009)


def test_the_role_is_that_of_the_certificate(web: tuple[WebServer, int]) -> None:
    assert whoami(web, "admin") == ("administrator", "Admin")
    assert whoami(web, "control") == ("manager", "Control")
    assert whoami(web, "monitor") == ("operator", "Monitor")
    assert whoami(web, "mary") == ("MARY SMITH", "Control")
    stop = command("stop", "-m", "mirror")
    assert ask(web, "monitor", "POST", "/api/v1/command", stop).error == "forbidden"
    assert ask(web, "mary", "POST", "/api/v1/command", command("config", "-m", "mirror")).error == "forbidden"
    assert ask(web, "admin", "POST", "/api/v1/command", command("config", "--help")).status == 200


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ("", "a client certificate of SAFE/web/conf/clcacert.crt is needed"),
        ("norole", "sslgroup.conf does not name it with its issuer 'Company CA', and its OU is no role"),
        ("nouse", "the certificate of carl is not for Client Authentication (Extended Key Usage)"),
        ("gone", "the certificate of gone was revoked (SAFE/web/conf/clca.crl)"),
    ],
)
def test_who_has_no_role_is_told_why(web: tuple[WebServer, int], client: str, words: str) -> None:
    answer = ask(web, client, "GET", "/api/v1/node")
    assert (answer.status, answer.error) == (401, "certificate") and words in answer.json["text"], answer.data


@pytest.mark.parametrize("client", ["expired", "early", "stranger", "itself", "serveronly"])
def test_certificates_that_are_not_good_have_no_connection(web: tuple[WebServer, int], client: str) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(web, client, "GET", "/api/v1/node")


def test_why_a_certificate_was_refused_is_in_the_journal(tmp_path: Path, pki: Pki) -> None:
    server, https = secure_server(tmp_path, pki)
    server.start()
    try:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask((server, https), "expired", "GET", "/api/v1/node")
    finally:
        said = server.stop()
    assert "refused a request of a client certificate: certificate has expired" in said


def test_servers_sign_over_https_too(web: tuple[WebServer, int]) -> None:
    """A certificate of the connection with a role limits what is signed; one without does not."""
    for client, role in (("", "Admin"), ("monitor", "Monitor"), ("norole", "Admin")):
        headers, _ = web[0].signed("GET", "/api/v1/node")
        answer = ask(web, client, "GET", "/api/v1/node", headers=headers)
        assert answer.status == 200 and answer.json["role"] == role, (client, answer.data)
    headers, _ = web[0].signed("GET", "/api/v1/node")
    assert ask(web, "gone", "GET", "/api/v1/node", headers=headers).error == "certificate"


def test_over_http_there_is_only_who_is_ready(web: tuple[WebServer, int]) -> None:
    server, https = web
    assert server.ask("GET", "/var/modules/mirror/ready.txt").status == 200
    for method, path in (("GET", "/api/v1/node"), ("POST", "/api/v1/session"), ("GET", "/metrics"), ("POST", "/")):
        answer = server.ask(method, path, b"{}", user="admin")
        assert (answer.status, answer.error) == (403, "https") and f"https://127.0.0.1:{https}" in answer.json["text"]
    headers, _ = server.signed("GET", "/api/v1/node")
    assert server.ask("GET", "/api/v1/node", headers=headers).error == "https"
    page = server.ask("GET", "/", headers={"Host": "[::1]:9010"})
    assert page.status == 302 and page.headers["Location"] == f"https://[::1]:{https}/"


def test_cookies_of_https_stay_on_it(tmp_path: Path, pki: Pki) -> None:
    """SBA-007: a name and a password over HTTPS, instead of a certificate."""
    server, https = secure_server(tmp_path, pki, "Define usefile\n")
    server.start()
    try:
        assert ask((server, https), "", "GET", "/api/v1/node").error == "credentials"
        body = json.dumps({"user": "viewer", "password": PASSWORDS["viewer"]}).encode()
        answer = ask((server, https), "", "POST", "/api/v1/session", body)
        cookie = answer.headers["Set-Cookie"]
        assert answer.status == 200 and "Secure" in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        kept = {"Cookie": cookie.partition(";")[0]}
        assert ask((server, https), "", "GET", "/api/v1/node", headers=kept).json["role"] == "Monitor"
        # Who gives a password is that person, whatever certificate his connection has.
        assert ask((server, https), "admin", "GET", "/api/v1/node", headers=kept).json["user"] == "viewer"
        assert whoami((server, https), "control") == ("manager", "Control")
    finally:
        server.stop()


# What is spoken


def s_client(port: int, *options: str) -> str:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options], input="", capture_output=True, text=True,
        timeout=20, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_the_protocol_is_a_safe_one(web: tuple[WebServer, int], tmp_path: Path) -> None:
    """SHS-001, SHS-004; what a scanner of TLS looks for."""
    server, port = web
    (tmp_path / "root").write_text("".join(re.findall(
        r"-----BEGIN.+?END CERTIFICATE-----\n", (server.safe / "web/conf/cacert.crt").read_text(), re.DOTALL)[1:])
    )  # fmt: skip
    said = s_client(port, "-CAfile", str(tmp_path / "root"), "-verify_return_error", "-verify_ip", "127.0.0.1")
    assert "Verify return code: 0 (ok)" in said and "TLSv1.3" in said and "CN = n1" in said, said
    for old in ("-tls1", "-tls1_1"):
        assert "Cipher is (NONE)" in s_client(port, old, "-cipher", "ALL:@SECLEVEL=0"), old
    for weak in ("AES128-SHA", "AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256", "ADH", "NULL", "DHE"):
        assert "Cipher is (NONE)" in s_client(port, "-tls1_2", "-cipher", f"{weak}:@SECLEVEL=0"), weak
    good = s_client(port, "-tls1_2", "-cipher", "ECDHE")
    assert re.search(r"Cipher is ECDHE-ECDSA-(AES\d+-GCM|CHACHA20)", good), good
    assert "Secure Renegotiation IS supported" in good and "Compression: NONE" in good


def test_who_says_nothing_is_let_go(web: tuple[WebServer, int]) -> None:
    with socket.create_connection(("127.0.0.1", web[1]), timeout=20) as sock:
        begun = time.monotonic()
        assert sock.recv(100) == b"" and time.monotonic() - begun < 15


# Renewal


def test_renewed_certificates_are_taken_and_no_stream_is_dropped(tmp_path: Path, pki: Pki) -> None:
    server, https = secure_server(tmp_path, pki)
    server.start()
    conf = server.safe / "web/conf"
    try:
        context = ssl.create_default_context(cafile=conf / "cacert.crt")
        context.load_cert_chain(tmp_path / "clients/admin.crt", tmp_path / "clients/admin.key")
        stream = HTTPSConnection("127.0.0.1", https, timeout=20, context=context)
        stream.request("GET", "/api/v1/modules/mirror/log/events")
        response = stream.getresponse()
        assert response.readline() == b": follows\n"

        def serial() -> int:
            with (
                socket.create_connection(("127.0.0.1", https), timeout=20) as sock,
                context.wrap_socket(sock, server_hostname="127.0.0.1") as secure,
            ):
                found = secure.getpeercert()
                assert found is not None
                return int(str(found["serialNumber"]), 16)

        def until_told(words: str) -> None:
            deadline = time.monotonic() + 20
            while words not in server.output.read_text():
                assert time.monotonic() < deadline, server.output.read_text()
                time.sleep(0.1)

        assert serial() == pki.server.certificate.serial_number
        (conf / "server.crt").write_bytes(make("n1", by=pki.between, uses=(SERVER,)).pem)
        until_told("cannot be used, the former ones stay in use")
        assert serial() == pki.server.certificate.serial_number, "a key that does not fit changes nothing"
        renewed = make("n1", by=pki.between, uses=(SERVER,), hosts=("127.0.0.1",))
        renewed.put(conf, "server")
        until_told("new connections use them")
        assert serial() == renewed.certificate.serial_number
        # An authority that is taken away takes its people with it.
        (conf / "clcacert.crt").write_bytes(pki.other.pem)
        deadline = time.monotonic() + 20
        while server.output.read_text().count("new connections use them") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask((server, https), "admin", "GET", "/api/v1/node")
        assert ask((server, https), "stranger", "GET", "/api/v1/node").json["role"] == "Admin"
        assert response.fp is not None and response.readline() in (b"\n", b": alive\n"), "the stream goes on"
        stream.close()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda conf, pki: (conf / "server.key").unlink(), r"server.key: No such file"),
        (lambda conf, pki: (conf / "server.key").write_bytes(pki.root.key()), r"server.key is not the key of"),
        (lambda conf, pki: (conf / "server.key").write_bytes(pki.server.key(b"x" * 8)), r"server.key is encrypted"),
        (lambda conf, pki: (conf / "server.crt").write_text("x"), r"server.crt or server.key cannot be used"),
        (lambda conf, pki: (conf / "clcacert.crt").write_text("x"), r"clcacert.crt cannot be used"),
    ],
)
def test_files_that_are_wrong_are_named_at_the_start(tmp_path: Path, pki: Pki, spoil: object, words: str) -> None:
    server, _ = secure_server(tmp_path, pki)
    spoil(server.safe / "web/conf", pki)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=f"(?s)did not start: .*{words}.*(checkcert|openssl)"):
        server.start()
    assert server.process is not None and server.process.returncode == 2


# Distributed commands


def test_distributed_commands_speak_https_with_the_certificate_of_the_server(
    web: tuple[WebServer, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    pki: Pki,
) -> None:  # fmt: skip
    """SHS-006: admin.crt says who commands; the signature of a server of the cluster does so too."""
    server, https = web
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    safe = tmp_path / "safe"
    monkeypatch.setenv("SAFE", str(safe))
    monkeypatch.delenv("SAFEKIT_PASSWORD", raising=False)
    conf = safe / "web/conf"
    pki.put(conf)
    url = f"https://127.0.0.1:{https}"

    def run(*words: str) -> tuple[int, str]:
        code = distributed.run_distributed(["-H", url, *words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    def call(client: str) -> str:
        pki.clients[client].put(conf, "admin")
        try:
            return str(webclient.call(webclient.Target("", "https", "127.0.0.1", https),
                                      webclient.Ask("GET", "/api/v1/node"), [])[0]["role"])  # fmt: skip
        except webclient.CallError as error:
            return f"{error.kind}: {error.text}; {error.next_step}"

    assert run("level", "--help")[0] == 0, "signed"
    assert [call(client) for client in ("admin", "control", "monitor")] == ["Admin", "Control", "Monitor"]
    code, said = run("stop", "-m", "mirror")
    assert code == 1 and "needs the role Control; yours is Monitor" in said
    assert "not for Client Authentication" in call("nouse")
    for client in ("stranger", "expired"):
        assert re.search(r"certificate: .*refuse.*admin.crt.*checkcert -t client", call(client)), call(client)
    (conf / "admin.key").write_bytes(pki.root.key())
    assert "admin.key is not the key of admin.crt" in run("level")[1]
    for name in ("admin.crt", "admin.key"):
        (conf / name).unlink()
    (conf / "cacert.crt").write_bytes(pki.other.pem)
    code, said = run("level")
    assert code == 1 and "its certificate is refused" in said and "cacert.crt here must hold the authority" in said
    pki.put(conf)
    url = f"https://localhost:{https}"
    code, said = run("level")
    assert code == 1 and "localhost is in no Subject Alternative Name" in said and "checkcert -h localhost" in said
    url = f"https://127.0.0.1:{server.port}"
    assert "it does not speak HTTPS" in run("level")[1]
    assert KEY.hex() not in said


def test_the_servers_ask_each_other_over_https(
    web: tuple[WebServer, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pki: Pki
) -> None:
    """What the console shows of other servers comes so; renewed certificates count without a restart. WCO-056: with
    proxy=true it is asked with proxy.crtkey, and not at all without it."""
    server, https = web
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    conf = tmp_path / "safe/web/conf"
    monkeypatch.setenv("SAFE", str(tmp_path / "safe"))
    monkeypatch.setenv("SAFENODE", "n2")
    pki.put(conf)
    pki.clients["monitor"].put(conf, "admin")
    (conf / "ssl").mkdir()
    (conf / "ssl/httpd.webconsolessl.conf").write_text("")
    targets = [Target("n1", "https", "127.0.0.1", https)]

    async def scene() -> list[str]:
        relay, told = Relay(), []

        async def ask(*, proxy: bool = False) -> None:
            try:
                told.append(str((await relay.ask(targets, "GET", "/api/v1/node", proxy=proxy)).json()["role"]))
            except Unreachable as error:
                told.append(f"{error.kind}: {error.text}")

        await ask()
        pki.clients["admin"].put(conf, "admin")
        await ask()
        await ask(proxy=True)
        control = pki.clients["control"]
        (conf / "proxy.crtkey").write_bytes(control.pem + control.key())
        await ask(proxy=True)
        await ask()
        (conf / "cacert.crt").write_bytes(pki.other.pem)
        await ask()
        (conf / "admin.key").write_text("x")
        await ask()
        await relay.close()
        return told

    told = asyncio.run(scene())
    assert told[:2] == ["Monitor", "Admin"], "the certificate limits what the signature would give"
    assert told[2].startswith("certificate: ") and "proxy.crtkey: No such file" in told[2], told
    assert told[3:5] == ["Control", "Admin"], "proxy.crtkey counts with proxy=true only"
    assert told[5].startswith("certificate: ") and "its certificate is refused" in told[5], told
    assert told[6].startswith("certificate: ") and "admin.crt" in told[6], told


def test_a_console_with_proxy_true_needs_proxy_crtkey(web: tuple[WebServer, int]) -> None:
    """SHS-007: the header is what such a page sends (console/api.js)."""
    path = "/api/v1/nodes/n2/node"
    refused = ask(web, "admin", "GET", path, headers={"X-SafeKit-Proxy": "1"})
    assert refused.status == 502 and refused.error == "certificate" and "proxy.crtkey" in refused.json["text"]
    without = ask(web, "admin", "GET", path)
    assert without.status == 502 and "127.0.0.2" in without.json["text"], "it was asked, and is not n2"


def test_the_logs_name_who_and_from_where(web: tuple[WebServer, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """SCE-004: the CN, or the user of a server of the cluster, reaches the module and the log of commands."""
    server, _ = web
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    make_module("logged")
    body = command("stop", "-m", "logged")
    with NotedAdmin(int(server.env["SAFEMAPPER"])) as admin:
        admin.modules["logged"] = dict(RUNNING)
        ask(web, "mary", "POST", "/api/v1/command", body)
        path = "/api/v1/command?on_behalf=alice@n2&role=Admin"
        ask(web, "", "POST", path, body, server.signed("POST", path, body)[0])
        said = json.dumps(admin.asked)
    log = (server.var / "commandlog").read_text()
    for who in ("MARY SMITH@127.0.0.1", "alice@n2"):
        assert f"-u {who} stop -m logged" in log, log
        assert who in said, said


# checkcert (SHS-011, 012, 015; SHS-005, 007, 008, 010)


@pytest.fixture
def conf(tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> Path:
    server, _ = secure_server(tmp_path, pki)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    where = server.safe / "web/conf"
    pki.clients["admin"].put(where, "admin")
    return where


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = checkcert.run(words)
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def test_good_certificates_are_good(conf: Path, capsys: pytest.CaptureFixture[str], pki: Pki) -> None:
    for what in ("all", "server", "client", "CA", "CLCA"):
        assert checked(capsys, "-t", what)[0] == 0, checked(capsys, "-t", what)
    assert checked(capsys, "-h", "N1.example")[0] == checked(capsys, "-i", "127.0.0.1")[0] == 0
    code, said = checked(capsys, "-i", "10.0.0.9")
    assert code == 1 and "10.0.0.9 is not in it; it has n1.example, 127.0.0.1" in said
    assert checked(capsys, "-h", "other.example")[0] == 1
    for wrong in ((), ("-t",), ("-t", "x"), ("-i", "x"), ("-h", "-t"), ("-t", "all", "x")):
        assert checked(capsys, *wrong)[0] == 2
    (conf / "proxy.crtkey").write_bytes(pki.clients["admin"].pem + pki.clients["admin"].key())
    assert checked(capsys, "-t", "client")[0] == 0
    # The certificate of the server for the commands too, as 11.5 has it.
    pki.server.put(conf, "admin")
    (conf / "clcacert.crt").write_bytes(pki.between.pem + pki.root.pem)
    (conf / "sslgroup.conf").write_text('Admin:"n1" "n2"\n')
    (conf / "proxy.crtkey").unlink()
    assert checked(capsys, "-t", "all")[0] == 0


@pytest.mark.parametrize(
    ("what", "spoil", "words"),
    [
        ("server", lambda c, p: (c / "server.crt").unlink(), "server.crt: file: No such file"),
        ("server", lambda c, p: (c / "server.crt").write_text("x"), "server.crt: format: there is no certificate"),
        ("server", lambda c, p: (c / "server.key").write_bytes(p.root.key()), "server.key: key: it is not the key of"),
        ("server", lambda c, p: (c / "server.key").write_bytes(p.server.key(b"pw")), "server.key: encryption: "),
        ("server", lambda c, p: (c / "server.key").write_text("x"), "server.key: format: "),
        ("server", lambda c, p: (c / "cacert.crt").write_bytes(p.other.pem), "server.crt: Issuer: its issuer CN=Serv"),
        ("server", lambda c, p: (c / "cacert.crt").write_bytes(p.between.pem), "server.crt: Issuer: its issuer CN=Ro"),
        ("server", lambda c, p: make("n1", by=p.between, uses=(SERVER,), hosts=("n1.example",)).put(c, "server"),
         "server.crt: Subject Alternative Name: 127.0.0.1, the address of this server in cluster.xml, is not in it"),
        ("server", lambda c, p: make("n1", by=p.between, hosts=("127.0.0.1",)).put(c, "server"),
         "server.crt: Extended Key Usage: Server Authentication is not in it"),
        ("server", lambda c, p: make("n1", by=p.between, hosts=("127.0.0.1",), days=(1, 9)).put(c, "server"),
         "server.crt: Validity, Not Before: n1 is not yet valid"),
        ("server", lambda c, p: make("n1", by=p.between, hosts=("127.0.0.1",), days=(-9, -1)).put(c, "server"),
         "server.crt: Validity, Not After: n1 has expired"),
        ("client", lambda c, p: p.clients["norole"].put(c, "admin"), "admin.crt: Subject, OU: it gives no role"),
        ("client", lambda c, p: p.clients["nouse"].put(c, "admin"), "admin.crt: Extended Key Usage: Client Auth"),
        ("client", lambda c, p: p.clients["stranger"].put(c, "admin"), "admin.crt: Issuer: its issuer CN=Other CA"),
        ("client", lambda c, p: (c / "clca.crl").write_bytes(p.people.revoke(p.clients["admin"])), "it was revoked"),
        ("client", lambda c, p: (c / "proxy.crtkey").write_bytes(p.clients["mary"].pem + p.clients["mary"].key()),
         "proxy.crtkey: certificate: it is not that of admin.crt"),
        ("CA", lambda c, p: (c / "cacert.crt").write_bytes(p.between.pem), "cacert.crt: chain: the issuer of Server"),
        ("CA", lambda c, p: (c / "cacert.crt").write_bytes(p.server.pem + p.root.pem), "n1 is no authority"),
        ("CLCA", lambda c, p: (c / "clcacert.crt").unlink(), "clcacert.crt: file: No such file"),
        ("CLCA", lambda c, p: (c / "clca.crl").write_bytes(p.other.revoke()), "clca.crl: list: no certificate is acc"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_field(
    conf: Path, pki: Pki, capsys: pytest.CaptureFixture[str], what: str, spoil: object, words: str
) -> None:
    spoil(conf, pki)  # type: ignore[operator]
    code, said = checked(capsys, "-t", what)
    assert code == 1 and words in said and "Next step: " in said, said
    assert checked(capsys, "-t", "all")[0] == 1


def test_a_renewed_authority_still_revokes(pki: Pki) -> None:
    renewed, gone = make("Company CA", authority=True), pki.clients["gone"]
    lists = pki.people.revoke(gone)
    for authorities in (renewed.pem + pki.people.pem, pki.people.pem + renewed.pem):
        assert len(revoked(lists, authorities)) == 1
    with pytest.raises(ValueError, match="not signed by an authority"):
        revoked(lists, renewed.pem)


def test_what_is_not_wrong_yet_is_a_warning(conf: Path, pki: Pki, capsys: pytest.CaptureFixture[str]) -> None:
    make("n1", by=pki.between, uses=(SERVER,), hosts=("127.0.0.1",), days=(-9, 12.5)).put(conf, "server")
    (conf / "server.key").chmod(0o644)
    (conf / "sslgroup.conf").write_text('Admin:"MARY SMITH"\n')
    code, said = checked(capsys, "-t", "all")
    assert code == 0 and "Warning: server.crt: Validity, Not After: n1 ends in 12 days" in said
    assert "Warning: server.key: mode: every user of this server may use the key" in said
    assert "'MARY SMITH' has the role Admin whichever of 2 authorities says its name" in said


def test_the_end_of_a_certificate_is_known_before(tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    from safekit.disk.expiry import due

    server, _ = secure_server(tmp_path, pki)
    make("n1", by=pki.between, uses=(SERVER,), hosts=("127.0.0.1",), days=(-9, 12.5)).put(
        server.safe / "web/conf", "server"
    )
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    assert due(time.time()) == []
    server.start()
    try:
        deadline = time.monotonic() + 20
        while "Warning: the certificate" not in server.output.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (line,) = due(time.time())
        assert "server.crt (n1) ends in 12 days, on " in line and "initssl renew" in line
        (line, *_) = due(time.time() + 13 * 86400)
        assert "ended on" in line
        log = server.var / "modules/mirror/log/module.log"
        wait_until(lambda: log.exists() and "certificate" in log.read_text(), 10, "the module log tells it")
        assert log.read_text().count("server.crt (n1) is good until") == 1
    finally:
        said = server.stop()
    assert said.count("Warning: the certificate") == 1
    shutil.rmtree(server.safe / "web/conf/ssl")


def test_an_honest_log_in_among_strangers(tmp_path: Path, pki: Pki) -> None:
    """3,000 connections that say nothing, over HTTP and HTTPS, and guesses without end from many addresses."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    server, https = secure_server(tmp_path, pki, "Define usefile\n")
    server.start()
    context = ssl.create_default_context(cafile=server.safe / "web/conf/cacert.crt")
    idle, stop, counted = [], threading.Event(), [0, 0]

    def log_in(user: str, password: str, source: str) -> int:
        connection = HTTPSConnection("127.0.0.1", https, timeout=30, context=context, source_address=(source, 0))
        try:
            body = json.dumps({"user": user, "password": password})
            connection.request("POST", "/api/v1/session", body=body, headers={"Content-Type": "application/json"})
            return connection.getresponse().status
        finally:
            connection.close()

    def guess(number: int) -> None:
        while not stop.is_set():
            counted[0] += 1
            status = log_in("admin", f"guess{counted[0]}", f"127.3.{number}.{counted[0] // 8 % 250 + 1}")
            assert status in (401, 429, 503), status
            counted[1] += status == 401

    try:
        for number in range(3000):
            idle.append(socket.create_connection(("127.0.0.1", https if number % 2 else server.port), timeout=10))
        with ThreadPoolExecutor(6) as pool:
            guessing = [pool.submit(guess, number) for number in range(6)]
            times = []
            for _ in range(8):
                begun = time.monotonic()
                assert log_in("admin", PASSWORDS["admin"], "127.0.0.1") == 200
                times.append(time.monotonic() - begun)
                time.sleep(0.2)
            stop.set()
            for future in guessing:
                future.result()
        assert counted[1] > 10, "they did guess"
        assert sorted(times)[4] < 1 and max(times) < 10, times
    finally:
        stop.set()
        for sock in idle:
            sock.close()
        said = server.stop()
    assert "Traceback" not in said and "defect" not in said, said
    assert not re.search(r"guess\d", said)


def test_a_refused_body_is_not_taken_to_its_end(tmp_path: Path, pki: Pki) -> None:
    """Why it was refused is in the answer, which who sends much reads too."""
    server = WebServer(tmp_path).start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
            sock.sendall(b"PUT /api/v1/cluster HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n")
            begun, sent = time.monotonic(), 0
            with contextlib.suppress(ConnectionError):
                while sent < 1 << 30:
                    sock.sendall(bytes(65536))
                    sent += 65536
                    time.sleep(0.01)
            assert time.monotonic() - begun < 6 and sent < 1 << 28
        target = webclient.Target("n1", "http", "127.0.0.1", server.port)
        with pytest.raises(webclient.CallError) as error:
            webclient.call(target, webclient.Ask("PUT", "/api/v1/cluster", bytes(48 << 20), secret=True), [bytes(32)])
        assert "cluster key" in error.value.text, error.value.text
    finally:
        server.stop()

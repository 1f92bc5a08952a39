"""safenotify against a mail server and a webhook: what arrives, what waits, what is said when it does not."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab.waiting import wait_until
from safekit.disk.files import boot_identity, write_atomic
from safekit.wire import seal
from tests.ports import free_port
from tests.t2_process.unit_filter import under
from tests.t2_process.web_server import CHECKOUT

aiosmtpd = pytest.importorskip("aiosmtpd.controller")
from aiosmtpd.smtp import AuthResult, LoginPassword  # noqa: E402

UDP = 2


def certificate(place: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (place / "c.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (place / "k.pem").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return place / "c.pem", place / "k.pem"


class Sink:
    """A mail server that keeps what it gets."""

    def __init__(self) -> None:
        self.letters: list[bytes] = []
        self.refuse = ""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.refuse:
            return self.refuse
        self.letters.append(envelope.content)
        return "250 taken"


@pytest.fixture
def sink() -> Iterator[tuple[Sink, int]]:
    made, port = Sink(), free_port()
    controller = aiosmtpd.Controller(made, hostname="127.0.0.1", port=port)
    controller.start()
    yield made, port
    controller.stop()


class Hook(BaseHTTPRequestHandler):
    got: list[dict[str, Any]] = []  # noqa: RUF012 - one server at a time
    answer = 204

    def do_POST(self) -> None:
        Hook.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(Hook.answer)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[int]:
    Hook.got, Hook.answer = [], 204
    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


class Node:
    def __init__(self, root: Path) -> None:
        self.safe, self.var = root / "safe", root / "var"
        for place in (self.safe / "conf", self.safe / "modules/web", self.var / "cluster"):
            place.mkdir(parents=True)
        (self.var / "bus.key").write_text(seal.new_key().hex())
        lans = [{"nodes": [{"name": "B"}, {"name": "A"}]}]
        (self.var / "cluster/cluster.json").write_text(json.dumps({"lans": lans}))
        self.env = {
            "SAFE": str(self.safe), "SAFEVAR": str(self.var), "SAFEMAPPER": str(free_port()), "SAFENODE": "B",
        }  # fmt: skip
        active = self.safe / "private/modules/web/conf"
        active.mkdir(parents=True)
        (active / "active.json").write_text(json.dumps({"service": {"mode": "mirror"}}))
        self.module("SECOND green", "PRIM")
        (self.var / "modules/web/why").mkdir()
        self.output = root / "output"
        self.process: subprocess.Popen[bytes] | None = None

    def module(self, state: str, remote: str) -> None:
        var = self.var / "modules/web"
        var.mkdir(parents=True, exist_ok=True)
        write_atomic(var / "running", boot_identity().encode(), durable=False)
        values = dict(zip(("state.local", "state.color"), state.split(), strict=True)) | {"state.remote": remote}
        values |= {"tcp.web": "down" if remote == "UNKNOWN" else "up", "rfs.paired": "down"}
        text = "".join(f"{k} {v} {time.time():.3f} heart\n" for k, v in values.items())
        write_atomic(var / "resources", text.encode(), durable=False)

    def decide(self, text: str) -> None:
        decision = {"number": 1, "time": time.time(), "rule": "failover", "text": text}
        (self.var / "modules/web/why/decisions.jsonl").write_text(json.dumps(decision) + "\n")

    def settings(self, text: str) -> None:
        (self.safe / "conf/notify.conf").write_text(f"{text}\n[limits]\nsettle = 1\n")

    def start(self) -> None:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*under("safenotify"), sys.executable, "-m", "safenotify.main"], cwd=CHECKOUT,
                env={**os.environ, **self.env}, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until(lambda: "tells by" in self.output.read_text(), 20, self.output.read_text)
        time.sleep(3)  # its first look: what it finds then is no event

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(15)

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli.main", "notify", *words]
        env = {**os.environ, **self.env}
        return subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=60)

    @property
    def queue(self) -> list[Path]:
        return sorted((self.var / "notify/queue").glob("*.json"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def mail(port: int) -> str:
    return f"[mail]\nserver = 127.0.0.1\nport = {port}\nsecurity = none\nto = admin@example.org\nfrom = c@example.org"


def test_a_failover_is_one_mail_that_says_why(node: Node, sink: tuple[Sink, int], hook: int) -> None:
    node.settings(mail(sink[1]) + f"\n[webhook]\nurl = http://127.0.0.1:{hook}/x")
    node.start()
    node.decide("no heartbeat of A for 30 s")
    node.module("ALONE magenta", "UNKNOWN")
    time.sleep(2.5)
    node.module("ALONE green", "UNKNOWN")
    wait_until(lambda: sink[0].letters and Hook.got, 20, node.output.read_text)
    time.sleep(4)
    assert len(sink[0].letters) == 1 and len(Hook.got) == 1 and node.queue == []
    letter = sink[0].letters[0].decode()
    assert "Subject: [SafeKit] web failed over from A to B" in letter and "no heartbeat of A for 30 s" in letter
    assert "The application answers on B since" in letter and "A is UNKNOWN" in letter and "Auto-Submitted" in letter
    assert "Down: tcp.web." in letter and "rfs.paired" not in letter
    told = Hook.got[0]
    assert (told["module"], told["before"], told["state"], told["verdict"]) == ("web", "SECOND", "ALONE", "degraded")
    assert told["states"] == ["ALONE magenta", "ALONE green"]


def test_what_cannot_be_delivered_waits_and_survives(node: Node, sink: tuple[Sink, int]) -> None:
    """The mail server is away, the process is killed, and the mail arrives when both are back."""
    away = free_port()
    node.settings(mail(away))
    node.start()
    node.module("ALONE green", "UNKNOWN")
    wait_until(lambda: node.queue and json.loads(node.queue[0].read_text())["tries"] == 1, 20, node.output.read_text)
    status = json.loads(node.cli("status", "--json").stdout)
    assert status["waiting"] == 1 and "Connection refused" in status["last_error"] and status["channels"] == ["mail"]
    node.stop(signal.SIGKILL)
    (kept,) = node.queue
    data = json.loads(kept.read_text())
    kept.write_text(json.dumps({**data, "due": 0}))  # its time has come
    (kept.parent / "000-damaged.json").write_text("{")
    node.settings(mail(sink[1]))
    node.output.unlink()
    node.start()
    wait_until(lambda: len(sink[0].letters) == 1, 20, node.output.read_text)
    wait_until(lambda: node.queue == [], 5, lambda: node.queue)
    assert len(sink[0].letters) == 1


def test_a_mail_server_that_says_no_is_asked_again(node: Node, sink: tuple[Sink, int]) -> None:
    sink[0].refuse = "451 come back later"
    node.settings(mail(sink[1]))
    node.start()
    node.module("ALONE green", "UNKNOWN")
    wait_until(lambda: node.queue and "451" in node.queue[0].read_text(), 20, node.output.read_text)
    assert node.output.read_text().count("451") == 1, "said once"


def test_the_test_button(node: Node, sink: tuple[Sink, int], hook: int) -> None:
    done = node.cli("test")
    assert done.returncode == 1 and "is not there" in done.stderr and "Next step:" in done.stderr
    node.settings("")
    assert "names nobody" in node.cli("test").stderr
    node.settings("[mail]\nserver = x\nto = y")
    assert "not a list of addresses" in node.cli("test").stderr
    node.settings(mail(sink[1]) + f"\n[webhook]\nurl = http://127.0.0.1:{hook}/x")
    done = node.cli("test")
    assert (done.returncode, done.stdout) == (0, "mail: delivered to admin@example.org\nwebhook: delivered\n")
    assert len(sink[0].letters) == 1 and Hook.got[0]["test"] is True
    for answer, said in ((500, "answers 500"), (302, "answers 302")):
        Hook.answer = answer
        done = node.cli("test")
        assert done.returncode == 1 and said in done.stdout, (done.stdout, done.stderr)
    node.settings(mail(free_port()))
    done = node.cli("test")
    assert done.returncode == 1 and "Connection refused" in done.stdout and "SAFE/conf/notify.conf" in done.stderr


def test_a_login_needs_encryption_and_a_right_certificate(node: Node, tmp_path: Path) -> None:
    """A mail server with STARTTLS and a certificate of nobody that the system trusts: no password leaves."""
    crt, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(crt, key)
    tried: list[Any] = []

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        tried.append(data)
        good = isinstance(data, LoginPassword) and data.password == b"secret"
        return AuthResult(success=good, handled=True) if good else AuthResult(success=False, handled=False)

    made, port = Sink(), free_port()
    controller = aiosmtpd.Controller(
        made, hostname="127.0.0.1", port=port, tls_context=context, require_starttls=True,
        authenticator=authenticate, auth_required=True,
    )  # fmt: skip
    controller.start()
    try:
        login = mail(port).replace("none", "starttls") + "\nuser = cluster\npassword = {}"
        node.settings(login.format("secret"))
        done = node.cli("test")
        assert done.returncode == 1 and "certificate" in (done.stdout + done.stderr).lower() and tried == []
        node.env["SSL_CERT_FILE"] = str(crt)
        done = node.cli("test")
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(made.letters) == 1
        node.settings(login.format("wrong"))
        done = node.cli("test")
        assert done.returncode == 1 and "refuses user and password" in done.stdout and "secret" not in done.stdout
    finally:
        controller.stop()

"""-H against real web services and against machines that are slow, mute or wrong: each server is named, and the whole
ends in bounded time (guide 9.1)."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from web_server import KEY, PASSWORDS, WebServer

from cli import distributed
from cli.base import Failure
from safekit.bus import keyholders
from safekit.model.codec import to_json
from safekit.model.types import ClusterConfig, Lan, LanNode
from safekit.wire import remote, targets, webclient

ADDRESSES = {"n1": "127.0.0.1", "n2": "127.0.0.2", "n3": "127.0.0.3"}
CLUSTER = ClusterConfig((Lan("default", nodes=tuple(LanNode(n, a) for n, a in ADDRESSES.items())),))


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, WebServer]]:
    """n1 and n3; what answers as n2 is the test's."""
    made = {}
    for name in ("n1", "n3"):
        server = made[name] = WebServer(tmp_path_factory.mktemp(name))
        server.env["SAFENODE"] = name
        (server.var / "cluster/cluster.json").write_text(to_json(CLUSTER))
        server.start()
    yield made
    for server in made.values():
        server.stop()


@pytest.fixture(autouse=True)
def here(services: dict[str, WebServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run as on n1, with short time-outs."""
    for name, value in services["n1"].env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SAFEKIT_PASSWORD", raising=False)
    monkeypatch.setattr(webclient, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(webclient, "IDLE_SECONDS", 1.0)
    monkeypatch.setattr(distributed, "SECONDS", 2.0)


def url(services: dict[str, WebServer], name: str) -> str:
    return f"http://{ADDRESSES[name]}:{services[name].port}"


class Machine:
    """Something that listens on 127.0.0.2, and does `behave` with each connection."""

    def __init__(self, behave: Callable[[socket.socket], None], hear: Callable[[bytes], object] = len) -> None:
        self._listening = socket.create_server((ADDRESSES["n2"], 0))
        self.url = f"http://{ADDRESSES['n2']}:{self._listening.getsockname()[1]}"
        self._behave, self._hear = behave, hear
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self._kept.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(5)
            self._hear(sock.recv(65536))
            self._behave(sock)
        except OSError:
            pass  # the asker gave up, which is what the tests are about

    def close(self) -> None:
        self._listening.close()
        for sock in self._kept:
            sock.close()


def mute(sock: socket.socket) -> None:
    """Accepts, and says nothing."""


def stall(sock: socket.socket) -> None:
    """Begins to answer, and freezes."""
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n ")


def drip(sock: socket.socket) -> None:
    """A blank every moment, as a service does whose command runs; for ever."""
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        sock.sendall(b" ")
        time.sleep(0.2)


def flood(sock: socket.socket) -> None:
    """An answer without end."""
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        sock.sendall(b" " * (1 << 20))


def other(sock: socket.socket) -> None:
    """Another web server."""
    sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello")


def hang_up(sock: socket.socket) -> None:
    sock.close()


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (mute, "said nothing for"),
        (stall, "said nothing for"),
        (drip, "no end after 2 s"),
        (flood, "an answer of more than"),
        (other, "altered on its way, or another server"),
        (hang_up, "Next step: is its web service running"),
    ],
)
def test_a_server_that_misbehaves_is_named_and_bounded(
    services: dict[str, WebServer], capsys: pytest.CaptureFixture[str], behave: Callable[[socket.socket], None],
    words: str,
) -> None:  # fmt: skip
    machine = Machine(behave)
    begun = time.monotonic()
    try:
        status = distributed.run_distributed(
            ["-H", f"{url(services, 'n1')},{machine.url},{url(services, 'n3')}", "level", "--help"]
        )
    finally:
        machine.close()
    assert time.monotonic() - begun < 10 and status == 1
    shown = capsys.readouterr()
    assert [line.split()[1] for line in shown.out.splitlines() if line.startswith("---")] == ["n1", "n2", "n3"]
    assert words in shown.err and "Error: n2: " in shown.err and "Next step: " in shown.err, shown.err
    assert shown.err.count("Error: ") == 1, "the others did what they were asked"


def test_nobody_listens_and_nobody_answers_at_all(
    services: dict[str, WebServer], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((ADDRESSES["n2"], 0), backlog=0) as full:
        # A full queue is as silent as a server without power.
        port = full.getsockname()[1]
        kept = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((ADDRESSES["n2"], port))
            kept.append(sock)
        begun = time.monotonic()
        status = distributed.run_distributed(["-H", f"http://n2:{port}".replace("n2", ADDRESSES["n2"]), "level"])
        assert status == 1 and time.monotonic() - begun < 5
        assert "no connection to http://127.0.0.2" in capsys.readouterr().err
        for sock in kept:
            sock.close()
    assert distributed.run_distributed(["-H", f"http://127.0.0.2:{port}", "level"]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_a_clock_one_hour_off_is_named_with_the_way_out(
    services: dict[str, WebServer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for hours, words in ((1, "ahead of the clock of n3"), (-1, "behind the clock of n3")):
        clock = SimpleNamespace(time=lambda hours=hours: time.time() + 3600 * hours)
        monkeypatch.setattr(remote, "time", clock)
        assert distributed.run_distributed(["-H", url(services, "n3"), "level", "--help"]) == 1
        said = capsys.readouterr().err
        assert "the clock of n1 is 60 min " + words in said and "at most 120 s" in said and "NTP" in said, said


@pytest.mark.parametrize(
    ("servers", "asked"),
    [
        ("{n1},{n3}", ["n1", "n3"]),
        (" {n3} , {n1}", ["n3", "n1"]),
        ("[http:{p1}],n1", ["n1"]),
        ("[http:{p1}],n1,[http:{p3}],n3", ["n1", "n3"]),
        ("{n1},n1,{n1}", ["n1"]),
        ("http://admin:admin-secret@127.0.0.1:{p1}", ["n1"]),
    ],
)
def test_the_forms_of_a_list(
    services: dict[str, WebServer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, servers: str,
    asked: list[str],
) -> None:  # fmt: skip
    ports = {f"p{name[1]}": service.port for name, service in services.items()}
    if servers == "{n1},n1,{n1}":
        servers = f"[http:{ports['p1']}],{servers}"
    text = servers.format(**{name: url(services, name) for name in services}, **ports)
    assert distributed.run_distributed(["-H", text, "level", "--help"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[1] for line in shown.out.splitlines() if line.startswith("---")] == asked
    assert shown.err == ""


def test_names_stand_for_https_where_its_configuration_is(services: dict[str, WebServer]) -> None:
    urls = [target.url for target in distributed.servers_of("n1,n3")]
    assert urls == ["http://127.0.0.1:9010", "http://127.0.0.3:9010"]
    ssl = services["n1"].safe / "web/conf/ssl"
    ssl.mkdir()
    assert distributed.servers_of("n1")[0].url == "http://127.0.0.1:9010", "an empty directory is none"
    (ssl / "httpd.webconsolessl.conf").write_text("")
    try:
        assert distributed.servers_of("n1")[0].url == "https://127.0.0.1:9453"
        assert distributed.servers_of("[http],*")[2].url == "http://127.0.0.3:9010"
    finally:
        (ssl / "httpd.webconsolessl.conf").unlink()
        ssl.rmdir()


def test_everybody_and_the_list_of_the_file(
    services: dict[str, WebServer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "SECONDS", 30.0)
    monkeypatch.setattr(webclient, "IDLE_SECONDS", 10.0)
    port = services["n1"].port
    # One service answers on all addresses here: it says that a request for n2 or n3 is not for it.
    assert distributed.run_distributed(["-H", f"[http:{port}],*", "level", "--help"]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("--- n") == 3 and shown.err.count("but this server is n1") == 2
    path = services["n1"].var / "default_cluster.txt"
    with pytest.raises(Failure, match="which servers"):
        distributed.run_distributed(["-G"])
    path.write_text(f"# all of them\n{url(services, 'n3')}  # the last one\n")
    xml = services["n1"].var / "cluster/cluster.xml"
    xml.write_text("<cluster/>")
    assert distributed.run_distributed(["-G"]) == 1
    shown = capsys.readouterr()
    # No safeadmin runs there.
    assert "--- n3" in shown.out and "service safeadmin start" in shown.out
    assert "those that failed are as they were" in shown.err
    path.unlink()
    xml.unlink()


def test_another_key_and_a_password_in_its_place(
    services: dict[str, WebServer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = services["n1"].var / "cluster/cluster.key"
    key.write_text("11" * 32)
    try:
        ask = ["-H", url(services, "n3"), "level", "--help"]
        assert distributed.run_distributed(ask) == 1
        said = capsys.readouterr().err
        assert "n3 has another cluster key than n1" in said and "SAFEKIT_PASSWORD" in said and "-H n3 -G" in said
        monkeypatch.setenv("SAFEKIT_PASSWORD", "wrong")
        assert distributed.run_distributed(ask) == 1
        assert "wrong name or password" in capsys.readouterr().err
        monkeypatch.setenv("SAFEKIT_PASSWORD", "admin-secret")
        assert distributed.run_distributed(ask) == 0
    finally:
        key.write_text(KEY.hex())


def test_the_worst_status_is_the_status(services: dict[str, WebServer], capsys: pytest.CaptureFixture[str]) -> None:
    both = f"{url(services, 'n1')},{url(services, 'n3')}"
    assert distributed.run_distributed(["-H", both, "nonsense"]) == 1
    assert capsys.readouterr().out.count("exit status 1") == 2
    for words in (["logview"], ["-p"], ["-r", "processtree"], ["-m", "am", "logview"]):
        with pytest.raises(Failure, match="cannot be used with -H"):
            distributed.run_distributed(["-H", both, *words])


class Impostor:
    """Something on the port of a server that takes every request and asks for a password, as the web service does."""

    def __init__(self) -> None:
        self.heard = b""
        self.machine = Machine(self._answer, self._hear)

    def _hear(self, data: bytes) -> None:
        self.heard += data
        if data.startswith((b"GET ", b"POST ", b"PUT ")):
            self.request = data

    def _answer(self, sock: socket.socket) -> None:
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while data := sock.recv(65536):
                self._hear(data)
        if self.lies is not None and b"/api/v1/proof" in self.request:
            self._send(sock, "200 OK", self.lies)
        else:
            self._send(sock, "401 Unauthorized", {"error": "credentials", "text": "a password is needed"})

    lies: dict[str, str] | None = None
    request = b""

    def _send(self, sock: socket.socket, status: str, body: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        sock.sendall(head.encode() + data)


@pytest.mark.parametrize(
    ("lies", "words"),
    [
        (None, "cannot prove that it knows the password"),
        ({"node": "n2", "salt": "$2y$04$abcdefghijklmnopqrstuu", "message": "42" + "01" * 32}, "gave no proof"),
        (
            {"node": "n2", "salt": "$2y$04$abcdefghijklmnopqrstuu", "message": "42" + "58" + "66" * 31},
            "not that server",
        ),
        ({"node": "n2", "salt": "$2y$31$abcdefghijklmnopqrstuu"}, "gave no proof"),
        ({}, "gave no proof"),
    ],
)
def test_an_impostor_never_gets_a_password_or_a_key(
    services: dict[str, WebServer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    lies: dict[str, str] | None, words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("SAFEKIT_PASSWORD", "the-admin-secret")
    monkeypatch.setattr(keyholders, "key_holders", frozenset)
    (services["n1"].var / "cluster/cluster.xml").write_text("<cluster/>")
    impostor = Impostor()
    impostor.lies = lies
    url_ = impostor.machine.url
    try:
        for server in (url_, url_.replace("//", "//admin:the-admin-secret@")):
            for order in (["level"], ["-G"]):
                assert distributed.run_distributed(["-H", server, *order]) == 1
                shown = capsys.readouterr().err
                assert words in shown and "Next step: " in shown, shown
        secrets = (b"the-admin-secret", b64encode(b"admin:the-admin-secret"), KEY.hex().encode())
        assert impostor.heard and not any(secret in impostor.heard for secret in secrets)
        assert distributed.run_distributed(["--insecure", "-H", url_, "level"]) == 1
        assert secrets[1] in impostor.heard, "who asks for it has it so"
    finally:
        impostor.machine.close()


def test_a_password_is_proved_and_what_follows_is_sealed(
    services: dict[str, WebServer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of another cluster, through somebody who only listens."""
    monkeypatch.setenv("SAFEKIT_PASSWORD", PASSWORDS["admin"])
    key = services["n3"].var / "cluster/cluster.key"
    key.write_text("07" * 32)
    try:
        assert distributed.run_distributed(["-H", url(services, "n3"), "level", "--help"]) == 0
        monkeypatch.setenv("SAFEKIT_PASSWORD", "wrong")
        assert distributed.run_distributed(["-H", url(services, "n3"), "level", "--help"]) == 1
        said = capsys.readouterr().err
        assert "another cluster key" in said and "wrong name or password" in said, said
        monkeypatch.setenv("SAFEKIT_USER", "viewer")
        monkeypatch.setenv("SAFEKIT_PASSWORD", PASSWORDS["viewer"])
        assert distributed.run_distributed(["-H", url(services, "n3"), "stop", "-m", "x"]) == 1
        assert "needs the role Control; yours is Monitor" in capsys.readouterr().err
    finally:
        key.write_text(KEY.hex())


def test_a_password_is_not_proved_to_another_server_of_the_cluster(services: dict[str, WebServer]) -> None:
    """Somebody in between passes everything on to n3: what n1 is asked for would be done there."""
    target = webclient.Target("n1", "http", ADDRESSES["n3"], services["n3"].port, others=frozenset({"n2", "n3"}))
    admin = webclient.Credentials("admin", PASSWORDS["admin"])
    with pytest.raises(webclient.CallError) as error:
        webclient.call(target, webclient.Ask("GET", "/api/v1/node"), [], admin)
    assert error.value.kind == "target" and "is n3, and not n1" in error.value.text
    answer, _ = webclient.call(replace(target, others=frozenset()), webclient.Ask("GET", "/api/v1/node"), [], admin)
    assert answer["node"] == "n3", "a server that has no name in the cluster yet"
    cluster = distributed.configured_cluster()
    assert cluster is not None
    asked = targets.parse_targets("n1,http://10.99.99.99", cluster, "n1", "http")
    assert ["n3" in each.others for each in asked] == [True, False]


def test_passwords_are_proved_no_faster_than_they_are_guessed(services: dict[str, WebServer]) -> None:
    target = webclient.Target("", "http", ADDRESSES["n3"], services["n3"].port)
    kinds = []
    for _ in range(8):
        with pytest.raises(webclient.CallError) as error:
            webclient.call(target, webclient.Ask("GET", "/api/v1/node"), [], webclient.Credentials("operator", "x"))
        kinds.append(error.value.kind)
    assert kinds[:5] == ["credentials"] * 5 and kinds[5:] == ["wait"] * 3

"""Who may do what, as a table that a person can read (tests/golden/web_rights.txt), from services that run.

SAFEKIT_GOLDEN=write rewrites it; review the difference before you keep it.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import textwrap
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest
from certificates import Pair, make
from web_https import Pki, secure_server
from web_server import GREEN, Answer, WebServer

from cli.main import cli as safekit
from safewebserver.api import openapi
from safewebserver.permissions import Refusal, Role, judge
from tests.ports import free_ports
from tests.t2_process.ldap_server import ROLES, USERS, LdapServer, there

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "web_rights.txt"
PASSWORD = {
    "admin": "admin-secret", "operator": "operator-secret", "viewer": "viewer-secret", "nobody": "no-group", **USERS,
}  # fmt: skip
IN_DIRECTORY = frozenset(USERS)
SSLGROUP = 'Control: "MARY SMITH" issuer="Company CA"\nMonitor: "both"\n'
BEHALF = "?on_behalf=alice@n2&role="

IDENTITIES = (
    "nothing",
    "a wrong password",
    "password of admin (group Admin)",
    "password of operator (group Control)",
    "password of viewer (group Monitor)",
    "password of nobody (in no group)",
    "password of mary (admingroup of the directory)",
    "password of bob (a group within controlgroup)",
    "password of wall (monitorgroup)",
    "password of lost (in no group of the directory)",
    "a wrong password of mary",
    "an empty password of mary",
    "session of operator",
    "session of bob",
    "a session that has ended",
    "signature of server n2",
    "signature of n2 for alice, Control",
    "signature of n2 for alice, Monitor",
    "signature with another key",
    "certificate OU=Admin",
    "certificate OU=IT OU=Control",
    "certificate OU=Monitor OU=Admin",
    "certificate MARY SMITH (sslgroup.conf: Control)",
    "certificate MARY SMITH of another authority",
    "certificate both, OU=Admin (sslgroup.conf: Monitor)",
    "certificate without a role",
    "certificate OU=Admin, revoked",
    "certificate OU=Admin, not for clients",
    "certificate OU=Monitor and signature of n2",
    "certificate OU=Admin and password of viewer",
)
PLACES = (
    "http, passwords",
    "http, no passwords",
    "http, no passwords, Control's port",
    "http, no passwords, Monitor's port",
    "https, passwords",
    "https, no passwords",
    "http, directory",
    "https, directory",
    "https, passwords and directory",
)
"""The last three only where slapd is."""


class World:
    """A service of each kind, and what each identity brings."""

    def __init__(self, root: Path) -> None:
        self.pki = Pki()
        second = self.second = make("Second CA", authority=True)
        people = self.pki.people
        self.certificates: dict[str, Pair] = {
            "OU=Admin": self.pki.clients["admin"],
            "OU=IT OU=Control": self.pki.clients["control"],
            "OU=Monitor OU=Admin": make("eve", "Monitor", "Admin", by=people),
            "MARY SMITH (sslgroup.conf: Control)": self.pki.clients["mary"],
            "MARY SMITH of another authority": make("MARY SMITH", by=second),
            "both, OU=Admin (sslgroup.conf: Monitor)": make("both", "Admin", by=people),
            "without a role": self.pki.clients["norole"],
            "OU=Admin, revoked": self.pki.clients["gone"],
            "OU=Admin, not for clients": self.pki.clients["nouse"],
            "OU=Monitor": self.pki.clients["monitor"],
        }
        for number, (name, pair) in enumerate(self.certificates.items()):
            pair.put(root / "people", str(number))
            self.certificates[name] = pair
        self.files = {name: str(number) for number, name in enumerate(self.certificates)}
        self.root = root
        http, opened = free_ports(2)
        control, monitor = free_ports(2)
        extra = f"Define httpcontrolport {control}\nDefine httpmonitorport {monitor}\n"
        self.servers = [WebServer(root / "asks", port=http), WebServer(root / "open", extra, opened)]
        asks, https_asks = secure_server(root / "https-asks", self.pki, "Define usefile\n")
        never, https_never = secure_server(root / "https-never", self.pki)
        self.servers += [asks, never]
        for server in (asks, never):
            self._rules(server)
        open_ = self.servers[1]
        ways = [(self.servers[0], http), (open_, opened), (open_, control), (open_, monitor), (asks, https_asks),
                (never, https_never), *self._with_directory()]  # fmt: skip
        self.places = dict(zip(PLACES, ways, strict=False))
        for server in self.servers:
            server.module("mirror", GREEN)
            server.start()

    def _with_directory(self) -> list[tuple[WebServer, int]]:
        """Services that ask a real slapd; none where that is not installed."""
        self.slapd = LdapServer(self.root / "slapd") if there() else None
        if self.slapd is None:
            return []
        define = self.slapd.define(*ROLES)
        plain = WebServer(self.root / "ldap", define)
        alone, https_alone = secure_server(self.root / "https-ldap", self.pki, define)
        both, https_both = secure_server(self.root / "https-both", self.pki, f"Define usefile\n{define}")
        for server in (alone, both):
            self._rules(server)
        self.servers += [plain, alone, both]
        return [(plain, plain.port), (alone, https_alone), (both, https_both)]

    def _rules(self, server: WebServer) -> None:
        conf = server.safe / "web/conf"
        (conf / "sslgroup.conf").write_text(SSLGROUP)
        (conf / "clcacert.crt").write_bytes(self.pki.people.pem + self.second.pem)
        (conf / "clca.crl").write_bytes(self.pki.people.revoke(self.pki.clients["gone"]))

    def stop(self) -> None:
        if self.slapd is not None:
            self.slapd.stop()
        for server in self.servers:
            said = server.stop()
            assert "Traceback" not in said and "defect" not in said, said

    def ask(self, place: str, identity: str, method: str, path: str, body: bytes = b"") -> Answer:
        """A request of that identity at that place."""
        server, port = self.places[place]
        sent, certificate = {"Content-Type": "application/json"}, ""
        # From an address of its own for each identity at each place: who guesses much has to wait.
        source = f"127.2.{PLACES.index(place) + 1}.{IDENTITIES.index(identity) + 1}"
        if found := re.fullmatch(r"certificate (.*?)(?: and (.*))?", identity):
            certificate, identity = found[1], found[2] or "nothing"
        if found := re.fullmatch(r"(a wrong|an empty) password(?: of (\w+))?", identity):
            sent |= _basic(found[2] or "admin", "wrong" if found[1] == "a wrong" else "")
        elif found := re.match(r"password of (\w+)", identity):
            sent |= _basic(found[1], PASSWORD[found[1]])
        elif found := re.fullmatch(r"session of (\w+)", identity):
            sent |= {"Cookie": self._session(place, found[1], source)}
        elif identity == "a session that has ended":
            sent |= {"Cookie": "safekit_session=x"}
        elif identity.startswith("signature"):
            path += f"{BEHALF}{identity.rpartition(' ')[2]}" if "alice" in identity else ""
            options = {"key": bytes(32)} if "another" in identity else {}
            sent |= server.signed(method, path, body, **options)[0]  # type: ignore[arg-type]
        return self._send(port, place, certificate, method, path, body, sent, source)

    def _session(self, place: str, user: str, source: str) -> str:
        body = json.dumps({"user": user, "password": PASSWORD[user]}).encode()
        kind = {"Content-Type": "application/json"}
        answer = self._send(self.places[place][1], place, "", "POST", "/api/v1/session", body, kind, source)
        return answer.headers.get("Set-Cookie", "").partition(";")[0]

    def _send(
        self, port: int, place: str, certificate: str, method: str, path: str, body: bytes, sent: dict[str, str],
        source: str,
    ) -> Answer:  # fmt: skip
        if place.startswith("https"):
            server = self.places[place][0]
            context = ssl.create_default_context(cafile=server.safe / "web/conf/cacert.crt")
            if certificate:
                name = self.root / "people" / self.files[certificate]
                context.load_cert_chain(f"{name}.crt", f"{name}.key")
            connection: HTTPConnection = HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
        else:
            connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.source_address = (source, 0)
        try:
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()


def _basic(user: str, password: str) -> dict[str, str]:
    from base64 import b64encode

    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("rights"))
    yield made
    made.stop()


def needs(identity: str, place: str) -> bool:
    """Whether an identity can be brought there at all: certificates need HTTPS, sessions a password."""
    if identity.startswith("certificate") and not place.startswith("https"):
        return False
    if "session" in identity and "no passwords" in place:
        return False
    if found := re.search(r"(?:password|session) of (\w+)", identity):
        theirs = "directory" if found[1] in IN_DIRECTORY else "passwords"
        return theirs in place or identity.startswith("password of admin")
    return True


def known(world: World, place: str, identity: str) -> tuple[str, Role | None]:
    """Who somebody is there as the service says it, and his role; why he is nobody."""
    answer = world.ask(place, identity, "GET", "/api/v1/node")
    if answer.status == 200:
        return answer.json["user"], Role[answer.json["role"].upper()]
    assert answer.status == 401, answer.data
    return answer.error, None


PROBES = (
    ("GET", "/api/v1/modules", b"", Role.MONITOR),
    ("GET", "/api/v1/modules/mirror/configuration", b"", Role.CONTROL),
    ("PUT", "/api/v1/cluster", b"{}", Role.ADMIN),
)
"""One request for each role, which does nothing."""


def identities(world: World) -> list[str]:
    """A line for each identity at each place, and every line tried with a request of each role."""
    lines = []
    for place in world.places:
        lines += ["", f"{place}:"]
        for identity in IDENTITIES:
            if not needs(identity, place):
                continue
            who, role = known(world, place, identity)
            for method, path, body, least in PROBES:
                answer = world.ask(place, identity, method, path, body)
                expected = 401 if role is None else 403 if role < least else 0
                got = answer.status if answer.status in (401, 403) else 0
                assert got == expected, (place, identity, path, answer.data)
            told = f"refused ({who})" if role is None else f"{role.label:<8} {who}"
            lines.append(f"  {identity:<52} {told}")
    return lines


def routes() -> list[str]:
    """Every route by the least role; test_every_route_by_credentials holds the description and the service together."""
    found: dict[str, list[str]] = {}
    for path, methods in openapi()["paths"].items():
        for method, entry in methods.items():
            if method != "parameters":
                found.setdefault(entry["x-role"] or "everybody", []).append(f"{method.upper()} {path}")
    return [line for role in ("everybody", "Monitor", "Control", "Admin") if role in found for line in
            (f"{role}:", *(f"  {each}" for each in sorted(found[role])))]  # fmt: skip


def _least(words: tuple[str, ...]) -> str:
    for role in Role:
        judged = judge(words, role)
        if not isinstance(judged, Refusal):
            return role.label
        if judged.kind != "forbidden":
            return "nobody: for one server only"
    raise AssertionError(words)


def commands() -> list[str]:
    """Every command, with its words where they need different roles."""
    import click

    found: dict[str, list[str]] = {}
    with click.Context(safekit) as context:
        for name in safekit.list_commands(context):
            made = safekit.get_command(context, name)
            words: list[tuple[str, ...]] = [(name,)]
            if isinstance(made, click.Group):
                words = [(name, each) for each in made.list_commands(context)]
            elif name == "boot":
                words = [
                    (name, each) for each in ("on", "off", "status", "webon", "webstatus", "snmpoff", "snmpstatus")
                ]
            for each in words:
                found.setdefault(_least(each), []).append(" ".join(each))
    lines = []
    for role in ("Monitor", "Control", "Admin", "nobody: for one server only"):
        text = textwrap.fill(", ".join(sorted(found[role])), 110, initial_indent="  ", subsequent_indent="  ",
                             break_on_hyphens=False)  # fmt: skip
        lines += [f"{role}:", *text.splitlines()]
    return lines


def test_rights_are_as_they_were_read_by_a_person(world: World) -> None:
    lines = ["# Who may do what at the web service. Written by tests/t2_process/test_web_rights.py; read it before you",
             "# keep a change. A role includes those below it: Admin, Control, Monitor.", "",
             "WHO IS WHAT. Each line was asked, and tried with a request of each role.", *identities(world), "",
             "WHAT A REQUEST NEEDS", "", *routes(), "",
             "WHAT A COMMAND NEEDS (POST /api/v1/command)", "", *commands(), ""]  # fmt: skip
    text = "\n".join(lines)
    if os.environ.get("SAFEKIT_GOLDEN") == "write":
        GOLDEN.write_text(text)
    golden = GOLDEN.read_text()
    if world.slapd is None:
        golden = re.sub(r"^\S.*directory:\n(?:  .*\n)*\n", "", golden, flags=re.MULTILINE)
    assert text == golden

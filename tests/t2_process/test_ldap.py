"""Users of a directory: a real slapd, asked through the process safeldap (guide 11.4.3; SLD-001 to SLD-005)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from safewebserver import directory as remembering
from safewebserver.directory import LdapDirectory, directory_of
from safewebserver.identity import Unauthorized
from safewebserver.permissions import Role
from safewebserver.roles import Person
from safewebserver.settings import SettingsError, parse_settings
from tests.t2_process.ldap_server import GROUPS, PEOPLE, ROLES, USERS, LdapServer, there
from tests.t2_process.web_server import WebServer

pytestmark = pytest.mark.skipif(not there(), reason="slapd, ldap-utils or openssl is not installed")


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LdapServer]:
    server = LdapServer(tmp_path_factory.mktemp("slapd"))
    yield server
    server.stop()


def directory(define: str) -> LdapDirectory:
    made = directory_of(parse_settings(f"Define httpadminport 9010\n{define}").values)
    assert made is not None
    return made


def asked(define: str, *questions: tuple[str, str | None]) -> list[Person | str | None]:
    """What the directory says to (name, password), or (name, None) for a session; an error as its text."""

    async def run() -> list[Person | str | None]:
        made = directory(define)
        found: list[Person | str | None] = []
        try:
            for name, password in questions:
                try:
                    answer = made.person(name) if password is None else made.check(name, password)
                    found.append(await answer)
                except Unauthorized as error:
                    assert error.kind == "directory"
                    found.append(error.text)
        finally:
            await made.close()
        return found

    return asyncio.run(run())


def test_roles_are_those_of_the_groups(slapd: LdapServer) -> None:
    """SLD-001, SLD-002: by memberOf, by a group in a group (which contain each other here), the highest one of two."""
    found = asked(slapd.define(*ROLES), *USERS.items(), ("mary", None), ("lost", None), ("nobody", None))
    assert found == [
        Person("mary", Role.ADMIN), Person("bob", Role.CONTROL), Person("wall", Role.MONITOR), Person("lost", None),
        Person("O'Neil (x)*", None), Person("mary", Role.ADMIN), Person("lost", None), None,
    ]  # fmt: skip


def test_without_groups_everybody_is_admin(slapd: LdapServer) -> None:
    """SLD-003."""
    assert asked(slapd.define(), ("lost", "lost secret")) == [Person("lost", Role.ADMIN)]


def test_wrong_and_empty_passwords_and_names_that_are_filters(slapd: LdapServer) -> None:
    questions = [
        ("mary", "wrong"), ("mary", ""), ("mary", "\0"), ("", "x"), ("*", "mary secret"), ("m*", "mary secret"),
        ("mary)(objectClass=*", "mary secret"), ("mary\0", "mary secret"), ("x" * 300, "x"), ("nobody", "x"),
        ("\ud800", "x"),
    ]  # fmt: skip
    assert asked(slapd.define(*ROLES), *questions) == [None] * len(questions)


def test_an_empty_password_does_not_reach_the_directory() -> None:
    """Nobody listens there: an error would tell that it was asked."""
    define = f'Define useldap\nDefine searchurl "ldap://127.0.0.1:1/{PEOPLE}?uid"\n'
    assert asked(define, ("mary", "")) == [None]


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
def test_encrypted_connections_check_the_directory(slapd: LdapServer, scheme: str, tmp_path: Path) -> None:
    starttls = ("ldapstarttls",) if scheme == "ldap" else ()
    authority = f'ldapcacert "{slapd.root / "ca.crt"}"'
    os.chmod(slapd.root, 0o755)
    for parent in slapd.root.parents:  # nobody, as whom it is read, must be able to come there
        if parent.stat().st_uid == os.geteuid() and parent != Path("/") and str(parent).startswith("/tmp/"):
            os.chmod(parent, parent.stat().st_mode | 0o011)
    good = asked(slapd.define(*ROLES, *starttls, authority, scheme=scheme), ("mary", "mary secret"))
    assert good == [Person("mary", Role.ADMIN)]
    (text,) = asked(slapd.define(*ROLES, *starttls, scheme=scheme), ("mary", "mary secret"))
    assert isinstance(text, str) and ("ldapcacert" in text or "does not answer" in text), text


def test_a_directory_that_cannot_be_asked_is_named(slapd: LdapServer) -> None:
    """SLD-004."""
    define = slapd.define(*ROLES).replace(f":{slapd.port}/", ":1/")
    (text,) = asked(define, ("mary", "mary secret"))
    assert isinstance(text, str) and "127.0.0.1:1 does not answer" in text and "port open" in text
    wrong = slapd.define(*ROLES).replace('bindpwd "search secret"', 'bindpwd "other"')
    (text,) = asked(wrong, ("mary", "mary secret"))
    assert isinstance(text, str) and "refuses binddn with bindpwd" in text and "other" not in text
    base = slapd.define(*ROLES).replace(PEOPLE, "ou=none,dc=example,dc=com")
    (text,) = asked(base, ("mary", "mary secret"))
    assert isinstance(text, str) and "base of searchurl" in text
    second = slapd.define(*ROLES).replace("ldap://", "ldap://127.0.0.1:1 ")
    assert asked(second, ("mary", "mary secret")) == [Person("mary", Role.ADMIN)], "the next server is asked"


def test_one_that_accepts_and_says_nothing_costs_seconds(slapd: LdapServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        define = slapd.define(*ROLES).replace(f":{slapd.port}/", f":{silent.getsockname()[1]}/")
        begun = time.monotonic()
        (text,) = asked(define, ("mary", "mary secret"))
        assert isinstance(text, str) and "answer" in text
        assert time.monotonic() - begun < 20


def test_a_change_of_groups_is_seen_within_a_minute(slapd: LdapServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not before what is remembered has had its time: a console does not ask the directory with every request."""
    assert remembering.REMEMBER_SECONDS <= 60
    monkeypatch.setattr(remembering, "REMEMBER_SECONDS", 3.0)
    group, member = f"cn=admins,{GROUPS}", f"cn=user3,{PEOPLE}"

    async def run() -> None:
        made = directory(slapd.define(*ROLES))
        try:
            assert await made.person("lost") == await made.check("lost", "lost secret") == Person("lost", None)
            asked_at = time.monotonic()
            slapd.change(f"dn: {group}\nchangetype: modify\nadd: member\nmember: {member}\n")
            seen = None
            while seen is None and time.monotonic() < asked_at + 20:
                person = await made.person("lost")
                checked = await made.check("lost", "lost secret")
                assert person is not None and checked is not None
                seen = time.monotonic() if person.role is checked.role is Role.ADMIN else None
                await asyncio.sleep(0.1)
            assert seen is not None
        finally:
            slapd.change(f"dn: {group}\nchangetype: modify\ndelete: member\nmember: {member}\n")
            await made.close()

    asyncio.run(run())


def test_a_wrong_password_is_asked_once_in_some_seconds(slapd: LdapServer) -> None:
    """What a browser repeats must not lock an account; the right one is asked at once."""

    async def run() -> None:
        made = directory(slapd.define())
        questions: list[dict[str, Any]] = []
        ask = made._ask

        async def noted(question: dict[str, Any]) -> dict[str, Any]:
            questions.append(question)
            return await ask(question)

        made._ask = noted  # type: ignore[method-assign]
        try:
            assert [await made.check("mary", "wrong") for _ in range(5)] == [None] * 5
            assert await made.check("mary", "mary secret") == Person("mary", Role.ADMIN)
            assert [q["password"] for q in questions] == ["wrong", "mary secret"]
        finally:
            await made.close()

    asyncio.run(run())


def test_the_process_is_nobody_and_comes_back_when_it_is_killed(slapd: LdapServer) -> None:
    async def run() -> None:
        made = directory(slapd.define(*ROLES))
        try:
            assert await made.check("mary", "mary secret") == Person("mary", Role.ADMIN)
            assert made._process is not None
            process = psutil.Process(made._process.pid)
            assert process.uids().real != 0 and process.uids().effective != 0 and process.gids().real != 0
            process.kill()
            deadline = time.monotonic() + 20
            while made._process is not None and made._process.returncode is None and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            assert await made.check("bob", "bob secret") == Person("bob", Role.CONTROL)
        finally:
            await made.close()
            assert made._process is not None and made._process.returncode == 0

    asyncio.run(run())


def test_many_ask_at_once(slapd: LdapServer) -> None:
    async def run() -> None:
        made = directory(slapd.define(*ROLES))
        try:
            names = [name for name in USERS for _ in range(8)]
            found = await asyncio.gather(
                *(made.check(name, f"{USERS[name]}{n % 2 and ' not'}") for n, name in enumerate(names))
            )
            for number, (name, person) in enumerate(zip(names, found, strict=True)):
                right = f"{USERS[name]}{number % 2 and ' not'}" == USERS[name]
                assert (person is not None) == right and (person is None or person.name == name)
        finally:
            await made.close()

    asyncio.run(run())


def test_users_of_the_directory_log_in_at_the_web_service(slapd: LdapServer, tmp_path: Path) -> None:
    """SLD-001, SLD-002, SLD-004, SLD-005: every role sees the pages, and may do what its group says."""
    server = WebServer(tmp_path, slapd.define(*ROLES)).start()
    try:
        for name, role in (("mary", "Admin"), ("bob", "Control"), ("wall", "Monitor")):
            basic = server.ask("GET", "/api/v1/modules", user=name, password=USERS[name])
            assert basic.status == 200, basic.data
            body = json.dumps({"user": name, "password": USERS[name]}).encode()
            assert server.ask("POST", "/api/v1/session", body).json["role"] == role
        for page in ("/", "/monitor_and_control.html", "/monitor_only.html"):
            shown = server.ask("GET", page, headers={"Host": "10.0.0.1"})
            assert shown.status == 200 or b"libraries are missing" in shown.data, "not a matter of who asks"
        for name, password in (("mary", "wrong"), ("lost", "lost secret"), ("mary", "")):
            assert server.ask("GET", "/api/v1/modules", user=name, password=password).status == 401
        assert len(processes_below(server)) == 1
        slapd.stop()
        down = server.ask("GET", "/api/v1/modules", user="bob", password="bob secret, another")
        assert down.status in (401, 503) and f"127.0.0.1:{slapd.port}" in down.json["text"], down.data
        slapd.start()
    finally:
        output = server.stop()
    assert "secret" not in output and processes_below(server) == []


def processes_below(server: WebServer) -> list[int]:
    """The processes that ask a directory for this service."""
    assert server.process is not None
    if server.process.returncode is not None:
        return []
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child.pid for child in children if child.name() == "safeldap"]


@pytest.mark.parametrize(
    ("define", "why"),
    [
        ("useldap", "useldap needs: Define searchurl"),
        ('useldap\nDefine searchurl "http://x/y"', "is not ldap://HOST"),
        ('useldap\nDefine searchurl "ldap://x"', "is not ldap://HOST"),
        ('useldap\nDefine searchurl "ldap://x:y/dc=a"', "is not HOST or HOST:PORT"),
        ('useldap\nDefine searchurl "ldap://x/dc=a?uid?deep"', "the scope is 'deep'"),
        ('useldap\nDefine searchurl "ldap://x/dc=a?u)id"', "no list of attributes"),
        ('useldap\nDefine searchurl "ldap://x/dc=a"\nDefine binddn "cn=a"', "belong together"),
        ('useldap\nDefine searchurl "ldaps://x/dc=a"\nDefine ldapstarttls', "ldapstarttls is for ldap://"),
    ],
)
def test_settings_that_are_wrong_are_named(define: str, why: str) -> None:
    with pytest.raises(SettingsError, match=r"httpd\.conf") as caught:
        directory(f"Define {define}\n")
    assert why in str(caught.value) and "safekit webserver restart" in str(caught.value)

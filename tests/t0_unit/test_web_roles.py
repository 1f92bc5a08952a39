"""Who may do what, who has to wait, and what the files beside httpd.conf say: without I/O."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import bcrypt
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from caserv import service
from caserv.gate import Access, Refused
from caserv.gate import Gate as CaGate
from safekit.disk.paths import node_name
from safekit.model.httpd import Define, HttpdError, defines, members, web_ports
from safekit.wire import proof
from safekit.wire.certificates import Certificate
from safekit.wire.remote import sign
from safewebserver import app, child
from safewebserver.guesses import (
    FREE,
    FREE_ACCOUNT,
    FREE_ADDRESS,
    MAX_QUEUE,
    MAX_QUEUE_ADDRESS,
    SLOW_SECONDS,
    Busy,
    Guesses,
    Turns,
    Wait,
)
from safewebserver.identity import Asked, Gate, Strangers, Unauthorized
from safewebserver.permissions import Role
from safewebserver.roles import (
    LABELS,
    Denied,
    Granted,
    Means,
    Person,
    Presented,
    decide,
    parse_certificate_groups,
    parse_groups,
)
from safewebserver.sessions import MAX_OF_USER, MAX_SESSIONS, Sessions
from safewebserver.settings import Settings
from safewebserver.streams import Streams, TooMany
from tests.t2_process.certificates import make


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Of a server with the user admin."""
    for variable in ("SAFE", "SAFEVAR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / "SAFE/web/conf").mkdir(parents=True)
    hashed = bcrypt.hashpw(b"a long password", bcrypt.gensalt(4)).decode()
    (tmp_path / "SAFE/web/conf/user.conf").write_text(f"admin:{hashed}\n")
    return Gate(Settings())


CLIENT = "1.3.6.1.5.5.7.3.2"


def certificate(name: str = "MARY SMITH", *units: str, issuer: str = "Company CA", uses: str = CLIENT) -> Certificate:
    names = (name,) if name else ()
    uses_ = (uses,) if uses else ()
    return Certificate(
        names, units, f"CN={name}", issuer, f"CN={issuer},O=Company", 0, 9e9, uses_, (), (), False, 7, "00"
    )


# One table decides


@pytest.mark.parametrize(
    ("what", "who", "role", "means"),
    [
        (Presented(Role.ADMIN, server="n2"), "root@n2", Role.ADMIN, Means.SERVER),
        (Presented(Role.CONTROL, server="n2"), "root@n2", Role.CONTROL, Means.SERVER),
        (Presented(Role.ADMIN, server="n2", behalf=Person("eve@n2", Role.MONITOR)), "eve@n2", Role.MONITOR,
         Means.SERVER),
        (Presented(Role.ADMIN, True, server="n2", certificate=certificate("n2", "Monitor")), "root@n2", Role.MONITOR,
         Means.SERVER),
        (Presented(Role.ADMIN, True, server="n2", certificate=certificate("n2")), "root@n2", Role.ADMIN, Means.SERVER),
        (Presented(Role.ADMIN, person=Person("bob", Role.CONTROL)), "bob", Role.CONTROL, Means.PERSON),
        (Presented(Role.MONITOR, person=Person("bob", Role.ADMIN)), "bob", Role.MONITOR, Means.PERSON),
        (Presented(Role.ADMIN, True, person=Person("bob", Role.MONITOR), certificate=certificate("x", "Admin")), "bob",
         Role.MONITOR, Means.PERSON),
        (Presented(Role.ADMIN, True, certificate=certificate("x", "Control")), "x", Role.CONTROL, Means.CERTIFICATE),
        (Presented(Role.ADMIN, True, certificate=certificate("x", "IT", "Admin", "Monitor")), "x", Role.MONITOR,
         Means.CERTIFICATE),
        (Presented(Role.ADMIN, asked=False), "anonymous", Role.ADMIN, Means.NOTHING),
        (Presented(Role.MONITOR, asked=False), "anonymous", Role.MONITOR, Means.NOTHING),
    ],
)  # fmt: skip
def test_the_first_line_that_fits_decides(what: Presented, who: str, role: Role, means: Means) -> None:
    assert decide(what) == Granted(who, role, means)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        (Presented(None, server="n2"), "port", "httpd.conf"),
        (Presented(None, asked=False), "port", "httpd.conf"),
        (Presented(Role.ADMIN), "credentials", "password are needed"),
        (Presented(Role.ADMIN, True, asked=False), "certificate", "clcacert.crt"),
        (Presented(Role.ADMIN, True, False, person=Person("bob", Role.ADMIN)), "credentials", "Define usefile"),
        (Presented(Role.ADMIN, person=Person("bob", None)), "credentials", "user bob is in no group"),
        (Presented(Role.ADMIN, True, certificate=certificate("x", "admin")), "certificate", "'Company CA'"),
        (Presented(Role.ADMIN, True, certificate=certificate("x", "Admin", uses="")), "certificate", "Client Auth"),
        (Presented(Role.ADMIN, True, certificate=certificate("", "Admin")), "certificate", "no CN"),
    ],
)
def test_everything_else_is_refused(what: Presented, kind: str, words: str) -> None:
    found = decide(what)
    assert isinstance(found, Denied) and found.kind == kind and words in found.text


def test_a_certificate_ends_also_on_an_open_connection() -> None:
    for what in (Presented(Role.ADMIN, True), Presented(Role.ADMIN, True, server="n2")):
        what = replace(what, certificate=replace(certificate("x", "Admin"), ends=100.0))
        assert isinstance(decide(replace(what, now=100.0)), Granted)
        denied = decide(replace(what, now=100.5))
        assert isinstance(denied, Denied) and denied.kind == "certificate" and "expired" in denied.text


@pytest.mark.parametrize("name", ["x\nrefused", "x\0", "x\x1b[2J", "a\u2028b"])
def test_a_name_that_would_break_a_log_is_nobody(name: str) -> None:
    groups = parse_certificate_groups("Admin: x")
    found = decide(Presented(Role.ADMIN, True, certificate=certificate(name, "Admin"), groups=groups))
    assert isinstance(found, Denied) and found.kind == "certificate"
    said: list[str] = []
    Strangers(said.append).refused("10.0.0.9", found.text, 1.0)
    assert said[0].isprintable()


def test_a_name_counts_with_its_issuer() -> None:
    groups = parse_certificate_groups(
        'Admin: "MARY SMITH" issuer="Company CA" "s1.w.com"\nControl:\u201dNAD ROU\u201d \u201cDAVID JOHNS\u201d\n'
        'Monitor: "MARY SMITH"\n'
    )

    def role(found: Certificate) -> Role | None:
        decided = decide(Presented(Role.ADMIN, True, certificate=found, groups=groups))
        return decided.role if isinstance(decided, Granted) else None

    assert role(certificate("MARY SMITH")) == Role.ADMIN
    assert role(certificate("MARY SMITH", "Admin", issuer="Other CA")) == Role.MONITOR, "the file before the OU"
    assert role(certificate("DAVID JOHNS", issuer="Other CA")) == role(certificate("NAD ROU")) == Role.CONTROL
    assert role(certificate("mary smith")) is None and role(certificate("MARY")) is None
    whole = parse_certificate_groups('Admin: "x" issuer="CN=Company CA,O=Company"')
    assert isinstance(decide(Presented(Role.ADMIN, True, certificate=certificate("x"), groups=whole)), Granted)


@given(st.text(max_size=200))
def test_any_text_of_groups_is_read(text: str) -> None:
    found = parse_groups(text)
    assert all(name and role in Role for name, role in found.items())
    parse_certificate_groups(text)


def test_groups_have_names_with_blanks_and_quotes() -> None:
    assert parse_groups('Admin: "mary smith" bob\nMonitor: "say \\"hi\\"" a=b\n# Admin: eve\nOthers: eve') == {
        "mary smith": Role.ADMIN, "bob": Role.ADMIN, 'say "hi"': Role.MONITOR, "a=b": Role.MONITOR,
    }  # fmt: skip
    assert [m.name for m in members("Admin: a  b\t c", LABELS)] == ["a", "b", "c"]


# httpd.conf


def test_values_may_stand_in_quotes() -> None:
    text = (
        'Define binddn "CN=bind user,DC=w,DC=com"\n Define bindpwd \'pa"ss\'\nDefine httpadminport "9020"\n'
        "define usefile\n#Define useldap\nDefine searchurl \u201cldap://x:389/DC=w?cn, memberOf?sub?(a=*)\u201d\n"
    )
    assert {name: each.value for name, each in defines(text).items()} == {
        "binddn": "CN=bind user,DC=w,DC=com", "bindpwd": 'pa"ss', "httpadminport": "9020", "usefile": None,
        "searchurl": "ldap://x:389/DC=w?cn, memberOf?sub?(a=*)",
    }  # fmt: skip
    assert web_ports(text) == (9020, 9453) and web_ports("") == (9010, 9453)
    assert web_ports("Define httpsport 443\nDefine httpcontrolport x") == (443,)
    assert defines("Define a b")["a"] == Define("a", "b", 1)
    with pytest.raises(HttpdError, match=r"httpd.conf:2: .*other half"):
        defines('\nDefine a "b')


# Guesses


def wait_of(guesses: Guesses, account: str, address: str, now: float) -> float:
    try:
        return -guesses.check(account, address, now)
    except Wait as error:
        return error.seconds


def test_who_guesses_waits_longer_and_longer_and_nobody_else_does() -> None:
    guesses, now = Guesses(), 100.0
    waits = []
    for _ in range(12):
        waits.append(wait_of(guesses, "admin", "10.0.0.9", now))
        guesses.wrong("admin", "10.0.0.9", now)
    assert waits[:FREE] == [0.0] * FREE and waits[FREE:] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    assert wait_of(guesses, "admin", "10.0.0.1", now) == 0, "the owner of the account is not locked out"
    assert wait_of(guesses, "bob", "10.0.0.9", now) == 0, "nor is who asks from the same address"
    for _ in range(40):
        guesses.wrong("admin", "10.0.0.9", now)
    assert wait_of(guesses, "admin", "10.0.0.9", now) == 300.0
    assert wait_of(guesses, "admin", "10.0.0.9", now + 1000) == 0.0


def test_many_names_from_one_network_are_one_stranger() -> None:
    guesses = Guesses()
    for number in range(FREE_ADDRESS):
        guesses.wrong(f"user{number}", f"fd00::{number:x}", 1.0)
    assert wait_of(guesses, "admin", "fd00::beef", 1.0) == 1.0 and wait_of(guesses, "admin", "fd00:1::1", 1.0) == 0
    guesses = Guesses()
    for _ in range(FREE):
        guesses.wrong("a", "::ffff:10.0.0.1", 1.0)
    assert wait_of(guesses, "a", "10.0.0.1", 1.0) == 1.0, "IPv4 in IPv6 is the same address"


def test_who_proves_a_password_again_and_again_never_waits() -> None:
    """A proof counts as a guess until it is finished, and then not any more; others' guesses stay."""
    guesses = Guesses()
    for number in range(3 * FREE_ACCOUNT):
        assert guesses.check("admin", "10.0.0.9", 30.0 * number) == 0.0
        guesses.wrong("admin", "10.0.0.9", 30.0 * number)
        guesses.withdraw("admin", "10.0.0.9", 30.0 * number)
        guesses.right("admin", "10.0.0.9", 30.0 * number)
    assert guesses.check("admin", "10.0.0.1", 30.0 * number) == 0.0, "nor is the account under attack"
    for _ in range(FREE_ADDRESS):
        guesses.wrong("admin", "10.0.0.8", 1.0)
    guesses.withdraw("admin", "10.0.0.8", 1.0)
    assert wait_of(guesses, "bob", "10.0.0.8", 1.0) == 0.0
    guesses.wrong("bob", "10.0.0.8", 1.0)
    assert wait_of(guesses, "bob", "10.0.0.8", 1.0) == 1.0, "one proof takes back one guess"


def test_a_proof_that_is_finished_is_no_guess(gate: Gate) -> None:
    user, password = "admin", "a long password"

    async def proved() -> None:
        salt = await gate.salt(user, "10.0.0.9")
        asking = proof.Asking(user, node_name(), proof.hash_with(password, salt))
        key = asking.key(await gate.prove(user, asking.message, "10.0.0.9"))
        header, _ = sign(key, "n2", node_name(), "GET", "/")
        found = await gate.identify(Asked("GET", "/", 9010, False, "10.0.0.9", header))
        assert (found.user, found.role) == (user, Role.ADMIN)

    async def often() -> None:
        for _ in range(FREE_ADDRESS + FREE):
            await proved()

    asyncio.run(often())


@pytest.mark.parametrize("text", ["http://[", "http://[::1", "http://a\u2100b", "\u00e9", "[", "a\u2100b"])
def test_what_a_stranger_writes_is_no_defect(gate: Gate, text: str) -> None:
    """Each would be some thirty lines in the journal."""
    request = make_mocked_request("POST", "/", headers={"Origin": text, "Host": text})
    assert app.foreign(request) and service.foreign(request) and not app.known_host(text)
    assert app._to_https(request, 9453).status == 403
    with pytest.raises(Unauthorized, match=r"malformed"):
        asyncio.run(gate.identify(Asked("GET", "/", 9010, False, "10.0.0.9", f"Basic {text}")))
    with pytest.raises(Refused, match=r"wrong name or password"):
        asyncio.run(CaGate(Access(b""), b"").admit(f"Basic {text}", "10.0.0.9", "GET", "/", b""))


@pytest.mark.parametrize(("values", "known"), [("usefile", True), ("usefile useldap", True), ("useldap", False)])
def test_user_conf_counts_only_where_it_is_used(gate: Gate, values: str, known: bool) -> None:
    gate.settings = replace(gate.settings, values=dict.fromkeys(values.split(), ""))
    assert (gate.hash_of("admin") is not None) is known


def test_one_address_has_few_guesses_at_a_directory_at_once(gate: Gate) -> None:
    class Slow:
        asked = 0

        async def check(self, name: str, password: str) -> Person | None:
            self.asked += 1
            await asyncio.sleep(0)
            return None

        async def person(self, name: str) -> Person | None:
            raise AssertionError

    slow = gate.directory = Slow()

    async def burst() -> list[BaseException | Person]:
        asked = (gate.person_of(f"user{n}", "x", "10.0.0.9") for n in range(200))
        return await asyncio.gather(*asked, return_exceptions=True)

    ends = asyncio.run(burst())
    assert slow.asked == MAX_QUEUE_ADDRESS and sum(isinstance(each, Busy) for each in ends) == 200 - slow.asked
    with pytest.raises(Unauthorized):
        asyncio.run(gate.person_of("another", "x", "10.0.0.9"))


def test_who_logs_in_again_and_again_ends_his_own_sessions(gate: Gate) -> None:
    sessions = Sessions(lambda: 1.0)
    admin = sessions.open("admin", Role.ADMIN)
    for _ in range(MAX_SESSIONS + 1):
        last = sessions.open("wall", Role.MONITOR, elsewhere=True)
    assert sessions.find(admin) == ("admin", Role.ADMIN) and sessions.find(last) == ("wall", Role.MONITOR)
    assert len(sessions._known) == MAX_OF_USER + 1


def test_one_user_has_at_most_half_of_the_streams() -> None:
    """Whoever he is, others can still look; and a stream that has ended is his to have again."""
    streams = Streams(4, "logs are followed")
    with ExitStack() as open_ones:
        for _ in range(2):
            open_ones.enter_context(streams.one("mary"))
        with pytest.raises(TooMany, match="2 logs are followed already by mary"), streams.one("mary"):
            pass
        open_ones.enter_context(streams.one("bob"))
        open_ones.enter_context(streams.one("eve"))
        with pytest.raises(TooMany, match="4 logs are followed already"), streams.one("fred"):
            pass
    with streams.one("mary"):
        pass


def test_a_group_file_that_vanishes_closes_the_door_until_it_is_there_again(
    gate: Gate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without group.conf everybody is Admin; while an editor writes it anew nobody is."""
    groups = tmp_path / "SAFE/web/conf/group.conf"

    def role(of: Gate) -> Role | None:
        return asyncio.run(of.person_of("admin", "a long password", "10.0.0.1")).role

    assert role(gate) is Role.ADMIN, "it was never there"
    groups.write_text("Monitor: admin\n")
    sessions = Sessions()
    token = sessions.open("admin", Role.MONITOR)
    assert role(gate) is Role.MONITOR
    groups.unlink()
    assert role(gate) is None and sessions.find(token) is None
    assert role(gate) is None, "not for one look only"
    assert capsys.readouterr().err.count("group.conf has vanished: nobody has a role by his password; write it") == 1
    groups.write_text("Control: admin\n")
    assert role(gate) is Role.CONTROL
    assert sessions.find(token) == ("admin", Role.MONITOR), "who was logged in still is"
    groups.unlink()
    assert role(gate) is None and role(Gate(Settings())) is Role.ADMIN, "a start takes what is there"


def test_rules_of_certificates_that_vanish_close_the_door(gate: Gate, tmp_path: Path) -> None:
    """Without sslgroup.conf the OU counts, without clca.crl a lost certificate is good again."""
    people = make("Company CA", authority=True)
    conf = tmp_path / "SAFE/web/conf"
    (conf / "clcacert.crt").write_bytes(people.pem)
    eve = make("eve", "Admin", by=people)
    der = ssl.PEM_cert_to_DER_cert(eve.pem.decode())

    def role() -> Role:
        return asyncio.run(gate.identify(Asked("GET", "/", 9453, True, "10.0.0.1", certificate=der))).role

    gate.settings = Settings(secure=True)
    assert role() is Role.ADMIN
    listed = 'Monitor: "eve"\n'
    (conf / "sslgroup.conf").write_text(listed)
    assert role() is Role.MONITOR
    for spoil in ((conf / "sslgroup.conf").unlink, lambda: (conf / "sslgroup.conf").write_text("")):
        spoil()
        for _ in range(2):
            with pytest.raises(Unauthorized, match=r"sslgroup.conf had lines and has none any more; write"):
                role()
        (conf / "sslgroup.conf").write_text(listed)
        assert role() is Role.MONITOR
    (conf / "clca.crl").write_bytes(people.revoke(eve))
    with pytest.raises(Unauthorized, match="was revoked"):
        role()
    (conf / "clca.crl").unlink()
    with pytest.raises(Unauthorized, match=r"clca.crl had lines and has none any more"):
        role()


def test_what_only_looks_does_not_hold_up_what_changes_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "safekit"
    script.write_text('case "$*" in *simulate*) until [ -e "$0.go" ]; do sleep 0.05; done;; esac; echo "$*"\n')
    monkeypatch.setattr(child, "program", lambda: ["/bin/sh", str(script)])

    async def scene() -> None:
        commands = child.Commands()
        looks = [
            asyncio.create_task(commands.run(("-u", "wall@10.0.0.9", "simulate", "-m", "web"), 60.0))
            for _ in range(2 * child.MAX_AT_ONCE)
        ]
        await asyncio.sleep(0)
        done = await commands.run(("-u", "admin@10.0.0.1", "stop", "-m", "web"), 30.0)
        (tmp_path / "safekit.go").touch()
        assert done is not None and done.output == "-u admin@10.0.0.1 stop -m web\n"
        assert all(each is not None and each.status == 0 for each in await asyncio.gather(*looks))

    asyncio.run(scene())


def test_an_account_under_attack_is_slow_for_strangers_only() -> None:
    guesses = Guesses()
    guesses.right("admin", "10.0.0.1", 1.0)
    for number in range(FREE_ACCOUNT):
        guesses.wrong("admin", f"10.1.0.{number}", 1.0)
    assert guesses.check("admin", "10.0.0.1", 1.0) == 0.0
    assert guesses.check("admin", "10.0.0.2", 1.0) == SLOW_SECONDS, "slow, never locked"
    assert guesses.check("bob", "10.0.0.2", 1.0) == 0.0
    assert guesses.rank("admin", "10.0.0.1", 1.0) < guesses.rank("admin", "10.0.0.2", 1.0)
    assert guesses.rank("admin", "10.0.0.2", 1.0) < guesses.rank("admin", "10.1.0.2", 1.0)


def test_turns_are_fair_and_bounded() -> None:
    async def scene() -> list[str]:
        turns, order, go = Turns(), [], asyncio.Event()

        async def one(name: str, rank: int, address: str) -> None:
            try:
                async with turns.turn(rank, address):
                    await go.wait()
                    order.append(name)
            except Busy:
                order.append(f"busy {name}")

        tasks = [asyncio.create_task(one("first", 0, "10.0.0.1")) for _ in range(2)]
        for number in range(MAX_QUEUE + 5):
            tasks.append(asyncio.create_task(one("guess", 3, f"10.{number % 40}.0.1")))
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one("honest", 0, "10.9.9.9")))
        gone = asyncio.create_task(one("gone", 0, "10.9.9.8"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*tasks)
        async with turns.turn(0, "10.0.0.1"), turns.turn(0, "10.0.0.1"):
            order.append("both are free again")
        return order

    order = asyncio.run(scene())
    assert order.count("busy guess") == 7, "five too many, and two for who had guessed nothing"
    done = [name for name in order if not name.startswith("busy")]
    assert done[:3] == ["first", "first", "honest"] and done[-1] == "both are free again"
    assert done.count("guess") == MAX_QUEUE - 2 and "gone" not in done


# Proofs of passwords


def test_a_proof_needs_the_password_on_both_sides() -> None:
    hashed = proof.hash_with("secret", "$2y$04$abcdefghijklmnopqrstuu")
    salt = proof.salt_of(hashed)
    for password, user, node, same in (
        ("secret", "admin", "n1", True), ("Secret", "admin", "n1", False), ("secret", "bob", "n1", False),
        ("secret", "admin", "n2", False),
    ):  # fmt: skip
        asking = proof.Asking("admin", "n1", proof.hash_with(password, salt))
        message, key = proof.answer(user, node, hashed.replace(b"$2y$", b"$2b$"), asking.message)
        assert (asking.key(message) == key) is same


@pytest.mark.parametrize("salt", ["", "$2y$04$", "$2y$31$abcdefghijklmnopqrstuu", "$1$04$abcdefghijklmnopqrstuu", "\0"])
def test_a_salt_that_is_none_costs_nothing(salt: str) -> None:
    with pytest.raises(proof.ProofError):
        proof.hash_with("secret", salt)


def test_a_password_is_never_cut() -> None:
    for password in ("x" * 73, "\u00e9" * 37, "a\0b"):
        with pytest.raises(proof.ProofError):
            proof.hash_with(password, "$2y$04$abcdefghijklmnopqrstuu")


@given(st.binary(max_size=40))
def test_a_message_that_is_none_is_refused(message: bytes) -> None:
    with pytest.raises(proof.ProofError):
        proof.answer("a", "n", b"$2b$04$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01234", message)
    with pytest.raises(proof.ProofError):
        proof.answer("a", "n", b"$2b$04$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01234", b"A" + bytes(32))

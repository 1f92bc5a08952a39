"""What the authority grants to a certificate request, and what never gets into a certificate (guide 11.6)."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from caserv import authority, gate, names, proof
from caserv.errors import PkiError
from caserv.judge import Kind, Known, Names, common_name_of, dns_name, judge
from safekit.wire.proof import Asking, guesser, hash_with

KEY = ec.generate_private_key(ec.SECP256R1())
CLUSTER = {"n1": "n1", "10.0.0.1": "n1", "n2": "n2", "10.0.0.2": "n2", "10.1.0.2": "n2"}


def request(
    subject: list[tuple[Any, str]], general: list[x509.GeneralName] | None = None, key: Any = KEY,
    hashing: Any = None, more: list[tuple[x509.ExtensionType, bool]] | None = None,
) -> bytes:  # fmt: skip
    """A request as somebody else might make it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(oid, value) for oid, value in subject])
    )
    if general is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    for extension, critical in more or ():
        builder = builder.add_extension(extension, critical)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashing or hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def server(*general: x509.GeneralName, cn: str = "n2", **more: Any) -> bytes:
    return request([(NameOID.COMMON_NAME, cn)], list(general), **more)


def user(cn: str = "operator", ou: str = "Monitor") -> bytes:
    return request([(NameOID.ORGANIZATIONAL_UNIT_NAME, ou), (NameOID.COMMON_NAME, cn)])


def dns(text: str) -> x509.GeneralName:
    return x509.DNSName(text)


def ip(text: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(text))


def refused(kind: Kind, data: bytes, name: str = "", known: Known | None = None) -> str:
    with pytest.raises(PkiError) as caught:
        judge(kind, data, name, known or Known())
    assert caught.value.next_step
    return caught.value.text


def test_a_server_gets_its_names_and_nothing_else_of_what_it_asks() -> None:
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (x509.NameConstraints([x509.DNSName("bank.example")], None), True),
    ]
    wanted = judge(Kind.SERVER, server(dns("N2"), ip("10.0.0.2"), more=extensions), "server_n2", Known(CLUSTER))
    assert (wanted.name, wanted.names.texts(), wanted.role) == ("server_n2", ("n2", "10.0.0.2"), "")
    assert wanted.public_key == KEY.public_key()


@pytest.mark.parametrize(
    ("general", "reason"),
    [
        ([dns("localhost")], "a name of every machine"),
        ([dns("n2.localhost")], "a name of every machine"),
        ([dns("*.example.com")], "is not a DNS name"),
        ([dns("bank.example/evil")], "is not a DNS name"),
        ([dns("a..b")], "is not a DNS name"),
        ([dns("10.0.0.2")], "a name of every machine, or none"),
        ([ip("127.0.0.1")], "no address under which others"),
        ([ip("::1")], "no address under which others"),
        ([ip("0.0.0.0")], "no address under which others"),
        ([ip("224.0.0.1")], "no address under which others"),
        ([ip("169.254.1.1")], "no address under which others"),
        ([x509.RFC822Name("root@example.com")], "only DNS names and IP addresses"),
        ([x509.UniformResourceIdentifier("https://n2")], "only DNS names and IP addresses"),
        ([x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))], "only DNS names and IP addresses"),
        ([], "no name and no address"),
        ([ip(f"10.9.{i // 250}.{i % 250 + 1}") for i in range(101)], "101 names; at most 100"),
    ],
)
def test_names_that_no_server_has_are_refused(general: list[x509.GeneralName], reason: str) -> None:
    assert reason in refused(Kind.SERVER, server(*general))


def test_a_certificate_is_for_one_server() -> None:
    two = server(dns("n2"), ip("10.0.0.1"))
    text = refused(Kind.SERVER, two, known=Known(CLUSTER))
    assert "10.0.0.1 (n1)" in text and "several servers" in text
    assert "several servers" in refused(Kind.SERVER, server(ip("10.0.0.1")), known=Known(CLUSTER)), "the CN counts too"
    taken = Known(certified={"10.0.0.9": "server_localca"})
    assert "10.0.0.9 is in the certificate server_localca" in refused(Kind.SERVER, server(ip("10.0.0.9")), known=taken)
    again = Known(certified={"10.0.0.2": "server_n2", "n2": "server_n2"})
    assert judge(Kind.SERVER, server(ip("10.0.0.2")), "", again).name == "server_n2"


def test_names_are_of_the_cluster_or_were_asked_for() -> None:
    public = server(dns("n2"), ip("10.0.0.2"), ip("203.0.113.9"))
    assert "203.0.113.9" in refused(Kind.SERVER, public, known=Known(CLUSTER))
    for known in (
        Known(CLUSTER, asked=frozenset({"203.0.113.9"})),
        Known(CLUSTER, client="203.0.113.9"),
        Known(),
    ):
        assert "203.0.113.9" in judge(Kind.SERVER, public, "", known).names.texts()
    assert "10.0.0.7" in refused(Kind.SERVER, server(ip("10.0.0.7")), known=Known(asked=frozenset({"10.0.0.8"})))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: user(ou="Root"), "is not a role"),
        (lambda: user(ou=""), ""),
        (lambda: user("../../etc/passwd"), "is not a name"),
        (lambda: user("a\r\nX-Evil: 1"), "is not a name"),
        (lambda: user(".hidden"), "is not a name"),
        (lambda: user(" blank"), "is not a name"),
        (lambda: user("a/CN=b"), "is not a name"),
        (lambda: request([(NameOID.COMMON_NAME, "a")]), "0 OU"),
        (lambda: request([(NameOID.COMMON_NAME, "a"), (NameOID.COMMON_NAME, "b")]), "2 CN"),
        (
            lambda: request(
                [
                    (NameOID.COMMON_NAME, "a"),
                    (NameOID.ORGANIZATIONAL_UNIT_NAME, "Monitor"),
                    (NameOID.ORGANIZATIONAL_UNIT_NAME, "Admin"),
                ]
            ),
            "2 OU",
        ),
        (lambda: user("system", "Admin"), "belongs to the server of the authority"),
    ],
)
def test_users_that_are_none_are_refused(data: Callable[[], bytes], reason: str) -> None:
    try:
        asked = data()
    except ValueError:  # the library makes no such request; nor does it read one
        return
    assert reason in refused(Kind.USER, asked)


def test_the_name_of_the_certificate_fits_the_subject() -> None:
    assert judge(Kind.USER, user("MARY SMITH", "Admin"), "user_Admin_MARY SMITH", Known()).common_name == "MARY SMITH"
    for name in ("user_Admin_operator", "../x", "server_n1", "cacert", "user_Monitor_operator/../../x"):
        assert "does not fit" in refused(Kind.USER, user(), name)
    assert "belongs to the server" in refused(Kind.SERVER, server(ip("10.0.0.2"), cn="localca"))


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024), "2048 to 4096 bits"),
        (lambda: rsa.generate_private_key(public_exponent=3, key_size=2048), "exponent 65537"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), "neither RSA nor"),
        (ed25519.Ed25519PrivateKey.generate, "neither RSA nor"),
    ],
)
def test_weak_and_strange_keys_are_refused(key: Callable[[], Any], reason: str) -> None:
    assert reason in refused(Kind.SERVER, server(ip("10.0.0.2"), key=key()))


def test_damaged_requests_are_refused() -> None:
    good = server(ip("10.0.0.2"))
    assert "weak hash" in refused(Kind.SERVER, server(ip("10.0.0.2"), hashing=hashes.SHA224()))
    for data in (b"", b"x", good[:200], b"\0" * 1000, good.replace(b"REQUEST", b"REQUES")):
        assert "not a certificate request" in refused(Kind.SERVER, data)
    assert "at most" in refused(Kind.SERVER, good + b"\n" * (33 << 10))
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    der[-3] ^= 1  # the signature
    changed = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    assert "signature" in refused(Kind.SERVER, changed)


def test_a_key_of_16_kbit_is_refused_before_anybody_computes_with_it() -> None:
    """A modulus needs no primes to be sent."""
    numbers = rsa.RSAPublicNumbers(65537, (1 << 16383) + 1)
    der = numbers.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    small = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    good = x509.load_pem_x509_csr(server(ip("10.0.0.2"), key=small))
    inner = good.tbs_certrequest_bytes
    old = small.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def wrapped(tag: int, content: bytes) -> bytes:
        return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content

    tbs = wrapped(0x30, inner[4:].replace(old, der))
    tail = good.public_bytes(serialization.Encoding.DER)[4 + len(inner) :]
    huge = x509.load_der_x509_csr(wrapped(0x30, tbs + tail)).public_bytes(serialization.Encoding.PEM)
    assert "2048 to 4096 bits" in refused(Kind.SERVER, huge)


def test_subjects_of_an_authority() -> None:
    name = authority.parse_subject("/O=My Company/OU=My Entity/CN=My Company Private Certificate Authority")
    assert authority.subject_text(name) == "/O=My Company/OU=My Entity/CN=My Company Private Certificate Authority"
    assert authority.parse_subject("“/O=A/CN=B”") == authority.parse_subject("/O=A/CN=B"), "quotes of a word processor"
    assert authority.subject_text(authority.parse_subject(r"/CN=a\/b")) == r"/CN=a\/b"
    for text in ("", "/O=x", "/CN=", "/XX=1/CN=a", "CN", "/CN=a//"):
        with pytest.raises(PkiError):
            authority.parse_subject(text)


def test_years_end_on_the_same_day() -> None:
    day = authority.now().replace(year=2028, month=2, day=29)
    assert (authority.years_after(day, 4).day, authority.years_after(day, 5).day) == (29, 28)


def test_the_index_is_read_as_it_was_written_and_a_damaged_one_is_not_guessed() -> None:
    when = authority.now()
    entries = [
        authority.Entry("user_Admin_MARY SMITH", 0xABC, when, "/OU=Admin/CN=MARY SMITH", None),
        authority.Entry("server_n1", 0x1234, when.replace(year=2051), "/CN=n1", when),
    ]
    text = "".join(entry.line() for entry in entries)
    assert authority.parse_index(text) == entries
    assert text.startswith("V\t") and "\t0ABC\t" in text
    for damaged in (text[:-40], text.replace("R\t", "R"), "V\n"):
        with pytest.raises(PkiError, match=r"index.txt:\d"):
            authority.parse_index(damaged)


def test_lists_of_names_keep_what_an_administrator_changed() -> None:
    """PKI-011."""
    assert names.merged(["a", "b"], None, []) == ["a", "b"]
    assert names.merged(["a", "c"], ["a", "public"], ["a", "b"]) == ["a", "c", "public"], "b was taken away, c is new"
    assert names.merged(["a", "b"], ["b", "x"], ["a", "b"]) == ["b", "x"]
    assert names.merged(["b"], ["a", "b"], ["a", "b"]) == ["b"], "an address that is gone goes"


def test_names_for_people() -> None:
    for good in ("MARY SMITH", "jo", "O'Neil", "a.b@example.com", "日本", "x" * 64):
        assert common_name_of(good) == good
    for bad in ("", "x" * 65, "a:b", 'a"b', "a\nb", "a\u202eb", "-a", "a ", "a\0b"):
        with pytest.raises(PkiError):
            common_name_of(bad)
    assert dns_name("N1.Example.COM.") == "n1.example.com"
    assert Names().texts() == ()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_guesses_cost_time_and_lock_nobody_else_out() -> None:
    clock = Clock()
    guesses = gate.Guesses(clock)
    guesses.right("10.0.0.7")
    for _ in range(gate.FREE_TRIES):
        assert guesses.wait("10.0.0.66") == 0
        guesses.wrong("10.0.0.66")
    waits = []
    for _ in range(12):
        waits.append(guesses.wait("10.0.0.66"))
        clock.now += waits[-1]
        guesses.wrong("10.0.0.66")
    assert waits[:4] == [1, 2, 4, 8] and waits[-1] == gate.LONGEST_WAIT
    assert guesses.wait("10.0.0.5") == 0, "another address is not held up"
    # One who has a whole network, and another who shares the half of an address that one can choose.
    for number in range(gate.MAX_WRONG):
        guesses.wrong(f"192.0.2.{number}")
    assert guesses.wait("192.0.2.200") > 0
    assert guesses.wait("127.0.0.1") == guesses.wait("10.0.0.7") == 0, "this server and who gave the password go on"
    clock.now += gate.WINDOW + 1
    assert guesses.wait("192.0.2.200") == 0
    assert guesser("2001:db8::1") == guesser("2001:db8::ffff:1") != guesser("2001:db8:0:1::1")
    assert guesser("::ffff:10.0.0.1") == "10.0.0.1"


def test_guessers_without_number_need_no_memory() -> None:
    guesses = gate.Guesses(Clock())
    for number in range(gate.MAX_ADDRESSES * 2):
        guesses.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(guesses._tries) == gate.MAX_ADDRESSES


def test_proofs_are_of_one_key_and_one_request() -> None:
    key, other, session = b"k" * 32, b"o" * 32, "00" * 16
    header = proof.authorization(key, session, "POST", "/caserv", b"body")
    parsed = proof.parse_authorization(header)
    assert parsed is not None and parsed[0] == session
    mac = parsed[1]
    assert proof.is_right(key, mac, "POST", "/caserv", b"body")
    wrong: list[tuple[bytes, str, str, bytes]] = [
        (other, "POST", "/caserv", b"body"), (key, "GET", "/caserv", b"body"), (key, "POST", "/caserv?", b"body"),
        (key, "POST", "/caserv", b"other"),
    ]  # fmt: skip
    for k, method, path, body in wrong:
        assert not proof.is_right(k, mac, method, path, body)
    answer = proof.answer_proof(key, 200, b"x")
    assert answer != mac and proof.answer_is_right(key, 200, b"x", answer)
    assert not proof.answer_is_right(key, 400, b"x", answer)
    for damaged in ("", "Basic x", "SafeKit-CA session=1,mac=2", f"{header} "):
        assert proof.parse_authorization(damaged) is None


def test_a_key_is_of_one_password_one_service_and_one_address() -> None:
    """The service is known by its certificate: somebody in between has another one."""

    async def run() -> None:
        access = gate.Access.of("PasW0rD")
        ours = gate.Gate(access, b"certificate", Clock())

        async def ask(password: str, certificate: bytes, address: str = "10.0.0.9", *, again: bool = False) -> bool:
            hashed = hash_with(password, ours.challenge()["salt"])
            asking = Asking("CA_admin", proof.name_of(certificate), hashed)
            begun = await ours.begin(asking.message, "10.0.0.9")
            key = asking.key(bytes.fromhex(begun["message"]))
            header = proof.authorization(key, begun["session"], "GET", "/", b"")
            try:
                assert await ours.admit(header, address, "GET", "/", b"") == key
                if again:
                    await ours.admit(header, address, "GET", "/", b"")
            except gate.Refused:
                return False
            return True

        assert await ask("PasW0rD", b"certificate")
        for question in (
            ask("PasW0rd", b"certificate"), ask("PasW0rD", b"of somebody in between"),
            ask("PasW0rD", b"certificate", "10.0.0.8"), ask("PasW0rD", b"certificate", again=True),
        ):  # fmt: skip
            assert not await question
        assert await ask("PasW0rD", b"certificate"), "a right one forgives"
        for _ in range(gate.FREE_TRIES):
            assert not await ask("wrong", b"certificate")
        with pytest.raises(gate.Refused, match="too many wrong passwords"):
            await ask("PasW0rD", b"certificate")

    asyncio.run(run())
